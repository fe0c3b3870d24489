"""The operator's process: ``python -m finetuning_operator.main``, configured by its environment alone."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from finetuning_operator.cluster import jsonlog, options
from finetuning_operator.cluster.options import Options, OptionsError

_USAGE_ERROR = 2


def main(arguments: Sequence[str] = ()) -> int:
    """Run the operator until it is told to stop or may no longer lead; return the exit code of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m finetuning_operator.main",
        description=options.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        chosen = Options.from_environment(os.environ)
    except OptionsError as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE_ERROR
    jsonlog.configure(chosen.log_level)
    # kopf asks for the name of the user, which an arbitrary uid does not have.
    os.environ.setdefault("LOGNAME", "finetuning-operator")
    # The library is loaded only now: it asks while it is loaded.
    from finetuning_operator.cluster.process import run

    return asyncio.run(run(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
