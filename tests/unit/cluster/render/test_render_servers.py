"""Servers: what each variant is told, when a replica counts, and where clients find it."""

import subprocess
import sys
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support.loopback import Answer, LoopbackServer
from tests.support.plans import BASE, SERVE, pod, resources, server, server_owner
from tests.unit.cluster.render.manifests import container, environment, mounted, pod_spec, serve

from finetuning_api.finetuningjob import EnvVar
from finetuning_api.inferenceserver import HealthCheck, ServerVariant
from finetuning_operator.reconcile import labels
from finetuning_operator.reconcile.names import server_url
from finetuning_operator.reconcile.plan import ImageRole

COMMAND = server(ServerVariant.COMMAND, image="mine:1", command=("serve", "--fast"))
VLLM = server(ServerVariant.VLLM, image="vllm:1")
NIM = server(ServerVariant.NIM, image="nim:1")
SELECTOR = {"finetuning.dev/kind": "InferenceServer", "finetuning.dev/name": "chat"}


def looked_up(manifests: tuple[dict[str, Any], ...]) -> dict[str, object]:
    return {each["name"]: each["valueFrom"] for each in container(manifests)["env"] if "valueFrom" in each}


def test_replicas_stand_behind_one_name_and_answer_before_old_ones_end() -> None:
    deployment, service = serve(server())

    assert deployment["metadata"]["name"] == service["metadata"]["name"] == "chat"
    assert {name: value for name, value in deployment["spec"].items() if name != "template"} == {
        "replicas": 2,
        "selector": {"matchLabels": SELECTOR},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": 3600,
        "revisionHistoryLimit": 2,
    }
    assert service["spec"] == {
        "selector": SELECTOR,
        "ports": [{"name": "http", "port": 8000, "targetPort": "http", "protocol": "TCP"}],
    }
    assert SELECTOR.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert server_url("chat", namespace="team-a", port=8000) == "http://chat.team-a.svc:8000"


def test_the_selector_is_the_one_that_the_scale_subresource_tells() -> None:
    owner = server_owner()
    told = labels.selector(owner.kind, owner.metadata.name)
    assert dict(pair.split("=") for pair in told.split(",")) == SELECTOR


def test_our_own_server_gets_a_run_config_and_reports_to_nobody() -> None:
    manifests = serve(server(config=SERVE))

    assert container(manifests)["image"] == "images.example/finetuning-server:1"
    assert "/etc/finetuning" in mounted(manifests)
    assert not [name for name in environment(manifests) if name.startswith("KUBEFLOW_")]
    labels_of_pod = manifests[0]["spec"]["template"]["metadata"]["labels"]
    assert labels_of_pod["finetuning.dev/network"] == "serving"


def test_our_own_server_sees_its_tokens_as_files_that_kubernetes_exchanges() -> None:
    manifests = serve(server(config=SERVE, auth_secret="tokens"))

    assert mounted(manifests)["/var/run/secrets/finetuning.dev/tokens"] == (
        {"secret": {"secretName": "tokens", "defaultMode": 0o440, "optional": False}},
        True,
    )
    assert "envFrom" not in container(manifests)
    assert "/var/run/secrets/finetuning.dev/tokens" not in mounted(serve(server(config=SERVE)))


def test_a_command_gets_its_secret_as_variables() -> None:
    secret = {"prefix": "SERVING_SECRET_", "secretRef": {"name": "tokens", "optional": False}}
    assert container(serve(replace(COMMAND, auth_secret="tokens")))["envFrom"] == [secret]


