"""The kinds of Kubernetes objects that the operator touches, and where the API serves them.

Events are those of the core group: tools sort and count by their timestamps, and reading the events of an object needs
the field selectors of that group anyway, so one group is enough for both directions.
"""

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class KindRef:
    """A kind as the API serves it. The core group is the empty string."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path of a collection, an object or a subresource; ``namespace`` None means all of them."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [root, self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


_OWN_GROUP, _OWN_VERSION = "finetuning.dev", "v1alpha1"

FINE_TUNING_JOB = KindRef(_OWN_GROUP, _OWN_VERSION, "finetuningjobs", "FineTuningJob")
EVALUATION_JOB = KindRef(_OWN_GROUP, _OWN_VERSION, "evaluationjobs", "EvaluationJob")
RELOCATION = KindRef(_OWN_GROUP, _OWN_VERSION, "relocations", "Relocation")
INFERENCE_SERVER = KindRef(_OWN_GROUP, _OWN_VERSION, "inferenceservers", "InferenceServer")

JOB = KindRef("batch", "v1", "jobs", "Job")
POD = KindRef("", "v1", "pods", "Pod")
CLAIM = KindRef("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
SERVICE = KindRef("", "v1", "services", "Service")
EVENT = KindRef("", "v1", "events", "Event")
NAMESPACE = KindRef("", "v1", "namespaces", "Namespace", namespaced=False)
DEPLOYMENT = KindRef("apps", "v1", "deployments", "Deployment")
NETWORK_POLICY = KindRef("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
DISRUPTION_BUDGET = KindRef("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
AUTOSCALER = KindRef("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
INGRESS = KindRef("networking.k8s.io", "v1", "ingresses", "Ingress")
ENDPOINT_SLICE = KindRef("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
ROUTE = KindRef("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
SCALED_OBJECT = KindRef("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject")
LEASE = KindRef("coordination.k8s.io", "v1", "leases", "Lease")
TOKEN_REVIEW = KindRef("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)

OWN_KINDS: dict[str, KindRef] = {
    ref.kind: ref for ref in (FINE_TUNING_JOB, EVALUATION_JOB, RELOCATION, INFERENCE_SERVER)
}
"""The custom resources by kind."""

_COMPANIONS = (DISRUPTION_BUDGET, AUTOSCALER, INGRESS, ENDPOINT_SLICE)
OPTIONAL_KINDS: dict[str, KindRef] = {ref.kind: ref for ref in (ROUTE, SCALED_OBJECT)}
"""Kinds that only some clusters serve, by kind."""
COMPANION_KINDS: dict[str, KindRef] = {ref.kind: ref for ref in _COMPANIONS} | OPTIONAL_KINDS
"""What can stand beside the Deployment of a server, by kind."""
CHILD_KINDS: dict[str, KindRef] = {
    ref.kind: ref for ref in (JOB, POD, CLAIM, SERVICE, DEPLOYMENT, NETWORK_POLICY, *_COMPANIONS)
}
"""What custom resources become in every cluster, by kind."""


def kind_of(manifest: dict[str, object]) -> KindRef:
    """Return the kind of a manifest that the operator itself wrote. Raises KeyError for one that it never writes."""
    return (OWN_KINDS | CHILD_KINDS | OPTIONAL_KINDS)[str(manifest["kind"])]
