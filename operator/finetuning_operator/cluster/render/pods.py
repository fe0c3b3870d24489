"""Pods by the contract: restricted, private, and with everything that a program is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from finetuning_api.base import Resource, ResourceRequirements
from finetuning_api.finetuningjob import PodOptions
from finetuning_api.runconfig import (
    DEFAULT_TERMINATION_LOG,
    EXTRA_CA_ENV,
    PROGRESS_CA_ENV,
    PROGRESS_TOKEN_ENV,
    PROGRESS_URL_ENV,
    RUN_CONFIG_ENV,
    TERMINATION_LOG_ENV,
    RunConfig,
)
from finetuning_operator.cluster.options import Options, Outside, ProgressOptions
from finetuning_operator.cluster.progress.address import Owner, ProgressKey
from finetuning_operator.cluster.render.labels import (
    CONTAINER,
    EXTRA_CA,
    NETWORK,
    PROGRESS_CA,
    RUN_CONFIG,
    Manifest,
    Network,
    claim_label,
    of_owner,
)
from finetuning_operator.cluster.render.mounts import (
    EXTRA_CA_PATH,
    PROGRESS_CA_PATH,
    PROGRESS_TOKEN_PATH,
    RUN_CONFIG_PATH,
    SCRATCH_FOLDER,
    Attached,
    contract,
    given,
    progress_token,
    scratch,
    shared_memory,
)
from finetuning_operator.reconcile.plan import ClaimMount, ConfigMapMount, ImageRole

USER_ID: Final = 65532
"""User and group of every program; the images name the same."""
_OVERCOMMITTED = frozenset({"cpu", "memory", "ephemeral-storage"})
"""Resources of which a container may be limited to more than it requests."""
_LEAST: Mapping[ImageRole, Mapping[str, str]] = {
    ImageRole.RELOCATOR: {"cpu": "100m", "memory": "256Mi"},
    ImageRole.TRAINER: {"cpu": "250m", "memory": "512Mi"},
    ImageRole.EVALUATOR: {"cpu": "250m", "memory": "512Mi"},
    ImageRole.SERVER: {"cpu": "250m", "memory": "512Mi"},
}
"""What is requested of cpu and memory where a user names neither a request nor a limit: enough to be placed with care,
little enough to fit anywhere. No limit is made up, because one that is guessed ends programs that would have fitted."""
_FOLDERS: Mapping[str, str] = {
    "TMPDIR": SCRATCH_FOLDER,
    "HF_HOME": f"{SCRATCH_FOLDER}/huggingface",
    "XDG_CACHE_HOME": f"{SCRATCH_FOLDER}/cache",
    "XDG_CONFIG_HOME": f"{SCRATCH_FOLDER}/config",
    "TRITON_CACHE_DIR": f"{SCRATCH_FOLDER}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH_FOLDER}/inductor",
}
"""Where caches go that a user may put elsewhere, on a volume of their own."""
_OFFLINE: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Program:
    """A container and what it needs around it: what steps and servers have in common."""

    image: str
    role: ImageRole
    network: Network
    container: Manifest = field(default_factory=dict)
    """Fields of the container that are this program's own: command, ports, probes."""
    environment: Mapping[str, str] = field(default_factory=dict)
    references: tuple[Manifest, ...] = ()
    """Environment variables whose values Kubernetes looks up."""
    config: RunConfig | None = None
    mounts: tuple[ClaimMount | ConfigMapMount, ...] = ()
    attached: tuple[Attached, ...] = ()
    """Volumes of this program's own."""
    resources: ResourceRequirements = field(default_factory=ResourceRequirements)
    pod: PodOptions = field(default_factory=PodOptions)
    priority_class: str | None = None
    affinity: Manifest = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    spec: Manifest = field(default_factory=dict)
    """Fields of the pod that are this program's own: restart policy, grace period, host names."""


def with_progress(program: Program, key: ProgressKey, *, owner: Resource, progress: ProgressOptions) -> Program:
    """Return a program that is told where to report and given a token for it."""
    told = {
        PROGRESS_URL_ENV: f"{progress.url}{key.path}",
        PROGRESS_TOKEN_ENV: PROGRESS_TOKEN_PATH,
        PROGRESS_CA_ENV: PROGRESS_CA_PATH,
    }
    audience = Owner(key.namespace, key.kind, key.name, owner.metadata.uid)
    token = progress_token(audience)
    return replace(program, environment={**program.environment, **told}, attached=(*program.attached, token))


def pod_template(program: Program, *, owner: Resource, options: Options, progress: ProgressOptions | None) -> Manifest:
    """Return the template of a program's pods. ``progress`` is where it reports to, None where it does not."""
    files = _files(program, options, progress)
    annotations = {**program.pod.annotations, **files}
    attached = [scratch(_scratch_size(program.resources)), shared_memory(program.pod.shared_memory_size)]
    if files:
        attached.append(contract(files))
    attached += [*program.attached, *given(program.mounts, program.pod.volumes)]
    metadata: Manifest = {"labels": _labels(program, owner, attached)}
    if annotations:
        metadata["annotations"] = annotations
    return {"metadata": metadata, "spec": _spec(program, options, attached)}


