"""Readability of what models wrote: a value of all rows, and refused where nobody wrote a word."""

from pathlib import Path

import pytest
from tests.support.evaluation import bare_context, candidate, evaluate_config

from finetuning_api.metrics import GateRule, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import EvaluateConfig
from finetuning_evaluator.evaluate import evaluate
from finetuning_evaluator.metrics.readability import READABILITY_METRICS, observe
from finetuning_evaluator.results import Results
from finetuning_evaluator.samples import Sample
from finetuning_workload.errors import UserError


def config(world: Path, output: Path, *, tuned: bool) -> EvaluateConfig:
    one = candidate("tuned" if tuned else "base", world / "base", world / "adapter" if tuned else None)
    rules = (GateRule(metric=Metric.READING_GRADE, max=100),) if tuned else ()
    return evaluate_config([one], data=world / "rows.jsonl", output=output, metrics=READABILITY_METRICS, gate=rules)


def test_it_is_of_all_that_a_model_wrote_and_fewer_years_of_school_are_better(world: Path, tmp_path: Path) -> None:
    evaluate(config(world, tmp_path / "report", tuned=True), bare_context())

    results = Results.model_validate_json((tmp_path / "report" / "results.json").read_bytes())
    lines = (tmp_path / "report" / "samples.jsonl").read_text().splitlines()
    texts = [Sample.model_validate_json(line).outputs["tuned"] for line in lines]
    assert [(each.metric, each.lower_is_better) for each in results.metrics] == [
        (Metric.READING_EASE, False),
        (Metric.READING_GRADE, True),
    ]
    for found, metric in zip(results.metrics, READABILITY_METRICS, strict=True):
        (value,) = found.values
        assert value.value == pytest.approx(observe(metric, texts).value())
        assert value.ci_low is not None
    assert results.verdict is Verdict.PASS


def test_a_candidate_that_wrote_no_word_ends_the_evaluation_with_the_way_out(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(config(world, tmp_path / "report", tuned=False), bare_context())

    assert caught.value.reason is Reason.METRIC_UNAVAILABLE
    assert caught.value.message.startswith(
        "reading-ease of base is nan: there is no token to score, no word was written"
    )
    assert "remove reading-ease from evaluation.metrics" in caught.value.hint
