"""What a careful reader of the numbers should know."""

from collections.abc import Iterator, Sequence

from finetuning_api.metrics import Metric
from finetuning_evaluator.analysis import FEW_ROWS, pairs
from finetuning_evaluator.metrics.readability import READABILITY_METRICS
from finetuning_evaluator.metrics.rouge import ROUGE_METRICS, RougeTokenizer
from finetuning_evaluator.overlap import Overlap
from finetuning_evaluator.results import CandidateSummary, MetricResult
from finetuning_evaluator.wording import outcome
from finetuning_workload.evaluated import CandidateInputs, comparable

_MANY = 0.1
_FEW_DIFFERENCES = 10
_MUCH_OVERLAP = 0.01


def collect(
    metrics: Sequence[MetricResult],
    inputs: Sequence[CandidateInputs],
    *,
    candidates: Sequence[CandidateSummary],
    rouge_tokenizer: RougeTokenizer,
    overlap: Overlap | None,
) -> tuple[str, ...]:
    """Return the warnings, those about the rows first."""
    return tuple(
        dict.fromkeys(
            [
                *_about_rows(metrics, inputs, rouge_tokenizer),
                *_about_readability(metrics, rouge_tokenizer),
                *_about_overlap(overlap),
                *_about_tokenizers(metrics, inputs),
                *_about_differences(metrics),
                *_about_outputs(candidates, rows=len(inputs[0].rows)),
                *_about_judgements(metrics),
                *_about_forgetting(metrics),
            ]
        )
    )


def _about_rows(
    metrics: Sequence[MetricResult], inputs: Sequence[CandidateInputs], rouge_tokenizer: RougeTokenizer
) -> Iterator[str]:
    rows, groups = len(inputs[0].rows), inputs[0].groups
    if groups is not None and groups < FEW_ROWS:
        yield f"groups among the held-out rows: only {groups}, intervals are rough below {FEW_ROWS}"
    elif rows < FEW_ROWS:
        yield f"only {rows} held-out rows: intervals are rough below {FEW_ROWS}"
    if rouge_tokenizer is RougeTokenizer.UNICODE and any(result.metric in ROUGE_METRICS for result in metrics):
        yield "ROUGE uses Unicode words: over 5 % of the references' letters are not ASCII, which rouge_score drops"


def _about_readability(metrics: Sequence[MetricResult], rouge_tokenizer: RougeTokenizer) -> Iterator[str]:
    named = [result.metric for result in metrics if result.metric in READABILITY_METRICS]
    if named and rouge_tokenizer is RougeTokenizer.UNICODE:
        yield f"{' and '.join(named)}: made for English, and over 5 % of the references' letters are not ASCII"


def _about_overlap(overlap: Overlap | None) -> Iterator[str]:
    if overlap is not None and overlap.share > _MUCH_OVERLAP:
        yield (
            f"{overlap.share:.1%} of the held-out rows are in the training rows as well ({overlap.exact} exactly,"
            f" {overlap.near} nearly): values may be too good; set dataset.split.groupBy to what such rows share"
        )


def _about_tokenizers(metrics: Sequence[MetricResult], inputs: Sequence[CandidateInputs]) -> Iterator[str]:
    by_name = {found.candidate.name: found for found in inputs}
    for first, second in pairs(list(by_name)):
        apart = [result.metric for result in metrics if not comparable(result.metric, by_name[first], by_name[second])]
        if apart:
            what = " and ".join(apart)
            yield f"{first} and {second} have different tokenizers: {what} cannot be compared, bits-per-byte can"


def _about_differences(metrics: Sequence[MetricResult]) -> Iterator[str]:
    for result in metrics:
        for item in result.comparisons:
            if 0 < item.wins + item.losses < _FEW_DIFFERENCES:
                who = f"{item.candidate} and {item.against}"
                yield f"{result.metric}: {who} differ in only {item.wins + item.losses} rows: the interval is rough"


def _about_outputs(candidates: Sequence[CandidateSummary], *, rows: int) -> Iterator[str]:
    for candidate in candidates:
        if candidate.outputs is None:
            continue
        empty, cut = candidate.outputs.empty / rows, candidate.outputs.cut / rows
        refused = (candidate.outputs.refused - candidate.outputs.refused_references) / rows
        if empty > _MANY:
            yield f"{candidate.name} wrote nothing for {empty:.0%} of the rows"
        if cut > _MANY:
            yield f"{candidate.name} did not stop by itself in {cut:.0%} of the rows"
        if refused > _MANY:
            yield f"{candidate.name} refused to answer {refused:.0%} of the rows that the references answer"


def _about_judgements(metrics: Sequence[MetricResult]) -> Iterator[str]:
    for result in metrics:
        if result.metric != Metric.COLA:
            continue
        for value in result.values:
            if value.details["predictedPositiveRate"] in {0.0, 1.0}:
                yield f"{value.candidate} gives every sentence the same judgement: its cola is 0 by definition"


def _about_forgetting(metrics: Sequence[MetricResult]) -> Iterator[str]:
    for result in metrics:
        if result.metric != Metric.GENERAL_PERPLEXITY:
            continue
        for item in result.comparisons:
            if outcome(result, item) == "worse" and item.relative is not None:
                yield (
                    f"{item.candidate} is worse than {item.against} on general text: its perplexity is"
                    f" {item.relative:.1%} higher, so it may have forgotten what it knew"
                )
