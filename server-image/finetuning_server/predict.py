"""Every row of a data set, completed by every candidate: many at a time, kept as they come, one artifact at the end."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from finetuning_api.finetuningjob import Precision
from finetuning_api.runconfig import PredictConfig, PredictResult, ProgressMetric, ServeConfig
from finetuning_server.engine.base import Engine, GenerationRequest
from finetuning_server.engine.errors import EngineError, PromptTooLong
from finetuning_server.groups import Engines, Group, failure_of, groups_of
from finetuning_server.journal import Completed, Ending, Journal
from finetuning_server.predictions import Made, config_digest, find_finished, write_predictions
from finetuning_workload.artifact import PARTIAL_NAME
from finetuning_workload.candidates import require_distinct
from finetuning_workload.data import Encoder, Table, count_prompts, iterate_prompts, load_table
from finetuning_workload.files import write_atomically
from finetuning_workload.hardware import choose_device, choose_dtype, set_threads
from finetuning_workload.memory import explained_memory_errors
from finetuning_workload.models import load_tokenizer
from finetuning_workload.program import Context, StopFlag
from finetuning_workload.progress import Reporter

_JOURNAL, _PRECISION = "journal.jsonl", "precision"
_LOOK_SECONDS = 0.2
_MEMORY_HINT = "Give the job more memory, or lower generation.maxNewTokens."


def predict(config: PredictConfig, context: Context, *, engines: Engines) -> PredictResult:
    """Write what every candidate makes of every row; finished predictions of the same are returned at once.

    Raises UserError: CANDIDATES_IDENTICAL, OUT_OF_MEMORY, and what reading models and data raises; Interrupted when
    asked to stop, with what is finished kept.
    """
    require_distinct(config.candidates)
    folder, digest = Path(config.output_path), config_digest(config)
    finished = find_finished(folder, config_digest=digest)
    if finished is not None:
        return finished
    set_threads(context.environment)
    table = load_table(Path(config.dataset.path), config.dataset.rows)
    rows = count_prompts(table, config.dataset.rows, limit=config.limit)
    parts = folder / PARTIAL_NAME / f"predict-{digest.removeprefix('sha256:')[:16]}"
    precision = _precision(parts)
    reporter = context.reporter("predict")
    try:
        with Journal(parts / _JOURNAL) as journal, explained_memory_errors("predicting", hint=_MEMORY_HINT):
            progress = _Progress(reporter, journal, total=rows * len(config.candidates))
            for group in groups_of(config.candidates):
                work = _Work(config, table, group=group, journal=journal, progress=progress, stop=context.stop)
                work.run(partial(engines, precision=precision))
            progress.tell("writing")
            made = Made(config_digest=digest, precision=precision, rows=rows)
            result = write_predictions(config, table, journal=journal, made=made)
    finally:
        reporter.close()
    shutil.rmtree(parts)
    return result


def _precision(parts: Path) -> Precision:
    """Return the number format of all completions: chosen once, so that a resumed run does not mix two."""
    known = parts / _PRECISION
    if known.is_file():
        return Precision(known.read_text(encoding="utf-8"))
    choice = choose_dtype(Precision.AUTO, choose_device())
    precision = Precision.BF16 if choice.dtype is torch.bfloat16 else Precision.FP32
    write_atomically(known, precision.value)
    return precision


class _Progress:
    """Tells how many completions are there, and how fast they come."""

    def __init__(self, reporter: Reporter, journal: Journal, *, total: int) -> None:
        self._reporter = reporter
        self._journal = journal
        self._total = total
        self._began = time.monotonic()
        self._tokens_before = journal.tokens

    def tell(self, note: str = "") -> None:
        """Report where the work stands."""
        done, seconds = len(self._journal), time.monotonic() - self._began
        metrics: dict[str, float] = {ProgressMetric.ITEMS: done, ProgressMetric.TOTAL_ITEMS: self._total}
        if seconds:
            metrics[ProgressMetric.TOKENS_PER_SECOND] = (self._journal.tokens - self._tokens_before) / seconds
        note = note or f"{done} of {self._total} completions"
        self._reporter.update(done / self._total, note=note, metrics=metrics)


@dataclass(frozen=True, slots=True)
class _Question:
    """A row for a candidate to go on from."""

    row: int
    candidate: str
    model: str
    """Served name."""
    tokens: tuple[int, ...]


class _Work:
    """What the candidates of one base model still have to complete."""

    def __init__(
        self,
        config: PredictConfig,
        table: Table,
        *,
        group: Group,
        journal: Journal,
        progress: _Progress,
        stop: StopFlag,
    ) -> None:
        self._config = config
        self._table = table
        self._group = group
        self._journal = journal
        self._progress = progress
        self._stop = stop

    def run(self, engines: Callable[[ServeConfig], Engine]) -> None:
        """Complete what is missing; nothing is loaded where nothing is. Raises Interrupted when asked to stop."""
        if next(self._questions(), None) is not None:
            asyncio.run(self._run(engines))

    async def _run(self, engines: Callable[[ServeConfig], Engine]) -> None:
        self._progress.tell(f"loading {self._group.names}")
        engine = engines(self._group.serve_config(self._config.job, max_running=self._config.max_running))
        await engine.start()
        try:
            questions = self._questions()
            # Twice as many as are generated at once: the next one waits in the engine when a place gets free.
            workers = [asyncio.create_task(self._ask(engine, questions)) for _ in range(2 * self._config.max_running)]
            await self._finish(workers)
        finally:
            await engine.stop()

    async def _finish(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Wait for all workers; the first failure, and a request to stop, end them all."""
        pending = set(workers)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
                self._stop.raise_if_set("stopped; finished completions are kept")
        finally:
            for worker in pending:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _ask(self, engine: Engine, questions: Iterator[_Question]) -> None:
        for question in questions:
            if self._stop:
                return
            self._journal.append(await self._complete(engine, question))
            self._progress.tell()

    async def _complete(self, engine: Engine, question: _Question) -> Completed:
        answer = Completed(
            row=question.row,
            candidate=question.candidate,
            finish_reason=Ending.EMPTY_PROMPT,
            prompt_tokens=len(question.tokens),
        )
        if not question.tokens:
            return answer
        request = GenerationRequest(
            model=question.model,
            tokens=question.tokens,
            max_new_tokens=self._config.max_new_tokens,
            stop=self._config.stop,
        )
        try:
            async with aclosing(engine.generate(request)) as stream:
                pieces = [piece async for piece in stream]
        except PromptTooLong:
            return answer.model_copy(update={"finish_reason": Ending.PROMPT_TOO_LONG})
        except EngineError as error:
            raise failure_of(error, doing="predicting", memory_hint=_MEMORY_HINT) from error
        return answer.model_copy(
            update={
                "completion": "".join(piece.text for piece in pieces),
                "finish_reason": Ending(pieces[-1].finish or ""),
                "completion_tokens": sum(piece.tokens for piece in pieces),
            }
        )

    def _questions(self) -> Iterator[_Question]:
        """Go through what no run has completed yet."""
        rows, limit = self._config.dataset.rows, self._config.limit
        tokenizer = load_tokenizer(Path(self._group.candidates[0].model.tokenizer_path))
        encoder = Encoder(tokenizer)
        for number, row in iterate_prompts(self._table, rows, tokenizer, limit=limit):
            missing = [each for each in self._group.candidates if not self._journal.holds(each.name, number)]
            tokens = tuple(encoder.encode_prompt(row)) if missing and row.prompt else ()
            for candidate in missing:
                yield _Question(number, candidate.name, self._group.served_name(candidate), tokens)
