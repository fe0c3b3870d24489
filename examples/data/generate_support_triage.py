"""Write the example data sets of Wrenslot, an imaginary maker of booking software for small businesses.

    python examples/data/generate_support_triage.py            # writes the files next to this script
    python examples/data/generate_support_triage.py --check    # exits with 1 if a committed file differs

The texts are written by hand and lie in ``source/``: skeletons (sentences with placeholders, each with its labels),
slots (what the placeholders stand for) and dialogs. This script only combines them. Every skeleton draws from a random
generator of its own, so that adding one leaves the rows of all others as they are. README.md explains the labels.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

SEED = 42
ROWS_PER_SKELETON = 6
ATTEMPTS_PER_ROW = 200

HERE = Path(__file__).resolve().parent
PLACEHOLDER = re.compile(r"\{([A-Za-z]+)\}")
CHAT_ROLES = {"customer": "user", "agent": "assistant"}

Choices = Sequence[str]


class Product(StrEnum):
    """The part of Wrenslot that a message is about."""

    CALENDAR = "calendar"
    PAYMENTS = "payments"
    MOBILE_APP = "mobile-app"
    LOGIN = "login"
    API = "api"


class Severity(StrEnum):
    """How much the writer suffers, in rising order."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Intent(StrEnum):
    """What the writer wants."""

    BUG = "bug"
    QUESTION = "question"
    REFUND = "refund"
    FEATURE_REQUEST = "feature-request"
    CANCEL = "cancel"


class Style(StrEnum):
    """How the writer types."""

    PLAIN = "plain"
    LOWER = "lower"
    UPPER = "upper"

    def apply(self, text: str) -> str:
        match self:
            case Style.PLAIN:
                return text
            case Style.LOWER:
                return text.lower()
            case Style.UPPER:
                return text.upper()


@dataclass(frozen=True)
class Labels:
    """What a model has to find in a message."""

    product: Product
    severity: Severity
    intent: Intent

    def as_json(self) -> str:
        labels = {"product": self.product, "severity": self.severity, "intent": self.intent}
        return json.dumps(labels, separators=(",", ":"))


@dataclass(frozen=True)
class Skeleton:
    """One hand-written message with placeholders and the labels that it can carry."""

    id: str
    intent: Intent
    severities: Sequence[Severity]
    style: Style
    text: str


@dataclass(frozen=True)
class Row:
    """One finished message."""

    message: str
    labels: Labels
    skeleton: str


@dataclass(frozen=True)
class Slots:
    """The choices for every placeholder, some of which depend on the labels."""

    generic: Mapping[str, Choices]
    products: Mapping[Product, Mapping[str, Choices]]
    impacts: Mapping[Intent, Mapping[Severity, Choices]]
    tags: Mapping[Severity, Choices]

    def choices_for(self, labels: Labels) -> Mapping[str, Choices]:
        """Every placeholder's choices in a message with these labels."""
        severity_told = {
            "tag": self.tags[labels.severity],
            "impact": self.impacts[labels.intent].get(labels.severity, ()),
        }
        return {**self.generic, **self.products[labels.product], **severity_told}


def read_skeletons(path: Path) -> list[Skeleton]:
    """The skeletons of a TOML file, in the order of the file."""
    return [
        Skeleton(
            id=name,
            intent=Intent(table["intent"]),
            severities=[Severity(value) for value in table["severity"]],
            style=Style(table.get("style", Style.PLAIN)),
            text=table["text"],
        )
        for name, table in _read_toml(path).items()
    ]


def read_slots(path: Path) -> Slots:
    """The slots of a TOML file."""
    tables = _read_toml(path)
    return Slots(
        generic=tables["generic"],
        products={Product(name): choices for name, choices in tables["products"].items()},
        impacts={Intent(name): _by_severity(choices) for name, choices in tables["impacts"].items()},
        tags=_by_severity(tables["tags"]),
    )


def _read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _by_severity(choices: Mapping[str, Choices]) -> dict[Severity, Choices]:
    return {Severity(name): values for name, values in choices.items()}


def fill(text: str, choose: Callable[[str], str]) -> str:
    """Replace every placeholder, also inside of replacements; ``{Name}`` is ``{name}`` with a capital first letter."""

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        value = fill(choose(name.lower()), choose)
        return value[0].upper() + value[1:] if name[0].isupper() else value

    return PLACEHOLDER.sub(replacement, text)


