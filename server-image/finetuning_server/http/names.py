"""The names that requests may use, and which model answers for each."""

import hashlib
from dataclasses import dataclass

from finetuning_api.runconfig import CanaryInput
from finetuning_server.engine.base import Engine
from finetuning_server.engine.errors import UnknownModel

_PERCENT = 100


@dataclass(frozen=True, slots=True)
class ListedName:
    """A name, and what is told of it."""

    name: str
    root: str | None = None
    """The base model below it; None for the base model itself."""
    split: dict[str, int] | None = None
    """Which models answer for it, in percent of the requests; None for a name of one model."""


class Names:
    """Every model of the engine under its own name, and a name that stands for two of them where there is a canary."""

    def __init__(self, engine: Engine, canary: CanaryInput | None) -> None:
        self._engine = engine
        self._canary = canary

    def listed(self) -> list[ListedName]:
        """Return the names that can be asked for now, the base model first."""
        models = self._engine.models()
        names = [ListedName(model.name, root=model.parent) for model in models]
        split = self._split()
        return [*names, ListedName(self._canary.name, root=models[0].name, split=split)] if self._canary else names

    def find(self, name: str) -> ListedName:
        """Return what is told of a name. Raises UnknownModel."""
        listed = self.listed()
        found = next((each for each in listed if each.name == name), None)
        if found is None:
            raise UnknownModel(name, known=tuple(each.name for each in listed))
        return found

    def answering(self, name: str, *, key: str) -> str:
        """Return the model that answers a request for a name. Raises UnknownModel.

        Equal keys get equal models, in every replica; who got the canary keeps it when its weight grows.
        """
        split = self.find(name).split
        if split is None or self._canary is None:
            return name
        return self._canary.adapter if _place(name, key) < split[self._canary.adapter] else self._canary.stable

    def _split(self) -> dict[str, int] | None:
        """Return what each model gets: the canary its weight, and the stable one the rest."""
        canary = self._canary
        if canary is None:
            return None
        served = {model.name for model in self._engine.models()}
        # One that is still awaited leaves its share to the other.
        weight = canary.weight if canary.adapter in served else 0
        weight = weight if canary.stable in served else _PERCENT
        return {canary.stable: _PERCENT - weight, canary.adapter: weight}


def _place(name: str, key: str) -> int:
    """Return where a request stands among 100 places: by its key alone, and differently for every name."""
    digest = hashlib.sha256(f"{name}\0{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % _PERCENT
