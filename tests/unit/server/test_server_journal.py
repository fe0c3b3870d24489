"""Finished completions survive the end of the program: whole lines are kept, the torn one is not."""

from pathlib import Path

import pytest

from finetuning_server.journal import Completed, Ending, Journal


def completed(row: int, candidate: str = "base", text: str = "é\n🙂") -> Completed:
    return Completed(
        row=row,
        candidate=candidate,
        completion=text,
        finish_reason=Ending.STOP,
        prompt_tokens=3,
        completion_tokens=row,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".partial" / "journal.jsonl"


def test_what_was_appended_is_found_again_by_the_next_run(path: Path) -> None:
    kept = [completed(2), completed(1), completed(1, "tuned")]
    with Journal(path) as journal:
        for each in kept:
            journal.append(each)
        found = [journal.find("tuned", 1), journal.find("base", 2)]
        journal.append(completed(3))
    with Journal(path) as again:
        read = [again.find(each.candidate, each.row) for each in kept]
        counts = (len(again), again.tokens, again.holds("base", 3), again.holds("tuned", 2))

    assert found == [kept[2], kept[0]]
    assert read == kept
    assert counts == (4, 7, True, False)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_torn_last_line_is_dropped_and_written_anew(path: Path, cut: int) -> None:
    with Journal(path) as journal:
        journal.append(completed(1))
        journal.append(completed(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])

    with Journal(path) as journal:
        before = (len(journal), journal.holds("base", 2), journal.tokens)
        journal.append(completed(2))

    assert before == (1, False, 1)
    assert path.read_bytes() == whole


def test_damaged_line_is_as_good_as_none(path: Path) -> None:
    with Journal(path) as journal:
        for row in (1, 2, 3):
            journal.append(completed(row))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\0" * len(lines[1]), *lines[2:]]))

    with Journal(path) as journal:
        found = [row for row in (1, 2, 3) if journal.holds("base", row)]
        journal.append(completed(2))
        read = [journal.find("base", row) for row in (1, 2, 3)]

    assert found == [1, 3]
    assert read == [completed(1), completed(2), completed(3)]


def test_completions_are_durable_when_the_work_fails(path: Path) -> None:
    def fail() -> None:
        with Journal(path) as journal:
            journal.append(completed(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with Journal(path) as journal:
        assert journal.holds("base", 1)
