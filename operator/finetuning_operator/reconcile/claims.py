"""Claims of adapters whose job is gone: which are marked as trash, and whose time is over.

No finalizer tells when a job went away, so a claim is marked when its owner is first seen to be missing, and its time
runs from then. A mark that was made in error (the owner is there after all) is taken back.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from finetuning_api.finetuningjob import RetentionPolicy
from finetuning_operator.reconcile.stages import seconds_left


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was made for an object and can outlive it."""

    namespace: str
    name: str
    retention: RetentionPolicy
    owner_uid: str
    """Empty where the claim does not tell; such a claim is never touched."""
    trashed_at: datetime | None = None
    """What its mark tells: when its owner was first seen to be missing."""
    in_use: bool = False
    """Whether a pod that has not ended mounts it."""


@dataclass(frozen=True, slots=True)
class Trash:
    """What is to be done with claims, each in the order they were given."""

    to_mark: tuple[Claim, ...] = ()
    """Get the current time as their mark."""
    to_unmark: tuple[Claim, ...] = ()
    to_delete: tuple[Claim, ...] = ()
    look_again: float | None = None
    """Seconds until the next marked claim's time is over; None where none waits for that."""


def expired_claims(claims: Iterable[Claim], *, owners: Collection[str], now: datetime, ttl: int) -> Trash:
    """Return what becomes of claims; ``owners`` are the uids of all living objects, ``ttl`` is in seconds.

    A claim that somebody still mounts is not deleted, however old its mark.
    """
    trash = [claim for claim in claims if claim.retention is RetentionPolicy.TRASH and claim.owner_uid]
    orphans = [claim for claim in trash if claim.owner_uid not in owners]
    marked = [(claim, seconds_left(ttl, claim.trashed_at, now)) for claim in orphans if claim.trashed_at is not None]
    return Trash(
        to_mark=tuple(claim for claim in orphans if claim.trashed_at is None),
        to_unmark=tuple(claim for claim in trash if claim.owner_uid in owners and claim.trashed_at is not None),
        to_delete=tuple(claim for claim, left in marked if left == 0 and not claim.in_use),
        look_again=min((left for _, left in marked if left), default=None),
    )
