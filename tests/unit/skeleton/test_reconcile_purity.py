"""What import-linter cannot see: calls with which a pure function would read a clock, a file or the user."""

import ast
from pathlib import Path

import pytest

RECONCILE = Path(__file__).parents[3] / "operator" / "finetuning_operator" / "reconcile"
IMPURE_NAMES = {"open", "input", "print", "breakpoint"}
IMPURE_METHODS = {"now", "utcnow", "today", "read_text", "read_bytes", "write_text", "write_bytes", "urlopen"}


def impure_calls(source: str) -> list[str]:
    called = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [node.id for node in called if isinstance(node, ast.Name) and node.id in IMPURE_NAMES]
    methods = [node.attr for node in called if isinstance(node, ast.Attribute) and node.attr in IMPURE_METHODS]
    return names + methods


@pytest.mark.parametrize("module", sorted(RECONCILE.rglob("*.py")), ids=lambda path: path.name)
def test_reconcile_calls_neither_clock_nor_file(module: Path) -> None:
    assert impure_calls(module.read_text(encoding="utf-8")) == []


def test_impure_calls_are_recognised() -> None:
    source = "import datetime as d\ndef f(p):\n    open(p)\n    return d.datetime.now(d.UTC)\n"
    assert sorted(impure_calls(source)) == ["now", "open"]
