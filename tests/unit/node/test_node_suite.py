"""The last step of CI: it runs the tests on a node where there is time for them, and never takes more than it has."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.processes import REPOSITORY

SUITE_SECONDS = 2
ENOUGH = 200


def run(
    folder: Path, *, seconds: int, made: Mapping[str, str] | None = None, user: int = 0, ci: str = ""
) -> tuple[int, str, list[str]]:
    """Run the step with a ``make`` whose targets are pieces of shell; return exit code, errors and targets made."""
    targets = {"e2e-ready": "true", "e2e": "true", **(made or {})}
    cases = "".join(f"{name}) {body};;\n" for name, body in targets.items())
    program(folder / "make", f'echo "$1" >>{folder}/made\ncase $1 in\n{cases}esac')
    program(folder / "id", f"echo {user}")
    found = {"PATH": f"{folder}:{os.environ['PATH']}", "FINETUNE_NODE_SUITE_SECONDS": str(SUITE_SECONDS), "CI": ci}
    command = [str(REPOSITORY / "hack" / "node-suite.sh"), str(seconds)]
    done = subprocess.run(command, env={**os.environ, **found}, capture_output=True, text=True, check=False)
    told = folder / "made"
    return done.returncode, done.stderr, told.read_text().split() if told.exists() else []


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def test_with_time_enough_everything_is_built_and_run(tmp_path: Path) -> None:
    assert run(tmp_path, seconds=ENOUGH) == (0, "", ["e2e-ready", "e2e"])


@pytest.mark.parametrize("seconds", [SUITE_SECONDS, 0, -300])
def test_with_too_little_time_it_says_what_is_left_out_and_how_to_run_it(tmp_path: Path, seconds: int) -> None:
    code, errors, made = run(tmp_path, seconds=seconds, ci="true")

    assert (code, made) == (0, [])
    (line,) = errors.splitlines()
    assert line.startswith("LEFT OUT: the tests on a real node")
    assert "make e2e" in line


def test_a_build_that_would_take_the_time_of_the_tests_is_ended(tmp_path: Path) -> None:
    code, errors, made = run(tmp_path, seconds=SUITE_SECONDS + 1, made={"e2e-ready": "sleep 60"}, ci="true")

    assert (code, made) == (0, ["e2e-ready"])
    assert "were not built" in errors


def test_a_build_that_fails_fails_the_step(tmp_path: Path) -> None:
    code, _, made = run(tmp_path, seconds=ENOUGH, made={"e2e-ready": "exit 2"})

    assert (code, made) == (2, ["e2e-ready"])


def test_tests_that_fail_or_hang_fail_the_step(tmp_path: Path) -> None:
    assert run(tmp_path, seconds=ENOUGH, made={"e2e": "exit 2"})[0] == 2
    assert run(tmp_path, seconds=SUITE_SECONDS + 1, made={"e2e": "exec sleep 60"})[0] == 124


@pytest.mark.parametrize(("ci", "made"), [("", []), ("true", ["e2e-ready", "e2e"])])
def test_without_root_it_is_left_out_but_under_ci(tmp_path: Path, ci: str, made: list[str]) -> None:
    code, errors, found = run(tmp_path, seconds=ENOUGH, user=1000, ci=ci)

    assert (code, found) == (0, made)
    assert ("need root" in errors) == (not made)
