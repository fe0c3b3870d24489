"""Asking further where the cache does not tell, and keeping the answers, so that nothing is asked twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetuning_operator.cluster.api import ClusterApi
from finetuning_operator.cluster.diagnose import (
    Diagnosis,
    Inquiry,
    diagnose,
    diagnose_server,
    next_inquiry,
    wants_diagnosis,
)
from finetuning_operator.cluster.view import StepJob
from finetuning_operator.reconcile.lifecycle import soonest

_SERVER_SECONDS = 60
"""A server that does not start is asked about again after this time, or when its pods change."""


@dataclass(slots=True)
class Answers:
    """What was found out about one object, by the name of its Job or Deployment."""

    of_jobs: dict[str, tuple[str, Inquiry, Diagnosis | None]] = field(default_factory=dict)
    """With the uid of the Job and the inquiry that the diagnosis answers."""
    of_servers: dict[str, tuple[object, Diagnosis | None]] = field(default_factory=dict)

    @property
    def diagnoses(self) -> dict[str, Diagnosis | None]:
        """The newest diagnosis by the name of the Job or Deployment."""
        of_jobs = {name: diagnosis for name, (_, _, diagnosis) in self.of_jobs.items()}
        return of_jobs | {name: diagnosis for name, (_, diagnosis) in self.of_servers.items()}

    async def ask_about_jobs(self, api: ClusterApi, jobs: Sequence[StepJob], *, now: datetime) -> float | None:
        """Find out what is not known yet; return the seconds until there is more to ask."""
        names = {job.key.name for job in jobs}
        self.of_jobs = {name: answer for name, answer in self.of_jobs.items() if name in names}
        for job in jobs:
            inquiry = wants_diagnosis(job.job, job.pods, now=now)
            known = self.of_jobs.get(job.key.name)
            if inquiry is None:
                self.of_jobs.pop(job.key.name, None)
            elif known is None or known[:2] != (job.uid, inquiry):
                self.of_jobs[job.key.name] = (job.uid, inquiry, await diagnose(api, job.job, job.pods, now))
        return soonest(*(next_inquiry(job.job, job.pods, now=now) for job in jobs))

    async def ask_about_server(
        self, api: ClusterApi, deployment: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], *, now: datetime
    ) -> float | None:
        """Find out why a server does not start; return the seconds until it is asked again."""
        name, status = deployment["metadata"]["name"], deployment.get("status") or {}
        if status.get("readyReplicas", 0) >= deployment["spec"].get("replicas", 1):
            self.of_servers.pop(name, None)
            return None
        versions = tuple(sorted(pod["metadata"]["resourceVersion"] for pod in pods))
        question = (versions, int(now.timestamp()) // _SERVER_SECONDS)
        known = self.of_servers.get(name)
        if known is None or known[0] != question:
            self.of_servers[name] = (question, await diagnose_server(api, pods))
        return float(_SERVER_SECONDS)
