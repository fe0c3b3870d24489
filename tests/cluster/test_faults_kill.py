"""The operator is killed after each single write of a whole job, and comes back to the same result.

What a kill leaves behind is: the API server did n writes and then none. That is what happens here for many jobs at
once, each in a namespace of its own: from the n-th write of a namespace on no answer comes back, and no later write
gets through. When all jobs stand still, the process is killed; nothing of its memory is left to the next one.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.api_proxy import ApiProxy, Fault, Trouble
from tests.support.cluster import Cluster, temporary_namespace
from tests.support.operator_process import Identity, OperatorProcess, running_operator
from tests.support.processes import wait_until
from tests.support.whole_job import (
    Outcome,
    deleted,
    is_told,
    made,
    manifest,
    outcome,
    own_writes,
    wait_for_outcomes,
)

RunOperator = Callable[..., OperatorProcess]
PARTS = 3
"""The numbers of writes are spread over so many tests, to keep the API server from being the bottleneck."""
FASTER = {"FINETUNING_STATUS_DELAY": "0.2", "FINETUNING_LEASE_SECONDS": "60"}
"""And a Lease that outlasts what a burst on a small machine delays: leadership has tests of its own."""


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, operator_identity: Identity, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Outcome, int]]:
    """What a job leaves that nothing happened to, and the number of writes that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with ExitStack() as stack:
        proxy = stack.enter_context(_proxy(cluster, folder))
        namespace = stack.enter_context(temporary_namespace(cluster, "auto"))
        env = FASTER | {"FINETUNING_NAMESPACES": namespace}
        stack.enter_context(running_operator(operator_identity, folder=folder, env=env, via=proxy)).wait_ready()
        cluster.create(manifest(namespace))
        wait_until(lambda: is_told(cluster, namespace), what="the job is complete, and that is told")
        yield outcome(cluster, namespace), len(own_writes(proxy, namespace))


def _proxy(cluster: Cluster, folder: Path) -> ApiProxy:
    return ApiProxy(cluster.server, server_ca=cluster.ca, folder=folder, keep_bodies=True)


def stop_after(writes: int, namespace: str) -> tuple[Fault, Fault]:
    """The server does the n-th write of a namespace and is never heard of again."""

    def is_here(asked: object) -> bool:
        return getattr(asked, "namespace", "") == namespace

    return (
        Fault(Trouble.CUT_AFTER, skip=writes - 1, times=1, where=is_here),
        Fault(Trouble.CUT_BEFORE, skip=writes, times=None, where=is_here),
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_killed_after_any_write_it_ends_as_if_nothing_had_happened(
    part: int,
    cluster: Cluster,
    proxy: ApiProxy,
    run_operator: RunOperator,
    undisturbed: tuple[Outcome, int],
) -> None:
    expected, writes = undisturbed
    with ExitStack() as stack:
        stops = {
            stack.enter_context(temporary_namespace(cluster, "auto")): number
            for number in range(1 + part, writes + 1, PARTS)
        }
        for namespace, number in stops.items():
            proxy.fail(*stop_after(number, namespace))
        env = FASTER | {"FINETUNING_NAMESPACES": ",".join(stops)}
        first = run_operator(env=env, via=proxy)

        def stands_still(namespace: str) -> bool:
            seen = own_writes(proxy, namespace)
            if sum(each.answered > 0 for each in seen) >= stops[namespace] or any(not each.answered for each in seen):
                return True
            # A run may take fewer writes than another: where there is no n-th one, the job ends.
            return is_told(cluster, namespace)

        for namespace in stops:
            cluster.create(manifest(namespace))

        try:
            wait_until(lambda: all(map(stands_still, stops)), what="every job stands still")
        except AssertionError as error:
            moving = [f"{number}: {namespace}" for namespace, number in stops.items() if not stands_still(namespace)]
            error.add_note(f"{moving}, the operator's exit code is {first.exit_code}\n{first.logs[-4000:]}")
            raise
        first.kill()
        cut = [namespace for namespace in stops if not is_told(cluster, namespace)]
        proxy.heal()
        second = run_operator(env=env, via=proxy)

        wait_for_outcomes(cluster, dict.fromkeys(stops, expected), operator=second)
        for namespace, number in stops.items():
            assert not [again for again in made(proxy, namespace).items() if again[1] > 1], number
            assert deleted(proxy, namespace) == [], number
        assert len(cut) > len(stops) * 3 // 4
