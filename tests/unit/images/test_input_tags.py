"""The tag of an image: equal input, equal tag, on every machine."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hack.images.build import image_names
from hack.images.inputs import frozen, input_files, input_tag
from hack.images.settings import ROLES, SITE, Role, Settings
from tests.support.processes import REPOSITORY

ALL = (*ROLES.values(), SITE)


@pytest.fixture
def checkout(tmp_path: Path) -> Settings:
    """Settings for a small checkout: the real Dockerfiles, and a file for everything that they copy."""
    settings = Settings(repository=tmp_path)
    for role in ALL:
        for file in input_files(role, Settings()):
            copy = tmp_path / file.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.name == "Dockerfile":
                shutil.copyfile(file, copy)
            elif not any(copy.parent.glob(f"*{copy.suffix}")):
                copy.write_text(copy.name)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    return settings


def tags(settings: Settings) -> dict[str, str]:
    return {role.name: input_tag(role, settings) for role in ALL}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {role for role in before if before[role] != after[role]}


def test_another_checkout_with_the_same_content_has_the_same_tags(checkout: Settings, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(checkout.repository, other, ignore=shutil.ignore_patterns("elsewhere"))

    assert tags(replace(checkout, repository=other)) == tags(checkout)


@pytest.mark.parametrize(
    ("file", "roles"),
    [
        ("operator/finetuning_operator/new.py", {"operator"}),
        ("relocator-image/finetuning_relocator/new.py", {"relocator"}),
        ("trainer-image/finetuning_trainer/new.py", {"trainer"}),
        ("workload/finetuning_workload/new.py", {"relocator", "trainer", "evaluator", "server"}),
        ("crds/finetuning_api/new.py", {"operator", "relocator", "trainer", "evaluator", "server"}),
        ("trainer-image/Dockerfile", {"trainer"}),
        ("workload/Dockerfile", {"models", "trainer", "evaluator", "server"}),
        ("constraints.txt", {role.name for role in ALL}),
        ("hack/images/base.sh", {role.name for role in ALL}),
        ("hack/images/wheels/torch-9.9.whl", {role.name for role in ALL if role is not SITE}),
        ("tests/e2e/site/serve.py", {"site"}),
        ("README.md", set()),
        ("docs/images.md", set()),
        ("operator/finetuning_operator/__pycache__/new.cpython-311.pyc", set()),
    ],
)
def test_a_change_changes_the_tags_of_what_it_goes_into(checkout: Settings, file: str, roles: set[str]) -> None:
    before = tags(checkout)
    path = checkout.repository / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write("\n# changed\n")

    assert changed(before, tags(checkout)) == roles


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: replace(settings, torch="cuda"),
        lambda settings: replace(settings, arguments={"PYTHON_IMAGE": "python:3.12-slim"}),
    ],
)
def test_a_setting_that_changes_what_is_built_changes_every_tag(
    checkout: Settings, change: Callable[[Settings], Settings]
) -> None:
    assert changed(tags(checkout), tags(change(checkout))) == {role.name for role in ALL}


def test_where_images_go_changes_no_tag(checkout: Settings) -> None:
    there = replace(checkout, registry="registry.example.org/team/")

    assert tags(there) == tags(checkout)
    assert image_names(ROLES["operator"], there) == (
        "registry.example.org/team/finetuning-operator:1.2.3",
        f"registry.example.org/team/finetuning-operator:{tags(checkout)['operator']}",
    )


@pytest.mark.parametrize(
    ("role", "tag"),
    [("models", "1.2.3-cuda"), ("trainer", "1.2.3-cuda"), ("operator", "1.2.3"), ("relocator", "1.2.3")],
)
def test_a_chosen_build_of_torch_is_in_the_tags_of_images_that_hold_it(checkout: Settings, role: str, tag: str) -> None:
    by_version, _ = image_names(ROLES[role], replace(checkout, torch="cuda"))

    assert by_version == f"finetuning-{role}:{tag}"


def test_a_file_that_a_dockerfile_names_and_nobody_has_is_told(checkout: Settings) -> None:
    (checkout.repository / "constraints.txt").unlink()

    with pytest.raises(FileNotFoundError, match=r"constraints\.txt is copied into an image, and is not there"):
        input_tag(ROLES["operator"], checkout)


def test_what_is_edited_during_a_build_belongs_to_the_next_one(checkout: Settings) -> None:
    before = tags(checkout)
    with frozen(ALL, checkout) as copy:
        (checkout.repository / "constraints.txt").write_text("torch==9")

        assert tags(copy) == before
        assert changed(before, tags(checkout)) == set(before)


@pytest.mark.parametrize("role", ALL, ids=lambda role: role.name)
def test_a_plain_docker_build_sees_what_the_dockerfile_copies(role: Role) -> None:
    """``.dockerignore`` lets through what is named there, and nothing else."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    let_through = [REPOSITORY / line[1:] for line in lines if line.startswith("!")]
    outside_of_the_context = {REPOSITORY / role.dockerfile, REPOSITORY / "hack/images/base.sh"}
    wanted = set(input_files(role, Settings())) - outside_of_the_context

    assert {file for file in wanted if not any(file.is_relative_to(path) for path in let_through)} == set()


@pytest.mark.parametrize("role", ALL, ids=lambda role: role.name)
def test_dockerfiles_need_nothing_but_the_classic_builder(role: Role) -> None:
    text = (REPOSITORY / role.dockerfile).read_text()

    assert [word for word in ("# syntax=", "--mount=", "<<EOF", "COPY --link", "COPY --chmod") if word in text] == []
    assert "USER 65532:65532" in text or role.upon is not None
