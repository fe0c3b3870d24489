"""What a generation wrote before it was killed is believed line by line."""

from pathlib import Path

import pytest

from finetuning_evaluator.journal import OutputJournal
from finetuning_workload.generation import Completion

KEY = "a" * 64
FIRST, SECOND = Completion("billing\n", 3, stopped=True), Completion("ä 漢字 \u2028 {", 9, stopped=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two rows."""
    found = tmp_path / ".partial" / "outputs.jsonl"
    with OutputJournal(found, key=KEY) as journal:
        journal.append(4, FIRST)
        journal.append(0, SECOND)
    return found


def known(path: Path, key: str = KEY) -> dict[int, Completion]:
    with OutputJournal(path, key=key) as journal:
        return dict(journal.known)


def test_everything_that_was_appended_is_there_again(path: Path) -> None:
    assert known(path) == {4: FIRST, 0: SECOND}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_line_is_dropped_and_the_next_one_is_whole(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    with OutputJournal(path, key=KEY) as journal:
        assert dict(journal.known) == {4: FIRST}
        journal.append(7, SECOND)

    assert known(path) == {4: FIRST, 7: SECOND}


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"billing", b"refunds"), (b'"row":4', b'"row":5'), (b'"tokens":3', b'"tokens":4'), (b'{"row":4', b'"row":4')],
)
def test_a_line_that_was_changed_is_not_believed(path: Path, old: bytes, new: bytes) -> None:
    changed = path.read_bytes().replace(old, new, 1)
    assert changed != path.read_bytes()
    path.write_bytes(changed)

    assert known(path) == {0: SECOND}


def test_lines_of_another_generation_are_not_believed(path: Path) -> None:
    assert known(path, key="b" * 64) == {}


def test_the_work_of_all_attempts_is_counted_until_what_they_kept(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    with OutputJournal(path, key=KEY, clock=iter([10.0, 13.0]).__next__) as journal:
        journal.append(0, FIRST)
    with OutputJournal(path, key=KEY, clock=iter([100.0, 104.0, 109.0]).__next__) as journal:
        journal.append(1, SECOND)

        assert journal.seconds == 3.0 + 9.0
    with OutputJournal(path, key=KEY, clock=iter([0.0, 0.0]).__next__) as journal:
        assert journal.seconds == 3.0 + 4.0
