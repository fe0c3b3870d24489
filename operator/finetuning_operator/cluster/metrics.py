"""What the operator counts, for Prometheus, in a registry of its own: nothing is shared within a process."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from finetuning_operator.cluster.api import Call

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LONG = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 3 * 3600.0, 12 * 3600.0, 24 * 3600.0, 72 * 3600.0)

Counts = Mapping[tuple[str, str], int]


class _ObjectCounter(Collector):
    """Asks for the counts when somebody looks, so that nothing has to be kept in step with the cache."""

    def __init__(self, counts: Callable[[], Counts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("finetuning_objects", "Objects by kind and phase.", labels=("kind", "phase"))
        for (kind, phase), count in sorted(self._counts().items()):
            family.add_metric((kind, phase), count)
        yield family


class Metrics:
    """Everything that is counted. Labels are bounded: kinds, phases, stages, reasons and results, never names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._reconcile_seconds = Histogram(
            "finetuning_reconcile_seconds",
            "Time to observe, plan and apply one object.",
            ("kind", "result"),
            buckets=_QUICK,
            registry=self.registry,
        )
        self._retries = self._counter("retries", "Objects taken up again after a failure.", "kind")
        self._api_requests = self._counter("api_requests", "Requests to the API server.", "verb", "resource", "code")
        self._api_seconds = Histogram(
            "finetuning_api_request_seconds",
            "Time until the API server answered.",
            ("verb",),
            buckets=_QUICK,
            registry=self.registry,
        )
        self._stage_seconds = Histogram(
            "finetuning_stage_seconds",
            "Time that a stage took.",
            ("kind", "stage"),
            buckets=_LONG,
            registry=self.registry,
        )
        self._failures = self._counter("failures", "Objects that failed.", "kind", "reason")
        self._progress_reports = self._counter("progress_reports", "Progress reports of programs.", "result")

    def objects(self, counts: Callable[[], Counts]) -> None:
        """Show how many objects of each (kind, phase) there are, as ``counts`` says at that moment."""
        self.registry.register(_ObjectCounter(counts))

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Show ``finetuning_<name>`` as ``read`` says at that moment, for example the depth of the queue."""
        Gauge(f"finetuning_{name}", help_text, registry=self.registry).set_function(read)

    def reconciled(self, kind: str, *, result: str, seconds: float) -> None:
        self._reconcile_seconds.labels(kind, result).observe(seconds)

    def retried(self, kind: str) -> None:
        self._retries.labels(kind).inc()

    def called(self, call: Call) -> None:
        """Count a request to the API server; the code 0 says that no answer came."""
        self._api_requests.labels(call.verb, call.resource, str(call.code)).inc()
        self._api_seconds.labels(call.verb).observe(call.seconds)

    def stage_ended(self, kind: str, *, stage: str, seconds: float) -> None:
        self._stage_seconds.labels(kind, stage).observe(seconds)

    def failed(self, kind: str, *, reason: str) -> None:
        self._failures.labels(kind, reason).inc()

    def progress_reported(self, result: str) -> None:
        self._progress_reports.labels(result).inc()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the text that Prometheus reads and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"finetuning_{name}", help_text, labels, registry=self.registry)
