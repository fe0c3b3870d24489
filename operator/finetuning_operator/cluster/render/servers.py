"""Servers as Deployments with one stable address each."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from finetuning_api.base import Resource
from finetuning_operator.cluster.options import Options
from finetuning_operator.cluster.render.labels import Manifest, Network, metadata, pod_selector, stamped
from finetuning_operator.cluster.render.network import SERVING_PORT
from finetuning_operator.cluster.render.placement import Placement, affinity_of
from finetuning_operator.cluster.render.pods import Program, pod_template
from finetuning_operator.cluster.render.variants import health_paths, told
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.plan import Server

_GRACE_SECONDS: Final = 60
_DRAIN_SECONDS: Final = 5
"""How long a pod goes on answering after it was asked to end: until then clients still find its address."""
_ASK_FOR_STATUS: Final = """\
import sys
from http.client import HTTPConnection

port, path, expected, seconds = sys.argv[1:]
connection = HTTPConnection("localhost", int(port), timeout=float(seconds))
connection.request("GET", path)
status = connection.getresponse().status
sys.exit(None if status == int(expected) else f"{path} answered {status}, not {expected}")
"""
"""A program that fails unless an address in its own pod answers with one status; it follows no redirection."""
_OF_THE_PROGRAM: Final = frozenset({"name", "args", "ports", "lifecycle"})
"""Fields of the container, besides its probes, that say nothing of how a command before it runs."""


def render_server(server: Server, *, owner: Resource, options: Options, placement: Placement) -> tuple[Manifest, ...]:
    """Return the Deployment and the Service of a server.

    New replicas answer before old ones end. On ReadWriteOnce claims they meet on one node, by ``placement``, which then
    needs room, and accelerators, for one replica more. The Service is what names.server_url tells.
    """
    component = {labels.COMPONENT: server.component} if server.component else {}
    selector = pod_selector(owner) | component
    head = metadata(owner, server.name, **component)
    template = pod_template(
        _program(server, options=options, placement=placement), owner=owner, options=options, progress=None
    )
    if server.pre_start:
        (program,) = template["spec"]["containers"]
        template["spec"]["initContainers"] = list(_before(program, server.pre_start))
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": head,
        "spec": {
            # Where something else scales the server, its number is nothing that we describe.
            **({} if server.replicas is None else {"replicas": server.replicas}),
            "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "progressDeadlineSeconds": 2 * server.health.startup_seconds,
            "revisionHistoryLimit": server.former_revisions,
            "template": template,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": head,
        "spec": {
            "selector": selector,
            "ports": [{"name": SERVING_PORT, "port": server.port, "targetPort": SERVING_PORT, "protocol": "TCP"}],
        },
    }
    return stamped(deployment), stamped(service)


def _program(server: Server, *, options: Options, placement: Placement) -> Program:
    special = told(server)
    container: Manifest = {
        **special.container,
        "ports": [{"name": SERVING_PORT, "containerPort": server.port, "protocol": "TCP"}],
        "lifecycle": {"preStop": {"sleep": {"seconds": _DRAIN_SECONDS}}},
        **_probes(server),
    }
    # What is set for this server goes before what is set for its pods.
    variables = {variable.name: variable for variable in (*server.pod.env, *server.env)}
    return Program(
        image=server.image or options.images[server.role],
        role=server.role,
        network=Network.SERVING,
        container=container,
        environment=special.environment,
        references=special.references,
        config=server.config,
        mounts=server.mounts,
        attached=special.attached,
        resources=server.resources,
        pod=server.pod.model_copy(update={"env": list(variables.values())}),
        priority_class=server.priority_class,
        affinity=affinity_of(server, placement),
        labels={labels.COMPONENT: server.component} if server.component else {},
        spec={"terminationGracePeriodSeconds": _GRACE_SECONDS},
    )


def _probes(server: Server) -> Manifest:
    """Return when a replica gets requests, when it is started anew, and how long it may load."""
    health, paths = server.health, health_paths(server)
    tries = max(math.ceil(health.startup_seconds / health.period_seconds), health.failure_threshold)
    alive, ready = (
        {**_question(server, path), "periodSeconds": health.period_seconds, "timeoutSeconds": health.timeout_seconds}
        for path in (paths.alive, paths.ready)
    )
    return {
        "startupProbe": alive | {"failureThreshold": tries, "initialDelaySeconds": health.initial_delay_seconds},
        "readinessProbe": ready | {"failureThreshold": health.failure_threshold},
        "livenessProbe": alive | {"failureThreshold": health.failure_threshold},
    }


def _question(server: Server, path: str) -> Manifest:
    """Return what the kubelet asks. It takes any status from 200 to 399 for healthy: an exact one is asked inside."""
    health = server.health
    if health.expected_status is None:
        return {"httpGet": {"path": path, "port": SERVING_PORT}}
    told = (server.port, path, health.expected_status, health.timeout_seconds)
    # Isolated and without site-packages: it starts fast, and nothing in the image or the environment changes it.
    return {"exec": {"command": ["python3", "-I", "-S", "-c", _ASK_FOR_STATUS, *map(str, told)]}}


def _before(program: Manifest, commands: Sequence[Sequence[str]]) -> Iterator[Manifest]:
    """Return the containers that run one after the other before a program, each like it but for what it runs."""
    shared = {
        name: value for name, value in program.items() if name not in _OF_THE_PROGRAM and not name.endswith("Probe")
    }
    for number, command in enumerate(commands):
        yield shared | {"name": f"pre-start-{number}", "command": list(command)}
