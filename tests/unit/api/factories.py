"""Small valid manifests of every kind, and a way to change one field of them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from hypothesis import settings

from finetuning_api.base import API_VERSION

Manifest = dict[str, Any]
STEADY = settings(derandomize=True, database=None)
"""The same examples on every machine, however slow it is."""


def job(**spec: object) -> Manifest:
    return _manifest(
        "FineTuningJob", {"model": {"source": "hf://owner/model"}, "dataset": {"source": "data/rows.jsonl"}} | spec
    )


def evaluation(**spec: object) -> Manifest:
    candidates = [{"name": "base", "model": {"source": "hf://owner/model"}}, {"name": "tuned", "jobRef": "triage"}]
    return _manifest("EvaluationJob", {"candidates": candidates, "dataset": {"source": "data/rows.jsonl"}} | spec)


def relocation(**spec: object) -> Manifest:
    return _manifest("Relocation", {"source": "hf://owner/model"} | spec)


def server(**spec: object) -> Manifest:
    return _manifest("InferenceServer", {"model": {"source": "hf://owner/model"}} | spec)


EVERY_KIND: Mapping[str, Callable[..., Manifest]] = {
    "FineTuningJob": job,
    "EvaluationJob": evaluation,
    "Relocation": relocation,
    "InferenceServer": server,
}


def named(manifest: Manifest, name: str) -> Manifest:
    return manifest | {"metadata": {"name": name}}


def without(manifest: Manifest, field: str) -> Manifest:
    changed = deepcopy(manifest)
    del changed["spec"][field]
    return changed


def _manifest(kind: str, spec: Mapping[str, object]) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "triage"}, "spec": dict(spec)}
