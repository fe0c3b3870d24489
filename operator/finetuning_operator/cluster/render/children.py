"""Custom resources that a plan asks for."""

from finetuning_api.base import Resource
from finetuning_operator.cluster.render.labels import Manifest, of_owner, owner_reference
from finetuning_operator.reconcile import labels


def render_child(resource: Resource, *, owner: Resource) -> Manifest:
    """Return the manifest of a child resource.

    What the plan gave no owner (a Relocation) is shared by all who need it: it gets no reference to this one either.
    """
    wanted, wire = resource.metadata, resource.to_wire()
    head: Manifest = {"name": wanted.name, "namespace": wanted.namespace}
    if wanted.owner_references:
        head |= {"labels": wanted.labels | of_owner(owner), "ownerReferences": [owner_reference(owner)]}
    else:
        head["labels"] = wanted.labels | {labels.MANAGED_BY: labels.OPERATOR}
    if wanted.annotations:
        head["annotations"] = dict(wanted.annotations)
    return {"apiVersion": wire["apiVersion"], "kind": wire["kind"], "metadata": head, "spec": wire["spec"]}
