"""The client: one namespace of a cluster, kind by kind."""

from pathlib import Path

from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.relocation import Relocation
from finetuning_client.api import Api
from finetuning_client.connection import Connection, connect
from finetuning_client.objects import Objects


class Client:
    """Objects of this API in one namespace.

    Without arguments it goes where kubectl would go: the current context of the kubeconfig and its namespace, or, in
    a pod, the pod's own cluster and namespace. Raises NotConfiguredError where there is neither.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: Path | str | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.connection = connection or connect(namespace=namespace, context=context, kubeconfig=kubeconfig)
        self.api = Api(self.connection)
        self.jobs = Objects(self.api, FineTuningJob)
        self.evaluations = Objects(self.api, EvaluationJob)
        self.relocations = Objects(self.api, Relocation)
        self.servers = Objects(self.api, InferenceServer)

    def __repr__(self) -> str:
        return f"Client({self.connection.place})"
