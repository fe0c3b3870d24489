"""An MLflow server, by the documented calls of its REST API (https://mlflow.org/docs/latest/api_reference/rest-api.html)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx2

from finetuning_api.reasons import Reason
from finetuning_relocator.credentials import Credentials
from finetuning_relocator.faults import from_status
from finetuning_relocator.sources.http import explained, timeouts
from finetuning_workload.errors import ProgramError, UserError

TOKEN_KEY: Final = "MLFLOW_TRACKING_TOKEN"  # noqa: S105  (the name of a key)
USER_KEYS: Final = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_API: Final = "api/2.0/mlflow"
_ARTIFACTS: Final = "api/2.0/mlflow-artifacts/artifacts"
_ANSWER_SECONDS: Final = 60.0
_DEFAULT_EXPERIMENT: Final = "0"
_METRICS_AT_ONCE, _OTHERS_AT_ONCE = 1000, 100
"""The most that one request may hold."""
_SHOWN_CHARACTERS: Final = 300
_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    step: int
    milliseconds: int
    """Time since the epoch."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the server knows it."""

    id: str
    artifact_uri: str
    parameters: frozenset[str]
    """Names of those that it has already: what is written once stays."""
    metrics: frozenset[str]
    """Names of those of which it has values."""


class TrackingServer:
    """One MLflow server. A context manager, which closes its connections."""

    def __init__(self, uri: str, credentials: Credentials) -> None:
        self._uri, self._credentials = uri.rstrip("/"), credentials
        headers, auth = _authentication(credentials)
        self._client = httpx2.Client(
            timeout=timeouts(_ANSWER_SECONDS), follow_redirects=False, headers=headers, auth=auth
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def experiment(self, name: str | None) -> str:
        """Return the id of an experiment, which is made where it is not there; None is that which is always there.

        Raises UserError for one that was deleted: nothing can be written to it, and its name is taken.
        """
        if name is None:
            return _DEFAULT_EXPERIMENT
        found = self._experiment(name)
        if found is None:
            # Somebody else may make it at this moment.
            made = self._call("POST", "experiments/create", json={"name": name}, missing=("RESOURCE_ALREADY_EXISTS",))
            return str(made["experiment_id"]) if made else str((self._experiment(name) or {})["experiment_id"])
        if found.get("lifecycle_stage") == "deleted":
            message = f"the experiment {name!r} of {self._uri} is deleted"
            raise UserError(Reason.TRACKING_FAILED, message, "Restore it, or name another in spec.tracking.experiment.")
        return str(found["experiment_id"])

    def find_run(self, experiment: str, *, tag: str, value: str) -> Run | None:
        """Return the run of an experiment that has a tag, None where there is none; of several, the first."""
        body = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{tag}` = '{value}'",
            "order_by": ["attributes.start_time ASC"],
            "max_results": 1,
        }
        found = self._call("POST", "runs/search", json=body) or {}
        return next((_run(each) for each in found.get("runs", ())), None)

    def create_run(self, experiment: str, *, name: str, started: int, tags: Mapping[str, str]) -> Run:
        """Make a run that has these tags from its first moment on."""
        body = {"experiment_id": experiment, "run_name": name, "start_time": started, "tags": _pairs(tags)}
        return _run((self._call("POST", "runs/create", json=body) or {})["run"])

    def steps_of(self, run: Run, key: str) -> frozenset[int]:
        """Return the steps of which the server has a value of a metric."""
        steps: set[int] = set()
        page: str | None = ""
        while page is not None:
            asked = {"run_id": run.id, "metric_key": key} | ({"page_token": page} if page else {})
            history = self._call("GET", "metrics/get-history", params=asked) or {}
            steps.update(int(each.get("step", 0)) for each in history.get("metrics", ()))
            page = history.get("next_page_token") or None
        return frozenset(steps)

    def log_points(self, run: Run, points: Sequence[Point]) -> None:
        """Add values of metrics."""
        metrics = [
            {"key": each.key, "value": _number(each.value), "timestamp": each.milliseconds, "step": each.step}
            for each in points
        ]
        self._log(run, "metrics", metrics, at_once=_METRICS_AT_ONCE)

    def log_texts(self, run: Run, *, parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add parameters that the run does not have yet, and set tags."""
        lacking = {name: value for name, value in parameters.items() if name not in run.parameters}
        self._log(run, "params", _pairs(lacking), at_once=_OTHERS_AT_ONCE)
        self._log(run, "tags", _pairs(tags), at_once=_OTHERS_AT_ONCE)

    def end_run(self, run: Run, *, name: str, status: str, ended: int) -> None:
        """Say how a run ended, and when."""
        body = {"run_id": run.id, "run_name": name, "status": status, "end_time": ended}
        self._call("POST", "runs/update", json=body)

    def artifact_folder(self, run: Run) -> str | None:
        """Return the address below which files of a run are put; None where the server does not take them itself."""
        place = urlsplit(run.artifact_uri)
        if place.scheme != "mlflow-artifacts" or place.netloc not in {"", urlsplit(self._uri).netloc}:
            return None
        return f"{self._uri}/{_ARTIFACTS}/{quote(place.path.strip('/'))}"

    def put(self, folder: str, path: str, file: Path) -> None:
        """Store a file of a run; one that is there already is replaced."""
        with file.open("rb") as content, explained(self._host):
            response = self._client.put(f"{folder}/{quote(path)}", content=content)
        self._require_success(response)

    def _log(self, run: Run, kind: str, entries: Sequence[Mapping[str, object]], *, at_once: int) -> None:
        for start in range(0, len(entries), at_once):
            body = {"run_id": run.id, kind: entries[start : start + at_once]}
            self._call("POST", "runs/log-batch", json=body)

    def _experiment(self, name: str) -> Mapping[str, Any] | None:
        found = self._call(
            "GET", "experiments/get-by-name", params={"experiment_name": name}, missing=("RESOURCE_DOES_NOT_EXIST",)
        )
        return (found or {}).get("experiment")

    @property
    def _host(self) -> str:
        return urlsplit(self._uri).netloc

    def _call(
        self, method: str, endpoint: str, *, missing: Sequence[str] = (), **sent: object
    ) -> Mapping[str, Any] | None:
        """Return the answer of the API; None where it is one of the error codes that are no failure here."""
        options: dict[str, Any] = dict(sent)
        with explained(self._host):
            response = self._client.request(method, f"{self._uri}/{_API}/{endpoint}", **options)
        answer = _object(response)
        if answer is not None and answer.get("error_code") in missing:
            return None
        self._require_success(response)
        if answer is None:
            raise self._stranger(response)
        return answer

    def _require_success(self, response: httpx2.Response) -> None:
        failure = self._failure(response)
        if failure is not None:
            raise failure

    def _failure(self, response: httpx2.Response) -> ProgramError | None:
        """Return what the status of an answer means, None for one that is no failure."""
        status, answer = response.status_code, _object(response) or {}
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return None
        if status < HTTPStatus.BAD_REQUEST or (status == HTTPStatus.NOT_FOUND and "error_code" not in answer):
            return self._stranger(response)
        keys = (TOKEN_KEY,) if self._credentials.get(TOKEN_KEY) else USER_KEYS
        failure = from_status(status, what=self._uri, credentials=self._credentials, keys=keys)
        if failure is None or failure.reason is not Reason.SOURCE_NOT_FOUND:
            return failure
        told = f"{answer.get('error_code', '')} {answer.get('message', '')}"
        message = f"{self._uri} answered HTTP {status}: {' '.join(told.split())[:_SHOWN_CHARACTERS]}"
        return UserError(Reason.TRACKING_FAILED, message, "Check spec.tracking.")

    def _stranger(self, response: httpx2.Response) -> UserError:
        """Return the error for what answers, but not as an MLflow server does."""
        message = f"{self._uri} does not answer as an MLflow server does (HTTP {response.status_code})"
        hint = "Set spec.tracking.mlflowUri to the address that MLFLOW_TRACKING_URI would have; redirects lead nowhere."
        return UserError(Reason.TRACKING_FAILED, message, hint)


def _authentication(credentials: Credentials) -> tuple[dict[str, str], tuple[str, str] | None]:
    """Return the header and the login by which a server knows who writes; a token goes first."""
    token = credentials.get(TOKEN_KEY) or credentials.get_secret("token")
    user, password = (
        credentials.get(key) or credentials.get_secret(key.rpartition("_")[2].lower()) for key in USER_KEYS
    )
    if token:
        return {"Authorization": f"Bearer {token}"}, None
    return {}, (user, password or "") if user else None


def _object(response: httpx2.Response) -> Mapping[str, Any] | None:
    try:
        answer = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return answer if isinstance(answer, dict) else None


def _run(found: Mapping[str, Any]) -> Run:
    info, data = found["info"], found.get("data", {})
    return Run(
        id=str(info["run_id"]),
        artifact_uri=str(info.get("artifact_uri", "")),
        parameters=frozenset(each["key"] for each in data.get("params", ())),
        metrics=frozenset(each["key"] for each in data.get("metrics", ())),
    )


def _pairs(texts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in texts.items()]


def _number(value: float) -> float | str:
    """Return a number as JSON of protocol buffers has it: those that JSON does not know are texts."""
    return value if isfinite(value) else _NOT_FINITE[str(value)]
