"""The example data is what its sources give, small, and free of what would make an evaluation on it worthless."""

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[3] / "examples" / "data"

PRODUCTS = {"calendar", "payments", "mobile-app", "login", "api"}
SEVERITIES = {"low", "medium", "high", "critical"}
INTENTS = {"bug", "question", "refund", "feature-request", "cancel"}
LABELS = {"product": PRODUCTS, "severity": SEVERITIES, "intent": INTENTS}

GENERATED = ["support-triage.jsonl", "support-chat.jsonl", "tickets.csv"]


def read_jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return read_jsonl("support-triage.jsonl")


@pytest.fixture
def copied_data(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("__pycache__")))


def run_generator(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "generate_support_triage.py"
    command = [sys.executable, "-I", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def skeletons_by_label(rows: list[dict[str, str]]) -> dict[tuple[str, str], set[str]]:
    spread: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for label, value in json.loads(row["triage"]).items():
            spread[label, value].add(row["skeleton"])
    return spread


def test_the_committed_files_are_what_the_generator_writes() -> None:
    result = run_generator(DATA, "--check")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", GENERATED)
def test_check_names_a_file_that_was_edited_by_hand(copied_data: Path, name: str) -> None:
    edited = copied_data / name
    edited.write_text(edited.read_text(encoding="utf-8") + "\n", encoding="utf-8")

    result = run_generator(copied_data, "--check")

    assert result.returncode == 1
    assert [line.split()[0] for line in result.stderr.splitlines()] == [name]


def test_check_names_a_file_that_is_missing(copied_data: Path) -> None:
    (copied_data / "tickets.csv").unlink()

    result = run_generator(copied_data, "--check")

    assert result.returncode == 1
    assert result.stderr.startswith("tickets.csv ")


def test_the_generator_restores_every_file(copied_data: Path) -> None:
    for name in GENERATED:
        (copied_data / name).unlink()

    run_generator(copied_data)

    assert {name: (copied_data / name).read_bytes() for name in GENERATED} == {
        name: (DATA / name).read_bytes() for name in GENERATED
    }


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("support-triage.jsonl", 300_000),
        ("support-chat.jsonl", 60_000),
        ("notes.txt", 30_000),
        ("tickets.csv", 30_000),
        ("support-replies.jsonl", 30_000),
    ],
)
def test_files_stay_small(name: str, limit: int) -> None:
    assert 10_000 < (DATA / name).stat().st_size < limit


def test_no_message_occurs_twice(rows: list[dict[str, str]]) -> None:
    messages = [" ".join(row["message"].lower().split()) for row in rows]

    assert len(set(messages)) == len(messages) >= 700


def test_every_row_has_the_columns_that_the_examples_name(rows: list[dict[str, str]]) -> None:
    assert {tuple(row) for row in rows} == {("message", "triage", "skeleton")}


def test_no_placeholder_is_left_in_a_message(rows: list[dict[str, str]]) -> None:
    assert [row["message"] for row in rows if set("{}") & set(row["message"])] == []


def test_messages_are_short(rows: list[dict[str, str]]) -> None:
    lengths = [len(row["message"].split()) for row in rows]

    assert (min(lengths) >= 5, max(lengths) <= 50) == (True, True)


def test_every_completion_is_compact_json_of_known_labels(rows: list[dict[str, str]]) -> None:
    for row in rows:
        triage = json.loads(row["triage"])
        assert list(triage) == ["product", "severity", "intent"]
        assert all(triage[label] in values for label, values in LABELS.items())
        assert row["triage"] == json.dumps(triage, separators=(",", ":"))


def test_every_label_value_is_spread_over_many_skeletons(rows: list[dict[str, str]]) -> None:
    spread = skeletons_by_label(rows)

    assert set(spread) == {(label, value) for label, values in LABELS.items() for value in values}
    assert min(len(skeletons) for skeletons in spread.values()) >= 12


