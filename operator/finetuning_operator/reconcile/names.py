"""Names of what an object owns: deterministic, and short enough for Kubernetes."""

import hashlib

from finetuning_api.base import API_VERSION, ObjectMeta, OwnerReference, Resource

_NAME_LENGTH = 63
_OWNER_LENGTH = 52
"""Of what has children of its own, which the API server holds it to."""
_ADAPTER = "-adapter"
ADAPTER_FOLDER = "adapter"
"""Folder of a job's adapter on its claim."""


def child_name(owner: str, suffix: str, *, longest: int = _NAME_LENGTH) -> str:
    """Return ``owner-suffix``; an owner's name that is too long is cut and told apart by a hash."""
    name = f"{owner}-{suffix}"
    if len(name) <= longest:
        return name
    mark = hashlib.sha256(owner.encode()).hexdigest()[:8]
    return f"{owner[: longest - len(suffix) - len(mark) - 2].rstrip('-')}-{mark}-{suffix}"


def adapter_claim(job: str) -> str:
    """Return the claim of a job's adapter, checkpoints, token cache and report."""
    return child_name(job, _ADAPTER.removeprefix("-"))


def export_claim(job: str) -> str:
    """Return the claim of what a job exports beside its adapter."""
    return child_name(job, "export")


def adapter_job(claim: str) -> str | None:
    """Return the job whose adapter's claim has this name, None where no job's can. Names of jobs are never cut here."""
    job = claim.removesuffix(_ADAPTER)
    return job if job and job != claim and adapter_claim(job) == claim else None


def evaluation_name(job: str) -> str:
    """Return the name of a job's EvaluationJob."""
    return child_name(job, "evaluation", longest=_OWNER_LENGTH)


def server_url(server: str, *, namespace: str, port: int) -> str:
    """Return the address of a server inside the cluster; it stays the same whatever becomes of the pods."""
    return f"http://{server}.{namespace}.svc:{port}"


def owned_metadata(owner: Resource, name: str) -> ObjectMeta:
    """Return the metadata of a child that is deleted with its owner."""
    reference = OwnerReference(
        api_version=API_VERSION, kind=owner.kind, name=owner.metadata.name, uid=owner.metadata.uid
    )
    return ObjectMeta(name=name, namespace=owner.metadata.namespace, owner_references=[reference])


def is_owned(child: Resource, owner: Resource) -> bool:
    """Return whether an object belongs to exactly this owner, not to an earlier one of the same name or to nobody."""
    return any(reference.uid == owner.metadata.uid for reference in child.metadata.owner_references)
