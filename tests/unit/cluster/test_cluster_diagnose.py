"""What is read beyond the objects themselves: only when it is wanted, and ever more rarely."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from tests.support.batch import (
    JOB_UID,
    Object,
    after,
    batch_job,
    condition,
    ended_pod,
    pod,
    running_pod,
    stamp,
    waiting_pod,
)

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.api import ListResult
from finetuning_operator.cluster.diagnose import (
    Diagnosis,
    Inquiry,
    Topic,
    diagnose,
    diagnose_server,
    next_inquiry,
    wants_diagnosis,
)
from finetuning_operator.cluster.errors import BadRequest, Forbidden, NotFound, NotServed, Unavailable
from finetuning_operator.cluster.event_board import Subject, Told
from finetuning_operator.cluster.kinds import KindRef

WORDS = LastWords(reason=Reason.DISK_FULL, message="no space is left")
FAILED = condition("Failed", reason="BackoffLimitExceeded", at=60)
QUEUED_JOB = batch_job(labels={"kueue.x-k8s.io/queue-name": "gpus"}, suspend=True, started=None)
UNBOUND = condition(
    "PodScheduled", status="False", reason="Unschedulable", message="pod has unbound immediate PersistentVolumeClaims"
)


FAULTS = [NotFound("pod is gone"), BadRequest("no"), Unavailable("no"), Forbidden("no"), TimeoutError()]


@dataclass
class Answers:
    """An API that gives prepared answers and remembers what it was asked."""

    lists: Mapping[str, list[Object] | Exception] = field(default_factory=dict)
    """By selector."""
    told: Mapping[Subject, list[Object]] = field(default_factory=dict)
    """Events, by whom they are about."""
    log: str | Exception = ""
    not_served: frozenset[str] = frozenset()
    """Versions that this API does not have."""
    asked: list[str] = field(default_factory=list)

    async def list(
        self,
        kind: KindRef,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> ListResult:
        selector = label_selector or field_selector or ""
        self.asked.append(f"{kind.plural} {namespace} {selector}")
        if kind.version in self.not_served:
            raise NotServed("404 page not found")
        found = self.lists.get(selector, [])
        if isinstance(found, Exception):
            raise found
        return ListResult(items=found, resource_version="1")

    def events(self, namespace: str, subject: Subject) -> Sequence[Told]:
        self.asked.append(f"events {namespace} {subject.uid or subject.name}")
        found = self.told.get(subject, [])
        return sorted((Told.read(event) for event in found), key=lambda told: told.at, reverse=True)

    async def logs(self, namespace: str, pod: str, *, container: str, tail_lines: int, limit_bytes: int) -> str:
        self.asked.append(f"log {namespace} {pod} {container} {tail_lines} {limit_bytes}")
        if isinstance(self.log, Exception):
            raise self.log
        return self.log


def event(reason: str, message: str = "", *, kind: str = "Warning", at: float = 0) -> Object:
    return {"reason": reason, "message": message, "type": kind, "lastTimestamp": stamp(at)}


def claim(name: str) -> Subject:
    return Subject(kind="PersistentVolumeClaim", name=name)


def wanted(job: Object, *pods: Object, seconds: float = 100) -> Inquiry | None:
    return wants_diagnosis(job, pods, now=after(seconds))


def found(api: Answers, job: Object, *pods: Object, seconds: float = 100) -> Diagnosis | None:
    return asyncio.run(diagnose(api, api, job, pods, after(seconds)))


class TestWanted:
    def test_nothing_is_asked_of_what_goes_well(self) -> None:
        done = condition("Complete")
        assert wanted(batch_job(), running_pod()) is None
        assert wanted(batch_job(done), ended_pod()) is None
        assert wanted(batch_job(done)) is None
        assert wanted(batch_job(deleted=True)) is None
        assert wanted(batch_job(), waiting_pod("ErrImagePull", "not found")) is None

    def test_a_failed_attempt_with_words_needs_no_log(self) -> None:
        retry = waiting_pod("ErrImagePull", name="demo-train-2", created=20)
        assert wanted(batch_job(failed=1), ended_pod(exit_code=203, words=WORDS), retry) is None

    @pytest.mark.parametrize("words", ["", "Traceback (most recent call last)"])
    def test_a_failed_attempt_without_words_needs_its_log(self, words: str) -> None:
        retry = waiting_pod("ErrImagePull", name="demo-train-2", created=20)
        assert wanted(batch_job(failed=1), ended_pod(exit_code=1, words=words), retry) == Inquiry(
            log_of="demo-train-1-uid"
        )

    def test_a_final_failure_needs_its_log_in_any_case(self) -> None:
        assert wanted(batch_job(FAILED, failed=1), ended_pod(exit_code=1, words=WORDS)) == Inquiry(
            log_of="demo-train-1-uid"
        )

    def test_a_pod_that_never_ran_has_no_log(self) -> None:
        assert wanted(batch_job(FAILED), pod(phase="Failed", reason="Evicted")) is None
        assert wanted(batch_job(FAILED)) is None

    def test_a_job_without_pods_is_asked_about_after_a_while(self) -> None:
        assert wanted(batch_job(), seconds=4.9) is None
        assert wanted(batch_job(), seconds=5) == Inquiry(topic=Topic.JOB, uid=JOB_UID)

    def test_what_no_controller_has_looked_at_is_not(self) -> None:
        unplaced = pod()
        unplaced["spec"]["nodeName"] = ""
        assert wanted(batch_job(started=None)) is None
        assert wanted(batch_job(), unplaced) is None

    def test_a_pod_that_does_not_say_why_it_waits_is_asked_about(self) -> None:
        assert wanted(batch_job(), waiting_pod("ContainerCreating"), seconds=5) == Inquiry(
            topic=Topic.POD, uid="demo-train-1-uid"
        )

    def test_a_claim_without_a_volume_is_asked_about(self) -> None:
        assert wanted(batch_job(), pod(conditions=[UNBOUND]), seconds=5) == Inquiry(
            topic=Topic.POD, uid="demo-train-1-uid"
        )

    def test_a_queue_is_asked(self) -> None:
        assert wanted(QUEUED_JOB, seconds=5) == Inquiry(topic=Topic.QUEUE, uid=JOB_UID)

    def test_a_job_that_somebody_suspended_is_not(self) -> None:
        assert wanted(batch_job(suspend=True)) is None

    def test_an_inquiry_comes_up_ever_more_rarely(self) -> None:
        times = [5, 10, 20, 40, 80, 160, 320, 620, 920, 1220]
        turns = [wanted(batch_job(), seconds=time) for time in times]
        assert turns == [Inquiry(topic=Topic.JOB, uid=JOB_UID, turn=turn) for turn in range(len(times))]
        assert [wanted(batch_job(), seconds=time - 0.1) for time in times[1:]] == turns[:-1]

    def test_time_until_the_next_inquiry_is_known(self) -> None:
        def wait(job: Object, *pods: Object, seconds: float) -> float | None:
            return next_inquiry(job, pods, now=after(seconds))

        assert [wait(batch_job(), seconds=time) for time in (0, 2, 5, 12, 320, 700)] == [5, 3, 5, 8, 300, 220]
        assert wait(batch_job(), running_pod(), seconds=10) is None
        assert wait(batch_job(FAILED), seconds=10) is None
        assert wait(batch_job(), waiting_pod("ErrImagePull"), seconds=10) is None


class TestLog:
    def test_the_end_of_the_log_is_kept(self) -> None:
        api = Answers(log="step 1\n\x1b[31mstep 2\n")
        assert found(api, batch_job(FAILED), ended_pod(exit_code=203)) == Diagnosis(
            log_of="demo-train-1-uid", log_tail=("step 1", "step 2")
        )
        assert api.asked == ["log team demo-train-1 main 20 65536"]

    @pytest.mark.parametrize("error", FAULTS)
    def test_a_log_that_cannot_be_read_is_left_out(self, error: Exception) -> None:
        assert found(Answers(log=error), batch_job(FAILED), ended_pod(exit_code=203)) == Diagnosis(
            log_of="demo-train-1-uid"
        )

    def test_log_and_hindrance_are_found_together(self) -> None:
        api = Answers(log="step 1")
        assert found(api, batch_job(failed=1), ended_pod(exit_code=1)) == Diagnosis(
            log_of="demo-train-1-uid", log_tail=("step 1",), uid=JOB_UID
        )


class TestEvents:
    def test_nothing_is_read_unless_it_is_wanted(self) -> None:
        api = Answers()
        assert found(api, batch_job(), running_pod()) is None
        assert api.asked == []

    def test_a_job_that_is_refused_its_pods_says_why(self) -> None:
        refused = 'Error creating: pods "a" is forbidden: exceeded quota: q, requested: a, used: b, limited: c'
        api = Answers(told={Subject(uid=JOB_UID): [event("FailedCreate", refused)]})
        diagnosis = found(api, batch_job())
        assert diagnosis is not None
        assert diagnosis.uid == JOB_UID
        assert diagnosis.hindrance is not None
        assert diagnosis.hindrance.reason is Reason.QUOTA_EXCEEDED

    def test_the_newest_event_counts(self) -> None:
        events = [
            event("FailedMount", "old", at=10),
            event("FailedAttachVolume", "Multi-Attach error", at=30),
            event("Scheduled", kind="Normal", at=5),
        ]
        api = Answers(told={Subject(uid="demo-train-1-uid"): events})
        diagnosis = found(api, batch_job(), waiting_pod("ContainerCreating"))
        assert diagnosis is not None
        assert diagnosis.hindrance is not None
        assert diagnosis.hindrance.reason is Reason.VOLUME_CONFLICT

    def test_a_warning_that_is_over_hinders_nothing(self) -> None:
        events = [event("FailedMount", "old", at=10), event("SuccessfulAttachVolume", kind="Normal", at=20)]
        api = Answers(told={Subject(uid="demo-train-1-uid"): events})
        diagnosis = found(api, batch_job(), waiting_pod("ContainerCreating"))
        assert diagnosis == Diagnosis(uid="demo-train-1-uid")

    def test_an_old_event_of_a_claim_that_has_its_volume_hides_no_other_claim(self) -> None:
        unbound = pod(conditions=[UNBOUND], claims=["rows", "model"])
        del unbound["spec"]["nodeName"]
        waited = event("ExternalProvisioning", "Waiting for a volume to be created", kind="Normal")
        failed = event("ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found')
        bound = {"status": {"phase": "Bound"}}
        told = {claim("rows"): [waited], claim("model"): [failed]}
        api = Answers(told=told, lists={"metadata.name=rows": [bound]})

        diagnosis = found(api, batch_job(), unbound)

        assert diagnosis is not None
        assert diagnosis.hindrance is not None
        assert diagnosis.hindrance.message == "the claim model names the StorageClass fast, which does not exist"

    def test_claims_are_asked_where_the_pod_has_no_node(self) -> None:
        unbound = pod(conditions=[UNBOUND], claims=["rows", "model"])
        del unbound["spec"]["nodeName"]
        failed = event("ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found')
        api = Answers(told={claim("model"): [failed]})
        diagnosis = found(api, batch_job(), unbound)
        assert diagnosis is not None
        assert diagnosis.hindrance is not None
        assert diagnosis.hindrance.message == "the claim model names the StorageClass fast, which does not exist"
        assert api.asked == [
            "events team demo-train-1-uid",
            "events team rows",
            "events team model",
            "persistentvolumeclaims team metadata.name=model",
        ]

    def test_a_job_that_nothing_is_told_of_has_no_hindrance(self) -> None:
        assert found(Answers(), batch_job()) == Diagnosis(uid=JOB_UID)

    @pytest.mark.parametrize("odd", [{}, {"reason": 7, "message": None, "lastTimestamp": "never"}])
    def test_odd_events_are_passed_over(self, odd: Object) -> None:
        api = Answers(told={Subject(uid=JOB_UID): [odd, event("FailedCreate", "forbidden")]})
        diagnosis = found(api, batch_job())
        assert diagnosis is not None
        assert diagnosis.hindrance is not None
        assert diagnosis.hindrance.reason is Reason.FORBIDDEN


class TestQueue:
    SELECTOR = f"kueue.x-k8s.io/job-uid={JOB_UID}"

    def test_kueue_says_why_it_does_not_admit(self) -> None:
        told = condition(
            "QuotaReserved", status="False", reason="Inadmissible", message="ClusterQueue gpus is inactive"
        )
        api = Answers(lists={self.SELECTOR: [{"status": {"conditions": [told]}}]})
        assert found(api, QUEUED_JOB) == Diagnosis(
            uid=JOB_UID,
            hindrance=LastWords(
                reason=Reason.QUEUE_INADMISSIBLE,
                message="the queue gpus does not admit: ClusterQueue gpus is inactive",
                hint="Correct queueName, or have the queue set up.",
            ),
        )
        assert api.asked == [f"workloads team {self.SELECTOR}"]

    def test_kueue_says_why_it_took_a_job_back(self) -> None:
        waits = condition("QuotaReserved", status="False", reason="Pending", message="1 more needed")
        evicted = condition("Evicted", reason="Preempted", message="Preempted to accommodate a workload")
        again = Answers(lists={self.SELECTOR: [{"status": {"conditions": [waits, evicted]}}]})
        at_once = Answers(lists={self.SELECTOR: [{"status": {"conditions": [evicted]}}]})
        told = [found(api, QUEUED_JOB) for api in (again, at_once)]
        assert [each and each.hindrance and each.hindrance.message for each in told] == [
            "waits in the queue gpus: 1 more needed. Kueue took it back: Preempted to accommodate a workload",
            "waits in the queue gpus: Preempted to accommodate a workload",
        ]

    def test_an_older_kueue_is_asked_in_its_own_version(self) -> None:
        told = condition("QuotaReserved", status="False", reason="Pending", message="insufficient unused quota")
        workload = {"status": {"conditions": [told]}}
        api = Answers(lists={self.SELECTOR: [workload]}, not_served=frozenset({"v1beta2"}))
        diagnosis = found(api, QUEUED_JOB)
        assert diagnosis is not None
        assert diagnosis.hindrance is not None
        assert diagnosis.hindrance.message == "waits in the queue gpus: insufficient unused quota"

    @pytest.mark.parametrize("answer", [[], [{}], NotServed("404 page not found"), Forbidden("no")])
    def test_a_queue_that_says_nothing_is_just_a_queue(self, answer: list[Object] | Exception) -> None:
        assert found(Answers(lists={self.SELECTOR: answer}), QUEUED_JOB) == Diagnosis(uid=JOB_UID)


def test_a_server_s_newest_pod_is_asked_about() -> None:
    old = waiting_pod("ContainerCreating", name="old", created=0)
    new = waiting_pod("ContainerCreating", name="new", created=10)
    api = Answers(told={Subject(uid="new-uid"): [event("FailedMount", "Multi-Attach error")]})
    diagnosis = asyncio.run(diagnose_server(api, api, [new, old]))
    assert diagnosis is not None
    assert diagnosis.hindrance is not None
    assert (diagnosis.uid, diagnosis.hindrance.reason) == ("new-uid", Reason.VOLUME_CONFLICT)
    assert asyncio.run(diagnose_server(api, api, [running_pod()])) is None
    assert asyncio.run(diagnose_server(api, api, [waiting_pod("ErrImagePull")])) is None
