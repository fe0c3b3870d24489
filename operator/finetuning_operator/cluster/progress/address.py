"""Where a step reports to, and for whom its token is made: what pods are told and what the endpoint checks."""

from dataclasses import dataclass
from typing import Self

ROUTE = "/v1alpha1/namespaces/{namespace}/{kind}/{name}/steps/{step}"
AUDIENCE_PREFIX = "progress.finetuning.dev/"


@dataclass(frozen=True, slots=True)
class Owner:
    """One life of an object: a name that is deleted and made again has another uid."""

    namespace: str
    kind: str
    name: str
    uid: str

    @property
    def audience(self) -> str:
        """Audience of the tokens of this object's pods: a token of another object, or of an earlier one, is refused."""
        return f"{AUDIENCE_PREFIX}{self.namespace}/{self.kind}/{self.name}/{self.uid}"

    @classmethod
    def of_audience(cls, audience: str) -> Self | None:
        """Return whom an audience names, None where it is no audience of this endpoint."""
        parts = audience.removeprefix(AUDIENCE_PREFIX).split("/")
        if not audience.startswith(AUDIENCE_PREFIX) or len(parts) != 4 or not all(parts):  # noqa: PLR2004
            return None
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class ProgressKey:
    """A step of an object."""

    namespace: str
    kind: str
    name: str
    step: str

    @property
    def path(self) -> str:
        """Path of the endpoint to which the step reports."""
        return ROUTE.format(namespace=self.namespace, kind=self.kind, name=self.name, step=self.step)

    def belongs_to(self, owner: Owner) -> bool:
        """Whether this is a step of an object, whatever its uid."""
        return (self.namespace, self.kind, self.name) == (owner.namespace, owner.kind, owner.name)