def test_every_combination_of_labels_occurs(rows: list[dict[str, str]]) -> None:
    seen = {tuple(json.loads(row["triage"]).values()) for row in rows}

    assert set(itertools.product(PRODUCTS, SEVERITIES, INTENTS)) == seen


def test_no_skeleton_is_a_near_copy_of_another() -> None:
    tables = tomllib.loads((DATA / "source" / "skeletons.toml").read_text(encoding="utf-8"))
    texts = {name: words(re.sub(r"\{\w+\}", " ", table["text"])) for name, table in tables.items()}

    closest = max(itertools.combinations(texts, 2), key=lambda pair: jaccard(texts[pair[0]], texts[pair[1]]))

    assert len(texts) >= 90
    assert jaccard(texts[closest[0]], texts[closest[1]]) < 0.35, closest


def test_no_message_is_a_near_copy_of_one_from_another_skeleton(rows: list[dict[str, str]]) -> None:
    messages = [(row["skeleton"], words(row["message"])) for row in rows]

    near = [
        (left, right)
        for (left, left_words), (right, right_words) in itertools.combinations(messages, 2)
        if left != right and jaccard(left_words, right_words) > 0.5
    ]

    assert near == []


def test_no_product_is_given_away_by_the_skeleton(rows: list[dict[str, str]]) -> None:
    products = defaultdict(set)
    for row in rows:
        products[row["skeleton"]].add(json.loads(row["triage"])["product"])

    assert [skeleton for skeleton, seen in products.items() if seen != PRODUCTS] == []


def test_tickets_hold_one_row_of_each_skeleton_with_the_labels_of_the_triage(rows: list[dict[str, str]]) -> None:
    triage = {row["message"]: row for row in rows}
    with (DATA / "tickets.csv").open(encoding="utf-8", newline="") as file:
        tickets = list(csv.DictReader(file))

    assert sorted(triage[ticket["message"]]["skeleton"] for ticket in tickets) == sorted(
        {row["skeleton"] for row in rows}
    )
    for ticket in tickets:
        labels = {label: ticket[label] for label in LABELS}
        assert labels == json.loads(triage[ticket["message"]]["triage"])


def test_dialogs_alternate_and_end_with_an_answer() -> None:
    dialogs = [row["messages"] for row in read_jsonl("support-chat.jsonl")]

    assert len(dialogs) >= 60
    for turns in dialogs:
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all(turn["content"].strip() == turn["content"] != "" for turn in turns)


def test_dialogs_vary_in_length_and_none_begins_like_another() -> None:
    dialogs = [row["messages"] for row in read_jsonl("support-chat.jsonl")]

    assert {len(turns) for turns in dialogs} >= {2, 4, 6}
    assert len({turns[0]["content"] for turns in dialogs}) == len(dialogs)


def test_notes_are_paragraphs_of_one_line_each() -> None:
    paragraphs = (DATA / "notes.txt").read_text(encoding="utf-8").split("\n\n")

    assert len(paragraphs) > 60
    assert len(set(paragraphs)) == len(paragraphs)
    assert [text for text in paragraphs[1:] if "\n" in text.strip()] == []


def test_the_readme_shows_a_row_that_exists_and_counts_right(rows: list[dict[str, str]]) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*?)\n```", readme, flags=re.DOTALL)

    assert json.loads(shown) in rows
    assert f"{len(rows)} messages" in readme
    assert f"one of {len({row['skeleton'] for row in rows})} skeletons" in readme


def test_replies_are_pairs_of_two_to_a_message_of_its_own() -> None:
    replies = read_jsonl("support-replies.jsonl")

    assert len({row["message"] for row in replies}) == len(replies) == 48
    assert {tuple(row) for row in replies} == {("message", "better", "worse")}
    assert all(row["better"].strip() != row["worse"].strip() != "" for row in replies)
    # Were the better replies always the longer ones, length is what would be learned.
    longer = sum(len(row["better"]) > len(row["worse"]) for row in replies)
    assert 12 <= longer <= 36
