"""Ending with the parent: a step of a local run must not outlive the run that started it."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

PARENT_ENV = "FINETUNING_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def follow_parent(environment: Mapping[str, str]) -> None:
    """Ask for SIGTERM when the parent named in the environment ends; nothing to do in a pod.

    Linux only: elsewhere a step that lost its parent goes on, and the next run waits for it.
    """
    parent = environment.get(PARENT_ENV)
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        # The parent ended before the request: nobody will send the signal any more.
        os.kill(os.getpid(), signal.SIGTERM)
