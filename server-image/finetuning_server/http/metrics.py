"""What Prometheus reads at /metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from finetuning_server.engine.base import Load

CONTENT_TYPE = CONTENT_TYPE_LATEST
_PREFIX = "finetuning_server_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ROUTES = frozenset(
    {
        "/v1/models",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/prompt",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
    }
)


class Meters:
    """Counts and times of one server, in a registry of its own."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(_PREFIX + name, text, labels, buckets=_SECONDS, registry=registry)

        self._requests = counter("requests", "Requests answered.", "route", "model", "status")
        self._splits = counter(
            "canary_requests",
            "Requests for a name of two models, by the one that answered.",
            "asked",
            "model",
            "status",
        )
        self._seconds = histogram("request_seconds", "Seconds from a request's head to the answer's end.", "route")
        self._first_token = histogram(
            "first_token_seconds", "Seconds from a request's head to its first token.", "model"
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", "model")
        self._generated = counter("generated_tokens", "Tokens generated.", "model")
        self._in_flight = Gauge(
            f"{_PREFIX}requests_in_flight", "Requests that generate or wait for their turn.", registry=registry
        )
        for name, text, field in (
            ("requests_running", "Completions that the engine generates now.", "running"),
            ("requests_waiting", "Completions in the engine's queue.", "waiting"),
            ("cached_tokens", "Tokens whose keys and values are in memory.", "cached_tokens"),
        ):
            gauge = Gauge(_PREFIX + name, text, registry=registry)
            gauge.set_function(lambda field=field: getattr(load(), field))  # type: ignore[misc]

    def count(self, path: str, *, model: str | None, status: int, seconds: float) -> None:
        """Count a request that is over."""
        route = route_of(path)
        self._requests.labels(route, model or "", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_split(self, asked: str, *, model: str, status: int) -> None:
        """Count a request that was asked of a name of two models."""
        self._splits.labels(asked, model, str(status)).inc()

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as one that occupies the engine."""
        with self._in_flight.track_inprogress():
            yield

    def count_prompt(self, model: str, tokens: int) -> None:
        """Count the tokens of a request's prompts."""
        self._prompt_tokens.labels(model).inc(tokens)

    def count_first_token(self, model: str, seconds: float) -> None:
        """Count how long a request waited for its first token."""
        self._first_token.labels(model).observe(seconds)

    def count_generated(self, model: str, tokens: int) -> None:
        """Count generated tokens."""
        self._generated.labels(model).inc(tokens)

    def exposition(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self._registry)


def route_of(path: str) -> str:
    """Return the label of a path: few values, whatever clients ask for."""
    if path in _ROUTES:
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
