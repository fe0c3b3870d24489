"""The container runtime's command, as far as building needs it."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

_PULL_SECONDS = 600
_ANSWER_SECONDS = 30


class ImageError(Exception):
    """An image cannot be made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Docker:
    """A docker command (or podman, nerdctl) and the daemon that it speaks to."""

    program: str = "docker"
    host: str | None = None
    """Address of the daemon; None is the one that the environment names."""
    network: str = ""
    """Network of build steps; empty is the daemon's own choice."""

    def answers(self) -> bool:
        """Return whether a daemon is there."""
        try:
            return self._run("info", quiet=True, seconds=_ANSWER_SECONDS).returncode == 0
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return False

    def has(self, image: str) -> bool:
        """Return whether an image is there."""
        return self._run("image", "inspect", image, quiet=True).returncode == 0

    def pull(self, image: str) -> bool:
        """Fetch an image; return whether that worked."""
        try:
            return self._run("pull", "--quiet", image, quiet=True, seconds=_PULL_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def build(self, context: Path, dockerfile: str, *, arguments: Mapping[str, str], tags: tuple[str, ...]) -> None:
        """Build an image."""
        words = [f"--network={self.network}"] if self.network else []
        words += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        words += [word for tag in tags for word in ("--tag", tag)]
        self._must("build", "--file", str(context / dockerfile), *words, str(context))

    def tag(self, image: str, name: str) -> None:
        """Give an image one more name."""
        self._must("tag", image, name)

    def save(self, images: Iterable[str], file: Path) -> None:
        """Write images into one archive, where layers that they share are stored once."""
        self._must("save", "--output", str(file), *images)

    def size(self, image: str) -> int:
        """Return the bytes of an image with all its layers."""
        return int(self._tell("image", "inspect", "--format", "{{.Size}}", image))

    def created(self, image: str) -> datetime:
        """Return when an image was made."""
        # Nine digits of a second are more than Python reads.
        told = re.sub(r"\.(\d{1,6})\d*", r".\1", self._tell("image", "inspect", "--format", "{{.Created}}", image))
        return datetime.fromisoformat(told)

    @contextmanager
    def file_system(self, image: str) -> Iterator[IO[bytes]]:
        """Lend the files of an image as a tar archive; nothing of it runs."""
        container = self._tell("create", image, "-")
        with tempfile.TemporaryDirectory(prefix="finetuning-images-") as folder:
            file = Path(folder) / "files.tar"
            try:
                self._must("export", "--output", str(file), container)
            finally:
                self._run("rm", container, quiet=True)
            with file.open("rb") as stream:
                yield stream

    def remove(self, *images: str) -> None:
        """Take names away from images, and the images with their last name."""
        if images:
            self._must("image", "rm", *images)

    def remove_unused(self, *, older_than: str) -> None:
        """Remove what no name refers to: left-over stages of builds."""
        self._must("image", "prune", "--force", "--filter", f"until={older_than}")

    def names(self, pattern: str) -> list[str]:
        """Return the names and tags of images whose repository matches a pattern."""
        return self._tell("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", pattern).split()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the command."""
        # The classic builder needs no plugin, and all Dockerfiles here are written for it.
        own = {"DOCKER_BUILDKIT": os.environ.get("DOCKER_BUILDKIT", "0")}
        return {**os.environ, **own, **({"DOCKER_HOST": self.host} if self.host else {})}

    def _must(self, *words: str) -> None:
        done = self._run(*words)
        if done.returncode != 0:
            raise ImageError(f"`{self.program} {' '.join(words)}` failed with exit code {done.returncode}.")

    def _tell(self, *words: str) -> str:
        command = [self.program, *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ImageError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def _run(
        self, *words: str, quiet: bool = False, seconds: float | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        output = subprocess.DEVNULL if quiet else sys.stderr  # What we print ourselves is for other programs.
        return subprocess.run(
            [self.program, *words],
            env=self.environment,
            stdout=output,
            stderr=output,
            timeout=seconds,
            check=False,
        )
