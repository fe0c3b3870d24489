"""InferenceServers: what they wait for, what they run, what they refuse, and what a job keeps of its own."""

from typing import Any

import pytest
from tests.support.objects import DIGEST, World, failed, job

from finetuning_api.base import Condition, ConditionStatus, ConditionType, ObjectMeta, StageState
from finetuning_api.finetuningjob import ServingStatus
from finetuning_api.inferenceserver import (
    HealthCheck,
    InferenceServer,
    InferenceServerPhase,
    InferenceServerSpec,
    ServerVariant,
)
from finetuning_api.metrics import EvaluationRow, GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import (
    AdapterInput,
    EvaluateResult,
    JobIdentity,
    LastWords,
    ModelInput,
    Provenance,
    ServeConfig,
)
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.plan import ClaimMount, Server, ServerState, Settings, StepPhase, StepState

KEY = ("InferenceServer", "chat")
JOB = ("FineTuningJob", "demo")
MODEL = {"source": "hf://acme/tiny", "revision": "v1"}
FROM_JOB = [{"name": "triage", "jobRef": "demo"}]
ADAPTER_DIGEST = f"sha256:{'c' * 64}"
FULL = LastWords(reason=Reason.UNSCHEDULABLE, message="0/3 nodes have a free nvidia.com/gpu", hint="Free one.")


def server(**spec: Any) -> InferenceServer:  # noqa: ANN401  (fields of many types)
    return InferenceServer(
        metadata=ObjectMeta(name="chat", namespace="team", uid="uid-s"),
        spec=InferenceServerSpec.model_validate({"model": MODEL} | spec),
    )


def world(resource: InferenceServer, *, with_job: bool = True, **of_job: Any) -> World:  # noqa: ANN401
    """A server whose model is there, and a job that is about to be preflighted."""
    made = World()
    made.add(resource)
    if with_job:
        made.add(job(evaluation={"enabled": False}, **of_job))
    made.settle()
    made.finish_relocations()
    return made


def complete(made: World) -> World:
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    return made


def current(made: World) -> InferenceServer:
    found = made.server("chat")
    assert found is not None
    return found


def told(made: World, condition: ConditionType = ConditionType.READY) -> Condition:
    found = find_condition(current(made).status.conditions, condition)
    assert found is not None
    return found


def edit(made: World, **spec: Any) -> None:  # noqa: ANN401
    """Change the server as a user would."""
    old = current(made)
    fields = {"metadata": old.metadata.model_copy(update={"generation": old.metadata.generation + 1})}
    made.add(old.model_copy(update=fields | {"spec": server(**spec).spec}))
    made.settle()


def test_server_relocates_its_model_and_runs_replicas_behind_its_address() -> None:
    made = World()
    made.add(server(replicas=2, port=8080, resources={"limits": {"nvidia.com/gpu": "1"}}))
    made.settle()
    before = current(made).status
    made.finish_relocations()
    (model,) = (name for kind, name in made.objects if kind == "Relocation")
    path = f"/volumes/{model}/artifact"
    provenance = Provenance(source="hf://acme/tiny", resolved_revision="c0ffee", digest=DIGEST)

    assert (before.phase, before.url) == (InferenceServerPhase.PENDING, "http://chat.team.svc:8080")
    assert made.plans[KEY].servers == (
        Server(
            name="chat",
            variant=ServerVariant.BUILTIN,
            port=8080,
            replicas=2,
            health=HealthCheck(),
            config=ServeConfig(
                job=JobIdentity(kind="InferenceServer", name="chat", namespace="team", uid="uid-s"),
                model=ModelInput(
                    path=path, tokenizer_path=path, provenance=provenance, tokenizer_provenance=provenance
                ),
                served_name="acme/tiny",
                port=8080,
            ),
            model_path=path,
            model_name="acme/tiny",
            mounts=(ClaimMount(model, f"/volumes/{model}"),),
            resources=server(resources={"limits": {"nvidia.com/gpu": "1"}}).spec.resources,
        ),
    )


