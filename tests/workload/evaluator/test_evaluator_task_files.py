"""What of a task file is not supported is told before a model is loaded, and the rest is a metric like any other."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from tests.support.evaluation import bare_context, candidate, evaluate_config, write_adapter
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.task_folder import COLOURS, write_task

from finetuning_api.metrics import GateRule, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import EvaluateConfig
from finetuning_evaluator.evaluate import evaluate
from finetuning_evaluator.folder_tasks import TaskScores, filtered, observe, score
from finetuning_evaluator.results import Results
from finetuning_evaluator.samples import TaskSample
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import UserError
from finetuning_workload.evaluated import read_inputs
from finetuning_workload.models import load_base_model, load_tokenizer
from finetuning_workload.task_files import load_task


def evaluation(world: Path, folder: Path, *rules: GateRule, **changes: Any) -> EvaluateConfig:  # noqa: ANN401
    config = evaluate_config(
        [candidate("base", world / "base"), candidate("tuned", world / "base", world / "adapter")],
        data=world / "rows.jsonl",
        output=folder / "report",
        metrics=(Metric.TASKS, Metric.COMPLETION_PERPLEXITY),
        gate=rules,
    )
    return config.model_copy(update={"tasks": (write_task(folder / "tasks", **changes),)})


def results_of(config: EvaluateConfig) -> Results:
    return Results.model_validate_json((Path(config.output_path) / "results.json").read_bytes())


def test_its_metrics_have_intervals_tests_and_gates_like_any_other(world: Path, tmp_path: Path) -> None:
    rules = (GateRule(metric="colours.acc", min=2.0), GateRule(metric="colours.acc_norm", non_inferior=1.0))
    config = evaluation(world, tmp_path, *rules)

    evaluate(config, bare_context())

    results = results_of(config)
    assert [metric.metric for metric in results.metrics] == [
        "colours.acc",
        "colours.acc_norm",
        "completion-perplexity",
    ]
    metric = results.metrics[0]
    assert (metric.units, metric.lower_is_better) == (23, False)
    for value in metric.values:
        assert value.samples == 23
        assert value.ci_low is not None
        assert value.ci_high is not None
        assert 0 <= value.ci_low <= value.value <= value.ci_high <= 1
    (comparison,) = metric.comparisons
    assert (comparison.candidate, comparison.against, comparison.test) == ("tuned", "base", "exact McNemar")
    assert comparison.wins + comparison.ties + comparison.losses == 23
    assert [gate.result.verdict for gate in results.gates] == [Verdict.FAIL, Verdict.PASS]
    for name in ("report.md", "report.html"):
        assert "colours.acc_norm" in (tmp_path / "report" / name).read_text()


def test_its_documents_are_samples_with_what_every_candidate_answered(world: Path, tmp_path: Path) -> None:
    config = evaluation(world, tmp_path)

    evaluate(config, bare_context())

    lines = (tmp_path / "report/samples/colours.jsonl").read_text().splitlines()
    samples = [TaskSample.model_validate_json(line) for line in lines]
    assert [sample.row_id for sample in samples] == [str(number) for number in range(23)]
    second = samples[1]
    assert second.prompt == "Question 1: what is the colour of the thing number x?\nAnswer:"
    assert (second.reference, second.choices) == (COLOURS[1], COLOURS)
    for name in ("base", "tuned"):
        told = [sample.log_likelihoods[name] for sample in samples]
        taken = [COLOURS[likelihoods.index(max(likelihoods))] for likelihoods in told]
        assert [sample.outputs[name] for sample in samples] == taken
        scores = [sample.scores[name] for sample in samples]
        right = [float(answer == sample.reference) for answer, sample in zip(taken, samples, strict=True)]
        assert [score["colours.acc"] for score in scores] == right
        for metric in results_of(config).metrics[:2]:
            value = metric.value(name)
            assert value is not None
            assert fmean(score[metric.metric] or 0 for score in scores) == pytest.approx(value.value)
    assert samples[0].log_likelihoods["base"] != samples[0].log_likelihoods["tuned"]
    assert "All rows are in samples/colours.jsonl." in (tmp_path / "report/report.html").read_text()
    require_intact(tmp_path / "report")


def test_documents_of_texts_are_samples_with_what_was_written_or_how_likely_it_is(world: Path, tmp_path: Path) -> None:
    likely: dict[str, Any] = {"output_type": "loglikelihood", "doc_to_target": "colour"}
    written: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_target": "{{[colour, 'rot']}}",
        "generation_kwargs": {"max_gen_toks": 4},
        "filter_list": [{"name": "x", "filter": [{"function": "regex", "fallback": "no number"}]}],
    }
    samples = []
    for kind in (likely, written):
        folder = tmp_path / kind["output_type"]
        evaluate(evaluation(world, folder, **kind, doc_to_choice=None), bare_context())
        lines = (folder / "report/samples/colours.jsonl").read_text().splitlines()
        samples.append(TaskSample.model_validate_json(lines[0]))

    assert [(sample.reference, sample.choices) for sample in samples] == [("red", ()), ("red", ())]
    assert [set(sample.outputs) for sample in samples] == [set(), {"base", "tuned"}]
    assert [len(likelihoods) for likelihoods in samples[0].log_likelihoods.values()] == [1, 1]
    assert samples[1].log_likelihoods == {}
    assert [sample.also_right for sample in samples] == [(), ("rot",)]
    assert [sample.filtered for sample in samples] == [{}, {"base": "no number", "tuned": "no number"}]
    assert "red\nor\nrot" in (tmp_path / "generate_until/report/report.md").read_text()


def test_samples_of_a_task_that_is_no_longer_asked_for_are_not_left_behind(world: Path, tmp_path: Path) -> None:
    config = evaluation(world, tmp_path)
    evaluate(config, bare_context())

    evaluate(config.model_copy(update={"metrics": (Metric.COMPLETION_PERPLEXITY,), "tasks": ()}), bare_context())

    assert not (tmp_path / "report/samples").exists()
    assert (tmp_path / "report/samples.jsonl").exists()


def test_a_reference_and_an_earlier_result_answer_the_same_documents(world: Path, tmp_path: Path) -> None:
    rules = (
        GateRule(metric="colours.acc", non_inferior=1.0, against="reference"),
        GateRule(metric="colours.acc_norm", min_delta=1.5, against="served"),
    )
    other = tiny_gpt2(tmp_path / "other")
    served = write_adapter(world / "base", tmp_path / "adapter", seed=2)
    config = evaluation(world, tmp_path, *rules)
    more = (candidate("reference", other), candidate("served", world / "base", served))

    evaluate(config.model_copy(update={"candidates": (*config.candidates, *more)}), bare_context())

    results = results_of(config)
    names = ["base", "tuned", "reference", "served"]
    for metric in results.metrics[:2]:
        assert [value.candidate for value in metric.values] == names
        assert [(item.candidate, item.against) for item in metric.comparisons] == [
            ("tuned", against) for against in names if against != "tuned"
        ]
    assert [gate.result.verdict for gate in results.gates] == [Verdict.PASS, Verdict.FAIL]
    lines = (tmp_path / "report/samples/colours.jsonl").read_text().splitlines()
    samples = [TaskSample.model_validate_json(line) for line in lines]
    model = load_base_model(other, dtype=getattr(torch, results.environment.dtype), device=torch.device("cpu"))
    alone = score(model, load_tokenizer(other), load_task(config.tasks[0]), max_length=512)
    for sample, likelihoods in zip(samples, alone.log_likelihoods, strict=True):
        assert sample.log_likelihoods["reference"] == pytest.approx(likelihoods)
    assert len({tuple(each.log_likelihoods[name] for each in samples) for name in names}) == len(names)


@pytest.mark.parametrize(("metric", "right"), [("acc", [True, False]), ("acc_norm", [False, True])])
def test_a_normalized_answer_is_judged_by_its_likelihood_for_each_character(
    tmp_path: Path, metric: str, right: list[bool]
) -> None:
    task = load_task(write_task(tmp_path, doc_to_choice=["red", "a dark yellow"], doc_to_target="{{number % 2}}"))
    # Of three and of thirteen characters: the first is likelier, the second for each of its characters.
    scores = TaskScores(log_likelihoods=((-4.0, -8.0),) * len(task.documents))

    observed = observe(task, metric, scores).components[:2, 0]

    assert observed.tolist() == right


def test_scores_that_are_there_are_not_computed_again_unless_the_data_changed(world: Path, tmp_path: Path) -> None:
    first = evaluation(world, tmp_path).model_copy(update={"cache_path": str(tmp_path / "scores")})
    evaluate(first, bare_context())
    again = first.model_copy(update={"output_path": str(tmp_path / "again")})
    evaluate(again, bare_context())
    other = write_task(tmp_path / "tasks", doc_to_text="{{thing}}?")
    changed = first.model_copy(update={"output_path": str(tmp_path / "changed"), "tasks": (other,)})
    evaluate(changed, bare_context())

    reused = [results_of(each).candidates[1].reused for each in (first, again, changed)]
    assert [set(each) for each in reused] == [set(), {"tasks", "likelihood"}, {"likelihood"}]


WRITTEN = {"output_type": "generate_until", "doc_to_choice": None}


def of_filters(*steps: dict[str, Any]) -> dict[str, Any]:
    return {**WRITTEN, "filter_list": [{"name": "x", "filter": list(steps)}]}


REFUSED = [
    ({"doc_to_image": "picture"}, "colours.yaml: doc_to_image is not supported; supported are dataset_kwargs"),
    ({"proces_docs": "x"}, "colours.yaml: proces_docs is not supported"),
    ({"output_type": "multiple"}, "colours.yaml: output_type needs one of multiple_choice, loglikelihood"),
    ({"dataset_path": "super_glue"}, "colours.yaml: dataset_path needs json or parquet, got 'super_glue'"),
    ({"num_fewshot": "two"}, "colours.yaml: num_fewshot needs a whole number, got 'two'"),
    ({"generation_kwargs": {"do_sample": True}}, "colours.yaml: generation_kwargs.do_sample needs False, got true"),
    ({"metric_list": [{"metric": "f1"}]}, "metric_list has f1; of multiple_choice are supported acc, acc_norm"),
    ({"metric_list": [{"metric": "acc", "aggregation": "median"}]}, "metric_list has acc with other settings than"),
    ({"test_split": None}, "neither test_split nor validation_split is set"),
    ({"test_split": "dev"}, "there is no split 'dev' in dataset_kwargs.data_files; it has test, shown"),
    ({"dataset_kwargs": {"data_files": {"test": "../x.jsonl"}}}, "data_files names ../x.jsonl, which is no file in"),
    ({"doc_to_text": "{{nobody}}"}, "document 0: doc_to_text cannot be filled: 'nobody' is undefined"),
    ({"doc_to_text": "{{''.__class__.__mro__}}"}, "document 0: doc_to_text cannot be filled: access to attribute"),
    ({"doc_to_text": "{{number}}"}, "doc_to_text gives a number: choices as several contexts are not supported"),
    ({"doc_to_target": "{{thing}}"}, "document 0: doc_to_target gives 'thing number ', which is none of the 4 choices"),
    ({"doc_to_target": 4}, "document 0: doc_to_target gives 4, which is none of the 4 choices"),
    ({"doc_to_target": "{{[1, 4]}}"}, "document 0: doc_to_target gives [1, 4], which are not numbers of the 4 choices"),
    ({"doc_to_target": "{{[]}}"}, "document 0: doc_to_target gives [], which are not numbers of the 4 choices"),
    ({"doc_to_target": "{{[true, false]}}"}, "doc_to_target gives [True, False], which are not numbers of the 4"),
    ({"doc_to_target": "choices"}, "which are not numbers of the 4 choices"),
    ({"doc_to_target": "[1], [2]"}, "doc_to_target gives '[1], [2]', which is neither a list nor a text"),
    (
        {"doc_to_target": "{{[1] if number < 3 else 1}}"},
        "document 3: doc_to_target gives no list, that of document 0 a list: all need the same",
    ),
    (
        {"doc_to_target": "{{['red']}}", "output_type": "loglikelihood", "doc_to_choice": None},
        "doc_to_target gives a list: several right answers are supported of multiple_choice and generate_until",
    ),
    (
        {"doc_to_target": "{{[1]}}", "output_type": "generate_until", "doc_to_choice": None},
        "doc_to_target gives [1]; a list of texts that are not empty is needed",
    ),
    ({"doc_to_choice": "thing"}, "doc_to_choice gives 'thing number '"),
    ({"doc_to_choice": None}, "output_type multiple_choice needs doc_to_choice"),
    (of_filters({"function": "map"}), "filter_list.0.filter.0.function needs take_first, remove_whitespace, lowercase"),
    (of_filters({"function": "regex", "regex_pattern": "(x"}), "filter_list.0.filter.0.regex_pattern needs a regular"),
    (
        of_filters({"function": "regex", "group_select": "last"}),
        "filter.0.group_select needs a whole number, got 'last'",
    ),
    (
        of_filters({"function": "lowercase", "fallback": "x"}),
        "filter.0.fallback is a setting of regex, not of lowercase",
    ),
    (of_filters({"function": "take_first"}, {"function": "lowercase"}), "filter_list.0.filter: take_first comes last"),
    (
        {"filter_list": [{"name": "x", "filter": [{"function": "lowercase"}]}]},
        "filter_list.0.filter.0.function: lowercase is for generate_until",
    ),
    (
        {**WRITTEN, "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [",", "*"]}]},
        "metric_list.0.regexes_to_ignore.1 needs a regular expression, got '*'",
    ),
    ({"num_fewshot": 9, "fewshot_split": "shown"}, "num_fewshot is 9, but there are 7 rows to show"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_is_not_supported_is_told_by_file_key_and_what_is(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    task = write_task(tmp_path / "tasks", **changes)

    with pytest.raises(UserError) as caught:
        load_task(task)

    assert caught.value.reason is Reason.METRIC_UNAVAILABLE
    assert caught.value.message.startswith("the task colours cannot be evaluated: ")
    assert message in caught.value.message
    assert caught.value.hint


def test_code_in_a_file_is_refused_with_its_line(tmp_path: Path) -> None:
    task = write_task(tmp_path / "tasks")
    file = tmp_path / "tasks/colours.yaml"
    file.write_text("process_docs: !function utils.process\n" + file.read_text())
    (tmp_path / "tasks/other.yaml").write_text("task: other\nprocess_results: !function utils.results\n")

    with pytest.raises(UserError) as caught:
        load_task(task)

    assert "colours.yaml: line 1 has a tag that runs code or is unknown" in caught.value.message
    assert "!function" in caught.value.message


def test_a_name_that_no_file_has_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    task = write_task(tmp_path / "tasks").model_copy(update={"name": "colour"})

    with pytest.raises(UserError) as caught:
        load_task(task)

    assert "has no task of this name; it holds colours" in caught.value.message


def test_a_file_is_read_over_the_one_that_it_includes(tmp_path: Path) -> None:
    task = write_task(tmp_path / "tasks", task="base", description="Of the base. ")
    (tmp_path / "tasks/colours2.yaml").write_text("include: colours.yaml\ntask: mine\ndoc_to_text: '{{thing}}?'\n")

    found = load_task(task.model_copy(update={"name": "mine"}))

    assert found.documents[1].context == "Of the base. thing number x?"


def test_a_gate_on_a_metric_that_the_file_does_not_ask_for_is_refused(world: Path, tmp_path: Path) -> None:
    config = evaluation(world, tmp_path, GateRule(metric="colours.f1", min=0.5))

    with pytest.raises(UserError) as caught:
        read_inputs(config, config.dataset)

    assert caught.value.reason is Reason.INVALID_SPEC
    assert "colours.f1 is no metric of a task here; there are colours.acc, colours.acc_norm" in caught.value.message


def test_a_document_longer_than_the_context_is_refused_by_its_number(world: Path, tmp_path: Path) -> None:
    config = evaluation(world, tmp_path, doc_to_text="{{thing * 200}}")

    with pytest.raises(UserError) as caught:
        read_inputs(config, config.dataset)

    assert caught.value.reason is Reason.UNSUPPORTED
    assert "the task colours, document 0: prompt and longest answer with" in caught.value.message


def test_what_a_model_writes_is_filtered_and_compared_as_the_file_says(tmp_path: Path) -> None:
    matching: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_target": "{{colour}}",
        "metric_list": [{"metric": "exact_match", "ignore_case": True}],
        "filter_list": [{"name": "x", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
    }
    task = load_task(write_task(tmp_path / "tasks", remove=["doc_to_choice"], **matching))
    outputs = [" RED\n", "green", " grey", *[""] * 20]

    assert observe(task, "exact_match", TaskScores(outputs=tuple(outputs))).value() == pytest.approx(2 / 23)


def test_a_match_that_is_not_there_is_the_fallback_where_the_harness_would_fail(tmp_path: Path) -> None:
    changes = of_filters({"function": "regex", "regex_pattern": "[a-z]+", "group_select": 1, "fallback": "none"})
    task = load_task(write_task(tmp_path / "tasks", **changes))

    assert filtered(task, TaskScores(outputs=("red green", "red"))) == ("green", "none")


def test_a_generation_ends_at_its_limit_or_its_stop_text(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    asked: dict[str, Any] = {"output_type": "generate_until", "doc_to_target": "{{colour}}"}
    model, tokenizer = load_base_model(base, dtype=torch.float32, device=torch.device("cpu")), load_tokenizer(base)
    whole = load_task(
        write_task(tmp_path / "tasks", remove=["doc_to_choice"], **asked, generation_kwargs={"max_gen_toks": 9})
    )
    free = score(model, tokenizer, whole, max_length=512).outputs
    stop = free[0][2]
    ended = load_task(
        write_task(
            tmp_path / "tasks",
            remove=["doc_to_choice"],
            **asked,
            generation_kwargs={"max_gen_toks": 9, "until": [stop]},
        )
    )

    assert [text.split(stop)[0] for text in free] == list(score(model, tokenizer, ended, max_length=512).outputs)
