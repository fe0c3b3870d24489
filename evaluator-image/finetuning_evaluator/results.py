"""What an evaluation leaves behind: the typed form of results.json, and the short form for status."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import Field

from finetuning_api.metrics import EvaluationRow, GateResult, GateRule, MetricName, Verdict
from finetuning_api.runconfig import (
    TERMINATION_LOG_BYTES,
    ContractModel,
    EvaluateResult,
    JobIdentity,
    Provenance,
)
from finetuning_evaluator.outputs import OutputSummary, Speed
from finetuning_evaluator.overlap import Overlap
from finetuning_evaluator.parts import Origin

SCHEMA_VERSION: Literal["eval/v1"] = "eval/v1"
_LAST_WORDS_FRAME = 256
"""Bytes kept free in the last words for what surrounds the result."""
_SHORT_MESSAGE = 96
_DIGITS, _FEWER_DIGITS = 6, 4
_MAX_WARNINGS = 32
"""As many as a status holds."""


class Environment(ContractModel):
    """What the numbers were computed with."""

    python: str
    finetuning_operator: str
    torch: str
    transformers: str
    peft: str
    device: str
    dtype: str
    dtype_reason: str
    threads: int


class CandidateSummary(ContractModel):
    """One evaluated model."""

    name: str
    model: Provenance
    tokenizer: Provenance
    adapter_digest: str | None = None
    parameters: int
    """Parameters in memory, the adapter's included."""
    load_seconds: float
    seconds: dict[str, float]
    """Wall time by task; of the run that computed it, where that was another one."""
    reused: dict[str, Origin] = Field(default_factory=dict)
    """By task: who computed it, where this run did not: an interrupted run, or another evaluation with the same model,
    rows and settings."""
    speed: Speed = Field(default_factory=Speed)
    outputs: OutputSummary | None = None
    """None where nothing was generated."""


class DatasetSummary(ContractModel):
    """The rows that were evaluated."""

    provenance: Provenance
    rows: int
    groups: int | None = None
    """Groups of ``split.groupBy`` among the rows, which intervals and tests resample; None: they resample rows."""
    row_ids_digest: str
    """sha256 over the ids of the held-out rows: equal means the same rows."""
    limit: int | None = None
    overlap: Overlap | None = None
    """Rows that the training side of the data has as well; None where it has no row."""


class Settings(ContractModel):
    """What shaped the numbers besides models and rows."""

    max_length: int
    max_new_tokens: dict[str, int]
    """By candidate: a limit planned from the references depends on the tokenizer. Empty where nothing was generated."""
    stop: tuple[str, ...] = ()
    bootstrap_samples: int
    seed: int


class MetricValue(ContractModel):
    """One metric of one candidate with its 95 % interval."""

    candidate: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    samples: int
    details: dict[str, float] = Field(default_factory=dict)
    """What a value alone hides: the confusion matrix, the share of empty outputs."""


class MetricComparison(ContractModel):
    """``delta`` = candidate - against, paired over the same rows; wins and losses from the candidate's side."""

    candidate: str
    against: str
    delta: float
    ci_low: float | None = None
    ci_high: float | None = None
    relative: float | None = None
    """delta / value of ``against``."""
    p_value: float
    p_value_holm: float | None = None
    """Adjusted for all metrics that the gate names (Holm); None where the gate does not look at this comparison."""
    minimum_detectable_effect: float | None = None
    """True difference that as many rows find in 80 % of cases at level 0.05; None without an interval."""
    test: str
    wins: int
    ties: int
    losses: int
    samples: int


class MetricResult(ContractModel):
    """One metric over all candidates."""

    metric: MetricName
    lower_is_better: bool
    unit: str = ""
    """What values count, for a person."""
    signature: str
    values: tuple[MetricValue, ...]
    comparisons: tuple[MetricComparison, ...] = ()
    units: int | None = None
    """Independent units behind intervals and tests: rows, groups of rows, or sentences of the metric's own."""

    def value(self, candidate: str) -> MetricValue | None:
        """Return a candidate's value, None where it has none."""
        return next((value for value in self.values if value.candidate == candidate), None)

    def comparison(self, candidate: str, against: str) -> MetricComparison | None:
        """Return a comparison, None where it was not made."""
        wanted = (candidate, against)
        return next((item for item in self.comparisons if (item.candidate, item.against) == wanted), None)