@pytest.mark.parametrize(
    ("state", "phase", "status", "reason", "message"),
    [
        (ServerState(), "Pending", "False", Reason.PENDING, "0 of 2 replicas answer; the newest description is not"),
        (ServerState(2, 0, current=True, hindrance=FULL), "Pending", "False", Reason.UNSCHEDULABLE, "0 of 2 replicas"),
        (ServerState(2, 1, current=True), "Degraded", "False", Reason.PENDING, "1 of 2 replicas answer"),
        (ServerState(3, 2, current=False), "Degraded", "False", Reason.PENDING, "2 of 2 replicas answer; the newest"),
        (ServerState(2, 2, current=True), "Ready", "True", Reason.SERVING, "2 of 2 replicas answer"),
    ],
)
def test_readiness_follows_the_replicas(
    state: ServerState, phase: str, status: str, reason: Reason, message: str
) -> None:
    made = world(server(replicas=2))
    made.servers[KEY] = {"chat": state}
    made.settle()

    found = current(made).status
    assert (found.phase, found.replicas, found.ready_replicas) == (phase, state.replicas, state.ready)
    assert (told(made).status, told(made).reason) == (status, reason)
    assert told(made).message.startswith(message)
    assert found.selector == "finetuning.dev/kind=InferenceServer,finetuning.dev/name=chat"


def test_server_scaled_to_nothing_does_not_claim_to_answer() -> None:
    made = world(server(replicas=0))
    made.answer("chat", replicas=0)

    assert (told(made).status, told(made).reason) == (ConditionStatus.FALSE, Reason.SUSPENDED)
    assert [each.replicas for each in made.plans[KEY].servers] == [0]


def test_adapter_of_a_job_is_waited_for_and_served() -> None:
    made = world(server(adapters=FROM_JOB))
    waiting = (told(made).reason, told(made).message, made.plans[KEY].servers)
    complete(made)
    (found,) = made.plans[KEY].servers

    assert waiting == (Reason.WAITING, "waits for FineTuningJob demo (Preparing)", ())
    assert found.adapters == (("triage", "/volumes/demo-adapter/adapter"),)
    assert ClaimMount("demo-adapter", "/volumes/demo-adapter") in found.mounts
    assert isinstance(found.config, ServeConfig)
    assert found.config.adapters == (
        AdapterInput(name="triage", path="/volumes/demo-adapter/adapter", digest=ADAPTER_DIGEST),
    )


def test_missing_job_is_waited_for() -> None:
    made = world(server(adapters=FROM_JOB), with_job=False)

    assert told(made).message == "waits for FineTuningJob demo (not there yet)"
    assert told(made, ConditionType.ACCEPTED).status is ConditionStatus.TRUE


@pytest.mark.parametrize(("claim", "digest"), [("demo-adapter", ADAPTER_DIGEST), ("mine", None)])
def test_adapter_on_a_claim_is_served_as_it_lies_there(claim: str, digest: str | None) -> None:
    made = complete(world(server(adapters=[{"name": "a", "claim": {"claimName": claim, "path": "adapter"}}])))
    config = made.plans[KEY].servers[0].config

    assert isinstance(config, ServeConfig)
    assert config.adapters == (AdapterInput(name="a", path=f"/volumes/{claim}/adapter", digest=digest),)


def test_adapter_of_a_failed_job_is_told() -> None:
    made = world(server(adapters=FROM_JOB))
    made.finish(JOB, "preflight", failed())

    assert current(made).status.phase is InferenceServerPhase.FAILED
    assert told(made).reason is Reason.DEPENDENCY_FAILED
    assert told(made).message == "spec.adapters[0].jobRef: FineTuningJob demo failed: preflight: no route. Wait."


@pytest.mark.parametrize(
    ("of_server", "of_job", "message"),
    [
        (
            {"model": {"source": "hf://acme/other"}},
            {},
            "FineTuningJob demo tunes hf://acme/tiny@v1, not hf://acme/other; its adapter fits no other model",
        ),
        (
            {},
            {"method": {"type": "full"}},
            (
                "FineTuningJob demo tunes all weights and makes a model, no adapter. Create an InferenceServer without"
                " it whose spec.model.source is its claim"
            ),
        ),
        (
            {},
            {"tokenizer": {"source": "hf://acme/words"}},
            (
                "FineTuningJob demo trained with the tokenizer hf://acme/words. Set spec.tokenizer.source to"
                " hf://acme/words"
            ),
        ),
    ],
)
def test_adapter_that_does_not_fit_is_refused_before_it_is_there(
    of_server: dict[str, Any], of_job: dict[str, Any], message: str
) -> None:
    made = world(server(adapters=FROM_JOB, **of_server), **of_job)

    accepted = told(made, ConditionType.ACCEPTED)
    assert (accepted.status, accepted.reason) == (ConditionStatus.FALSE, Reason.INVALID_SPEC)
    assert accepted.message == told(made).message == f"spec.adapters[0].jobRef: {message}"
    assert current(made).status.phase is InferenceServerPhase.FAILED
    assert made.plans[KEY].servers == ()


