"""The program evaluates real candidates, refuses what would mislead, and goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.evaluation import (
    candidate,
    evaluate_config,
    program_environment,
    run_program,
    write_adapter,
    write_rows,
)
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.processes import wait_until
from transformers import AutoModelForCausalLM

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.finetuningjob import GenerationSpec
from finetuning_api.metrics import GateRule, Metric, Verdict
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import CandidateInput, EvaluateConfig, EvaluateResult
from finetuning_evaluator.evaluate import evaluate
from finetuning_evaluator.metrics.readability import READABILITY_METRICS
from finetuning_evaluator.parts import Entry
from finetuning_evaluator.results import Results
from finetuning_workload.artifact import require_intact
from finetuning_workload.candidates import is_switchable, loaded, plan_loads
from finetuning_workload.errors import Interrupted, UserError
from finetuning_workload.program import Context, StopFlag

# Some of these models write no word, which has no readability.
ALL_METRICS = tuple(each for each in Metric if each not in {Metric.CUSTOM, Metric.TASKS, *READABILITY_METRICS})
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny_llama(folder / "base")
    tiny_llama(folder / "other", seed=5)
    tiny_gpt2(folder / "gpt2")
    write_adapter(folder / "base", folder / "adapter")
    write_adapter(folder / "base", folder / "nothing", scale=0.0)
    write_rows(folder / "rows.jsonl")
    return folder


def base(world: Path) -> CandidateInput:
    return candidate("base", world / "base")


def tuned(world: Path) -> CandidateInput:
    return candidate("tuned", world / "base", world / "adapter")


def context(stop: StopFlag | None = None) -> Context:
    return Context(stop=StopFlag() if stop is None else stop, environment={"OMP_NUM_THREADS": "1"})


def results_of(config: EvaluateConfig) -> Results:
    return Results.model_validate_json((Path(config.output_path) / "results.json").read_bytes())


def refused(config: EvaluateConfig) -> UserError:
    with pytest.raises(UserError) as caught:
        evaluate(config, context())
    assert not (Path(config.output_path) / "manifest.json").exists()
    return caught.value


def test_base_tuned_and_reference_are_compared_on_every_metric(world: Path, tmp_path: Path) -> None:
    rules = [GateRule(metric=Metric.COMPLETION_PERPLEXITY, max=1e6), GateRule(metric=Metric.ROUGE_L, min_delta=0.9)]
    config = evaluate_config(
        [base(world), tuned(world), candidate("reference", world / "other")],
        data=world / "rows.jsonl",
        output=tmp_path / "report",
        metrics=ALL_METRICS,
        gate=rules,
    )

    finished = run_program("finetuning_evaluator", config.to_json(), tmp_path / "run")

    assert finished.exit_code == ExitCode.DONE, finished.log
    result = finished.last_words.result
    assert isinstance(result, EvaluateResult)
    assert [row.metric for row in result.rows] == list(ALL_METRICS)
    assert all(
        None not in (row.base, row.tuned, row.reference, row.delta, row.ci_low, row.ci_high) for row in result.rows
    )
    assert [gate.verdict for gate in result.gates] == [Verdict.PASS, Verdict.FAIL]
    assert result.verdict is Verdict.FAIL
    manifest = require_intact(tmp_path / "report")
    assert [file.path for file in manifest.files] == ["report.html", "report.md", "results.json", "samples.jsonl"]
    results = results_of(config)
    assert [found.name for found in results.candidates] == ["base", "tuned", "reference"]
    assert len((tmp_path / "report" / "samples.jsonl").read_text().splitlines()) == results.dataset.rows
    for found in results.candidates:
        assert found.outputs is not None
        assert found.outputs.length_ratio is not None
        assert None not in (found.speed.scored, found.speed.generated, found.speed.alone)
    first = json.loads((tmp_path / "report" / "samples.jsonl").read_text().splitlines()[0])
    assert set(first["outputs"]) == {"base", "tuned", "reference"}
    assert set(first["scores"]["tuned"]) == {metric.value for metric in ALL_METRICS} - {
        "cola",
        "cola-pairs",
        "general-perplexity",
        "latency",
    }


def test_with_its_adapter_off_a_shared_load_is_the_base_model_and_with_it_on_the_tuned_one(world: Path) -> None:
    ids = torch.arange(5, 40)[None]
    untouched = AutoModelForCausalLM.from_pretrained(world / "base").eval()
    with torch.inference_mode():
        expected_base = untouched(input_ids=ids).logits
        expected_tuned = PeftModel.from_pretrained(untouched, str(world / "adapter")).eval()(input_ids=ids).logits
    (load,) = plan_loads([base(world), tuned(world)])

    found = {}
    with loaded(load, dtype=torch.float32, device=CPU) as candidates, torch.inference_mode():
        for item in (*candidates, *reversed(candidates)):
            with item.active():
                found[item.candidate.name] = item.model(input_ids=ids).logits

    assert torch.equal(found["base"], expected_base)
    assert torch.equal(found["tuned"], expected_tuned)
    assert not torch.equal(found["base"], found["tuned"])


def test_an_adapter_that_trained_biases_is_loaded_apart_from_its_base(world: Path, tmp_path: Path) -> None:
    biased = candidate("tuned", world / "gpt2", write_adapter(world / "gpt2", tmp_path / "biased", bias="all"))

    assert is_switchable(world / "adapter")
    assert not is_switchable(tmp_path / "biased")
    loads = plan_loads([candidate("base", world / "gpt2"), biased])
    assert [[item.name for item in load.candidates] for load in loads] == [["base"], ["tuned"]]


def test_candidates_of_different_models_are_loaded_one_after_another(world: Path) -> None:
    loads = plan_loads([base(world), candidate("reference", world / "other"), tuned(world)])

    assert [[item.name for item in load.candidates] for load in loads] == [["base", "tuned"], ["reference"]]


def test_an_adapter_that_changes_nothing_is_refused_before_any_work(world: Path, tmp_path: Path) -> None:
    idle = candidate("tuned", world / "base", world / "nothing")
    config = evaluate_config([base(world), idle], data=world / "rows.jsonl", output=tmp_path / "report")

    error = refused(config)

    assert error.reason is Reason.CANDIDATES_IDENTICAL
    assert "base and tuned" in error.message
    assert "zero" in error.hint
    assert not list((tmp_path / "report" / ".partial").glob("*likelihood*"))


def test_a_model_compared_with_itself_is_refused(world: Path, tmp_path: Path) -> None:
    twin = candidate("reference", world / "base")
    config = evaluate_config([base(world), twin], data=world / "rows.jsonl", output=tmp_path / "report")

    assert refused(config).reason is Reason.CANDIDATES_IDENTICAL


def test_a_copy_of_the_same_weights_is_found_out_by_its_logits(world: Path, tmp_path: Path) -> None:
    copy = candidate("tuned", tiny_llama(tmp_path / "copy"))
    config = evaluate_config([base(world), copy], data=world / "rows.jsonl", output=tmp_path / "report")

    assert refused(config).reason is Reason.CANDIDATES_IDENTICAL


def test_a_reference_with_another_tokenizer_keeps_its_values_but_is_not_subtracted(world: Path, tmp_path: Path) -> None:
    stranger = tiny_llama(tmp_path / "stranger", seed=9)
    core = json.loads((stranger / "tokenizer.json").read_text())
    core["model"]["merges"] = core["model"]["merges"][:20]
    (stranger / "tokenizer.json").write_text(json.dumps(core))
    config = evaluate_config(
        [base(world), tuned(world), candidate("reference", stranger)],
        data=world / "rows.jsonl",
        output=tmp_path / "report",
        metrics=(Metric.PERPLEXITY, Metric.BITS_PER_BYTE),
    )

    result = evaluate(config, context())

    perplexity, bits = results_of(config).metrics
    assert perplexity.value("reference") is not None
    assert perplexity.comparison("tuned", "base") is not None
    assert perplexity.comparison("tuned", "reference") is None
    assert bits.comparison("tuned", "reference") is not None
    assert any("different tokenizers" in warning for warning in result.warnings)

    gated = config.model_copy(
        update={"gate": (GateRule(metric=Metric.PERPLEXITY, non_inferior=1.0, against="reference"),)}
    )
    with pytest.raises(UserError, match="not comparable"):
        evaluate(gated, context())


def test_rows_of_one_group_are_resampled_together(world: Path, tmp_path: Path) -> None:
    found = {}
    for name, group_by in (("rows", None), ("groups", "triage")):
        rows = RowFormat(
            prompt="{message}\n", completion="{triage}", split=DatasetSplit(test=0.5, seed=1, group_by=group_by)
        )
        config = evaluate_config(
            [base(world), tuned(world)],
            data=world / "rows.jsonl",
            output=tmp_path / name,
            metrics=(Metric.ACCURACY, Metric.COLA),
            rows=rows,
        )
        evaluate(config, context())
        found[name] = results_of(config)

    grouped, single = found["groups"], found["rows"]
    groups = grouped.dataset.groups
    assert groups is not None
    assert 1 < groups < 6
    assert grouped.metrics[0].comparisons[0].samples == grouped.dataset.rows > groups
    assert [each.metrics[0].comparisons[0].test for each in (single, grouped)] == [
        "exact McNemar",
        "paired permutation",
    ]
    assert grouped.metrics[1] == single.metrics[1], "cola has its own sentences"
    assert [warning for warning in grouped.warnings if "rough below" in warning] == [
        f"groups among the held-out rows: only {groups}, intervals are rough below 30"
    ]
    assert single.dataset.groups is None


def test_rows_on_both_sides_of_the_split_are_told(world: Path, tmp_path: Path) -> None:
    lines = write_rows(tmp_path / "once.jsonl").read_text().splitlines()
    twice = [json.dumps(json.loads(line) | {"half": half}) for half in "abcd" for line in lines]
    (tmp_path / "twice.jsonl").write_text("\n".join(twice))
    rows = RowFormat(prompt="{message}\n", completion="{triage}", split=DatasetSplit(test=0.5, seed=2, group_by="half"))
    config = evaluate_config(
        [base(world), tuned(world)], data=tmp_path / "twice.jsonl", output=tmp_path / "report", rows=rows
    )

    result = evaluate(config, context())

    found = results_of(config).dataset
    assert found.overlap is not None
    assert (found.overlap.exact, found.overlap.share) == (found.rows, 1.0)
    assert found.overlap.training_rows + found.rows == len(twice)
    assert any(
        warning.startswith("100.0% of the held-out rows are in the training rows") for warning in result.warnings
    )


@pytest.mark.parametrize("metric", [metric for metric in Metric if metric.facts.needs_completions])
def test_plain_text_has_no_answers_to_compare(world: Path, tmp_path: Path, metric: Metric) -> None:
    plain = RowFormat(text="message", split=DatasetSplit(test=0.2, seed=1))
    config = evaluate_config(
        [base(world), tuned(world)],
        data=world / "rows.jsonl",
        output=tmp_path / "report",
        metrics=(Metric.PERPLEXITY, metric),
        rows=plain,
    )

    error = refused(config)

    assert error.reason is Reason.METRIC_UNAVAILABLE
    assert metric.value in error.message


def with_choices(source: Path, target: Path, *, offered: str) -> Path:
    """Copy rows with a column of answers to choose from."""
    lines = (json.loads(line) for line in source.read_text().splitlines())
    target.write_text("\n".join(json.dumps(line | {"options": json.loads(offered)}) for line in lines))
    return target


CHOOSING = RowFormat(
    prompt="{message}\n", completion="{triage}", choices="options", split=DatasetSplit(test=0.2, seed=1)
)


def test_rows_with_their_own_answers_are_judged_by_those(world: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (world / "rows.jsonl").read_text().splitlines()]
    two = (json.dumps(line | {"options": [line["triage"], f"none {number}"]}) for number, line in enumerate(lines))
    (tmp_path / "own.jsonl").write_text("\n".join(two))
    config = evaluate_config(
        [base(world), tuned(world)],
        data=tmp_path / "own.jsonl",
        output=tmp_path / "report",
        metrics=(Metric.ACCURACY,),
        rows=CHOOSING,
    )

    evaluate(config, context())

    (accuracy,) = results_of(config).metrics
    assert accuracy.signature.endswith("choices=of each row")
    assert all(value.samples == results_of(config).dataset.rows for value in accuracy.values)
    with pytest.raises(UserError, match="macro-f1 needs the same answers in every row"):
        evaluate(config.model_copy(update={"metrics": (Metric.ACCURACY, Metric.MACRO_F1)}), context())


def test_the_same_answers_in_every_row_give_the_numbers_of_the_data_set_s_distinct_completions(
    world: Path, tmp_path: Path
) -> None:
    every = sorted({json.loads(line)["triage"] for line in (world / "rows.jsonl").read_text().splitlines()})
    data = with_choices(world / "rows.jsonl", tmp_path / "same.jsonl", offered=json.dumps(every))
    found = {}
    for name, rows in (("own", CHOOSING), ("shared", CHOOSING.model_copy(update={"choices": None}))):
        config = evaluate_config(
            [base(world), tuned(world)],
            data=data,
            output=tmp_path / name,
            metrics=(Metric.ACCURACY, Metric.MACRO_F1),
            rows=rows,
        )
        found[name] = evaluate(config, context()).rows

    assert found["own"] == found["shared"]


@pytest.mark.parametrize(
    ("offered", "reason", "words"),
    [
        ('["red", "green"]', Reason.METRIC_UNAVAILABLE, "the answers ['red', 'green'] need to be two or more, and"),
        ("[]", Reason.METRIC_UNAVAILABLE, "the answers [] need to be two or more"),
        ('"red or green"', Reason.DATASET_UNREADABLE, "column 'options': spec.dataset.choices needs a list of answers"),
    ],
)
def test_answers_that_are_none_are_refused(
    world: Path, tmp_path: Path, offered: str, reason: Reason, words: str
) -> None:
    config = evaluate_config(
        [base(world), tuned(world)],
        data=with_choices(world / "rows.jsonl", tmp_path / "wrong.jsonl", offered=offered),
        output=tmp_path / "report",
        metrics=(Metric.ACCURACY,),
        rows=CHOOSING,
    )

    error = refused(config)

    assert error.reason is reason
    assert words in error.message


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ((Metric.JSON_MATCH,), ("references are no JSON", "'Message ")),
        ((Metric.ACCURACY,), ("accuracy: ", "120 distinct completions")),
        ((Metric.MACRO_F1,), ("macro-f1: ", "120 distinct completions")),
        ((Metric.ACCURACY, Metric.MACRO_F1), ("accuracy and macro-f1: ", "120 distinct completions")),
    ],
)
def test_free_text_is_refused_by_the_names_of_the_metrics_that_it_does_not_suit(
    world: Path, tmp_path: Path, metrics: tuple[Metric, ...], words: tuple[str, ...]
) -> None:
    free = RowFormat(prompt="{triage}", completion="{message}", split=DatasetSplit(test=0.2, seed=3))
    config = evaluate_config(
        [base(world), tuned(world)], data=world / "rows.jsonl", output=tmp_path / "report", metrics=metrics, rows=free
    )

    error = refused(config)

    assert error.reason is Reason.METRIC_UNAVAILABLE
    assert [each for each in words if each not in error.message] == []
    assert [metric for metric in metrics if metric not in error.hint] == []


def test_pairs_are_refused_where_nothing_can_come_before_a_sentence(world: Path, tmp_path: Path) -> None:
    bare = tiny_llama(tmp_path / "bare", seed=4)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": None, "eos_token": None}))
    config = evaluate_config(
        [candidate("base", bare)], data=world / "rows.jsonl", output=tmp_path / "report", metrics=(Metric.COLA_PAIRS,)
    )

    error = refused(config)

    assert error.reason is Reason.METRIC_UNAVAILABLE
    assert "neither a BOS nor an EOS" in error.message


def test_general_text_cut_differently_by_two_tokenizers_is_not_subtracted(world: Path, tmp_path: Path) -> None:
    stranger = tiny_llama(tmp_path / "stranger", seed=9)
    core = json.loads((stranger / "tokenizer.json").read_text())
    # A merge that the general text needs and the rows do not: the rows alone look alike to both tokenizers.
    core["model"]["vocab"]["Tw"] = core["model"]["vocab"].pop(list(core["model"]["vocab"])[-1])
    core["model"]["merges"] = [["T", "w"], *core["model"]["merges"][:-1]]
    (stranger / "tokenizer.json").write_text(json.dumps(core))
    config = evaluate_config(
        [base(world), tuned(world), candidate("reference", stranger)],
        data=world / "rows.jsonl",
        output=tmp_path / "report",
        metrics=(Metric.PERPLEXITY, Metric.GENERAL_PERPLEXITY),
    )

    evaluate(config, context())

    for result in results_of(config).metrics:
        assert result.comparison("tuned", "base") is not None
        assert result.comparison("tuned", "reference") is None


def test_a_model_that_lost_its_general_knowledge_is_pointed_out(world: Path, tmp_path: Path) -> None:
    sure = tiny_llama(tmp_path / "sure", seed=2, tied=False)
    model = AutoModelForCausalLM.from_pretrained(sure)
    with torch.no_grad():
        # Sure of random guesses: far worse than a model that knows nothing and spreads its probabilities.
        model.lm_head.weight.mul_(50)
    model.save_pretrained(sure)
    config = evaluate_config(
        [base(world), candidate("tuned", sure)],
        data=world / "rows.jsonl",
        output=tmp_path / "report",
        metrics=(Metric.GENERAL_PERPLEXITY,),
    )

    result = evaluate(config, context())

    assert any(warning.startswith("tuned is worse than base on general text") for warning in result.warnings)
    assert results_of(config).metrics[0].units == 36


def test_a_finished_evaluation_returns_at_once_and_a_damaged_one_is_made_again(world: Path, tmp_path: Path) -> None:
    config = evaluate_config([base(world), tuned(world)], data=world / "rows.jsonl", output=tmp_path / "report")
    first = evaluate(config, context())
    created = results_of(config).created_at

    assert evaluate(config, context()) == first
    assert results_of(config).created_at == created

    (tmp_path / "report" / "report.md").write_text("damaged")
    assert evaluate(config, context()) == first
    assert results_of(config).created_at > created
    require_intact(tmp_path / "report")


def test_another_gate_is_decided_anew_on_the_same_folder(world: Path, tmp_path: Path) -> None:
    config = evaluate_config([base(world), tuned(world)], data=world / "rows.jsonl", output=tmp_path / "report")
    assert evaluate(config, context()).verdict is None

    gated = config.model_copy(update={"gate": (GateRule(metric=Metric.COMPLETION_PERPLEXITY, max=1e6),)})

    assert evaluate(gated, context()).verdict is Verdict.PASS


def test_a_stopped_evaluation_keeps_what_was_finished(world: Path, tmp_path: Path) -> None:
    config = evaluate_config([base(world), tuned(world)], data=world / "rows.jsonl", output=tmp_path / "report")
    stop = StopFlag()
    stop.set()

    with pytest.raises(Interrupted):
        evaluate(config, context(stop))


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
        assert process.poll() is None, "the program ended too early"
        os.sched_yield()
    pytest.fail(f"{pattern} did not appear")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_evaluation_goes_on_with_its_finished_parts(
    world: Path, tmp_path: Path, number: signal.Signals
) -> None:
    data = write_rows(tmp_path / "more.jsonl", rows=1500)
    config = evaluate_config(
        [base(world), tuned(world)],
        data=data,
        output=tmp_path / "report",
        metrics=(Metric.COMPLETION_PERPLEXITY, Metric.EXACT_MATCH, Metric.COLA),
    )
    (tmp_path / "config.json").write_text(config.to_json())
    environment = program_environment(tmp_path / "config.json", tmp_path / "last-words.json")
    command = [sys.executable, "-m", "finetuning_evaluator"]
    partial = tmp_path / "report" / ".partial"
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        part = wait_for(partial, "likelihood-*.json", process)
        process.send_signal(number)
        exit_code = process.wait(timeout=120)
    assert exit_code == (ExitCode.INTERRUPTED if number == signal.SIGTERM else -signal.SIGKILL)
    assert not (tmp_path / "report" / "manifest.json").exists()
    computed = Entry.model_validate_json(part.read_bytes()).origin

    evaluate(config, context())

    by_name = {found.name: found for found in results_of(config).candidates}
    assert by_name["base"].reused["likelihood"] == computed
    assert "cola" not in by_name["tuned"].reused
    assert not partial.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_generation_that_was_killed_goes_on_with_the_rows_that_it_lacks(
    world: Path, tmp_path: Path, number: signal.Signals
) -> None:
    data = write_rows(tmp_path / "more.jsonl", rows=600)
    whole, killed = (
        evaluate_config(
            [base(world), tuned(world)], data=data, output=tmp_path / name, metrics=(Metric.EXACT_MATCH,)
        ).model_copy(update={"generation": GenerationSpec(max_new_tokens=256)})
        for name in ("whole", "killed")
    )
    (tmp_path / "config.json").write_text(killed.to_json())
    environment = program_environment(tmp_path / "config.json", tmp_path / "last-words.json")
    command = [sys.executable, "-m", "finetuning_evaluator"]
    partial = tmp_path / "killed" / ".partial"
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        journal = wait_for(partial, "outputs-*.jsonl", process)
        wait_until(lambda: journal.stat().st_size > 0, what="a row is finished")
        process.send_signal(number)
        exit_code = process.wait(timeout=120)
    kept = len(journal.read_bytes().splitlines())
    # As a power cut leaves it.
    journal.write_bytes(journal.read_bytes() + b'{"row": 1, "sec')

    again = run_program("finetuning_evaluator", killed.to_json(), tmp_path / "again")
    evaluate(whole, context())

    rows = results_of(whole).dataset.rows
    assert exit_code == (ExitCode.INTERRUPTED if number == signal.SIGTERM else -signal.SIGKILL)
    assert 0 < kept < rows
    assert again.exit_code == ExitCode.DONE
    assert f"{kept} of {rows} completions of base are kept from an earlier attempt" in again.log
    assert (tmp_path / "killed" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert not partial.exists()


def test_a_resumed_evaluation_gives_the_numbers_of_an_undisturbed_one(world: Path, tmp_path: Path) -> None:
    metrics = (Metric.COMPLETION_PERPLEXITY, Metric.COLA)
    configs = [
        evaluate_config([base(world), tuned(world)], data=world / "rows.jsonl", output=tmp_path / name, metrics=metrics)
        for name in ("whole", "resumed")
    ]
    whole = evaluate(configs[0], context())

    class StopsAfterBase(StopFlag):
        def raise_if_set(self, message: str) -> None:
            if "tuned" in message:
                raise Interrupted(message)

    with pytest.raises(Interrupted):
        evaluate(configs[1], context(StopsAfterBase()))

    assert evaluate(configs[1], context()) == whole
    assert [set(found.reused) for found in results_of(configs[1]).candidates] == [{"likelihood", "cola"}, set()]


def test_a_candidate_that_writes_nothing_scores_zero_and_is_pointed_out(world: Path, tmp_path: Path) -> None:
    silent = tiny_llama(tmp_path / "silent", seed=2, tied=False)
    model = AutoModelForCausalLM.from_pretrained(silent)
    with torch.no_grad():
        # All logits are equal: the greatest is the first, the padding, which is no text.
        model.lm_head.weight.zero_()
    model.save_pretrained(silent)
    config = evaluate_config(
        [base(world), candidate("tuned", silent)],
        data=world / "rows.jsonl",
        output=tmp_path / "report",
        metrics=(Metric.ROUGE_L, Metric.EXACT_MATCH),
    )

    result = evaluate(config, context())

    assert {row.metric: row.tuned for row in result.rows} == {Metric.ROUGE_L: 0.0, Metric.EXACT_MATCH: 0.0}
    assert "tuned wrote nothing for 100% of the rows" in result.warnings
    told = results_of(config).candidates[1].outputs
    assert told is not None
    assert (told.empty, told.length_ratio) == (results_of(config).dataset.rows, 0.0)


def test_the_reason_of_a_refusal_reaches_the_last_words(world: Path, tmp_path: Path) -> None:
    idle = candidate("tuned", world / "base", world / "nothing")
    config = evaluate_config([base(world), idle], data=world / "rows.jsonl", output=tmp_path / "report")

    finished = run_program("finetuning_evaluator", config.to_json(), tmp_path / "run")

    assert finished.exit_code == ExitCode.USER_ERROR
    assert finished.last_words.reason is Reason.CANDIDATES_IDENTICAL
    assert "Traceback" not in finished.log
