"""Names of metrics, gate rules and the table of results: one vocabulary from manifest to report."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, FiniteFloat

from finetuning_api import patterns
from finetuning_api.base import ApiModel, CelRule, Message

MetricName = Annotated[str, Field(min_length=1, max_length=63, pattern=patterns.METRIC.regex)]
"""A built-in metric, one of the user's own, or one of a task: the task's name, a dot, and the metric in it."""
OwnName = Annotated[str, Field(min_length=1, max_length=63, pattern=patterns.OWN_NAME.regex)]
"""A metric of the user's own."""
TaskName = Annotated[str, Field(min_length=1, max_length=47, pattern=patterns.OWN_NAME.regex)]
"""A task of the user's own; its metrics have names of at most 63 characters."""


class Task(StrEnum):
    """A kind of work with the model; several metrics may be read from one."""

    LIKELIHOOD = "likelihood"
    GENERATION = "generation"
    ACCURACY = "accuracy"
    COLA = "cola"
    PAIRS = "cola-pairs"
    GENERAL = "general-perplexity"
    LATENCY = "latency"
    FOLDERS = "tasks"


class Metric(StrEnum):
    """Every metric that the evaluator computes."""

    PERPLEXITY = "perplexity"
    COMPLETION_PERPLEXITY = "completion-perplexity"
    BITS_PER_BYTE = "bits-per-byte"
    GENERAL_PERPLEXITY = "general-perplexity"
    ROUGE1 = "rouge1"
    ROUGE2 = "rouge2"
    ROUGE_L = "rougeL"
    ROUGE_LSUM = "rougeLsum"
    BLEU = "bleu"
    CHRF = "chrf"
    EXACT_MATCH = "exact-match"
    NORMALIZED_MATCH = "normalized-match"
    JSON_MATCH = "json-match"
    ACCURACY = "accuracy"
    MACRO_F1 = "macro-f1"
    COLA = "cola"
    COLA_PAIRS = "cola-pairs"
    READING_EASE = "reading-ease"
    READING_GRADE = "reading-grade"
    LATENCY = "latency"
    CUSTOM = "custom"
    """All of the user's own; each of them has its name in gates and results."""
    TASKS = "tasks"
    """Those of all tasks of the user's own; each has the name of its task and its own."""

    @property
    def facts(self) -> "MetricFacts":
        """What the metric measures, in what unit, and which direction is better."""
        return _FACTS[self]


@dataclass(frozen=True, slots=True)
class MetricFacts:
    """What a reader of a metric's values needs to know."""

    description: str
    unit: str
    """Empty for what a file of the user's own gives."""
    task: Task
    lower_is_better: bool = False
    needs_completions: bool = True
    """Whether plain text, which has no prompts and no answers, lacks what is measured."""


_SHARE = "share, 0 to 1"
_POINTS = "points, 0 to 100"
_PERPLEXITY = "per token, 1 or more"

_FACTS: Mapping[Metric, MetricFacts] = {
    Metric.PERPLEXITY: MetricFacts(
        "exp of the mean NLL per token over the held-out text (natural logarithm)",
        _PERPLEXITY,
        Task.LIKELIHOOD,
        lower_is_better=True,
        needs_completions=False,
    ),
    Metric.COMPLETION_PERPLEXITY: MetricFacts(
        "the same over completion tokens and their closing EOS only",
        _PERPLEXITY,
        Task.LIKELIHOOD,
        lower_is_better=True,
        needs_completions=False,
    ),
    Metric.BITS_PER_BYTE: MetricFacts(
        "NLL in bits per UTF-8 byte of the held-out text: comparable between tokenizers",
        "bits per byte",
        Task.LIKELIHOOD,
        lower_is_better=True,
        needs_completions=False,
    ),
    Metric.GENERAL_PERPLEXITY: MetricFacts(
        "perplexity of built-in general text: rises when a model forgets what it knew",
        _PERPLEXITY,
        Task.GENERAL,
        lower_is_better=True,
        needs_completions=False,
    ),
    Metric.ROUGE1: MetricFacts("mean F1 of shared words", _SHARE, Task.GENERATION),
    Metric.ROUGE2: MetricFacts("mean F1 of shared pairs of words", _SHARE, Task.GENERATION),
    Metric.ROUGE_L: MetricFacts("mean F1 of the longest common subsequence of words", _SHARE, Task.GENERATION),
    Metric.ROUGE_LSUM: MetricFacts("the same, sentence by sentence; sentences are lines", _SHARE, Task.GENERATION),
    Metric.BLEU: MetricFacts("BLEU of all rows as sacrebleu computes it", _POINTS, Task.GENERATION),
    Metric.CHRF: MetricFacts(
        "F2 of shared character n-grams of all rows as sacrebleu computes it", _POINTS, Task.GENERATION
    ),
    Metric.EXACT_MATCH: MetricFacts(
        "share of rows whose greedy completion equals the reference after trimming white space",
        _SHARE,
        Task.GENERATION,
    ),
    Metric.NORMALIZED_MATCH: MetricFacts(
        "the same without case, punctuation, articles and further white space, as SQuAD compares",
        _SHARE,
        Task.GENERATION,
    ),
    Metric.JSON_MATCH: MetricFacts(
        "share of rows whose greedy completion is JSON and equals the reference as JSON",
        _SHARE,
        Task.GENERATION,
    ),
    Metric.ACCURACY: MetricFacts(
        "share of rows whose most likely completion, among the data set's distinct ones, is the right one",
        _SHARE,
        Task.ACCURACY,
    ),
    Metric.MACRO_F1: MetricFacts(
        "mean over the distinct completions of the F1 of the same choices", _SHARE, Task.ACCURACY
    ),
    Metric.COLA: MetricFacts(
        "Matthews correlation of acceptability judgements by log-likelihood",
        "correlation, -1 to 1",
        Task.COLA,
        needs_completions=False,
    ),
    Metric.COLA_PAIRS: MetricFacts(
        "share of sentence pairs whose acceptable member is the more likely one",
        _SHARE,
        Task.PAIRS,
        needs_completions=False,
    ),
    Metric.READING_EASE: MetricFacts(
        "Flesch Reading Ease of all that is written; English only",
        "points, 100 is easy",
        Task.GENERATION,
    ),
    Metric.READING_GRADE: MetricFacts(
        "Flesch-Kincaid Grade Level of the same; English only", "years of school", Task.GENERATION, lower_is_better=True
    ),
    Metric.LATENCY: MetricFacts(
        "mean time of a completion that is generated alone, over at most 16 rows",
        "seconds",
        Task.LATENCY,
        lower_is_better=True,
    ),
    Metric.CUSTOM: MetricFacts(
        "mean over rows of what a Python file of one's own gives the greedy completion", "", Task.GENERATION
    ),
    Metric.TASKS: MetricFacts(
        "the metrics of task files in the format of lm-evaluation-harness, on their own data",
        "",
        Task.FOLDERS,
        needs_completions=False,
    ),
}


