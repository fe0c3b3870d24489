"""Names of metrics, gate rules and the table of results: one vocabulary from manifest to report."""

from enum import StrEnum
from typing import ClassVar

from pydantic import Field, FiniteFloat

from finetuning_api.base import ApiModel, CelRule, Message


class Metric(StrEnum):
    """Every metric that the evaluator computes."""

    PERPLEXITY = "perplexity"
    """exp of the mean NLL per token over the held-out text (natural logarithm)."""
    COMPLETION_PERPLEXITY = "completion-perplexity"
    """The same over completion tokens and their closing EOS only."""
    BITS_PER_BYTE = "bits-per-byte"
    """NLL in bits per UTF-8 byte of the held-out text: comparable between tokenizers."""
    ROUGE1 = "rouge1"
    ROUGE2 = "rouge2"
    ROUGE_L = "rougeL"
    ROUGE_LSUM = "rougeLsum"
    EXACT_MATCH = "exact-match"
    """Share of rows whose greedy completion equals the reference after trimming white space."""
    ACCURACY = "accuracy"
    """Share of rows whose most likely completion, among the data set's distinct ones, is the right one."""
    COLA = "cola"
    """Matthews correlation of acceptability judgements by log-likelihood."""


class RequestedMetric(StrEnum):
    """What a manifest may ask for: every metric, and rouge for its four."""

    PERPLEXITY = "perplexity"
    COMPLETION_PERPLEXITY = "completion-perplexity"
    BITS_PER_BYTE = "bits-per-byte"
    ROUGE = "rouge"
    ROUGE1 = "rouge1"
    ROUGE2 = "rouge2"
    ROUGE_L = "rougeL"
    ROUGE_LSUM = "rougeLsum"
    EXACT_MATCH = "exact-match"
    ACCURACY = "accuracy"
    COLA = "cola"

    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics that this request stands for."""
        if self is RequestedMetric.ROUGE:
            return (Metric.ROUGE1, Metric.ROUGE2, Metric.ROUGE_L, Metric.ROUGE_LSUM)
        return (Metric(self.value),)


LOWER_IS_BETTER: frozenset[Metric] = frozenset({Metric.PERPLEXITY, Metric.COMPLETION_PERPLEXITY, Metric.BITS_PER_BYTE})


class Verdict(StrEnum):
    """Outcome of a gate, a rule, or a comparison with a margin."""

    PASS = "Pass"  # noqa: S105  (a verdict, not a password)
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"


class GateRule(ApiModel):
    """One condition on one metric of the tuned candidate. Intervals decide, not points."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="[has(self.min), has(self.max), has(self.minDelta), has(self.nonInferior)].filter(x, x).size() == 1",
            message="a gate rule needs exactly one of min, max, minDelta and nonInferior",
            field="metric",
        ),
        CelRule(
            rule="!has(self.against) || has(self.minDelta) || has(self.nonInferior)",
            message="against applies to minDelta and nonInferior only: min and max are absolute",
            field="against",
        ),
    )

    metric: Metric = Field(description="Metric that the rule is about; it must be evaluated.")
    min: FiniteFloat | None = Field(default=None, description="The tuned value must be at least this.")
    max: FiniteFloat | None = Field(default=None, description="The tuned value must be at most this.")
    min_delta: FiniteFloat | None = Field(
        default=None,
        description="The improvement over `against`, counted so that better is positive, must be at least this.",
    )
    non_inferior: FiniteFloat | None = Field(
        default=None, ge=0, description="The tuned candidate may be worse than `against` by at most this margin."
    )
    against: str | None = Field(
        default=None, min_length=1, max_length=63, description="Candidate to compare with; default: base."
    )


class EvaluationRow(ApiModel):
    """One metric over the candidates. Values are null where a candidate was not evaluated."""

    metric: Metric = Field(description="Metric.")
    base: float | None = Field(default=None, description="Value of the base model.")
    tuned: float | None = Field(default=None, description="Value of the tuned model.")
    reference: float | None = Field(default=None, description="Value of the reference model.")
    delta: float | None = Field(default=None, description="tuned - base, paired over the same rows.")
    ci_low: float | None = Field(default=None, description="Lower bound of the 95 % interval of delta.")
    ci_high: float | None = Field(default=None, description="Upper bound of the 95 % interval of delta.")
    samples: int = Field(default=0, ge=0, description="Rows that entered.")


class GateResult(ApiModel):
    """What one gate rule decided and why."""

    metric: Metric = Field(description="Metric of the rule.")
    verdict: Verdict = Field(description="Outcome of the rule.")
    message: Message = Field(default="", description="The numbers behind the outcome, as a sentence.")
