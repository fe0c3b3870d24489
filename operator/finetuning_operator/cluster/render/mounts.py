"""The volumes of a pod and where its program sees them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from finetuning_api.pod import ExtraVolume
from finetuning_operator.cluster.progress.address import Owner
from finetuning_operator.cluster.render.labels import EXTRA_CA, PROGRESS_CA, RUN_CONFIG, Manifest
from finetuning_operator.reconcile.plan import ClaimMount, ConfigMapMount

CONTRACT_FOLDER: Final = "/etc/finetuning"
RUN_CONFIG_PATH: Final = f"{CONTRACT_FOLDER}/run-config.json"
PROGRESS_CA_PATH: Final = f"{CONTRACT_FOLDER}/progress-ca.pem"
EXTRA_CA_PATH: Final = f"{CONTRACT_FOLDER}/extra-ca.pem"
CONTRACT_FILES: Final = {RUN_CONFIG: RUN_CONFIG_PATH, PROGRESS_CA: PROGRESS_CA_PATH, EXTRA_CA: EXTRA_CA_PATH}
"""By annotation of a pod, where its program reads it."""
_TOKEN_FOLDER: Final = "/var/run/secrets/finetuning.dev/progress"  # noqa: S105  (a folder)
PROGRESS_TOKEN_PATH: Final = f"{_TOKEN_FOLDER}/token"
SCRATCH_FOLDER: Final = "/tmp"  # noqa: S108  (the pod's own emptyDir)

_SCRATCH_SIZE = "16Gi"
_SHARED_MEMORY_SIZE = "2Gi"
_TOKEN_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Attached:
    """A volume of a pod with its mounts in the program's container."""

    volume: Manifest
    mounts: tuple[Manifest, ...]


def scratch(size: str | None) -> Attached:
    """Return the only folder that a program may write to besides its claims; it ends with the pod."""
    return _attached("scratch", {"emptyDir": {"sizeLimit": size or _SCRATCH_SIZE}}, path=SCRATCH_FOLDER)


def shared_memory(size: str | None) -> Attached:
    """Return /dev/shm, whose 64 MiB of a container runtime are too few for data loaders and collectives.

    What is written to it counts as the container's memory.
    """
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": size or _SHARED_MEMORY_SIZE}}
    return _attached("shared-memory", source, path="/dev/shm")  # noqa: S108


def contract(files: Iterable[str]) -> Attached:
    """Return the folder with what the annotations of the pod itself hold: RunConfig, authorities."""
    items = [
        {
            "path": CONTRACT_FILES[annotation].removeprefix(f"{CONTRACT_FOLDER}/"),
            "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"},
        }
        for annotation in files
    ]
    return _attached("contract", {"downwardAPI": {"items": items}}, path=CONTRACT_FOLDER, read_only=True)


def progress_token(owner: Owner) -> Attached:
    """Return a token that only the progress endpoint accepts, only for this object; the kubelet renews it."""
    token = {"audience": owner.audience, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
    source = {"projected": {"sources": [{"serviceAccountToken": token}]}}
    return _attached("progress-token", source, path=_TOKEN_FOLDER, read_only=True)


def given(mounts: Sequence[ClaimMount | ConfigMapMount], extra: Sequence[ExtraVolume]) -> Iterator[Attached]:
    """Return the claims and ConfigMaps of a step and the volumes of its user, each claim as one volume."""
    for number, (claim, places) in enumerate(_claims(mounts, extra).items()):
        # Only the mounts are read-only: a volume that is so as a whole may be attached so, and then cannot be
        # attached for writing to the same node.
        volume = {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
        yield Attached(volume, tuple(_mount(f"claim-{number}", path, read_only) for path, read_only in places.items()))
    maps = [mount for mount in mounts if isinstance(mount, ConfigMapMount)]
    for number, mount in enumerate(maps):
        source = {"configMap": {"name": mount.config_map}}
        yield _attached(f"config-{number}", source, path=mount.path, read_only=True)
    for own in extra:
        if own.claim_name is None:
            yield _attached(f"extra-{own.name}", _source(own), path=own.mount_path, read_only=_fixed(own))


def _claims(mounts: Sequence[ClaimMount | ConfigMapMount], extra: Sequence[ExtraVolume]) -> dict[str, dict[str, bool]]:
    """Return by claim its paths and whether each is read-only; a path that is written to anywhere is writable."""
    uses = [(mount.claim, mount.path, mount.read_only) for mount in mounts if isinstance(mount, ClaimMount)]
    uses += [(each.claim_name, each.mount_path, each.read_only) for each in extra if each.claim_name is not None]
    claims: dict[str, dict[str, bool]] = {}
    for claim, path, read_only in uses:
        places = claims.setdefault(claim, {})
        places[path] = places.get(path, True) and read_only
    return claims


def _source(volume: ExtraVolume) -> Manifest:
    if volume.config_map_name is not None:
        return {"configMap": {"name": volume.config_map_name}}
    if volume.secret_name is not None:
        return {"secret": {"secretName": volume.secret_name}}
    return {"emptyDir": {"sizeLimit": volume.empty_dir_size}}


def _fixed(volume: ExtraVolume) -> bool:
    return volume.read_only or volume.empty_dir_size is None


def _attached(name: str, source: Manifest, *, path: str, read_only: bool = False) -> Attached:
    return Attached({"name": name} | source, (_mount(name, path, read_only),))


def _mount(name: str, path: str, read_only: bool) -> Manifest:  # noqa: FBT001  (as in the API)
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})
