"""`finetune serve`: the models of a local job behind the server that clusters run, until Ctrl-C."""

import json
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

import typer

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ServeConfig
from finetuning_cli.commands.inspect import find_job
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.models import serve_config
from finetuning_cli.local.program import Program, running
from finetuning_cli.manifest import load_manifest
from finetuning_workload.errors import UserError

LOOPBACK = "127.0.0.1"
_LOOK_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_READY = 200
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(target: str, *, state: Path, host: str, port: int, tokens: Path | None) -> None:
    """Serve a job's models and return once it was asked to stop. Raises UserError when that cannot be."""
    layout = Layout.at(state)
    config = config_for(target, layout=layout, host=host, port=port, tokens=tokens)
    with running(config, shows_log=True) as program, _stopping(program) as requests:
        if is_ready(program, config):
            _tell(config)
        program.process.wait()
        if not requests.count:
            raise program.failure()


def config_for(target: str, *, layout: Layout, host: str, port: int, tokens: Path | None = None) -> ServeConfig:
    """Return what the server of a job is told; the job is named by itself or by its manifest. Raises UserError."""
    job, objects = find_job(_name_of(target, layout), layout)
    if not isinstance(job, FineTuningJob):
        raise UserError(Reason.INVALID_SPEC, f"{target} is an {job.kind}: it has no adapter", "Name a FineTuningJob.")
    if tokens is not None and not tokens.is_dir():
        hint = "It holds a file for each token, named after its holder, with the token in its first line."
        raise UserError(Reason.INVALID_SPEC, f"--tokens: there is no folder {tokens}", hint)
    config = serve_config(job, objects=objects, layout=layout, host=host, port=port, tokens=tokens)
    _require_free(host, port)
    return config


def free_port() -> int:
    """Return a port of the loopback device that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_ready(program: Program, config: ServeConfig) -> bool:
    """Wait until the server answers requests; return whether it does, rather than having ended."""
    while program.process.poll() is None:
        if _answers(config):
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _name_of(target: str, layout: Layout) -> str:
    if not Path(target).is_file():
        return target
    jobs = [each for each in load_manifest(Path(target)).resources if isinstance(each, FineTuningJob)]
    if not jobs:
        raise UserError(Reason.INVALID_SPEC, f"{target} holds no FineTuningJob", "Name a job, or the manifest of one.")
    name = jobs[0].metadata.name
    if not layout.object_file(FineTuningJob.__name__, name).exists():
        message = f"{name} was not run in {layout.root}"
        raise UserError(Reason.WAITING, message, f"Run it first: finetune run {target}")
    return name


def _require_free(host: str, port: int) -> None:
    """Raise UserError where the server could not listen; the server itself says so if somebody is quicker."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        message = f"cannot listen on port {port} of {host}: {error.strerror or error}"
        raise UserError(Reason.INVALID_SPEC, message, "Choose another one with --port or --host.") from error


def _answers(config: ServeConfig) -> bool:
    http = HTTPConnection(_reachable(config.host), config.port, timeout=_ANSWER_SECONDS)
    try:
        http.request("GET", "/readyz")
        return http.getresponse().status == _READY
    except (OSError, HTTPException):
        return False
    finally:
        http.close()


def _reachable(host: str) -> str:
    """Return where a server is asked on its own machine: every device is not an address."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)


def _tell(config: ServeConfig) -> None:
    host = _reachable(config.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
    names = ", ".join((config.served_name, *(each.name for each in config.adapters if not each.awaited)))
    typer.echo(f"serves {names} at {url} until Ctrl-C")
    for awaited in (each.name for each in config.adapters if each.awaited):
        typer.echo(f"  {awaited} is served from the moment that it is trained")
    token = [] if config.tokens_path is None else ["-H", "Authorization: Bearer TOKEN"]
    body = json.dumps({"input_prompt": "Hello"})
    command = ["curl", f"{url}/prompt", *token, "-H", "Content-Type: application/json", "-d", body]
    typer.echo(f"  {shlex.join(command)}")


@dataclass(slots=True)
class _Requests:
    """How often somebody asked to stop."""

    count: int = 0


@contextmanager
def _stopping(program: Program) -> Iterator[_Requests]:
    """Pass requests to stop on to a server: the first lets it end what it does, the second ends it at once."""
    requests = _Requests()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        requests.count += 1
        if requests.count == 1:
            program.terminate()
        else:
            program.process.kill()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
