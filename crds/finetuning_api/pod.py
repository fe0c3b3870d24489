"""What users add to the pods of their programs besides compute: affinity and volumes of their own."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema

from finetuning_api import patterns
from finetuning_api.base import ApiModel, CelRule, ObjectName, Quantity

AsInPod = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""A part of a pod's description that is handed on as it is: the API server checks it when the pods are made."""

CommandWord = Annotated[str, Field(max_length=4096)]
"""One word of a command; no shell reads it."""
Command = Annotated[list[CommandWord], Field(min_length=1, max_length=64)]
"""A program and its arguments."""

RESERVED_PATHS = ("/volumes", "/configmaps", "/etc/finetuning", "/dev", "/proc", "/run", "/sys", "/tmp", "/var/run")  # noqa: S108
"""Folders of a pod that hold what the operator mounts; nothing of the user's is mounted on or below them."""
_ABOVE_RESERVED = ("/etc", "/var")


def _cel_list(words: tuple[str, ...]) -> str:
    return f"[{', '.join(repr(word) for word in words)}]"


class PodAffinity(ApiModel):
    """Preference for nodes that run certain pods."""

    preferred_during_scheduling_ignored_during_execution: list[AsInPod] = Field(
        default_factory=list,
        max_length=16,
        description="Weighted terms, as in a pod. There are no required ones: the operator's own keeps pods that share"
        " a ReadWriteOnce claim on one node, and the scheduler would look for pods that match both.",
    )


class Affinity(ApiModel):
    """Which nodes suit the pods, beyond nodeSelector."""

    node_affinity: AsInPod | None = Field(default=None, description="Node affinity, as in a pod.")
    pod_affinity: PodAffinity | None = Field(default=None, description="Nearness to other pods.")
    pod_anti_affinity: AsInPod | None = Field(default=None, description="Pod anti-affinity, as in a pod.")


class ExtraVolume(ApiModel):
    """A volume of the user's own in every pod."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="[has(self.claimName), has(self.configMapName), has(self.secretName), has(self.emptyDirSize)]"
            ".filter(given, given).size() == 1",
            message="a volume comes from claimName, configMapName, secretName or emptyDirSize: set exactly one",
            field="name",
        ),
        CelRule(
            rule=f"!(self.mountPath in {_cel_list(_ABOVE_RESERVED)}) && !{_cel_list(RESERVED_PATHS)}"
            ".exists(own, self.mountPath == own || self.mountPath.startsWith(own + '/'))",
            message="mountPath would hide what the operator mounts: choose a folder outside"
            f" {', '.join(RESERVED_PATHS)} that is not {' or '.join(_ABOVE_RESERVED)}, for example /mnt/data",
            field="mountPath",
        ),
    )

    name: str = Field(
        min_length=1, max_length=48, pattern=patterns.LABEL.regex, description="Name, once among the volumes."
    )
    mount_path: str = Field(
        min_length=2, max_length=512, pattern=patterns.FOLDER.regex, description="Folder where programs see it."
    )
    read_only: bool = Field(
        default=False, description="Whether programs can only read it; ConfigMaps and Secrets are always so."
    )
    claim_name: ObjectName | None = Field(default=None, description="PersistentVolumeClaim in the same namespace.")
    config_map_name: ObjectName | None = Field(default=None, description="ConfigMap in the same namespace.")
    secret_name: ObjectName | None = Field(default=None, description="Secret in the same namespace.")
    empty_dir_size: Quantity | None = Field(default=None, description="Size of a folder that ends with the pod.")
