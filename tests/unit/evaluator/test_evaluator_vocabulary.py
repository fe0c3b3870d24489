"""Every metric is described, documented, and about texts that are as they are told to be."""

import json
from importlib import resources
from pathlib import Path

import pytest

from finetuning_api.metrics import Metric, RequestedMetric, facts_of, task_metric
from finetuning_evaluator.metrics import built_in, cola, general, pairs
from finetuning_evaluator.metrics.built_in import ACCEPTABILITY, GENERAL, built_in_digest
from finetuning_workload.evaluated import is_per_row, tasks_of
from finetuning_workload.task_files.file import METRICS

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_table_of_the_documentation_has_every_metric_with_its_direction() -> None:
    page = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    told = {name.strip(" `"): cells[4].strip() for cells in table if len(cells) == 6 for name in cells[1].split(",")}

    assert told == {metric.value: "lower" if metric.facts.lower_is_better else "higher" for metric in Metric}


@pytest.mark.parametrize("metric", list(Metric))
def test_every_metric_can_be_asked_for_and_is_read_from_a_task(metric: Metric) -> None:
    assert RequestedMetric(metric.value).metrics() == (metric,)
    assert metric.facts.task in tasks_of(list(Metric))
    assert metric.facts.description
    # What a file of one's own gives has the unit of that file.
    assert bool(metric.facts.unit) == (metric not in {Metric.CUSTOM, Metric.TASKS})


@pytest.mark.parametrize("metric", sorted({metric for metrics in METRICS.values() for metric in metrics}))
def test_every_metric_of_a_task_has_a_unit(metric: str) -> None:
    assert facts_of(task_metric("capitals", metric)).unit


def test_metrics_of_plain_text_need_no_completions_and_all_others_have_a_task_that_does() -> None:
    plain = {metric.value for metric in Metric if not metric.facts.needs_completions}

    assert plain == {
        "perplexity",
        "completion-perplexity",
        "bits-per-byte",
        "general-perplexity",
        "cola",
        "cola-pairs",
        "tasks",
    }
    assert {metric.value for metric in Metric if not is_per_row(metric)} == {
        "cola",
        "cola-pairs",
        "general-perplexity",
        "latency",
        "tasks",
    }
    assert not is_per_row("capitals.acc")


def test_each_acceptable_sentence_is_followed_by_its_broken_twin() -> None:
    found = pairs.pairs_of(cola.sentences())

    assert len(found) * 2 == len(cola.sentences())
    for acceptable, broken in found:
        assert (acceptable.acceptable, broken.acceptable) == (True, False)
        assert acceptable.phenomenon == broken.phenomenon
        assert set(acceptable.sentence.lower().split()) & set(broken.sentence.lower().split())


def test_the_general_passages_are_enough_for_an_interval_and_all_different() -> None:
    rows = general.passages()

    assert len(rows) >= 30
    assert len({row.row_id for row in rows}) == len({row.text for row in rows}) == len(rows)
    assert all(40 <= len(row.text.split()) <= 90 for row in rows)


def test_another_built_in_text_has_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = built_in_digest()
    for name in (ACCEPTABILITY, GENERAL):
        (tmp_path / name).write_bytes(resources.files("finetuning_evaluator.metrics").joinpath(name).read_bytes())
    (tmp_path / GENERAL).write_text(json.dumps({"subject": "new", "text": "Something else."}))
    monkeypatch.setattr(built_in, "_content", lambda name: (tmp_path / name).read_text())

    assert built_in_digest.__wrapped__() != before
