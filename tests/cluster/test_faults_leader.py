"""Several replicas, frozen ones, ones that are told to stop, and ones whose clock is wrong."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.support.api_proxy import ApiProxy, Fault, Trouble
from tests.support.cluster import Cluster, Object, temporary_namespace
from tests.support.lifecycle import stages
from tests.support.operator_process import OPERATOR_NAMESPACE, OperatorProcess
from tests.support.player import play, scripted
from tests.support.processes import REPOSITORY, wait_until
from tests.support.whole_job import Outcome, deleted, is_told, made, manifest, outcome, own_writes

RunOperator = Callable[..., OperatorProcess]
LEASE_SECONDS = 9
"""Long enough for a leader on a busy machine to renew it in time."""
FOREVER = 3600


@pytest.fixture
def proxies(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[ApiProxy, ApiProxy]]:
    """A proxy for each of two replicas."""
    with ExitStack() as stack:
        made_ = []
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            proxy = ApiProxy(cluster.server, server_ca=cluster.ca, folder=folder, keep_bodies=True)
            made_.append(stack.enter_context(proxy))
        yield made_[0], made_[1]


@pytest.fixture
def replica(run_operator: RunOperator, namespace: str) -> Callable[..., OperatorProcess]:
    """``replica(proxy, skew=0)`` starts an operator that shares its Lease with the others of the test."""

    def start(proxy: ApiProxy, *, skew: int = 0, lease_seconds: int | None = LEASE_SECONDS) -> OperatorProcess:
        env = {
            "FINETUNING_NAMESPACES": namespace,
            "FINETUNING_STATUS_DELAY": "0.2",
            "FINETUNING_LEASE_NAME": namespace,
        }
        if lease_seconds is not None:
            env |= {"FINETUNING_LEASE_SECONDS": str(lease_seconds)}
        return run_operator(env=env | (wrong_clock(skew) if skew else {}), via=proxy)

    return start


def wrong_clock(seconds: int) -> dict[str, str]:
    """Return the environment of a process whose wall clock is wrong."""
    folder = str(REPOSITORY / "tests" / "support" / "skewed")
    path = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH", "")) if part)
    return {"PYTHONPATH": path, "TEST_CLOCK_SKEW": str(seconds)}


def leads(operator: OperatorProcess) -> bool:
    return operator.metric("finetuning_leading") == 1


def wait_until_it_leads(operator: OperatorProcess) -> None:
    operator.wait_ready()
    wait_until(lambda: leads(operator), what="it leads")


def wait_for_training(cluster: Cluster, namespace: str) -> None:
    def trains(found: dict[str, object]) -> bool:
        return ("train", "Running") in stages(found)

    cluster.wait_for_object("FineTuningJob", "demo", namespace, where=trains)


def made_by_both(proxies: tuple[ApiProxy, ApiProxy], namespace: str) -> Counter[tuple[str, str]]:
    return made(proxies[0], namespace) + made(proxies[1], namespace)


def once(created: Counter[tuple[str, str]]) -> bool:
    return max(created.values()) == 1


@pytest.mark.parametrize("skews", [(0, 0), (3600, -3600), (-3600, 3600)], ids=["right", "ahead", "behind"])
def test_one_replica_works_and_the_other_follows_when_it_is_killed(
    skews: tuple[int, int],
    cluster: Cluster,
    namespace: str,
    proxies: tuple[ApiProxy, ApiProxy],
    replica: Callable[..., OperatorProcess],
) -> None:
    first = replica(proxies[0], skew=skews[0])
    wait_until_it_leads(first)
    second = replica(proxies[1], skew=skews[1])
    second.wait_ready()
    with play(cluster, scripted({"train": None}), namespace=namespace):
        cluster.create(manifest(namespace, serving=None))
        wait_for_training(cluster, namespace)
    assert own_writes(proxies[1]) == []
    assert not leads(second)

    first.kill()
    wait_until_it_leads(second)

    with play(cluster, namespace=namespace):
        wait_until(lambda: is_told(cluster, namespace, served=False), what="the job is complete")
    assert once(made_by_both(proxies, namespace))
    assert deleted(proxies[1], namespace) == []


@pytest.mark.parametrize(
    ("lease_seconds", "frozen_seconds"), [(LEASE_SECONDS, 0), (None, 60)], ids=["until-another-leads", "for-a-minute"]
)
def test_a_leader_that_was_frozen_until_another_leads_writes_nothing_and_ends(
    lease_seconds: int | None,
    frozen_seconds: int,
    cluster: Cluster,
    namespace: str,
    *,
    proxies: tuple[ApiProxy, ApiProxy],
    replica: Callable[..., OperatorProcess],
) -> None:
    """The Lease of the second case is the default one; it is renewed by the other until the minute is over."""
    first = replica(proxies[0], lease_seconds=lease_seconds)
    wait_until_it_leads(first)
    second = replica(proxies[1], lease_seconds=lease_seconds)
    second.wait_ready()
    with play(cluster, scripted({"train": None}), namespace=namespace):
        cluster.create(manifest(namespace, serving=None))
        wait_for_training(cluster, namespace)

    first.freeze()
    over = datetime.now(UTC) + timedelta(seconds=frozen_seconds)
    # Much for the frozen one to do when it wakes: pods that ended, and jobs that it has not seen.
    with play(cluster, scripted({"evaluate": None}), namespace=namespace):
        for name in ("more", "and-more"):
            cluster.create(manifest(namespace, name, serving=None))
        wait_until_it_leads(second)
        wait_until(lambda: bool(own_writes(proxies[1])), what="the other writes")
        wait_until(lambda: _renewed_at(cluster, namespace) >= over, what="the Lease was renewed after that time")
    took_over = own_writes(proxies[1])[0].at
    first.resume()

    assert first.process.wait(60) == 1
    assert [seen.asked for seen in proxies[0].writes() if seen.at > took_over] == []
    with play(cluster, namespace=namespace):
        wait_until(lambda: is_told(cluster, namespace, served=False), what="the job is complete")
    assert once(made_by_both(proxies, namespace))


def _renewed_at(cluster: Cluster, namespace: str) -> datetime:
    renewed: str = cluster.get("Lease", namespace, OPERATOR_NAMESPACE)["spec"]["renewTime"]
    return datetime.fromisoformat(renewed)


def test_told_to_stop_in_the_middle_of_a_write_it_ends_the_write_and_leaves_the_lease_to_the_next(
    cluster: Cluster,
    namespace: str,
    proxies: tuple[ApiProxy, ApiProxy],
    replica: Callable[..., OperatorProcess],
) -> None:
    first = replica(proxies[0], lease_seconds=FOREVER)
    wait_until_it_leads(first)
    claim_is_slow = Fault(Trouble.DELAY, verbs=frozenset({"create"}), target="persistentvolumeclaims", seconds=1)
    proxies[0].fail(claim_is_slow)
    with play(cluster, namespace=namespace):
        cluster.create(manifest(namespace, serving=None))
        cluster.wait_for(lambda: _measured(cluster, namespace) or None, what="a size is measured")
        assert first.stop() == 0
        assert "holderIdentity" not in cluster.get("Lease", namespace, OPERATOR_NAMESPACE)["spec"]
        assert "Traceback" not in first.logs
        assert [seen for seen in proxies[0].writes() if seen.answered and seen.status == 0] == []

        wait_until_it_leads(replica(proxies[1], lease_seconds=FOREVER))
        wait_until(lambda: is_told(cluster, namespace, served=False), what="the job is complete")
    assert once(made_by_both(proxies, namespace))


def _measured(cluster: Cluster, namespace: str) -> bool:
    """Whether the first pod has ended, and with it the wait for the first claim."""
    ended = (pod["status"]["phase"] == "Succeeded" for pod in cluster.objects("Pod", namespace))
    return any(ended)


@pytest.mark.parametrize("skew", [3600, -3600], ids=["an-hour-ahead", "an-hour-behind"])
def test_a_wrong_clock_changes_no_result_and_no_status_goes_back(
    skew: int, cluster: Cluster, proxy: ApiProxy, run_operator: RunOperator
) -> None:
    with ExitStack() as stack:
        right, wrong = (stack.enter_context(temporary_namespace(cluster, "auto")) for _ in range(2))
        expected = _result(cluster, right, run_operator(env=_served(right)))
        operator = run_operator(env=_served(wrong) | wrong_clock(skew), via=proxy)
        found = _result(cluster, wrong, operator)
        assert found == expected
        assert once(made(proxy, wrong))
        assert deleted(proxy, wrong) == []
        assert _went_back(_told_stages(proxy, wrong)) == []


@pytest.mark.parametrize("skew", [3600, -3600], ids=["was-ahead", "was-behind"])
def test_a_job_that_a_wrong_clock_began_ends_under_a_right_one(
    skew: int,
    cluster: Cluster,
    namespace: str,
    proxies: tuple[ApiProxy, ApiProxy],
    replica: Callable[..., OperatorProcess],
) -> None:
    first = replica(proxies[0], skew=skew)
    with play(cluster, scripted({"train": None}), namespace=namespace):
        cluster.create(manifest(namespace, serving=None, pendingDeadlineSeconds=7200))
        wait_for_training(cluster, namespace)
    assert first.stop() == 0
    second = replica(proxies[1])
    with play(cluster, namespace=namespace):
        wait_until(lambda: is_told(cluster, namespace, served=False), what="the job is complete")
    assert once(made_by_both(proxies, namespace))
    assert second.exit_code is None
    assert _went_back(_told_stages(proxies[0], namespace) + _told_stages(proxies[1], namespace)) == []


def _served(namespace: str) -> dict[str, str]:
    return {"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"}


def _result(cluster: Cluster, namespace: str, operator: OperatorProcess) -> Outcome:
    operator.wait_ready()
    cluster.create(manifest(namespace))
    wait_until(lambda: is_told(cluster, namespace), what="the job is complete, and that is told")
    return outcome(cluster, namespace)


def _told_stages(proxy: ApiProxy, namespace: str) -> list[dict[str, Object]]:
    """Return the stages by their names in every status of the job that was written."""
    written = proxy.writes(target="finetuningjobs/status", namespace=namespace)
    bodies = [json.loads(seen.body) for seen in written if seen.status == HTTPStatus.OK]
    told = [operation["value"] for body in bodies for operation in body if operation["path"] == "/status"]
    return [{stage["name"]: stage for stage in status["stages"]} for status in told]


def _went_back(told: list[dict[str, Object]]) -> list[tuple[Object, Object]]:
    """Return the stages that were told to be further before than later.

    A stage that runs may wait again: between two steps of a Relocation there is a pod to wait for.
    """
    assert len(told) > 1
    return [
        (stage, later[name])
        for earlier, later in itertools.pairwise(told)
        for name, stage in earlier.items()
        if _how_far(later[name]) < _how_far(stage)
    ]


def _how_far(stage: Object) -> tuple[bool, bool, int]:
    return stage["state"] == "Succeeded", "startTime" in stage, stage.get("attempts", 0)
