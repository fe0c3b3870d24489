"""A server under test: on real sockets, with an engine of the test's choice."""

import io
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from openai import AsyncOpenAI, OpenAI
from tests.support.processes import wait_until
from tests.support.scripted_engine import ScriptedEngine

from finetuning_api.runconfig import AdapterInput, JobIdentity, ModelInput, Provenance, ServeConfig
from finetuning_server.engine.base import Engine
from finetuning_server.serve import Patience, serve_engine
from finetuning_workload.program import StopFlag

SECONDS = 60
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without the authorities of the machine, which take a quarter of a second to read."""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def serve_config(model: Path | None = None, *, adapters: tuple[AdapterInput, ...] = (), **more: Any) -> ServeConfig:  # noqa: ANN401  (fields of the config)
    """Return the RunConfig of a server on loopback."""
    path = str(model or "/models/base")
    provenance = Provenance(source="file://base", digest="sha256:base")
    return ServeConfig(
        job=JobIdentity(kind="InferenceServer", name="support"),
        model=ModelInput(path=path, tokenizer_path=path, provenance=provenance, tokenizer_provenance=provenance),
        served_name="base",
        adapters=adapters,
        host="127.0.0.1",
        **{"port": free_port(), **more},
    )


@dataclass(slots=True)
class Served:
    """A server that runs in this process."""

    url: str
    engine: Any
    """The one behind it; None where it is in another process."""
    stop: StopFlag = field(default_factory=StopFlag)
    log: io.StringIO = field(default_factory=io.StringIO)
    failure: list[BaseException] = field(default_factory=list)
    thread: threading.Thread = field(default_factory=threading.Thread)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def http(self, **more: Any) -> httpx.Client:  # noqa: ANN401  (options of the client)
        """Return a client of plain HTTP."""
        return httpx.Client(base_url=self.url, timeout=SECONDS, verify=_NO_TLS, **more)

    def openai(self, token: str | None = None) -> OpenAI:
        """Return OpenAI's client; it never tries again by itself."""
        client = openai.DefaultHttpxClient(verify=_NO_TLS)
        key = token or "not-asked-for"
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=SECONDS, http_client=client)

    def async_openai(self) -> AsyncOpenAI:
        """Return OpenAI's asynchronous client."""
        client = openai.DefaultAsyncHttpxClient(verify=_NO_TLS)
        url, key = f"{self.url}/v1", "not-asked-for"
        return AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=SECONDS, http_client=client)

    def line(self, request_id: str) -> dict[str, Any]:
        """Return the line of a request in the access log, which is written when its answer is sent."""

        def lines() -> list[dict[str, Any]]:
            told = (json.loads(line) for line in self.log.getvalue().splitlines())
            return [line for line in told if line["request_id"] == request_id]

        wait_until(lambda: bool(lines()), what=f"the access log tells of {request_id}")
        (line,) = lines()
        return line

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric; 0 for one that was never counted."""
        told = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        sample = f"finetuning_server_{name}{{{told}}} " if labels else f"finetuning_server_{name} "
        text = httpx.get(f"{self.url}/metrics", timeout=SECONDS, verify=_NO_TLS).text
        return next((float(line.removeprefix(sample)) for line in text.splitlines() if line.startswith(sample)), 0.0)


@contextmanager
def served(
    engine: Engine | None = None,
    *,
    config: ServeConfig | None = None,
    patience: Patience | None = None,
    ready: bool = True,
) -> Iterator[Served]:
    """Run a server in a thread, from when it is ready or, else, from when it listens; it is stopped at the end."""
    config = config or serve_config()
    server = Served(url=f"http://127.0.0.1:{config.port}", engine=engine or ScriptedEngine())
    patience = patience or Patience(last_call_seconds=0.0)

    def run() -> None:
        try:
            serve_engine(server.engine, config, stop=server.stop, log=server.log, patience=patience)
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            logging.getLogger(__name__).warning("the server ended: %r", error)
            server.failure.append(error)

    server.thread = threading.Thread(target=run, daemon=True)
    server.thread.start()
    probe = "/readyz" if ready else "/healthz"
    wait_until(lambda: bool(server.failure) or is_ready(server.url, probe), what=f"the server answers {probe}")
    try:
        yield server
    finally:
        server.stop.set()
        server.thread.join(SECONDS)
        assert not server.thread.is_alive(), "the server did not end"


def is_ready(url: str, probe: str = "/readyz") -> bool:
    """Return whether a server answers a probe with success."""
    try:
        return httpx.get(f"{url}{probe}", timeout=SECONDS, verify=_NO_TLS).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