def _files(program: Program, options: Options, progress: ProgressOptions | None) -> dict[str, str]:
    """Return the annotations that a program reads as files: they need no object of their own in its namespace."""
    if program.config is None:
        return {}
    files = {RUN_CONFIG: program.config.to_json()}
    if progress is not None:
        files[PROGRESS_CA] = progress.ca
    if program.network is Network.OPEN and options.outside.ca_bundle:
        files[EXTRA_CA] = options.outside.ca_bundle
    return files


def _labels(program: Program, owner: Resource, attached: Sequence[Attached]) -> dict[str, str]:
    """Return the labels of a pod, among them one for each claim: by it others find the node where the claim is."""
    sources = (each.volume.get("persistentVolumeClaim") for each in attached)
    claims = {claim_label(source["claimName"]): "" for source in sources if source}
    return {**program.pod.labels, **of_owner(owner), **program.labels, NETWORK: program.network.value, **claims}


def _spec(program: Program, options: Options, attached: Sequence[Attached]) -> Manifest:
    pod = program.pod
    secrets = dict.fromkeys((*options.image_pull_secrets, *(secret.name for secret in pod.image_pull_secrets)))
    optional: Manifest = {
        "affinity": program.affinity,
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [toleration.to_wire() for toleration in pod.tolerations],
        "runtimeClassName": pod.runtime_class_name,
        "priorityClassName": program.priority_class or options.priority_class,
        "imagePullSecrets": [{"name": name} for name in secrets],
    }
    return {
        # No right in the cluster: the one token that a program gets is made for the progress endpoint alone.
        "automountServiceAccountToken": False,
        # Names of neighbouring Services are nobody's business, and thousands of variables stop a shell from starting.
        "enableServiceLinks": False,
        "securityContext": _pod_security(),
        "containers": [_container(program, options, attached)],
        "volumes": [each.volume for each in attached],
        **{name: value for name, value in optional.items() if value},
        **program.spec,
    }


def _pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        # A model of many files is handed over once, not at every start of a pod.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(program: Program, options: Options, attached: Sequence[Attached]) -> Manifest:
    return {
        "name": CONTAINER,
        "image": program.image,
        "imagePullPolicy": str(options.image_pull_policy),
        "env": _environment(program, options.outside),
        "resources": _resources(program),
        "volumeMounts": [mount for each in attached for mount in each.mounts],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": DEFAULT_TERMINATION_LOG,
        # Not FallbackToLogsOnError: the end of a log is untrusted text that could pass for last words, and may hold
        # rows of the user's data. Who needs it reads the log itself.
        "terminationMessagePolicy": "File",
        **program.container,
    }


def _environment(program: Program, outside: Outside) -> list[Manifest]:
    """Return the variables: folders, then what the user adds or moves, then what nobody may change.

    Of proxies and further authorities only those pods are told that may use the network: to others they are an address
    that they cannot reach.
    """
    is_open = program.network is Network.OPEN
    fixed = {
        "HOME": SCRATCH_FOLDER,
        # The uid has no entry in the image's passwd, where Python and torch would look a name up.
        "USER": "finetuning",
        "LOGNAME": "finetuning",
        "PYTHONUNBUFFERED": "1",
        TERMINATION_LOG_ENV: DEFAULT_TERMINATION_LOG,
        **(outside.variables if is_open else _OFFLINE),
        **({EXTRA_CA_ENV: EXTRA_CA_PATH} if is_open and outside.ca_bundle else {}),
        **({} if program.config is None else {RUN_CONFIG_ENV: RUN_CONFIG_PATH}),
    }
    users = {variable.name: variable.value for variable in program.pod.env}
    plain = {**_FOLDERS, **users, **program.environment, **fixed}
    looked_up = {reference["name"] for reference in program.references}
    variables = [{"name": name, "value": value} for name, value in plain.items() if name not in looked_up]
    return [*variables, *program.references]


def _resources(program: Program) -> Manifest:
    """Return requests and limits; of what cannot be overcommitted (accelerators, huge pages) both must be the same."""
    wanted = program.resources
    named = wanted.requests.keys() | wanted.limits.keys()
    least = {name: amount for name, amount in _LEAST[program.role].items() if name not in named}
    exact = {name: amount for name, amount in wanted.requests.items() if name not in _OVERCOMMITTED}
    found = {"requests": least | wanted.requests, "limits": exact | wanted.limits}
    return {name: amounts for name, amounts in found.items() if amounts}


def _scratch_size(resources: ResourceRequirements) -> str | None:
    return resources.limits.get("ephemeral-storage") or resources.requests.get("ephemeral-storage")
