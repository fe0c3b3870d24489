"""Trials on a real API server: one Job each, in order, never twice, whatever happens to the operator and to Jobs."""

from collections.abc import Callable

import pytest
from tests.support.cluster import Cluster, Object, has_condition
from tests.support.lifecycle import condition, has_ended, job, names, wait_for_end
from tests.support.objects import COUNTS
from tests.support.operator_process import OperatorProcess
from tests.support.player import End, play, succeed

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords, TrainResult

RunOperator = Callable[..., OperatorProcess]
RANKS = {"name": "method.rank", "values": [4, 8, 16]}
LOSSES = {"trial-0": 3.0, "trial-1": 1.5, "trial-2": 2.0}


def tuned(namespace: str, **tuning: object) -> Object:
    """Return a job of three trials, which is what the stand-in of preflight draws."""
    wanted = {"parameters": [RANKS], "search": "grid", **tuning}
    return job(namespace, tuning=wanted, evaluation={"enabled": False})


def ends(**others: End | None) -> Callable[[str, Object], End | None]:
    """Return a script of trials that end well, but for some, whose names have an underscore here."""

    def script(step: str, pod: Object) -> End | None:
        if (name := step.replace("-", "_")) in others:
            return others[name]
        if step not in LOSSES:
            return succeed(step, pod)
        loss = LOSSES[step]
        result = TrainResult(digest=f"sha256:{'e' * 64}", size_bytes=50, steps=5, evaluation_loss=loss, dataset=COUNTS)
        return End(words=LastWords(reason=Reason.SUCCEEDED, result=result))

    return script


def trials(found: Object) -> list[str]:
    return [trial["state"] for trial in found.get("status", {}).get("tuning", {}).get("trials", [])]


@pytest.fixture
def env(namespace: str) -> dict[str, str]:
    return {"FINETUNING_NAMESPACES": namespace, "FINETUNING_STATUS_DELAY": "0.2"}


def test_trials_run_in_order_and_the_best_becomes_the_jobs(
    cluster: Cluster, namespace: str, run_operator: RunOperator, env: dict[str, str]
) -> None:
    run_operator(env=env).wait_ready()
    with play(cluster, ends(), namespace=namespace) as player:
        cluster.create(tuned(namespace))
        done = wait_for_end(cluster, namespace)

    assert has_condition(done, "Complete"), condition(done, "Failed")
    steps = [step for step, _ in player.played]
    assert steps[steps.index("preflight") :] == ["preflight", "trial-0", "trial-1", "trial-2", "train"]
    assert trials(done) == ["Succeeded"] * 3
    assert done["status"]["tuning"]["best"] == 1
    told = "trial 1 of 3 is the best: method.rank 8, held-out loss 1.5000"
    assert condition(done, "Trained") == {"status": "True", "reason": "Succeeded", "message": told}


def test_a_killed_operator_finds_its_trials_again_and_starts_none_twice(
    cluster: Cluster, namespace: str, run_operator: RunOperator, env: dict[str, str]
) -> None:
    first = run_operator(env=env)
    first.wait_ready()
    with play(cluster, ends(trial_1=None, trial_2=None), namespace=namespace):
        cluster.create(tuned(namespace, parallelism=2))
        cluster.wait_for_object(
            "FineTuningJob",
            "demo",
            namespace,
            where=lambda found: trials(found) == ["Succeeded", "Running", "Running"],
        )
    first.kill()
    uids = {name: cluster.get("Job", name, namespace)["metadata"]["uid"] for name in names(cluster, "Job", namespace)}

    run_operator(env=env).wait_ready()
    with play(cluster, ends(), namespace=namespace):
        done = wait_for_end(cluster, namespace)

    assert has_condition(done, "Complete"), condition(done, "Failed")
    after = {name: cluster.get("Job", name, namespace)["metadata"]["uid"] for name in names(cluster, "Job", namespace)}
    assert uids.items() <= after.items()
    assert {name for name in after if "trial" in name} == {"demo-trial-0", "demo-trial-1", "demo-trial-2"}
    assert [trial["attempts"] for trial in done["status"]["tuning"]["trials"]] == [1, 1, 1]


