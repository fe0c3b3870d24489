import asyncio
import logging
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tests.support.progress import FAR_FUTURE, OWNER, FakeReviews, authenticated, made_token

from finetuning_operator.cluster.errors import Forbidden, Throttled, Unavailable
from finetuning_operator.cluster.progress.address import AUDIENCE_PREFIX, Owner
from finetuning_operator.cluster.progress.limits import RateLimit
from finetuning_operator.cluster.progress.tokens import (
    Claims,
    Reporter,
    ReporterNotAllowedError,
    ReviewUnavailableError,
    TokenRefusedError,
    TokenVerifier,
    read_claims,
)

TOKEN = made_token()
CLAIMS = Claims(OWNER, FAR_FUTURE)


class Desk:
    """A verifier with a fake behind it and a clock in hand."""

    def __init__(self, *, capacity: int = 100, burst: float = 100) -> None:
        self.now = 1000.0
        self.reviews = FakeReviews({TOKEN: authenticated()})
        limit = RateLimit(rate=1, burst=burst, clock=lambda: self.now)
        self.verifier = TokenVerifier(self.reviews, capacity=capacity, clock=lambda: self.now, limit=limit)

    async def verify(self, token: str = TOKEN, claims: Claims = CLAIMS) -> Reporter:
        return await self.verifier.verify(token, claims)

    async def settle(self) -> None:
        """Let reviews that nobody waits for come to their end."""
        await asyncio.gather(*self.verifier._in_flight.values(), return_exceptions=True)


def _at(desk: Desk, work: Callable[[Desk], Awaitable[None]]) -> Desk:
    async def run() -> None:
        await work(desk)

    asyncio.run(run())
    return desk


def test_an_audience_names_one_life_of_one_object() -> None:
    assert OWNER.audience == "progress.finetuning.dev/team-a/FineTuningJob/triage/uid-1"
    assert Owner.of_audience(OWNER.audience) == OWNER


@pytest.mark.parametrize(
    "audience",
    ["", "https://kubernetes.default.svc", AUDIENCE_PREFIX, f"{AUDIENCE_PREFIX}a/b/c", f"{OWNER.audience}/x"],
)
def test_an_audience_of_another_service_names_nobody(audience: str) -> None:
    assert Owner.of_audience(audience) is None


def test_a_token_says_for_whom_it_was_made() -> None:
    assert read_claims(TOKEN) == CLAIMS
    assert read_claims(made_token(aud=OWNER.audience)) == CLAIMS
    assert read_claims(made_token(aud=["other", OWNER.audience])) == CLAIMS


@pytest.mark.parametrize(
    "token",
    [
        "",
        "opaque",
        "a.b.c",
        "..",
        f"e30.{urlsafe_b64encode(b'[' * 3000).decode()}.x",
        made_token(aud=["https://kubernetes.default.svc"]),
        made_token(aud=[]),
        made_token(aud=None),
        made_token(aud=[OWNER.audience, replace(OWNER, name="other").audience]),
        made_token(exp="later"),
        made_token(exp=float("nan")),
    ],
)
def test_a_token_that_was_not_made_for_the_endpoint_claims_nothing(token: str) -> None:
    assert read_claims(token) is None


def test_a_genuine_token_is_reviewed_once_for_five_minutes() -> None:
    async def work(desk: Desk) -> None:
        for desk.now in (1000.0, 1001.0, 1239.0):
            assert await desk.verify() == Reporter("default", pod="triage-train-x")
        assert len(desk.reviews.asked) == 1
        desk.now = 1301.0
        await desk.verify()

    assert len(_at(Desk(), work).reviews.asked) == 2


def test_a_token_in_use_is_renewed_before_its_time_without_anybody_waiting() -> None:
    async def work(desk: Desk) -> None:
        await desk.verify()
        desk.reviews.gate = asyncio.Event()
        desk.now = 1241.0
        for _ in range(3):
            await desk.verify()
        desk.reviews.gate.set()
        await desk.settle()
        desk.now = 1400.0
        await desk.verify()

    assert len(_at(Desk(), work).reviews.asked) == 2


def test_a_token_is_not_believed_beyond_its_own_end() -> None:
    claims = replace(CLAIMS, expires_at=1060.0)

    async def work(desk: Desk) -> None:
        await desk.verify(claims=claims)
        desk.now = 1060.0
        with pytest.raises(TokenRefusedError):
            await desk.verify(claims=claims)

    assert len(_at(Desk(), work).reviews.asked) == 1


def test_many_reports_with_one_new_token_share_one_review() -> None:
    async def work(desk: Desk) -> None:
        reporters = await asyncio.gather(*(desk.verify() for _ in range(50)))
        assert set(reporters) == {Reporter("default", pod="triage-train-x")}

    assert len(_at(Desk(), work).reviews.asked) == 1


