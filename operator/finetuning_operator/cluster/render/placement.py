"""Where pods meet: those that use one ReadWriteOnce claim at the same time must run on one node.

A claim is held where a pod that mounts it runs. The scheduler counts a pod for required affinity only when it matches
all terms, so there is one term, on one claim that all pods which must meet have in common.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from finetuning_api.finetuningjob import AccessMode
from finetuning_api.runconfig import EvaluateConfig, RunConfig, TrainingInputs
from finetuning_operator.cluster.render.labels import Manifest, claim_label
from finetuning_operator.reconcile.plan import ClaimMount, Server, Step

_HOSTNAME = "kubernetes.io/hostname"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True, slots=True)
class ClaimUse:
    """A claim that a pod is going to mount."""

    name: str
    access_modes: tuple[str, ...] = (AccessMode.READ_WRITE_ONCE,)
    read_only: bool = True

    @property
    def tied(self) -> bool:
        """Whether all pods that use the claim at the same time must run on one node."""
        anywhere = AccessMode.READ_WRITE_MANY in self.access_modes
        return not anywhere and not (self.read_only and AccessMode.READ_ONLY_MANY in self.access_modes)

    @property
    def single(self) -> bool:
        """Whether only one pod at a time may use the claim."""
        return self.tied and set(self.access_modes) == {AccessMode.READ_WRITE_ONCE_POD}


@dataclass(frozen=True, slots=True)
class Placement:
    """The claim that a pod meets others at; without one it may run anywhere."""

    claim: str | None = None
    node: str | None = None
    """Where the claim is held at the moment, for messages; the scheduler finds it by itself."""

    @property
    def terms(self) -> list[Manifest]:
        """The terms of required pod affinity; the pod's own label satisfies them where nobody holds the claim."""
        if self.claim is None:
            return []
        held = {"matchExpressions": [{"key": claim_label(self.claim), "operator": "Exists"}]}
        return [{"labelSelector": held, "topologyKey": _HOSTNAME}]


@dataclass(frozen=True, slots=True)
class Conflict:
    """No node can have all claims: ``held`` says of each claim that is in the way where or by whom it is held."""

    held: tuple[tuple[str, str], ...]

    @property
    def message(self) -> str:
        """What keeps the pod from being made, as a part of a sentence."""
        places = ", ".join(f"claim {claim} is held {place}" for claim, place in self.held)
        return f"the volumes cannot be mounted together now: {places}"


def claims_of(wanted: Step | Server) -> tuple[tuple[str, bool], ...]:
    """Return (name, read-only) of every claim that a pod mounts, each once: the base model's first, written ones last.

    So pods that have most in common choose the same meeting point: many jobs share a base model.
    """
    uses: dict[str, bool] = {}
    for mount in wanted.mounts:
        if isinstance(mount, ClaimMount):
            uses[mount.claim] = uses.get(mount.claim, True) and mount.read_only
    for volume in wanted.pod.volumes:
        if volume.claim_name is not None:
            uses[volume.claim_name] = uses.get(volume.claim_name, True) and volume.read_only
    model = _model_claim(wanted)
    return tuple(sorted(uses.items(), key=lambda use: (not use[1], use[0] != model)))


def _model_claim(wanted: Step | Server) -> str | None:
    """Return the claim that holds the base model, None where a pod has none."""
    path = wanted.model_path if isinstance(wanted, Server) else _model_path(wanted.config)
    claims = (mount for mount in wanted.mounts if isinstance(mount, ClaimMount))
    return next((mount.claim for mount in claims if f"{path}/".startswith(f"{mount.path}/")), None)


def _model_path(config: RunConfig) -> str:
    if isinstance(config, TrainingInputs):
        return config.model.path
    return config.candidates[0].model.path if isinstance(config, EvaluateConfig) else ""


def place(claims: Sequence[ClaimUse], *, holders: Mapping[str, Mapping[str, Set[str]]]) -> Placement | Conflict:
    """Return where a pod belongs.

    ``holders`` are, by claim, the pods that mount it and have not ended, by node, '' for those that have none yet.
    Where nobody holds anything the first claim that is only read is the meeting point, see claims_of.
    """
    tied = [use for use in claims if use.tied]
    taken = [(use.name, pod) for use in tied if use.single for pod in _pods(holders.get(use.name, {}))]
    if taken:
        return Conflict(tuple((claim, f"by pod {pod} and is for one pod only") for claim, pod in taken))
    nodes = {use.name: _nodes(holders.get(use.name, {})) for use in tied}
    if len(set().union(*nodes.values())) > 1:
        return Conflict(tuple((claim, f"on {' and '.join(found)}") for claim, found in nodes.items() if found))
    held = next((claim for claim, found in nodes.items() if found), None)
    if held is not None:
        return Placement(held, nodes[held][0])
    waiting = next((use.name for use in tied if holders.get(use.name)), None)
    read = next((use.name for use in tied if use.read_only), None)
    return Placement(waiting or read or next((use.name for use in tied), None))


def keep(observed: Mapping[str, Any], claims: Collection[str]) -> Placement | None:
    """Return the placement of a Deployment as it is, None where it has none that its claims still allow.

    A server that runs is not moved to another meeting point, because that would start all of it anew.
    """
    affinity = observed["spec"]["template"]["spec"].get("affinity") or {}
    terms = (affinity.get("podAffinity") or {}).get(_REQUIRED) or []
    found = (Placement(claim) for claim in claims)
    return next((placement for placement in found if placement.terms == terms), None)


def affinity_of(wanted: Step | Server, placement: Placement) -> Manifest:
    """Return the affinity of a pod: what the user prefers, and the one term that placement requires."""
    affinity: Manifest = wanted.pod.affinity.to_wire() if wanted.pod.affinity else {}
    if placement.terms:
        affinity["podAffinity"] = affinity.get("podAffinity", {}) | {_REQUIRED: placement.terms}
    return affinity


def _pods(held: Mapping[str, Set[str]]) -> list[str]:
    return sorted(pod for pods in held.values() for pod in pods)


def _nodes(held: Mapping[str, Set[str]]) -> list[str]:
    return sorted(node for node in held if node)
