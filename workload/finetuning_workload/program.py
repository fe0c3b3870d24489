"""The frame of every program in a pod: read the RunConfig, run, leave last words, exit with the right code."""

import logging
import os
import signal
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import (
    DEFAULT_TERMINATION_LOG,
    RUN_CONFIG,
    RUN_CONFIG_ENV,
    TERMINATION_LOG_BYTES,
    TERMINATION_LOG_ENV,
    ContractModel,
    LastWords,
    Result,
    RunConfig,
)
from finetuning_workload.errors import EnvironmentFault, Interrupted, ProgramError, UserError
from finetuning_workload.files import explained_os_errors
from finetuning_workload.parent import follow_parent
from finetuning_workload.progress import ProgressTarget, Reporter

_LOG = logging.getLogger(__name__)

_SHORT_MESSAGE = 500
"""Characters of a message that fit whatever they are."""


class StopFlag:
    """Whether the program was asked to stop (SIGTERM, SIGINT). Long work polls it at points where it can save."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def install(self) -> None:
        """Handle SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()

    def set(self) -> None:
        """Ask to stop."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past a request to stop; returns whether there was one."""
        return self._event.wait(seconds)

    def raise_if_set(self, message: str) -> None:
        """Raise Interrupted when asked to stop; for work that has nothing more to save."""
        if self:
            raise Interrupted(message)


class Context:
    """What the frame gives to the work: the stop flag, the environment and progress reporting."""

    def __init__(self, *, stop: StopFlag, environment: Mapping[str, str]) -> None:
        self.stop = stop
        self.environment = environment

    def reporter(self, description: str) -> Reporter:
        """Return a reporter for one piece of work; close it at its end."""
        return Reporter(description, target=ProgressTarget.from_environment(self.environment))


Work = Callable[[RunConfig, Context], Result | ContractModel | None]


def run_program(work: Work) -> int:
    """Run a program's work under the process contract and return its exit code.

    ``work`` gets the RunConfig and a Context, returns a result, and raises ProgramError to fail; any other exception is
    a fault of the program itself.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    stop = StopFlag()
    stop.install()
    follow_parent(os.environ)
    context = Context(stop=stop, environment=os.environ)
    try:
        with explained_os_errors("write its files"):
            result = work(read_run_config(os.environ), context)
    except ProgramError as error:
        _LOG.error("%s: %s %s", error.reason, error.message, error.hint)
        _leave(LastWords(reason=error.reason, message=error.message, hint=error.hint))
        return error.exit_code
    except MemoryError:
        fault = out_of_memory("the program", hint="Give this stage more memory, or less to do at a time.")
        _LOG.error("%s %s", fault.message, fault.hint)
        _leave(LastWords(reason=fault.reason, message=fault.message, hint=fault.hint))
        return fault.exit_code
    except Exception as error:  # noqa: BLE001  (the last line of defence: whatever it is, last words are left)
        _LOG.exception("the program failed")
        message = f"{type(error).__name__}: {error}"
        _leave(LastWords(reason=Reason.INTERNAL, message=message, hint="The log of this stage has the details."))
        return ExitCode.ENVIRONMENT
    _leave(LastWords.model_validate({"reason": Reason.SUCCEEDED, "result": result}))
    return ExitCode.DONE


def out_of_memory(what: str, *, hint: str) -> UserError:
    """Return the error for memory that ran out while ``what`` was done; ``hint`` names what to lower."""
    return UserError(Reason.OUT_OF_MEMORY, f"out of memory in {what}", hint)


def read_run_config(environment: Mapping[str, str]) -> RunConfig:
    """Return the RunConfig that the environment names; raises EnvironmentFault when there is none or it is damaged."""
    path = environment.get(RUN_CONFIG_ENV)
    if not path:
        hint = "Programs are started by the operator or by `finetune run`."
        raise EnvironmentFault(Reason.INTERNAL, f"{RUN_CONFIG_ENV} is not set", hint)
    try:
        return RUN_CONFIG.validate_json(Path(path).read_bytes())
    except (OSError, ValidationError) as error:
        message = f"cannot read the RunConfig {path}: {error}"
        raise EnvironmentFault(Reason.INTERNAL, message, "Operator and image must be of one release.") from error


def encode_last_words(words: LastWords) -> bytes:
    """Return the JSON of last words in at most 4096 bytes; a message that is too long loses its end."""
    encoded = _encode(words)
    if len(encoded) <= TERMINATION_LOG_BYTES:
        return encoded

    def shortened(characters: int) -> bytes:
        return _encode(words.model_copy(update={"message": f"{words.message[:characters]} ..."}))

    # The size in bytes grows with the characters kept, but not evenly: quotes and letters beyond ASCII take several.
    kept = bisect_right(range(len(words.message)), TERMINATION_LOG_BYTES, key=lambda count: len(shortened(count)))
    if kept > 0:
        return shortened(kept - 1)
    return _encode(LastWords(reason=words.reason, message=words.message[:_SHORT_MESSAGE]))


def _encode(words: LastWords) -> bytes:
    return words.model_dump_json(by_alias=True, exclude_none=True).encode()


def _leave(words: LastWords) -> None:
    path = Path(os.environ.get(TERMINATION_LOG_ENV, DEFAULT_TERMINATION_LOG))
    try:
        path.write_bytes(encode_last_words(words))
    except OSError as error:
        _LOG.warning("cannot write the termination log %s: %s", path, error)
