"""Tasks of lm-evaluation-harness: the numbers are those of the harness itself, from the same folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.models.dummy import DummyLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.task_folder import COLOURS, write_task
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning_evaluator.folder_tasks import TaskScores, filtered, observe, score
from finetuning_workload.models import load_base_model, load_tokenizer
from finetuning_workload.task_files import load_task

POSITIONS = 192


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]
    return make(tmp_path_factory.mktemp(request.param), positions=POSITIONS)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PreTrainedModel:
    return load_base_model(model_folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(model_folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for a task, in which the harness finds the data as we do, and a place for its copies."""
    found = tmp_path / "tasks"
    found.mkdir()
    monkeypatch.chdir(found)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def scripted(outputs: Sequence[str]) -> LM:
    """Return a model of the harness that writes to every document what it is told."""
    model = DummyLM()
    model.tokenizer = None  # Its own would come from a hub.
    model.generate_until = lambda requests: [outputs[request.doc_id] for request in requests]
    return model


def harness_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)


def by_harness(folder: Path, model: LM) -> dict[str, Any]:
    told = lm_eval.simple_evaluate(
        model=model,
        tasks=["colours"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        verbosity="ERROR",
    )
    assert told is not None
    return dict(told)


NO_CONTEXT = {"doc_to_text": "", "target_delimiter": ""}
SCORED = [
    pytest.param({}, id="choices-of-a-column"),
    pytest.param({"doc_to_choice": ["red", "green", "blue", "grey"], "doc_to_target": "right"}, id="choices-of-all"),
    pytest.param(
        {"doc_to_choice": "{{choices | list}}", "doc_to_target": "{{colour}}", "target_delimiter": ""}, id="templates"
    ),
    pytest.param({"doc_to_text": "{{thing | regex_replace('x+', 'y')}}: ", "description": "Name it.\n\n"}, id="spaces"),
    pytest.param({"doc_to_target": "{{[right, (right + 1) % 4]}}"}, id="several-right"),
    pytest.param(NO_CONTEXT, id="no-context"),
    pytest.param({"num_fewshot": 2, "fewshot_split": "shown"}, id="drawn-examples"),
    pytest.param({"num_fewshot": 2, "fewshot_split": "test"}, id="examples-of-the-same-rows"),
    pytest.param(
        {
            "num_fewshot": 2,
            "fewshot_split": "shown",
            "fewshot_config": {"sampler": "first_n"},
            "fewshot_delimiter": "#",
        },
        id="first-examples",
    ),
    pytest.param({"output_type": "loglikelihood", "doc_to_target": " {{colour}}"}, id="likelihood"),
    pytest.param({"output_type": "loglikelihood", "doc_to_target": "text", **NO_CONTEXT}, id="likelihood-of-all"),
    pytest.param({"output_type": "loglikelihood_rolling", "doc_to_target": "text"}, id="rolling"),
    pytest.param({"output_type": "loglikelihood_rolling", "doc_to_target": "{{text * 9}}"}, id="rolling-in-windows"),
]


@pytest.mark.parametrize("changes", SCORED)
def test_numbers_are_those_of_the_harness(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, changes: dict[str, Any]
) -> None:
    remove = ["doc_to_choice"] if str(changes.get("output_type")).startswith("log") else []
    task = load_task(write_task(folder, remove=remove, **changes))
    told = by_harness(folder, harness_model(model, tokenizer))

    found = score(model, tokenizer, task, max_length=POSITIONS)

    for metric in task.file.metrics:
        expected = told["results"]["colours"][f"{metric},none"]
        assert observe(task, metric, found).value() == pytest.approx(expected, rel=1e-4), metric
    samples = samples_of(told)
    scored = [_likelihood(answer) for sample in samples for answer in sample["resps"]]
    # The harness adds up in float32: of thousands of nats it keeps seven digits.
    assert _of_documents(found) == pytest.approx(scored, abs=1e-4, rel=1e-6)


@pytest.mark.parametrize("until", [["e"], [" ", "\n"], None])
def test_what_is_written_is_what_the_harness_lets_a_model_write(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, until: list[str] | None
) -> None:
    settings = {"max_gen_toks": 12} | ({"until": until} if until else {})
    changes: dict[str, Any] = {"output_type": "generate_until", "doc_to_target": "colour", "doc_to_choice": None}
    task = load_task(write_task(folder, **changes, generation_kwargs=settings, num_fewshot=1, fewshot_split="shown"))
    told = by_harness(folder, harness_model(model, tokenizer))

    found = score(model, tokenizer, task, max_length=POSITIONS)

    samples = samples_of(told)
    assert list(found.outputs) == [sample["resps"][0][0] for sample in samples]
    right = [sample["exact_match"] for sample in samples]
    assert observe(task, "exact_match", found).value() == pytest.approx(sum(right) / len(right))


WRITTEN = (
    " {colour}\n",
    "green",
    "red, green: the answer is {colour}.",
    "{number} times 1 is {number}.\n#### 1,00{number}.",
    "RED!",
    "[{colour}]",
    "",
)


def filters(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"filter_list": [{"name": "mine", "filter": list(steps)}]}


FIRST = {"function": "take_first"}
JUDGED = [
    pytest.param({"doc_to_target": "colour"}, id="one-right"),
    pytest.param({"doc_to_target": "choices"}, id="several-right-of-a-column"),
    pytest.param({"doc_to_target": "{{[colour, 'green']}}"}, id="several-right-of-a-template"),
    pytest.param({"doc_to_target": "{{['red!', colour, 'GREEN']}}", "num_fewshot": 2}, id="several-right-shown"),
    pytest.param({"doc_to_target": "[{{colour}}]"}, id="a-text-in-brackets"),
    pytest.param(
        {
            "doc_to_target": "100{{number}}",
            "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [",", "\\.$"]}],
            **filters({"function": "regex"}, FIRST),
        },
        id="as-gsm8k",
    ),
    pytest.param(filters({"function": "regex", "regex_pattern": "is( .*)\\."}, FIRST), id="one-group"),
    pytest.param(
        filters({"function": "regex", "regex_pattern": "(R[A-Z]+)|(red|green|blue)", "group_select": -1}, FIRST),
        id="last-of-two-groups",
    ),
    pytest.param(
        filters({"function": "regex", "regex_pattern": "(x?)(y?)", "fallback": " green "}, FIRST), id="empty-groups"
    ),
    pytest.param(
        filters({"function": "regex", "regex_pattern": "is (.*)\\.", "fallback": "red"}, FIRST), id="fallback"
    ),
    pytest.param(
        {
            "metric_list": [{"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": ["[a-z]+:? ", "R"]}],
            **filters({"function": "remove_whitespace"}, {"function": "regex", "regex_pattern": "[a-zA-Z]+$"}, FIRST),
        },
        id="several-steps-and-patterns",
    ),
    pytest.param(
        filters({"function": "lowercase"}, {"function": "regex", "regex_pattern": "[a-z]+"}), id="without-take-first"
    ),
]


@pytest.mark.parametrize("changes", JUDGED)
def test_what_was_written_is_judged_as_the_harness_judges_it(folder: Path, changes: dict[str, Any]) -> None:
    asked = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "colour",
        "fewshot_split": "shown",
    }
    task = load_task(write_task(folder, **{**asked, **changes}))
    outputs = [
        WRITTEN[number % len(WRITTEN)].format(number=number, colour=COLOURS[number % 4])
        for number in range(len(task.documents))
    ]
    scores = TaskScores(outputs=tuple(outputs))

    samples = samples_of(by_harness(folder, scripted(outputs)))

    assert [document.context for document in task.documents] == [sample["arguments"][0][0] for sample in samples]
    left = [sample["filtered_resps"][0] for sample in samples]
    assert list(filtered(task, scores)) == [each if isinstance(each, str) else each[0] for each in left]
    right = [sample["exact_match"] for sample in samples]
    assert observe(task, "exact_match", scores).components[:, 0].tolist() == right
    assert 0 < sum(right) < len(right)


def samples_of(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the harness tells of every document, in their order."""
    return sorted(told["samples"]["colours"], key=lambda sample: int(sample["doc_id"]))


def _of_documents(scores: TaskScores) -> list[float]:
    return [likelihood for document in scores.log_likelihoods for likelihood in document]


def _likelihood(response: Any) -> float:  # noqa: ANN401  (of the harness, which has lists in lists)
    while isinstance(response, list | tuple):
        response = response[0]
    assert math.isfinite(float(response))
    return float(response)
