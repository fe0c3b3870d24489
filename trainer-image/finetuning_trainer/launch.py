"""Starts a user's program in its own place: ``python -P -m finetuning_trainer.launch PROGRAM ARGUMENT ...``.

The program takes this one's place once it is bound to end with its parent, which a program of somebody else does not
arrange itself.
"""

import os
import sys

from finetuning_workload.parent import follow_parent

if __name__ == "__main__":
    follow_parent(os.environ)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  (to start what the user named is what it is for)
