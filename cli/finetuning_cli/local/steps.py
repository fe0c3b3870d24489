"""Steps as processes: started, watched, stopped, tried again, and told as the same StepStates that a cluster gives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from finetuning_api.base import Resource
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import (
    PROGRESS_TOKEN_ENV,
    PROGRESS_URL_ENV,
    RUN_CONFIG_ENV,
    TERMINATION_LOG_ENV,
    LastWords,
    MeasureConfig,
    NotifyConfig,
    PushConfig,
    RelocateConfig,
    TrackConfig,
)
from finetuning_cli.local.credentials import Secrets, offline
from finetuning_cli.local.layout import CONFIG_NAME, LAST_WORDS_NAME, Layout
from finetuning_cli.local.progress_server import ProgressServer
from finetuning_cli.local.records import StepRecord, load_records, save_records
from finetuning_cli.local.store import Key, key_of
from finetuning_operator.reconcile.plan import ImageRole, Step, StepPhase, StepState
from finetuning_workload.files import explained_os_errors, write_atomically
from finetuning_workload.parent import PARENT_ENV

PROGRAMS: Mapping[ImageRole, str] = {role: f"finetuning_{role.value}" for role in ImageRole}
"""The module that runs each role's program."""
_STOPPED = frozenset({int(ExitCode.INTERRUPTED), -signal.SIGTERM})


class _Lane(StrEnum):
    """What kind of work a step is: lanes do not wait for each other."""

    COMPUTE = "compute"
    RELOCATE = "relocate"
    NOTIFY = "notify"


_AT_ONCE: Mapping[_Lane, int] = {_Lane.COMPUTE: 1, _Lane.RELOCATE: 2, _Lane.NOTIFY: 2}
"""Steps at the same time, by lane: two programs that compute would fight over the same cores."""
_LONGEST_BACKOFF_SECONDS = 60.0


@dataclass(slots=True)
class _Process:
    """A step that runs."""

    owner: Resource
    step: Step
    process: subprocess.Popen[bytes]
    stopping: bool = False


