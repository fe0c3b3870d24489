"""InferenceServers: what they wait for, what they run, what they refuse, and what a job keeps of its own."""

from datetime import datetime, timedelta
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
    InferenceServerStatus,
    ServerVariant,
)
from finetuning_api.metrics import EvaluationRow, GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import (
    AdapterInput,
    CanaryInput,
    EvaluateResult,
    JobIdentity,
    LastWords,
    ModelInput,
    Provenance,
    ServeConfig,
)
from finetuning_api.scaling import DisruptionSpec
from finetuning_operator.reconcile import reconcile
from finetuning_operator.reconcile.conditions import find_condition
from finetuning_operator.reconcile.labels import WAKE
from finetuning_operator.reconcile.plan import ClaimMount, Observed, Server, ServerState, Settings, StepPhase, StepState

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


def world(
    resource: InferenceServer,
    *,
    with_job: bool = True,
    settings: Settings | None = None,
    **of_job: Any,  # noqa: ANN401
) -> World:
    """A server whose model is there, and a job that is about to be preflighted."""
    made = World(settings or Settings())
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
            disruption=DisruptionSpec(max_unavailable=1),
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
    assert found.reason == (None if phase == "Ready" else reason)
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


def test_a_canary_is_told_by_the_names_that_are_served() -> None:
    adapters = [*FROM_JOB, {"name": "former", "claim": {"claimName": "old", "path": "a"}}]
    made = world(server(adapters=adapters, canary={"name": "live", "adapter": "triage", "weight": 5}))
    complete(made)
    (beside_base,) = made.plans[KEY].servers
    canary = {"name": "live", "adapter": "triage", "stable": "former", "weight": 5}
    made.add(server(adapters=adapters, canary=canary))
    made.settle()
    (beside_former,) = made.plans[KEY].servers

    assert isinstance(beside_base.config, ServeConfig)
    assert isinstance(beside_former.config, ServeConfig)
    assert beside_base.config.canary == CanaryInput(name="live", stable="acme/tiny", adapter="triage", weight=5)
    assert beside_former.config.canary == CanaryInput(name="live", stable="former", adapter="triage", weight=5)


def test_the_base_model_gives_its_name_to_a_canary() -> None:
    bucket = {"source": "s3://models/tiny"}
    canary = {"name": "chat", "adapter": "triage", "weight": 5}
    adapters = [{"name": "triage", "claim": {"claimName": "old", "path": "a"}}]
    made = world(server(model=bucket, adapters=adapters, canary=canary))
    (found,) = made.plans[KEY].servers

    assert isinstance(found.config, ServeConfig)
    assert found.config.served_name == "base"
    assert found.config.canary == CanaryInput(name="chat", stable="base", adapter="triage", weight=5)


AWAITED = [{"name": "triage", "jobRef": "demo", "awaited": True}]


def test_awaited_adapter_is_mounted_before_it_is_there_and_nothing_changes_when_it_is() -> None:
    made = world(server(adapters=AWAITED))
    made.answer("chat")
    (before,), waiting = made.plans[KEY].servers, told(made)
    complete(made)
    (after,), served = made.plans[KEY].servers, told(made)

    assert before == after
    assert isinstance(after.config, ServeConfig)
    assert after.config.adapters == (
        AdapterInput(name="triage", path="/volumes/demo-adapter/adapter", digest=None, awaited=True),
    )
    assert ClaimMount("demo-adapter", "/volumes/demo-adapter") in after.mounts
    assert (waiting.status, waiting.message) == (
        ConditionStatus.TRUE,
        "1 of 1 replicas answer; triage follows from FineTuningJob demo",
    )
    assert served.message == "1 of 1 replicas answer"


def test_adapter_is_awaited_once_its_volume_is_about_to_be_made() -> None:
    made = world(server(adapters=AWAITED), suspend=True)

    assert (told(made).reason, told(made).message) == (Reason.WAITING, "waits for FineTuningJob demo (Suspended)")
    assert made.plans[KEY].servers == ()


def test_awaited_adapter_of_a_failed_job_is_told_and_the_base_goes_on_answering() -> None:
    made = world(server(adapters=AWAITED))
    made.answer("chat")
    made.finish(JOB, "preflight", failed())

    assert told(made).status is ConditionStatus.TRUE
    assert len(made.plans[KEY].servers) == 1
    assert current(made).status.warnings == [
        "adapter triage will not be served: FineTuningJob demo failed: preflight: no route. Wait."
    ]


