"""What an API server refuses, and what it says, through kubectl: the same tables that local validation is tested by."""

import json
import re
import subprocess
from pathlib import Path
from typing import Protocol

import pytest
from tests.support.cluster import Cluster, Object
from tests.unit.api.factories import EVERY_KIND, Manifest, evaluation, job, relocation, server
from tests.unit.api.rule_cases import CHANGEABLE_FIELDS, FIXED_FIELDS, RULE_CASES, Change, RuleCase

from finetuning_api import KINDS, patterns
from finetuning_api.patterns import Pattern
from finetuning_api.schema import NAMES, Schema, structural_schema

OBJECT_NAME = "triage"


class Kubectl(Protocol):
    def __call__(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def kubectl(cluster: Cluster, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl in a namespace of its own; what it learned of another cluster at the same address is not used."""
    cache = tmp_path_factory.getbasetemp() / "kubectl-cache"

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return cluster.kubectl(f"--cache-dir={cache}", f"--namespace={namespace}", *arguments, stdin=stdin, check=False)

    return run


def applied(kubectl: Kubectl, manifest: Manifest, *flags: str) -> subprocess.CompletedProcess[str]:
    return kubectl("apply", "-f", "-", *flags, stdin=json.dumps(manifest))


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_what_keeps_a_rule_is_admitted_and_what_breaks_it_is_refused_at_its_field(
    kubectl: Kubectl, case: RuleCase
) -> None:
    accepted = applied(kubectl, case.accepted, "--dry-run=server")
    rejected = applied(kubectl, case.rejected)

    assert (accepted.returncode, accepted.stderr) == (0, "")
    assert rejected.returncode == 1
    assert f"{case.path}: Invalid value: {case.message}" in rejected.stderr


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_smallest_manifest_of_every_kind_is_admitted(kubectl: Kubectl, kind: str) -> None:
    done = applied(kubectl, EVERY_KIND[kind]())

    plural = NAMES[kind].plural.removesuffix("s")
    assert (done.returncode, done.stdout) == (0, f"{plural}.finetuning.dev/{OBJECT_NAME} created\n")


_LONG = "a" * 64
_LONG_KEY = "a" * 318
_TONE = {"name": "tone", "source": "configmap://metric", "allowCode": True}
MISFITS: tuple[tuple[Manifest, str, Pattern], ...] = (
    (job(queueName="Team A"), 'spec.queueName: Invalid value: "Team A"', patterns.LABEL),
    (job(priorityClassName="High"), 'spec.priorityClassName: Invalid value: "High"', patterns.SUBDOMAIN),
    (relocation(secretRef={"name": "a_b"}), 'spec.secretRef.name: Invalid value: "a_b"', patterns.SUBDOMAIN),
    (
        server(storage={"model": {"storageClassName": "Fast"}}),
        'spec.storage.model.storageClassName: Invalid value: "Fast"',
        patterns.SUBDOMAIN,
    ),
    (job(storage={"model": {"size": "10GB"}}), 'spec.storage.model.size: Invalid value: "10GB"', patterns.QUANTITY),
    (
        job(resources={"limits": {"memory": "1e"}}),
        'spec.resources.limits[memory]: Invalid value: "1e"',
        patterns.QUANTITY,
    ),
    (relocation(checksum="md5:1"), 'spec.checksum: Invalid value: "md5:1"', patterns.DIGEST),
    (relocation(revision="v1 0"), 'spec.revision: Invalid value: "v1 0"', patterns.REVISION),
    (
        job(tracking={"mlflowUri": "mlflow:5000"}),
        'spec.tracking.mlflowUri: Invalid value: "mlflow:5000"',
        patterns.HTTP_ADDRESS,
    ),
    (
        server(model={"source": "s3://bucket/key", "endpoint": "http://me@minio"}),
        'spec.model.endpoint: Invalid value: "http://me@minio"',
        patterns.HTTP_ADDRESS,
    ),
    (server(health={"path": "ready"}), 'spec.health.path: Invalid value: "ready"', patterns.HTTP_PATH),
    (
        job(pod={"volumes": [{"name": "a", "claimName": "a", "mountPath": "/mnt/../volumes"}]}),
        'spec.pod.volumes[0].mountPath: Invalid value: "/mnt/../volumes"',
        patterns.FOLDER,
    ),
    (job(method={"targetModules": "q, v"}), 'spec.method.targetModules: Invalid value: "q, v"', patterns.MODULES),
    (evaluation(gate=[{"metric": "1st", "min": 0}]), 'spec.gate[0].metric: Invalid value: "1st"', patterns.METRIC),
    (evaluation(custom=[_TONE | {"name": "1st"}]), 'spec.custom[0].name: Invalid value: "1st"', patterns.OWN_NAME),
    (job(pod={"env": [{"name": "1A"}]}), 'spec.pod.env[0].name: Invalid value: "1A"', patterns.VARIABLE),
    (
        job(exports=[{"name": "a", "to": "s3://bucket/a"}]),
        'spec.exports[0].to: Invalid value: "s3://bucket/a"',
        patterns.DESTINATION,
    ),
    (
        evaluation(custom=[_TONE | {"file": "../tone.py"}]),
        'spec.custom[0].file: Invalid value: "../tone.py"',
        patterns.PYTHON_FILE,
    ),
    (
        job(dataset={"source": "a", "completion": "{a"}),
        'spec.dataset.completion: Invalid value: "{a"',
        patterns.TEMPLATE,
    ),
)
"""Texts that do not match the pattern of their field."""
MISTAKES: tuple[tuple[Manifest, str], ...] = (
    (job(trainning={}), 'unknown field "spec.trainning"'),
    (job(training={"learningRat": 1}), 'unknown field "spec.training.learningRat"'),
    (job() | {"sepc": {}}, 'unknown field "sepc"'),
    (evaluation(candidate=[]), 'unknown field "spec.candidate"'),
    (relocation(sorce="x"), 'unknown field "spec.sorce"'),
    (server(replica=1), 'unknown field "spec.replica"'),
    (job(model={}), "spec.model.source: Required value"),
    (relocation(source=None), "spec.source: Required value"),
    (evaluation(candidates=[]), "spec.candidates: Invalid value: 0: spec.candidates in body should have at least 1"),
    (job(method={"type": "adalora"}), 'spec.method.type: Unsupported value: "adalora": supported values: "lora"'),
    (
        job(training={"epochs": 0}),
        "spec.training.epochs: Invalid value: 0: spec.training.epochs in body should be greater",
    ),
    (job(training={"epochs": "three"}), "spec.training.epochs: Invalid value: "),
    (job(training={"batchSize": 1.5}), "spec.training.batchSize: Invalid value: "),
    (job(dataset={"source": "a", "split": {"test": 1}}), "spec.dataset.split.test: Invalid value: 1"),
    (job(parallelism={"workers": 5000}), "spec.parallelism.workers: Invalid value: 5000"),
    (job(storage={"model": {"size": -1}}), "spec.storage.model.size: Invalid value: "),
    (job(storage={"model": {"accessModes": ["RWX"]}}), 'accessModes[0]: Unsupported value: "RWX"'),
    (
        job(resources={"limits": {_LONG_KEY: "1"}}),
        "spec.resources.limits: Invalid value: a key has at most 317 characters",
    ),
    (
        evaluation(pod={"nodeSelector": {_LONG_KEY: "1"}}),
        "spec.pod.nodeSelector: Invalid value: a key has at most 317 characters",
    ),
    (
        server(pod={"annotations": {_LONG_KEY: "1"}}),
        "spec.pod.annotations: Invalid value: a key has at most 317 characters",
    ),
    (job(queueName=_LONG), "spec.queueName: Too long: may not be more than 63"),
    (evaluation(candidates=[{"name": _LONG, "jobRef": "a"}]), "spec.candidates[0].name: Too long"),
    (server(port=70000), "spec.port: Invalid value: 70000"),
    (
        server(adapters=[{"name": "a", "jobRef": "b"}, {"name": "a", "jobRef": "c"}]),
        "spec.adapters[1]: Duplicate value",
    ),
    (evaluation(metrics=["cola", "cola"]), 'spec.metrics[1]: Duplicate value: "cola"'),
    (job(evaluation={"metrics": ["meteor"]}), 'spec.evaluation.metrics[0]: Unsupported value: "meteor"'),
    *((manifest, f"{found}: needs {pattern.words}") for manifest, found, pattern in MISFITS),
)


@pytest.mark.parametrize(("manifest", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_value_that_does_not_fit_its_field_is_refused_at_the_field(
    kubectl: Kubectl, manifest: Manifest, message: str
) -> None:
    done = applied(kubectl, manifest)

    assert done.returncode == 1
    assert message in done.stderr


def test_every_pattern_is_among_the_mistakes() -> None:
    assert {pattern for _, _, pattern in MISFITS} == set(patterns.PATTERNS)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_name_that_is_too_long_for_what_is_named_after_it_is_refused(kubectl: Kubectl, kind: str) -> None:
    done = applied(kubectl, EVERY_KIND[kind]() | {"metadata": {"name": _LONG}})

    assert done.returncode == 1
    assert "metadata.name: Too long" in done.stderr or "the name needs at most" in done.stderr


BESIDE = {"variant": {"image": "registry/server:1"}, "canary": {"adapters": [{"name": "a", "jobRef": "b"}]}}
"""What a value of a field needs beside it."""


def with_field(kind: str, field: str, value: object) -> Manifest:
    manifest = EVERY_KIND[kind]()
    spec = {name: item for name, item in (manifest["spec"] | BESIDE.get(field, {})).items() if name != field}
    return manifest | {"spec": spec | ({} if value is None else {field: value})}


FIXED = [(kind, change) for kind, changes in FIXED_FIELDS.items() for change in changes]
CHANGEABLE = [(kind, change) for kind, changes in CHANGEABLE_FIELDS.items() for change in changes]


@pytest.mark.parametrize(("kind", "change"), FIXED, ids=str)
def test_an_update_of_a_fixed_field_is_refused_with_what_to_do_instead(
    kubectl: Kubectl, kind: str, change: Change
) -> None:
    before = applied(kubectl, with_field(kind, change.field, change.before))
    after = applied(kubectl, with_field(kind, change.field, change.after))

    assert (before.returncode, after.returncode) == (0, 1), before.stderr
    told = f"spec.{change.field}: Invalid value: {change.field} is fixed at creation; create a new {kind}"
    assert told in after.stderr


@pytest.mark.parametrize(("kind", "change"), CHANGEABLE, ids=str)
def test_an_update_of_a_changeable_field_is_admitted(kubectl: Kubectl, kind: str, change: Change) -> None:
    before = applied(kubectl, with_field(kind, change.field, change.before))
    after = applied(kubectl, with_field(kind, change.field, change.after))

    assert (before.returncode, after.returncode) == (0, 0), before.stderr + after.stderr
    assert after.stdout.endswith("configured\n")


def test_of_serving_replicas_can_be_updated(kubectl: Kubectl) -> None:
    made = applied(kubectl, job(serving={"replicas": 1, "afterGate": True}))
    scaled = applied(kubectl, job(serving={"replicas": 2, "afterGate": True}))

    assert (made.returncode, scaled.returncode) == (0, 0), scaled.stderr


@pytest.mark.parametrize(
    "change",
    [
        Change("afterGate", before=True, after=False),
        Change("resources", {"limits": {"cpu": 1}}, {"limits": {"cpu": 2}}),
        Change("resources", None, {}),
        Change("authSecretRef", {"name": "a"}, {"name": "b"}),
        Change("authSecretRef", {"name": "a"}, None),
        Change("expose", before=False, after=True),
    ],
    ids=str,
)
def test_of_serving_nothing_else_can_be_updated(kubectl: Kubectl, change: Change) -> None:
    before, after = (
        applied(kubectl, job(serving={} if value is None else {change.field: value}))
        for value in (change.before, change.after)
    )

    assert (before.returncode, after.returncode) == (0, 1), before.stderr
    assert f"spec.serving.{change.field}: Invalid value: serving.{change.field} is fixed at creation; create a new" in (
        after.stderr
    )


def test_writing_out_a_default_is_no_change(kubectl: Kubectl) -> None:
    applied(kubectl, job())

    assert applied(kubectl, job(training={"epochs": 3}, backoffLimit=3)).returncode == 0


@pytest.mark.parametrize("amount", [2, "2", "500m", "1.5Ti"])
def test_a_quantity_is_a_number_or_a_text_with_a_unit(kubectl: Kubectl, amount: object) -> None:
    manifest = job(resources={"limits": {"cpu": amount}}, storage={"model": {"size": amount}})

    assert applied(kubectl, manifest, "--dry-run=server").returncode == 0


def test_every_mistake_is_told_at_once(kubectl: Kubectl) -> None:
    done = applied(
        kubectl, job(method={"type": "qlora"}, parallelism={"strategy": "fsdp"}, training={"microBatchSize": 99})
    )

    assert "* spec.parallelism.strategy: Invalid value: qlora cannot be sharded with fsdp" in done.stderr
    assert "* spec.training.microBatchSize: Invalid value: microBatchSize is a part of batchSize" in done.stderr


def test_a_server_scales_through_the_scale_subresource(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    applied(kubectl, server())

    done = kubectl("scale", f"infs/{OBJECT_NAME}", "--replicas=3")

    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.get("InferenceServer", OBJECT_NAME, namespace)["spec"]["replicas"] == 3


# What kubectl explains


def leaves(node: Schema, path: str) -> list[tuple[str, Schema]]:
    found: list[tuple[str, Schema]] = []
    for name, child in node.get("properties", {}).items():
        place, inner = f"{path}.{name}", child.get("items", child)
        found += leaves(inner, place) if inner.get("properties") else [(place, child)]
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_explain_lists_every_field_of_a_spec(kubectl: Kubectl, kind: type) -> None:
    names = NAMES[kind.__name__]
    shown = kubectl("explain", f"{names.short}.spec", "--recursive").stdout
    listed = re.findall(r"^\s+(\w+)\t<", shown, flags=re.MULTILINE)

    expected = [path.rpartition(".")[2] for path, _ in leaves(structural_schema(kind)["properties"]["spec"], "spec")]
    assert set(expected) <= set(listed)


@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ("ftj.spec.training.learningRate", ["<number>", "Peak learning rate of AdamW. Default: 0.0002."]),
        ("ftj.spec.training.maxLength", ["<integer>", "Tokens per sample at most. Default: 1024."]),
        ("ftj.spec.activeDeadlineSeconds", ["<integer>", "Seconds that the job may be active"]),
        ("ftj.spec.method.type", ["ENUM: lora qlora full", "Default: lora."]),
        ("ftj.spec.dataset.split.test", ["Share of rows held out for evaluation, 0 < test < 1. Default: 0.1."]),
        ("ftj.status.progress.etaSeconds", ["Estimated seconds to the end of the stage."]),
        ("evj.spec.bootstrapSamples", ["Resamples behind each 95 % interval. Default: 10000."]),
        ("reloc.spec.ttlSecondsAfterUnused", ["Seconds after the last use"]),
        ("infs.spec.health.periodSeconds", ["Seconds between checks. Default: 10."]),
    ],
)
def test_explain_tells_what_a_field_means_with_unit_and_default(kubectl: Kubectl, field: str, texts: list[str]) -> None:
    shown = re.sub(r"\s+", " ", kubectl("explain", field).stdout)

    assert [text for text in texts if text not in shown] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_that_a_user_may_set_is_explained_with_its_default(kind: type) -> None:
    spec = structural_schema(kind)["properties"]["spec"]
    for path, node in leaves(spec, "spec"):
        text = node.get("description", "") or node.get("items", {}).get("description", "")
        assert text, path
        assert node.get("default") in (None, [], {}, "") or "Default: " in text, path


# What kubectl shows of an object


def show_status(cluster: Cluster, made: Object, status: Object) -> None:
    cluster.patch(made, {"status": status}, subresource="status")


def condition(name: str, reason: str, *, status: str = "True", message: str = "") -> Object:
    time = "2026-03-01T12:00:00Z"
    return {"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": time}


RUNNING = {
    "phase": "Training",
    "progress": {"percent": 42, "step": 41, "totalSteps": 98, "etaSeconds": 126, "loss": 0.5},
    "stages": [
        {"name": "relocate", "state": "Succeeded", "percent": 100},
        {"name": "train", "state": "Running", "percent": 42},
    ],
}
FAILED = {
    "phase": "Failed",
    "reason": "OutOfMemory",
    "conditions": [condition("Failed", "OutOfMemory", message="train: the worker ran out of memory")],
    "stages": [{"name": "train", "state": "Failed", "percent": 42}],
}
COMPLETE = {
    "phase": "Complete",
    "conditions": [condition("Complete", "Succeeded"), condition("GatePassed", "GatePassed")],
    "evaluation": [{"metric": "exact-match", "base": 0.1, "tuned": 0.9, "delta": 0.8, "samples": 90}],
    "verdict": "Pass",
}


def columns(kubectl: Kubectl, *arguments: str) -> dict[str, str]:
    """Return the only line of ``kubectl get`` by its headings; cells stand where their headings begin."""
    head, line = kubectl("get", *arguments).stdout.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+(?: \S+)*", head)]
    ends = [*starts[1:], None]
    return {head[a:b].strip(): line[a:b].strip() for a, b in zip(starts, ends, strict=True)}


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (RUNNING, {"PHASE": "Training", "STAGE": "train", "PROGRESS(%)": "42", "ETA(S)": "126"}),
        (FAILED, {"PHASE": "Failed", "REASON": "OutOfMemory"}),
        (COMPLETE, {"PHASE": "Complete", "METRIC": "exact-match", "BASE": "0.1", "TUNED": "0.9", "VERDICT": "Pass"}),
    ],
    ids=["running", "failed", "complete"],
)
def test_columns_of_a_job_tell_its_story(
    cluster: Cluster, kubectl: Kubectl, namespace: str, *, status: Object, shown: dict[str, str]
) -> None:
    applied(kubectl, job())
    show_status(cluster, cluster.get("FineTuningJob", OBJECT_NAME, namespace), status)

    row = {name: text for name, text in columns(kubectl, "ftj").items() if text and name not in {"NAME", "AGE"}}

    assert row == shown


def test_columns_of_the_other_kinds(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    applied(kubectl, relocation())
    applied(kubectl, server())
    artifact = {"claim": {"claimName": "a"}, "digest": f"sha256:{'0' * 64}", "bytes": 1000, "files": 3}
    show_status(cluster, cluster.get("Relocation", OBJECT_NAME, namespace), {"phase": "Ready", "artifact": artifact})
    ready = {"phase": "Degraded", "replicas": 1, "readyReplicas": 1, "url": "http://triage", "reason": "Unschedulable"}
    show_status(cluster, cluster.get("InferenceServer", OBJECT_NAME, namespace), ready)

    relocated, served = columns(kubectl, "reloc"), columns(kubectl, "infs")

    assert (relocated["PHASE"], relocated["SOURCE"], relocated["BYTES"]) == ("Ready", "hf://owner/model", "1000")
    assert {name: text for name, text in served.items() if name not in {"NAME", "AGE", "MODEL"}} == {
        "PHASE": "Degraded",
        "READY": "1",
        "REPLICAS": "1",
        "URL": "http://triage",
        "REASON": "Unschedulable",
    }


def test_one_category_lists_every_kind(kubectl: Kubectl) -> None:
    for make in EVERY_KIND.values():
        applied(kubectl, make())

    names = kubectl("get", "finetuning", "-o", "name").stdout.split()

    assert names == [f"{NAMES[kind].plural[:-1]}.finetuning.dev/{OBJECT_NAME}" for kind in sorted(EVERY_KIND)]


@pytest.mark.parametrize(("status", "name"), [(COMPLETE, "Complete"), (FAILED, "Failed")])
def test_kubectl_waits_for_a_condition(
    cluster: Cluster, kubectl: Kubectl, namespace: str, *, status: Object, name: str
) -> None:
    applied(kubectl, job())
    show_status(cluster, cluster.get("FineTuningJob", OBJECT_NAME, namespace), status)

    done = kubectl("wait", f"--for=condition={name}", f"ftj/{OBJECT_NAME}", "--timeout=30s")

    assert (done.returncode, done.stdout) == (0, f"finetuningjob.finetuning.dev/{OBJECT_NAME} condition met\n")


def test_describe_tells_conditions_with_their_messages(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    applied(kubectl, job())
    show_status(cluster, cluster.get("FineTuningJob", OBJECT_NAME, namespace), FAILED)

    shown = kubectl("describe", f"ftj/{OBJECT_NAME}").stdout

    assert re.search(r"Message:\s+train: the worker ran out of memory\n\s+Reason:\s+OutOfMemory", shown)


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_for_a_cluster_is_admitted(kubectl: Kubectl) -> None:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        if path.name == "kustomization.yaml":
            continue
        done = kubectl("apply", "--dry-run=server", "-f", str(path))
        assert done.returncode == 0, f"{path.name}: {done.stderr}"


def test_the_quickstart_for_a_cluster_is_admitted_with_its_data(kubectl: Kubectl) -> None:
    done = kubectl("apply", "--server-side", "--dry-run=server", "-k", str(EXAMPLES))

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "configmap/support-triage",
        "finetuningjob.finetuning.dev/support-triage",
    ]