@dataclass(slots=True)
class Runner:
    """Runs the steps of one local run. Everything is called from the main thread."""

    layout: Layout
    lock: int
    """Descriptor of the state lock: every step inherits it."""
    progress: ProgressServer
    secrets: Secrets = field(default_factory=Secrets)
    programs: Mapping[ImageRole, str] = field(default_factory=lambda: PROGRAMS)
    clock: Callable[[], float] = time.monotonic
    draining: bool = False
    """Set when the run ends: nothing is started any more."""
    _processes: dict[tuple[Key, str], _Process] = field(default_factory=dict)
    _records: dict[Key, dict[str, StepRecord]] = field(default_factory=dict)
    _not_before: dict[tuple[Key, str], float] = field(default_factory=dict)

    def observe(self, owner: Resource) -> dict[str, StepState]:
        """Return what is known of an object's steps."""
        return {
            name: StepState(
                phase=record.phase,
                attempts=record.attempts,
                started_at=record.started_at,
                finished_at=record.finished_at,
                last_words=record.last_words,
                progress=self.progress.latest(_place(owner, name)) if record.phase is StepPhase.RUNNING else None,
            )
            for name, record in self._of(owner).items()
        }

    def forget(self, owner: Resource, names: Iterable[str]) -> None:
        """Drop what is known of steps that must run again."""
        records = {name: record for name, record in self._of(owner).items() if name not in set(names)}
        self._records[key_of(owner)] = records
        save_records(self.layout.owner(owner), records)

    def apply(self, owner: Resource, steps: tuple[Step, ...]) -> bool:
        """Start the steps that are wanted and stop those that are not; return whether anything changed."""
        wanted = {step.name for step in steps}
        for (key, name), running in self._processes.items():
            if key == key_of(owner) and name not in wanted:
                self._terminate(running)
        started = [step for step in steps if self._may_start(owner, step)]
        for step in started:
            self._start(owner, step)
        return bool(started)

    def reap(self) -> bool:
        """Take note of every process that ended; return whether there was one."""
        ended = [place for place, running in self._processes.items() if running.process.poll() is not None]
        for place in ended:
            running = self._processes.pop(place)
            self._settle(running, running.process.returncode)
        return bool(ended)

    def drain(self) -> None:
        """Start nothing more and ask everything that runs to save and stop."""
        self.draining = True
        for running in self._processes.values():
            self._terminate(running)

    def kill(self) -> None:
        """End everything that runs at once."""
        self.draining = True
        for running in self._processes.values():
            running.stopping = True
            self._signal(running, signal.SIGKILL)

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the steps that run."""
        return tuple(name for _, name in self._processes)

    def seconds_to_next_start(self) -> float | None:
        """Return how long until a step that failed may be tried again."""
        now = self.clock()
        waits = [moment - now for moment in self._not_before.values() if moment > now]
        return min(waits, default=None)

    def _of(self, owner: Resource) -> dict[str, StepRecord]:
        key = key_of(owner)
        if key not in self._records:
            folder = self.layout.owner(owner)
            records = load_records(folder)
            # The lock is held: whatever ran is gone, and nobody told how it ended.
            self._records[key] = {name: _after_a_crash(folder / name, record) for name, record in records.items()}
        return self._records[key]

    def _may_start(self, owner: Resource, step: Step) -> bool:
        place = (key_of(owner), step.name)
        record = self._of(owner).get(step.name)
        if self.draining or place in self._processes or self.clock() < self._not_before.get(place, 0.0):
            return False
        if record is not None and record.phase in {StepPhase.SUCCEEDED, StepPhase.FAILED}:
            return False
        lane = _lane(step)
        return sum(_lane(running.step) is lane for running in self._processes.values()) < _AT_ONCE[lane]

    def _start(self, owner: Resource, step: Step) -> None:
        folder = self.layout.owner(owner) / step.name
        before = self._of(owner).get(step.name, StepRecord())
        attempt = max(before.attempts, step.earlier_attempts) + 1
        environment = self._environment(owner, step, folder)
        with explained_os_errors("write the state folder"):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / CONFIG_NAME, step.config.to_json())
            (folder / LAST_WORDS_NAME).unlink(missing_ok=True)
            self.progress.forget(_place(owner, step.name))
            with (folder / f"attempt-{attempt}.log").open("wb") as log:
                process = subprocess.Popen(
                    # -P: a file in the user's folder must not stand in for one of our libraries.
                    [sys.executable, "-P", "-m", self.programs[step.image]],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(self.lock,),
                    process_group=0,  # Ctrl-C reaches this process alone, which asks the step to save and stop.
                )
        self._processes[key_of(owner), step.name] = _Process(owner, step, process)
        update = {
            "phase": StepPhase.RUNNING,
            "attempts": attempt,
            "started_at": before.started_at or datetime.now(UTC),
            "finished_at": None,
            "pid": process.pid,
        }
        self._keep(owner, step.name, before.model_copy(update=update))

    def _environment(self, owner: Resource, step: Step, folder: Path) -> dict[str, str]:
        environment = dict(os.environ) if step.network else offline(os.environ)
        if step.secret is not None and isinstance(step.config, MeasureConfig | RelocateConfig):
            scheme = step.config.source.parsed.scheme
            environment |= self.secrets.environment(step.secret, scheme=scheme, own=os.environ)
        if step.secret is not None and isinstance(step.config, NotifyConfig | PushConfig | TrackConfig):
            environment |= self.secrets.receiver(step.secret, own=os.environ)
        return environment | {
            RUN_CONFIG_ENV: str(folder / CONFIG_NAME),
            TERMINATION_LOG_ENV: str(folder / LAST_WORDS_NAME),
            PROGRESS_URL_ENV: self.progress.url(_place(owner, step.name)),
            PROGRESS_TOKEN_ENV: str(self.layout.token),
            PARENT_ENV: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }

    def _settle(self, running: _Process, code: int) -> None:
        """Decide what the end of a process means, by the exit codes of the contract."""
        owner, step = running.owner, running.step
        record = self._of(owner)[step.name]
        folder = self.layout.owner(owner) / step.name
        words = read_last_words(folder / LAST_WORDS_NAME)
        log = folder / f"attempt-{record.attempts}.log"
        record = record.model_copy(update={"pid": None, "finished_at": datetime.now(UTC)})
        if code == ExitCode.DONE:
            record = record.model_copy(update={"phase": StepPhase.SUCCEEDED, "last_words": words})
        elif code in _STOPPED or running.stopping:
            record = record.model_copy(update={"phase": StepPhase.PENDING, "last_words": words or record.last_words})
            self._wait(owner, step, seconds=1.0)
        else:
            failures = record.failures + 1
            final = code == ExitCode.USER_ERROR or failures > step.retries
            update = {
                "phase": StepPhase.FAILED if final else StepPhase.PENDING,
                "failures": failures,
                "last_words": words if code in set(ExitCode) and words else _epitaph(code, log),
            }
            record = record.model_copy(update=update)
            self._wait(owner, step, seconds=2.0 ** (failures - 1))
        self._keep(owner, step.name, record)

    def _wait(self, owner: Resource, step: Step, *, seconds: float) -> None:
        self._not_before[key_of(owner), step.name] = self.clock() + min(seconds, _LONGEST_BACKOFF_SECONDS)

    def _keep(self, owner: Resource, name: str, record: StepRecord) -> None:
        records = self._of(owner)
        records[name] = record
        save_records(self.layout.owner(owner), records)

    def _terminate(self, running: _Process) -> None:
        if not running.stopping:
            running.stopping = True
            self._signal(running, signal.SIGTERM)

    @staticmethod
    def _signal(running: _Process, number: signal.Signals) -> None:
        if running.process.poll() is None:
            with suppress(ProcessLookupError):
                # SIGTERM is for the program, which tells its own children; SIGKILL is for all of them.
                if number is signal.SIGKILL:
                    os.killpg(running.process.pid, number)
                else:
                    os.kill(running.process.pid, number)


def _lane(step: Step) -> _Lane:
    if isinstance(step.config, NotifyConfig):
        return _Lane.NOTIFY
    return _Lane.RELOCATE if step.image is ImageRole.RELOCATOR else _Lane.COMPUTE


def read_last_words(path: Path) -> LastWords | None:
    """Return what a program left behind, None when it left nothing that can be read."""
    try:
        return LastWords.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def last_log_line(log: Path) -> str:
    """Return the last line of a log that says anything."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _after_a_crash(folder: Path, record: StepRecord) -> StepRecord:
    """Return what a step is now that a run recorded as running; interrupted, unless it told of its success."""
    if record.phase is not StepPhase.RUNNING:
        return record
    words = read_last_words(folder / LAST_WORDS_NAME)
    done = words is not None and words.reason is Reason.SUCCEEDED and words.result is not None
    phase = StepPhase.SUCCEEDED if done else StepPhase.PENDING
    return record.model_copy(update={"phase": phase, "pid": None, "last_words": words if done else record.last_words})


def _epitaph(code: int, log: Path) -> LastWords:
    """Return the last words of a program that could not say any itself."""
    if code == -signal.SIGKILL:
        return LastWords(
            reason=Reason.OUT_OF_MEMORY,
            message="the program was killed (SIGKILL), most likely because the machine ran out of memory",
            hint="Lower spec.training.batchSize, spec.training.microBatchSize or spec.training.maxLength, or close"
            " other programs.",
        )
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = last_log_line(log)
    message = f"the program {how}" + (f": {last[:512]}" if last else " without a word")
    return LastWords(reason=Reason.INTERNAL, message=message, hint=f"The log has the details: {log}")


def _place(owner: Resource, step: str) -> str:
    return f"{owner.kind}/{owner.metadata.name}/{step}"
