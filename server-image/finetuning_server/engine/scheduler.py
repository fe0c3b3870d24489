"""What the model computes next: who reads, who writes, who waits."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import torch

from finetuning_server.engine.base import Piece
from finetuning_server.engine.errors import EngineError, OutOfMemory, StepFailed
from finetuning_server.engine.lanes import Lane
from finetuning_server.engine.library import Network
from finetuning_server.engine.rows import Row
from finetuning_workload.memory import is_allocation_failure

_LOG = logging.getLogger(__name__)

Event = tuple[Row, Piece | EngineError]


class Scheduler:
    """Moves requests on by steps. In a step some prompts are read, and every row that has read its own gets a token.

    A step reads at most ``chunk_tokens`` of prompts, so that rows that write wait no longer than that, and begins with
    the prompt that has the least left: a short prompt never waits until a long one is read. Each step that a prompt was
    passed over counts as if a piece of it were read, so that a long one does not wait for ever either.

    A request begins when its keys and values fit into ``token_budget`` to its very end, beside those of all that run;
    what has begun is never interrupted.
    """

    def __init__(self, *, max_running: int, token_budget: int, chunk_tokens: int) -> None:
        self._max_running = max_running
        self._token_budget = token_budget
        self._chunk = chunk_tokens
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._lanes: dict[Network, Lane] = {}
        self._events: list[Event] = []

    def open_lane(self, network: Network, *, together: bool) -> None:
        """Say whether rows of a new network can share steps; without this it follows from the model's layers."""
        self._lanes.setdefault(network, Lane(network, together=together))

    def add(self, row: Row) -> None:
        """Let a row wait for its turn."""
        self._waiting.append(row)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def running(self) -> int:
        """Rows that read or write."""
        return len(self._running)

    @property
    def shares_steps(self) -> bool:
        """Whether rows of every network share steps."""
        return all(lane.together for lane in self._lanes.values())

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        return sum(row.cached for row in tuple(self._running))

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Move every row on and return what came of it."""
        self._events = []
        self._drop_cancelled()
        self._admit()
        self._read()
        for lane in tuple(self._lanes.values()):
            self._write(lane)
        return self._events

    @torch.inference_mode()
    def clear(self) -> tuple[Row, ...]:
        """Forget all rows, with whatever state their lanes are in, and return them."""
        rows = (*self._running, *self._waiting)
        self._lanes = {network: Lane(network, together=lane.together) for network, lane in self._lanes.items()}
        self._running.clear()
        self._waiting.clear()
        return rows

    def _lane(self, row: Row) -> Lane:
        network = row.voice.network
        if network not in self._lanes:
            self._lanes[network] = Lane(network)
        return self._lanes[network]

    def _drop_cancelled(self) -> None:
        self._waiting = deque(row for row in self._waiting if not row.cancelled)
        for row in [row for row in self._running if row.cancelled]:
            self._remove(row)

    def _admit(self) -> None:
        """Let rows begin in the order in which they came; who does not fit yet keeps those behind from overtaking."""
        while self._waiting and len(self._running) < self._max_running and self._fits(self._waiting[0]):
            self._running.append(self._waiting.popleft())

    def _fits(self, row: Row) -> bool:
        """Rows of a lane lie side by side, each as wide as the longest."""
        widths: dict[Network, list[int]] = {}
        for other in (*self._running, row):
            widths.setdefault(other.voice.network, []).append(other.reserved)
        return sum(len(lane) * max(lane) for lane in widths.values()) <= self._token_budget

    def _read(self) -> None:
        rows = self._next_to_read()
        if rows:
            self._attempt(rows, self._read_rows)

    def _next_to_read(self) -> list[Row]:
        reading = sorted(
            (row for row in self._running if row.reads),
            key=lambda row: row.remaining - row.passed_over * self._chunk,
        )
        chosen = reading[:1]
        for row in reading[1:]:
            if self._can_read_with(chosen, row):
                chosen.append(row)
            else:
                row.passed_over += 1
        return chosen

    def _can_read_with(self, chosen: Sequence[Row], row: Row) -> bool:
        """Whole prompts of one lane are read together, as many as fit into a step with their padding."""
        rows = [*chosen, row]
        lane = self._lane(row)
        same = lane.together and all(self._lane(other) is lane and other.cached == 0 for other in rows)
        return same and len(rows) * max(len(other.prompt) for other in rows) <= self._chunk

    def _read_rows(self, rows: Sequence[Row]) -> None:
        lane = self._lane(rows[0])
        logits = lane.read(rows, most=self._chunk)
        if logits is None:
            return
        self._tell(rows, logits)
        for row in rows:
            if row in self._running:
                self._attempt([row], lambda joining: lane.join(joining[0]))

    def _write(self, lane: Lane) -> None:
        if lane.together:
            # Rows that have just read their prompt have joined, and get their second token in the same step.
            if lane.joined:
                self._attempt(lane.joined, lambda rows: self._tell(rows, lane.write(rows)))
            return
        for row in [row for row in self._running if not row.reads and self._lane(row) is lane]:
            self._attempt([row], lambda rows: self._tell(rows, lane.write(rows)))

    def _tell(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Give each row its next token; ``logits`` is [rows, vocabulary]. What fails here fails for one row alone."""
        likeliest: list[int] = logits.argmax(dim=-1).tolist()
        for row, token, row_logits in zip(rows, likeliest, logits, strict=True):
            self._attempt([row], partial(self._take, token=token, logits=row_logits))

    def _take(self, rows: Sequence[Row], *, token: int, logits: torch.Tensor) -> None:
        (row,) = rows
        piece = row.take(token if row.chooser.greedy else row.chooser.draw(logits), logits)
        if piece is not None:
            self._events.append((row, piece))
            if piece.finish is not None:
                self._remove(row)

    def _attempt(self, rows: Sequence[Row], act: Callable[[Sequence[Row]], None]) -> None:
        """Act on rows; when memory does not suffice, on one after the other: only those fail that are too big."""
        try:
            act(rows)
        except Exception as error:  # noqa: BLE001  (whatever it is, these requests fail and the others go on)
            failure = self._failure(rows, error)
        else:
            return
        # Outside of the handler: the error's traceback holds the tensors of the step.
        if failure is None:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for row in rows:
                self._attempt([row], act)
            return
        for row in rows:
            self._fail(row, failure)

    def _failure(self, rows: Sequence[Row], error: Exception) -> EngineError | None:
        """Return what is told to the rows of a failed step; None when it is to be tried with each of them alone."""
        if not is_allocation_failure(error):
            _LOG.error("a step of %d requests failed", len(rows), exc_info=error)
            return StepFailed(f"the model failed: {type(error).__name__}")
        if len(rows) > 1:
            return None
        tokens = rows[0].reserved
        _LOG.warning("out of memory in a request of up to %d tokens", tokens)
        return OutOfMemory(f"there was not enough memory for this request of up to {tokens} tokens")

    def _fail(self, row: Row, error: EngineError) -> None:
        if row in self._running:
            self._events.append((row, error))
            self._remove(row)

    def _remove(self, row: Row) -> None:
        self._running.remove(row)
        self._lane(row).leave(row)
