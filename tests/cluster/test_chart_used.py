"""What the chart grants and shows, held against what an operator asks for and counts in a life that has everything."""

import json
import re
from dataclasses import dataclass
from http import HTTPStatus

import httpx
import pytest
import yaml
from tests.support import definitions
from tests.support.api_proxy import Seen
from tests.support.chart import CHART, rendered
from tests.support.cluster import Object, has_condition
from tests.support.lifecycle import MODEL, is_running, is_training, job, relocation, resource, wait_for_end
from tests.support.operator_process import Identity, free_port
from tests.support.player import STEP_LABEL, End, play, scripted
from tests.support.private_plane import PrivatePlane
from tests.support.progress import made_token, report
from tests.support.site import Pool, Site, pool

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.progress.address import Owner, ProgressKey

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""
DOMAIN = "ai.example.org"


@dataclass(frozen=True, slots=True)
class Life:
    """What an operator asked the API server for, and what it counted."""

    seen: tuple[Seen, ...]
    metrics: str

    @property
    def asked(self) -> set[Right]:
        """Everything that was asked for, in the words of RBAC."""
        asked = (each.asked for each in self.seen)
        return {(each.group, each.target, each.verb) for each in asked if each.resource}


@pytest.fixture(scope="module")
def life(private_plane: PrivatePlane, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Two operators, one with a Gateway and one with an IngressClass, that are given everything to do."""
    cluster, folder = private_plane.cluster, tmp_path_factory.mktemp("life")
    for source in (definitions.GATEWAY_ROUTES, definitions.SCALED_OBJECTS):
        definitions.install(cluster, source, folder=folder)
    identity, port = Identity.install(cluster), free_port()
    common = {"SERVING_DOMAIN": DOMAIN, "RESYNC_SECONDS": "1", "TRASH_TTL_SECONDS": "1"}
    common |= {"WAKE_PORT": str(free_port()), "POD_IP": "10.200.0.1"}
    reports = {"PROGRESS_URL": f"https://localhost:{port}", "PROGRESS_PORT": str(port)}
    with pool(cluster, identity, folder=folder, **common, **reports, GATEWAY="edge/public") as first:
        live(first, port)
        seen, metrics = tuple(first.proxy.seen()), first.operator.answer("/metrics") or ""
    second_folder = tmp_path_factory.mktemp("ingress")
    with pool(cluster, identity, folder=second_folder, **common, INGRESS_CLASS="public") as second:
        expose(second.lend(), "Ingress")
        seen += tuple(second.proxy.seen())
    return Life(seen, metrics)


def live(lent: Pool, port: int) -> None:
    """Have every kind of object made, changed and taken away."""
    jobs(lent.lend(), port)
    failures(lent.lend())
    servers(lent.lend())
    expose(lent.lend(), "HTTPRoute")
    wake(lent.lend("hold"))


def jobs(site: Site, port: int) -> None:
    receivers = [{"type": "slack", "secretRef": {"name": "hook"}, "events": ["Succeeded"]}]
    told: Object = {"notifications": receivers, "tensorboard": {"ttlSecondsAfterFinished": 1}, "serving": {}}
    with play(site.cluster, scripted({"train": None}), namespace=site.namespace):
        whole = site.cluster.create(job(site.namespace, **told, storage={"retention": "Trash"}))
        site.wait_for_job(where=is_training)
        report_progress(whole, port)
        site.patch(site.get("Job", "demo-train"), metadata={"labels": {STEP_LABEL: "another"}})
        site.wait("Job", "demo-train", where=lambda now: now["metadata"]["labels"][STEP_LABEL] == "train")
        site.patch(whole, spec={"suspend": True})
        site.wait_for_job(where=lambda now: has_condition(now, "Suspended"))
        site.wait_gone("Job", "demo-train")
        site.patch(whole, spec={"suspend": False})
    with play(site.cluster, scripted({"evaluate": None}), namespace=site.namespace):
        site.wait_for_job(where=is_running("evaluate"))
        site.patch(whole, spec={"suspend": True})
        site.wait("EvaluationJob", "demo-evaluation", where=lambda now: now["spec"]["suspend"])
        site.patch(whole, spec={"suspend": False})
    with play(site.cluster, namespace=site.namespace):
        wait_for_end(site.cluster, site.namespace)
        site.wait_gone("Service", "demo-tensorboard")
        site.patch(whole, spec={"serving": {"replicas": 2}})
        site.wait("InferenceServer", where=lambda now: now["spec"]["replicas"] == 2)
        site.cluster.delete(whole)
        site.wait_gone("PersistentVolumeClaim", "demo-adapter")
        site.create(site.job_manifest("brief", ttlSecondsAfterFinished=0))
        site.wait_gone("FineTuningJob", "brief")
        site.cluster.create(relocation(site.namespace, "unused", ttlSecondsAfterUnused=0))
        site.wait_gone("Relocation", "unused")


def report_progress(target: Object, port: int) -> None:
    """Report as the pod of a step does, with a token that only the API server can tell to be none."""
    head = target["metadata"]
    owner = Owner(head["namespace"], "FineTuningJob", head["name"], head["uid"])
    path = ProgressKey(owner.namespace, owner.kind, owner.name, "train").path
    answer = httpx.post(
        f"https://localhost:{port}{path}",
        json=report(),
        headers={"Authorization": f"Bearer {made_token(owner)}"},
        verify=False,  # noqa: S501  (its certificate is made at each start; this is the same machine)
    )
    assert answer.status_code == HTTPStatus.UNAUTHORIZED


def failures(site: Site) -> None:
    words = LastWords(reason=Reason.COLUMN_NOT_FOUND, message="there is no column message")
    with play(site.cluster, scripted({"preflight": End(exit_code=1, words=words)}), namespace=site.namespace):
        site.create(site.job_manifest("wrong"))
        site.wait_for_job("wrong")
    with play(site.cluster, scripted({"preflight": End(exit_code=1)}), namespace=site.namespace):
        site.create(site.job_manifest("silent", dataset=_OTHER_DATA))
        site.wait_for_job("silent")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": site.namespace}}
    full = site.cluster.create(quota | {"spec": {"hard": {"pods": "0"}}})
    site.create(site.job_manifest("crowded", dataset=_OTHER_DATA))
    site.wait_for_job("crowded", where=lambda now: now.get("status", {}).get("reason") == "QuotaExceeded")
    site.cluster.delete(full)
    compared = resource("EvaluationJob", "compared", site.namespace, **_COMPARED, ttlSecondsAfterFinished=0)
    with play(site.cluster, namespace=site.namespace):
        site.create(compared)
        site.wait_gone("EvaluationJob", "compared")


_OTHER_DATA = {"source": "s3://bucket/others.jsonl", "revision": "7", "prompt": "{message}", "completion": "{triage}"}
_COMPARED = {"candidates": [{"name": "base", "model": MODEL}], "dataset": _OTHER_DATA, "metrics": ["exact-match"]}


def servers(site: Site) -> None:
    scaling = {"minReplicas": 1, "maxReplicas": 3, "targetCpuUtilization": 60}
    made = server(site, replicas=1, autoscaling=scaling)
    site.wait("HorizontalPodAutoscaler", "answers")
    site.wait("PodDisruptionBudget", "answers")
    site.patch(made, spec={"autoscaling": {"maxReplicas": 4}, "disruption": {"maxUnavailable": 2}})
    site.wait("HorizontalPodAutoscaler", "answers", where=lambda now: now["spec"]["maxReplicas"] == 4)
    keda = {"minReplicas": None, "targetCpuUtilization": None, "keda": {"cron": [_OFFICE_HOURS]}}
    site.patch(made, spec={"autoscaling": keda})
    site.wait("ScaledObject", "answers")
    site.patch(made, spec={"autoscaling": {"maxReplicas": 5}})
    site.wait("ScaledObject", "answers", where=lambda now: now["spec"]["maxReplicaCount"] == 5)
    site.patch(made, spec={"autoscaling": None, "disruption": None})
    for kind in ("ScaledObject", "PodDisruptionBudget", "HorizontalPodAutoscaler"):
        site.wait_gone(kind, "answers")
    site.patch(made, spec={"replicas": 2})
    site.wait("Deployment", "answers", where=lambda now: now["spec"]["replicas"] == 2)


_OFFICE_HOURS = {"start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": 2}


def expose(site: Site, kind: str) -> None:
    """Lead to a server from outside, mend what somebody changed there, and take it away again."""
    made = server(site, expose=True)
    way = site.wait(kind, "answers")
    changes: dict[str, Object] = {"Ingress": {"ingressClassName": "another"}, "HTTPRoute": {"hostnames": None}}
    site.patch(way, spec=changes[kind])
    site.wait(kind, "answers", where=lambda now: now["spec"] == way["spec"])
    service = site.wait("Service", "answers")
    site.patch(service, spec={"selector": {"finetuning.dev/name": "another"}})
    site.wait("Service", "answers", where=lambda now: now["spec"]["selector"] == service["spec"]["selector"])
    policy = site.wait("NetworkPolicy", "finetuning-serving")
    site.patch(policy, spec={"ingress": None})
    site.wait("NetworkPolicy", "finetuning-serving", where=lambda now: now["spec"] == policy["spec"])
    site.patch(made, spec={"expose": False})
    site.wait_gone(kind, "answers")


def wake(site: Site) -> None:
    """Answer for a server whose pods never come, until it is not to be answered for."""
    made = server(site, idleShutdownMinutes=30)
    doorway = site.wait("EndpointSlice", "answers")
    site.cluster.patch(doorway, {"endpoints": [{"addresses": ["10.200.0.99"]}]})
    site.wait("EndpointSlice", "answers", where=lambda now: now["endpoints"] == doorway["endpoints"])
    site.patch(made, spec={"idleShutdownMinutes": None})
    site.wait_gone("EndpointSlice", "answers")


def server(site: Site, **spec: object) -> Object:
    return site.create(resource("InferenceServer", "answers", site.namespace, model=MODEL, **spec))


_OWN_KINDS = ("evaluationjobs", "finetuningjobs", "inferenceservers", "relocations")
_LOOKED_AT_AGAIN = {
    ("", "services"),
    ("apps", "deployments"),
    ("autoscaling", "horizontalpodautoscalers"),
    ("batch", "jobs"),
    ("discovery.k8s.io", "endpointslices"),
    ("gateway.networking.k8s.io", "httproutes"),
    ("keda.sh", "scaledobjects"),
    ("networking.k8s.io", "ingresses"),
    ("policy", "poddisruptionbudgets"),
    *(("finetuning.dev", kind) for kind in _OWN_KINDS),
}
EXCUSED: dict[str, set[Right]] = {
    "asked for by the API server itself, where it checks owner references": {
        ("finetuning.dev", f"{kind}/finalizers", "update") for kind in _OWN_KINDS
    },
    "asked for by the API server itself, where an apply makes the object": {
        ("networking.k8s.io", "networkpolicies", "create")
    },
    "needed after a conflict, or a create whose answer was lost: tests/cluster/test_faults_network.py": {
        (group, kind, "get") for group, kind in _LOOKED_AT_AGAIN
    },
    "known to clusters with Kueue alone: tests/cluster/test_failures.py": {("kueue.x-k8s.io", "workloads", "list")},
}


def granted() -> set[Right]:
    """Return every right of the operator that the chart grants."""
    rules = yaml.safe_load((CHART / "files" / "operator-rules.yaml").read_text())
    return {
        (group, target, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for target in rule["resources"]
        for verb in rule["verbs"]
    }


def test_nothing_that_was_asked_for_was_refused(life: Life) -> None:
    refused = {str(each.asked) for each in life.seen if each.status == HTTPStatus.FORBIDDEN}

    assert refused == set()
    assert life.asked - granted() == set()


def test_every_right_that_is_granted_was_used_or_has_a_reason(life: Life) -> None:
    excused = {right for rights in EXCUSED.values() for right in rights}

    unused = granted() - life.asked - excused
    assert not unused, f"take away, or use, or say why it is needed: {sorted(unused)}"
    assert excused <= granted()


_FROM_PROMETHEUS = {"namespace", "le"}
"""Labels that a scrape adds, or that a histogram has in its buckets."""


def counted(life: Life) -> dict[str, set[str]]:
    """Return every series of the operator with its labels; one that has no value yet has none."""
    families = re.findall(r"^# TYPE (\w+) (\w+)$", life.metrics, re.MULTILINE)
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    series = {f"{name}{suffix}": set[str]() for name, kind in families for suffix in suffixes.get(kind, ("",))}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", life.metrics, re.MULTILINE):
        series.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return series


def expressions() -> dict[str, str]:
    """Return every query of the dashboard and of the alerts, by its title."""
    shown = {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}
    objects = rendered("ft", "team", {"crds": {"enabled": False}, "grafanaDashboard": {"enabled": True}, **shown})
    (rule,) = [each for each in objects if each["kind"] == "PrometheusRule"]
    (dashboard,) = [each for each in objects if each["metadata"]["name"].endswith("-dashboard")]
    panels = json.loads(dashboard["data"]["finetuning-operator.json"])["panels"]
    drawn = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel["targets"]}
    return drawn | {alert["alert"]: alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"]}


def test_what_is_drawn_and_watched_is_counted(life: Life) -> None:
    series = counted(life)

    unknown = {title: asked for title, expr in expressions().items() if (asked := not_counted(expr, series))}
    assert unknown == {}


def not_counted(expression: str, series: dict[str, set[str]]) -> set[str]:
    """Return what a query asks for that no series of the operator has: names, and labels of those that have values."""
    named = set(re.findall(r"finetuning_\w+", expression))
    labels = set(re.findall(r"[{,]\s*(\w+)\s*[!=]", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        labels |= {label.strip() for label in group.split(",")}
    known = {label for name in named & series.keys() for label in series[name]}
    return (named - series.keys()) | (labels - known - _FROM_PROMETHEUS if known else set())
