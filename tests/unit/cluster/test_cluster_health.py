import asyncio

import aiohttp

from finetuning_operator.cluster.api import Call
from finetuning_operator.cluster.health import Check, HealthServer, at_most, must
from finetuning_operator.cluster.metrics import Metrics


def _ask(*paths: str, alive: dict[str, Check], ready: dict[str, Check], metrics: Metrics) -> list[tuple[int, str]]:
    async def ask() -> list[tuple[int, str]]:
        server = HealthServer(alive=alive, ready=ready, metrics=metrics.render)
        port = await server.start(0, host="127.0.0.1")
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                return [await _get(session, path) for path in paths]
        finally:
            await server.stop()

    return asyncio.run(ask())


async def _get(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as answer:
        return answer.status, await answer.text()


def test_a_healthy_operator_says_so() -> None:
    young = {"resync": at_most("since the last full list", lambda: 10.0, limit=600.0)}

    answers = _ask("/healthz", "/readyz", alive=young, ready={"leader": must("", lambda: True)}, metrics=Metrics())

    assert answers == [(200, "ok\n"), (200, "ok\n")]


def test_what_is_missing_is_said() -> None:
    alive = {
        "resync": at_most("since the last full list", lambda: 901.0, limit=900.0),
        "queue": at_most("longest at one object", lambda: 5.0, limit=300.0),
    }
    ready = {
        "synced": must("the first full lists are not complete", lambda: False),
        "leader": must("another replica leads", lambda: False),
    }

    answers = _ask("/healthz", "/readyz", alive=alive, ready=ready, metrics=Metrics())

    assert answers == [
        (503, "resync: since the last full list: 901 s, at most 900 s are healthy\n"),
        (
            503,
            "synced: the first full lists are not complete\nleader: another replica leads\n",
        ),
    ]


def test_what_never_happened_yet_is_no_reason_to_end_the_operator() -> None:
    (answer,) = _ask("/healthz", alive={"resync": at_most("age", lambda: None, limit=1)}, ready={}, metrics=Metrics())

    assert answer == (200, "ok\n")


def test_metrics_are_served_as_counted() -> None:
    metrics = Metrics()
    metrics.objects(lambda: {("FineTuningJob", "Training"): 2, ("Relocation", "Complete"): 1})
    metrics.gauge("queue_depth", "Objects that wait for a worker.", lambda: 7)
    metrics.reconciled("FineTuningJob", result="changed", seconds=0.02)
    metrics.retried("FineTuningJob")
    metrics.called(Call("create", "jobs", 201, 0.01))
    metrics.called(Call("create", "jobs", 0, 30.0))
    metrics.stage_ended("FineTuningJob", stage="train", seconds=120)
    metrics.failed("FineTuningJob", reason="OutOfMemory")
    metrics.progress_reported("accepted")

    ((status, text),) = _ask("/metrics", alive={}, ready={}, metrics=metrics)

    assert status == 200
    counted = {line for line in text.splitlines() if line.startswith("finetuning_") and "_created" not in line}
    assert {
        'finetuning_objects{kind="FineTuningJob",phase="Training"} 2.0',
        'finetuning_objects{kind="Relocation",phase="Complete"} 1.0',
        "finetuning_queue_depth 7.0",
        'finetuning_reconcile_seconds_count{kind="FineTuningJob",result="changed"} 1.0',
        'finetuning_retries_total{kind="FineTuningJob"} 1.0',
        'finetuning_api_requests_total{code="201",resource="jobs",verb="create"} 1.0',
        'finetuning_api_requests_total{code="0",resource="jobs",verb="create"} 1.0',
        'finetuning_api_request_seconds_count{verb="create"} 2.0',
        'finetuning_stage_seconds_bucket{kind="FineTuningJob",le="300.0",stage="train"} 1.0',
        'finetuning_failures_total{kind="FineTuningJob",reason="OutOfMemory"} 1.0',
        'finetuning_progress_reports_total{result="accepted"} 1.0',
    } <= counted
    assert "process_resident_memory_bytes" in text


def test_two_operators_in_one_process_share_no_number() -> None:
    first, second = Metrics(), Metrics()
    first.retried("Relocation")

    assert b'finetuning_retries_total{kind="Relocation"} 1.0' in first.render()[0]
    assert b'finetuning_retries_total{kind="Relocation"}' not in second.render()[0]
