"""What a run tells: numbers and files, of what a job left on its claim."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from finetuning_api.runconfig import HISTORY_NAME, PROVENANCE_NAME, TrackConfig
from finetuning_relocator.track.server import Point
from finetuning_workload.artifact import read_manifest

_RESULTS: Final = "results.json"
_REPORTS: Final = (_RESULTS, "report.md", "report.html")
_STATE_NAME: Final = "trainer_state.json"
"""What Hugging Face's Trainer writes beside each of its checkpoints: all that is known of the course of a script."""
_NO_METRICS: Final = frozenset({"step", "time", "epoch"})
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.\-/ ]+")


class _Part(BaseModel):
    """As much of ``results.json`` as is told on."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True)


class _Value(_Part):
    candidate: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None


class _Comparison(_Part):
    candidate: str
    against: str
    delta: float
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None


class _Metric(_Part):
    metric: str
    values: tuple[_Value, ...]
    comparisons: tuple[_Comparison, ...] = ()


class _Results(_Part):
    created_at: datetime
    metrics: tuple[_Metric, ...]


def points_of(config: TrackConfig) -> tuple[Point, ...]:
    """Return all numbers of a job, in the order of their steps; each step of a metric once."""
    found = (*_course(config), *_evaluation(config))
    return tuple({(point.key, point.step): point for point in found}.values())


def parameters_of(config: TrackConfig) -> dict[str, str]:
    """Return the parameters of a job: those that it was given, and the plan that its training made."""
    plan = _provenance(config).get("plan") or {}
    return config.parameters | {f"plan.{name}": str(value) for name, value in plan.items() if value not in ("", None)}


def tags_of(config: TrackConfig) -> dict[str, str]:
    """Return the tags of a job, with the versions of what trained it."""
    versions = _provenance(config).get("versions") or {}
    return config.tags | {f"version.{name}": str(version) for name, version in versions.items()}


def files_of(config: TrackConfig) -> Iterator[tuple[str, Path]]:
    """Yield the files that are stored with a run, with the paths that they get there."""
    for name in _REPORTS:
        if config.report_path and (path := Path(config.report_path) / name).is_file():
            yield f"evaluation/{name}", path
    if config.checkpoint_path and (path := Path(config.checkpoint_path) / HISTORY_NAME).is_file():
        yield HISTORY_NAME, path
    if config.adapter_path and (path := Path(config.adapter_path) / PROVENANCE_NAME).is_file():
        yield PROVENANCE_NAME, path
    if config.adapter_path and config.weights:
        manifest = read_manifest(Path(config.adapter_path))
        for file in manifest.files if manifest else ():
            yield f"adapter/{file.path}", Path(config.adapter_path) / file.path


def _course(config: TrackConfig) -> Iterator[Point]:
    """Yield the numbers of the steps of a training."""
    latest = _milliseconds(config.started_at)
    for line in _lines(config):
        step, time = line.get("step"), line.get("time")
        if not isinstance(step, int):
            continue
        latest = round(time * 1000) if isinstance(time, int | float) else latest
        for name, value in line.items():
            if name not in _NO_METRICS and isinstance(value, int | float) and not isinstance(value, bool):
                yield Point(_NO_NAME.sub("_", name), float(value), step, latest)


def _lines(config: TrackConfig) -> list[Mapping[str, Any]]:
    """Return what was logged, a mapping a step; of a script, what its newest state tells."""
    folders = [Path(path) for path in (config.checkpoint_path, config.adapter_path) if path]
    history = next((folder / HISTORY_NAME for folder in folders if (folder / HISTORY_NAME).is_file()), None)
    if history is not None:
        content = history.read_bytes()
        # The last line of a training that was killed may not be whole.
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
    states = [_json(path) for folder in folders for path in (*folder.glob(f"*/{_STATE_NAME}"), folder / _STATE_NAME)]
    newest = max(states, key=lambda state: int(state.get("global_step") or 0), default={})
    return list(newest.get("log_history") or ())


def _evaluation(config: TrackConfig) -> Iterator[Point]:
    """Yield each metric of each candidate with its interval, and each comparison."""
    path = Path(config.report_path) / _RESULTS if config.report_path else None
    if path is None or not path.is_file():
        return
    results = _Results.model_validate_json(path.read_bytes())
    time = _milliseconds(results.created_at)
    for metric in results.metrics:
        for value in metric.values:
            name = f"evaluation/{metric.metric}/{value.candidate}"
            yield from _with_interval(name, value.value, value.ci_low, value.ci_high, time=time)
        for each in metric.comparisons:
            name = f"evaluation/{metric.metric}/{each.candidate}-{each.against}"
            yield from _with_interval(name, each.delta, each.ci_low, each.ci_high, time=time)
            if each.p_value is not None:
                yield Point(f"{name}.p_value", each.p_value, 0, time)


def _with_interval(name: str, value: float, low: float | None, high: float | None, *, time: int) -> Iterator[Point]:
    # No name goes on after a slash where another ends: a store of files could not hold both.
    numbers = ((name, value), (f"{name}.ci_low", low), (f"{name}.ci_high", high))
    return (Point(_NO_NAME.sub("_", key), number, 0, time) for key, number in numbers if number is not None)


def _provenance(config: TrackConfig) -> Mapping[str, Any]:
    return _json(Path(config.adapter_path) / PROVENANCE_NAME) if config.adapter_path else {}


def _json(path: Path) -> Mapping[str, Any]:
    """Return the object in a file; nothing of one that is not there, or that a killed program left in halves."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)
