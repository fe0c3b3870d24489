"""A real MLflow server on loopback: its release, with SQLite and files that it serves."""

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2
from hack import mlflow
from tests.support.processes import wait_until

ADMIN: Final = ("admin", "password-of-12")
_START_SECONDS: Final = 500
"""It imports much: on a busy machine that has not read it lately this takes minutes."""
_API: Final = "api/2.0/mlflow"


@dataclass(frozen=True, slots=True)
class MlflowServer:
    """A server that answers, and what it tells of itself."""

    url: str
    login: tuple[str, str] | None = None

    def ask(self, path: str, /, **parameters: object) -> Any:  # noqa: ANN401  (the answers of the API)
        """Return the answer to a question."""
        answer = httpx2.get(f"{self.url}/{_API}/{path}", params=_texts(parameters), auth=self.login)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tell(self, path: str, /, **body: object) -> Any:  # noqa: ANN401  (the answers of the API)
        """Return the answer to a question that is sent as JSON."""
        answer = httpx2.post(f"{self.url}/{_API}/{path}", json=body, auth=self.login)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def experiment_id(self, name: str) -> str:
        """Return the id of an experiment."""
        return str(self.ask("experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        """Return the runs of an experiment, by its name."""
        found = self.tell("runs/search", experiment_ids=[self.experiment_id(experiment)])
        return list(found.get("runs", []))

    def the_run(self, experiment: str) -> dict[str, Any]:
        """Return the only run of an experiment."""
        (run,) = self.runs(experiment)
        return run

    def points(self, run: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        """Return every value of a metric, by its step."""
        told = self.ask("metrics/get-history", run_id=run["info"]["run_id"], metric_key=key)
        return sorted(told.get("metrics", []), key=lambda each: int(each["step"]))

    def files(self, run: Mapping[str, Any], path: str = "") -> dict[str, int]:
        """Return the files of a run with their sizes."""
        asked = {"path": path} if path else {}
        found: dict[str, int] = {}
        for each in self.ask("artifacts/list", run_id=run["info"]["run_id"], **asked).get("files", []):
            found |= self.files(run, each["path"]) if each["is_dir"] else {each["path"]: int(each["file_size"])}
        return found

    def content(self, run: Mapping[str, Any], path: str) -> bytes:
        """Return a file of a run."""
        asked = {"run_uuid": run["info"]["run_id"], "path": path}
        answer = httpx2.get(f"{self.url}/get-artifact", params=asked, auth=self.login)
        assert answer.status_code == 200, answer.text
        return answer.content


def pairs(entries: list[dict[str, str]]) -> dict[str, str]:
    """Return parameters or tags of a run as a dictionary."""
    return {each["key"]: each["value"] for each in entries}


@contextmanager
def mlflow_server(
    folder: Path, *, login: bool = False, serves_files: bool = True, database: bool = True
) -> Iterator[MlflowServer]:
    """Run a server with its state in a folder; with ``login`` it answers only who is ADMIN.

    Without a database it keeps runs in text files, and a point that is sent twice is there twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = ("--artifacts-destination", folder / "artifacts")
    place = ("--no-serve-artifacts", "--default-artifact-root", folder / "elsewhere")
    command = [
        *(mlflow.require(), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", 1),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}" if database else folder / "runs"),
        *(files if serves_files else place),
        *(("--app-name", "basic-auth") if login else ()),
    ]
    server = MlflowServer(f"http://127.0.0.1:{port}", ADMIN if login else None)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command], env=_environment(folder, login=login), cwd=folder, stdout=log, stderr=log
        )
        try:
            up = partial(_answers, server, process, folder / "log")
            wait_until(up, seconds=_START_SECONDS, what="MLflow answers", pause_seconds=0.1)
            yield server
        finally:
            process.terminate()
            process.wait()


def _answers(server: MlflowServer, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")
    try:
        return httpx2.get(f"{server.url}/health").status_code == 200
    except httpx2.TransportError:
        return False


def _environment(folder: Path, *, login: bool) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    quiet = {"HOME": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet |= {"MLFLOW_ALLOW_FILE_STORE": "true"}
    if not login:
        return kept | quiet
    user, password = ADMIN
    database = f"sqlite:///{folder / 'users.db'}"
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\nadmin_username = {user}\n"
        f"admin_password = {password}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    auth = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-test"}
    return kept | quiet | auth


def _texts(parameters: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items()}
