"""A real Kubernetes on this machine.

``python -m hack.cluster up | down | build``: a control plane with fake nodes.
``python -m hack.cluster node-up | node-down | node-build``: a cluster with one real node, which runs containers.
``python -m hack.cluster kueue-build``: what tests add to a control plane to have queues.
"""

import argparse
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hack.cluster import client, machine
from hack.cluster.binaries import NODE, PLANE, QUEUE, BuildError, Module, build_missing, require_binaries
from hack.cluster.node import real_node
from hack.cluster.plane import ControlPlane, Running, StartError, supervise, wanted

_LOG = logging.getLogger("cluster")


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parser().parse_intermixed_args(arguments)
    try:
        _COMMANDS[options.command](options)
    except (BuildError, StartError) as error:
        _LOG.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _build(_: argparse.Namespace) -> None:
    _LOG.info("the programs are in %s", next(iter(build_missing().values())).parent)


def _up(options: argparse.Namespace) -> None:
    require_binaries()
    sys.stdout.write(_exports(client.start(_state(options, ".cluster"))))


def _down(options: argparse.Namespace) -> None:
    state = _state(options, ".cluster")
    _LOG.info("%s: %s", state, "stopped" if client.stop(state) else "no control plane runs here")


def _hold(options: argparse.Namespace) -> None:
    supervise(options.state, binaries=require_binaries(), while_used=options.while_used)


def _node_build(_: argparse.Namespace) -> None:
    _build_all((*PLANE, *NODE))


def _kueue_build(_: argparse.Namespace) -> None:
    _build_all((*PLANE, *QUEUE))


def _build_all(modules: Sequence[Module]) -> None:
    for path in sorted({path.parent for path in build_missing(modules).values()}):
        _LOG.info("programs are in %s", path)


def _node_up(options: argparse.Namespace) -> None:
    if machine.needs_root():
        raise StartError("a node needs root on Linux: it makes namespaces, mounts and cgroups")
    if missing := machine.missing_means():
        raise StartError(missing)
    require_binaries((*PLANE, *NODE))
    state = _state(options, ".node")
    sys.stdout.write(_exports(client.start(state, holder=client.HOLD_NODE)))
    _LOG.info("Load images with `%s -m hack.cluster node-load --state %s ARCHIVE ...`", sys.executable, state)


def _node_down(options: argparse.Namespace) -> None:
    state = _state(options, ".node")
    if Running.find(state) is None:
        machine.clean_up(state)
    _LOG.info("%s: %s", state, "stopped" if client.stop(state) else "no node runs here")


def _node_load(options: argparse.Namespace) -> None:
    held = machine.Held.find(_state(options, ".node"))
    if held is None:
        raise StartError("no node runs here")
    for archive in options.archives:
        _LOG.info("%s", held.load_image(archive))


def _hold_node(options: argparse.Namespace) -> None:
    with wanted(options.state, while_used=options.while_used) as is_wanted:
        machine.hold(options.state, is_wanted=is_wanted)


def _inside(options: argparse.Namespace) -> None:
    place = machine.Machine(options.number)
    machine.enter(options.state, place)
    binaries = require_binaries((*PLANE, *NODE))
    with ControlPlane(options.state, binaries=binaries, design=real_node(place), holder=options.holder) as plane:
        plane.keep(until=lambda: False)  # Until whoever holds the machine ends it.


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "build": _build,
    "up": _up,
    "down": _down,
    "hold": _hold,
    "node-build": _node_build,
    "kueue-build": _kueue_build,
    "node-up": _node_up,
    "node-down": _node_down,
    "node-load": _node_load,
    "hold-node": _hold_node,
    "inside": _inside,
}


def _state(options: argparse.Namespace, default: str) -> Path:
    state: Path = options.state or Path(default)
    return state.resolve()


def _exports(running: Running) -> str:
    """Return what a shell evaluates to use a control plane, with its kubectl where the shell has none."""
    lines = [f"export KUBECONFIG={running.kubeconfig}"]
    if shutil.which("kubectl") is None:
        lines.append(f'export PATH="$PATH:{Path(running.kubectl).parent}"')
    return "\n".join([*lines, ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.cluster", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("archives", type=Path, nargs="*", help="node-load: images as `docker save` writes them")
    parser.add_argument("--state", type=Path, help="folder of the cluster's files (.cluster, or .node)")
    parser.add_argument("--while-used", action="store_true", help="hold: end with the last user of the folder's lock")
    parser.add_argument("--number", type=int, help="inside: the node's number on this host")
    parser.add_argument("--holder", type=int, help="inside: the process that ends the node")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