def test_a_suspended_job_stops_its_trials_and_goes_on_with_those_that_have_not_ended(
    cluster: Cluster, namespace: str, run_operator: RunOperator, env: dict[str, str]
) -> None:
    run_operator(env=env).wait_ready()
    with play(cluster, ends(trial_1=None), namespace=namespace):
        made = cluster.create(tuned(namespace))
        cluster.wait_for_object(
            "FineTuningJob",
            "demo",
            namespace,
            where=lambda found: trials(found)[1:2] == ["Running"],
        )
        cluster.patch(made, {"spec": {"suspend": True}})
        suspended = cluster.wait_for_object(
            "FineTuningJob", "demo", namespace, where=lambda found: has_condition(found, "Suspended")
        )
        cluster.wait_gone("Job", "demo-trial-1", namespace)
    assert trials(suspended) == ["Succeeded", "Pending", "Pending"]
    finished = cluster.get("Job", "demo-trial-0", namespace)["metadata"]["uid"]

    with play(cluster, ends(), namespace=namespace):
        cluster.patch(made, {"spec": {"suspend": False}})
        done = wait_for_end(cluster, namespace)

    assert has_condition(done, "Complete"), condition(done, "Failed")
    assert cluster.get("Job", "demo-trial-0", namespace)["metadata"]["uid"] == finished
    assert trials(done) == ["Succeeded"] * 3


def test_a_job_whose_trials_fail_ends_with_the_reason_of_the_last_and_stops_the_others(
    cluster: Cluster, namespace: str, run_operator: RunOperator, env: dict[str, str]
) -> None:
    run_operator(env=env).wait_ready()
    diverged = End(exit_code=1, words=LastWords(reason=Reason.LOSS_DIVERGED, message="the loss is NaN"))
    with play(cluster, ends(trial_0=diverged, trial_1=None), namespace=namespace):
        cluster.create(tuned(namespace, parallelism=2, maxFailed=0))
        failed = wait_for_end(cluster, namespace)
        cluster.wait_gone("Job", "demo-trial-1", namespace)

    told = condition(failed, "Failed")
    assert told["reason"] == "LossDiverged"
    assert told["message"].startswith("tune: 1 of 3 trials failed, more than spec.tuning.maxFailed (0)")
    assert has_ended(failed)
    assert "demo-train" not in names(cluster, "Job", namespace)


def test_numbers_that_a_field_cannot_have_are_refused_before_anything_is_brought(
    cluster: Cluster, namespace: str, run_operator: RunOperator, env: dict[str, str]
) -> None:
    run_operator(env=env).wait_ready()
    cluster.create(tuned(namespace, parameters=[RANKS | {"values": [4, 8.5]}]))

    refused = wait_for_end(cluster, namespace)

    assert condition(refused, "Accepted")["message"].startswith(
        "spec.tuning.parameters[0] (method.rank): rank cannot be 8.5"
    )
    assert names(cluster, "Job", namespace) == set()


def test_a_claim_that_is_deleted_between_trials_keeps_none_of_the_others_waiting(
    cluster: Cluster, namespace: str, run_operator: RunOperator, env: dict[str, str]
) -> None:
    run_operator(env=env).wait_ready()
    with play(cluster, ends(trial_1=None), namespace=namespace):
        cluster.create(tuned(namespace))
        cluster.wait_for_object(
            "FineTuningJob", "demo", namespace, where=lambda found: trials(found)[1:2] == ["Running"]
        )
    claim = cluster.get("PersistentVolumeClaim", "demo-adapter", namespace)
    cluster.delete(claim)

    with play(cluster, ends(), namespace=namespace):
        done = wait_for_end(cluster, namespace)

    assert trials(done) == ["Succeeded"] * 3
    assert (
        cluster.get("PersistentVolumeClaim", "demo-adapter", namespace)["metadata"]["uid"] != claim["metadata"]["uid"]
    )
