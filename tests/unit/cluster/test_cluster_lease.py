import asyncio
import heapq
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning_operator.cluster.errors import AlreadyExists, ApiError, Conflict, NotFound, Unavailable
from finetuning_operator.cluster.kinds import KindRef
from finetuning_operator.cluster.lease import Leadership, LeaseTiming

if TYPE_CHECKING:
    from finetuning_operator.cluster.api import ClusterApi

TIMING = LeaseTiming(duration=15, margin=5, renew_every=5, retry_every=2)


_END = 1200.0
"""No scenario is longer, whatever goes wrong."""


class _Ended(Exception):
    """The scenario is over."""


class _World:
    """A Lease, a clock, and things that happen at certain moments."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.happenings: list[tuple[float, Callable[[], object]]] = []
        self.broken = False
        self.loses_answers = False
        self.led_at: float | None = None

    # What a Leadership uses of the API.

    def unguarded(self, **_limits: float) -> "_World":
        return self

    async def get(self, _kind: KindRef, _namespace: str, _name: str) -> dict[str, Any]:
        self._answer()
        if self.lease is None:
            raise NotFound("no such Lease", status=404)
        return deepcopy(self.lease)

    async def create(self, _kind: KindRef, _namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        if self.lease is not None:
            raise AlreadyExists("the Lease exists", status=409)
        return self.write(**body["spec"])

    async def merge(self, _kind: KindRef, _namespace: str, _name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        if self.lease is None:
            raise NotFound("no such Lease", status=404)
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified", status=409)
        written = self.write(**body["spec"])
        if self.loses_answers:
            raise Unavailable("the answer was cut")
        return written

    def _answer(self) -> None:
        if self.broken:
            raise Unavailable("connection refused")

    # What a test does.

    def write(self, **spec: object) -> dict[str, Any]:
        self.version += 1
        merged = {**(self.lease["spec"] if self.lease else {}), **spec}
        kept = {name: value for name, value in merged.items() if value is not None}
        self.lease = {"metadata": {"resourceVersion": str(self.version)}, "spec": kept}
        return deepcopy(self.lease)

    def at(self, moment: float, what: Callable[[], object]) -> None:
        self.happenings.append((1000.0 + moment, what))
        self.happenings.sort(key=lambda happening: happening[0])

    async def pause(self, seconds: float) -> None:
        until = self.now + seconds
        while self.happenings and self.happenings[0][0] <= until:
            moment, what = self.happenings.pop(0)
            self.now = max(self.now, moment)
            what()
        self.now = max(self.now, until)
        await asyncio.sleep(0)
        if self.now > _END:
            raise _Ended

    def candidate(self, identity: str = "me") -> Leadership:
        return Leadership(
            cast("ClusterApi", self),
            namespace="system",
            name="operator",
            identity=identity,
            timing=TIMING,
            clock=lambda: self.now,
            pause=self.pause,
        )

    def run(self, leadership: Leadership) -> None:
        """Campaign until leadership is lost or the scenario ends."""

        def note() -> None:
            self.led_at = self.now - 1000.0

        try:
            asyncio.run(leadership.run(note))
        except _Ended:
            return

    def end(self) -> None:
        raise _Ended

    @property
    def holder(self) -> object:
        return self.lease["spec"].get("holderIdentity") if self.lease else None


@pytest.fixture
def world() -> _World:
    return _World()


def _fails(world: _World) -> None:
    world.broken = True


def _recovers(world: _World) -> None:
    world.broken = False


def test_who_comes_first_creates_the_lease_and_leads_at_once(world: _World) -> None:
    world.at(60, world.end)
    me = world.candidate()

    world.run(me)

    assert (world.led_at, world.holder, me.held()) == (0.0, "me", True)
    assert world.lease is not None
    assert world.lease["spec"]["leaseTransitions"] == 1
    assert world.lease["spec"]["leaseDurationSeconds"] == 15
    assert world.version == 12  # Created, then renewed each five seconds.


@pytest.mark.parametrize("renewed", ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"])
def test_clocks_of_others_do_not_matter_only_the_time_that_the_lease_was_seen_unchanged(
    world: _World, renewed: str
) -> None:
    world.write(holderIdentity="other", leaseDurationSeconds=15, renewTime=renewed, leaseTransitions=4)
    world.at(60, world.end)

    world.run(world.candidate())

    assert world.led_at is not None
    assert 15 <= world.led_at <= 17
    assert world.lease is not None
    assert world.lease["spec"]["leaseTransitions"] == 5


def test_a_lease_that_is_renewed_is_left_alone(world: _World) -> None:
    world.write(holderIdentity="other", leaseDurationSeconds=15, renewTime="0")
    for second in range(0, 100, 14):
        world.at(second, partial(world.write, renewTime=str(second)))
    world.at(100, world.end)

    world.run(world.candidate())

    assert (world.led_at, world.holder) == (None, "other")


def test_a_holder_that_promised_a_longer_lease_gets_it(world: _World) -> None:
    world.write(holderIdentity="other", leaseDurationSeconds=40)
    world.at(90, world.end)

    world.run(world.candidate())

    assert world.led_at is not None
    assert 40 <= world.led_at <= 42


@pytest.mark.parametrize("holder", ["", None, "me"])
def test_a_released_lease_and_one_of_this_very_pod_are_taken_at_once(world: _World, holder: str | None) -> None:
    world.write(holderIdentity=holder, leaseDurationSeconds=15)
    world.at(1, world.end)

    world.run(world.candidate())

    assert (world.led_at, world.holder) == (0.0, "me")


def test_a_leader_stops_before_others_may_start_when_the_api_server_is_away(world: _World) -> None:
    me = world.candidate()
    held: list[bool] = []
    world.at(6, lambda: _fails(world))
    world.at(14.9, lambda: held.append(me.held()))
    world.at(15.1, lambda: held.append(me.held()))

    world.run(me)

    # Renewed for the last time at 5 s: others may take over from 20 s on.
    assert held == [True, False]
    assert world.now <= 1000.0 + 17


def test_a_short_outage_costs_nothing(world: _World) -> None:
    world.at(6, lambda: _fails(world))
    world.at(11, lambda: _recovers(world))
    world.at(60, world.end)
    me = world.candidate()

    world.run(me)

    assert (me.held(), world.holder) == (True, "me")


def test_a_renewal_whose_answer_was_lost_counts_only_once_it_is_confirmed(world: _World) -> None:
    def loses() -> None:
        world.loses_answers = True

    def answers() -> None:
        world.loses_answers = False

    world.at(6, loses)
    world.at(11, answers)
    world.at(60, world.end)
    me = world.candidate()

    world.run(me)

    assert (me.held(), world.holder) == (True, "me")


def test_a_process_that_was_frozen_neither_writes_nor_renews_when_it_wakes(world: _World) -> None:
    me = world.candidate()
    woke: list[bool] = []

    def freeze() -> None:
        world.write(holderIdentity="other", renewTime="x")  # Somebody took over meanwhile.
        world.now += 60
        woke.append(me.held())

    world.at(7, freeze)

    world.run(me)

    assert woke == [False]
    assert world.holder == "other"
    assert world.version == 3  # Created, renewed once, taken over: not touched since.


def test_a_leader_whose_lease_was_taken_is_none_at_once(world: _World) -> None:
    me = world.candidate()
    world.at(7, lambda: world.write(holderIdentity="other"))

    world.run(me)

    # The first renewal finds a conflict, the second the other one.
    assert (me.held(), world.holder, world.now <= 1000.0 + 14) == (False, "other", True)


def test_a_lease_that_somebody_deletes_is_made_again(world: _World) -> None:
    def delete() -> None:
        world.lease = None

    world.at(7, delete)
    world.at(60, world.end)
    me = world.candidate()

    world.run(me)

    assert (me.held(), world.holder) == (True, "me")


@pytest.mark.parametrize("error", [None, Unavailable("connection refused")])
def test_a_released_lease_is_held_no_more_whether_or_not_the_server_heard(
    world: _World, error: ApiError | None
) -> None:
    world.at(1, world.end)
    me = world.candidate()
    world.run(me)
    assert me.held()
    world.broken = error is not None

    asyncio.run(me.release())

    assert not me.held()
    assert world.holder == (None if error is None else "me")


def test_the_lease_of_a_successor_is_not_released(world: _World) -> None:
    world.at(1, world.end)
    me = world.candidate()
    world.run(me)
    world.write(holderIdentity="other")

    asyncio.run(me.release())

    assert (me.held(), world.holder) == (False, "other")


@dataclass
class _Time:
    """Time that passes as soon as everybody waits for it."""

    now: float = 0.0
    waiting: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    asleep: int = 0

    async def pause(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self.asleep += 1
        heapq.heappush(self.waiting, (self.now + seconds, self.asleep, future))
        await future

    async def pass_until(self, end: float, look: Callable[[], None]) -> None:
        while self.waiting and self.waiting[0][0] <= end:
            moment, _order, future = heapq.heappop(self.waiting)
            self.now = moment
            future.set_result(None)
            for _ in range(10):  # Whoever woke goes on until it waits again.
                await asyncio.sleep(0)
                look()


class _Replica:
    """A candidate with its own clock and its own bad luck: each request and each pause takes longer than it should."""

    def __init__(self, world: _World, *, time: _Time, name: str, offset: float, luck: list[float]) -> None:
        self._world = world
        self._time = time
        self._luck = luck
        self.leadership = Leadership(
            cast("ClusterApi", self),
            namespace="system",
            name="operator",
            identity=name,
            timing=TIMING,
            clock=lambda: time.now + offset,
            pause=self._pause,
        )

    def unguarded(self, **_limits: float) -> "_Replica":
        return self

    async def get(self, kind: KindRef, namespace: str, name: str) -> dict[str, Any]:
        return await self._slowly(lambda: self._world.get(kind, namespace, name))

    async def create(self, kind: KindRef, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._slowly(lambda: self._world.create(kind, namespace, body))

    async def merge(self, kind: KindRef, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._slowly(lambda: self._world.merge(kind, namespace, name, body))

    async def _slowly(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        await self._time.pause(self._draw())
        answer = await ask()
        await self._time.pause(self._draw())
        return answer

    async def _pause(self, seconds: float) -> None:
        await self._time.pause(seconds + self._draw())

    def _draw(self) -> float:
        # The list goes round: a run is as long as it takes.
        self._luck.append(self._luck.pop(0))
        return self._luck[0]


_LUCK = st.lists(st.sampled_from([0.0, 0.01, 0.5, 3.0, 9.0, 30.0, 60.0]), min_size=3, max_size=12)


@settings(max_examples=150)
@given(lucks=st.tuples(_LUCK, _LUCK), offsets=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)))
def test_two_replicas_never_lead_at_once_whatever_is_slow_or_frozen(
    lucks: tuple[list[float], list[float]], offsets: tuple[float, float]
) -> None:
    world, time = _World(), _Time()

    async def scenario() -> None:
        replicas = [
            _Replica(world, time=time, name=name, offset=offset, luck=list(luck))
            for name, offset, luck in zip("ab", offsets, lucks, strict=True)
        ]
        tasks = [asyncio.create_task(replica.leadership.run(lambda: None)) for replica in replicas]
        await asyncio.sleep(0)
        await time.pass_until(
            600.0, lambda: _assert_one([replica.leadership.held() for replica in replicas], at=time.now)
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert world.lease is not None

    asyncio.run(scenario())


def _assert_one(held: list[bool], *, at: float) -> None:
    assert held.count(True) <= 1, f"both lead at {at}"
