"""Credentials: environment variables only, from the source's Secret or from the user's own shell."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetuning_api.runconfig import SECRET_ENV_PREFIX
from finetuning_api.sources import SourceRef


@dataclass(frozen=True, slots=True)
class Credentials:
    """The keys of the Secret that a source names, and how to tell a person to set them.

    On a cluster the keys carry the prefix of the contract. A local run also sees the plain variables (``HF_TOKEN``,
    ``AWS_ACCESS_KEY_ID``) that the tools of each source know.
    """

    environment: Mapping[str, str] = field(repr=False)
    secret: str | None = None

    @classmethod
    def of(cls, ref: SourceRef, environment: Mapping[str, str]) -> "Credentials":
        """Return the credentials of a source."""
        return cls(environment=environment, secret=ref.secret_ref.name if ref.secret_ref else None)

    def get_secret(self, *names: str) -> str | None:
        """Return the first key of the Secret that has a value; plain variables are not looked at."""
        candidates = (self.environment.get(f"{SECRET_ENV_PREFIX}{name}", "").strip() for name in names)
        return next((value for value in candidates if value), None)

    def get(self, *names: str) -> str | None:
        """Return the first key of the Secret that has a value, else the first plain variable that has one."""
        plain = (self.environment.get(name, "").strip() for name in names)
        return self.get_secret(*names) or next((value for value in plain if value), None)

    def how_to_give(self, *keys: str) -> str:
        """Return the hint for a source that asks for credentials; ``keys`` are the names of the Secret's keys."""
        wanted = " and ".join(keys)
        if self.secret is None and self.get(*keys):
            return f"{wanted} is set in the environment, but is not accepted: set one that is valid and may read this."
        if self.secret is None:
            return f"Put {wanted} into a Secret and name it in secretRef, or set {wanted} in the environment."
        return f"Check that the Secret {self.secret!r} holds a valid {wanted}."
