"""Candidates that one load serves: a base model, and whatever adapters of it there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetuning_api.finetuningjob import Precision
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import AdapterInput, CandidateInput, JobIdentity, ServeConfig
from finetuning_server.engine.base import Engine
from finetuning_server.engine.batching import BatchingEngine, EngineSettings
from finetuning_server.engine.errors import EngineError, OutOfMemory
from finetuning_workload.errors import EnvironmentFault, ProgramError
from finetuning_workload.program import out_of_memory

_BASE = "(base)"
"""Served name of a base model; no candidate can be named so."""


class Engines(Protocol):
    """Makes the engine of one base model and its adapters."""

    def __call__(self, config: ServeConfig, *, precision: Precision) -> Engine:
        """Return an engine that is not started yet."""


def batching_engines(environment: Mapping[str, str]) -> Engines:
    """Return what makes the engines of this release."""

    def make(config: ServeConfig, *, precision: Precision) -> Engine:
        return BatchingEngine(config, environment=environment, settings=EngineSettings(precision=precision))

    return make


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates of one base model and one tokenizer, in their order."""

    candidates: tuple[CandidateInput, ...]

    @property
    def names(self) -> str:
        """The candidates' names, for messages."""
        return ", ".join(candidate.name for candidate in self.candidates)

    def served_name(self, candidate: CandidateInput) -> str:
        """Return the name by which the engine is asked for a candidate."""
        return _BASE if candidate.adapter_path is None else candidate.name

    def serve_config(self, job: JobIdentity, *, max_running: int) -> ServeConfig:
        """Return what the engine of the group is told."""
        return ServeConfig(
            job=job,
            model=self.candidates[0].model,
            served_name=_BASE,
            adapters=tuple(
                AdapterInput(name=each.name, path=each.adapter_path, digest=each.adapter_digest)
                for each in self.candidates
                if each.adapter_path is not None
            ),
            max_running=max_running,
            max_waiting=max_running,
        )


def groups_of(candidates: Sequence[CandidateInput]) -> tuple[Group, ...]:
    """Return the groups in the order of their first candidates."""
    groups: dict[tuple[str, str], list[CandidateInput]] = {}
    for candidate in candidates:
        groups.setdefault((candidate.model.path, candidate.model.tokenizer_path), []).append(candidate)
    return tuple(Group(tuple(group)) for group in groups.values())


def failure_of(error: EngineError, *, doing: str, memory_hint: str) -> ProgramError:
    """Return why a program ends with whose request the engine failed; ``doing`` completes "out of memory in ..."."""
    if isinstance(error, OutOfMemory):
        return out_of_memory(doing, hint=memory_hint)
    return EnvironmentFault(Reason.INTERNAL, f"the engine failed: {error}", "The log of this stage has the details.")
