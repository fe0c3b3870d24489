"""Metrics of the user's own: their scores have intervals, tests and gates, and whatever is wrong with one is said."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.evaluation import bare_context, candidate, evaluate_config, program_environment
from tests.support.processes import wait_until

from finetuning_api.metrics import GateRule, Metric, Verdict
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import CustomMetricInput, EvaluateConfig, Provenance
from finetuning_evaluator.evaluate import evaluate
from finetuning_evaluator.results import Results
from finetuning_workload.errors import UserError
from finetuning_workload.evaluated import read_inputs

WORDS = """
import statistics, os
from helper import words

def score(predictions, references, rows):
    assert all("message" in row and "triage" in row for row in rows)
    assert [row["triage"] for row in rows] == references
    print("scoring", len(predictions))
    return [words(text) for text in predictions]

def fewer(predictions, references, rows):
    return score(predictions, references, rows)
"""


def custom(world: Path, folder: Path, source: str | bytes, *, function: str = "score") -> EvaluateConfig:
    """Return an evaluation by a file with this content."""
    metric = folder / "metric"
    metric.mkdir()
    (metric / "metric.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    (metric / "helper.py").write_text("def words(text):\n    return len(text.split())\n")
    config = evaluate_config(
        [candidate("base", world / "base"), candidate("tuned", world / "base", world / "adapter")],
        data=world / "rows.jsonl",
        output=folder / "report",
        metrics=(Metric.CUSTOM, Metric.EXACT_MATCH),
        gate=(GateRule(metric="words", min_delta=1000), GateRule(metric="words", min=-1)),
    )
    told = CustomMetricInput(
        name="words",
        path=str(metric),
        file="metric.py",
        function=function,
        provenance=Provenance(source="configmap://metric", digest="sha256:1"),
    )
    return config.model_copy(update={"custom": (told,)})


def results_of(config: EvaluateConfig) -> Results:
    return Results.model_validate_json((Path(config.output_path) / "results.json").read_bytes())


def refused(config: EvaluateConfig) -> UserError:
    with pytest.raises(UserError) as caught:
        evaluate(config, bare_context())
    assert caught.value.reason is Reason.METRIC_UNAVAILABLE
    assert not (Path(config.output_path) / "manifest.json").exists()
    return caught.value


def test_its_scores_are_a_metric_like_any_other(world: Path, tmp_path: Path) -> None:
    config = custom(world, tmp_path, WORDS)

    evaluate(config, bare_context())

    results = results_of(config)
    metric = results.metrics[0]
    assert (metric.metric, metric.lower_is_better, metric.units) == ("words", False, results.dataset.rows)
    lines = (tmp_path / "report" / "samples.jsonl").read_text().splitlines()
    from finetuning_evaluator.samples import Sample

    samples = [Sample.model_validate_json(line) for line in lines]
    for value in metric.values:
        counts = [len(sample.outputs[value.candidate].split()) for sample in samples]
        assert value.value == pytest.approx(sum(counts) / len(counts))
        assert [sample.scores[value.candidate]["words"] for sample in samples] == counts
        assert value.ci_low is not None
    assert metric.signature == "words|score of metric.py|configmap://metric sha256:1"
    (comparison,) = metric.comparisons
    assert comparison.wins + comparison.ties + comparison.losses == results.dataset.rows
    assert [gate.result.verdict for gate in results.gates] == [Verdict.FAIL, Verdict.PASS]
    assert "words" in (tmp_path / "report" / "report.md").read_text()


def test_several_are_gated_by_name_each_in_its_own_direction(world: Path, tmp_path: Path) -> None:
    config = custom(world, tmp_path, WORDS)
    (words,) = config.custom
    fewer = words.model_copy(update={"name": "fewer-words", "function": "fewer", "lower_is_better": True})
    rules = tuple(GateRule(metric=name, min_delta=delta) for name in ("words", "fewer-words") for delta in (-1e3, 1e3))

    evaluate(config.model_copy(update={"custom": (words, fewer), "gate": rules}), bare_context())

    more, less, _ = (results := results_of(config)).metrics
    assert [(each.metric, each.lower_is_better) for each in (more, less)] == [("words", False), ("fewer-words", True)]
    (won,), (lost,) = more.comparisons, less.comparisons
    assert won.delta == lost.delta
    assert (won.wins, won.losses) == (lost.losses, lost.wins)
    assert won.wins != won.losses
    assert [each.result.metric for each in results.gates] == ["words", "words", "fewer-words", "fewer-words"]
    assert [each.result.verdict for each in results.gates] == [Verdict.PASS, Verdict.FAIL] * 2
    assert f"fewer-words improved by {-won.delta:.4g} over base" in results.gates[2].result.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def score(a, b, c):\n    return [1\n", "metric.py, line 2: '[' was never closed"),
        ("def other(a, b, c):\n    return 1\n", "metric.py has no function score; it defines other"),
        ("", "metric.py has no function score; it defines nothing"),
        (b"x = '\xff'", "metric.py, line 1: (unicode error)"),
    ],
)
def test_what_can_be_seen_without_running_it_is_told_before_a_model_is_loaded(
    world: Path, tmp_path: Path, source: str | bytes, message: str
) -> None:
    config = custom(world, tmp_path, source)

    with pytest.raises(UserError) as caught:
        read_inputs(config, config.dataset)

    assert caught.value.reason is Reason.METRIC_UNAVAILABLE
    assert caught.value.message.startswith(f"words cannot be computed: {message}")
    assert caught.value.hint


def test_a_file_that_is_not_there_is_told_with_those_that_are(world: Path, tmp_path: Path) -> None:
    config = custom(world, tmp_path, WORDS)
    (named,) = config.custom
    elsewhere = config.model_copy(update={"custom": (named.model_copy(update={"file": "tone.py"}),)})

    error = refused(elsewhere)

    assert error.message == "words cannot be computed: configmap://metric holds no tone.py"
    assert error.hint.startswith("It holds helper.py, metric.py;")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nowhere\nscore = len", "metric.py cannot be loaded, line 1: ModuleNotFoundError: No module named"),
        ("score = 3", "score in metric.py is no function"),
        ("def score(a, b, c):\n    return [1, 2]", "score in metric.py returned 2 values for "),
        ("def score(a, b, c):\n    return None", "score in metric.py failed: TypeError: 'NoneType' object is not"),
        ("def score(a, b, c):\n    return [float('nan') for _ in a]", "score in metric.py returned 'nan' for row "),
        ("def score(a, b, c):\n    return ['1' for _ in a]", "score in metric.py returned '1' for row "),
        (
            "def score(a, b, c):\n    x = {}\n    return x['tone']",
            "score in metric.py failed, line 3: KeyError: 'tone'",
        ),
        ("def score(a):\n    return a", "score in metric.py failed: TypeError: score() takes 1 positional argument"),
        ("import os\ndef score(a, b, c):\n    os._exit(3)", "metric.py ended with exit code 3"),
        ("import sys\ndef score(a, b, c):\n    sys.exit()", "metric.py ended the process before it gave an answer"),
        ("import os\ndef score(a, b, c):\n    os.kill(os.getpid(), 11)", "metric.py was killed by signal 11"),
    ],
)
def test_whatever_is_wrong_with_the_function_is_said(world: Path, tmp_path: Path, source: str, message: str) -> None:
    error = refused(custom(world, tmp_path, source))

    assert error.message.startswith(f"words cannot be computed: {message}")


def test_an_evaluation_that_is_stopped_takes_the_function_with_it(world: Path, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    endless = (
        f"import pathlib, time\ndef score(a, b, c):\n    pathlib.Path({str(mark)!r}).touch()\n    time.sleep(600)\n"
    )
    config = custom(world, tmp_path, endless)
    (tmp_path / "config.json").write_text(config.to_json())
    environment = program_environment(tmp_path / "config.json", tmp_path / "words.json")
    process = subprocess.Popen([sys.executable, "-m", "finetuning_evaluator"], env=environment)
    wait_until(mark.exists, what="the function runs")

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=60) == ExitCode.INTERRUPTED