def test_adapter_that_missed_its_gate_is_not_rolled_out() -> None:
    made = served(Verdict.FAIL)
    made.add(server(adapters=FROM_JOB))
    made.settle()

    assert made.plans[KEY].servers == ()
    assert (told(made).reason, told(made).message) == (
        Reason.GATE_FAILED,
        (
            "spec.adapters[0].jobRef: FineTuningJob demo did not pass its gate. To serve it all the same name its"
            " claim: demo-adapter, path adapter"
        ),
    )


def test_former_adapter_is_served_until_the_new_one_passed() -> None:
    made = complete(world(server(adapters=FROM_JOB)))
    made.answer("chat")
    edit(made, adapters=[{"name": "triage", "jobRef": "later"}])

    assert (made.plans[KEY].servers, made.plans[KEY].kept_servers) == ((), ("chat",))
    assert current(made).status.phase is InferenceServerPhase.DEGRADED


def test_tokens_are_read_from_a_folder() -> None:
    made = world(server(authSecretRef={"name": "tokens"}))
    (found,) = made.plans[KEY].servers

    assert found.auth_secret == "tokens"
    assert isinstance(found.config, ServeConfig)
    assert found.config.tokens_path == "/var/run/secrets/finetuning.dev/tokens"


BY_LOAD = {"minReplicas": 2, "maxReplicas": 5, "targetRequestsInFlight": 4}


@pytest.mark.parametrize(
    ("state", "phase", "message"),
    [
        (ServerState(), "Pending", "0 of 2 replicas answer; the newest description is not everywhere yet"),
        (ServerState(4, 4, wanted=4, current=True), "Ready", "4 of 4 replicas answer"),
        (ServerState(0, 0, wanted=0, current=True), "Pending", "autoscaling sees no need of any replica: nothing"),
    ],
)
def test_scaled_server_is_as_many_as_the_autoscaler_wants(state: ServerState, phase: str, message: str) -> None:
    made = world(server(autoscaling=BY_LOAD))
    made.servers[KEY] = {"chat": state}
    made.settle()
    (found,) = made.plans[KEY].servers

    assert (current(made).status.phase, found.replicas) == (phase, None)
    assert told(made).message.startswith(message)
    assert found.disruption == DisruptionSpec(max_unavailable=1)


def test_scaled_server_can_be_switched_off() -> None:
    made = world(server(autoscaling=BY_LOAD, replicas=0))

    assert [each.replicas for each in made.plans[KEY].servers] == [0]
    assert told(made).message == "spec.replicas is 0: nothing answers"


def idle_for(made: World, seconds: int) -> None:
    """Have the replica of a server answer nobody for a time."""
    since = made.now - timedelta(seconds=seconds)
    made.servers[KEY] = {"chat": ServerState(1, 1, wanted=1, current=True, idle_since=since)}
    made.apply(KEY)
    made.apply(KEY)


def described(made: World) -> list[int | None]:
    return [each.replicas for each in made.plans[KEY].servers]


def test_server_that_nobody_asks_is_shut_down_in_time_and_says_how_it_is_woken() -> None:
    made = world(server(idleShutdownMinutes=30))
    idle_for(made, 1790)
    before, left = described(made), made.plans[KEY].requeue_after
    idle_for(made, 1800)

    assert (before, left) == ([1], 10)
    assert (described(made), made.plans[KEY].requeue_after) == ([0], None)
    assert (told(made).reason, told(made).message) == (
        Reason.SUSPENDED,
        (
            "no request for 30 min: nothing answers. Wake it: kubectl annotate infs chat -n team --overwrite"
            ' finetuning.dev/wake="$(date)"'
        ),
    )
    assert current(made).status.url == "http://chat.team.svc:8000"


def test_the_pods_of_an_idle_server_go_when_its_status_tells_of_it_and_not_before() -> None:
    made = world(server(idleShutdownMinutes=30))
    since = made.now - timedelta(seconds=1800)
    made.servers[KEY] = {"chat": ServerState(1, 1, wanted=1, current=True, idle_since=since)}
    made.apply(KEY)
    decided, status = described(made), current(made).status.idle
    made.servers[KEY] = {"chat": ServerState(1, 0, wanted=0, current=True)}
    made.apply(KEY)

    assert (decided, described(made)) == ([1], [0])
    assert status is not None
    assert current(made).status.idle == status


