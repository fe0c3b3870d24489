"""Between the operator and its API server things go wrong: the job ends as if nothing had happened, and did it once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus

import pytest
from tests.support.api_proxy import WRITES, ApiProxy, Asked, Fault, Trouble
from tests.support.cluster import Cluster, Object, has_condition, temporary_namespace
from tests.support.lifecycle import stages
from tests.support.operator_process import Identity, OperatorProcess, running_operator
from tests.support.player import Script, play, scripted
from tests.support.private_plane import PrivatePlane
from tests.support.processes import wait_until
from tests.support.whole_job import (
    CHILD_KINDS,
    NAME,
    Outcome,
    deleted,
    is_complete,
    is_told,
    made,
    manifest,
    outcome,
    wait_for_outcomes,
)

RunOperator = Callable[..., OperatorProcess]
READS = frozenset({"get", "list"})
FASTER = {"FINETUNING_STATUS_DELAY": "0.2", "FINETUNING_LEASE_SECONDS": "60"}
"""And a Lease that outlasts what a burst on a small machine delays: leadership has tests of its own."""


@pytest.fixture(scope="module")
def expected(cluster: Cluster, operator_identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a job leaves that nothing happened to."""
    with ExitStack() as stack:
        namespace = stack.enter_context(temporary_namespace(cluster, "auto"))
        env = FASTER | {"FINETUNING_NAMESPACES": namespace}
        stack.enter_context(running_operator(operator_identity, folder=tmp_path_factory.mktemp("undisturbed"), env=env))
        cluster.create(manifest(namespace))
        wait_until(lambda: is_told(cluster, namespace), what="the job is complete, and that is told")
        return outcome(cluster, namespace)


def refused(status: HTTPStatus, *, retry_after: int | None = None, times: int = 2) -> dict[str, object]:
    return {"trouble": Trouble.STATUS, "status": status, "retry_after": retry_after, "times": times}


