"""The chart: what the real helm renders is taken by a real API server, and gives the rights that the operator needs."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import kubernetes_validate
import pytest
import yaml
from tests.support import whole_job
from tests.support.chart import CHART, Values, helm, rendered
from tests.support.cluster import Cluster, Object, has_condition, new_namespace, temporary_namespace
from tests.support.lifecycle import is_training, names, stage, wait_for_end
from tests.support.operator_process import OPERATOR_NAMESPACE, Identity, OperatorProcess, running_operator
from tests.support.player import play, scripted
from tests.support.private_plane import PrivatePlane

from finetuning_api.base import API_VERSION
from finetuning_api.finetuningjob import Preset
from finetuning_api.generate import generated_files
from finetuning_api.schema import NAMES
from finetuning_operator.cluster.options import Options, Outside
from finetuning_operator.reconcile.policy import Bounds, SourcePolicy

RELEASE = "ft"
FULLNAME = f"{RELEASE}-finetuning-operator"
_FOREIGN = frozenset({"Certificate", "PrometheusRule", "ServiceMonitor"})
"""Kinds of other projects; this API server does not know them."""
_VERSIONS = ("1.31", kubernetes_validate.latest_version())
_BUNDLE = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"
_TRAINING = "app.kubernetes.io/managed-by=finetuning-operator"

EVERYTHING: dict[str, Values] = {
    "defaults": {},
    "two replicas": {
        "replicaCount": 2,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "finetuning-operator"}},
            }
        ],
    },
    "no progress": {"progress": {"enabled": False}},
    "own certificate": {"progress": {"certificate": "existingSecret", "existingSecret": "mine"}},
    "cert-manager": {"progress": {"certificate": "certManager", "issuerRef": {"name": "ca", "kind": "Issuer"}}},
    "monitored": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True, "labels": {"team": "ml"}}},
    "bound network": {"networkPolicy": {"enabled": True}},
    "own account": {"serviceAccount": {"create": False, "name": "mine"}, "rbac": {"create": False}},
    "private registry": {
        "image": {"registry": "images.example.org/ml/", "tag": "v1", "pullPolicy": "Always"},
        "workloadImages": {"trainer": "elsewhere.example.org/trainer:v2"},
        "global": {"imagePullSecrets": [{"name": "first"}, {"name": "second"}]},
    },
    "placed": {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "ml"},
    },
    "extended": {
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraVolumes": [{"name": "certificates", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "certificates", "mountPath": "/certificates"}],
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}},
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: text}",
        ],
    },
    "offered and bound": {
        "presets": {
            "small": {
                "method": {"rank": 8},
                "training": {"learningRate": 2.0e-5, "checkpointEverySteps": 100_000_000, "epochs": 0.5},
                "resources": {"requests": {"cpu": 2}, "limits": {"nvidia.com/gpu": 1, "memory": "16Gi"}},
                "pod": {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
                "storage": {"profile": "default"},
                "priorityClassName": "batch",
                "queueName": "gpus",
            }
        },
        "bounds": {
            "resources": {"nvidia.com/gpu": 2, "memory": "64Gi"},
            "serverReplicas": 4,
            "presetRequired": True,
            "metricCode": False,
        },
    },
    "behind a wall": {
        "relocation": {
            "allowedSources": ["s3://models/"],
            "allowedEndpoints": ["https://store.example"],
            "endpoints": {"hf": "https://hub.example"},
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        },
        "proxy": {"http": "http://proxy:3128", "https": "http://proxy:3128", "noProxy": [".example", "10.0.0.0/8"]},
        "caBundle": {"configMap": "site", "key": "ca.pem"},
    },
    "authorities in a Secret": {"caBundle": {"secret": "site"}},
    "own class": {"priorityClass": {"create": True, "value": 5, "preemptionPolicy": "PreemptLowerPriority"}},
    "arbitrary user": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "privileged": False},
    },
    "tuned": {
        "image": {"digest": f"sha256:{'a' * 64}"},
        "operator": {"stallSeconds": 30, "statusDelaySeconds": 0.5, "trashTTLSeconds": 2_592_000},
        "strategy": {"type": "Recreate"},
        "revisionHistoryLimit": 1,
        "deploymentAnnotations": {"a": "b"},
        "terminationGracePeriodSeconds": 60,
        "livenessProbe": {"initialDelaySeconds": 5},
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"]},
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["hub.example"]}],
        "extraContainers": [
            {
                "name": "beside",
                "image": "beside",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
        "serviceAccount": {"labels": {"a": "b"}, "annotations": {"c": "d"}, "automount": False},
        "metrics": {"annotations": {"a": "b"}},
    },
    "looked at": {
        "serviceMonitor": {
            "enabled": True,
            "honorLabels": True,
            "annotations": {"a": "b"},
            "relabelings": [{"action": "labeldrop", "regex": "pod"}],
            "metricRelabelings": [{"action": "labeldrop", "regex": "pod"}],
        },
        "prometheusRule": {"enabled": True, "annotations": {"a": "b"}, "rules": [{"alert": "Mine", "expr": "1"}]},
        "grafanaDashboard": {"enabled": True, "annotations": {"grafana_folder": "ML"}},
    },
    "kept while drained": {"replicaCount": 3, "podDisruptionBudget": {"minAvailable": None, "maxUnavailable": "34%"}},
    "bound network of peers": {
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"port": 4317, "protocol": "TCP"}]}],
        }
    },
    "profiles": {"storageProfiles": {"default": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"]}}},
    "names": {"fullnameOverride": "a" * 60, "commonLabels": {"cost-centre": "ml"}},
}


@pytest.mark.parametrize("values", EVERYTHING.values(), ids=EVERYTHING)
def test_an_api_server_takes_all_of_it_without_a_complaint(cluster: Cluster, namespace: str, values: Values) -> None:
    objects = [each for each in rendered(RELEASE, namespace, values) if each["kind"] not in _FOREIGN]
    assert sum(each["kind"] == "CustomResourceDefinition" for each in objects) == 4

    text = yaml.safe_dump_all(objects)
    options = ("--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-n", namespace)
    done = cluster.kubectl("apply", *options, "-f", "-", stdin=text, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image": {"regitry": "x"}}, "additional properties 'regitry' not allowed"),
        ({"replicas": 2}, "additional properties 'replicas' not allowed"),
        ({"operator": {"workers": 0}}, "'/operator/workers': minimum: got 0, want 1"),
        ({"operator": {"logLevel": "LOUD"}}, "/operator/logLevel"),
        ({"watchNamespaces": ["Team A"]}, "/watchNamespaces/0"),
        ({"storageProfiles": {"default": {"class": "fast"}}}, "additional properties 'class' not allowed"),
        ({"progress": {"certificate": "existingSecret"}}, "progress.existingSecret: name the Secret"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name: name an existing ServiceAccount"),
        ({"serviceMonitor": {"enabled": True}, "metrics": {"service": False}}, "needs metrics.service"),
        ({"presets": {"small": {"model": {}}}}, "additional properties 'model' not allowed"),
        ({"presets": {"small": {"training": {"epoch": 1}}}}, "additional properties 'epoch' not allowed"),
        ({"presets": {"small": {"training": {"epochs": 0}}}}, "/presets/small/training/epochs"),
        (
            {"presets": {"small": {"resources": {"limits": {"memory": "much"}}}}},
            "/presets/small/resources/limits/memory",
        ),
        ({"bounds": {"serverReplicas": -1}}, "/bounds/serverReplicas"),
        ({"relocation": {"allowedSources": ["models"]}}, "/relocation/allowedSources/0"),
        ({"relocation": {"endpoints": {"https": "https://mirror"}}}, "additional properties 'https' not allowed"),
        ({"proxy": {"https": "http://me:secret@proxy"}}, "/proxy/https"),
        ({"caBundle": {"configMap": "a", "secret": "b"}}, "caBundle: name a configMap or a secret, not both"),
        ({"image": {"digest": "sha256:1"}}, "/image/digest"),
        ({"livenessProbe": {"httpGet": {}}}, "additional properties 'httpGet' not allowed"),
    ],
)
def test_wrong_values_are_refused_by_name(values: Values, words: str) -> None:
    done = helm("template", RELEASE, str(CHART), values=values, check=False)

    assert done.returncode != 0
    assert words in done.stderr


def test_helm_finds_nothing_to_complain_of() -> None:
    helm("lint", "--strict", str(CHART))


def test_the_definitions_are_those_that_are_generated() -> None:
    wanted = [yaml.safe_load(text) for path, text in generated_files().items() if path.parent.name == "crds"]
    found = [each for each in rendered(RELEASE, "team") if each["kind"] == "CustomResourceDefinition"]

    assert [each["spec"] for each in found] == [each["spec"] for each in wanted]
    assert {each["metadata"]["annotations"]["helm.sh/resource-policy"] for each in found} == {"keep"}


def test_images_have_the_registry_and_the_tag_unless_named_whole() -> None:
    environment = _environment(rendered(RELEASE, "team", EVERYTHING["private registry"]))

    assert {name: value for name, value in environment.items() if name.startswith("FINETUNING_IMAGE")} == {
        "FINETUNING_IMAGE_RELOCATOR": "images.example.org/ml/finetuning-relocator:v1",
        "FINETUNING_IMAGE_TRAINER": "elsewhere.example.org/trainer:v2",
        "FINETUNING_IMAGE_EVALUATOR": "images.example.org/ml/finetuning-evaluator:v1",
        "FINETUNING_IMAGE_SERVER": "images.example.org/ml/finetuning-server:v1",
        "FINETUNING_IMAGE_PULL_POLICY": "Always",
        "FINETUNING_IMAGE_PULL_SECRETS": "first,second",
    }


@pytest.mark.parametrize("values", EVERYTHING.values(), ids=EVERYTHING)
def test_it_is_valid_in_the_oldest_and_the_newest_version_of_kubernetes(values: Values) -> None:
    for each in rendered(RELEASE, "team", {**values, "crds": {"enabled": False}}):
        for version in _VERSIONS if each["kind"] not in _FOREIGN else ():
            kubernetes_validate.validate(each, version, strict=True)


def test_what_an_administrator_says_reaches_the_operator(tmp_path: Path) -> None:
    values = {**EVERYTHING["offered and bound"], **EVERYTHING["behind a wall"], **EVERYTHING["own class"]}
    objects = rendered(RELEASE, "team", values)

    options = Options.from_environment(_as_deployed(objects, tmp_path, {"ca.pem": _BUNDLE}))

    assert options.settings.presets["small"] == Preset.model_validate(values["presets"]["small"])
    assert options.settings.bounds == Bounds(
        resources={"nvidia.com/gpu": "2", "memory": "64Gi"}, server_replicas=4, preset_required=True, metric_code=False
    )
    assert options.settings.sources == SourcePolicy.model_validate(values["relocation"])
    assert options.outside == Outside(
        http_proxy="http://proxy:3128",
        https_proxy="http://proxy:3128",
        no_proxy=(".example", "10.0.0.0/8"),
        ca_bundle=_BUNDLE,
        egress=({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},),
    )
    assert options.priority_class == FULLNAME


def test_requests_wake_servers_where_the_operator_has_a_port_for_them() -> None:
    values = {"serving": {"wakePort": 8090}, "networkPolicy": {"enabled": True}}
    found = {each["kind"]: each for each in rendered(RELEASE, "team", values)}
    (operator,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value", each.get("valueFrom")) for each in operator["env"]}

    assert told["FINETUNING_WAKE_PORT"] == "8090"
    assert told["FINETUNING_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert {"name": "wake", "containerPort": 8090} in operator["ports"]
    assert {"ports": [{"port": "wake", "protocol": "TCP"}]} in found["NetworkPolicy"]["spec"]["ingress"]
    assert "WAKE" not in str(rendered(RELEASE, "team", {}))
    written = [_verbs(rendered(RELEASE, "team", each), "endpointslices") for each in (values, {})]
    assert written == [{"get", "list", "watch", "create", "patch", "delete"}, {"list", "watch"}]


def test_every_variable_of_the_deployment_is_one_that_the_operator_reads() -> None:
    told = _environment(rendered(RELEASE, "team", EVERYTHING["behind a wall"]))
    files = {name for name, value in told.items() if value.startswith("/etc/finetuning/")}
    environment = MagicMock(wraps={name: value for name, value in told.items() if name not in files})

    Options.from_environment(environment)

    asked = {call.args[0] for call in environment.get.call_args_list}
    assert told.keys() - asked == set()


def test_security_contexts_are_put_over_the_strict_ones_and_a_null_takes_a_field_out() -> None:
    (deployment,) = [
        each for each in rendered(RELEASE, "team", EVERYTHING["arbitrary user"]) if each["kind"] == "Deployment"
    ]

    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
    }


def test_the_operator_may_do_nothing_by_wildcard_nothing_with_secrets_and_write_no_pods() -> None:
    rules = [rule for each in _roles(rendered(RELEASE, "team")) for rule in each["rules"]]

    words = {word for rule in rules for words in rule.values() for word in words}
    pod_verbs = {verb for rule in rules if "pods" in rule["resources"] for verb in rule["verbs"]}
    assert not {word for word in words if "*" in word or "secret" in word}
    assert words.isdisjoint({"escalate", "bind", "impersonate", "deletecollection"})
    assert pod_verbs == {"list", "watch"}


def test_with_namespaces_nothing_but_the_review_of_tokens_is_allowed_everywhere() -> None:
    roles = _roles(rendered(RELEASE, OPERATOR_NAMESPACE, {"watchNamespaces": ["a", "b"]}))

    everywhere = [rule["resources"] for each in roles if each["kind"] == "ClusterRole" for rule in each["rules"]]
    places = {each["metadata"]["namespace"] for each in roles if each["kind"] == "Role"}
    assert (everywhere, places) == ([["tokenreviews"]], {"a", "b", OPERATOR_NAMESPACE})


def test_a_job_is_done_with_the_rights_of_one_namespace(cluster: Cluster, auto_namespace: str, tmp_path: Path) -> None:
    with temporary_namespace(cluster, "run") as own:
        with _installed(cluster, own, {"crds": {"enabled": False}, "watchNamespaces": [auto_namespace]}) as identity:
            env = {"FINETUNING_NAMESPACES": auto_namespace, "FINETUNING_OPERATOR_NAMESPACE": own}
            with running_operator(identity, folder=tmp_path, env=env) as operator:
                operator.wait_ready()
                cluster.create(whole_job.manifest(auto_namespace))
                done = cluster.wait_for_object(
                    "FineTuningJob", whole_job.NAME, auto_namespace, where=lambda job: has_condition(job, "Complete")
                )

        assert done["status"]["phase"] == "Complete"
        assert "is forbidden" not in operator.logs


def test_whoever_may_edit_a_namespace_may_use_the_four_kinds_there(cluster: Cluster, namespace: str) -> None:
    with _installed(cluster, namespace, {"crds": {"enabled": False}}):
        for role, user in (("view", "viewer"), ("edit", "editor")):
            cluster.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", namespace)

        def may(user: str, verb: str) -> bool:
            asked = ("auth", "can-i", verb, "finetuningjobs.finetuning.dev", "-n", namespace, "--as", user)
            return cluster.kubectl(*asked, check=False).stdout.strip() == "yes"

        cluster.wait_for(lambda: may("editor", "create"), what="the roles are aggregated")
        cluster.wait_for(lambda: may("viewer", "list"), what="the roles are aggregated")
        assert (may("viewer", "create"), may("nobody", "list")) == (False, False)


class TestRelease:
    """A whole life: installed, upgraded, uninstalled, on a cluster that has never seen the project."""

    def test_it_is_installed_upgraded_and_uninstalled(self, private_plane: PrivatePlane) -> None:
        cluster = private_plane.cluster
        _remove_definitions(cluster)
        place = ("--namespace", OPERATOR_NAMESPACE, "--create-namespace")
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": OPERATOR_NAMESPACE, "labels": restricted}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

        helm("install", RELEASE, str(CHART), *place, "--wait", kubeconfig=cluster.kubeconfig)
        job = cluster.create(whole_job.manifest("default"))
        secret = cluster.get("Secret", f"{FULLNAME}-progress", OPERATOR_NAMESPACE)
        deployment = cluster.get("Deployment", FULLNAME, OPERATOR_NAMESPACE)
        assert deployment["status"]["readyReplicas"] == 1

        helm("upgrade", RELEASE, str(CHART), *place, kubeconfig=cluster.kubeconfig, values={"replicaCount": 2})
        assert cluster.get("Secret", f"{FULLNAME}-progress", OPERATOR_NAMESPACE)["data"] == secret["data"]
        assert cluster.get("Deployment", FULLNAME, OPERATOR_NAMESPACE)["spec"]["replicas"] == 2
        assert cluster.refresh(job)["metadata"]["uid"] == job["metadata"]["uid"]

        helm("uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait", kubeconfig=cluster.kubeconfig)
        cluster.wait_gone("Deployment", FULLNAME, OPERATOR_NAMESPACE)
        assert cluster.refresh(job)["metadata"]["uid"] == job["metadata"]["uid"]
        left = [each["metadata"]["name"] for each in cluster.objects("ClusterRole") if RELEASE in _release_of(each)]
        assert left == []

        cluster.delete(job)
        cluster.wait_gone("FineTuningJob", whole_job.NAME, "default")

    def test_an_upgrade_leaves_a_running_training_alone_and_an_uninstall_nothing_stuck(
        self, private_plane: PrivatePlane, tmp_path: Path
    ) -> None:
        cluster, namespace = private_plane.cluster, new_namespace(private_plane.cluster, "run")
        _remove_definitions(cluster)
        place = ("--namespace", OPERATOR_NAMESPACE, "--create-namespace")
        helm("upgrade", "--install", RELEASE, str(CHART), *place, kubeconfig=cluster.kubeconfig)
        identity = Identity.of(cluster, FULLNAME, OPERATOR_NAMESPACE)

        with _deployed(identity, {}, tmp_path), play(cluster, scripted({"train": None}), namespace=namespace):
            made = cluster.create(whole_job.manifest(namespace, storage={"retention": "Retain"}))
            cluster.wait_for_object("FineTuningJob", whole_job.NAME, namespace, where=is_training)
            (before,) = cluster.objects("Pod", namespace, labels="finetuning.dev/step=train")
        changed: Values = {**EVERYTHING["offered and bound"], **EVERYTHING["behind a wall"], "crds": {"keep": False}}
        helm("upgrade", RELEASE, str(CHART), *place, kubeconfig=cluster.kubeconfig, values=changed)
        with _deployed(identity, changed, tmp_path):
            with play(cluster, namespace=namespace):
                done = wait_for_end(cluster, namespace, whole_job.NAME)
            (after,) = cluster.objects("Pod", namespace, labels="finetuning.dev/step=train")
            assert after["metadata"]["uid"] == before["metadata"]["uid"]
            assert has_condition(done, "Complete")
            assert (stage(done, "train")["attempts"], done["metadata"]["uid"]) == (1, made["metadata"]["uid"])

        _wait_until_collected(cluster, namespace)
        helm("uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait", kubeconfig=cluster.kubeconfig)
        for definition in _definitions(cluster):
            cluster.wait_gone("CustomResourceDefinition", definition, "")
        cluster.wait_for(lambda: not _left(cluster, namespace), what="everything that it made is gone")
        assert cluster.get("PersistentVolumeClaim", "demo-adapter", namespace)
        cluster.delete(cluster.get("Namespace", namespace, ""))
        cluster.wait_gone("Namespace", namespace, "")


@contextmanager
def _deployed(identity: Identity, values: Values, folder: Path) -> Iterator[OperatorProcess]:
    """Run the operator as the Deployment of a release would."""
    env = _as_deployed(rendered(RELEASE, OPERATOR_NAMESPACE, values), folder, {"ca.pem": _BUNDLE})
    # Other operators of this machine have that port.
    del env["FINETUNING_HEALTH_PORT"]
    with running_operator(identity, folder=folder, env=env) as operator:
        operator.wait_ready()
        yield operator
        assert operator.stop() == 0
        assert "is forbidden" not in operator.logs


def _remove_definitions(cluster: Cluster) -> None:
    for definition in cluster.objects("CustomResourceDefinition"):
        cluster.delete(definition)
        cluster.wait_gone("CustomResourceDefinition", definition["metadata"]["name"], "")


def _wait_until_collected(cluster: Cluster, namespace: str) -> None:
    """Wait until Kubernetes' garbage collector knows our kinds.

    It looks for new ones twice a minute, and what objects of unknown kinds owned is never collected.
    """
    for kind in NAMES:
        owner = {"apiVersion": API_VERSION, "kind": kind, "name": "nobody", "uid": str(uuid.uuid4())}
        metadata = {"name": f"orphan-{kind.lower()}", "namespace": namespace, "ownerReferences": [owner]}
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    for kind in NAMES:
        cluster.wait_gone("ConfigMap", f"orphan-{kind.lower()}", namespace)


def _left(cluster: Cluster, namespace: str) -> list[str]:
    kinds = ("Job", "Deployment", "Service", "Pod")
    claims = names(cluster, "PersistentVolumeClaim", namespace) - {"demo-adapter"}
    return [f"{kind}/{name}" for kind in kinds for name in names(cluster, kind, namespace)] + sorted(claims)


def _definitions(cluster: Cluster) -> list[str]:
    return [each["metadata"]["name"] for each in cluster.objects("CustomResourceDefinition")]


@contextmanager
def _installed(cluster: Cluster, namespace: str, values: Values) -> Iterator[Identity]:
    """Install the release and lend its account."""
    place = ("--namespace", namespace)
    helm("install", RELEASE, str(CHART), *place, kubeconfig=cluster.kubeconfig, values=values)
    try:
        yield Identity.of(cluster, FULLNAME, namespace)
    finally:
        helm("uninstall", RELEASE, *place, kubeconfig=cluster.kubeconfig)


def _as_deployed(objects: list[dict[str, Any]], folder: Path, files: dict[str, str] | None = None) -> dict[str, str]:
    """Return the variables of the Deployment for a process on this machine, with the files that they name.

    Without the progress service: no pod could reach it.
    """
    environment = _environment(objects)
    (config,) = [each["data"] for each in objects if each["kind"] == "ConfigMap" and "policy.yaml" in each["data"]]
    found = config | (files or {})
    for name, text in found.items():
        (folder / name).write_text(text)
    moved = {name: str(folder / Path(value).name) for name, value in environment.items() if Path(value).name in found}
    return environment | moved | {name: "" for name in environment if name.startswith("FINETUNING_PROGRESS")}


def _release_of(target: Object) -> str:
    return str((target["metadata"].get("annotations") or {}).get("meta.helm.sh/release-name", ""))


def _roles(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the operator's roles, without those of users."""
    roles = [each for each in objects if each["kind"] in {"ClusterRole", "Role"}]
    return [each for each in roles if not each["metadata"]["name"].endswith(("-view", "-edit"))]


def _verbs(objects: list[dict[str, Any]], resource: str) -> set[str]:
    rules = [rule for each in _roles(objects) for rule in each["rules"]]
    return {verb for rule in rules if resource in rule["resources"] for verb in rule["verbs"]}


def _environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}