def test_a_reporter_that_hangs_up_does_not_spoil_the_review_for_the_others() -> None:
    async def work(desk: Desk) -> None:
        desk.reviews.gate = asyncio.Event()
        impatient, patient = (asyncio.create_task(desk.verify()) for _ in range(2))
        await desk.reviews.reached.wait()
        impatient.cancel()
        desk.reviews.gate.set()
        assert await patient == Reporter("default", pod="triage-train-x")

    assert len(_at(Desk(), work).reviews.asked) == 1


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        ({}, TokenRefusedError),
        ({"authenticated": False, "error": "expired"}, TokenRefusedError),
        ({**authenticated(), "authenticated": False}, TokenRefusedError),
        ({**authenticated(), "audiences": ["https://kubernetes.default.svc"]}, TokenRefusedError),
        ({**authenticated(), "audiences": None}, TokenRefusedError),
        ({"authenticated": True, "user": authenticated()["user"]}, TokenRefusedError),
        ({**authenticated(), "user": {"username": "admin"}}, ReporterNotAllowedError),
        ({**authenticated(), "user": {"username": "system:serviceaccount:team-a:"}}, ReporterNotAllowedError),
        ({**authenticated(), "user": {"username": "system:serviceaccount:team-b:default"}}, ReporterNotAllowedError),
        ({**authenticated(), "user": {"username": "system:serviceaccount:team-a-b:x"}}, ReporterNotAllowedError),
        ({**authenticated(), "user": None}, ReporterNotAllowedError),
    ],
)
def test_who_is_not_vouched_for_is_refused_and_asked_about_again_after_ten_seconds(
    status: dict[str, object], refusal: type[Exception]
) -> None:
    async def work(desk: Desk) -> None:
        desk.reviews.genuine[TOKEN] = status
        for desk.now in (1000.0, 1009.0, 1011.0):
            with pytest.raises(refusal):
                await desk.verify()

    assert len(_at(Desk(), work).reviews.asked) == 2


def test_a_token_that_is_withdrawn_is_refused_at_its_renewal() -> None:
    async def work(desk: Desk) -> None:
        await desk.verify()
        desk.reviews.genuine.clear()
        desk.now = 1241.0
        await desk.verify()
        await desk.settle()
        with pytest.raises(TokenRefusedError):
            await desk.verify()

    _at(Desk(), work)


@pytest.mark.parametrize("error", [Unavailable("down"), Throttled("busy"), Forbidden("no right")])
def test_what_cannot_be_reviewed_is_not_accepted_and_the_api_server_is_left_alone_for_a_second(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def work(desk: Desk) -> None:
        desk.reviews.error = error  # type: ignore[assignment]
        for desk.now in (1000.0, 1000.5, 1001.5):
            with pytest.raises(ReviewUnavailableError):
                await desk.verify()
        assert len(desk.reviews.asked) == 2
        desk.reviews.error, desk.now = None, 1003.0
        assert await desk.verify() == Reporter("default", pod="triage-train-x")

    _at(Desk(), work)
    assert type(error).__name__ in caplog.text


def test_a_token_that_was_accepted_outlives_a_short_outage() -> None:
    async def work(desk: Desk) -> None:
        await desk.verify()
        desk.reviews.error = Unavailable("down")
        for desk.now in (1241.0, 1270.0, 1299.0):
            await desk.verify()
            await desk.settle()
        desk.now = 1305.0
        with pytest.raises(ReviewUnavailableError):
            await desk.verify()

    _at(Desk(), work)


def test_a_flood_of_new_tokens_asks_the_api_server_within_its_limit() -> None:
    async def work(desk: Desk) -> None:
        answers = await asyncio.gather(
            *(desk.verify(made_token(name=str(index))) for index in range(50)), return_exceptions=True
        )
        kinds = [type(answer) for answer in answers]
        assert (kinds.count(TokenRefusedError), kinds.count(ReviewUnavailableError)) == (5, 45)

    assert len(_at(Desk(burst=5), work).reviews.asked) == 5


def test_memory_of_tokens_is_bounded() -> None:
    async def work(desk: Desk) -> None:
        for index in range(20):
            good, bad = made_token(name=f"good-{index}"), made_token(name=f"bad-{index}")
            desk.reviews.genuine[good] = authenticated(pod=None)
            assert await desk.verify(good) == Reporter("default")
            with pytest.raises(TokenRefusedError):
                await desk.verify(bad)

    desk = _at(Desk(capacity=3), work)
    assert (len(desk.verifier._accepted), len(desk.verifier._refused)) == (3, 3)


def test_a_token_is_nowhere_in_memory_logs_or_errors(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    unknown = made_token(name="unknown")

    async def work(desk: Desk) -> None:
        await desk.verify()
        with pytest.raises(TokenRefusedError) as refused:
            await desk.verify(unknown)
        desk.reviews.error = Unavailable(f"could not post {unknown}")
        desk.now = 2000.0
        with pytest.raises(ReviewUnavailableError) as unavailable:
            await desk.verify(unknown)
        assert unknown not in repr(refused.value) + repr(unavailable.value) + str(unavailable.value.__cause__)

    desk = _at(Desk(), work)
    memory = repr((desk.verifier._accepted, desk.verifier._refused, desk.verifier._in_flight))
    assert (TOKEN in memory, unknown in memory, unknown in caplog.text) == (False, False, False)
