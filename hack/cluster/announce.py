"""The last plugin of the network: tells the node's agent which address a pod got, and waits until its rules hold.

A program of its own, called by the container runtime as the Container Network Interface says: what to do is in the
environment, how in the standard input, and the answer goes to the standard output.
"""

import json
import os
import socket
import sys
import time

_SECONDS = 30


def main() -> None:
    """Obey one command."""
    config = json.load(sys.stdin)
    command = os.environ["CNI_COMMAND"]
    if command == "VERSION":
        answer = {"cniVersion": config["cniVersion"], "supportedVersions": ["0.4.0", "1.0.0"]}
    else:
        answer = config.get("prevResult", {})
    if command == "ADD":
        arguments = dict(each.split("=", 1) for each in os.environ["CNI_ARGS"].split(";"))
        address = answer["ips"][0]["address"].partition("/")[0]
        _announce(config["socket"], [arguments["K8S_POD_NAMESPACE"], arguments["K8S_POD_NAME"], address])
    if command in {"VERSION", "ADD"}:
        json.dump(answer, sys.stdout)


def _announce(path: str, words: list[str]) -> None:
    """Tell the agent, and wait. Raises OSError when it is not there in time; the pod is then tried again later."""
    with _connected(path) as connection, connection.makefile("rw") as stream:
        stream.write(json.dumps(words) + "\n")
        stream.flush()
        if stream.readline() != "settled\n":
            raise TimeoutError("the rules for a pod are late")


def _connected(path: str) -> socket.socket:
    """Connect to an agent that may just be starting."""
    deadline = time.monotonic() + _SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(2 * _SECONDS)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return connection


main()
