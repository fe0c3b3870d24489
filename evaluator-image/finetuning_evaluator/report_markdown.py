"""report.md: verdict first, then the table, samples, and what is needed to reproduce it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from finetuning_api.metrics import DEFAULT_AGAINST, Metric
from finetuning_evaluator.results import Results
from finetuning_evaluator.samples import Sample, SampleFile, telling
from finetuning_evaluator.wording import (
    COMPARISON_NOTE,
    COST_HEADER,
    COST_NOTE,
    ORIGIN_HEADER,
    ORIGIN_NOTE,
    costs,
    detectable,
    evaluated,
    headline,
    interval,
    origins,
    outcome,
    overlap,
    p_values,
    resampled,
    shown,
    signed,
    with_interval,
)

_SAMPLES = 6
_LONGEST = 600


def render_markdown(results: Results, files: Sequence[SampleFile]) -> str:
    """Return the report as Markdown."""
    sections = (_head(results), _table(results), _comparisons(results), _gate(results), _warnings(results))
    parts = [*sections, _costs(results), _origins(results), _examples(results, files), _reproduction(results)]
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines) + "\n"


def _head(results: Results) -> Iterator[str]:
    yield f"# Evaluation of {results.job.name}"
    yield ""
    yield f"**{headline(results)}**"
    yield ""
    yield (
        f"{evaluated(results.dataset)}, {len(results.candidates)} candidates;"
        f" intervals are 95 %, {results.settings.bootstrap_samples} resamples of {resampled(results.dataset)}."
    )
    if results.dataset.overlap is not None:
        yield ""
        yield overlap(results.dataset)


def _table(results: Results) -> Iterator[str]:
    names = [candidate.name for candidate in results.candidates]
    yield _row(["metric", "unit", "better", *names])
    yield _row(["---"] * (len(names) + 3))
    for metric in results.metrics:
        better = "lower" if metric.lower_is_better else "higher"
        yield _row([metric.metric, metric.unit, better, *(with_interval(metric.value(name)) for name in names)])


def _comparisons(results: Results) -> Iterator[str]:
    if not any(metric.comparisons for metric in results.metrics):
        return
    header = ["metric", "difference", "delta", "95 % interval", "p (Holm)", "detectable", "wins / ties / losses"]
    yield _row([*header, "outcome"])
    yield _row(["---"] * 8)
    for metric in results.metrics:
        for item in metric.comparisons:
            yield _row(
                [
                    metric.metric,
                    f"{item.candidate} - {item.against}",
                    signed(item.delta),
                    interval(item.ci_low, item.ci_high),
                    p_values(item),
                    detectable(item),
                    f"{item.wins} / {item.ties} / {item.losses}",
                    outcome(metric, item),
                ]
            )
    yield ""
    yield COMPARISON_NOTE


def _gate(results: Results) -> Iterator[str]:
    if results.gates:
        yield "## Gate"
        yield ""
        for gate in results.gates:
            yield f"- **{gate.result.verdict}** {gate.result.message}"


def _warnings(results: Results) -> Iterator[str]:
    if results.warnings:
        yield "## Warnings"
        yield ""
        for warning in results.warnings:
            yield f"- {warning}"


def _costs(results: Results) -> Iterator[str]:
    yield "## Speed and outputs"
    yield ""
    yield _row(["candidate", *COST_HEADER])
    yield _row(["---"] * (len(COST_HEADER) + 1))
    for candidate in results.candidates:
        yield _row([candidate.name, *costs(candidate)])
    yield ""
    yield COST_NOTE


def _origins(results: Results) -> Iterator[str]:
    if any(candidate.reused for candidate in results.candidates):
        yield "## Scores that were there already"
        yield ""
        yield _row(ORIGIN_HEADER)
        yield _row(["---"] * len(ORIGIN_HEADER))
        for cells in origins(results):
            yield _row(cells)
        yield ""
        yield ORIGIN_NOTE


def _examples(results: Results, files: Sequence[SampleFile]) -> Iterator[str]:
    for number, file in enumerate(shown_samples(results, files, count=_SAMPLES)):
        if number:
            yield ""
        yield f"## {file.title}"
        for sample in file.samples:
            yield ""
            yield f"### Row {sample.row_id}"
            for title, text in (("prompt", sample.prompt), ("expected", sample.expected), *sample.outputs.items()):
                yield ""
                yield f"{title}:"
                yield ""
                yield from _quoted(text)


def _reproduction(results: Results) -> Iterator[str]:
    yield "## Reproduction"
    yield ""
    for name, value in reproduction(results):
        yield f"- {name}: `{value}`"


def shown_samples(results: Results, files: Sequence[SampleFile], *, count: int) -> Iterator[SampleFile]:
    """Yield the files with what a report shows of them: rows that candidates answered, and only where there are any."""
    for file in files:
        told = tuple(sample for sample in _telling(results, file.samples, count=count) if sample.outputs)
        if told:
            yield replace(file, samples=told)


def _telling(results: Results, samples: Sequence[Sample], *, count: int) -> tuple[Sample, ...]:
    """Return rows that show the differences: by rougeL, else by the first metric that rows have a score for."""
    scored = [metric for metric in results.metrics if samples and metric.metric in _scores_of_first(samples)]
    names = [candidate.name for candidate in results.candidates]
    if not scored:
        return tuple(samples[:count])
    against = DEFAULT_AGAINST if DEFAULT_AGAINST in names else names[0]
    shown_by = next((metric for metric in scored if metric.metric == Metric.ROUGE_L), scored[0])
    return telling(samples, shown_by, against=against, count=count)


def reproduction(results: Results) -> Iterator[tuple[str, str]]:
    """Yield what somebody needs to get the same numbers, as names and values."""
    yield "data", f"{results.dataset.provenance.source} {results.dataset.provenance.digest}"
    yield "held-out rows", f"{results.dataset.rows} {results.dataset.row_ids_digest}"
    for candidate in results.candidates:
        adapter = f" + adapter {candidate.adapter_digest}" if candidate.adapter_digest else ""
        yield candidate.name, f"{candidate.model.source} {candidate.model.digest}{adapter}"
    for metric in results.metrics:
        yield metric.metric, metric.signature
    settings, environment = results.settings, results.environment
    yield "window", f"{settings.max_length} tokens"
    for name, limit in settings.max_new_tokens.items():
        yield f"new tokens of {name}", f"at most {limit}, greedy"
    yield "seed", str(settings.seed)
    yield "number format", f"{environment.dtype} ({environment.dtype_reason})"
    yield "device", f"{environment.device}, {environment.threads} threads"
    yield "finetuning-operator", environment.finetuning_operator
    yield "Python", environment.python
    yield "libraries", f"torch {environment.torch}, transformers {environment.transformers}, peft {environment.peft}"
    yield "configuration", results.config_digest


def _scores_of_first(samples: Sequence[Sample]) -> set[str]:
    return {metric for scores in samples[0].scores.values() for metric in scores}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quoted(text: str) -> Iterator[str]:
    """Yield a text as a code block whose fence is longer than any in the text."""
    whole = shown(text)
    # A prompt ends with its question: before that may stand pages of examples.
    half = _LONGEST // 2
    cut = whole if len(whole) <= _LONGEST else f"{whole[:half]} ... {whole[-half:]}"
    fence = "```"
    while fence in cut:
        fence += "`"
    yield fence
    yield from cut.splitlines()
    yield fence
