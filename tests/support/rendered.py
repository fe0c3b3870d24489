"""Every form of manifest that is rendered, by name: for tests of what Kubernetes says to them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.plans import (
    ADAPTER,
    NAMESPACE,
    SERVE,
    options,
    owner,
    pod,
    resources,
    server,
    server_owner,
    step,
    volume,
)

from finetuning_api.finetuningjob import EnvVar, RetentionPolicy
from finetuning_api.inferenceserver import ServerVariant
from finetuning_api.scaling import AutoscalingSpec, DisruptionSpec
from finetuning_operator.cluster.render import (
    Placement,
    render_companions,
    render_network_policies,
    render_server,
    render_step,
    render_volume,
)
from finetuning_operator.reconcile.plan import ConfigMapMount, ImageRole, Server, Step, Volume

Manifest = dict[str, Any]
_TERM = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}]}
_NEAR = {"weight": 5, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}}
WISHES = pod(
    nodeSelector={"pool": "gpu"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
    affinity={
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": _TERM},
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_NEAR]},
        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_NEAR]},
    },
    imagePullSecrets=[{"name": "mine"}],
    env=[{"name": "NCCL_DEBUG", "value": "INFO"}],
    labels={"team": "nlp"},
    annotations={"example.com/note": "a"},
    volumes=[
        {"name": "a", "mountPath": "/mnt/a", "claimName": "mine", "readOnly": True},
        {"name": "b", "mountPath": "/mnt/b", "configMapName": "settings"},
        {"name": "c", "mountPath": "/mnt/c", "secretName": "keys"},
        {"name": "d", "mountPath": "/mnt/d", "emptyDirSize": "1Gi"},
    ],
    sharedMemorySize="8Gi",
)
"""Everything that a user may say of pods, but for what an object of the cluster must answer."""


@dataclass(frozen=True)
class Rendered:
    """What one part of a plan became."""

    name: str
    manifests: tuple[Manifest, ...]

    def __str__(self) -> str:
        return self.name


def _step(name: str, wanted: Step, *, namespace: str) -> Rendered:
    owned = owner(namespace=namespace)
    installation = options(image_pull_secrets=("registry",))
    return Rendered(name, render_step(wanted, owner=owned, options=installation, placement=Placement("reloc-base")))


def _server(name: str, wanted: Server, *, namespace: str) -> Rendered:
    owned = server_owner(namespace=namespace)
    return Rendered(name, render_server(wanted, owner=owned, options=options(), placement=Placement("reloc-base")))


def _beside(name: str, wanted: Server, *, namespace: str) -> Rendered:
    owned, installation = server_owner(namespace=namespace), options(ingress_class="public")
    return Rendered(name, render_companions(wanted, owner=owned, options=installation))


def _volume(name: str, wanted: Volume, *, namespace: str) -> Rendered:
    return Rendered(name, (render_volume(wanted, owner=owner(namespace=namespace), options=options()),))


_ACCELERATORS = resources(requests={"nvidia.com/gpu": "2", "cpu": "4"}, limits={"memory": "16Gi"})
_FETCHING = {"image": ImageRole.RELOCATOR, "network": True, "secret": "hub", "mounts": (ADAPTER,)}
_SCALING = AutoscalingSpec(max_replicas=4, target_cpu_utilization=60, target_requests_in_flight=8)
_FORMS: tuple[tuple[Callable[..., Rendered], str, Any], ...] = (
    (_step, "train", step()),
    (_step, "train-with-wishes", step(name="wishes", pod=WISHES, resources=_ACCELERATORS, deadline_seconds=60)),
    (_step, "train-together", step(name="together", workers=3, processes_per_worker=2)),
    (_step, "train-one-process-each", step(name="single", workers=2)),
    (_step, "queued", step(name="queued", queue="gpus")),
    (_step, "relocate", step(name="relocate", **_FETCHING)),
    (_step, "measure", step(name="measure", mounts=(ConfigMapMount("rows", "/configmaps/rows"),))),
    (_server, "builtin", server(config=SERVE, auth_secret="tokens", pre_start=(("prepare", "--all"),))),
    (_server, "builtin-with-wishes", server(name="wishes", pod=WISHES, resources=_ACCELERATORS)),
    (_server, "command", server(ServerVariant.COMMAND, name="command", image="mine:1", command=("serve",))),
    (_server, "vllm", server(ServerVariant.VLLM, name="vllm", image="vllm:1", auth_secret="tokens")),
    (_server, "nim", server(ServerVariant.NIM, name="nim", image="nim:1", env=(EnvVar(name="A", value="b"),))),
    (_server, "scaled", server(name="scaled", replicas=None, autoscaling=_SCALING)),
    (_beside, "scaled-beside", server(autoscaling=_SCALING, disruption=DisruptionSpec(max_unavailable=1))),
    (_beside, "exposed-beside", server(host="chat.team-a.example.org", disruption=DisruptionSpec(min_available=0))),
    (_volume, "claim", volume()),
    (_volume, "claim-of-a-profile", volume("fast", profile="fast", retention=RetentionPolicy.TRASH, size_bytes=9)),
)


def every_manifest(namespace: str) -> tuple[Rendered, ...]:
    """Return everything that is rendered, in a namespace."""
    policies = Rendered("policies", render_network_policies(namespace, options()))
    closed = Rendered("policies-without-progress", render_network_policies(namespace, options(progress=None)))
    return (*(render(name, wanted, namespace=namespace) for render, name, wanted in _FORMS), policies, closed)


EVERY_MANIFEST = every_manifest(NAMESPACE)
