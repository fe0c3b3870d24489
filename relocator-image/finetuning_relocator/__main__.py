"""Start the relocator: ``python -m finetuning_relocator``."""

import sys

from finetuning_relocator.work import work
from finetuning_workload.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(work))
