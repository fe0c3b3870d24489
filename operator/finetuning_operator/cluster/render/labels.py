"""What marks the objects that we make: labels, annotations and owner references."""

import hashlib
import json
from enum import StrEnum
from typing import Any, Final

from finetuning_api.base import API_VERSION, Resource
from finetuning_operator.reconcile import labels

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one, as JSON has it."""

CONTAINER: Final = "program"
"""Name of the one container that we put into a pod; others may add theirs beside it."""
NETWORK: Final = "finetuning.dev/network"
"""Label of a pod that decides which NetworkPolicy binds it."""
RUN_CONFIG: Final = "finetuning.dev/run-config"
PROGRESS_CA: Final = "finetuning.dev/progress-ca"
EXTRA_CA: Final = "finetuning.dev/extra-ca"
DESCRIPTION: Final = "finetuning.dev/description"
"""Annotation with a hash of what was asked for, so that something that is no longer asked for is noticed as well."""
_CLAIM_PREFIX: Final = "claim.finetuning.dev/"
_LONGEST_LABEL = 63


class Network(StrEnum):
    """What a pod may reach, and who may reach it."""

    ISOLATED = "isolated"
    """Nothing but the progress endpoint."""
    SERVING = "serving"
    """Answers on its port, asks nobody."""
    OPEN = "open"
    """May reach everything; nobody may reach it."""


def of_owner(owner: Resource) -> dict[str, str]:
    """Return the labels of everything that is made for an object."""
    return {labels.MANAGED_BY: labels.OPERATOR} | pod_selector(owner)


def pod_selector(owner: Resource) -> dict[str, str]:
    """Return the labels that select all pods of one object."""
    return {labels.KIND: owner.kind, labels.NAME: owner.metadata.name}


def _claim_token(claim: str) -> str:
    """Return a claim's name as a label can hold it: one that is too long is cut and told apart by a hash."""
    if len(claim) <= _LONGEST_LABEL:
        return claim
    mark = hashlib.sha256(claim.encode()).hexdigest()[:16]
    return f"{claim[: _LONGEST_LABEL - len(mark) - 1].rstrip('-.')}-{mark}"


def claim_label(claim: str) -> str:
    """Return the key of the label that a pod carries for a claim which it mounts."""
    return f"{_CLAIM_PREFIX}{_claim_token(claim)}"


def owner_reference(owner: Resource) -> Manifest:
    """Return the reference by which a child is deleted with its owner.

    It does not block the owner's deletion: to say so would need the right to update the owner's finalizers.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,
    }


def metadata(owner: Resource, name: str, **more: str) -> Manifest:
    """Return the metadata of a child; ``more`` are labels of its own by their key."""
    return {
        "name": name,
        "namespace": owner.metadata.namespace,
        "labels": of_owner(owner) | more,
        "ownerReferences": [owner_reference(owner)],
    }


def stamped(manifest: Manifest) -> Manifest:
    """Return a manifest with the hash of its content as an annotation."""
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    head = manifest["metadata"]
    annotations = head.get("annotations", {}) | {DESCRIPTION: hashlib.sha256(content).hexdigest()[:32]}
    return manifest | {"metadata": head | {"annotations": annotations}}
