"""Pods by the contract: what a program is told, what it may write to, and what a user may change."""

# ruff: noqa: S108  (folders inside a pod)

import json

import pytest
from tests.support.plans import ADAPTER, BASE, CA, CONFIG, DATA, options, pod, resources, step
from tests.unit.cluster.render.manifests import (
    annotations,
    container,
    environment,
    job_of,
    mounted,
    pod_spec,
    render,
)

from finetuning_operator.cluster.options import Outside
from finetuning_operator.cluster.render.pods import USER_ID
from finetuning_operator.reconcile.plan import ClaimMount, ConfigMapMount, ImageRole


def test_a_pod_has_no_rights_and_one_user_without_name() -> None:
    spec = pod_spec(render(step()))

    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert container(render(step()))["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_run_config_travels_as_an_annotation_and_arrives_as_a_file() -> None:
    manifests = render(step(), installation=options(progress=None))

    assert json.loads(annotations(manifests)["finetuning.dev/run-config"]) == json.loads(CONFIG.to_json())
    assert environment(manifests)["FINETUNING_RUN_CONFIG"] == "/etc/finetuning/run-config.json"
    reference = {"fieldPath": "metadata.annotations['finetuning.dev/run-config']"}
    source = {"downwardAPI": {"items": [{"path": "run-config.json", "fieldRef": reference}]}}
    assert mounted(manifests)["/etc/finetuning"] == (source, True)


def test_a_program_reports_with_a_token_of_its_own() -> None:
    manifests = render(step())
    variables, volumes = environment(manifests), mounted(manifests)

    assert {name: value for name, value in variables.items() if name.startswith("KUBEFLOW_")} == {
        "KUBEFLOW_TRAINER_SERVER_URL": (
            "https://operator.finetuning-system.svc:443/v1alpha1/namespaces/team-a/FineTuningJob/demo/steps/train"
        ),
        "KUBEFLOW_TRAINER_SERVER_TOKEN": "/var/run/secrets/finetuning.dev/progress/token",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": "/etc/finetuning/progress-ca.pem",
    }
    token = {
        "audience": "progress.finetuning.dev/team-a/FineTuningJob/demo/uid-1",
        "expirationSeconds": 3600,
        "path": "token",
    }
    assert volumes["/var/run/secrets/finetuning.dev/progress"] == (
        {"projected": {"sources": [{"serviceAccountToken": token}]}},
        True,
    )
    assert annotations(manifests)["finetuning.dev/progress-ca"] == CA
    items = volumes["/etc/finetuning"][0]["downwardAPI"]["items"]
    assert [item["path"] for item in items] == ["run-config.json", "progress-ca.pem"]


def test_without_an_endpoint_nothing_is_told_of_it() -> None:
    manifests = render(step(), installation=options(progress=None))

    assert [name for name in environment(manifests) if name.startswith("KUBEFLOW_")] == []
    assert "/var/run/secrets/finetuning.dev/progress" not in mounted(manifests)
    assert set(annotations(manifests)) == {"finetuning.dev/run-config"}


def test_caches_and_temporary_files_go_to_scratch() -> None:
    manifests = render(step())
    variables = environment(manifests)

    assert mounted(manifests)["/tmp"] == ({"emptyDir": {"sizeLimit": "16Gi"}}, False)
    folders = ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR")
    assert {name: variables[name] for name in folders} == {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "HF_HOME": "/tmp/huggingface",
        "XDG_CACHE_HOME": "/tmp/cache",
        "TRITON_CACHE_DIR": "/tmp/triton",
    }


def test_scratch_is_as_large_as_the_storage_that_was_asked_for() -> None:
    wanted = resources(requests={"ephemeral-storage": "1Gi"}, limits={"ephemeral-storage": "40Gi"})
    assert mounted(render(step(resources=wanted)))["/tmp"][0] == {"emptyDir": {"sizeLimit": "40Gi"}}


def test_shared_memory_has_a_size() -> None:
    shared = {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}

    assert mounted(render(step()))["/dev/shm"] == (shared, False)
    (sized, _) = mounted(render(step(pod=pod(sharedMemorySize="8Gi"))))["/dev/shm"]
    assert sized["emptyDir"]["sizeLimit"] == "8Gi"


def test_only_steps_that_fetch_may_ask_a_hub() -> None:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    assert offline.items() <= environment(render(step())).items()
    assert not offline.keys() & environment(render(step(network=True))).keys()
    labels = [job_of(render(step(network=network)))["spec"]["template"]["metadata"]["labels"] for network in (0, 1)]
    assert [each["finetuning.dev/network"] for each in labels] == ["isolated", "open"]


def test_a_secret_reaches_a_program_by_variables_only() -> None:
    manifests = render(step(secret="hub"))

    assert container(manifests)["envFrom"] == [
        {"prefix": "SOURCE_SECRET_", "secretRef": {"name": "hub", "optional": False}}
    ]
    assert "envFrom" not in container(render(step()))


def test_last_words_are_the_only_thing_that_a_status_takes_from_a_pod() -> None:
    told = container(render(step()))

    assert (told["terminationMessagePath"], told["terminationMessagePolicy"]) == ("/dev/termination-log", "File")
    assert environment(render(step()))["FINETUNING_TERMINATION_LOG"] == "/dev/termination-log"


def test_claims_and_config_maps_are_where_the_plan_says() -> None:
    manifests = render(step(mounts=(DATA, BASE, ADAPTER, ConfigMapMount("rows", "/configmaps/rows"))))
    volumes = {path: found for path, found in mounted(manifests).items() if path.startswith(("/vol", "/conf"))}

    assert volumes == {
        "/volumes/reloc-data": ({"persistentVolumeClaim": {"claimName": "reloc-data"}}, True),
        "/volumes/reloc-base": ({"persistentVolumeClaim": {"claimName": "reloc-base"}}, True),
        "/volumes/demo-adapter": ({"persistentVolumeClaim": {"claimName": "demo-adapter"}}, False),
        "/configmaps/rows": ({"configMap": {"name": "rows"}}, True),
    }


def test_a_claim_is_one_volume_however_often_it_is_mounted() -> None:
    extra = {"name": "mine", "mountPath": "/mnt/mine", "claimName": "reloc-base", "readOnly": True}
    writable = ClaimMount("reloc-base", "/volumes/reloc-base", read_only=False)

    written = [render(step(mounts=mounts)) for mounts in ((BASE, writable), (writable, BASE))]
    shared = render(step(mounts=(BASE,), pod=pod(volumes=[extra])))

    assert [mounted(manifests)["/volumes/reloc-base"][1] for manifests in written] == [False, False]
    for manifests in (*written, shared):
        claims = [each for each in pod_spec(manifests)["volumes"] if "persistentVolumeClaim" in each]
        assert len(claims) == 1
    assert mounted(shared)["/mnt/mine"] == mounted(shared)["/volumes/reloc-base"]


def test_users_bring_volumes_of_every_kind() -> None:
    wanted = pod(
        volumes=[
            {"name": "a", "mountPath": "/mnt/a", "claimName": "mine"},
            {"name": "b", "mountPath": "/mnt/b", "configMapName": "settings"},
            {"name": "c", "mountPath": "/mnt/c", "secretName": "keys"},
            {"name": "d", "mountPath": "/mnt/d", "emptyDirSize": "1Gi"},
        ]
    )
    manifests = render(step(pod=wanted))
    labels = job_of(manifests)["spec"]["template"]["metadata"]["labels"]

    assert {path: found for path, found in mounted(manifests).items() if path.startswith("/mnt")} == {
        "/mnt/a": ({"persistentVolumeClaim": {"claimName": "mine"}}, False),
        "/mnt/b": ({"configMap": {"name": "settings"}}, True),
        "/mnt/c": ({"secret": {"secretName": "keys"}}, True),
        "/mnt/d": ({"emptyDir": {"sizeLimit": "1Gi"}}, False),
    }
    assert labels["claim.finetuning.dev/mine"] == ""


def test_users_place_and_mark_their_pods() -> None:
    wanted = pod(
        nodeSelector={"gpu": "a100"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        runtimeClassName="nvidia",
        imagePullSecrets=[{"name": "mine"}, {"name": "registry"}],
        labels={"team": "nlp"},
        annotations={"example.com/note": "a"},
    )
    manifests = render(
        step(pod=wanted, priority_class="high"), installation=options(image_pull_secrets=("registry", "other"))
    )
    spec, metadata = pod_spec(manifests), job_of(manifests)["spec"]["template"]["metadata"]

    assert spec["nodeSelector"] == {"gpu": "a100"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["priorityClassName"] == "high"
    assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "other"}, {"name": "mine"}]
    assert metadata["labels"]["team"] == "nlp"
    assert metadata["annotations"]["example.com/note"] == "a"


def test_users_add_variables_and_move_caches_but_change_nothing_of_the_contract() -> None:
    # What admission refuses today may have been stored before.
    env = [
        {"name": "HF_HOME", "value": "/mnt/cache"},
        {"name": "MINE", "value": "1"},
        {"name": "HOME", "value": "/root"},
        {"name": "HF_HUB_OFFLINE", "value": "0"},
        {"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": "https://elsewhere"},
    ]
    variables = environment(render(step(pod=pod(env=env))))

    assert (variables["HF_HOME"], variables["MINE"]) == ("/mnt/cache", "1")
    assert (variables["HOME"], variables["HF_HUB_OFFLINE"]) == ("/tmp", "1")
    assert variables["KUBEFLOW_TRAINER_SERVER_URL"].startswith("https://operator.")
    names = [each["name"] for each in container(render(step(pod=pod(env=env))))["env"]]
    assert len(names) == len(set(names))


def test_labels_of_a_user_do_not_replace_ours() -> None:
    ours = job_of(render(step()))["spec"]["template"]["metadata"]["labels"]
    wanted = pod(labels=dict.fromkeys(ours, "mine"))
    assert job_of(render(step(pod=wanted)))["spec"]["template"]["metadata"]["labels"] == ours


def test_little_is_requested_where_nothing_is_named() -> None:
    assert container(render(step()))["resources"] == {"requests": {"cpu": "250m", "memory": "512Mi"}}
    fetching = step(image=ImageRole.RELOCATOR)
    assert container(render(fetching))["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}}


def test_what_is_named_is_handed_on_and_a_limit_stands_for_its_request() -> None:
    wanted = resources(requests={"cpu": "2"}, limits={"memory": "16Gi", "amd.com/gpu": "1"})
    assert container(render(step(resources=wanted)))["resources"] == {
        "requests": {"cpu": "2"},
        "limits": {"memory": "16Gi", "amd.com/gpu": "1"},
    }


def test_an_accelerator_that_is_requested_is_limited_to_the_same() -> None:
    wanted = resources(requests={"nvidia.com/gpu": "2", "cpu": "1", "memory": "1Gi"})
    assert container(render(step(resources=wanted)))["resources"] == {
        "requests": {"nvidia.com/gpu": "2", "cpu": "1", "memory": "1Gi"},
        "limits": {"nvidia.com/gpu": "2"},
    }


@pytest.mark.parametrize(
    "name", ["nvidia.com/gpu", "amd.com/gpu", "google.com/tpu", "nvidia.com/mig-1g.5gb", "nvidia.com/gpu.shared"]
)
@pytest.mark.parametrize("fields", [("requests",), ("limits",), ("requests", "limits")], ids=" and ".join)
def test_an_accelerator_is_asked_for_by_its_name_and_nothing_is_added(name: str, fields: tuple[str, ...]) -> None:
    wanted = resources(**{field: {name: "2"} for field in fields})
    plain, found = (pod_spec(render(each)) for each in (step(), step(resources=wanted)))
    (program,) = found["containers"]
    least = {"cpu": "250m", "memory": "512Mi"}

    # Where only the limit is named, an API server requests the same.
    asked = {name: "2"} if "requests" in fields else {}
    assert program["resources"] == {"requests": least | asked, "limits": {name: "2"}}
    # Neither a toleration nor a variable of one vendor: the cluster and the user know what such nodes need.
    assert found | {"containers": [program | {"resources": {"requests": least}}]} == plain


def test_only_steps_that_fetch_are_told_of_proxies_and_further_authorities() -> None:
    outside = Outside(https_proxy="http://proxy.example:3128", no_proxy=("10.0.0.0/8",), ca_bundle="authority")
    fetching = render(step(network=True), installation=options(outside=outside))
    training = render(step(), installation=options(outside=outside))

    told = {name: value for name, value in environment(fetching).items() if "prox" in name.lower()}
    own = "localhost,127.0.0.1,::1,.svc,.cluster.local,10.0.0.0/8"
    assert told == {
        "https_proxy": "http://proxy.example:3128",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "no_proxy": own,
        "NO_PROXY": own,
    }
    assert environment(fetching)["FINETUNING_EXTRA_CA"] == "/etc/finetuning/extra-ca.pem"
    assert annotations(fetching)["finetuning.dev/extra-ca"] == "authority"
    (contract,) = [each for each in pod_spec(fetching)["volumes"] if each["name"] == "contract"]
    assert {
        "path": "extra-ca.pem",
        "fieldRef": {"fieldPath": "metadata.annotations['finetuning.dev/extra-ca']"},
    } in contract["downwardAPI"]["items"]
    assert training == render(step(), installation=options())


def test_the_class_of_the_installation_is_that_of_pods_that_name_none() -> None:
    installation = options(priority_class="batch")

    classes = [
        pod_spec(render(each, installation=installation))["priorityClassName"]
        for each in (step(), step(priority_class="urgent"))
    ]
    assert classes == ["batch", "urgent"]