_UNITS_OF_TASKS: Mapping[str, str] = {
    "acc": _SHARE,
    "acc_norm": _SHARE,
    "exact_match": _SHARE,
    "perplexity": "per answer, 1 or more",
    "word_perplexity": "per word, 1 or more",
    "byte_perplexity": "per byte, 1 or more",
    "bits_per_byte": "bits per byte",
}


def facts_of(name: str) -> MetricFacts:
    """Return the facts of a metric by its name; the user's own share theirs, but for which direction is better."""
    if name in set(Metric):
        return Metric(name).facts
    if is_of_a_task(name):
        return replace(Metric.TASKS.facts, unit=_UNITS_OF_TASKS[name.rpartition(".")[2]])
    return Metric.CUSTOM.facts


def task_metric(task: str, metric: str) -> str:
    """Return the name of a metric of a task in gates and results."""
    return f"{task}.{metric}"


def is_of_a_task(name: str) -> bool:
    """Return whether a metric is one of a task of the user's own."""
    return "." in name


def is_built_in(name: str) -> bool:
    """Return whether a metric is one of ours rather than of the user's own."""
    return name in set(Metric) - {Metric.CUSTOM, Metric.TASKS}


class RequestedMetric(StrEnum):
    """What a manifest may ask for: every built-in metric, rouge for its four, custom and tasks for all one's own."""

    PERPLEXITY = "perplexity"
    COMPLETION_PERPLEXITY = "completion-perplexity"
    BITS_PER_BYTE = "bits-per-byte"
    GENERAL_PERPLEXITY = "general-perplexity"
    ROUGE = "rouge"
    ROUGE1 = "rouge1"
    ROUGE2 = "rouge2"
    ROUGE_L = "rougeL"
    ROUGE_LSUM = "rougeLsum"
    BLEU = "bleu"
    CHRF = "chrf"
    EXACT_MATCH = "exact-match"
    NORMALIZED_MATCH = "normalized-match"
    JSON_MATCH = "json-match"
    ACCURACY = "accuracy"
    MACRO_F1 = "macro-f1"
    COLA = "cola"
    COLA_PAIRS = "cola-pairs"
    READING_EASE = "reading-ease"
    READING_GRADE = "reading-grade"
    LATENCY = "latency"
    CUSTOM = "custom"
    TASKS = "tasks"

    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics that this request stands for."""
        if self is RequestedMetric.ROUGE:
            return (Metric.ROUGE1, Metric.ROUGE2, Metric.ROUGE_L, Metric.ROUGE_LSUM)
        return (Metric(self.value),)


GROUPS = (RequestedMetric.ROUGE.value, RequestedMetric.CUSTOM.value, RequestedMetric.TASKS.value)
"""Requests that are no metric themselves."""


class Verdict(StrEnum):
    """Outcome of a gate, a rule, or a comparison with a margin."""

    PASS = "Pass"  # noqa: S105  (a verdict, not a password)
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"


DEFAULT_AGAINST = "base"
"""What a relative rule compares with where it names nothing else."""


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

    metric: MetricName = Field(
        description="Metric that the rule is about; it must be evaluated. One of your own by its name, one of a task as"
        " capitals.acc."
    )
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

    @property
    def is_relative(self) -> bool:
        """Whether the rule compares with another candidate."""
        return self.min_delta is not None or self.non_inferior is not None


class EvaluationRow(ApiModel):
    """One metric over the candidates. Values are null where a candidate was not evaluated."""

    metric: MetricName = Field(description="Metric.")
    base: float | None = Field(default=None, description="Value of the base model.")
    tuned: float | None = Field(default=None, description="Value of the tuned model.")
    reference: float | None = Field(default=None, description="Value of the reference model.")
    delta: float | None = Field(default=None, description="tuned - base, paired over the same rows.")
    ci_low: float | None = Field(default=None, description="Lower bound of the 95 % interval of delta.")
    ci_high: float | None = Field(default=None, description="Upper bound of the 95 % interval of delta.")
    samples: int = Field(default=0, ge=0, description="Rows that entered.")


class GateResult(ApiModel):
    """What one gate rule decided and why."""

    metric: MetricName = Field(description="Metric of the rule.")
    verdict: Verdict = Field(description="Outcome of the rule.")
    message: Message = Field(default="", description="The numbers behind the outcome, as a sentence.")
