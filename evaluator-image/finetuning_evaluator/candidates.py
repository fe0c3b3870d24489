"""Running every candidate through every task, from as few model loads as possible, and going on after a kill."""

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version

import torch

from finetuning_api.finetuningjob import Precision
from finetuning_api.metrics import Task
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ContractModel, EvaluateConfig
from finetuning_evaluator.metrics.built_in import built_in_digest
from finetuning_evaluator.parts import Found, Origin, Parts, code_digest, digest_of
from finetuning_evaluator.progress import Progress
from finetuning_evaluator.score import probe_logits
from finetuning_evaluator.tasks import TaskPart, run_task
from finetuning_workload.candidates import Load, LoadedCandidate, adapter_digest, loaded, plan_loads
from finetuning_workload.data import Encoder, RenderedRow, tokenizer_digest
from finetuning_workload.errors import UserError
from finetuning_workload.evaluated import CandidateInputs
from finetuning_workload.hardware import choose_dtype
from finetuning_workload.task_files import LoadedTask

_PROBE_ROWS = 4
_OF_ONE_RUN = frozenset({Task.LATENCY})
"""What is no property of a model and its rows alone: the time of another run, under another load, is not this run's."""


class NumberFormat(ContractModel):
    """The number format of every candidate: chosen once, so that a resumed run does not mix two."""

    dtype: str
    why: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The format as torch names it."""
        found = getattr(torch, self.dtype)
        if not isinstance(found, torch.dtype):
            raise TypeError(self.dtype)
        return found


class CandidateFacts(ContractModel):
    """What is known of a candidate once it was loaded."""

    parameters: int
    load_seconds: float
    logits_digest: str
    """sha256 over the logits of a probe: equal means that two candidates compute the same."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was computed with one candidate's model."""

    inputs: CandidateInputs
    facts: CandidateFacts
    parts: dict[Task, TaskPart]
    reused: dict[Task, Origin]
    """Who computed the parts that this run did not compute."""


def number_format(parts: Parts, device: torch.device) -> NumberFormat:
    """Return the number format for all candidates: that of the interrupted run where there was one.

    Where parts are shared it is that of the runs before on this machine: what was measured once holds, and finds them.
    """
    key = digest_of([device.type, version("torch"), platform.node() if parts.is_shared else ""])
    known = parts.find("format", NumberFormat, key=key)
    if known is not None:
        return known.part
    choice = choose_dtype(Precision.AUTO, device)
    chosen = NumberFormat(dtype=str(choice.dtype).removeprefix("torch."), why=choice.why)
    parts.keep("format", chosen, key=key)
    return chosen


class Runner:
    """Runs candidates through tasks; what is finished is kept and not computed again."""

    def __init__(
        self,
        config: EvaluateConfig,
        *,
        tasks: tuple[Task, ...],
        parts: Parts,
        device: torch.device,
        number_format: NumberFormat,
        progress: Progress,
    ) -> None:
        self._config = config
        self._tasks = tasks
        self._parts = parts
        self._device = device
        self._format = number_format
        self._progress = progress

    def measure(self, inputs: Sequence[CandidateInputs]) -> list[Measured]:
        """Return what every candidate scored and wrote, in their order.

        Raises UserError(CANDIDATES_IDENTICAL), before any work, for two candidates that compute the same logits.
        """
        by_name = {found.candidate.name: found for found in inputs}
        measured: dict[str, Measured] = {}
        for load in plan_loads([found.candidate for found in inputs]):
            members = [by_name[candidate.name] for candidate in load.candidates]
            earlier = [self._finished(member) for member in members]
            complete = [found for found in earlier if found is not None]
            if len(complete) < len(members):
                complete = self._run(load, members, {name: found.facts for name, found in measured.items()})
            measured |= {found.inputs.candidate.name: found for found in complete}
            self._progress.finished_candidates(len(measured))
        return [measured[found.candidate.name] for found in inputs]

    def _run(
        self, load: Load, members: Sequence[CandidateInputs], known: Mapping[str, CandidateFacts]
    ) -> list[Measured]:
        self._progress.note(f"loading {load.model_path}")
        started = time.monotonic()
        with loaded(load, dtype=self._format.torch_dtype, device=self._device) as ready:
            seconds = time.monotonic() - started
            facts = {
                found.candidate.name: _facts(found, inputs, load_seconds=seconds)
                for found, inputs in zip(ready, members, strict=True)
            }
            require_different({**known, **facts})
            return [
                self._run_tasks(found, inputs, facts[found.candidate.name])
                for found, inputs in zip(ready, members, strict=True)
            ]

    def _run_tasks(self, candidate: LoadedCandidate, inputs: CandidateInputs, facts: CandidateFacts) -> Measured:
        key = self._key(inputs)
        self._parts.keep("facts", facts, key=key.facts())
        measured = Measured(inputs, facts, {}, {})
        for task in self._tasks:
            found = self._find(task, key)
            if found is None:
                measured.parts[task] = self._run_task(task, candidate, inputs)
                self._parts.keep(task, measured.parts[task], key=key.of(task), own=task in _OF_ONE_RUN)
            else:
                measured.parts[task], measured.reused[task] = found.part, found.origin
            self._progress.finish(task)
        return measured

    def _run_task(self, task: Task, candidate: LoadedCandidate, inputs: CandidateInputs) -> TaskPart:
        key = self._key(inputs).of(task)
        return run_task(
            task,
            candidate,
            inputs=inputs,
            config=self._config,
            open_journal=lambda: self._parts.journal(key),
            on_progress=self._progress.of(inputs.candidate.name, task),
        )

    def _finished(self, inputs: CandidateInputs) -> Measured | None:
        """Return what was computed of a candidate in earlier runs, None where anything is missing."""
        key = self._key(inputs)
        facts = self._parts.find("facts", CandidateFacts, key=key.facts())
        found = {task: part for task in self._tasks if (part := self._find(task, key)) is not None}
        if facts is None or len(found) < len(self._tasks):
            return None
        parts = {task: each.part for task, each in found.items()}
        return Measured(inputs, facts.part, parts, {task: each.origin for task, each in found.items()})

    def _find(self, task: Task, key: "PartKey") -> Found[TaskPart] | None:
        return self._parts.find(task, TaskPart, key=key.of(task), own=task in _OF_ONE_RUN)

    def _key(self, inputs: CandidateInputs) -> "PartKey":
        return PartKey(inputs, self._config, self._format.dtype, self._device.type)


