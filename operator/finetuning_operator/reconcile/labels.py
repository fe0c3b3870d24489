"""Names of the labels and annotations by which what an object owns is found."""

from typing import Final

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OPERATOR: Final = "finetuning-operator"
"""Value of MANAGED_BY on everything that the operator makes."""
COMPONENT: Final = "finetuning.dev/component"
"""On a server that an object has besides, or instead of, the one that it is: what it shows."""
KIND: Final = "finetuning.dev/kind"
NAME: Final = "finetuning.dev/name"
STEP: Final = "finetuning.dev/step"
OWNER_UID: Final = "finetuning.dev/owner-uid"
"""On a claim: the object that it was made for, also where no owner reference tells it."""
RETENTION: Final = "finetuning.dev/retention"
"""On an adapter's claim: what becomes of it when its job is deleted."""
WAKE: Final = "finetuning.dev/wake"
"""Annotation on an InferenceServer: a new value of it starts one that was shut down because it was idle."""
TRASHED_AT: Final = "finetuning.dev/trashed-at"
"""Annotation on a claim to be thrown away: when its owner was first seen to be gone, in RFC 3339."""

EARLIER_ATTEMPTS: Final = "finetuning.dev/earlier-attempts"
"""Annotation on what runs a stage again: how often the stage was started before, by what is gone now."""
IMAGE: Final = "finetuning.dev/image"
"""Annotation on what runs a stage: the image that it was made for, before anybody rewrote it."""


def count(told: str) -> int:
    """Return the number that an annotation tells; 0 for what is none, or one that nobody here wrote."""
    return int(told) if told.isascii() and told.isdecimal() and len(told) < len("1000000") else 0


def selector(kind: str, name: str) -> str:
    """Return the label selector of all pods of one object."""
    return f"{KIND}={kind},{NAME}={name}"
