"""How many replicas a server has: autoscaling by load, by the clock or by a query, and what a drain must leave."""

from typing import ClassVar

from pydantic import Field

from finetuning_api import patterns
from finetuning_api.base import ApiModel, CelRule


class KedaCron(ApiModel):
    """Replicas at certain times."""

    timezone: str = Field(
        default="UTC", min_length=1, max_length=64, description="Time zone of start and end, for example Europe/Berlin."
    )
    start: str = Field(min_length=9, max_length=128, description="When it begins, in cron's five fields.")
    end: str = Field(min_length=9, max_length=128, description="When it ends, in cron's five fields.")
    desired_replicas: int = Field(ge=0, le=1024, description="Server pods from start to end.")


class KedaPrometheus(ApiModel):
    """Replicas by the value of a Prometheus query."""

    server_address: str = Field(
        max_length=512, pattern=patterns.HTTP_ADDRESS.regex, description="Address of the Prometheus server."
    )
    query: str = Field(min_length=1, max_length=4096, description="Query whose value is shared by the server pods.")
    threshold: float = Field(gt=0, le=1e12, description="Value of the query for each server pod.")


class KedaSpec(ApiModel):
    """What KEDA scales by; the cluster must have KEDA."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.cron.size() > 0 || has(self.prometheus)",
            message="keda scales by cron, by prometheus, or by both: set at least one",
            field="cron",
        ),
    )

    cron: list[KedaCron] = Field(default_factory=list, max_length=16, description="Replicas at certain times.")
    prometheus: KedaPrometheus | None = Field(default=None, description="Replicas by a Prometheus query.")
    polling_seconds: int = Field(default=30, ge=1, le=3600, description="Seconds between two looks of KEDA.")
    cooldown_seconds: int = Field(
        default=300, ge=0, le=86400, description="Seconds without need after which KEDA scales to 0 (minReplicas: 0)."
    )


class AutoscalingSpec(ApiModel):
    """How many replicas follow the load; the server's own field replicas then only switches it off (0)."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.minReplicas <= self.maxReplicas",
            message="minReplicas cannot be greater than maxReplicas",
            field="minReplicas",
        ),
        CelRule(
            rule="has(self.keda) || has(self.targetCpuUtilization) || has(self.targetRequestsInFlight)",
            message="nothing says when there are to be more replicas: set targetCpuUtilization, targetRequestsInFlight"
            " or keda",
        ),
        CelRule(
            rule="!has(self.keda) || !(has(self.targetCpuUtilization) || has(self.targetRequestsInFlight))",
            message="keda takes the place of targets: remove targetCpuUtilization and targetRequestsInFlight, or keda",
            field="keda",
        ),
        CelRule(
            rule="self.minReplicas > 0 || has(self.keda)",
            message="only keda starts a server that has no replicas; set minReplicas to 1 or use keda",
            field="minReplicas",
        ),
    )

    min_replicas: int = Field(default=1, ge=0, le=1024, description="Server pods at least; 0 needs keda.")
    max_replicas: int = Field(ge=1, le=1024, description="Server pods at most.")
    target_cpu_utilization: int | None = Field(
        default=None, ge=1, le=1000, description="Mean CPU use of the pods in percent of what they request."
    )
    target_requests_in_flight: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Mean requests in flight of each pod (finetuning_server_requests_in_flight); the cluster needs a"
        " custom metrics API that has it.",
    )
    scale_down_stabilization_seconds: int = Field(
        default=300, ge=0, le=3600, description="Seconds of lower load before pods are taken away."
    )
    keda: KedaSpec | None = Field(default=None, description="Scale by KEDA, instead of targets.")


class DisruptionSpec(ApiModel):
    """What the drain of a node must leave (PodDisruptionBudget)."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.maxUnavailable) != has(self.minAvailable)",
            message="a disruption budget has maxUnavailable or minAvailable: set exactly one",
            field="maxUnavailable",
        ),
    )

    max_unavailable: int | None = Field(
        default=None, ge=0, le=1024, description="Server pods that may be taken away at the same time."
    )
    min_available: int | None = Field(default=None, ge=0, le=1024, description="Server pods that must stay.")
