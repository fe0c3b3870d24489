"""A docker command that builds nothing: it keeps the names of images in a file, and writes down what it was asked."""

import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """\
#!/bin/sh
cd '{folder}'
echo "$*" >> asked
case "$1" in
build)
    case "$*" in {fails}) exit 9 ;; esac
    while [ $# -gt 0 ]; do
        [ "$1" = --tag ] && echo "$2" >> images
        shift
    done ;;
tag) echo "$3" >> images ;;
pull) echo "$3" >> images ;;
image) if [ "$3" = --format ]; then echo 1000000; else grep -qxF -e "$3" images; fi ;;
save)
    file=$3
    shift 3
    printf '%s\\n' "$@" > "$file" ;;
esac
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
    text = _PROGRAM.format(folder=folder, fails=f"*{fails}*" if fails else "''")
    path = Path(made.program)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return made