class GateDecision(ContractModel):
    """A rule with what it decided."""

    rule: GateRule
    result: GateResult
    more_units: int | None = None
    """Further rows (or groups, where there are any) that would probably decide an inconclusive rule."""


class Results(ContractModel):
    """Everything in results.json."""

    schema_version: Literal["eval/v1"] = SCHEMA_VERSION
    job: JobIdentity
    config_digest: str
    """sha256 of what shapes the results; equal means that the evaluation need not run again."""
    created_at: datetime
    wall_seconds: float
    verdict: Verdict | None = None
    environment: Environment
    dataset: DatasetSummary
    settings: Settings
    candidates: tuple[CandidateSummary, ...]
    metrics: tuple[MetricResult, ...]
    gates: tuple[GateDecision, ...] = ()
    warnings: tuple[str, ...] = ()

    def summary(self) -> EvaluateResult:
        """Return the short form that fits into a program's last words, whatever the number of rules and warnings."""
        whole = EvaluateResult(
            rows=tuple(_row(metric) for metric in self.metrics),
            gates=tuple(gate.result for gate in self.gates),
            verdict=self.verdict,
            warnings=self.warnings[:_MAX_WARNINGS],
        )
        wordless = _without_words(whole)
        for shortened in (whole, _with_short_messages(whole), wordless, *_with_fewer_rows(_coarse(wordless))):
            encoded = shortened.model_dump_json(by_alias=True, exclude_none=True).encode()
            if len(encoded) <= TERMINATION_LOG_BYTES - _LAST_WORDS_FRAME:
                return shortened
        return wordless.model_copy(update={"rows": ()})


def _row(metric: MetricResult) -> EvaluationRow:
    values = {value.candidate: _rounded(value.value) for value in metric.values}
    delta = metric.comparison("tuned", "base")
    return EvaluationRow(
        metric=metric.metric,
        base=values.get("base"),
        tuned=values.get("tuned"),
        reference=values.get("reference"),
        delta=None if delta is None else _rounded(delta.delta),
        ci_low=None if delta is None else _rounded(delta.ci_low),
        ci_high=None if delta is None else _rounded(delta.ci_high),
        samples=max(value.samples for value in metric.values),
    )


def _rounded(value: float | None, digits: int = _DIGITS) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def _coarse(result: EvaluateResult) -> EvaluateResult:
    """Return a result whose numbers have fewer digits."""
    numbers = ("base", "tuned", "reference", "delta", "ci_low", "ci_high")
    rows = (
        row.model_copy(update={name: _rounded(getattr(row, name), _FEWER_DIGITS) for name in numbers})
        for row in result.rows
    )
    return result.model_copy(update={"rows": tuple(rows)})


def _with_fewer_rows(result: EvaluateResult) -> Iterator[EvaluateResult]:
    """Yield a result, and then the same with ever fewer rows, the last one that no rule is about left out first."""
    yield result
    gated = {gate.metric for gate in result.gates}
    rows = list(result.rows)
    for row in reversed([row for row in rows if row.metric not in gated]):
        rows.remove(row)
        yield result.model_copy(
            update={"rows": tuple(rows), "warnings": ("see report.md for more metrics, messages and warnings",)}
        )


def _with_short_messages(result: EvaluateResult) -> EvaluateResult:
    gates = tuple(gate.model_copy(update={"message": _cut(gate.message)}) for gate in result.gates)
    return result.model_copy(update={"gates": gates, "warnings": tuple(_cut(text) for text in result.warnings[:4])})


def _without_words(result: EvaluateResult) -> EvaluateResult:
    gates = tuple(gate.model_copy(update={"message": ""}) for gate in result.gates)
    return result.model_copy(update={"gates": gates, "warnings": ("see report.md for messages and warnings",)})


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT_MESSAGE else f"{text[: _SHORT_MESSAGE - 4]} ..."
