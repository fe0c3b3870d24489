"""The distribution installs every package, hides no module of the standard library, and pins all that it needs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
DISTRIBUTION = "finetuning-operator"
PACKAGES = {
    "finetuning_api",
    "finetuning_cli",
    "finetuning_client",
    "finetuning_evaluator",
    "finetuning_operator",
    "finetuning_relocator",
    "finetuning_server",
    "finetuning_trainer",
    "finetuning_workload",
}
# Name, two equals signs, a public version (no local part such as +cpu), and nothing else: no address, hash or marker.
PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[0-9][0-9A-Za-z.!]*)")

PRINT_FILES = f"import importlib; [print(importlib.import_module(name).__file__) for name in {sorted(PACKAGES)}]"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(match["name"]): match["version"] for match in matches if match}


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def python(*, code: str, cwd: Path, path: Path | None = None) -> str:
    env = {"PATH": "/usr/bin:/bin", **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip()


def test_wheel_holds_exactly_the_nine_packages_each_with_its_type_marker(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top_level == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_wheel_carries_the_license(wheel: Path) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_every_package_imports_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    files = python(code=PRINT_FILES, cwd=tmp_path, path=site).splitlines()
    assert files == [str(site / package / "__init__.py") for package in sorted(PACKAGES)]


def test_editable_install_imports_every_package_from_the_checkout(tmp_path: Path) -> None:
    folders = {Path(file).parents[2] for file in python(code=PRINT_FILES, cwd=tmp_path).splitlines()}
    assert folders == {ROOT}


def test_operator_of_the_standard_library_is_not_hidden_at_the_root_of_the_repository() -> None:
    code = "import sys; sys.modules.pop('operator', None); import operator; print(operator.__file__)"
    assert Path(python(code=code, cwd=ROOT)) == Path(re.__file__).parents[1] / "operator.py"


def test_operator_folder_is_no_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_constraints_are_names_and_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#") and not PIN.fullmatch(line)] == []
    assert "//" not in "\n".join(lines)


def test_constraints_pin_each_package_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(pins()) == len([line for line in lines if not line.startswith("#")])


@pytest.mark.parametrize("extra", ["", *project()["optional-dependencies"]])
def test_every_dependency_is_pinned_within_its_range(extra: str) -> None:
    listed = project()["optional-dependencies"][extra] if extra else project()["dependencies"]
    requirements = [Requirement(text) for text in listed]
    outside = [
        str(requirement)
        for requirement in requirements
        if requirement.name != DISTRIBUTION
        and not requirement.specifier.contains(pins().get(canonicalize_name(requirement.name), ""), prereleases=True)
    ]
    assert outside == []


def test_constraints_pin_all_that_an_installation_brings_along() -> None:
    assert needed_by("dev") - set(pins()) == set()


def needed_by(extra: str) -> set[str]:
    """Names of everything that this interpreter has installed for one extra of the distribution, however indirectly."""
    seen: set[tuple[str, str]] = set()
    waiting = [(DISTRIBUTION, extra)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                found = canonicalize_name(requirement.name)
                waiting += [(found, ""), *((found, further) for further in requirement.extras)]
    return {name for name, _ in seen} - {DISTRIBUTION}
