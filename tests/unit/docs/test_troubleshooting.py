"""Whoever meets a failure finds it in the troubleshooting guide under the name that the status shows."""

import re
from pathlib import Path

from finetuning_api.reasons import LIFE_CYCLE_REASONS, Reason

GUIDE = Path(__file__).parents[3] / "docs/troubleshooting.md"
ENTRY = re.compile(r"^### (\w+)\n+(?P<text>.*?)(?=^#{1,3} |\Z)", re.MULTILINE | re.DOTALL)


def entries() -> dict[str, str]:
    return {match[1]: match["text"].strip() for match in ENTRY.finditer(GUIDE.read_text(encoding="utf-8"))}


def test_every_reason_of_a_failure_has_an_entry_and_every_entry_is_a_reason() -> None:
    assert set(entries()) == {reason.value for reason in Reason if reason not in LIFE_CYCLE_REASONS}


def test_every_entry_says_something() -> None:
    assert [reason for reason, text in entries().items() if not text.endswith((".", "`", "|"))] == []