def test_server_that_was_shut_down_stays_so_until_it_is_woken_by_hand_or_changed() -> None:
    made = world(server(idleShutdownMinutes=30))
    idle_for(made, 1800)
    made.servers[KEY] = {"chat": ServerState(wanted=0, current=True)}
    made.settle()
    asleep = described(made)
    old = current(made)
    made.add(old.model_copy(update={"metadata": old.metadata.model_copy(update={"annotations": {WAKE: "now"}})}))
    made.settle()
    woken, status = described(made), current(made).status.idle
    idle_for(made, 1800)
    again = described(made)
    edit(made, idleShutdownMinutes=60)

    assert (asleep, woken, status, again, described(made)) == ([0], [1], None, [0], [1])


def test_server_that_was_shut_down_runs_again_when_it_is_asked_and_not_for_what_was_asked_before() -> None:
    made = world(server(idleShutdownMinutes=30), settings=Settings(wake_by_request=True))
    idle_for(made, 1800)
    shut = current(made).status.idle
    assert shut is not None
    message = told(made).message

    def asked(at: datetime) -> list[int | None]:
        made.servers[KEY] = {"chat": ServerState(wanted=0, current=True, asked_at=at)}
        made.settle()
        return described(made)

    assert message == "no request for 30 min: nothing answers. The next request starts it"
    assert asked(shut.since - timedelta(seconds=1)) == [0]
    assert asked(shut.since + timedelta(seconds=1)) == [1]
    assert current(made).status.idle is None


def test_operator_answers_for_a_server_without_replicas_that_can_be_shut_down_when_idle() -> None:
    def doorway(*, ready: int, wake: bool = True, **spec: Any) -> bool:  # noqa: ANN401  (fields of many types)
        made = world(server(**spec), settings=Settings(wake_by_request=wake))
        made.servers[KEY] = {"chat": ServerState(ready, ready, current=True)}
        made.settle()
        return made.plans[KEY].servers[0].doorway

    assert doorway(ready=0, idleShutdownMinutes=30)
    assert not doorway(ready=1, idleShutdownMinutes=30)
    assert not doorway(ready=0)
    assert not doorway(ready=0, idleShutdownMinutes=30, replicas=0)
    assert not doorway(ready=0, idleShutdownMinutes=30, wake=False)


def test_scaled_server_that_was_shut_down_is_nobodys_to_scale() -> None:
    made = world(server(idleShutdownMinutes=30, autoscaling=BY_LOAD))
    before = described(made)
    idle_for(made, 1800)

    assert (before, described(made)) == ([None], [0])


def test_drains_leave_what_was_asked_for() -> None:
    one, asked = world(server()), world(server(disruption={"minAvailable": 1}))

    assert [each.disruption for each in one.plans[KEY].servers] == [None]
    assert [each.disruption for each in asked.plans[KEY].servers] == [DisruptionSpec(min_available=1)]


@pytest.mark.parametrize(
    ("settings", "spec", "url", "warnings"),
    [
        (Settings(serving_domain="ai.example.org"), {}, "", []),
        (
            Settings(serving_domain="ai.example.org"),
            {"expose": True, "authSecretRef": {"name": "tokens"}},
            "https://chat.team.ai.example.org",
            [],
        ),
        (
            Settings(serving_domain="ai.example.org", serving_scheme="http"),
            {"expose": True},
            "http://chat.team.ai.example.org",
            ["spec.expose: everybody who reaches the address may ask; set spec.authSecretRef"],
        ),
        (
            Settings(),
            {"expose": True},
            "",
            ["spec.expose: this installation has no domain for servers (FINETUNING_SERVING_DOMAIN)"],
        ),
    ],
)
def test_server_answers_outside_where_it_is_asked_to_and_the_installation_has_a_domain(
    settings: Settings, spec: dict[str, Any], url: str, warnings: list[str]
) -> None:
    made = World(settings)
    made.add(server(**spec))
    made.settle()
    made.finish_relocations()
    found = current(made).status

    assert (found.external_url, found.warnings) == (url, warnings)
    assert [each.host for each in made.plans[KEY].servers] == [url.partition("://")[2] or None]
    assert found.url == "http://chat.team.svc:8000"