def test_commands_before_the_server_have_its_image_volumes_and_environment() -> None:
    wanted = replace(COMMAND, pre_start=(("prepare", "--all"), ("check",)), auth_secret="tokens")
    first, second = pod_spec(serve(wanted))["initContainers"]
    program = container(serve(wanted))

    assert (first["name"], first["command"]) == ("pre-start-0", ["prepare", "--all"])
    assert (second["name"], second["command"]) == ("pre-start-1", ["check"])
    shared = ("image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "resources", "securityContext")
    assert {name: first[name] for name in shared} == {name: program[name] for name in shared}
    assert not {"ports", "lifecycle", "args"} & first.keys()
    assert not [name for name in first if name.endswith("Probe")]


def test_replicas_of_a_scaled_server_are_nothing_that_is_described() -> None:
    assert "replicas" not in serve(server(replicas=None))[0]["spec"]
    assert serve(server(replicas=0))[0]["spec"]["replicas"] == 0


def test_former_revisions_are_kept_as_asked_and_a_rollout_has_twice_the_time_to_load() -> None:
    spec = serve(server(former_revisions=7, health=HealthCheck(startup_seconds=60)))[0]["spec"]
    assert (spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (7, 120)


def test_a_command_is_told_what_to_serve() -> None:
    manifests = serve(COMMAND)
    variables = environment(manifests)

    assert container(manifests)["command"] == ["serve", "--fast"]
    assert container(manifests)["image"] == "mine:1"
    assert {name: variables[name] for name in ("MODEL_NAME", "MODEL_PATH", "MODEL_ADAPTERS", "PORT")} == {
        "MODEL_NAME": "acme/tiny",
        "MODEL_PATH": "/volumes/reloc-base/artifact",
        "MODEL_ADAPTERS": "triage=/volumes/demo-adapter/adapter",
        "PORT": "8000",
    }


def test_vllm_serves_the_model_and_every_adapter_by_name() -> None:
    manifests = serve(VLLM)

    assert container(manifests)["command"] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert container(manifests)["args"] == [
        "--model",
        "/volumes/reloc-base/artifact",
        "--served-model-name",
        "acme/tiny",
        "--port",
        "8000",
        "--enable-lora",
        "--lora-modules",
        "triage=/volumes/demo-adapter/adapter",
    ]
    assert looked_up(manifests) == {}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"limits": {"nvidia.com/gpu": "4", "memory": "8Gi"}}, ["--tensor-parallel-size", "4"]),
        ({"requests": {"amd.com/gpu": "2"}}, ["--tensor-parallel-size", "2"]),
        ({"limits": {"nvidia.com/gpu": "1"}}, []),
        ({"limits": {"cpu": "8", "hugepages-2Mi": "512"}}, []),
    ],
)
def test_vllm_spreads_a_model_over_the_accelerators_of_any_vendor(
    wanted: dict[str, dict[str, str]], expected: list[str]
) -> None:
    arguments = container(serve(server(ServerVariant.VLLM, adapters=(), resources=resources(**wanted))))["args"]
    assert arguments[6:] == expected


def test_keys_of_vllm_and_nim_are_looked_up_by_kubernetes() -> None:
    vllm = serve(server(ServerVariant.VLLM, auth_secret="tokens"))
    nim = serve(server(ServerVariant.NIM, auth_secret="ngc"))

    assert looked_up(vllm) == {"VLLM_API_KEY": {"secretKeyRef": {"name": "tokens", "key": "token"}}}
    assert looked_up(nim) == {"NGC_API_KEY": {"secretKeyRef": {"name": "ngc", "key": "NGC_API_KEY"}}}


def test_nim_finds_adapters_in_one_folder_and_has_a_cache() -> None:
    manifests = serve(NIM)
    variables, volumes = environment(manifests), mounted(manifests)

    assert variables["NIM_PEFT_SOURCE"] == "/opt/nim/adapters"
    assert variables["NIM_MODEL_PATH"] == "/volumes/reloc-base/artifact"
    assert variables["NIM_SERVER_PORT"] == "8000"
    assert volumes["/opt/nim/.cache"] == ({"emptyDir": {"sizeLimit": "32Gi"}}, False)
    assert volumes["/opt/nim/adapters/triage"] == ({"persistentVolumeClaim": {"claimName": "demo-adapter"}}, True)
    (mount,) = (each for each in container(manifests)["volumeMounts"] if each["mountPath"].endswith("/triage"))
    assert mount["subPath"] == "adapter"


def test_a_cache_of_the_users_own_takes_the_place_of_nims() -> None:
    mine = pod(volumes=[{"name": "cache", "mountPath": "/opt/nim/.cache", "claimName": "mine"}])
    manifests = serve(server(ServerVariant.NIM, pod=mine))
    assert mounted(manifests)["/opt/nim/.cache"] == ({"persistentVolumeClaim": {"claimName": "mine"}}, False)


def test_a_server_without_adapters_is_told_of_none() -> None:
    alone = {"adapters": (), "mounts": (BASE,)}

    assert "--enable-lora" not in container(serve(server(ServerVariant.VLLM, **alone)))["args"]
    assert "NIM_PEFT_SOURCE" not in environment(serve(server(ServerVariant.NIM, **alone)))


