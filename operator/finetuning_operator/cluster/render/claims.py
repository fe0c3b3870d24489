"""Volumes as claims: size, class and access modes from the user, else from the storage profile, within its bounds."""

from dataclasses import dataclass

from finetuning_api.base import Resource
from finetuning_api.finetuningjob import RetentionPolicy
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.options import Options, StorageProfile
from finetuning_operator.cluster.render.labels import Manifest, metadata
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.plan import Volume
from finetuning_operator.reconcile.quantities import mebibytes, parse_quantity


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where a user writes what decides about a claim, by the kind of its owner."""

    size: str
    profile: str


_RELOCATION_FIELDS = _Fields(size="spec.volume.size", profile="spec.profile")
_JOB_FIELDS = _Fields(size="spec.storage.adapter.size", profile="spec.storage.profile")


class ClaimRefusedError(ValueError):
    """A claim that the installation does not allow; ``words`` name field, value, bound and what to do."""

    def __init__(self, *, field: str, value: str, bound: str, remedy: str) -> None:
        self.words = LastWords(reason=Reason.INVALID_SPEC, message=f"{field} is {value}, but {bound}", hint=remedy)
        super().__init__(f"{self.words.message}: {remedy}")


def render_volume(volume: Volume, *, owner: Resource, options: Options) -> Manifest:
    """Return the claim of a volume.

    A claim that outlives its owner has no owner reference; its labels tell whose it was. Raises ClaimRefusedError for
    a profile that does not exist and for a size above the profile's bound.
    """
    fields = _RELOCATION_FIELDS if owner.kind == "Relocation" else _JOB_FIELDS
    profile = _profile(volume, fields=fields, options=options)
    head = metadata(
        owner,
        volume.name,
        **{labels.RETENTION: volume.retention.value, labels.OWNER_UID: owner.metadata.uid},
    )
    if volume.retention is not RetentionPolicy.DELETE:
        del head["ownerReferences"]
    spec: Manifest = {
        "accessModes": [mode.value for mode in volume.spec.access_modes or profile.access_modes],
        "resources": {"requests": {"storage": _size(volume, profile=profile, fields=fields)}},
    }
    # Without a name the cluster's default class is taken; an empty name would mean no class at all.
    storage_class = volume.spec.storage_class_name or profile.storage_class_name
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": head, "spec": spec}


def _profile(volume: Volume, *, fields: _Fields, options: Options) -> StorageProfile:
    profile = options.storage_profiles.get(volume.profile)
    if profile is None:
        raise ClaimRefusedError(
            field=fields.profile,
            value=volume.profile,
            bound="this installation has no such storage profile",
            remedy=f"Choose one of {', '.join(sorted(options.storage_profiles))}.",
        )
    return profile


def _size(volume: Volume, *, profile: StorageProfile, fields: _Fields) -> str:
    """Return what is requested: never less than the profile's least size, because more harms nobody."""
    if volume.spec.size is not None:
        size, field = volume.spec.size, fields.size
    elif volume.size_bytes is not None:
        size, field = mebibytes(volume.size_bytes), f"the planned size of claim {volume.name}"
    else:
        size, field = profile.default_size, f"the default size of profile {volume.profile}"
    if profile.max_size is not None and parse_quantity(size) > parse_quantity(profile.max_size):
        raise ClaimRefusedError(
            field=field,
            value=size,
            bound=f"storage profile {volume.profile} allows at most {profile.max_size}",
            remedy="Ask for less, choose another profile, or have its maxSize raised.",
        )
    if profile.min_size is not None and parse_quantity(size) < parse_quantity(profile.min_size):
        return profile.min_size
    return size
