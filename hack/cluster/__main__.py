"""``python -m hack.cluster up | down | build``: a real control plane with fake nodes on this machine."""

import argparse
import logging
import shutil
import signal
import sys
from pathlib import Path

from hack.cluster import client
from hack.cluster.binaries import BuildError, build_missing, require_binaries
from hack.cluster.plane import Running, StartError, supervise

_LOG = logging.getLogger("cluster")


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parser().parse_args(arguments)
    state: Path = options.state.resolve()
    try:
        if options.command == "build":
            _LOG.info("the programs are in %s", next(iter(build_missing().values())).parent)
        elif options.command == "up":
            require_binaries()
            sys.stdout.write(_exports(client.start(state)))
        elif options.command == "down":
            _LOG.info("%s: %s", state, "stopped" if client.stop(state) else "no control plane runs here")
        else:
            supervise(state, binaries=require_binaries(), while_used=options.while_used)
    except (BuildError, StartError) as error:
        _LOG.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _exports(running: Running) -> str:
    """Return what a shell evaluates to use a control plane, with its kubectl where the shell has none."""
    lines = [f"export KUBECONFIG={running.kubeconfig}"]
    if shutil.which("kubectl") is None:
        lines.append(f'export PATH="$PATH:{Path(running.kubectl).parent}"')
    return "\n".join([*lines, ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.cluster", description=__doc__)
    parser.add_argument("command", choices=["build", "up", "down", "hold"])
    parser.add_argument("--state", type=Path, default=Path(".cluster"), help="folder of the control plane's files")
    parser.add_argument("--while-used", action="store_true", help="hold: end with the last user of the folder's lock")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