TROUBLES: dict[str, dict[str, object]] = {
    "conflict": refused(HTTPStatus.CONFLICT),
    "throttled": refused(HTTPStatus.TOO_MANY_REQUESTS, retry_after=1),
    "internal-error": refused(HTTPStatus.INTERNAL_SERVER_ERROR),
    "unavailable": refused(HTTPStatus.SERVICE_UNAVAILABLE, retry_after=1),
    "gateway-timeout": refused(HTTPStatus.GATEWAY_TIMEOUT),
    "cut-before": {"trouble": Trouble.CUT_BEFORE, "times": 2},
    "cut-after": {"trouble": Trouble.CUT_AFTER, "times": 1},
    "time-out": {"trouble": Trouble.DELAY, "seconds": 90.0, "times": 1},
}
CALLS = {
    "create-relocations": ({"create"}, "relocations"),
    "create-claims": ({"create"}, "persistentvolumeclaims"),
    "create-jobs": ({"create"}, "jobs"),
    "create-evaluation": ({"create"}, "evaluationjobs"),
    "create-server": ({"create"}, "inferenceservers"),
    "create-deployment": ({"create"}, "deployments"),
    "create-service": ({"create"}, "services"),
    "apply-policies": ({"patch"}, "networkpolicies"),
    "status-of-jobs": ({"patch"}, "finetuningjobs/status"),
    "status-of-relocations": ({"patch"}, "relocations/status"),
    "status-of-evaluations": ({"patch"}, "evaluationjobs/status"),
    "status-of-servers": ({"patch"}, "inferenceservers/status"),
    "create-events": ({"create"}, "events"),
    "read": (READS, None),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_on_any_call_changes_nothing_in_the_end(
    trouble: str, cluster: Cluster, proxy: ApiProxy, run_operator: RunOperator, expected: Outcome
) -> None:
    """Every call has its trouble in a namespace of its own, at its first occurrence; all are served by one operator."""
    with ExitStack() as stack:
        # No read is answered with a conflict.
        calls = [call for call in CALLS if (trouble, call) != ("conflict", "read")]
        places = {stack.enter_context(temporary_namespace(cluster, "auto")): call for call in calls}
        operator = run_operator(env=FASTER | {"FINETUNING_NAMESPACES": ",".join(places)}, via=proxy)
        operator.wait_ready()
        for namespace, call in places.items():
            verbs, target = CALLS[call]
            proxy.fail(_fault(trouble, verbs, target, where=_within(namespace)))
            cluster.create(manifest(namespace))

        wait_for_outcomes(cluster, dict.fromkeys(places, expected), operator=operator, seconds=120)

        for namespace, call in places.items():
            assert not [again for again in made(proxy, namespace).items() if again[1] > 1], call
            assert deleted(proxy, namespace) == [], call


def _fault(trouble: str, verbs: Iterable[str], target: str | None, **more: object) -> Fault:
    return Fault(verbs=frozenset(verbs), target=target, **(TROUBLES[trouble] | more))  # type: ignore[arg-type]  # A table of arguments.


def _within(namespace: str) -> Callable[[Asked], bool]:
    return lambda asked: asked.namespace == namespace


@dataclass(frozen=True, slots=True)
class Change:
    """What a user does to a job, and what comes of it however the operator's call to that end fares."""

    verbs: set[str]
    target: str
    """The call that goes wrong."""
    held_in: str
    """The step that the job is in; empty for one that is complete."""
    act: Object
    """Merged into the job; nothing deletes it."""
    is_done: Callable[[Cluster, str], bool]


def _is_suspended(step: str) -> Callable[[Cluster, str], bool]:
    """Whether the job says so, and the Job of the step that it was in is gone."""

    def is_done(cluster: Cluster, namespace: str) -> bool:
        told = has_condition(cluster.get("FineTuningJob", NAME, namespace), "Suspended")
        return told and cluster.find("Job", f"{NAME}-{step}", namespace) is None

    return is_done


def _is_scaled(cluster: Cluster, namespace: str) -> bool:
    return bool(cluster.get("Deployment", NAME, namespace)["spec"]["replicas"] == 2)


def _is_trashed(cluster: Cluster, namespace: str) -> bool:
    claim = cluster.get("PersistentVolumeClaim", f"{NAME}-adapter", namespace)["metadata"]
    told = "finetuning.dev/trashed-at" in claim.get("annotations", {})
    return told and not _jobs_of(cluster, namespace, NAME)


_SUSPEND: Object = {"spec": {"suspend": True}}
_SCALE: Object = {"spec": {"serving": {"replicas": 2}}}
CHANGES = {
    "stop-training": Change({"delete"}, "jobs", "train", _SUSPEND, _is_suspended("train")),
    "tell-suspended": Change({"patch"}, "finetuningjobs/status", "train", _SUSPEND, _is_suspended("train")),
    "suspend-evaluation": Change(
        {"patch"}, "evaluationjobs", "evaluate", _SUSPEND, _is_suspended("evaluation-evaluate")
    ),
    "scale-server": Change({"patch"}, "inferenceservers", "", _SCALE, _is_scaled),
    "scale-deployment": Change({"patch"}, "deployments", "", _SCALE, _is_scaled),
    "trash-adapter": Change({"patch"}, "persistentvolumeclaims", "", {}, _is_trashed),
}


@pytest.mark.parametrize("trouble", ["conflict", "throttled", "internal-error", "time-out"])
def test_trouble_while_a_job_is_suspended_scaled_or_deleted_changes_nothing_in_the_end(
    trouble: str, cluster: Cluster, proxy: ApiProxy, run_operator: RunOperator
) -> None:
    """Every change has its trouble in a namespace of its own; all are served by one operator."""
    with ExitStack() as stack:
        places = {stack.enter_context(temporary_namespace(cluster, "run")): change for change in CHANGES.values()}
        served = {"FINETUNING_NAMESPACES": ",".join(places), "FINETUNING_RESYNC_SECONDS": "3"}
        operator = run_operator(env=FASTER | served, via=proxy)
        operator.wait_ready()
        with ExitStack() as playing:
            for namespace, change in places.items():
                playing.enter_context(play(cluster, _held_up_in(change.held_in), namespace=namespace))
                cluster.create(manifest(namespace, storage={"retention": "Trash"}))
            for namespace, change in places.items():
                _wait_for_place(cluster, namespace, change.held_in)

        faults: dict[str, Fault] = {}
        for namespace, change in places.items():
            faults[namespace] = _fault(trouble, change.verbs, change.target, where=_within(namespace))
            proxy.fail(faults[namespace])
            found = cluster.get("FineTuningJob", NAME, namespace)
            cluster.patch(found, change.act) if change.act else cluster.delete(found)

        for name, (namespace, change) in zip(CHANGES, places.items(), strict=True):
            wait_until(lambda: change.is_done(cluster, namespace), what=f"{name} is done")  # noqa: B023
            assert proxy.met(faults[namespace]) > 0, name
            if change.act == _SUSPEND:
                stack.enter_context(play(cluster, namespace=namespace))
                cluster.patch(cluster.get("FineTuningJob", NAME, namespace), {"spec": {"suspend": False}})
        for name, (namespace, change) in zip(CHANGES, places.items(), strict=True):
            if change.act == _SUSPEND:
                wait_until(lambda: is_complete(cluster, namespace), what=f"{name} is complete")  # noqa: B023
        assert operator.exit_code is None


def _wait_for_place(cluster: Cluster, namespace: str, step: str) -> None:
    if step:
        _wait_for_stage(cluster, namespace, NAME, step, "Running")
    else:
        wait_until(lambda: is_complete(cluster, namespace), what="the job is complete")


def test_all_calls_fail_at_random_for_a_while(
    cluster: Cluster, proxy: ApiProxy, run_operator: RunOperator, auto_namespace: str, expected: Outcome
) -> None:
    """Every third call is cut off before or after the server did it, reads as well as writes."""
    is_here = _within(auto_namespace)
    calls = WRITES | READS
    for first in range(0, 90, 3):
        trouble = Trouble.CUT_AFTER if first % 2 else Trouble.CUT_BEFORE
        proxy.fail(Fault(trouble, verbs=calls, skip=first, where=is_here))
    operator = run_operator(env=FASTER | {"FINETUNING_NAMESPACES": auto_namespace}, via=proxy)
    cluster.create(manifest(auto_namespace))
    wait_for_outcomes(cluster, {auto_namespace: expected}, operator=operator, seconds=120)
    assert not [again for again in made(proxy, auto_namespace).items() if again[1] > 1]
    assert deleted(proxy, auto_namespace) == []


BREAKS: dict[str, Callable[[ApiProxy], int]] = {
    "dropped": ApiProxy.drop_watches,
    "expired": ApiProxy.expire_watches,
    "silent": ApiProxy.silence_watches,
}


@pytest.mark.parametrize("broken", BREAKS)
def test_what_happened_while_nothing_was_watched_is_caught_up_with(
    broken: str, cluster: Cluster, proxy: ApiProxy, run_operator: RunOperator, namespace: str, expected: Outcome
) -> None:
    """Meanwhile one object is made, one is deleted, one changes, and the pod of one ends."""
    env = FASTER | {"FINETUNING_NAMESPACES": namespace, "FINETUNING_RESYNC_SECONDS": "3"}
    run_operator(env=env, via=proxy).wait_ready()
    with play(cluster, _held_up_in("train"), namespace=namespace):
        for name in ("demo", "gone", "halted"):
            cluster.create(manifest(namespace, name))
        for name in ("demo", "gone", "halted"):
            _wait_for_stage(cluster, namespace, name, "train", "Running")

    assert BREAKS[broken](proxy) > 0
    cluster.create(manifest(namespace, "late"))
    cluster.delete(cluster.get("FineTuningJob", "gone", namespace))
    cluster.patch(cluster.get("FineTuningJob", "halted", namespace), {"spec": {"suspend": True}})
    # Before anything is played: a pod that ends well in the meantime is not stopped.
    cluster.wait_gone("Job", "halted-train", namespace)
    with play(cluster, namespace=namespace):
        for name in ("demo", "late"):
            wait_until(lambda: is_complete(cluster, namespace, name), what=f"{name} is complete")  # noqa: B023
        wait_until(lambda: not _jobs_of(cluster, namespace, "gone"), what="nothing is left of what was deleted")
    assert outcome(cluster, namespace).status == expected.status
    # Of the deleted one, the operator may see what the garbage collector does before it hears why.
    created = made(proxy, namespace).items()
    assert not [again for again in created if again[1] > 1 and not again[0][1].startswith("gone-")]
    assert [gone for gone in deleted(proxy, namespace) if not gone.startswith("jobs gone-")] == ["jobs halted-train"]


def _jobs_of(cluster: Cluster, namespace: str, name: str) -> list[str]:
    found = (job["metadata"]["name"] for job in cluster.objects("Job", namespace))
    return [each for each in found if each.startswith(f"{name}-")]


def _held_up_in(step: str) -> Script:
    return scripted({step: None})


def _wait_for_stage(cluster: Cluster, namespace: str, name: str, stage: str, state: str) -> None:
    cluster.wait_for_object("FineTuningJob", name, namespace, where=lambda found: (stage, state) in stages(found))


def test_streams_that_break_again_and_again_lose_nothing(
    cluster: Cluster, proxy: ApiProxy, run_operator: RunOperator, auto_namespace: str, expected: Outcome
) -> None:
    operator = run_operator(env=FASTER | {"FINETUNING_NAMESPACES": auto_namespace}, via=proxy)
    operator.wait_ready()
    cluster.create(manifest(auto_namespace))

    def broken_and_complete() -> bool:
        proxy.drop_watches()
        proxy.expire_watches()
        return is_complete(cluster, auto_namespace)

    wait_until(broken_and_complete, what="the job is complete")
    wait_for_outcomes(cluster, {auto_namespace: expected}, operator=operator)
    assert not [again for again in made(proxy, auto_namespace).items() if again[1] > 1]


OPENINGS = 30
"""More than the streams of one namespace: each is refused at its first opening, and most once more."""


@pytest.mark.parametrize("trouble", ["throttled", "internal-error", "unavailable", "cut-before", "time-out"])
def test_a_watch_that_cannot_be_opened_is_made_up_for_and_opened_later(
    trouble: str,
    cluster: Cluster,
    proxy: ApiProxy,
    run_operator: RunOperator,
    *,
    auto_namespace: str,
    expected: Outcome,
) -> None:
    fault = _fault(trouble, {"watch"}, None, where=_within(auto_namespace), times=OPENINGS)
    proxy.fail(fault)
    env = FASTER | {"FINETUNING_NAMESPACES": auto_namespace, "FINETUNING_RESYNC_SECONDS": "3"}
    operator = run_operator(env=env, via=proxy)
    operator.wait_ready()
    cluster.create(manifest(auto_namespace))
    wait_for_outcomes(cluster, {auto_namespace: expected}, operator=operator, seconds=120)
    assert not [again for again in made(proxy, auto_namespace).items() if again[1] > 1]
    assert deleted(proxy, auto_namespace) == []
    assert proxy.met(fault) > 0
    proxy.heal()
    for target in ("finetuningjobs", "jobs", "pods"):
        wait_until(lambda: proxy.open_watches(target) > 0, what=f"{target} are watched")  # noqa: B023


@pytest.mark.parametrize("trouble", ["conflict", "throttled", "internal-error", "cut-after", "time-out"])
def test_a_lease_that_is_not_renewed_once_or_twice_is_kept(
    trouble: str,
    cluster: Cluster,
    proxy: ApiProxy,
    run_operator: RunOperator,
    *,
    auto_namespace: str,
    expected: Outcome,
) -> None:
    """With the default Lease, whose leader has twelve seconds to renew it."""
    env = {"FINETUNING_NAMESPACES": auto_namespace, "FINETUNING_STATUS_DELAY": "0.2"}
    operator = run_operator(env=env, via=proxy)
    operator.wait_ready()
    wait_until(lambda: operator.metric("finetuning_leading") == 1, what="it leads")
    fault = _fault(trouble, {"patch"}, "leases")
    proxy.fail(fault)
    cluster.create(manifest(auto_namespace))
    wait_for_outcomes(cluster, {auto_namespace: expected}, operator=operator, seconds=120)
    wait_until(lambda: proxy.met(fault) > 3, what="the Lease is renewed again")
    assert operator.metric("finetuning_leading") == 1
    assert "leadership was lost" not in operator.logs


def test_a_result_that_only_the_pod_stream_would_have_told_is_asked_for(
    cluster: Cluster, proxy: ApiProxy, run_operator: RunOperator, auto_namespace: str
) -> None:
    """The Jobs are seen to complete, their pods are not seen at all: no finished work is thrown away."""
    run_operator(env=FASTER | {"FINETUNING_NAMESPACES": auto_namespace}, via=proxy).wait_ready()
    wait_until(lambda: proxy.open_watches("pods") > 0, what="pods are watched")
    assert proxy.silence_watches("pods") == 1
    cluster.create(manifest(auto_namespace, serving=None))
    wait_until(lambda: is_told(cluster, auto_namespace, served=False), what="the job is complete")
    assert not [again for again in made(proxy, auto_namespace).items() if again[1] > 1]
    assert deleted(proxy, auto_namespace) == []


@pytest.fixture(scope="module")
def restarting(
    private_plane: PrivatePlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PrivatePlane, OperatorProcess]]:
    """An operator on a control plane of its own."""
    identity = Identity.install(private_plane.cluster)
    with running_operator(identity, folder=tmp_path_factory.mktemp("restarting"), env=FASTER) as operator:
        operator.wait_ready()
        yield private_plane, operator


