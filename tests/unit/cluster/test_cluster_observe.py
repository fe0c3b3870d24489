"""From Jobs and pods, as an API server returns them, to the states that reconciling works with."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    terminated,
    waiting_pod,
)
from tests.support.objects import NOW, RESULTS

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, TrainerStatus
from finetuning_operator.cluster.diagnose import Diagnosis
from finetuning_operator.cluster.observe import STOPPING, observe_server, observe_step
from finetuning_operator.reconcile.plan import ServerState, StepPhase, StepState

DONE = LastWords(reason=Reason.SUCCEEDED, result=RESULTS["train"])
NO_DATA = LastWords(reason=Reason.DATASET_EMPTY, message="there is not one row", hint="Give it rows.")
FULL = LastWords(reason=Reason.DISK_FULL, message="no space is left")
PROGRESS = TrainerStatus(last_updated_time=NOW, progress_percentage=40)
BACKOFF = condition(
    "Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit", at=60
)
COMPLETE = condition("Complete", reason="CompletionsReached", at=60)
QUEUED = {"kueue.x-k8s.io/queue-name": "gpus"}


def observe(job: Object, *pods: Object, seconds: float = 100, diagnosis: Diagnosis | None = None) -> StepState | None:
    return observe_step(job, pods, now=after(seconds), progress=PROGRESS, diagnosis=diagnosis)


def hindrance(job: Object, *pods: Object, seconds: float = 100, diagnosis: Diagnosis | None = None) -> LastWords | None:
    state = observe(job, *pods, seconds=seconds, diagnosis=diagnosis)
    assert state is not None
    assert state.phase is StepPhase.PENDING
    return state.hindrance


UNBOUND = condition(
    "PodScheduled",
    status="False",
    reason="Unschedulable",
    message="0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
)


def taken_away(reason: str) -> Object:
    return ended_pod(exit_code=143, conditions=[condition("DisruptionTarget", reason=reason, at=10)])


class TestLife:
    def test_a_job_without_pods_waits_since_its_start(self) -> None:
        assert observe(batch_job(started=2)) == StepState(
            StepPhase.PENDING, attempts=0, started_at=after(2), progress=PROGRESS
        )

    def test_a_job_that_no_controller_has_seen_waits_since_it_was_made(self) -> None:
        assert observe(batch_job(started=None)) == StepState(
            StepPhase.PENDING, attempts=0, started_at=NOW, progress=PROGRESS
        )

    def test_a_pod_that_is_being_made_is_no_attempt_yet(self) -> None:
        assert observe(batch_job(), waiting_pod("ContainerCreating")) == StepState(
            StepPhase.PENDING, attempts=0, started_at=NOW, progress=PROGRESS
        )

    @pytest.mark.parametrize("end", [COMPLETE, BACKOFF], ids=["complete", "failed"])
    def test_a_job_that_ended_before_its_pod_seems_to_runs_until_the_pod_tells_how(self, end: Object) -> None:
        assert observe(batch_job(end, succeeded=1), running_pod(started=7)) == StepState(
            StepPhase.RUNNING, attempts=1, started_at=after(7), progress=PROGRESS
        )

    def test_a_running_pod_runs_since_its_container_started(self) -> None:
        assert observe(batch_job(), running_pod(started=7)) == StepState(
            StepPhase.RUNNING, attempts=1, started_at=after(7), progress=PROGRESS
        )

    def test_a_program_that_ended_before_its_pod_was_told_to_run_speaks_for_itself(self) -> None:
        ended = ended_pod(exit_code=203, words=FULL)
        ended["status"]["phase"] = "Pending"
        assert hindrance(batch_job(), ended) == FULL

    def test_a_complete_job_speaks_with_the_words_of_its_pod(self) -> None:
        assert observe(batch_job(COMPLETE, succeeded=1), ended_pod(words=DONE, started=3)) == StepState(
            StepPhase.SUCCEEDED,
            attempts=1,
            started_at=after(3),
            finished_at=after(10),
            last_words=DONE,
            progress=PROGRESS,
        )

    def test_success_is_known_before_the_job_controller_repeats_it(self) -> None:
        early = observe(batch_job(), ended_pod(words=DONE))
        assert early == observe(batch_job(COMPLETE, succeeded=1), ended_pod(words=DONE))

    def test_a_success_stays_one_when_a_queue_takes_the_job_back_in_the_same_moment(self) -> None:
        taken = batch_job(condition("Suspended", at=10), labels=QUEUED, suspend=True, started=None)
        state = observe(taken, ended_pod(words=DONE))
        assert state is not None
        assert (state.phase, state.last_words) == (StepPhase.SUCCEEDED, DONE)

    def test_a_job_that_met_its_criteria_is_as_good_as_complete(self) -> None:
        met = condition("SuccessCriteriaMet", reason="CompletionsReached")
        state = observe(batch_job(met), ended_pod(words="done"))
        assert state is not None
        assert (state.phase, state.last_words) == (
            StepPhase.SUCCEEDED,
            LastWords(reason=Reason.SUCCEEDED, message="done"),
        )

    def test_a_success_that_the_job_tells_before_its_pod_does_is_waited_for(self) -> None:
        met = condition("SuccessCriteriaMet", reason="CompletionsReached")
        for job in (batch_job(met), batch_job(met, succeeded=1), batch_job(COMPLETE, succeeded=1)):
            state = observe(job, running_pod())
            assert state is not None
            assert (state.phase, state.attempts) == (StepPhase.RUNNING, 1)

    def test_a_complete_job_whose_pods_are_gone_was_never_started(self) -> None:
        assert observe(batch_job(COMPLETE, succeeded=1)) is None

    def test_a_complete_job_is_not_spoken_for_by_a_failed_attempt(self) -> None:
        assert observe(batch_job(COMPLETE, succeeded=1), ended_pod(exit_code=203, words=FULL)) is None

    def test_a_success_without_words_is_a_success_without_a_result(self) -> None:
        state = observe(batch_job(COMPLETE, succeeded=1), ended_pod())
        assert state is not None
        assert (state.phase, state.last_words) == (StepPhase.SUCCEEDED, LastWords(reason=Reason.SUCCEEDED))


class TestFailure:
    def test_a_failed_pod_that_is_replaced_is_no_failed_step(self) -> None:
        job, first = batch_job(failed=1), ended_pod(exit_code=203, words=FULL)
        assert observe(job, first) == StepState(
            StepPhase.PENDING, attempts=1, started_at=after(10), last_words=FULL, progress=PROGRESS
        )
        assert observe(job, first, running_pod("demo-train-2", created=20, started=22)) == StepState(
            StepPhase.RUNNING, attempts=2, started_at=after(22), last_words=FULL, progress=PROGRESS
        )

    def test_a_failed_job_has_the_words_of_its_last_pod(self) -> None:
        pods = (
            ended_pod(exit_code=203, words=FULL),
            ended_pod("demo-train-2", exit_code=1, words=NO_DATA, created=20, started=21, finished=30),
        )
        told = Diagnosis(log_of="demo-train-2-uid", log_tail=("reading rows", "no rows"))
        assert observe(batch_job(BACKOFF, failed=2), *pods, diagnosis=told) == StepState(
            StepPhase.FAILED,
            attempts=2,
            started_at=after(21),
            finished_at=after(30),
            last_words=NO_DATA,
            progress=PROGRESS,
            log_tail=("reading rows", "no rows"),
        )

    def test_pods_come_in_any_order(self) -> None:
        pods = [
            ended_pod("a", exit_code=203, words=FULL, created=20, finished=30),
            ended_pod("b", exit_code=203, words=NO_DATA, created=0, finished=10),
        ]
        assert observe(batch_job(BACKOFF, failed=2), *pods) == observe(batch_job(BACKOFF, failed=2), *pods[::-1])

    def test_a_failed_job_without_pods_says_what_the_job_says(self) -> None:
        state = observe(batch_job(BACKOFF, failed=4))
        assert state == StepState(
            StepPhase.FAILED,
            attempts=4,
            started_at=NOW,
            finished_at=after(60),
            last_words=LastWords(
                reason=Reason.BACKOFF_LIMIT_EXCEEDED,
                message="the step failed more often than backoffLimit allows, and its pods are gone",
                hint="The log that your cluster keeps, if it does, has the details.",
            ),
            progress=PROGRESS,
        )

    def test_a_deadline_is_told_as_such_and_not_as_the_stop_that_followed(self) -> None:
        late = condition("Failed", reason="DeadlineExceeded", message="Job was active longer than specified deadline")
        stopped = LastWords(reason=Reason.INTERRUPTED, message="saved at step 5")
        state = observe(batch_job(late, failed=1), ended_pod(exit_code=143, words=stopped))
        assert state is not None
        assert state.phase is StepPhase.FAILED
        assert state.last_words is not None
        assert state.last_words.reason is Reason.DEADLINE_EXCEEDED

    def test_a_job_that_is_about_to_fail_still_runs(self) -> None:
        soon = condition("FailureTarget", reason="PodFailurePolicy", message="Container main failed")
        state = observe(batch_job(soon, failed=1), ended_pod(exit_code=1, words=NO_DATA))
        assert state is not None
        assert state.phase is StepPhase.RUNNING

    def test_a_failed_job_stays_failed_though_a_pod_told_of_success(self) -> None:
        state = observe(batch_job(BACKOFF, failed=1), ended_pod(words=DONE))
        assert state is not None
        assert state.phase is StepPhase.FAILED

    def test_a_pod_that_was_taken_away_is_an_attempt_though_the_job_does_not_count_it(self) -> None:
        state = observe(batch_job(), taken_away("PreemptionByScheduler"))
        assert state is not None
        assert (state.phase, state.attempts) == (StepPhase.PENDING, 1)
        assert state.last_words is not None
        assert state.last_words.reason is Reason.PREEMPTED

    def test_attempts_whose_pods_are_gone_are_counted_by_the_job(self) -> None:
        state = observe(batch_job(failed=2), running_pod("demo-train-3", created=50))
        assert state is not None
        assert state.attempts == 3

    def test_attempts_of_jobs_that_are_gone_are_counted(self) -> None:
        before = {"finetuning.dev/earlier-attempts": "2"}
        waiting, failed = batch_job(annotations=before), batch_job(BACKOFF, annotations=before)
        told = [observe(waiting), observe(waiting, running_pod()), observe(failed)]
        assert [state and state.attempts for state in told] == [2, 3, 3]

    @pytest.mark.parametrize("text", ["", "-1", "many", "1" * 40, "٣"])
    def test_an_annotation_that_somebody_changed_counts_for_nothing(self, text: str) -> None:
        state = observe(batch_job(annotations={"finetuning.dev/earlier-attempts": text}), running_pod())
        assert state is not None
        assert state.attempts == 1

    def test_a_log_of_another_pod_is_not_shown(self) -> None:
        told = Diagnosis(log_of="demo-train-0-uid", log_tail=("old",))
        state = observe(batch_job(BACKOFF, failed=1), ended_pod(exit_code=203), diagnosis=told)
        assert state is not None
        assert state.log_tail == ()


class TestWaiting:
    def test_each_wait_counts_from_its_own_beginning(self) -> None:
        """A deadline for pending pods is not used up by the hours that an earlier attempt ran."""
        first = ended_pod(exit_code=203, words=FULL, finished=7200)
        second = waiting_pod("ContainerCreating", name="demo-train-2", created=7210)
        before, with_pod = observe(batch_job(failed=1), first), observe(batch_job(failed=1), first, second)
        assert before is not None
        assert with_pod is not None
        assert (before.started_at, with_pod.started_at) == (after(7200), after(7210))

    def test_a_job_on_its_way_out_is_being_stopped(self) -> None:
        assert observe(batch_job(deleted=True), running_pod()) == StepState(
            StepPhase.PENDING, attempts=1, started_at=NOW, progress=PROGRESS, hindrance=STOPPING
        )

    def test_a_job_on_its_way_out_is_being_stopped_however_it_ended(self) -> None:
        assert hindrance(batch_job(BACKOFF, deleted=True), ended_pod(exit_code=1)) == STOPPING
        assert hindrance(batch_job(COMPLETE, deleted=True), ended_pod(words=DONE)) == STOPPING

    def test_a_pod_that_should_be_gone_tells_of_a_lost_node(self) -> None:
        told = hindrance(batch_job(), running_pod(deleted=60), seconds=91)
        assert told is not None
        assert told.reason is Reason.NODE_LOST
        assert told.message == "the pod demo-train-1 should have ended, but its node node-1 does not answer"

    def test_a_pod_that_is_ending_still_runs(self) -> None:
        state = observe(batch_job(), running_pod(deleted=60), seconds=89)
        assert state is not None
        assert state.phase is StepPhase.RUNNING

    def test_a_queue_is_named(self) -> None:
        suspended = condition("Suspended", reason="JobSuspended", at=5)
        job = batch_job(suspended, labels=QUEUED, suspend=True, started=None)
        assert observe(job) == StepState(
            StepPhase.PENDING,
            attempts=0,
            started_at=after(5),
            progress=PROGRESS,
            hindrance=LastWords(reason=Reason.QUEUED, message="waits in the queue gpus"),
        )

    def test_a_job_that_its_queue_just_let_go_has_not_waited_for_a_pod(self) -> None:
        suspended = condition("Suspended", reason="JobSuspended", at=5)
        state = observe(batch_job(suspended, labels=QUEUED, started=None), seconds=3600)
        assert state is not None
        assert (state.phase, state.started_at, state.hindrance) == (StepPhase.PENDING, None, None)

    def test_a_queue_speaks_for_itself(self) -> None:
        told = LastWords(reason=Reason.QUEUE_INADMISSIBLE, message="no such queue")
        job = batch_job(labels=QUEUED, suspend=True, started=None)
        assert hindrance(job, diagnosis=Diagnosis(uid=JOB_UID, hindrance=told)) == told

    def test_a_job_that_somebody_else_suspended_says_so(self) -> None:
        assert hindrance(batch_job(suspend=True, started=None)) == LastWords(
            reason=Reason.SUSPENDED,
            message="the Job demo-train was suspended by somebody else",
            hint="Set spec.suspend of the Job to false.",
        )

    def test_a_pod_tells_what_hinders_it(self) -> None:
        told = hindrance(batch_job(), waiting_pod("ErrImagePull", "not found"))
        assert told is not None
        assert told.reason is Reason.IMAGE_PULL_FAILED

    def test_events_tell_what_the_pod_does_not(self) -> None:
        told = LastWords(reason=Reason.VOLUME_CONFLICT, message="held elsewhere")
        asked = Diagnosis(uid="demo-train-1-uid", hindrance=told)
        assert hindrance(batch_job(), waiting_pod("ContainerCreating"), diagnosis=asked) == told

    def test_what_the_pod_says_now_goes_before_what_events_said(self) -> None:
        old = Diagnosis(uid="demo-train-1-uid", hindrance=LastWords(reason=Reason.VOLUME_CONFLICT))
        told = hindrance(batch_job(), waiting_pod("ErrImagePull", "not found"), diagnosis=old)
        assert told is not None
        assert told.reason is Reason.IMAGE_PULL_FAILED

    def test_a_claim_without_a_volume_is_explained_by_its_events(self) -> None:
        told = LastWords(reason=Reason.VOLUME_UNAVAILABLE, message="the claim adapter has no StorageClass")
        asked = Diagnosis(uid="demo-train-1-uid", hindrance=told)
        assert hindrance(batch_job(), pod(conditions=[UNBOUND]), diagnosis=asked) == told

    @pytest.mark.parametrize(("seconds", "reason"), [(9, None), (10, Reason.VOLUME_UNAVAILABLE)])
    def test_a_claim_has_some_moments_to_get_its_volume(self, seconds: float, reason: Reason | None) -> None:
        told = hindrance(batch_job(), pod(conditions=[UNBOUND]), seconds=seconds)
        assert (told.reason if told else None) is reason

    def test_a_diagnosis_of_a_pod_that_is_gone_is_not_shown(self) -> None:
        old = Diagnosis(uid="demo-train-0-uid", hindrance=LastWords(reason=Reason.VOLUME_CONFLICT))
        assert hindrance(batch_job(), waiting_pod("ContainerCreating"), diagnosis=old) is None


class TestWorkers:
    """Indexed Jobs: worker 0 speaks, but not for the faults of others."""

    def test_a_job_runs_when_all_workers_run(self) -> None:
        one, two = running_pod("w0", index=0, started=5), running_pod("w1", index=1, started=9)
        assert observe(batch_job(workers=2), one, two) == StepState(
            StepPhase.RUNNING, attempts=1, started_at=after(9), progress=PROGRESS
        )

    def test_a_worker_that_cannot_start_holds_all_up(self) -> None:
        two = waiting_pod("ErrImagePull", "not found", name="w1", index=1)
        told = hindrance(batch_job(workers=2), running_pod("w0", index=0), two)
        assert told is not None
        assert told.reason is Reason.IMAGE_PULL_FAILED

    def test_a_worker_that_is_done_early_does_not_hold_up(self) -> None:
        state = observe(batch_job(workers=2, succeeded=1), running_pod("w0", index=0), ended_pod("w1", index=1))
        assert state is not None
        assert (state.phase, state.attempts) == (StepPhase.RUNNING, 1)

    def test_worker_0_has_the_result(self) -> None:
        one, two = ended_pod("w0", index=0, words=DONE), ended_pod("w1", index=1, words="", finished=11)
        state = observe(batch_job(COMPLETE, workers=2, succeeded=2), one, two)
        assert state is not None
        assert (state.phase, state.attempts, state.last_words) == (StepPhase.SUCCEEDED, 1, DONE)

    def test_one_worker_of_several_does_not_make_a_success(self) -> None:
        state = observe(batch_job(workers=2), ended_pod("w0", index=0, words=DONE), running_pod("w1", index=1))
        assert state is not None
        assert state.phase is StepPhase.RUNNING

    def test_the_worker_that_failed_first_is_to_blame(self) -> None:
        cut_off = LastWords(reason=Reason.INTERNAL, message="connection closed by peer")
        one = ended_pod("w0", index=0, exit_code=203, words=cut_off, finished=12)
        two = ended_pod("w1", index=1, exit_code=137, reason="OOMKilled", limits={"memory": "4Gi"}, finished=10)
        state = observe(batch_job(BACKOFF, workers=2, failed=2), one, two)
        assert state is not None
        assert state.last_words is not None
        assert state.last_words.reason is Reason.OUT_OF_MEMORY
        assert state.last_words.message.startswith("worker 1: the container was killed")

    def test_a_worker_that_ended_because_of_another_is_not_to_blame(self) -> None:
        given_up = LastWords(reason=Reason.INTERRUPTED, message="rank 1 failed: no memory")
        failed = LastWords(reason=Reason.OUT_OF_MEMORY, message="rank 1 was killed (SIGKILL)")
        one = ended_pod("w0", index=0, exit_code=143, words=given_up, finished=10)
        two = ended_pod("w1", index=1, exit_code=203, words=failed, finished=12)
        state = observe(batch_job(workers=2, failed=1), one, two)
        assert state is not None
        assert state.last_words == failed.model_copy(update={"message": "worker 1: rank 1 was killed (SIGKILL)"})

    def test_the_pod_that_the_job_blames_is_to_blame(self) -> None:
        blamed = condition(
            "Failed",
            reason="PodFailurePolicy",
            message="Container main for pod team/w1 failed with exit code 1 matching FailJob rule at index 0",
        )
        one = ended_pod("w0", index=0, exit_code=203, words=FULL, finished=8)
        two = ended_pod("w1", index=1, exit_code=1, words=NO_DATA, finished=10)
        state = observe(batch_job(blamed, workers=2, failed=2), one, two)
        assert state is not None
        assert state.last_words == NO_DATA.model_copy(update={"message": "worker 1: there is not one row"})

    def test_attempts_are_counted_by_worker(self) -> None:
        pods = [
            ended_pod(f"w{index}-{attempt}", index=index, exit_code=203, finished=10 * attempt)
            for index in range(2)
            for attempt in range(1, 3)
        ]
        state = observe(batch_job(workers=2, failed=4), *pods)
        assert state is not None
        assert state.attempts == 2


class TestServer:
    def deployment(self, *conditions: Object, replicas: int = 1, ready: int = 1, updated: int = 1) -> Object:
        return {
            "metadata": {"name": "srv", "generation": 2},
            "spec": {"replicas": 1},
            "status": {
                "observedGeneration": 2,
                "replicas": replicas,
                "readyReplicas": ready,
                "updatedReplicas": updated,
                "conditions": list(conditions),
            },
        }

    def test_a_server_that_is_ready_has_no_hindrance(self) -> None:
        deployment = self.deployment()
        deployment["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "7"}
        expected = ServerState(replicas=1, ready=1, wanted=1, current=True, revision=7)
        assert observe_server(deployment, [running_pod()]) == expected

    def test_a_server_of_an_older_description_is_not_current(self) -> None:
        older = self.deployment() | {"metadata": {"name": "srv", "generation": 3}}
        assert observe_server(older, []) == ServerState(replicas=1, ready=1, wanted=1, current=False)

    def test_a_server_in_the_middle_of_an_update_is_not_current(self) -> None:
        assert not observe_server(self.deployment(replicas=2), []).current

    def test_a_server_on_its_way_out_serves_nobody(self) -> None:
        gone = self.deployment() | {"metadata": {"name": "srv", "deletionTimestamp": stamp()}}
        assert observe_server(gone, []) == ServerState(hindrance=STOPPING)

    def test_a_refused_pod_is_told(self) -> None:
        message = 'pods "srv-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=3, limited: pods=3'
        refused = condition("ReplicaFailure", reason="FailedCreate", message=message)
        told = observe_server(self.deployment(refused, replicas=0, ready=0, updated=0), []).hindrance
        assert told is not None
        assert told.reason is Reason.QUOTA_EXCEEDED

    def test_a_program_that_ends_again_and_again_speaks_for_itself(self) -> None:
        words = LastWords(reason=Reason.MODEL_UNREADABLE, message="no weights")
        crashing = pod(
            phase="Running",
            state={"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            last_state=terminated(1, words=words),
        )
        assert observe_server(self.deployment(ready=0), [crashing]).hindrance == words

    def test_a_pod_without_an_image_is_told(self) -> None:
        told = observe_server(self.deployment(ready=0), [waiting_pod("ImagePullBackOff", "not found")]).hindrance
        assert told is not None
        assert told.reason is Reason.IMAGE_PULL_FAILED

    def test_a_rollout_that_makes_no_progress_is_told_with_its_cause_and_the_way_back(self) -> None:
        stuck = condition("Progressing", status="False", reason="ProgressDeadlineExceeded")
        deployment = self.deployment(stuck, replicas=2, updated=1)
        deployment["spec"]["progressDeadlineSeconds"] = 600
        words = LastWords(reason=Reason.MODEL_UNREADABLE, message="no weights", hint="Look at the source.")
        crashing = pod(
            phase="Running",
            state={"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            last_state=terminated(1, words=words),
        )

        assert observe_server(deployment, [running_pod(), crashing]).hindrance == LastWords(
            reason=Reason.ROLLOUT_STALLED,
            message="the newest description made no progress for 600 s: no weights",
            hint="Look at the source. Its former replicas go on answering; apply the former specification to go back"
            " to it.",
        )

    def test_events_tell_what_the_pod_does_not(self) -> None:
        told = LastWords(reason=Reason.VOLUME_CONFLICT, message="held elsewhere")
        asked = Diagnosis(uid="demo-train-1-uid", hindrance=told)
        starting = [waiting_pod("ContainerCreating")]
        assert observe_server(self.deployment(ready=0), starting, asked).hindrance == told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def mangled(value: object) -> st.SearchStrategy[Any]:
    """Return objects like the given one in which any part may be anything."""
    if isinstance(value, dict):
        parts = {key: mangled(inner) for key, inner in value.items()}
        return st.one_of(st.fixed_dictionaries({}, optional=parts), JSON)
    if isinstance(value, list):
        return st.one_of(st.tuples(*map(mangled, value)).map(list), JSON)
    return st.one_of(st.just(value), st.just(value), st.just(value), JSON)


WHOLE_JOB = batch_job(BACKOFF, COMPLETE, condition("Suspended"), workers=2, labels=QUEUED, deleted=True)
WHOLE_POD = ended_pod(
    exit_code=203, words=FULL, index=1, deleted=5, claims=["a"], conditions=[condition("DisruptionTarget")], reason="x"
)
AS_OBJECT: Object = {"metadata": {}, "spec": {}, "status": {}}


def of_shape(value: Object) -> st.SearchStrategy[Object]:
    return mangled(value).map(lambda found: found if isinstance(found, dict) else AS_OBJECT)


@settings(max_examples=300)
@given(job=of_shape(WHOLE_JOB), pods=st.lists(of_shape(WHOLE_POD), max_size=3))
def test_nothing_that_an_object_may_hold_raises_and_what_is_told_is_bounded(job: Object, pods: list[Object]) -> None:
    state = observe_step(job, pods, now=NOW)
    observe_server(job, pods)
    if state is not None:
        for words in (state.last_words, state.hindrance):
            assert words is None or (len(words.message) <= 4096 and words.message.isprintable())


@settings(max_examples=300)
@given(
    message=st.binary(max_size=6000).map(lambda raw: raw.decode(errors="replace"))
    | st.text(max_size=6000)
    | JSON.map(str)
    | st.integers(min_value=0, max_value=400).map(lambda end: FULL.model_dump_json()[:end]),
    exit_code=st.sampled_from([0, 1, 2, 126, 137, 139, 143, 203, 255, -1, 10**12]),
)
def test_whatever_a_program_leaves_behind_becomes_bounded_text(message: str, exit_code: int) -> None:
    state = observe(batch_job(BACKOFF), ended_pod(exit_code=exit_code, words=message))
    assert state is not None
    assert state.last_words is not None
    assert len(state.last_words.message) <= 4096
    assert state.last_words.message.isprintable()
    assert state.last_words.hint.isprintable()


@pytest.mark.parametrize("size", [10**6, 10**7])
def test_megabytes_of_last_words_are_cut_at_once(size: int) -> None:
    state = observe(batch_job(BACKOFF), ended_pod(exit_code=203, words="\x1b[31mspam " * (size // 10)))
    assert state is not None
    assert state.last_words is not None
    assert len(state.last_words.message) < 2000
