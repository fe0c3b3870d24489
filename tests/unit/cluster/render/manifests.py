"""Rendering with the standard installation, and finding one's way in what was rendered."""

from typing import Any

from tests.support.plans import options, owner, server_owner

from finetuning_operator.cluster.options import Options
from finetuning_operator.cluster.render import Placement, render_server, render_step
from finetuning_operator.reconcile.plan import Server, Step

Manifest = dict[str, Any]
ANYWHERE = Placement()


def render(step: Step, *, placement: Placement = ANYWHERE, installation: Options | None = None) -> tuple[Manifest, ...]:
    return render_step(step, owner=owner(), options=installation or options(), placement=placement)


def serve(server: Server, *, placement: Placement = ANYWHERE) -> tuple[Manifest, ...]:
    return render_server(server, owner=server_owner(), options=options(), placement=placement)


def job_of(manifests: tuple[Manifest, ...]) -> Manifest:
    (job,) = (manifest for manifest in manifests if manifest["kind"] == "Job")
    return job


def pod_spec(manifests: tuple[Manifest, ...]) -> Manifest:
    spec: Manifest = manifests[0]["spec"]["template"]["spec"]
    return spec


def container(manifests: tuple[Manifest, ...]) -> Manifest:
    (found,) = pod_spec(manifests)["containers"]
    return dict(found)


def environment(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """Return the plain variables of the program."""
    return {each["name"]: each["value"] for each in container(manifests)["env"] if "value" in each}


def annotations(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    found: dict[str, str] = manifests[0]["spec"]["template"]["metadata"].get("annotations", {})
    return found


def mounted(manifests: tuple[Manifest, ...]) -> dict[str, tuple[Manifest, bool]]:
    """Return by path the source of each volume and whether the program can only read it."""
    sources = {
        volume["name"]: {name: value for name, value in volume.items() if name != "name"}
        for volume in pod_spec(manifests)["volumes"]
    }
    mounts = container(manifests)["volumeMounts"]
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
    return {mount["mountPath"]: (sources[mount["name"]], mount.get("readOnly", False)) for mount in mounts}
