"""Scores that another evaluation computed are not computed again, where all that shapes them is equal."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.evaluation import candidate, evaluate_config, write_adapter, write_rows
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.training import quiet_context

from finetuning_api.finetuningjob import GenerationSpec
from finetuning_api.metrics import Metric
from finetuning_api.runconfig import EvaluateConfig
from finetuning_evaluator import candidates as candidates_module
from finetuning_evaluator import parts as parts_module
from finetuning_evaluator.evaluate import evaluate
from finetuning_evaluator.parts import Entry, code_digest, remove_least_used
from finetuning_evaluator.results import Results
from finetuning_evaluator.tasks import run_task
from finetuning_workload.candidates import loaded

LASTING = (Metric.COMPLETION_PERPLEXITY, Metric.EXACT_MATCH, Metric.ACCURACY)
METRICS = (*LASTING, Metric.COLA, Metric.LATENCY)
TASKS = ("likelihood", "generation", "accuracy", "cola", "latency")
Counted = Callable[[EvaluateConfig], list[tuple[str, str]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny_llama(folder / "base")
    tiny_gpt2(folder / "reference")
    for seed in (1, 2):
        write_adapter(folder / "base", folder / f"adapter-{seed}", seed=seed)
    write_rows(folder / "rows.jsonl", rows=80)
    write_rows(folder / "more.jsonl", rows=90)
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Return an evaluation that tells which tasks of which candidates it computed; the work is done as ever."""

    def run(config: EvaluateConfig) -> list[tuple[str, str]]:
        computed: list[tuple[str, str]] = []

        def noted(task: Any, loaded: Any, **options: Any) -> Any:  # noqa: ANN401  (handed on)
            computed.append((options["inputs"].candidate.name, str(task)))
            return run_task(task, loaded, **options)

        monkeypatch.setattr(candidates_module, "run_task", noted)
        evaluate(config, quiet_context())
        return computed

    return run


def comparison(
    world: Path,
    output: Path,
    *,
    adapter: int = 1,
    data: str = "rows.jsonl",
    **options: Any,  # noqa: ANN401  (fields)
) -> EvaluateConfig:
    config = evaluate_config(
        [
            candidate("base", world / "base"),
            candidate("tuned", world / "base", world / f"adapter-{adapter}"),
            candidate("reference", world / "reference"),
        ],
        data=world / data,
        output=output,
        metrics=METRICS,
    )
    generation = GenerationSpec(max_new_tokens=3)
    return config.model_copy(
        update={"cache_path": str(output.parent / "scores"), "generation": generation, "bootstrap_samples": 100}
        | options
    )


def every(name: str, *tasks: str) -> set[tuple[str, str]]:
    return {(name, task) for task in tasks or TASKS}


def results_of(config: EvaluateConfig) -> Results:
    return Results.model_validate_json((Path(config.output_path) / "results.json").read_bytes())


def test_base_and_reference_are_scored_once_for_all_jobs_on_the_same_data(
    world: Path, tmp_path: Path, counted: Counted
) -> None:
    first, second = (comparison(world, tmp_path / f"report-{seed}", adapter=seed) for seed in (1, 2))
    alone = comparison(world, tmp_path / "alone", adapter=2, cache_path=None)

    assert set(counted(first)) == every("base") | every("tuned") | every("reference")
    assert set(counted(second)) == every("tuned") | {("base", "latency"), ("reference", "latency")}
    counted(alone)

    by_name = {found.name: found for found in results_of(second).candidates}
    assert {name: set(found.reused) for name, found in by_name.items()} == {
        "base": set(TASKS) - {"latency"},
        "tuned": set(),
        "reference": set(TASKS) - {"latency"},
    }
    assert all(origin.job == first.job for origin in by_name["base"].reused.values())
    for report in ("report.md", "report.html"):
        assert "Scores that were there already" in (tmp_path / "report-2" / report).read_text()
    timeless = [
        [found for found in results_of(each).metrics if found.metric != Metric.LATENCY] for each in (second, alone)
    ]
    assert timeless[0] == timeless[1]


def test_a_model_whose_scores_are_all_there_is_not_even_loaded(
    world: Path, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(comparison(world, tmp_path / "first", metrics=LASTING))
    loads: list[str] = []

    def noted(plan: Any, **options: Any) -> Any:  # noqa: ANN401  (handed on)
        loads.append(Path(plan.model_path).name)
        return loaded(plan, **options)

    monkeypatch.setattr(candidates_module, "loaded", noted)
    assert set(counted(comparison(world, tmp_path / "second", adapter=2, metrics=LASTING))) == every(
        "tuned", *TASKS[:3]
    )
    assert loads == ["base"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"max_length": 16}, {"likelihood"}),
        ({"generation": GenerationSpec(max_new_tokens=2)}, {"generation"}),
        ({"seed": 7, "bootstrap_samples": 200}, set()),
        ({"limit": 5}, {"likelihood", "generation", "accuracy"}),
        ({"data": "more.jsonl"}, {"likelihood", "generation", "accuracy"}),
    ],
)
def test_what_shapes_a_score_decides_whether_it_is_computed_again(
    world: Path, tmp_path: Path, counted: Counted, change: dict[str, Any], again: set[str]
) -> None:
    counted(comparison(world, tmp_path / "first", metrics=LASTING))

    found = counted(comparison(world, tmp_path / "second", metrics=LASTING, **change))

    assert set(found) == {(name, task) for name in ("base", "tuned", "reference") for task in again}


def test_other_code_finds_nothing_of_what_older_code_computed(
    world: Path, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(comparison(world, tmp_path / "first", metrics=METRICS[:1]))
    monkeypatch.setattr(candidates_module, "code_digest", lambda: f"other than {code_digest()}")

    again = counted(comparison(world, tmp_path / "second", metrics=METRICS[:1]))

    assert len(again) == 3


def test_torn_changed_and_misplaced_entries_are_computed_again(world: Path, tmp_path: Path, counted: Counted) -> None:
    config = comparison(world, tmp_path / "first", metrics=LASTING)
    counted(config)
    whole = results_of(config).metrics
    likelihoods = sorted((tmp_path / "scores").glob("likelihood-*.json"))
    others = sorted((tmp_path / "scores").glob("accuracy-*.json"))
    torn, changed, moved = likelihoods
    torn.write_bytes(torn.read_bytes()[:-40])
    entry = Entry.model_validate_json(changed.read_bytes())
    changed.write_text(entry.model_copy(update={"part": entry.part.replace("1", "2", 1)}).to_json())
    moved.write_bytes(others[0].read_bytes())

    second = comparison(world, tmp_path / "second", metrics=LASTING)
    found = counted(second)

    assert set(found) == {(name, "likelihood") for name in ("base", "tuned", "reference")}
    assert results_of(second).metrics == whole


def test_what_was_used_longest_ago_is_removed_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / f"{name}.json").write_text("x" * 100)
        os.utime(tmp_path / f"{name}.json", (1_000_000 - age, 1_000_000 - age))

    remove_least_used(tmp_path, most_bytes=200)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json", "old.json"]


def test_a_cache_that_grew_too_large_is_cut_by_the_evaluation_that_ends(
    world: Path, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "CACHE_BYTES", 0)

    counted(comparison(world, tmp_path / "report", metrics=METRICS[:1]))

    assert list((tmp_path / "scores").iterdir()) == []
