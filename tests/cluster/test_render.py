"""What a real API server, its Job controller and its scheduler make of what is rendered."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from tests.support import pods
from tests.support.cluster import Cluster, Object, Refused, has_condition
from tests.support.nodes import tainted_node
from tests.support.plans import ADAPTER, BASE, CONFIG, options, owner, pod, resources, step, volume
from tests.support.rendered import WISHES, every_manifest
from tests.unit.api.factories import job, named

from finetuning_api.finetuningjob import PodOptions
from finetuning_operator.cluster.render import (
    ClaimUse,
    Conflict,
    Placement,
    claims_of,
    differs,
    place,
    render_step,
    render_volume,
)
from finetuning_operator.reconcile.plan import ClaimMount, Step

_APPLY = "application/apply-patch+yaml"
MEASURE = replace(step(name="measure", mounts=()), config=CONFIG)


def dry_run(cluster: Cluster, manifest: Object) -> Object:
    """Return what server-side apply would make of a manifest, with every default filled in; nothing is kept."""
    metadata = manifest["metadata"]
    path = cluster.path(manifest["kind"], metadata["name"], namespace=metadata["namespace"])
    query = "?dryRun=All&fieldManager=finetuning-operator&force=true&fieldValidation=Strict"
    return cluster.request("PATCH", path + query, body=manifest, content_type=_APPLY)


def pod_of(manifest: Object) -> Object:
    """Return the pod that a Job or a Deployment makes."""
    template = manifest["spec"]["template"]
    place = {"name": manifest["metadata"]["name"], "namespace": manifest["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | place, "spec": template["spec"]}


def start(cluster: Cluster, namespace: str, wanted: Step, *, name: str = "demo", placement: Placement) -> Object:
    """Apply what a step is rendered to, for an owner of a name that does not exist, and return the Job."""
    found = render_step(wanted, owner=owner(name, namespace=namespace), options=options(), placement=placement)
    for manifest in found:
        # An owner that is not there would have the garbage collector remove them.
        del manifest["metadata"]["ownerReferences"]
    return cluster.apply(*found)[0]


def claims(cluster: Cluster, namespace: str, *names: str) -> None:
    """Make claims of the default profile."""
    for name in names:
        manifest = render_volume(volume(name), owner=owner(namespace=namespace), options=options())
        del manifest["metadata"]["ownerReferences"]
        cluster.apply(manifest)


def nodes(cluster: Cluster, namespace: str, *, count: int, labels: str = "") -> set[str]:
    """Return where the pods of a namespace run, once there are that many and all have a node."""

    def placed() -> set[str] | None:
        found = [each["spec"].get("nodeName", "") for each in cluster.objects("Pod", namespace, labels=labels)]
        return set(found) if len(found) == count and all(found) else None

    return cluster.wait_for(placed, what=f"{count} pods in {namespace} on nodes")


def refusal(cluster: Cluster, namespace: str, name: str) -> str:
    """Return why no node takes the pod of an owner, once the scheduler says so."""

    def told() -> str | None:
        found = cluster.objects("Pod", namespace, labels=f"finetuning.dev/name={name}")
        conditions = found[0]["status"].get("conditions", []) if found else []
        return next((each["message"] for each in conditions if each.get("reason") == "Unschedulable"), None)

    return cluster.wait_for(told, what="the scheduler's word")


def holders(cluster: Cluster, namespace: str, names: Iterable[str]) -> dict[str, dict[str, set[str]]]:
    """Return by claim the pods that mount it, by node, from their labels."""
    found: dict[str, dict[str, set[str]]] = {name: {} for name in names}
    for each in cluster.objects("Pod", namespace):
        for name, held in found.items():
            if f"claim.finetuning.dev/{name}" in each["metadata"]["labels"]:
                held.setdefault(each["spec"].get("nodeName", ""), set()).add(each["metadata"]["name"])
    return found


def training(adapter: str, *inputs: str) -> Step:
    read = [ClaimMount(name, f"/volumes/{name}") for name in inputs]
    return step(mounts=(*read, ClaimMount(adapter, f"/volumes/{adapter}", read_only=False)))


class TestAdmission:
    def test_the_api_server_takes_every_manifest_and_pod_security_every_pod(
        self, cluster: Cluster, namespace: str
    ) -> None:
        for rendered in every_manifest(namespace):
            for manifest in rendered.manifests:
                dry_run(cluster, manifest)
                if manifest["kind"] in {"Job", "Deployment"}:
                    dry_run(cluster, pod_of(manifest))

    def test_pod_security_is_enforced_here(self, cluster: Cluster, namespace: str) -> None:
        loose = pod_of(every_manifest(namespace)[0].manifests[0])
        loose["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True

        with pytest.raises(Refused, match="violates PodSecurity"):
            dry_run(cluster, loose)

    def test_what_the_api_server_fills_in_is_no_drift(self, cluster: Cluster, namespace: str) -> None:
        for rendered in every_manifest(namespace):
            for manifest in rendered.manifests:
                assert not differs(manifest, dry_run(cluster, manifest)), (rendered, manifest["kind"])

    def test_a_configuration_of_the_greatest_size_still_travels(self, cluster: Cluster, namespace: str) -> None:
        source = CONFIG.source.model_copy(update={"include": ["x" * 1000] * 200})
        large = replace(MEASURE, config=CONFIG.model_copy(update={"source": source}))
        (manifest,) = render_step(large, owner=owner(namespace=namespace), options=options(), placement=Placement())
        assert json.loads(pod_of(dry_run(cluster, manifest))["metadata"]["annotations"]["finetuning.dev/run-config"])


class TestUsersWishes:
    def test_affinity_is_stored_as_it_was_written(self, cluster: Cluster, namespace: str) -> None:
        wishes = WISHES.to_wire()
        manifest = self._job(namespace, pod=wishes)

        assert dry_run(cluster, manifest)["spec"]["pod"]["affinity"] == wishes["affinity"]

    @pytest.mark.parametrize(
        ("wishes", "message"),
        [
            ({"env": [{"name": "HOME", "value": "/root"}]}, "are set by the operator; remove the variable"),
            ({"labels": {"finetuning.dev/network": "open"}}, "labels of finetuning.dev"),
            ({"volumes": [{"name": "a", "mountPath": "/volumes/a", "claimName": "a"}]}, "mountPath would hide"),
            ({"volumes": [{"name": "a", "mountPath": "/mnt/../volumes", "claimName": "a"}]}, "absolute folder"),
            ({"volumes": [{"name": "a", "mountPath": "/mnt/a"}]}, "set exactly one"),
            (
                {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}},
                "not declared in",
            ),
        ],
    )
    def test_what_would_break_the_contract_is_refused_with_words(
        self, cluster: Cluster, namespace: str, wishes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(Refused, match=message):
            dry_run(cluster, self._job(namespace, pod=wishes))

    def test_affinity_is_fixed_like_everything_of_a_pod(self, cluster: Cluster, namespace: str) -> None:
        def placed(value: str) -> Object:
            return self._job(namespace, pod={"affinity": {"nodeAffinity": {"note": [value]}}})

        cluster.create(placed("a"))
        dry_run(cluster, placed("a"))
        with pytest.raises(Refused, match="pod is fixed at creation"):
            dry_run(cluster, placed("b") | {"metadata": {"name": "wishes", "namespace": namespace}})

    def _job(self, namespace: str, **spec: object) -> Object:
        manifest = named(job(**spec), "wishes")
        manifest["spec"]["dataset"]["source"] = "s3://bucket/rows.jsonl"
        manifest["metadata"]["namespace"] = namespace
        return manifest


class TestTries:
    @pytest.mark.parametrize(("code", "failed"), [(1, True), (203, False)])
    def test_the_exit_code_decides_whether_a_job_is_tried_again(
        self, cluster: Cluster, hold_namespace: str, code: int, *, failed: bool
    ) -> None:
        created = start(cluster, hold_namespace, MEASURE, placement=Placement())
        pod = pods.wait_for_pod(cluster, hold_namespace)

        pods.finish(cluster, pods.run(cluster, pod), exit_code=code)

        if failed:
            cluster.wait_for(
                lambda: has_condition(cluster.refresh(created), "Failed"), what="the Job to fail at its first try"
            )
            return
        again = pods.wait_for_pod(cluster, hold_namespace, other_than=(pod["metadata"]["name"],))
        pods.finish(cluster, pods.run(cluster, again))
        cluster.wait_for(lambda: has_condition(cluster.refresh(created), "Complete"), what="the Job to complete")

    @pytest.mark.parametrize("drained", [False, True])
    def test_stopping_to_make_room_never_counts(self, cluster: Cluster, hold_namespace: str, *, drained: bool) -> None:
        created = start(cluster, hold_namespace, replace(MEASURE, retries=0), placement=Placement())
        running = pods.run(cluster, pods.wait_for_pod(cluster, hold_namespace))
        if drained:
            pods.evict(cluster, running)
        else:
            pods.finish(cluster, running, exit_code=143)

        again = pods.wait_for_pod(cluster, hold_namespace, other_than=(running["metadata"]["name"],))
        pods.finish(cluster, pods.run(cluster, again))

        cluster.wait_for(lambda: has_condition(cluster.refresh(created), "Complete"), what="the Job to complete")

    def test_a_queued_job_waits_for_whoever_lets_it_start(self, cluster: Cluster, hold_namespace: str) -> None:
        created = start(cluster, hold_namespace, replace(MEASURE, queue="gpus"), placement=Placement())
        cluster.wait_for(lambda: has_condition(cluster.refresh(created), "Suspended"), what="the Job to be suspended")
        assert cluster.objects("Pod", hold_namespace) == []

        cluster.patch(created, {"spec": {"suspend": False}})

        assert pods.wait_for_pod(cluster, hold_namespace)


class TestPlacement:
    def test_jobs_that_share_a_base_model_meet_on_its_node(self, cluster: Cluster, namespace: str) -> None:
        adapters = [f"adapter-{number}" for number in range(4)]
        claims(cluster, namespace, BASE.claim, *adapters)

        for adapter in adapters:
            start(cluster, namespace, training(adapter, BASE.claim), name=adapter, placement=Placement(BASE.claim))

        assert len(nodes(cluster, namespace, count=4)) == 1

    def test_a_job_follows_the_claim_that_is_held(self, cluster: Cluster, namespace: str) -> None:
        claims(cluster, namespace, "base", "rows", "first", "second")
        start(cluster, namespace, training("first", "rows"), name="first", placement=Placement("rows"))
        (held,) = nodes(cluster, namespace, count=1)
        wanted = training("second", "base", "rows")

        uses = [ClaimUse(name, read_only=read_only) for name, read_only in claims_of(wanted)]
        found = place(uses, holders=holders(cluster, namespace, [use.name for use in uses]))

        assert found == Placement("rows", held)
        start(cluster, namespace, wanted, name="second", placement=Placement("rows"))
        assert nodes(cluster, namespace, count=2) == {held}

    def test_claims_on_different_nodes_are_a_conflict_that_names_them(self, cluster: Cluster, namespace: str) -> None:
        claims(cluster, namespace, "base", "rows", "mine")
        for claim, node in (("base", "node-a"), ("rows", "node-b")):
            tied = step(name="train", mounts=(ClaimMount(claim, f"/volumes/{claim}"),), pod=_on(node))
            start(cluster, namespace, tied, name=claim, placement=Placement(claim))
        assert nodes(cluster, namespace, count=2) == {"node-a", "node-b"}

        wanted = training("mine", "base", "rows")
        uses = [ClaimUse(name, read_only=read_only) for name, read_only in claims_of(wanted)]

        assert place(uses, holders=holders(cluster, namespace, [use.name for use in uses])) == Conflict(
            (("base", "on node-a"), ("rows", "on node-b"))
        )

    def test_workers_of_one_step_meet_although_nobody_was_there_before(self, cluster: Cluster, namespace: str) -> None:
        claims(cluster, namespace, BASE.claim, ADAPTER.claim)
        together = replace(training(ADAPTER.claim, BASE.claim), workers=4)

        start(cluster, namespace, together, placement=Placement(BASE.claim))

        assert len(nodes(cluster, namespace, count=4)) == 1
        (service,) = cluster.objects("Service", namespace)
        assert service["spec"]["clusterIP"] == "None"
        hosts = {(each["spec"]["hostname"], each["spec"]["subdomain"]) for each in cluster.objects("Pod", namespace)}
        assert hosts == {(f"demo-train-{index}", "demo-train") for index in range(4)}

    @pytest.mark.parametrize(
        "name", ["google.com/tpu", "amd.com/gpu", "nvidia.com/mig-1g.5gb", "nvidia.com/gpu.shared"]
    )
    @pytest.mark.parametrize("field", ["requests", "limits"])
    def test_an_accelerator_of_any_name_is_found_behind_its_taint_until_there_is_too_little_of_it(
        self, cluster: Cluster, namespace: str, name: str, field: str
    ) -> None:
        with tainted_node(cluster, name, has={name: "8"}) as node:
            tolerated = pod(tolerations=[{"key": name, "operator": "Exists"}])
            wanted = replace(MEASURE, resources=resources(**{field: {name: "5"}}), pod=tolerated)
            start(cluster, namespace, wanted, name="first", placement=Placement())
            assert nodes(cluster, namespace, count=1) == {node}

            start(cluster, namespace, wanted, name="second", placement=Placement())
            assert f"Insufficient {name}" in refusal(cluster, namespace, "second")

    def test_a_second_required_term_would_let_them_part(self, cluster: Cluster, namespace: str) -> None:
        # Why there is one term only, and why users are offered preferred pod affinity only: a pod counts when it
        # matches all terms, so the one that holds only the first claim would not be followed.
        claims(cluster, namespace, "base", "rows", "first", "second")
        there = replace(training("first", "base"), pod=_on("node-b"))
        start(cluster, namespace, there, name="first", placement=Placement("base"))
        nodes(cluster, namespace, count=1)
        elsewhere = replace(training("second", "base", "rows"), pod=_on("node-a"))
        rendered = render_step(
            elsewhere, owner=owner("second", namespace=namespace), options=options(), placement=Placement("base")
        )
        terms = rendered[0]["spec"]["template"]["spec"]["affinity"]["podAffinity"]
        terms["requiredDuringSchedulingIgnoredDuringExecution"] += Placement("rows").terms
        del rendered[0]["metadata"]["ownerReferences"]

        cluster.apply(*rendered)

        assert nodes(cluster, namespace, count=1, labels="finetuning.dev/name=second") == {"node-a"}

    def test_one_required_term_does_not(self, cluster: Cluster, namespace: str) -> None:
        claims(cluster, namespace, "base", "first", "second")
        there = replace(training("first", "base"), pod=_on("node-b"))
        start(cluster, namespace, there, name="first", placement=Placement("base"))
        nodes(cluster, namespace, count=1)
        elsewhere = replace(training("second", "base"), pod=_on("node-a"))

        start(cluster, namespace, elsewhere, name="second", placement=Placement("base"))

        assert "didn't match pod affinity rules" in refusal(cluster, namespace, "second")


def _on(node: str) -> PodOptions:
    return pod(nodeSelector={"kubernetes.io/hostname": node})
