"""The engine: one thread computes, in steps that requests join and leave; one event loop asks."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetuning_api.finetuningjob import Precision
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import MANIFEST_NAME, AdapterInput, ServeConfig
from finetuning_server.engine.base import GenerationRequest, Load, Piece, ServedModel
from finetuning_server.engine.calibration import calibrate, token_budget
from finetuning_server.engine.errors import (
    EngineError,
    EngineStopped,
    PromptTooLong,
    QueueFull,
    StepFailed,
    UnknownModel,
    UnknownToken,
)
from finetuning_server.engine.library import Library
from finetuning_server.engine.pulse import Pulse
from finetuning_server.engine.rows import Row
from finetuning_server.engine.scheduler import Event, Scheduler
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import ProgramError, UserError
from finetuning_workload.generation import context_length
from finetuning_workload.hardware import choose_device, choose_dtype, set_threads
from finetuning_workload.memory import explained_memory_errors, is_allocation_failure
from finetuning_workload.models import quiet_libraries, vocabulary_size

_LOG = logging.getLogger(__name__)

_CHUNK_TOKENS = {"cpu": 128, "cuda": 2048}
"""Enough for the processor to be busy, and so few that everybody else waits for a moment only."""
_LEAST_CONTEXT = 64
"""Tokens that must fit into memory for a server to be of any use."""
_SMOOTHING = 0.2
"""Weight of the latest request in the running average of durations."""
_MEMORY_HINT = "Give the server more memory, or serve a smaller model."


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine works. The defaults are for servers; tests and measurements set their own."""

    precision: Precision = Precision.AUTO
    chunk_tokens: int | None = None
    """Tokens of prompts that are read in one step; None: as many as suit the device."""
    token_budget: int | None = None
    """Tokens whose keys and values are held at most; None: as many as fit into half of the free memory."""
    poll_seconds: float = 2.0
    """How often awaited adapters are looked for."""
    stuck_seconds: float | None = None
    """How long one step may take before the engine counts as hung; None: as long as a whole request may."""