@dataclass(frozen=True, slots=True)
class PartKey:
    """The identity of one candidate's parts: everything that shapes them, and nothing else.

    Neither the name of a candidate nor of a job is in it, nor what only other tasks look at: what one evaluation scored
    as its reference is the base of another.
    """

    inputs: CandidateInputs
    config: EvaluateConfig
    dtype: str
    device: str

    def of(self, task: Task) -> str:
        """Return the identity of what a task computes."""
        return digest_of([*self._candidate(), task, self._shape(task)])

    def facts(self) -> str:
        """Return the identity of what is known of a candidate once it was loaded."""
        return digest_of([*self._candidate(), "facts", _content(self.inputs.rows[:_PROBE_ROWS])])

    def _candidate(self) -> list[object]:
        candidate = self.inputs.candidate
        return [
            code_digest(),
            candidate.model.provenance.digest,
            adapter_digest(candidate),
            tokenizer_digest(self.inputs.tokenizer),
            self.dtype,
            self.device,
        ]

    def _shape(self, task: Task) -> object:
        rows, config = self.inputs.rows, self.config
        match task:
            case Task.LIKELIHOOD:
                return [_content(rows), config.max_length]
            case Task.GENERATION | Task.LATENCY:
                return [_content(rows), config.generation.to_wire()]
            case Task.ACCURACY:
                return [_content(rows), self.inputs.choices]
            case Task.GENERAL:
                return [built_in_digest(), config.max_length]
            case Task.FOLDERS:
                return [[_asked(task) for task in self.inputs.tasks], config.max_length]
            case _:
                return built_in_digest()


def _content(rows: Sequence[RenderedRow]) -> str:
    """Return the sha256 of rows as they were rendered, with the answers that they offer."""
    return digest_of([[row.row_id, [astuple(segment) for segment in row.segments], row.choices] for row in rows])


def _asked(task: LoadedTask) -> list[object]:
    """Return a task as it is asked: its file, and the documents that were made of its data."""
    return [task.name, task.file.model_dump(mode="json"), [astuple(document) for document in task.documents]]


def require_different(facts: Mapping[str, CandidateFacts]) -> None:
    """Raise UserError(CANDIDATES_IDENTICAL) when two candidates compute exactly the same logits."""
    seen: dict[str, str] = {}
    for name, fact in facts.items():
        twin = seen.setdefault(fact.logits_digest, name)
        if twin != name:
            message = f"the candidates {twin} and {name} compute exactly the same: comparing them would say nothing"
            hint = "Either an adapter is not applied, or all its weights are zero, or two trainings were the same."
            raise UserError(Reason.CANDIDATES_IDENTICAL, message, hint)


def _facts(candidate: LoadedCandidate, inputs: CandidateInputs, *, load_seconds: float) -> CandidateFacts:
    samples = Encoder(inputs.tokenizer).encode(inputs.rows[:_PROBE_ROWS])
    with candidate.active():
        logits = probe_logits(candidate.model, [sample.ids for sample in samples if sample.ids])
    return CandidateFacts(
        parameters=sum(parameter.numel() for parameter in candidate.model.parameters()),
        load_seconds=load_seconds,
        # Adding zero turns -0.0 into 0.0, which compares equal but has other bytes.
        logits_digest=hashlib.sha256((logits.numpy() + 0.0).tobytes()).hexdigest(),
    )