def test_what_cannot_stand_beside_the_server_is_a_warning() -> None:
    made = World(Settings(serving_domain="ai.example.org"))
    made.add(server(expose=True, authSecretRef={"name": "tokens"}))
    made.settle()
    made.finish_relocations()
    words = LastWords(reason=Reason.UNSUPPORTED, message="this cluster knows no httproutes", hint="Install them.")
    observed = Observed(
        resources=dict(made.objects),
        servers={"chat": ServerState(1, 1, wanted=1, current=True, revision=3)},
        hindrances={("HTTPRoute", "chat"): words},
    )

    plan = reconcile(current(made), observed=observed, now=made.now, settings=made.settings)

    assert isinstance(plan.status, InferenceServerStatus)
    assert plan.status.warnings == ["HTTPRoute chat: this cluster knows no httproutes. Install them."]
    assert (plan.status.external_url, plan.status.revision) == ("", 3)
    assert plan.status.phase is InferenceServerPhase.READY


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
    waiting = (current(made).status.phase, told(made).reason)
    left_alone = (made.plans[KEY].servers, made.plans[KEY].kept_servers)
    edit(made, adapters=FROM_JOB)

    assert waiting == (InferenceServerPhase.DEGRADED, Reason.WAITING)
    assert left_alone == ((), ("chat",))
    assert told(made, ConditionType.ACCEPTED).status is ConditionStatus.FALSE
    assert (made.plans[KEY].servers, made.plans[KEY].kept_servers) == ((), ("chat",))
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


EARLY = {"replicas": 1, "afterGate": False}


def early(**of_job: Any) -> World:  # noqa: ANN401
    """A job that serves before its gate, with its inputs there."""
    made = World()
    standard: dict[str, Any] = {"serving": EARLY, "evaluation": {"enabled": False}}
    made.add(job(**(standard | of_job)))
    made.settle()
    assert made.server() is None
    made.finish_relocations()
    return made


def test_server_that_need_not_wait_for_the_gate_starts_with_the_model_and_never_changes() -> None:
    made = early()
    made.answer()
    key = ("InferenceServer", "demo")
    (before,), serving = made.plans[key].servers, made.holds(ConditionType.SERVING)
    url = made.job().status.serving
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    (after,) = made.plans[key].servers

    assert serving
    assert url == ServingStatus(url="http://demo.default.svc:8000", replicas=1)
    assert before == after
    assert isinstance(after.config, ServeConfig)
    assert after.config.adapters == (
        AdapterInput(name="demo", path="/volumes/demo-adapter/adapter", digest=None, awaited=True),
    )
    assert made.holds(ConditionType.COMPLETE)
    assert made.holds(ConditionType.SERVING)


def test_server_of_a_job_has_the_resources_and_tokens_that_serving_names() -> None:
    serving = EARLY | {"resources": {"limits": {"cpu": "2"}}, "authSecretRef": {"name": "tokens"}, "expose": True}
    found = early(serving=serving, resources={"limits": {"nvidia.com/gpu": "1"}}).server()

    assert found is not None
    assert found.spec.resources.limits == {"cpu": "2"}
    assert found.spec.auth_secret_ref is not None
    assert (found.spec.auth_secret_ref.name, found.spec.expose) == ("tokens", True)


def test_early_server_of_a_job_that_fails_before_it_trained_is_left_without_pods() -> None:
    made = early()
    made.answer()
    made.finish(JOB, "preflight", failed())
    stopped = replicas(made)
    condition = find_condition(made.job().status.conditions, ConditionType.SERVING)

    assert made.holds(ConditionType.FAILED)
    assert (stopped, replicas(made)) == (0, 0)
    assert condition is not None
    assert (condition.status, condition.message) == (
        ConditionStatus.FALSE,
        "the job failed before it had anything to serve",
    )


def test_early_server_goes_on_when_the_evaluation_fails() -> None:
    made = early(evaluation={"metrics": ["perplexity"]})
    made.answer()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    made.finish(("EvaluationJob", "demo-evaluation"), "evaluate", failed())

    assert made.holds(ConditionType.FAILED)
    assert made.holds(ConditionType.SERVING)
    assert replicas(made) == 1


def test_whole_model_is_served_when_it_is_there() -> None:
    made = early(method={"type": "full"})
    assert made.server() is None
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")

    found = made.server()
    assert found is not None
    assert (found.spec.adapters, found.spec.model.source) == ([], "pvc://demo-adapter/adapter")


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
