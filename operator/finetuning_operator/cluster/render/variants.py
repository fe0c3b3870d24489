"""What each kind of server is told, in its own words: arguments, variables and folders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from finetuning_api.inferenceserver import ServerVariant
from finetuning_operator.cluster.render.labels import Manifest
from finetuning_operator.cluster.render.mounts import Attached
from finetuning_operator.reconcile.plan import Server

SERVING_SECRET_ENV_PREFIX: Final = "SERVING_SECRET_"  # noqa: S105  (a prefix of variable names)
"""The keys of authSecretRef reach variant command as variables with this prefix."""
_VLLM_KEY, _NGC_KEY = "token", "NGC_API_KEY"
"""Keys of authSecretRef that variants vllm and nim read."""
_NIM_CACHE = "/opt/nim/.cache"
_NIM_CACHE_SIZE = "32Gi"
_NIM_ADAPTERS = "/opt/nim/adapters"
_TOKENS_MODE = 0o440
"""The program reads its tokens by its group; nobody else in the pod does."""
_PLAIN_RESOURCES = ("cpu", "memory", "ephemeral-storage", "hugepages-")


@dataclass(frozen=True, slots=True)
class HealthPaths:
    """Where a server tells how it is."""

    alive: str
    """Answers while the program lives; else it is started again."""
    ready: str
    """Answers while it can take requests."""


_HEALTH_PATHS: Mapping[ServerVariant, HealthPaths] = {
    ServerVariant.BUILTIN: HealthPaths("/healthz", "/readyz"),
    ServerVariant.COMMAND: HealthPaths("/healthz", "/healthz"),
    ServerVariant.VLLM: HealthPaths("/health", "/health"),
    ServerVariant.NIM: HealthPaths("/v1/health/ready", "/v1/health/ready"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a variant adds to its pods."""

    container: Manifest = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    references: tuple[Manifest, ...] = ()
    attached: tuple[Attached, ...] = ()


def told(server: Server) -> Told:
    """Return what a server is told besides its RunConfig."""
    variants: Mapping[ServerVariant, Callable[[Server], Told]] = {
        ServerVariant.BUILTIN: _builtin,
        ServerVariant.COMMAND: _command,
        ServerVariant.VLLM: _vllm,
        ServerVariant.NIM: _nim,
    }
    return variants[server.variant](server)


def health_paths(server: Server) -> HealthPaths:
    """Return the paths that probes ask: the user's one for everything, else the variant's own."""
    path = server.health.path
    return _HEALTH_PATHS[server.variant] if path is None else HealthPaths(path, path)


def accelerators(server: Server) -> int:
    """Return how many accelerators, of any vendor, each replica has: the greatest count of an extended resource."""
    amounts = (server.resources.requests | server.resources.limits).items()
    return max((int(count) for name, count in amounts if _is_counted(name, count)), default=0)


def _is_counted(name: str, count: str) -> bool:
    return not name.startswith(_PLAIN_RESOURCES) and count.isdigit()


def _builtin(server: Server) -> Told:
    path = server.config.tokens_path if server.config else None
    if server.auth_secret is None or path is None:
        return Told()
    # As a folder: the kubelet exchanges its files when tokens change, and no pod has to be started anew.
    source = {"secretName": server.auth_secret, "defaultMode": _TOKENS_MODE, "optional": False}
    mount = {"name": "tokens", "mountPath": path, "readOnly": True}
    return Told(attached=(Attached({"name": "tokens", "secret": source}, (mount,)),))


def _command(server: Server) -> Told:
    environment = {
        "MODEL_NAME": server.model_name,
        "MODEL_PATH": server.model_path,
        "MODEL_ADAPTERS": ",".join(f"{name}={path}" for name, path in server.adapters),
        "PORT": str(server.port),
    }
    return Told(container={"command": list(server.command)} | _secret_variables(server), environment=environment)


def _vllm(server: Server) -> Told:
    # The module, not `vllm serve`: images differ in their entry point, and that command refuses --model.
    command = server.command or ("python3", "-m", "vllm.entrypoints.openai.api_server")
    arguments = ["--model", server.model_path, "--served-model-name", server.model_name, "--port", str(server.port)]
    if server.adapters:
        arguments += ["--enable-lora", "--lora-modules", *(f"{name}={path}" for name, path in server.adapters)]
    if (count := accelerators(server)) > 1:
        arguments += ["--tensor-parallel-size", str(count)]
    return Told(
        container={"command": list(command), "args": arguments},
        # It tells its makers how it is used; the network would not let it, and waiting for that takes time.
        environment={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        references=_reference("VLLM_API_KEY", server, key=_VLLM_KEY),
    )


def _nim(server: Server) -> Told:
    environment = {
        # Releases before 2.0 know the first name, later ones the second.
        "NIM_MODEL_NAME": server.model_path,
        "NIM_MODEL_PATH": server.model_path,
        "NIM_SERVED_MODEL_NAME": server.model_name,
        "NIM_SERVER_PORT": str(server.port),
        "NIM_CACHE_PATH": _NIM_CACHE,
        "NIM_DISABLE_MODEL_DOWNLOAD": "1",
    }
    if server.adapters:
        environment["NIM_PEFT_SOURCE"] = _NIM_ADAPTERS
    own_cache = any(volume.mount_path == _NIM_CACHE for volume in server.pod.volumes)
    cache = Attached(
        {"name": "nim-cache", "emptyDir": {"sizeLimit": _NIM_CACHE_SIZE}},
        ({"name": "nim-cache", "mountPath": _NIM_CACHE},),
    )
    return Told(
        container={"command": list(server.command)} if server.command else {},
        environment=environment,
        references=_reference("NGC_API_KEY", server, key=_NGC_KEY),
        attached=(*(() if own_cache else (cache,)), *_adapter_folders(server)),
    )


def _adapter_folders(server: Server) -> tuple[Attached, ...]:
    """Return the adapters side by side: NIM reads one folder, in which each adapter is a folder by its name."""
    found: list[Attached] = []
    for number, (name, path) in enumerate(server.adapters):
        mount = next(mount for mount in server.mounts if f"{path}/".startswith(f"{mount.path}/"))
        inside = path.removeprefix(mount.path).strip("/")
        place = {"name": f"adapter-{number}", "mountPath": f"{_NIM_ADAPTERS}/{name}", "readOnly": True}
        volume = {"name": f"adapter-{number}", "persistentVolumeClaim": {"claimName": mount.claim}}
        found.append(Attached(volume, (place | ({"subPath": inside} if inside else {}),)))
    return tuple(found)


def _secret_variables(server: Server) -> Manifest:
    if server.auth_secret is None:
        return {}
    reference = {"name": server.auth_secret, "optional": False}
    return {"envFrom": [{"prefix": SERVING_SECRET_ENV_PREFIX, "secretRef": reference}]}


def _reference(variable: str, server: Server, *, key: str) -> tuple[Manifest, ...]:
    if server.auth_secret is None:
        return ()
    return ({"name": variable, "valueFrom": {"secretKeyRef": {"name": server.auth_secret, "key": key}}},)
