"""A docker command that builds nothing: it keeps the names of images in a file, and writes down what it was asked."""

import shlex
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """\
#!{python} -SE
import pathlib, sys
asked, images = pathlib.Path({asked!r}), pathlib.Path({images!r})
words = sys.argv[1:]
with asked.open("a") as file:
    file.write(" ".join(words) + "\\n")
known = images.read_text().split()
match words:
    case ["build", *_] if {fails!r} and any({fails!r} in word for word in words):
        sys.exit(9)
    case ["build", *_]:
        known += [words[at + 1] for at, word in enumerate(words) if word == "--tag"]
    case ["tag", _, name]:
        known.append(name)
    case ["image", "inspect", "--format", _, image]:
        print(1000000)
    case ["image", "inspect", image]:
        sys.exit(image not in known)
    case ["pull", *_]:
        known.append(words[-1])
    case ["save", "--output", path, *names]:
        pathlib.Path(path).write_text("\\n".join(names))
images.write_text("\\n".join(known))
"""


@dataclass(frozen=True, slots=True)
class FakeDocker:
    """One such command, in a folder of its own."""

    folder: Path

    @property
    def program(self) -> str:
        """Path of the command."""
        return str(self.folder / "docker")

    @property
    def asked(self) -> list[list[str]]:
        """The words of each call so far."""
        log = self.folder / "asked"
        return [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []

    def built(self) -> list[str]:
        """Return the Dockerfiles that were built, by their folders, in order."""
        calls = [words for words in self.asked if words[0] == "build"]
        return [Path(words[words.index("--file") + 1]).parent.name for words in calls]

    def forget(self) -> None:
        """Forget what was asked."""
        (self.folder / "asked").unlink(missing_ok=True)


def fake_docker(folder: Path, *, fails: str = "") -> FakeDocker:
    """Make one; builds with this word among their arguments fail."""
    folder.mkdir(exist_ok=True)
    made = FakeDocker(folder)
    (folder / "images").touch()
    text = _PROGRAM.format(
        python=sys.executable, asked=str(folder / "asked"), images=str(folder / "images"), fails=fails
    )
    path = Path(made.program)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return made