def test_probes_ask_as_the_user_says_and_give_a_model_half_an_hour_to_load() -> None:
    health = HealthCheck(
        path="/ready", initial_delay_seconds=5, period_seconds=20, failure_threshold=4, timeout_seconds=7
    )
    found = container(serve(server(health=health)))
    check = {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 20, "timeoutSeconds": 7}

    assert found["startupProbe"] == check | {"failureThreshold": 90, "initialDelaySeconds": 5}
    assert found["readinessProbe"] == check | {"failureThreshold": 4}
    assert found["livenessProbe"] == check | {"failureThreshold": 4}
    assert found["ports"] == [{"name": "http", "containerPort": 8000, "protocol": "TCP"}]


@pytest.mark.parametrize(
    ("variant", "alive", "ready"),
    [
        (ServerVariant.BUILTIN, "/healthz", "/readyz"),
        (ServerVariant.COMMAND, "/healthz", "/healthz"),
        (ServerVariant.VLLM, "/health", "/health"),
        (ServerVariant.NIM, "/v1/health/ready", "/v1/health/ready"),
    ],
)
def test_a_variant_is_asked_where_it_answers(variant: ServerVariant, alive: str, ready: str) -> None:
    found = container(serve(server(variant, command=("serve",))))
    paths = [found[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")]
    assert paths == [alive, alive, ready]


def exact(status: int, *, port: int = 8000) -> dict[str, Any]:
    health = HealthCheck(path="/up", timeout_seconds=7, expected_status=status)
    return container(serve(server(ServerVariant.COMMAND, command=("serve",), port=port, health=health)))


def test_an_exact_status_is_asked_for_inside_the_pod() -> None:
    found = exact(204)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert set(found[probe]) & {"httpGet", "exec"} == {"exec"}
        assert found[probe]["exec"]["command"][:4] == ["python3", "-I", "-S", "-c"]
        assert found[probe]["exec"]["command"][5:] == ["8000", "/up", "204", "7"]
        assert found[probe]["timeoutSeconds"] == 7


@pytest.mark.parametrize(
    ("answered", "expected", "told"),
    [
        (HTTPStatus.NO_CONTENT, 204, ""),
        (HTTPStatus.SERVICE_UNAVAILABLE, 503, ""),
        (HTTPStatus.OK, 204, "/up answered 200, not 204"),
        (HTTPStatus.FOUND, 200, "/up answered 302, not 200"),
    ],
)
def test_only_the_exact_status_is_healthy(answered: HTTPStatus, expected: int, told: str) -> None:
    """The very command of the probe, against a real server; 302 is what the kubelet itself would take for healthy."""
    with LoopbackServer(lambda _: Answer(status=answered, headers={"Location": "/elsewhere"})) as asked:
        command = exact(expected, port=urlsplit(asked.url).port or 0)["readinessProbe"]["exec"]["command"]
        ended = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr.strip()) == (1 if told else 0, told)


def test_a_server_that_does_not_answer_is_not_healthy() -> None:
    with LoopbackServer(lambda _: Answer()) as asked:
        port = urlsplit(asked.url).port or 0
    command = exact(200, port=port)["livenessProbe"]["exec"]["command"]
    ended = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "Connection refused" in ended.stderr


def test_variables_of_the_server_go_before_those_of_its_pods() -> None:
    wanted = server(
        env=(EnvVar(name="A", value="server"),),
        pod=pod(env=[{"name": "A", "value": "pod"}, {"name": "B", "value": "pod"}]),
    )
    variables = environment(serve(wanted))
    assert (variables["A"], variables["B"]) == ("server", "pod")


def test_a_pod_that_ends_goes_on_answering_until_clients_know() -> None:
    manifests = serve(server())
    assert container(manifests)["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert pod_spec(manifests)["terminationGracePeriodSeconds"] == 60


def test_a_server_beside_other_pods_of_its_owner_is_told_apart_from_them() -> None:
    beside = server(ServerVariant.COMMAND, command=("show",), role=ImageRole.TRAINER, component="tensorboard")
    deployment, service = serve(beside)

    selector = SELECTOR | {"finetuning.dev/component": "tensorboard"}
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == selector
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert container((deployment, service))["image"] == "images.example/finetuning-trainer:1"
    assert service["metadata"]["labels"]["finetuning.dev/component"] == "tensorboard"
