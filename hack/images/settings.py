"""What a site sets when it builds images, and what the images are called."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
WHEELS = "WHEELS"
_DEFAULT_WHEELS = "hack/images/wheels"


@dataclass(frozen=True, slots=True)
class Role:
    """One image: what it is called, and where it is described."""

    name: str
    dockerfile: str
    upon: str | None = None
    """The role whose image it stands upon; None is the Python image."""


ROLES = {
    role.name: role
    for role in (
        Role("operator", "operator/Dockerfile"),
        Role("relocator", "relocator-image/Dockerfile"),
        Role("models", "workload/Dockerfile"),
        Role("trainer", "trainer-image/Dockerfile", upon="models"),
        Role("evaluator", "evaluator-image/Dockerfile", upon="models"),
        Role("server", "server-image/Dockerfile", upon="models"),
    )
}
SITE = Role("site", "tests/e2e/site/Dockerfile")
"""For tests alone: what a cluster's surroundings offer, an object store and a package index."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one build, from the environment."""

    docker: str = "docker"
    registry: str = ""
    torch: str = ""
    """The build of torch: cpu, cuda or a label of its version; empty takes what pip finds first."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Further build arguments."""
    network: str = ""
    """The network of build steps; empty is the daemon's own choice."""
    repository: Path = REPOSITORY
    """What is built: the checkout, or a copy of it that nobody edits."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read DOCKER, REGISTRY, TORCH, BUILD_NETWORK, and BUILD_ARGS: words such as ``PIP_INDEX_URL=...``."""
        registry = environment.get("REGISTRY", "").rstrip("/")
        words = [word.partition("=") for word in environment.get("BUILD_ARGS", "").split()]
        return cls(
            docker=environment.get("DOCKER") or "docker",
            registry=f"{registry}/" if registry else "",
            torch=environment.get("TORCH", ""),
            arguments={name: value for name, _, value in words},
            network=environment.get("BUILD_NETWORK", ""),
        )

    @property
    def wheels(self) -> str:
        """The folder of the checkout whose wheels go before those of the package index."""
        return self.arguments.get(WHEELS, _DEFAULT_WHEELS)

    def name(self, role: Role) -> str:
        """Return the name of an image, without a tag."""
        return f"{self.registry}finetuning-{role.name}"

    def version_tag(self, role: Role) -> str:
        """Return the tag that the chart asks for; images with a chosen build of torch carry its name."""
        chosen = f"-{self.torch}" if self.torch and "models" in {role.name, role.upon} else ""
        return self.version + chosen

    @property
    def version(self) -> str:
        """The version of the project."""
        text = (self.repository / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])


def cache_folder() -> Path:
    """Return where what is made once per machine lies."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "finetuning-operator"
