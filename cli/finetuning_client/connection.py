"""The way to a cluster: a kubeconfig with its context and namespace, or the service account of a pod."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning_client.errors import NotConfiguredError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_POD_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Connection:
    """An authenticated client, and the words for where it leads."""

    client: "ApiClient"
    namespace: str
    context: str
    """Name of the kubeconfig's context; empty inside a pod."""

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self.client.configuration.host)

    @property
    def place(self) -> str:
        """Return where objects are looked for, for messages."""
        where = f" of context {self.context}" if self.context else ""
        return f"namespace {self.namespace}{where}"


def is_configured(kubeconfig: Path | None = None) -> bool:
    """Return whether a cluster is configured at all: by a file, by KUBECONFIG, or because this is a pod."""
    return kubeconfig is not None or any(path.exists() for path in _kubeconfigs()) or _is_pod()


def connect(
    *, namespace: str | None = None, context: str | None = None, kubeconfig: Path | str | None = None
) -> Connection:
    """Return a connection as kubectl would make it. Raises NotConfiguredError."""
    given = Path(kubeconfig).expanduser() if kubeconfig is not None else None
    if given is not None and not given.is_file():
        raise NotConfiguredError(f"there is no kubeconfig {given}", "Check the path.")
    if given is None and context is None and _is_pod() and not any(path.exists() for path in _kubeconfigs()):
        return _in_pod(namespace)
    if given is None and not any(path.exists() for path in _kubeconfigs()):
        looked = ", ".join(map(str, _kubeconfigs()))
        hint = "Name one with --kubeconfig or KUBECONFIG. Without a cluster: finetune run FILE"
        raise NotConfiguredError(f"no cluster is configured: there is no {looked}", hint)
    return _from_kubeconfig(given, context=context, namespace=namespace)


def _kubeconfigs() -> list[Path]:
    named = os.environ.get("KUBECONFIG", "")
    return [Path(part).expanduser() for part in named.split(os.pathsep) if part] or [
        Path("~/.kube/config").expanduser()
    ]


def _is_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and (_POD_FOLDER / "token").exists()


def _in_pod(namespace: str | None) -> Connection:
    from kubernetes import client, config

    configuration = client.Configuration()
    config.load_incluster_config(client_configuration=configuration)
    own = _POD_FOLDER / "namespace"
    found = own.read_text(encoding="utf-8").strip() if own.exists() else _DEFAULT_NAMESPACE
    return _connection(configuration, namespace=namespace or found, context="")


def _from_kubeconfig(path: Path | None, *, context: str | None, namespace: str | None) -> Connection:
    import yaml
    from kubernetes import client, config

    file = str(path) if path is not None else os.pathsep.join(map(str, _kubeconfigs()))
    configuration = client.Configuration()
    try:
        contexts, active = config.list_kube_config_contexts(config_file=file)
        chosen = next((each for each in contexts if each["name"] == context), None) if context else active
        if chosen is None:
            names = ", ".join(each["name"] for each in contexts)
            raise NotConfiguredError(f"{file} holds no context {context!r}", f"It holds {names}.")
        with _heard() as complaints:
            config.load_kube_config(config_file=file, context=chosen["name"], client_configuration=configuration)
    except (config.ConfigException, yaml.YAMLError, OSError, KeyError, TypeError, ValueError) as error:
        hint = "Check it with: kubectl config view"
        raise NotConfiguredError(f"the kubeconfig {file} cannot be used: {error}", hint) from error
    if complaints and not (configuration.api_key or configuration.cert_file):
        hint = "Log in to the cluster as its documentation says, and check with: kubectl auth whoami"
        raise NotConfiguredError(f"the login that the kubeconfig {file} asks for fails: {complaints[0]}", hint)
    found = namespace or chosen["context"].get("namespace") or _DEFAULT_NAMESPACE
    return _connection(configuration, namespace=found, context=chosen["name"])


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect what is logged meanwhile: the Kubernetes client logs that a login program fails, and goes on."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield heard
    finally:
        root.removeHandler(handler)


def _connection(configuration: Any, *, namespace: str, context: str) -> Connection:  # noqa: ANN401  (an untyped class)
    from kubernetes import client

    # A refused connection is told at once; what is worth a second try is tried again by whoever waits for it.
    configuration.retries = False
    return Connection(client.ApiClient(configuration), namespace, context)
