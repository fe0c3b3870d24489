"""Becomes another program that ends with the process that started it: ``launch.py PARENT PROGRAM ARGUMENTS...``.

A step of its own, because a parent with threads cannot safely run Python code between fork and exec.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for SIGKILL at the parent's end, then run the program. Linux only: elsewhere just run it."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        os.execv(program, sys.argv[2:])  # noqa: S606  (becoming the program is the point)


main()
