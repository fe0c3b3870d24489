"""The newest report of every step, in memory; nothing is lost with it that the next report does not bring again."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from finetuning_api.base import ProgressStatus
from finetuning_api.runconfig import TrainerStatus
from finetuning_operator.cluster.progress.address import Owner, ProgressKey
from finetuning_operator.reconcile.stages import progress_status

_WRITE_SECONDS = 15.0
_STEPS_OF_ONE_OWNER = 32


def worth_writing(last_written: ProgressStatus | None, new: ProgressStatus, *, now: datetime) -> bool:
    """Whether new progress tells enough to be written: one percent, a number that was not known, or 15 s of news.

    ``last_written.updated_at`` counts as the moment of the last write.
    """
    if last_written is None or last_written.updated_at is None:
        return True
    if new.updated_at == last_written.updated_at:
        return False
    elapsed = (now - last_written.updated_at).total_seconds()
    moved = abs(new.percent - last_written.percent) >= 1 or _tells_more(last_written, new)
    # A negative time means that the clock was set back, which must not silence anybody.
    return moved or not 0 <= elapsed < _WRITE_SECONDS


def _tells_more(last: ProgressStatus, new: ProgressStatus) -> bool:
    first_seen = (
        last.step is None and new.step is not None,
        last.total_steps is None and new.total_steps is not None,
        last.loss is None and new.loss is not None,
        last.tokens_per_second is None and new.tokens_per_second is not None,
    )
    return any(first_seen)


@dataclass(frozen=True, slots=True)
class _Entry:
    uid: str
    status: TrainerStatus
    announced: ProgressStatus | None
    """What the listener was last called for."""


class ProgressStore:
    """Keeps the newest report of every step, of at most ``capacity`` steps: who was silent for longest goes first.

    ``on_change`` is called within ``put`` and only for what is worth a write, so that a thousand reporting jobs do not
    wake their objects with every report. To be used from one thread.
    """

    def __init__(self, on_change: Callable[[ProgressKey], None] | None = None, *, capacity: int = 20_000) -> None:
        self._on_change = on_change
        self._capacity = capacity
        self._entries: OrderedDict[ProgressKey, _Entry] = OrderedDict()
        """By the time of the newest report, oldest first."""
        self._steps: dict[tuple[str, str, str], dict[ProgressKey, None]] = {}
        """By namespace, kind and name of the owner."""

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: ProgressKey, status: TrainerStatus, *, uid: str) -> None:
        """Keep the newest report of a step of the object with this uid, as of its ``last_updated_time``."""
        entry = self._of(key, uid)
        last = None if entry is None else entry.announced
        new = progress_status(status)
        worth = new is not None and worth_writing(last, new, now=status.last_updated_time)
        self._keep(key, _Entry(uid, status, new if worth else last))
        if worth and self._on_change is not None:
            self._on_change(key)

    def seed(self, key: ProgressKey, status: TrainerStatus, *, uid: str) -> None:
        """Take over what an earlier process had written, unless a report has come since."""
        if self._of(key, uid) is None:
            self._keep(key, _Entry(uid, status, progress_status(status)))

    def get(self, key: ProgressKey, *, uid: str | None = None) -> TrainerStatus | None:
        """Return the newest report; with a uid, that of an earlier object of the same name is none."""
        entry = self._entries.get(key)
        return None if entry is None or uid not in {None, entry.uid} else entry.status

    def forget(self, owner: Owner) -> None:
        """Drop everything about an object that is gone."""
        for key in tuple(self._steps.get((owner.namespace, owner.kind, owner.name), ())):
            if self._entries[key].uid == owner.uid:
                self._drop(key)

    def _of(self, key: ProgressKey, uid: str) -> _Entry | None:
        entry = self._entries.get(key)
        return entry if entry is not None and entry.uid == uid else None

    def _keep(self, key: ProgressKey, entry: _Entry) -> None:
        siblings = self._steps.setdefault((key.namespace, key.kind, key.name), {})
        if key not in siblings and len(siblings) >= _STEPS_OF_ONE_OWNER:
            # A pod may report for any step name of its own object: that must not push out the steps of others.
            self._drop(next(iter(siblings)))
        elif key not in self._entries and len(self._entries) >= self._capacity:
            self._drop(next(iter(self._entries)))
        self._steps.setdefault((key.namespace, key.kind, key.name), {})[key] = None
        self._entries[key] = entry
        self._entries.move_to_end(key)

    def _drop(self, key: ProgressKey) -> None:
        del self._entries[key]
        owner = (key.namespace, key.kind, key.name)
        steps = self._steps[owner]
        del steps[key]
        if not steps:
            del self._steps[owner]
