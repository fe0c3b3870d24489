"""``python -m hack.images build [role ...] | archives | names | sbom [role ...] | daemon-start | daemon-stop``.

DOCKER names the program (docker, podman, nerdctl), REGISTRY goes in front of names, TORCH chooses a build of torch
(cpu, cuda, or a label such as cu130), BUILD_ARGS holds further build arguments, for example
"PYTHON_IMAGE=... PIP_INDEX_URL=...", BUILD_NETWORK is the network of build steps.
"""

import argparse
import json
import logging
import sys

from hack.images.build import (
    archives,
    build,
    image_names,
    remove_former_archives,
    save_missing,
)
from hack.images.daemon import Daemon, any_docker
from hack.images.docker import Docker, ImageError
from hack.images.inputs import frozen
from hack.images.settings import ROLES, SITE, Role, Settings, cache_folder

_LOG = logging.getLogger("images")


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parser().parse_args(arguments)
    settings = Settings.of()
    try:
        match options.command:
            case "build":
                _build(options.roles or list(ROLES), settings)
            case "archives":
                _archives(settings)
            case "names":
                _names(settings)
            case "sbom":
                _bills(options.roles or list(ROLES), settings)
            case "daemon-start":
                _daemon().start()
                sys.stdout.write(f"export DOCKER_HOST={_daemon().docker.host} BUILD_NETWORK=host\n")
            case "daemon-stop":
                _daemon().stop()
    except ImageError as error:
        _LOG.error("%s", error)
        return 1
    return 0


def _build(roles: list[str], settings: Settings) -> None:
    docker = Docker(program=settings.docker, network=settings.network)
    with frozen((*ROLES.values(), SITE), settings) as copy:
        for name in roles:
            build(_role(name), copy, docker)


def _archives(settings: Settings) -> None:
    """Make what is missing and print what is there, as JSON."""
    wanted = archives(settings)
    if not all(archive.path.exists() for archive in wanted.values()):
        with frozen((*ROLES.values(), SITE), settings) as copy, any_docker(settings, _daemon()) as docker:
            wanted = archives(copy)
            save_missing(wanted, copy, docker)
    remove_former_archives(wanted)
    told = {group: {"path": str(archive.path), "images": dict(archive.images)} for group, archive in wanted.items()}
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


def _names(settings: Settings) -> None:
    for role in (*ROLES.values(), SITE):
        sys.stdout.write(" ".join(image_names(role, settings)) + "\n")


def _bills(roles: list[str], settings: Settings) -> None:
    from hack.images.sbom import write_bills  # It stands on libraries that building does not need.

    with any_docker(settings, _daemon()) as docker:
        for path in write_bills([_role(name) for name in roles], settings, docker):
            sys.stdout.write(f"{path}\n")


def _role_name(name: str) -> str:
    # As ``choices`` of argparse it would refuse that none is named: some Pythons look for the empty list among them.
    known = (*ROLES, SITE.name)
    if name not in known:
        raise argparse.ArgumentTypeError(f"no image is called {name!r}; choose from {', '.join(known)}")
    return name


def _role(name: str) -> Role:
    return ROLES.get(name, SITE)


def _daemon() -> Daemon:
    return Daemon(data=cache_folder() / "docker")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hack.images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in {
        "build": "build images",
        "sbom": "write what is in built images: build/sbom/<role>.cdx.json",
    }.items():
        command = commands.add_parser(name, help=f"{what}; all but the tests' own where none is named")
        command.add_argument("roles", nargs="*", type=_role_name, metavar="role")
    commands.add_parser("archives", help="build what has changed, and save it for tests on a node")
    commands.add_parser(
        "names", help="print the name of each image by version and by input; needs no container runtime"
    )
    commands.add_parser("daemon-start", help="start a docker daemon by hand; prints how to use it")
    commands.add_parser("daemon-stop", help="stop it")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