def chooser(choices: Mapping[str, Choices], *, rng: random.Random) -> Callable[[str], str]:
    """A function that draws a placeholder's value once and repeats it: a message has one writer and one invoice."""
    drawn: dict[str, str] = {}

    def choose(name: str) -> str:
        if name not in drawn:
            drawn[name] = rng.choice(choices[name])
        return drawn[name]

    return choose


def rows_of(skeleton: Skeleton, *, slots: Slots, taken: set[str]) -> Iterator[Row]:
    """The rows of one skeleton, over all products and all of its severities; their messages are added to ``taken``."""
    rng = random.Random(f"{SEED}/{skeleton.id}")
    products = itertools.cycle(rng.sample(list(Product), k=len(Product)))
    severities = itertools.cycle(rng.sample(skeleton.severities, k=len(skeleton.severities)))
    for product, severity in itertools.islice(zip(products, severities, strict=False), ROWS_PER_SKELETON):
        labels = Labels(product=product, severity=severity, intent=skeleton.intent)
        message = _new_message(skeleton, choices=slots.choices_for(labels), rng=rng, taken=taken)
        taken.add(message)
        yield Row(message=message, labels=labels, skeleton=skeleton.id)


def _new_message(skeleton: Skeleton, *, choices: Mapping[str, Choices], rng: random.Random, taken: set[str]) -> str:
    for _ in range(ATTEMPTS_PER_ROW):
        message = skeleton.style.apply(fill(skeleton.text, chooser(choices, rng=rng)))
        if message not in taken:
            return message
    raise ValueError(f"skeleton {skeleton.id} has too few slots for {ROWS_PER_SKELETON} different messages")


def triage_rows(skeletons: Iterable[Skeleton], *, slots: Slots) -> list[Row]:
    """All rows, shuffled: a job with ``limit`` then still sees every label."""
    taken: set[str] = set()
    rows = [row for skeleton in skeletons for row in rows_of(skeleton, slots=slots, taken=taken)]
    random.Random(SEED).shuffle(rows)
    return rows


def triage_jsonl(rows: Iterable[Row]) -> str:
    """One object a row: the message, its labels as compact JSON text, and the skeleton to group the split by."""
    return _jsonl({"message": row.message, "triage": row.labels.as_json(), "skeleton": row.skeleton} for row in rows)


def tickets_csv(rows: Iterable[Row]) -> str:
    """One row of each skeleton, with a column for each label."""
    first_rows: dict[str, Row] = {}
    for row in rows:
        first_rows.setdefault(row.skeleton, row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["message", "product", "severity", "intent"])
    for row in first_rows.values():
        writer.writerow([row.message, row.labels.product, row.labels.severity, row.labels.intent])
    return text.getvalue()


def chat_jsonl(dialogs: str) -> str:
    """One object a dialog, in the ``messages`` layout that chat templates take.

    Dialogs are separated by blank lines; a turn starts with ``customer:`` or ``agent:``, and indented lines
    continue the turn above.
    """
    blocks = re.split(r"\n{2,}", dialogs.strip())
    return _jsonl({"messages": _turns(block)} for block in blocks)


def _turns(block: str) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for line in block.splitlines():
        if line.startswith("  "):
            turns[-1]["content"] += "\n" + line.strip()
        else:
            speaker, _, content = line.partition(": ")
            turns.append({"role": CHAT_ROLES[speaker], "content": content})
    return turns


def _jsonl(objects: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)


def generate(source: Path) -> dict[str, str]:
    """The text of every generated file by its name."""
    rows = triage_rows(read_skeletons(source / "skeletons.toml"), slots=read_slots(source / "slots.toml"))
    return {
        "support-triage.jsonl": triage_jsonl(rows),
        "tickets.csv": tickets_csv(rows),
        "support-chat.jsonl": chat_jsonl((source / "dialogs.txt").read_text(encoding="utf-8")),
    }


def stale_files(files: Mapping[str, str], *, folder: Path) -> list[str]:
    """The names of the files that are missing in the folder or differ from what they should be."""
    return [
        name
        for name, text in files.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode("utf-8")
    ]


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with ``--check`` only compare; the exit code is 1 if a compared file differs."""
    parser = argparse.ArgumentParser(description="Write the example data sets.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a committed file differs")
    options = parser.parse_args(arguments)
    files = generate(HERE / "source")
    if options.check:
        stale = stale_files(files, folder=HERE)
        for name in stale:
            sys.stderr.write(f"{name} differs from what its sources give: run this script without --check\n")
        return 1 if stale else 0
    for name, text in files.items():
        (HERE / name).write_bytes(text.encode("utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
