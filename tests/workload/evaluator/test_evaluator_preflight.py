"""What an evaluation could not compute is refused by preflight, in the words of the evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.evaluation import candidate
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.training import Workshop, colour_rows, quiet_context, write_rows

from finetuning_api.finetuningjob import GenerationSpec
from finetuning_api.metrics import GateRule, Metric
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import CandidateInput, EvaluateConfig, EvaluationInputs, PreflightConfig
from finetuning_evaluator.evaluate import evaluate
from finetuning_trainer.preflight import preflight
from finetuning_workload.errors import UserError


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, tiny_llama(tmp_path / "model"), write_rows(tmp_path / "data", colour_rows(100)))


def evaluation(workshop: Workshop, *metrics: Metric, **options: Any) -> EvaluationInputs:  # noqa: ANN401  (fields)
    names = ("base", "tuned")
    candidates = tuple(candidate(name, workshop.model) for name in names)
    return EvaluationInputs(**({"candidates": candidates, "metrics": metrics} | options))


def planned(workshop: Workshop, asked: EvaluationInputs | None, **rows: Any) -> PreflightConfig:  # noqa: ANN401  (fields)
    config = workshop.preflight_config()
    dataset = config.dataset.model_copy(update={"rows": config.dataset.rows.model_copy(update=rows)})
    return config.model_copy(update={"evaluation": asked, "dataset": dataset})


def refusal_before(config: PreflightConfig) -> UserError:
    with pytest.raises(UserError) as error:
        preflight(config, quiet_context())
    return error.value


def refusal_after(config: PreflightConfig) -> UserError:
    """Return what the evaluation would say, were it to run."""
    assert config.evaluation is not None
    base: CandidateInput = config.evaluation.candidates[0]
    evaluated = EvaluateConfig(
        job=config.job,
        dataset=config.dataset,
        output_path=config.output_path + "-report",
        generation=GenerationSpec(max_new_tokens=2),
        **{name: getattr(config.evaluation, name) for name in EvaluationInputs.model_fields if name != "candidates"},
        candidates=(base,),
    )
    with pytest.raises(UserError) as error:
        evaluate(evaluated, quiet_context())
    return error.value


def words(error: UserError) -> tuple[Reason, str, str]:
    return error.reason, error.message, error.hint


@pytest.mark.parametrize(
    ("metric", "rows", "fragment"),
    [
        (Metric.JSON_MATCH, {}, "references are no JSON"),
        (Metric.ACCURACY, {"completion": "{message}", "prompt": "{answer}"}, "distinct completions"),
        (Metric.MACRO_F1, {"completion": "always"}, "two different completions"),
        (Metric.ACCURACY, {"choices": "offered"}, "need to be two or more"),
        (Metric.ACCURACY, {"choices": "missing"}, "missing"),
        (Metric.ROUGE_L, {"prompt": None, "completion": None, "text": "message"}, "rows of plain text"),
    ],
)
def test_a_metric_that_does_not_suit_the_rows_is_refused_before_training_in_the_same_words(
    workshop: Workshop, metric: Metric, rows: dict[str, Any], fragment: str
) -> None:
    lines = [row | {"offered": ["red", "green"]} for row in colour_rows(100)]
    (workshop.data / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = planned(workshop, evaluation(workshop, Metric.PERPLEXITY, metric), **rows)

    before = refusal_before(config)

    assert fragment in before.message
    assert words(before) == words(refusal_after(config))


@pytest.mark.parametrize("metric", [Metric.EXACT_MATCH, Metric.LATENCY, Metric.ACCURACY])
def test_rows_that_leave_no_room_in_the_context_are_refused_before_training(tmp_path: Path, metric: Metric) -> None:
    long = [row | {"message": f"{row['message']} {'black ' * 90}"} for row in colour_rows(60)]
    data = write_rows(tmp_path / "data", colour_rows(60) + long)
    workshop = Workshop(tmp_path, tiny_gpt2(tmp_path / "model", positions=64), data)
    config = planned(workshop, evaluation(workshop, metric))
    config = config.model_copy(update={"training": config.training.model_copy(update={"max_lost_rows": 0.9})})
    unasked = config.model_copy(update={"evaluation": None})

    assert preflight(unasked, quiet_context()).dataset.masked_rows == 60
    before = refusal_before(config)

    assert before.reason is Reason.UNSUPPORTED
    assert "has 64" in before.message
    assert words(before) == words(refusal_after(config))


def test_a_gate_on_tokens_that_a_reference_cuts_otherwise_is_refused_before_training(
    workshop: Workshop, tmp_path: Path
) -> None:
    stranger = tiny_llama(tmp_path / "stranger", seed=9)
    core = json.loads((stranger / "tokenizer.json").read_text())
    core["model"]["merges"] = core["model"]["merges"][:20]
    (stranger / "tokenizer.json").write_text(json.dumps(core))
    candidates = (
        candidate("base", workshop.model),
        candidate("tuned", workshop.model),
        candidate("reference", stranger),
    )
    gate = (GateRule(metric=Metric.PERPLEXITY, non_inferior=1.0, against="reference"),)

    error = refusal_before(planned(workshop, evaluation(workshop, Metric.PERPLEXITY, candidates=candidates, gate=gate)))

    assert error.reason is Reason.METRIC_UNAVAILABLE
    assert "not comparable between tuned and reference" in error.message


def test_metrics_that_suit_the_rows_pass_and_no_evaluation_is_checked_where_there_is_none(workshop: Workshop) -> None:
    suiting = [metric for metric in Metric if metric not in {Metric.JSON_MATCH, Metric.CUSTOM, Metric.TASKS}]
    assert preflight(planned(workshop, evaluation(workshop, *suiting)), quiet_context()).dataset.rows == 100
    assert preflight(planned(workshop, None), quiet_context()).dataset.rows == 100
