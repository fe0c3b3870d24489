"""Writes the table of values in the chart's README from the comments of values.yaml that begin with ``# --``."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

_CHART = Path("charts/finetuning-operator")
_MARK = "# -- "
_BEGIN, _END = "<!-- values -->", "<!-- end of values -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring the README up to date; with ``--check`` only say whether it is."""
    parser = argparse.ArgumentParser(prog="python -m hack.chart_readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the README is out of date")
    options = parser.parse_args(arguments)
    readme = _CHART / "README.md"
    written = readme.read_text(encoding="utf-8")
    head, _, rest = written.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    values = (_CHART / "values.yaml").read_text(encoding="utf-8")
    wanted = f"{head}{_BEGIN}\n{table(values)}{_END}{tail}"
    if wanted == written:
        return 0
    if options.check:
        sys.stderr.write(f"{readme} is out of date: run python -m hack.chart_readme\n")
        return 1
    readme.write_text(wanted, encoding="utf-8")
    return 0


def table(text: str) -> str:
    """Return the values of a chart as a Markdown table: path, default, meaning."""
    tree = yaml.safe_load(text)
    rows = [f"| `{path}` | `{json.dumps(_at(tree, path))}` | {meaning} |" for path, meaning in _described(text)]
    return "\n".join(["| value | default | |", "|---|---|---|", *rows, ""])


def _described(text: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the meaning of every described value."""
    parents: list[str] = []
    meaning = ""
    for line in text.splitlines():
        words = line.strip()
        if words.startswith(_MARK):
            meaning = words.removeprefix(_MARK)
        elif words and not words.startswith("#"):
            depth = (len(line) - len(line.lstrip())) // 2
            parents = [*parents[:depth], words.partition(":")[0]]
            if meaning:
                yield ".".join(parents), meaning
            meaning = ""


def _at(tree: object, path: str) -> object:
    for key in path.split("."):
        if not isinstance(tree, dict):
            raise TypeError(f"values.yaml has no value at {path}")
        tree = tree[key]
    return tree


if __name__ == "__main__":
    sys.exit(main())
