"""The progress endpoint of the operator, as tests run it: in a thread of its own, on loopback, with real TLS."""

import asyncio
import json
import ssl
import threading
from base64 import urlsafe_b64encode
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx

from finetuning_api.runconfig import TrainerStatus
from finetuning_operator.cluster.errors import ApiError
from finetuning_operator.cluster.progress.address import Owner, ProgressKey
from finetuning_operator.cluster.progress.certificates import self_signed
from finetuning_operator.cluster.progress.server import ProgressEndpoint, ProgressServer
from finetuning_operator.cluster.progress.store import ProgressStore
from finetuning_operator.cluster.progress.tokens import ReviewApi, TokenVerifier

FAR_FUTURE = 4_000_000_000.0
OWNER = Owner("team-a", "FineTuningJob", "triage", "uid-1")
TRAIN = ProgressKey("team-a", "FineTuningJob", "triage", "train")

_T = TypeVar("_T")


def report(**status: object) -> dict[str, object]:
    """Return the body of a report."""
    return {"trainerStatus": {"lastUpdatedTime": "2026-03-01T12:00:00+00:00", "metrics": [], **status}}


def made_token(owner: Owner = OWNER, *, expires_at: float = FAR_FUTURE, name: str = "trainer", **claims: object) -> str:
    """Return a token that claims what a projected one would, with a signature that is none."""
    payload = {"aud": [owner.audience], "exp": expires_at, "sub": name, **claims}
    return ".".join(
        urlsafe_b64encode(part).rstrip(b"=").decode() for part in (b"{}", json.dumps(payload).encode(), b"-")
    )


def authenticated(
    owner: Owner = OWNER, *, account: str = "default", pod: str | None = "triage-train-x"
) -> dict[str, Any]:
    """Return what an API server says of a genuine token."""
    extra = {} if pod is None else {"authentication.kubernetes.io/pod-name": [pod]}
    user = {"username": f"system:serviceaccount:{owner.namespace}:{account}", "extra": extra}
    return {"authenticated": True, "audiences": [owner.audience], "user": user}


@dataclass(slots=True)
class FakeReviews:
    """A fake of the API server's TokenReview: it believes the tokens that it was told of."""

    genuine: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    error: ApiError | None = None
    gate: asyncio.Event | None = None
    """Where set, answers wait for it."""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first question."""

    async def create_raw(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == "/apis/authentication.k8s.io/v1/tokenreviews"
        token = body["spec"]["token"]
        self.asked.append(token)
        self.reached.set()
        await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        if self.error is not None:
            raise self.error
        return {"status": self.genuine.get(token, {"error": f"unknown token {token}"})}


@dataclass(slots=True)
class RunningEndpoint:
    """An endpoint that listens, and what a test needs to look at it and to talk to it."""

    reviews: ReviewApi
    folder: Path
    owners: set[Owner] = field(default_factory=lambda: {OWNER})
    leading: bool = True
    answers: list[HTTPStatus] = field(default_factory=list)
    changed: list[tuple[ProgressKey, TrainerStatus | None]] = field(default_factory=list)
    """What the operator was told was worth a write."""
    store: ProgressStore = field(init=False)
    server: ProgressServer = field(init=False)
    verifier: TokenVerifier = field(init=False)
    url: str = field(init=False, default="")
    ca: Path = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False, default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        signed = self_signed(["127.0.0.1", "localhost"], now=datetime.now(UTC))
        self.ca = self.folder / "ca.crt"
        self.ca.write_text(signed.ca)
        certificate, key = signed.write(self.folder)
        self.store = ProgressStore(lambda key: self.changed.append((key, self.store.get(key))))
        self.verifier = TokenVerifier(self.reviews)
        endpoint = ProgressEndpoint(
            self.store,
            self.verifier,
            knows=lambda key, uid: any(key.belongs_to(owner) and owner.uid == uid for owner in self.owners),
            leading=lambda: self.leading,
            answered=self.answers.append,
            body_seconds=0.5,
        )
        self.server = ProgressServer(endpoint, certificate=certificate, key=key)

    def url_of(self, key: ProgressKey = TRAIN) -> str:
        """Return where a step reports."""
        return f"{self.url}{key.path}"

    def client(self) -> httpx.Client:
        """Return a client that trusts the endpoint; the caller closes it."""
        return httpx.Client(verify=ssl.create_default_context(cafile=self.ca), trust_env=False, timeout=10)

    def post(
        self,
        token: str | None,
        *,
        key: ProgressKey = TRAIN,
        json: object = None,
        content: bytes | Iterator[bytes] | None = None,
    ) -> httpx.Response:
        """Report as a pod does."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body: dict[str, Any] = {"json": report() if json is None else json} if content is None else {"content": content}
        with self.client() as client:
            return client.post(self.url_of(key), headers=headers, **body)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do something in the endpoint's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    @contextmanager
    def listening(self) -> Iterator["RunningEndpoint"]:
        """Listen on loopback for as long as the context lasts."""
        thread = threading.Thread(target=self._loop.run_forever, name="progress-endpoint", daemon=True)
        thread.start()
        try:
            self.url = f"https://127.0.0.1:{self.run(self.server.start(port=0, host='127.0.0.1'))}"
            yield self
        finally:
            self.run(self.server.close())
            self.run(_settle())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()


async def _settle() -> None:
    """Let the tasks of closed connections come to their end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
