"""What every part of the core calls an object."""

from typing import NamedTuple


class ObjectKey(NamedTuple):
    """One object of the cluster; a later object may carry the same key, but never the same uid."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"
