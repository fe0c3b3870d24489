"""The results of a job: rows for code, a table for notebooks, text for everything else."""

import html
from collections.abc import Iterator
from dataclasses import dataclass

from finetuning_api.base import ConditionType, Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.metrics import EvaluationRow, Metric, Verdict
from finetuning_client.errors import ClusterError

_COLUMNS = ("metric", "base", "tuned", "reference", "delta", "95 % interval", "n")


@dataclass(frozen=True, slots=True)
class Results:
    """One row for each metric, and what the gate made of them."""

    name: str
    rows: tuple[EvaluationRow, ...]
    verdict: Verdict | None = None
    explanation: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, resource: Resource) -> "Results":
        """Return the results of a job. Raises ClusterError for an object that has none, or none yet."""
        if not isinstance(resource, FineTuningJob | EvaluationJob):
            raise ClusterError(f"{resource.metadata.name} is a {resource.kind}, not a job")
        status = resource.status
        predictions = resource.status.predictions if isinstance(resource, EvaluationJob) else None
        if predictions is not None:
            where = f"They lie on the claim {predictions.claim_name}, in predictions.jsonl."
            raise ClusterError(f"{resource.metadata.name} predicts: it has no metrics", where)
        if not status.evaluation:
            message = f"{resource.metadata.name} has no results yet ({status.phase.value})"
            raise ClusterError(message, f"See how far it is: finetune status {resource.metadata.name}")
        told = (each.message for each in status.conditions if each.type is ConditionType.GATE_PASSED)
        return cls(
            name=resource.metadata.name,
            rows=tuple(status.evaluation),
            verdict=status.verdict,
            explanation=next(told, ""),
            warnings=tuple(status.warnings),
        )

    def __getitem__(self, metric: Metric | str) -> EvaluationRow:
        for row in self.rows:
            if row.metric == metric:
                return row
        raise KeyError(metric)

    def __iter__(self) -> Iterator[EvaluationRow]:
        return iter(self.rows)

    def records(self) -> list[dict[str, object]]:
        """Return plain rows, for example for ``pandas.DataFrame(results.records())``."""
        return [row.to_wire() for row in self.rows]

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{each}</th>" for each in _COLUMNS)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(row))}</tr>" for row in self)
        gate = f"<p>{self.verdict.value}: {html.escape(self.explanation)}</p>" if self.verdict else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{gate}"


def _cells(row: EvaluationRow) -> tuple[str, ...]:
    interval = "" if row.ci_low is None or row.ci_high is None else f"{row.ci_low:+.4g} .. {row.ci_high:+.4g}"
    values = (_number(row.base), _number(row.tuned), _number(row.reference))
    delta = "" if row.delta is None else f"{row.delta:+.4g}"
    return (row.metric, *values, delta, interval, str(row.samples))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
