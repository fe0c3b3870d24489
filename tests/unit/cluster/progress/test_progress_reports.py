import json
from datetime import UTC, datetime

import pytest
from tests.support.progress import report

from finetuning_api.progress import UnreadableReportError, parse_report
from finetuning_api.runconfig import TrainerMetric, TrainerStatus
from finetuning_operator.reconcile.stages import progress_status

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def _parsed(**status: object) -> TrainerStatus:
    return parse_report(json.dumps(report(**status)).encode(), now=NOW)


def test_what_transformers_posts_is_read_in_our_words() -> None:
    metrics = [{"name": "loss", "value": "1.5"}, {"name": "current_step", "value": "10"}]

    parsed = _parsed(progressPercentage=50, estimatedRemainingSeconds=30, metrics=metrics)

    assert parsed == TrainerStatus(
        last_updated_time=NOW,
        progress_percentage=50,
        estimated_remaining_seconds=30,
        metrics=(TrainerMetric(name="loss", value="1.5"), TrainerMetric(name="step", value="10")),
    )


def test_the_moment_of_arrival_counts_whatever_the_reporter_says() -> None:
    assert _parsed(lastUpdatedTime="0001-01-01T00:00:00").last_updated_time == NOW
    assert _parsed(lastUpdatedTime=["soon"]).last_updated_time == NOW
    assert parse_report(b'{"trainerStatus": {}}', now=NOW) == TrainerStatus(last_updated_time=NOW)


def test_unknown_fields_are_ignored() -> None:
    body = {"apiVersion": "v9", **report(progressPercentage=1, mood={"good": True})}

    assert parse_report(json.dumps(body).encode(), now=NOW).progress_percentage == 1


@pytest.mark.parametrize(
    ("told", "kept"),
    [(40.7, 40), (-3, 0), (101, 100), (10**300, 100), (float("nan"), None), (float("inf"), None), (None, None)],
)
def test_percentages_that_cannot_be_are_made_harmless(told: float | None, kept: int | None) -> None:
    assert _parsed(progressPercentage=told).progress_percentage == kept


@pytest.mark.parametrize(
    ("told", "kept"),
    [(12.9, 12), (-1, 0), (10**300, 315_360_000), (float("nan"), None), (float("-inf"), None)],
)
def test_times_that_cannot_be_are_made_harmless(told: float, kept: int | None) -> None:
    assert _parsed(estimatedRemainingSeconds=told).estimated_remaining_seconds == kept


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", str(10**300), float("nan"), 10**300])
def test_metrics_that_no_status_could_hold_are_left_out(value: object) -> None:
    parsed = _parsed(metrics=[{"name": "step", "value": value}, {"name": "loss", "value": "2"}])

    assert parsed.metrics == (TrainerMetric(name="loss", value="2"),)
    shown = progress_status(parsed)
    assert shown is not None
    assert (shown.step, shown.loss) == (None, 2.0)


def test_metrics_are_bounded_in_number_and_length_without_losing_the_rest() -> None:
    many = [{"name": f"metric-{index}", "value": "1"} for index in range(300)]
    odd = [{"name": "x" * 129, "value": "1"}, {"name": "bell\a", "value": "1"}, {"name": "text", "value": "y" * 65}]

    parsed = _parsed(progressPercentage=7, metrics=odd + many)

    assert parsed.progress_percentage == 7
    assert [metric.name for metric in parsed.metrics] == [f"metric-{index}" for index in range(64)]


def test_a_metric_that_is_told_twice_counts_as_told_first() -> None:
    metrics = [{"name": "step", "value": 3}, {"name": "current_step", "value": 4}]

    assert _parsed(metrics=metrics).metrics == (TrainerMetric(name="step", value="3.0"),)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"[" * 60_000, "Invalid JSON: recursion limit exceeded"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'{"other": 1}', "trainerStatus: Field required"),
        (b'{"trainerStatus": 3}', "trainerStatus: "),
        (b'{"trainerStatus": {"progressPercentage": "half"}}', "trainerStatus.progressPercentage: "),
        (b'{"trainerStatus": {"progressPercentage": true}}', "trainerStatus.progressPercentage: "),
        (b'{"trainerStatus": {"metrics": {"loss": 1}}}', "trainerStatus.metrics: "),
        (b'{"trainerStatus": {"metrics": [{"name": "loss"}]}}', "trainerStatus.metrics.0.value: Field required"),
        (b'{"trainerStatus": {"progressPercentage": 1' + b"0" * 5000 + b"}}", "Invalid JSON: number out of range"),
    ],
)
def test_nonsense_is_refused_with_the_field_that_is_wrong(body: bytes, message: str) -> None:
    with pytest.raises(UnreadableReportError) as caught:
        parse_report(body, now=NOW)

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