def test_same_source_with_other_bytes_is_another_model() -> None:
    made = World()
    made.add(server(model={"source": "hf://acme/tiny", "revision": "v2"}, adapters=FROM_JOB))
    made.add(job(evaluation={"enabled": False}))
    made.settle()
    made.finish_relocations()
    complete(made)
    same = made.plans[KEY].servers
    key = next(key for key, each in made.objects.items() if isinstance(each, Relocation) and each.spec.revision == "v2")
    other = made.objects[key]
    assert isinstance(other, Relocation)
    assert other.status.artifact is not None
    artifact = other.status.artifact.model_copy(update={"digest": f"sha256:{'d' * 64}"})
    made.add(other.model_copy(update={"status": other.status.model_copy(update={"artifact": artifact})}))
    made.settle()

    assert len(same) == 1
    assert made.plans[KEY].servers == ()
    assert "tunes hf://acme/tiny@v1, not hf://acme/tiny@v2" in told(made).message


def test_running_replicas_are_kept_while_a_changed_specification_waits_or_is_refused() -> None:
    made = world(server(), method={"type": "full"})
    made.answer("chat")
    edit(made, adapters=[{"name": "later", "jobRef": "unknown"}])
    waiting = (current(made).status.phase, told(made).reason, len(made.plans[KEY].servers))
    edit(made, adapters=FROM_JOB)

    assert waiting == (InferenceServerPhase.DEGRADED, Reason.WAITING, 1)
    assert told(made, ConditionType.ACCEPTED).status is ConditionStatus.FALSE
    assert [each.adapters for each in made.plans[KEY].servers] == [()]
    edit(made)
    assert told(made, ConditionType.ACCEPTED).status is ConditionStatus.TRUE
    assert current(made).status.phase is InferenceServerPhase.READY
    assert current(made).status.observed_generation == 4


def test_failed_relocation_of_the_model_is_told() -> None:
    made = World()
    made.add(server())
    made.settle()
    key = next(key for key in made.objects if key[0] == "Relocation")
    made.finish(key, "measure", failed())

    assert current(made).status.phase is InferenceServerPhase.FAILED
    assert (told(made).reason, told(made).message) == (
        Reason.NETWORK_UNREACHABLE,
        "model: measure: no route. Wait.",
    )


def test_path_of_one_machine_is_refused() -> None:
    made = world(server(model={"source": "/models/tiny"}), with_job=False)

    assert told(made, ConditionType.ACCEPTED).message == (
        "spec.model.source '/models/tiny' is a path of one machine; a cluster cannot read it: upload it and name it by"
        " s3:// gs:// hf:// https:// oci:// or pvc://, or put it into a ConfigMap"
    )
    assert made.plans[KEY].children == ()


def test_one_machine_runs_no_server() -> None:
    made = World(Settings(local=True))
    made.add(server())
    made.settle()

    assert current(made).status == server().status


@pytest.mark.parametrize(
    ("variant", "more"),
    [("vllm", {}), ("nim", {}), ("command", {"command": ["serve", "--all"]})],
)
def test_other_programs_are_told_the_same_places(variant: str, more: dict[str, Any]) -> None:
    spec = {"variant": variant, "image": "registry/serve:1", "authSecretRef": {"name": "tokens"}} | more
    made = complete(world(server(adapters=FROM_JOB, env=[{"name": "A", "value": "1"}], **spec)))
    (found,) = made.plans[KEY].servers

    assert (found.variant, found.image, found.config) == (variant, "registry/serve:1", None)
    assert found.command == tuple(more.get("command", ()))
    assert (found.model_name, found.adapters) == ("acme/tiny", (("triage", "/volumes/demo-adapter/adapter"),))
    assert found.model_path.endswith("/artifact")
    assert ([each.name for each in found.env], found.auth_secret) == (["A"], "tokens")


@pytest.mark.parametrize(
    ("source", "adapters", "expected"),
    [
        ("hf://acme/tiny", [], "acme/tiny"),
        ("s3://bucket/tiny", [], "chat"),
        ("s3://bucket/tiny", ["chat"], "base"),
        ("s3://bucket/tiny", ["chat", "base"], "chat-base"),
    ],
)
def test_base_model_has_a_name_that_no_adapter_has(source: str, adapters: list[str], expected: str) -> None:
    places = [{"name": name, "claim": {"claimName": "mine", "path": name}} for name in adapters]
    made = world(server(model={"source": source}, adapters=places), with_job=False)

    assert [each.model_name for each in made.plans[KEY].servers] == [expected]


