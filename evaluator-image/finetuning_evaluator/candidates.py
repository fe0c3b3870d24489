"""Running every candidate through every task, from as few model loads as possible, and going on after a kill."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from finetuning_api.finetuningjob import Precision
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ContractModel, EvaluateConfig
from finetuning_evaluator.inputs import CandidateInputs, Task
from finetuning_evaluator.metrics.built_in import built_in_digest
from finetuning_evaluator.parts import Parts, digest_of
from finetuning_evaluator.progress import Progress
from finetuning_evaluator.score import probe_logits
from finetuning_evaluator.tasks import TaskPart, run_task
from finetuning_workload.candidates import Load, LoadedCandidate, adapter_digest, loaded, plan_loads
from finetuning_workload.data import Encoder
from finetuning_workload.errors import UserError
from finetuning_workload.hardware import choose_dtype

PART_VERSION = 1
"""Raised when the meaning of a part changes, so that an older run's parts are not taken for new ones."""
_PROBE_ROWS = 4


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


def number_format(parts: Parts, device: torch.device) -> NumberFormat:
    """Return the number format for all candidates: that of the interrupted run where there was one."""
    known = parts.find("format", NumberFormat, key=device.type)
    if known is not None:
        return known
    choice = choose_dtype(Precision.AUTO, device)
    chosen = NumberFormat(dtype=str(choice.dtype).removeprefix("torch."), why=choice.why)
    parts.keep("format", chosen, key=device.type)
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
        self._parts.keep(f"{inputs.candidate.name}-facts", facts, key=self._key(inputs))
        return Measured(inputs, facts, {task: self._run_task(task, candidate, inputs) for task in self._tasks})

    def _run_task(self, task: Task, candidate: LoadedCandidate, inputs: CandidateInputs) -> TaskPart:
        name = f"{inputs.candidate.name}-{task}"
        part = self._parts.find(name, TaskPart, key=self._key(inputs))
        if part is None:
            on_progress = self._progress.of(inputs.candidate.name, task)
            part = run_task(task, candidate, inputs=inputs, config=self._config, on_progress=on_progress)
            self._parts.keep(name, part, key=self._key(inputs))
        self._progress.finish(task)
        return part

    def _finished(self, inputs: CandidateInputs) -> Measured | None:
        """Return what a candidate did in an earlier run, None where anything is missing."""
        name, key = inputs.candidate.name, self._key(inputs)
        facts = self._parts.find(f"{name}-facts", CandidateFacts, key=key)
        parts = {task: self._parts.find(f"{name}-{task}", TaskPart, key=key) for task in self._tasks}
        finished = {task: part for task, part in parts.items() if part is not None}
        return Measured(inputs, facts, finished) if facts is not None and len(finished) == len(parts) else None

    def _key(self, inputs: CandidateInputs) -> str:
        """Return the identity of a candidate's parts: everything that shapes them."""
        config = self._config
        return digest_of(
            {
                "version": PART_VERSION,
                "model": inputs.candidate.model.provenance.digest,
                "adapter": adapter_digest(inputs.candidate),
                "rows": [row.row_id for row in inputs.rows],
                "tokens": inputs.encoding_digest,
                "choices": inputs.choices,
                "rowChoices": [row.choices for row in inputs.rows],
                "maxLength": config.max_length,
                "generation": config.generation.to_wire(),
                "format": self._format.dtype,
                "builtIn": built_in_digest(),
            }
        )


def require_different(facts: Mapping[str, CandidateFacts]) -> None:
    """Raise UserError(CANDIDATES_IDENTICAL) when two candidates compute exactly the same logits."""
    seen: dict[str, str] = {}
    for name, fact in facts.items():
        twin = seen.setdefault(fact.logits_digest, name)
        if twin != name:
            message = f"the candidates {twin} and {name} compute exactly the same: comparing them would say nothing"
            hint = "The adapter is not applied or all its weights are zero; check the adapter and the training's loss."
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
