"""The relocator as tests use it: as a program with its last words, or in this process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetuning_api.reasons import ExitCode
from finetuning_api.runconfig import (
    RUN_CONFIG_ENV,
    TERMINATION_LOG_ENV,
    ArtifactResult,
    JobIdentity,
    LastWords,
    MeasureConfig,
    MeasureResult,
    RelocateConfig,
    RunConfigBase,
    VerifyConfig,
)
from finetuning_api.sources import SourceRef

JOB = JobIdentity(kind="Relocation", name="reloc-test")
_SECONDS = 300
"""No run of a test needs so long, on however busy a machine."""
STALL_SECONDS = 3
"""A silence that a test causes on purpose is noticed soon; one that a busy machine causes is not taken for it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of the program ended."""

    exit_code: int
    words: LastWords
    log: str

    @property
    def artifact(self) -> ArtifactResult:
        """The artifact that a successful run reports."""
        assert isinstance(self.words.result, ArtifactResult), f"{self.words}\n{self.log}"
        return self.words.result

    @property
    def measured(self) -> MeasureResult:
        """What a successful measurement reports."""
        assert isinstance(self.words.result, MeasureResult), f"{self.words}\n{self.log}"
        return self.words.result


@dataclass(slots=True)
class Relocator:
    """Runs ``python -m finetuning_relocator`` with its files in ``home``."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, config: RunConfigBase) -> "subprocess.Popen[str]":
        """Start the program; ``finish`` waits for its end."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "run.json").write_text(config.to_json())
        (self.home / "last-words").unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "finetuning_relocator"],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: "subprocess.Popen[str]") -> Ended:
        """Wait for the end of the program."""
        log, _ = process.communicate(timeout=_SECONDS)
        words = json.loads((self.home / "last-words").read_text())
        return Ended(exit_code=process.returncode, words=LastWords.model_validate(words), log=log)

    def run(self, config: RunConfigBase) -> Ended:
        """Run the program to its end."""
        return self.finish(self.start(config))

    def _environment(self) -> dict[str, str]:
        # Nothing of the machine's own credentials, proxies or caches may reach a test.
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "PYTHONPATH") if name in os.environ}
        own = {
            "HOME": str(self.home),
            RUN_CONFIG_ENV: str(self.home / "run.json"),
            TERMINATION_LOG_ENV: str(self.home / "last-words"),
        }
        return {**kept, **own, **self.environment}

    def relocate(self, source: str, destination: Path, *, stall_seconds: int = 120, **fields: object) -> Ended:
        """Relocate a source; ``fields`` are those of a source reference, with their names in Python."""
        config = RelocateConfig(
            job=JOB, source=reference(source, fields), destination=str(destination), stall_seconds=stall_seconds
        )
        return self.run(config)

    def measure(self, source: str, **fields: object) -> Ended:
        """Measure a source."""
        return self.run(MeasureConfig(job=JOB, source=reference(source, fields)))

    def relocate_mounted(self, source: str, mount: Path, destination: Path, **fields: object) -> Ended:
        """Relocate a source that is mounted."""
        config = RelocateConfig(
            job=JOB, source=reference(source, fields), source_mount=str(mount), destination=str(destination)
        )
        return self.run(config)

    def verify(self, source: str, path: Path, **fields: object) -> Ended:
        """Verify a claim in place."""
        return self.run(VerifyConfig(job=JOB, source=reference(source, fields), path=str(path)))


def reference(source: str, fields: Mapping[str, object] | None = None) -> SourceRef:
    """Return a source reference."""
    return SourceRef.model_validate({"source": source, **(fields or {})})


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as a condition holds; raises TimeoutError where it never does."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / "manifest.json"
    }


def assert_refused(ended: Ended, reason: str, *parts: str, exit_code: ExitCode = ExitCode.USER_ERROR) -> None:
    """Assert how a run failed, and that its message or hint holds every one of ``parts``."""
    said = f"{ended.words.message}\n{ended.words.hint}"
    assert (ended.exit_code, ended.words.reason) == (exit_code, reason), f"{said}\n{ended.log}"
    missing = [part for part in parts if part not in said]
    assert not missing, f"{missing} not in: {said}"
    assert "Traceback" not in ended.log
