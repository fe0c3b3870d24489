"""Prints what extras of pyproject.toml install, without this project itself: a layer that code changes do not touch."""

import argparse
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


def torch_build(label: str, constraints: str) -> str:
    """Return the requirement of one build of the pinned torch.

    ``cuda`` is the build without a label, the one for NVIDIA on package indexes; pip would prefer any that has a label.
    """
    version = next(line.removeprefix("torch==") for line in constraints.splitlines() if line.startswith("torch=="))
    return f"torch==={version}" if label == "cuda" else f"torch=={version}+{label}"


def main(arguments: Sequence[str]) -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="", help="build of torch: cpu, cuda or a label; empty takes any")
    parser.add_argument("extras", nargs="+")
    options = parser.parse_args(arguments)
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [requirement for extra in options.extras for requirement in requirements(extra, extras)]
    if options.torch:
        named.append(torch_build(options.torch, Path("constraints.txt").read_text(encoding="utf-8")))
    sys.stdout.write("\n".join(dict.fromkeys([*project["dependencies"], *named])) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
