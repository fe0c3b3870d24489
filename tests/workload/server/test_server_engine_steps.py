"""What the scheduler computes in which step, and what becomes of requests when a step fails."""

import logging
from typing import Any

import pytest
import torch
from tests.support.engines import serve_config, tiny_lively

from finetuning_server.engine.base import GenerationRequest, Piece
from finetuning_server.engine.errors import OutOfMemory, StepFailed
from finetuning_server.engine.library import Library
from finetuning_server.engine.rows import Row
from finetuning_server.engine.scheduler import Event, Scheduler

CHUNK = 8
POISON = 300
"""A token at which the model of these tests fails."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tiny_lively(tmp_path_factory.mktemp("model"))
    return Library(serve_config(folder), dtype=torch.float32, device=torch.device("cpu"))


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(**{"max_running": 8, "token_budget": 10_000, "chunk_tokens": CHUNK} | limits)


def row(library: Library, *tokens: int, new: int = 6) -> Row:
    request = GenerationRequest("base", tokens, max_new_tokens=new)
    return Row(request, library.base, library.tokenizer, limit=new)


def prompt(length: int, *, first: int = 5) -> tuple[int, ...]:
    return tuple(first + place % 100 for place in range(length))


def told(events: list[Event], asked: Row) -> list[Any]:
    return [outcome for who, outcome in events if who is asked]


def finish(steps: Scheduler, *rows: Row) -> dict[Row, list[Any]]:
    outcomes: dict[Row, list[Any]] = {one: [] for one in rows}
    while not steps.idle:
        for who, outcome in steps.step():
            outcomes[who].append(outcome)
    return outcomes


def test_the_first_token_of_a_short_prompt_comes_before_a_long_prompt_is_read(library: Library) -> None:
    steps, long, short = scheduler(), row(library, *prompt(200)), row(library, *prompt(5))
    steps.add(long)
    steps.step()
    assert long.cached == CHUNK

    steps.add(short)
    steps.step()

    assert short.new
    assert (long.cached, long.new) == (CHUNK, [])


def test_rows_that_write_go_on_while_a_long_prompt_is_read(library: Library) -> None:
    steps, long, short = scheduler(), row(library, *prompt(64)), row(library, *prompt(5), new=50)
    steps.add(short)
    steps.step()
    steps.add(long)
    written = []
    while not long.new:
        steps.step()
        written.append(len(short.new))
    assert written == list(range(3, 3 + 64 // CHUNK))


def test_short_prompts_without_end_do_not_keep_a_long_one_waiting(library: Library) -> None:
    steps, long = scheduler(max_running=4), row(library, *prompt(40), new=2)
    steps.add(long)
    count = 0
    while not long.new:
        steps.add(row(library, *prompt(CHUNK), new=1))
        steps.step()
        count += 1
    assert count < 20


def test_short_prompts_are_read_in_one_step(library: Library) -> None:
    steps, rows = scheduler(chunk_tokens=20), [row(library, *prompt(length)) for length in (3, 4, 5, 2)]
    for one in rows:
        steps.add(one)
    steps.step()
    # Four rows as wide as the longest are just as many tokens as a step reads; each has got its second token too.
    assert [len(one.new) for one in rows] == [2, 2, 2, 2]


def test_a_request_begins_only_when_its_whole_text_fits_beside_the_others(library: Library) -> None:
    steps = scheduler(token_budget=60, chunk_tokens=64)
    first, second = row(library, *prompt(10), new=20), row(library, *prompt(10), new=20)
    third = row(library, *prompt(10), new=20)
    for one in (first, second, third):
        steps.add(one)
    steps.step()
    assert [bool(one.new) for one in (first, second, third)] == [True, True, False]

    first.cancelled = True
    steps.step()

    assert third.new
    assert steps.running == 2


def test_a_cancelled_row_is_gone_with_the_next_step(library: Library) -> None:
    steps = scheduler()
    rows = [row(library, *prompt(4 + place), new=40) for place in range(3)]
    for one in rows:
        steps.add(one)
    for _ in range(4):
        steps.step()
    rows[0].cancelled = True
    events = steps.step()

    assert told(events, rows[0]) == []
    assert steps.cached_tokens == rows[1].cached + rows[2].cached
    alone = scheduler()
    again = row(library, *prompt(6), new=40)
    alone.add(again)
    finish(alone, again)
    finish(steps, *rows)
    assert rows[2].new == again.new


class _Broken:
    """Makes the model fail at a token, as it does when there is no memory, or otherwise."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, _module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if (args[0] == POISON).any():
            raise self._error


@pytest.fixture
def out_of_memory(library: Library, request: pytest.FixtureRequest) -> None:
    message = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    break_model(library, request, RuntimeError(message))


def break_model(library: Library, request: pytest.FixtureRequest, error: Exception) -> None:
    embedding = library.base.network.model.get_input_embeddings()
    request.addfinalizer(embedding.register_forward_pre_hook(_Broken(error)).remove)


@pytest.mark.usefixtures("out_of_memory")
def test_out_of_memory_while_prompts_are_read_fails_only_the_request_that_is_too_big(library: Library) -> None:
    steps = scheduler(chunk_tokens=64)
    fine, big, other = row(library, *prompt(4)), row(library, 7, POISON, 8), row(library, *prompt(5))
    for one in (fine, big, other):
        steps.add(one)
    outcomes = finish(steps, fine, big, other)
    assert [type(outcome) for outcome in outcomes[big]] == [OutOfMemory]
    assert [len(one.new) for one in (fine, other)] == [6, 6]


@pytest.mark.usefixtures("out_of_memory")
def test_out_of_memory_while_rows_write_fails_only_the_request_that_is_too_big(library: Library) -> None:
    expected = row(library, *prompt(5))
    alone = scheduler()
    alone.add(expected)
    finish(alone, expected)

    steps = scheduler()
    rows = [row(library, *prompt(4)), row(library, *prompt(3)), row(library, *prompt(5))]
    for one in rows:
        steps.add(one)
    while not all(one.new for one in rows):
        steps.step()
    rows[1].new[-1] = POISON
    outcomes = finish(steps, *rows)
    assert isinstance(outcomes[rows[1]][-1], OutOfMemory)
    assert rows[2].new == expected.new
    assert [isinstance(outcomes[one][-1], Piece) for one in (rows[0], rows[2])] == [True, True]


def test_any_other_failure_of_a_step_is_told_and_logged_and_the_next_requests_are_answered(
    library: Library, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    break_model(library, request, ValueError("shapes do not fit"))
    steps = scheduler()
    broken, later = row(library, POISON, 8), row(library, *prompt(5))
    with caplog.at_level(logging.ERROR):
        steps.add(broken)
        assert [type(outcome) for outcome in finish(steps, broken)[broken]] == [StepFailed]
    assert "shapes do not fit" in caplog.text
    steps.add(later)
    finish(steps, later)
    assert len(later.new) == 6
