"""One program of ours as a process beside the command, for as long as the command wants it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import RUN_CONFIG_ENV, TERMINATION_LOG_ENV, PromptConfig, ServeConfig
from finetuning_cli.local.credentials import offline
from finetuning_cli.local.layout import CONFIG_NAME, LAST_WORDS_NAME
from finetuning_cli.local.steps import PROGRAMS, last_log_line, read_last_words
from finetuning_operator.reconcile.plan import ImageRole
from finetuning_workload.errors import UserError
from finetuning_workload.parent import PARENT_ENV

_LOG_NAME = "log"


@dataclass(frozen=True, slots=True)
class Program:
    """A program that was started, and the folder of what it says at its end."""

    process: "subprocess.Popen[str]"
    folder: Path

    def failure(self) -> UserError:
        """Return why it ended."""
        words = read_last_words(self.folder / LAST_WORDS_NAME)
        if words is not None:
            return UserError(words.reason, words.message, words.hint)
        last = last_log_line(self.folder / _LOG_NAME)
        how = f"ended with exit code {self.process.returncode}"
        return UserError(Reason.INTERNAL, f"the program {how}" + (f": {last}" if last else " without a word"), "")

    def terminate(self) -> None:
        """Ask it to end what it does, and to end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


@contextmanager
def running(config: PromptConfig | ServeConfig, *, shows_log: bool = False) -> Iterator[Program]:
    """Run the server's program; at the end of the context it is killed if it still runs.

    Its log goes to standard error, or nowhere but into messages. It is in a process group of its own, so Ctrl-C reaches
    the command alone, and it ends when the command is killed.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        folder = Path(scratch)
        (folder / CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")
        environment = offline(os.environ) | {
            RUN_CONFIG_ENV: str(folder / CONFIG_NAME),
            TERMINATION_LOG_ENV: str(folder / LAST_WORDS_NAME),
            PARENT_ENV: str(os.getpid()),
        }
        with (folder / _LOG_NAME).open("wb") as log:
            process = subprocess.Popen(
                # -P: a file in the user's folder must not stand in for one of our libraries.
                [sys.executable, "-P", "-m", PROGRAMS[ImageRole.SERVER]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=_output(config, shows_log=shows_log),
                stderr=None if shows_log else log,
                text=True,
                encoding="utf-8",
                process_group=0,
            )
        with process:
            try:
                yield Program(process, folder)
            finally:
                if process.poll() is None:
                    process.kill()


def _output(config: PromptConfig | ServeConfig, *, shows_log: bool) -> int:
    """Return where standard output goes: answers to the command, a server's access log to standard error or nowhere."""
    if isinstance(config, PromptConfig):
        return subprocess.PIPE
    return sys.stderr.fileno() if shows_log else subprocess.DEVNULL
