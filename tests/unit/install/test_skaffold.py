"""What skaffold builds is what the chart installs, and everything that its configuration names is there."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hack.images.settings import ROLES

from finetuning_api.inferenceserver import InferenceServerSpec
from finetuning_client import check

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "finetuning-operator"

Content = dict[str, Any]


def read(path: Path | str) -> Content:
    content: Content = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def skaffold() -> Content:
    return read("skaffold.yaml")


@pytest.fixture(scope="module")
def release(skaffold: Content) -> Content:
    (only,) = skaffold["deploy"]["helm"]["releases"]
    found: Content = only
    return found


def profile(skaffold: Content, name: str) -> Content:
    return next(each for each in skaffold["profiles"] if each["name"] == name)


def verifications(skaffold: Content) -> list[Content]:
    patches = [patch for each in skaffold["profiles"] for patch in each.get("patches", ())]
    return [*skaffold["verify"], *(patch["value"] for patch in patches if patch["path"] == "/verify/-")]


def nested(values: dict[str, str]) -> Content:
    """Return values as a file has them, from the dotted names that helm's command line takes."""
    found: Content = {}
    for name, value in values.items():
        *folders, last = name.split(".")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return found


def test_every_image_of_the_project_is_built_from_its_dockerfile_upon_the_right_one(skaffold: Content) -> None:
    built = {
        artifact["image"]: (artifact["docker"]["dockerfile"], artifact.get("requires", []))
        for artifact in skaffold["build"]["artifacts"]
    }

    assert built == {
        f"finetuning-{role.name}": (
            role.dockerfile,
            [{"image": f"finetuning-{role.upon}", "alias": "MODELS_IMAGE"}] if role.upon else [],
        )
        for role in ROLES.values()
    }
    assert [file for file, _ in built.values() if not (ROOT / file).is_file()] == []


def test_an_image_that_skaffold_hands_over_has_no_default_that_a_registry_would_be_asked_for() -> None:
    for role in ROLES.values():
        if role.upon:
            lines = (ROOT / role.dockerfile).read_text(encoding="utf-8").splitlines()
            assert [line for line in lines if line.startswith("ARG MODELS_IMAGE")] == ["ARG MODELS_IMAGE"], role


def test_every_build_argument_is_one_of_the_dockerfile(skaffold: Content) -> None:
    for artifact in skaffold["build"]["artifacts"]:
        known = re.findall(r"^ARG (\w+)", (ROOT / artifact["docker"]["dockerfile"]).read_text("utf-8"), re.MULTILINE)
        assert set(artifact["docker"]["buildArgs"]) <= set(known), artifact["image"]


def test_nothing_but_the_plain_builder_is_asked_for(skaffold: Content) -> None:
    assert set(skaffold["build"]) == {"tagPolicy", "artifacts"}


def test_no_tag_needs_an_image_before_it_is_built(skaffold: Content) -> None:
    assert skaffold["build"]["tagPolicy"].keys() == {"gitCommit"}


def test_every_image_that_the_chart_installs_is_handed_to_it(release: Content) -> None:
    values = read(CHART / "values.yaml")
    workloads = {
        f"workloadImages.{role}": f'{{{{default "" .IMAGE_FULLY_QUALIFIED_finetuning_{role}}}}}'
        for role in values["workloadImages"]
    }

    assert release["setValueTemplates"] == {
        "image.repository": '{{default "finetuning-operator" .IMAGE_REPO_finetuning_operator}}',
        "image.tag": '{{default "" .IMAGE_TAG_finetuning_operator}}',
        "image.digest": '{{default "" .IMAGE_DIGEST_finetuning_operator}}',
        **workloads,
    }


def test_the_chart_takes_every_value(skaffold: Content, release: Content) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    patches = [patch for each in skaffold["profiles"] for patch in each.get("patches", ())]
    overrides = [patch["value"] for patch in patches if patch["path"].endswith("/setValues")]

    templates = {name: "" if "DIGEST" in value else value for name, value in release["setValueTemplates"].items()}
    for values in (templates, *overrides):
        jsonschema.validate(nested(values), schema)
    further = [patch["value"] for patch in patches if patch["path"].endswith("/valuesFiles/-")]
    for file in (*release["valuesFiles"], *further):
        jsonschema.validate(read(file), schema)


def test_every_patch_changes_something_that_is_there(skaffold: Content) -> None:
    for patch in (patch for each in skaffold["profiles"] for patch in each.get("patches", ())):
        *folders, last = patch["path"].removeprefix("/").split("/")
        place: Any = skaffold
        for folder in folders:
            place = place[int(folder)] if isinstance(place, list) else place[folder]
        is_there = last == "-" or last in place
        assert is_there or patch["op"] == "add", patch["path"]


