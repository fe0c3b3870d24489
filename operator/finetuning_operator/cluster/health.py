"""What the kubelet and Prometheus ask the operator: /healthz, /readyz and /metrics."""

from collections.abc import Callable, Mapping

from aiohttp import web

from finetuning_operator.cluster.listener import Listener

Check = Callable[[], str | None]
"""Says what is wrong, or None."""


def at_most(what: str, read: Callable[[], float | None], *, limit: float) -> Check:
    """Return a check that a number of seconds stays within its limit; None is a number that is not there yet."""

    def check() -> str | None:
        seconds = read()
        if seconds is None or seconds <= limit:
            return None
        return f"{what}: {seconds:.0f} s, at most {limit:.0f} s are healthy"

    return check


def must(what: str, read: Callable[[], bool]) -> Check:
    """Return a check that something holds; ``what`` says what is wrong where it does not."""

    def check() -> str | None:
        return None if read() else what

    return check


class HealthServer(Listener):
    """Answers on one port. Checks are asked each time, in the loop that they judge: a stuck one gives no answer."""

    def __init__(
        self,
        *,
        alive: Mapping[str, Check],
        ready: Mapping[str, Check],
        metrics: Callable[[str], tuple[bytes, str]],
    ) -> None:
        super().__init__(
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics_page),
        )
        self._alive = alive
        self._ready = ready
        self._metrics = metrics

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _verdict(self._alive)

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict(self._ready)

    async def _metrics_page(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})


def _verdict(checks: Mapping[str, Check]) -> web.Response:
    problems = {name: problem for name, check in checks.items() if (problem := check()) is not None}
    if not problems:
        return web.Response(text="ok\n")
    text = "".join(f"{name}: {problem}\n" for name, problem in problems.items())
    return web.Response(status=503, text=text)
