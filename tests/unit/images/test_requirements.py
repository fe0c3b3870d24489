"""What goes into an image before the project itself does."""

import subprocess
import sys

import pytest
from tests.support.processes import REPOSITORY


def listed(*arguments: str) -> list[str]:
    command = [sys.executable, "hack/images/requirements.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]


def named(*arguments: str) -> set[str]:
    return {line.split(">")[0].split("=")[0] for line in listed(*arguments)}


def test_extras_that_an_extra_names_are_part_of_it() -> None:
    assert {"httpx", "datasets", "torch", "tensorboard", "pydantic"} <= named("trainer")


def test_relocation_brings_no_machine_learning_library() -> None:
    assert named("relocator") & {"torch", "transformers", "peft", "datasets", "numpy"} == set()


@pytest.mark.parametrize(("label", "requirement"), [("cpu", "+cpu"), ("cu130", "+cu130")])
def test_a_build_of_torch_is_chosen_by_its_label(label: str, requirement: str) -> None:
    version = next(
        line.removeprefix("torch==")
        for line in (REPOSITORY / "constraints.txt").read_text().split()
        if line.startswith("torch==")
    )

    assert listed("--torch", label, "models")[-1] == f"torch=={version}{requirement}"
    assert listed("--torch", "cuda", "models")[-1] == f"torch==={version}"
    assert f"torch=={version}{requirement}" not in listed("models")