# What a FineTuningJob serves


def served(verdict: Verdict | None = Verdict.PASS, **serving: Any) -> World:  # noqa: ANN401
    """A job that was evaluated and is about to be served."""
    made = World()
    gate = [{"metric": "exact-match", "minDelta": 0.1}]
    made.add(job(serving=serving, evaluation={"metrics": ["exact-match"], "gate": gate}))
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    gates = (GateResult(metric=Metric.EXACT_MATCH, verdict=verdict, message="why"),) if verdict else ()
    rows = (EvaluationRow(metric=Metric.EXACT_MATCH, base=0.1, tuned=0.2),)
    words = LastWords(reason=Reason.SUCCEEDED, result=EvaluateResult(rows=rows, gates=gates, verdict=verdict))
    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate", StepState(StepPhase.SUCCEEDED, last_words=words))
    return made


def test_job_is_complete_when_its_server_answers_and_tells_the_address() -> None:
    made = served(replicas=2)
    waiting = (made.job().status.stages[-1].state, made.holds(ConditionType.COMPLETE))
    made.answer(replicas=2)

    assert waiting == (StageState.PENDING, False)
    assert made.holds(ConditionType.SERVING)
    assert made.holds(ConditionType.COMPLETE)
    assert made.job().status.serving == ServingStatus(url="http://demo.default.svc:8000", replicas=2)


def test_what_keeps_the_server_from_answering_is_told_of_the_job() -> None:
    made = served(replicas=1)
    made.servers["InferenceServer", "demo"] = {"demo": ServerState(1, 0, current=True, hindrance=FULL)}
    made.settle()
    condition = find_condition(made.job().status.conditions, ConditionType.SERVING)

    assert condition is not None
    assert (condition.reason, condition.message) == (
        Reason.UNSCHEDULABLE,
        "0 of 1 replicas answer. 0/3 nodes have a free nvidia.com/gpu. Free one.",
    )


def replicas(made: World) -> int:
    found = made.server()
    assert found is not None
    return found.spec.replicas


def ask(made: World, count: int) -> None:
    spec = made.job().spec
    assert spec.serving is not None
    serving = spec.serving.model_copy(update={"replicas": count})
    made.add(made.job().model_copy(update={"spec": spec.model_copy(update={"serving": serving})}))
    made.settle()


def test_server_of_a_finished_job_follows_what_the_job_asks_for_and_is_left_to_an_autoscaler() -> None:
    made = served(replicas=1)
    made.answer()
    ask(made, 3)
    asked = replicas(made)
    found = made.server()
    assert found is not None
    made.add(found.model_copy(update={"spec": found.spec.model_copy(update={"replicas": 7})}))
    made.settle()
    scaled = replicas(made)
    ask(made, 2)

    assert (asked, scaled, replicas(made)) == (3, 7, 2)
    assert made.plans[JOB].steps == ()


def test_finished_job_makes_its_server_again_but_runs_nothing_else() -> None:
    made = served(replicas=1)
    made.answer()
    before = made.job()
    made.steps.clear()
    made.servers.clear()
    made.objects = {JOB: before}
    made.settle()

    assert made.job().status == before.status
    assert {key[0] for key in made.objects} == {"FineTuningJob", "InferenceServer", "Relocation"}
    assert replicas(made) == 1
    assert made.plans[JOB].steps == ()


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(Verdict.FAIL, Reason.GATE_FAILED), (Verdict.INCONCLUSIVE, Reason.GATE_INCONCLUSIVE)],
)
def test_what_did_not_pass_the_gate_is_served_only_where_that_was_asked_for(verdict: Verdict, reason: Reason) -> None:
    gated, ungated = served(verdict, replicas=1), served(verdict, replicas=1, afterGate=False)
    condition = find_condition(gated.job().status.conditions, ConditionType.SERVING)

    assert condition is not None
    assert (condition.status, condition.reason) == (ConditionStatus.FALSE, reason)
    assert gated.job().status.stages[-1].state is StageState.SKIPPED
    assert gated.holds(ConditionType.COMPLETE)
    assert gated.server() is None
    assert ungated.server() is not None


def test_object_of_the_right_name_that_is_not_the_jobs_own_is_not_taken_for_its_server() -> None:
    made = World()
    foreign = server().model_copy(update={"metadata": ObjectMeta(name="demo")})
    made.add(job(serving={"replicas": 1, "afterGate": False}, evaluation={"enabled": False}))
    made.add(foreign)
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    made.answer()

    assert not made.holds(ConditionType.SERVING)