@pytest.mark.parametrize("step", ["relocate", "preflight", "train", "evaluate"])
def test_an_api_server_restarts_while_a_step_of_a_job_runs(
    step: str, restarting: tuple[PrivatePlane, OperatorProcess], expected: Outcome
) -> None:
    plane, operator = restarting
    with temporary_namespace(plane.cluster, "run") as namespace:
        with play(plane.cluster, _held_up_in(step), namespace=namespace):
            plane.cluster.create(manifest(namespace))
            _wait_for_stage(plane.cluster, namespace, "demo", step, "Running")
        before = _identities(plane.cluster, namespace)

        plane.restart("kube-apiserver")

        with play(plane.cluster, namespace=namespace):
            wait_for_outcomes(plane.cluster, {namespace: expected}, operator=operator)
        assert before <= _identities(plane.cluster, namespace)


def test_an_api_server_restarts_while_a_server_starts(
    restarting: tuple[PrivatePlane, OperatorProcess], expected: Outcome
) -> None:
    plane, operator = restarting
    with temporary_namespace(plane.cluster, "run") as namespace:
        with play(plane.cluster, _held_up_in("evaluate"), namespace=namespace):
            plane.cluster.create(manifest(namespace))
            _wait_for_stage(plane.cluster, namespace, "demo", "evaluate", "Running")
        # No pod begins to run any more: that of the server waits.
        with plane.frozen("kwok"), play(plane.cluster, namespace=namespace):
            _wait_for_stage(plane.cluster, namespace, "demo", "serve", "Pending")
            plane.cluster.wait_for_object("Deployment", "demo", namespace)
            before = _identities(plane.cluster, namespace)

            plane.restart("kube-apiserver")

        wait_for_outcomes(plane.cluster, {namespace: expected}, operator=operator)
        assert before <= _identities(plane.cluster, namespace)