def test_every_check_is_understood_by_the_program_and_runs_in_a_job_that_knows_its_container(skaffold: Content) -> None:
    for verification in verifications(skaffold):
        container = verification["container"]
        job = read(verification["executionMode"]["kubernetesCluster"]["jobManifestPath"])
        templates = {each["name"]: each for each in job["spec"]["template"]["spec"]["containers"]}

        assert container["command"] == ["python", "-m", check.__name__]
        assert check.parser().parse_args(container["args"]).timeout < verification["timeout"]
        assert templates[container["name"]]["image"] == container["image"]
        assert templates[container["name"]]["securityContext"]["readOnlyRootFilesystem"]


def test_checks_have_names_of_their_own_as_skaffold_wants(skaffold: Content) -> None:
    names = [verification["container"]["name"] for verification in verifications(skaffold)]

    assert sorted(names) == sorted(set(names))


def test_gpu_images_hold_torch_for_cuda(skaffold: Content) -> None:
    _, _, torch, *_ = skaffold["build"]["artifacts"]
    change, _ = profile(skaffold, "gpu")["patches"]

    assert (torch["image"], change["value"]) == ("finetuning-models", "cuda")
    assert change["path"] == "/build/artifacts/2/docker/buildArgs/TORCH"


def test_the_account_of_the_checks_is_made_with_the_release(release: Content, skaffold: Content) -> None:
    (file,) = release["valuesFiles"]
    accounts = [
        (item["metadata"]["namespace"], item["metadata"]["name"])
        for item in read(file)["extraObjects"]
        if item["kind"] == "ServiceAccount"
    ]

    for verification in verifications(skaffold):
        job = read(verification["executionMode"]["kubernetesCluster"]["jobManifestPath"])
        asked = check.parser().parse_args(verification["container"]["args"]).namespace
        account = job["spec"]["template"]["spec"]["serviceAccountName"]
        assert [(job["metadata"]["namespace"], account)] == accounts == [(asked, account)]


def test_the_job_that_is_forwarded_and_asked_is_the_quickstart(skaffold: Content) -> None:
    quickstart = read("examples/quickstart.yaml")
    name = quickstart["metadata"]["name"]
    (forwarded,) = skaffold["portForward"]
    (asked,) = [
        parsed
        for parsed in (check.parser().parse_args(each["container"]["args"]) for each in verifications(skaffold))
        if parsed.job
    ]

    assert (forwarded["resourceType"], forwarded["resourceName"]) == ("service", name)
    assert forwarded["port"] == InferenceServerSpec.model_fields["port"].default
    assert asked.job == name
    before, after = quickstart["spec"]["dataset"]["prompt"].split("{message}")
    assert asked.prompt.startswith(before)
    assert asked.prompt.endswith(after)


def test_the_example_of_a_cluster_is_the_quickstart_with_data_that_a_pod_can_read(skaffold: Content) -> None:
    kustomization = read("examples/kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    (file,) = generated["files"]
    (patch,) = kustomization["patches"]

    assert kustomization["resources"] == ["quickstart.yaml"]
    assert (ROOT / "examples" / file).read_bytes()
    assert yaml.safe_load(patch["patch"]) == [
        {
            "op": "replace",
            "path": "/spec/dataset/source",
            "value": f"configmap://{generated['name']}/{Path(file).name}",
        },
        {"op": "add", "path": "/spec/serving", "value": {}},
    ]
    assert profile(skaffold, "e2e")["manifests"] == {"kustomize": {"paths": ["examples"]}}


def test_a_question_that_is_sent_as_a_file_is_one_of_the_quickstart() -> None:
    asked = json.loads((ROOT / "examples" / "prompt.json").read_text(encoding="utf-8"))
    before, after = read("examples/quickstart.yaml")["spec"]["dataset"]["prompt"].split("{message}")

    assert list(asked) == ["input_prompt"]
    assert asked["input_prompt"].startswith(before)
    assert asked["input_prompt"].endswith(after)


def test_kind_starts_one_cluster_with_a_name_of_its_own() -> None:
    kind = read("hack/kind.yaml")

    assert (kind["kind"], kind["apiVersion"], kind["name"]) == ("Cluster", "kind.x-k8s.io/v1alpha4", "finetuning")
    assert [node["role"] for node in kind["nodes"]] == ["control-plane"]
