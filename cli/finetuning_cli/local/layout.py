"""Where everything lies below the state folder."""

from dataclasses import dataclass
from pathlib import Path

from finetuning_api.base import ClaimRef, Resource

CONFIG_NAME = "config.json"
LAST_WORDS_NAME = "last-words.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one state folder; ``root`` is absolute, because programs run elsewhere."""

    root: Path

    @classmethod
    def at(cls, state: Path) -> "Layout":
        """Return the layout of a state folder, which need not exist."""
        return cls(state.expanduser().absolute())

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def config_maps(self) -> Path:
        return self.root / "configmaps"

    @property
    def scores(self) -> Path:
        """Scores that evaluations share: may be removed at any time, and are computed again."""
        return self.root / "scores"

    @property
    def token(self) -> Path:
        """The bearer token of the progress endpoint of the run that holds the lock."""
        return self.root / "progress-token"

    def object_file(self, kind: str, name: str) -> Path:
        """Return the file of one object."""
        return self.objects / kind / f"{name}.yaml"

    def owner(self, resource: Resource) -> Path:
        """Return the folder of an object's steps."""
        return self.root / "steps" / resource.kind / resource.metadata.name

    def claim(self, place: ClaimRef) -> Path:
        """Return the folder on a claim."""
        return self.volumes / place.claim_name / place.path
