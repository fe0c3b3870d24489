"""The generated CustomResourceDefinitions: structural, bounded, explained, current, and true to the types."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from tests.unit.api.factories import EVERY_KIND, job
from tests.unit.api.structural import complaints

from finetuning_api import KINDS, FineTuningJob, Relocation
from finetuning_api.base import Resource
from finetuning_api.generate import generated_files, write_generated
from finetuning_api.rules import holds, with_defaults
from finetuning_api.schema import RULES, Schema, crd_document, crd_documents, structural_schema
from finetuning_api.wording import need

ROOT = Path(__file__).parents[3]
KIND_IDS = [kind.__name__ for kind in KINDS]
LARGEST_ANNOTATION = 262_144
"""kubectl apply keeps what it applied in an annotation of at most this many bytes."""


def nodes(node: Schema, *, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schema]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, path=(*path, name))
    for word in ("items", "additionalProperties"):
        if word in node:
            yield from nodes(node[word], path=(*path, word))


def draft4(node: Schema) -> dict[str, Any]:
    """Return the schema in the dialect of JSON Schema draft 4, whose exclusive bounds are OpenAPI 3.0's."""
    plain = {word: value for word, value in node.items() if not word.startswith("x-")}
    plain |= {word: draft4(node[word]) for word in ("items", "additionalProperties") if word in node}
    if "properties" in node:
        plain["properties"] = {name: draft4(child) for name, child in node["properties"].items()}
    return plain


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_schemas_are_structural_bounded_and_explained(kind: type[Resource]) -> None:
    assert list(complaints(structural_schema(kind))) == []


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_kubernetes_own_schema_accepts_the_definition(kind: type[Resource]) -> None:
    kubernetes_validate.validate(crd_document(kind), kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_schemas_are_json_schemas_and_every_default_fits_its_own_field(kind: type[Resource]) -> None:
    schema = structural_schema(kind)
    jsonschema.Draft4Validator.check_schema(draft4(schema))
    for path, node in nodes(schema):
        if "default" in node:
            filled_in = with_defaults(node, node["default"])
            errors = list(jsonschema.Draft4Validator(draft4(node)).iter_errors(filled_in))
            assert errors == [], path


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_a_default_keeps_the_rules_of_its_type_as_it_is_written(kind: type[Resource]) -> None:
    # An API server evaluates them when it takes the definition, before it fills in defaults further inside.
    broken = [
        (path, rule["rule"])
        for path, node in nodes(structural_schema(kind))
        for rule in node.get(RULES, ())
        if "default" in node and "oldSelf" not in rule["rule"] and not holds(rule["rule"], value=node["default"])
    ]
    assert broken == []


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_defaults_of_the_schema_are_those_of_the_types(kind: type[Resource]) -> None:
    manifest = EVERY_KIND[kind.__name__]()
    filled_in = with_defaults(structural_schema(kind), manifest)
    parsed = kind.model_validate(manifest).to_wire()

    assert isinstance(filled_in, dict)
    assert filled_in["spec"] == parsed["spec"]


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_the_api_server_makes_up_no_part_of_status(kind: type[Resource]) -> None:
    status = structural_schema(kind)["properties"]["status"]
    assert [path for path, node in nodes(status) if "default" in node] == []


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_columns_and_scale_read_fields_that_exist(kind: type[Resource]) -> None:
    (version,) = crd_document(kind)["spec"]["versions"]
    known = {".".join(("", *path)).replace(".items", "") for path, _ in nodes(structural_schema(kind))}
    known |= {".metadata.creationTimestamp"}
    columns = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    scale = version["subresources"].get("scale", {}).values()

    assert {without_brackets(path) for path in (*columns, *scale)} - known == set()


def without_brackets(path: str) -> str:
    kept, depth = "", 0
    for letter in path:
        depth += (letter == "[") - (letter == "]")
        kept += letter if depth == 0 and letter != "]" else ""
    return kept


def test_names_follow_the_design() -> None:
    names = {kind.__name__: crd_document(kind)["spec"]["names"] for kind in KINDS}
    assert {kind: (each["plural"], each["singular"], each["shortNames"]) for kind, each in names.items()} == {
        "FineTuningJob": ("finetuningjobs", "finetuningjob", ["ftj"]),
        "EvaluationJob": ("evaluationjobs", "evaluationjob", ["evj"]),
        "Relocation": ("relocations", "relocation", ["reloc"]),
        "InferenceServer": ("inferenceservers", "inferenceserver", ["infs"]),
    }
    assert {tuple(each["categories"]) for each in names.values()} == {("finetuning",)}


def test_only_servers_scale_and_every_kind_has_a_status_subresource() -> None:
    subresources = {kind.__name__: crd_document(kind)["spec"]["versions"][0]["subresources"] for kind in KINDS}
    assert {kind: sorted(each) for kind, each in subresources.items()} == {
        "FineTuningJob": ["status"],
        "EvaluationJob": ["status"],
        "Relocation": ["status"],
        "InferenceServer": ["scale", "status"],
    }


def test_explanations_tell_the_default() -> None:
    training = structural_schema(FineTuningJob)["properties"]["spec"]["properties"]["training"]["properties"]
    assert training["epochs"]["description"] == "Passes over the training rows. Default: 3."
    assert training["schedule"]["description"].endswith("Default: cosine.")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_api_server_gets_every_pattern_of_a_spec_as_a_rule_that_reads_like_the_words_of_local_checks(
    kind: type[Resource],
) -> None:
    [version] = crd_document(kind)["spec"]["versions"]
    served = dict(nodes(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
    patterns = {
        path: node["pattern"]
        for path, node in nodes(structural_schema(kind)["properties"]["spec"])
        if "pattern" in node
    }

    assert [path for path, node in served.items() if "pattern" in node] == []
    told = {path: served[path][RULES][-1]["message"] for path in patterns}
    assert told == {path: need("string_pattern_mismatch", {"pattern": regex}) for path, regex in patterns.items()}


@pytest.mark.parametrize(
    ("field", "accepted", "refused"),
    [("size", ["1Gi", 5], "10GB"), ("checksum", [f"sha256:{'0' * 64}"], "md5:1"), ("endpoint", ["http://a"], "a")],
)
def test_a_pattern_that_became_a_rule_means_the_same(field: str, accepted: list[object], refused: str) -> None:
    [version] = crd_document(Relocation)["spec"]["versions"]
    [rule] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][field][RULES]

    assert [holds(rule["rule"], value=value) for value in (*accepted, refused)] == [*(True for _ in accepted), False]


def test_quantities_may_be_numbers_or_text() -> None:
    manifest = job(resources={"limits": {"nvidia.com/gpu": 1, "memory": "16Gi"}})
    parsed = FineTuningJob.model_validate(manifest)
    assert parsed.spec.resources.limits == {"nvidia.com/gpu": "1", "memory": "16Gi"}


def test_definitions_fit_the_annotation_of_kubectl_apply() -> None:
    sizes = {name: len(json.dumps(yaml.safe_load(text))) for name, text in crd_documents().items()}
    assert {name for name, size in sizes.items() if size > LARGEST_ANNOTATION} == set()


def test_no_name_reads_as_a_boolean_in_yaml() -> None:
    names = {part for kind in KINDS for path, _ in nodes(structural_schema(kind)) for part in path}
    assert names & {"n", "y", "on", "off", "no", "yes"} == set()


def test_committed_files_are_what_the_types_say() -> None:
    assert write_generated(ROOT, check=True) == []


def test_generated_files_are_checked_without_being_written_and_then_brought_up_to_date(tmp_path: Path) -> None:
    everything = sorted(tmp_path / path for path in generated_files())
    write_generated(tmp_path, check=False)
    stale = tmp_path / "crds/finetuning.dev_relocations.yaml"
    stale.write_text("old", encoding="utf-8")
    missing = tmp_path / "docs/manifest-reference.md"
    missing.unlink()

    assert sorted(write_generated(tmp_path, check=True)) == [stale, missing]
    assert stale.read_text(encoding="utf-8") == "old"
    assert not missing.exists()
    assert sorted(write_generated(tmp_path, check=False)) == [stale, missing]
    assert write_generated(tmp_path, check=True) == []
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == everything
