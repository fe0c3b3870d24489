"""report.html: one file that needs nothing else, in light and dark."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from finetuning_api.metrics import Metric
from finetuning_evaluator import wording
from finetuning_evaluator.charts import Effect, effect_line, tally
from finetuning_evaluator.report_markdown import reproduction, shown_samples
from finetuning_evaluator.results import MetricComparison, MetricResult, Results
from finetuning_evaluator.samples import SampleFile

_SAMPLES = 12


def render_html(results: Results, files: Sequence[SampleFile]) -> str:
    """Return the report as HTML. Every text from data or models is escaped."""
    environment = Environment(
        loader=PackageLoader("finetuning_evaluator", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        results=results,
        names=[candidate.name for candidate in results.candidates],
        files=list(shown_samples(results, files, count=_SAMPLES)),
        confusions=[metric for metric in results.metrics if metric.metric == Metric.COLA],
        reproduction=list(reproduction(results)),
        headline=wording.headline(results),
        wording=wording,
        effect=_effect,
        tally=_tally,
        style=Markup(_source(environment, "report.css")),  # noqa: S704  (our own file)
    )


def _effect(result: MetricResult, item: MetricComparison) -> Markup:
    outcome = wording.outcome(result, item)
    effect = Effect(item.delta, item.ci_low, item.ci_high, lower_is_better=result.lower_is_better, outcome=outcome)
    return Markup(effect_line(effect))  # noqa: S704  (numbers and our own words only)


def _tally(item: MetricComparison) -> Markup:
    return Markup(tally(item.wins, item.ties, item.losses))  # noqa: S704  (numbers only)


def _source(environment: Environment, name: str) -> str:
    if environment.loader is None:
        raise LookupError(name)
    return environment.loader.get_source(environment, name)[0]