@dataclass(frozen=True, slots=True)
class _Core:
    """What exists once the base model is loaded. It belongs to the thread that computes."""

    library: Library
    scheduler: Scheduler
    vocabulary: int


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request as the event loop sees it."""

    row: Row
    outcomes: asyncio.Queue[Piece | EngineError] = field(default_factory=asyncio.Queue)


class BatchingEngine:
    """An ``Engine`` with continuous batching, for one base model and any number of adapters of it.

    An adapter that is loaded is served from memory until the engine stops, also when its folder is deleted meanwhile.
    ``tokenizer`` and ``context_length`` are there after ``start``.
    """

    tokenizer: PreTrainedTokenizerBase
    context_length: int

    def __init__(
        self, config: ServeConfig, *, environment: Mapping[str, str], settings: EngineSettings | None = None
    ) -> None:
        self._config = config
        self._environment = environment
        self._settings = settings or EngineSettings()
        self._pulse = Pulse(patience_seconds=self._settings.stuck_seconds or config.request_seconds)
        # One thread: PyTorch itself spreads the work of a step over the cores.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._core: _Core | None = None
        self._tickets: dict[Row, _Ticket] = {}
        self._arrived: deque[Row] = deque()
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self._seconds = 1.0
        self._unreadable: dict[str, object] = {}

    async def start(self) -> None:
        """Load, warm up, and begin to look for awaited adapters. Raises ProgramError for what cannot be loaded."""
        quiet_libraries()
        given = [adapter for adapter in self._config.adapters if not adapter.awaited]
        awaited = [adapter for adapter in self._config.adapters if adapter.awaited]
        for adapter in given:
            # An adapter of the user's own may have no manifest: loading it is then all that can tell.
            if adapter.digest is not None or _manifest_state(Path(adapter.path)) is not None:
                await asyncio.to_thread(require_intact, Path(adapter.path), digest=adapter.digest)
        await self._on_thread(partial(self._load, given))
        missing = await self._look_for(awaited)
        running = asyncio.create_task(self._run())
        running.add_done_callback(self._ended)
        self._tasks.append(running)
        if missing:
            self._tasks.append(asyncio.create_task(self._await_adapters(missing)))

    async def stop(self) -> None:
        """Take no more requests, end those that run with EngineStopped, and give memory back."""
        if self._stopped:
            return
        self._stopped = True
        for ticket in self._tickets.values():
            ticket.row.cancelled = True
            ticket.outcomes.put_nowait(EngineStopped("the server is being stopped"))
        for task in self._tasks:
            task.cancel()
            # What a task ended with before is told already.
            await asyncio.gather(task, return_exceptions=True)
        await self._on_thread(self._free)
        self._thread.shutdown()

    def models(self) -> tuple[ServedModel, ...]:
        """Return what can be asked for now, the base model first."""
        return () if self._core is None else self._core.library.models()

    def load(self) -> Load:
        """Return how busy the engine is."""
        if self._core is None:
            return Load(running=0, waiting=0, cached_tokens=0)
        running = self._core.scheduler.running
        waiting = max(0, len(self._tickets) - running)
        return Load(running=running, waiting=waiting, cached_tokens=self._core.scheduler.cached_tokens)

    def fault(self) -> str:
        """Return why the engine will never answer again, empty while it works: whoever can should start it anew."""
        return "" if self._core is None or self._stopped else self._pulse.fault

    @property
    def shares_steps(self) -> bool:
        """Whether requests for every model share steps; some models allow only one row at a time."""
        return self._loaded().scheduler.shares_steps

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield the completion piece by piece. Closing the generator, or cancelling its task, frees its place at once.

        Raises, before the first piece: UnknownModel, UnknownToken, PromptTooLong, QueueFull; at any time: OutOfMemory
        (this request alone), StepFailed, EngineStopped.
        """
        ticket = self._accept(request)
        began: float | None = None
        try:
            while True:
                outcome = await ticket.outcomes.get()
                if isinstance(outcome, EngineError):
                    raise outcome
                began = began or time.monotonic()
                yield outcome
                if outcome.finish is not None:
                    self._seconds += _SMOOTHING * (time.monotonic() - began - self._seconds)
                    return
        finally:
            ticket.row.cancelled = True
            del self._tickets[ticket.row]

    def _accept(self, request: GenerationRequest) -> _Ticket:
        core = self._core
        if core is None or self._stopped:
            raise EngineStopped("the server is being stopped")
        if fault := self.fault():
            raise EngineStopped(fault)
        voice = core.library.voice(request.model)
        if voice is None:
            raise UnknownModel(request.model, known=tuple(model.name for model in core.library.models()))
        self._require_fitting(request.tokens, core)
        self._require_place()
        limit = min(request.max_new_tokens, self.context_length - len(request.tokens))
        ticket = _Ticket(Row(request, voice, self.tokenizer, limit=limit))
        self._tickets[ticket.row] = ticket
        self._arrived.append(ticket.row)
        self._work.set()
        return ticket

    def _require_fitting(self, tokens: Sequence[int], core: _Core) -> None:
        if len(tokens) >= self.context_length:
            raise PromptTooLong(tokens=len(tokens), limit=self.context_length - 1)
        wrong = next((token for token in tokens if not 0 <= token < core.vocabulary), None)
        if wrong is not None:
            raise UnknownToken(wrong, vocabulary=core.vocabulary)

    def _require_place(self) -> None:
        here = len(self._tickets)
        if here >= self._config.max_running + self._config.max_waiting:
            seconds = math.ceil(self._seconds * (1 + here / self._config.max_running))
            raise QueueFull(waiting=here - self._config.max_running, retry_after_seconds=max(1, seconds))

    async def _run(self) -> None:
        """Let the thread take one step after the other while there is work."""
        loop = asyncio.get_running_loop()
        events: list[Event] = []
        while True:
            await self._work.wait()
            step = loop.run_in_executor(self._thread, self._step)
            # What the step before brought is told while this one computes.
            self._deliver(events)
            events, idle = await step
            if idle and not self._arrived:
                self._work.clear()
                self._deliver(events)
                events = []

    def _ended(self, running: asyncio.Task[None]) -> None:
        """Let nobody wait for steps that will not come."""
        if running.cancelled() or self._stopped:
            return
        _LOG.critical("the engine takes no more steps", exc_info=running.exception())
        self._pulse.give_up("the engine takes no more steps")
        for ticket in self._tickets.values():
            ticket.outcomes.put_nowait(EngineStopped("the engine takes no more steps"))

    def _step(self) -> tuple[list[Event], bool]:
        """Take one step; on the thread. Returns what came of it, and whether nothing is left to do."""
        scheduler = self._loaded().scheduler
        while self._arrived:
            scheduler.add(self._arrived.popleft())
        with self._pulse.beat():
            try:
                events = scheduler.step()
            except Exception:  # noqa: BLE001  (whatever it is, these requests fail and the engine lives on)
                _LOG.exception("the scheduler failed; all its requests fail with it")
                events = [(row, StepFailed("the engine failed")) for row in scheduler.clear()]
            if any(isinstance(outcome, StepFailed) for _, outcome in events):
                self._examine()
        return events, scheduler.idle

    def _examine(self) -> None:
        """After a step that failed, find out what is broken: that request, or all there will be; on the thread.

        An accelerator that has failed once often fails for ever. So what was computed at start is computed again.
        """
        library = self._loaded().library
        try:
            calibrate(library.base, library.tokenizer)
        except Exception as error:  # noqa: BLE001  (whatever it is, nothing can be computed)
            if not is_allocation_failure(error):
                _LOG.critical("the base model cannot compute any more", exc_info=error)
                self._pulse.give_up(f"the model cannot compute any more: {type(error).__name__}")

    def _deliver(self, events: Sequence[Event]) -> None:
        for row, outcome in events:
            ticket = self._tickets.get(row)
            if ticket is not None:
                ticket.outcomes.put_nowait(outcome)

    def _load(self, adapters: Sequence[AdapterInput]) -> None:
        """Load the base model and adapters and find out what they need; on the thread."""
        set_threads(self._environment)
        device = choose_device()
        choice = choose_dtype(self._settings.precision, device)
        _LOG.info("serving on %s in %s: %s", device, choice.dtype, choice.why)
        with explained_memory_errors("loading the models", hint=_MEMORY_HINT):
            library = Library(self._config, dtype=choice.dtype, device=device)
            base = library.base
            found = calibrate(base, library.tokenizer)
            voices = {adapter.name: library.load(adapter) for adapter in adapters}
            together = {voice.network: calibrate(voice, library.tokenizer).together for voice in voices.values()}
        budget = self._settings.token_budget or token_budget(found.bytes_per_token, device=device)
        if budget < _LEAST_CONTEXT:
            message = f"after loading the models there is memory for the keys and values of {budget} tokens only"
            raise UserError(Reason.OUT_OF_MEMORY, message, _MEMORY_HINT)
        scheduler = Scheduler(
            max_running=self._config.max_running,
            token_budget=budget,
            chunk_tokens=self._settings.chunk_tokens or _CHUNK_TOKENS[device.type],
        )
        for network, shares in {base.network: found.together, **together}.items():
            scheduler.open_lane(network, together=shares)
        for name, voice in voices.items():
            library.serve(name, voice)
        self.tokenizer = library.tokenizer
        self.context_length = min(context_length(base.network.model) or budget, budget)
        self._core = _Core(library, scheduler, vocabulary_size(base.network.model.config))
        _LOG.info("%d tokens of keys and values fit into memory, %d B each", budget, found.bytes_per_token)

    def _load_later(self, adapter: AdapterInput) -> None:
        """Load an adapter beside what is served already; on the thread, between two steps."""
        core = self._loaded()
        with self._pulse.beat(), explained_memory_errors(f"loading the adapter {adapter.name}", hint=_MEMORY_HINT):
            voice = core.library.load(adapter)
            found = calibrate(voice, core.library.tokenizer)
        core.scheduler.open_lane(voice.network, together=found.together)
        core.library.serve(adapter.name, voice)

    def _free(self) -> None:
        if self._core is not None:
            self._core.scheduler.clear()
            self._core.library.free()
            self._core = None

    async def _await_adapters(self, missing: Sequence[AdapterInput]) -> None:
        while missing:
            await asyncio.sleep(self._settings.poll_seconds)
            missing = await self._look_for(missing)

    async def _look_for(self, adapters: Sequence[AdapterInput]) -> list[AdapterInput]:
        """Serve those of the awaited adapters that are complete, and return the others."""
        return [adapter for adapter in adapters if not await self._try_awaited(adapter)]

    async def _try_awaited(self, adapter: AdapterInput) -> bool:
        """Return whether the adapter is served now. One that cannot be is told of once, until its manifest changes."""
        state = await asyncio.to_thread(_manifest_state, Path(adapter.path))
        if state is None or state == self._unreadable.get(adapter.name):
            return False
        try:
            await asyncio.to_thread(require_intact, Path(adapter.path), digest=adapter.digest)
            await self._on_thread(partial(self._load_later, adapter))
        except ProgramError as error:
            _LOG.warning("the adapter %s cannot be served: %s %s", adapter.name, error.message, error.hint)
        except Exception:  # noqa: BLE001  (whatever is wrong with one adapter, what is served goes on)
            _LOG.exception("the adapter %s cannot be served", adapter.name)
        else:
            _LOG.info("the adapter %s is served now", adapter.name)
            return True
        self._unreadable[adapter.name] = state
        return False

    def _loaded(self) -> _Core:
        if self._core is None:
            raise RuntimeError("the engine is not started")
        return self._core

    async def _on_thread(self, act: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, act)


def _manifest_state(folder: Path) -> object:
    """Return something that changes with the manifest of a folder, None without one."""
    try:
        status = (folder / MANIFEST_NAME).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