def test_an_api_server_restarts_when_a_job_is_complete(
    restarting: tuple[PrivatePlane, OperatorProcess], expected: Outcome
) -> None:
    plane, operator = restarting
    with temporary_namespace(plane.cluster, "run") as namespace, play(plane.cluster, namespace=namespace):
        plane.cluster.create(manifest(namespace))
        wait_for_outcomes(plane.cluster, {namespace: expected}, operator=operator)
        before = _identities(plane.cluster, namespace)
        done = plane.cluster.get("FineTuningJob", "demo", namespace)

        plane.restart("kube-apiserver")

        plane.cluster.create(manifest(namespace, "late"))
        wait_until(lambda: is_complete(plane.cluster, namespace, "late"), what="a job that is made later is complete")
        assert plane.cluster.get("FineTuningJob", "demo", namespace) == done
        made_later = _identities(plane.cluster, namespace) - before
        assert before <= _identities(plane.cluster, namespace)
        assert {name for name, _ in made_later if not name.startswith("late")} == set()


def _identities(cluster: Cluster, namespace: str) -> set[tuple[str, str]]:
    """Return the names and uids of all that the operator made."""
    heads = (each["metadata"] for kind in CHILD_KINDS for each in cluster.objects(kind, namespace))
    return {(head["name"], head["uid"]) for head in heads}
