"""A pod that takes webhooks and mails inside the cluster, with a certificate of its own, and tells what it took."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cluster import Object, has_condition
from tests.support.e2e import Place
from tests.support.pods import restricted_spec
from tests.support.processes import REPOSITORY
from tests.support.tls import Certificate

NAME = "receiver"
_PROGRAM = REPOSITORY / "tests" / "e2e" / "receiver.py"
_WEB, _MAIL = (443, 8443), (587, 8587)
"""Ports of its Service, and of its pod."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """The pod, and who is to trust its certificate."""

    place: Place
    certificate: Certificate

    @classmethod
    def start(cls, place: Place, *, image: str, folder: Path) -> "Receiver":
        """Run it behind a Service; ``image`` holds a library of mail servers, ``folder`` takes the certificate."""
        certificate = Certificate.make(folder, host=_host(place))
        pair = {"tls.crt": certificate.path.read_text(), "tls.key": certificate.key_path.read_text()}
        for made in (_secret(place, NAME, pair), _service(place), _pod(place, image)):
            place.cluster.create(made)
        place.wait("Pod", NAME, lambda found: has_condition(found, "Ready"))
        return cls(place, certificate)

    def make_secrets(self, *, web: str, mail: str) -> None:
        """Create the Secrets by which a job tells it, with the token and the login that it knows."""
        hook = {"url": f"https://{_host(self.place)}/hook", "token": "a-token"}
        box = {"host": _host(self.place), "from": "jobs@example.org", "to": "team@example.org"}
        login = {"username": "finetuning", "password": "a-password"}
        for secret in (_secret(self.place, web, hook), _secret(self.place, mail, box | login)):
            self.place.cluster.create(secret)

    def taken(self, kind: str) -> list[dict[str, Any]]:
        """Return what it took: each ``webhook`` or ``mail``."""
        lines = (line for line in self.place.kubectl("logs", NAME).splitlines() if line.startswith("{"))
        return [told for told in map(json.loads, lines) if told["kind"] == kind]


def _host(place: Place) -> str:
    return f"{NAME}.{place.namespace}.svc"


def _secret(place: Place, name: str, content: dict[str, str]) -> Object:
    metadata = {"name": name, "namespace": place.namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}


def _service(place: Place) -> Object:
    ports = [{"name": f"port-{port}", "port": port, "targetPort": target} for port, target in (_WEB, _MAIL)]
    metadata = {"name": NAME, "namespace": place.namespace}
    spec = {"selector": {"app": NAME}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _pod(place: Place, image: str) -> Object:
    spec = restricted_spec()
    (container,) = spec["containers"]
    container |= {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", _PROGRAM.read_text()],
        "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
        "readinessProbe": {"tcpSocket": {"port": _WEB[1]}, "periodSeconds": 1},
    }
    spec |= {"volumes": [{"name": "tls", "secret": {"secretName": NAME}}], "terminationGracePeriodSeconds": 0}
    metadata = {"name": NAME, "namespace": place.namespace, "labels": {"app": NAME}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
