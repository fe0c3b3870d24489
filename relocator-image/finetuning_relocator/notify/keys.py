"""What a receiver's Secret holds. Its values never reach a log, a message or last words."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import SECRET_ENV_PREFIX, NotifyConfig
from finetuning_workload.errors import UserError


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the Secret of one notification."""

    secret: str
    values: Mapping[str, str] = field(repr=False)
    """By key in lower case, without white space around them."""

    @classmethod
    def of(cls, config: NotifyConfig, environment: Mapping[str, str]) -> "Keys":
        """Return the keys that reached this program."""
        given = {
            name.removeprefix(SECRET_ENV_PREFIX).lower(): value.strip()
            for name, value in environment.items()
            if name.startswith(SECRET_ENV_PREFIX)
        }
        return cls(config.secret, given)

    def get(self, key: str) -> str:
        """Return the value of a key, empty where it is not there."""
        return self.values.get(key, "")

    def require(self, key: str) -> str:
        """Return the value of a key. Raises UserError where it is not there."""
        value = self.get(key)
        if value:
            return value
        variable = "".join(each if each.isalnum() else "_" for each in f"{self.secret}_{key}".upper())
        hint = f"Add it. A run on one machine reads it from a Secret document in the manifest, or from {variable}."
        raise UserError(Reason.CONFIGURATION_MISSING, f"the Secret {self.secret!r} has no key {key!r}", hint)

    def refuse(self, key: str, why: str, *, hint: str) -> UserError:
        """Return the error for a value that cannot be used; the value itself is not told."""
        return UserError(Reason.CONFIGURATION_MISSING, f"key {key!r} of the Secret {self.secret!r} {why}", hint)
