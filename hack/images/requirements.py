"""Prints what extras of pyproject.toml install, without this project itself: a layer that code changes do not touch."""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_OWN = re.compile(r"finetuning-operator\[(?P<extras>[\w,-]+)\]")


def requirements(extra: str, extras: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the requirements of an extra and of those that it names."""
    for requirement in extras[extra]:
        own = _OWN.fullmatch(requirement)
        if own is None:
            yield requirement
            continue
        for named in own["extras"].split(","):
            yield from requirements(named, extras)


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [requirement for extra in sys.argv[1:] for requirement in requirements(extra, extras)]
    sys.stdout.write("\n".join(dict.fromkeys([*project["dependencies"], *named])) + "\n")
