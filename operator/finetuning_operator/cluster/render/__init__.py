"""Plans as manifests: what the cluster is asked to run, to keep and to connect. Pure: values in, plain objects out."""

from finetuning_operator.cluster.render.children import render_child
from finetuning_operator.cluster.render.claims import ClaimRefusedError, render_volume
from finetuning_operator.cluster.render.companions import render_companions
from finetuning_operator.cluster.render.drift import differs
from finetuning_operator.cluster.render.jobs import image_of, lasting_parts, render_step
from finetuning_operator.cluster.render.labels import CONTAINER, claim_label
from finetuning_operator.cluster.render.network import render_network_policies
from finetuning_operator.cluster.render.placement import ClaimUse, Conflict, Placement, claims_of, keep, place
from finetuning_operator.cluster.render.servers import render_server

__all__ = [
    "CONTAINER",
    "ClaimRefusedError",
    "ClaimUse",
    "Conflict",
    "Placement",
    "claim_label",
    "claims_of",
    "differs",
    "image_of",
    "keep",
    "lasting_parts",
    "place",
    "render_child",
    "render_companions",
    "render_network_policies",
    "render_server",
    "render_step",
    "render_volume",
]
