"""validate_manifest tells every mistake at once, by field and value, in words that say what to write instead."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.api.factories import EVERY_KIND, STEADY, Manifest, evaluation, job, named, relocation

from finetuning_api import KINDS, FineTuningJob
from finetuning_api.base import Resource
from finetuning_api.patterns import HTTP_ADDRESS, LABEL, MODULES, PATTERNS, QUANTITY
from finetuning_api.schema import Schema, structural_schema
from finetuning_api.validation import (
    InvalidResourceError,
    belongs_to_api,
    cluster_only_errors,
    load_manifests,
    parse_manifest,
    parse_stored,
    validate_manifest,
)

ROOT = Path(__file__).parents[3]
KIND_NAMES = "FineTuningJob, EvaluationJob, Relocation, InferenceServer"


def messages(document: object) -> list[str]:
    return [str(error) for error in validate_manifest(document)]


@pytest.mark.parametrize(
    ("source", "shown"), [("ftp://acme/tiny", "; it is 'ftp://acme/tiny'"), ("ftp://me:hunter2@acme/tiny", "a path")]
)
def test_wrong_address_is_quoted_unless_it_may_hold_a_password(source: str, shown: str) -> None:
    found = messages(job(model={"source": source}))
    assert found[0].startswith("spec.model.source: source has an unknown scheme; use hf://")
    assert found[0].endswith(shown)
    assert "hunter2" not in " ".join(found)


def test_every_mistake_is_told_at_once_in_the_order_of_the_manifest() -> None:
    manifest = job(
        dataset={"source": "rows.jsonl", "limit": "many", "prompt": "{question}"},
        training={"epochs": 0, "schedule": "cosin", "microBatchSize": 99},
        traning={},
        suspend="yes",
    )
    del manifest["spec"]["model"]

    assert messages(manifest) == [
        "spec.dataset.limit: needs a whole number, got 'many'",
        "spec.dataset.prompt: prompt needs completion: the part that the model learns to write",
        "spec.training.epochs: needs more than 0, got 0",
        "spec.training.schedule: needs one of cosine, linear or constant, got 'cosin'; did you mean cosine?",
        "spec.training.microBatchSize: microBatchSize is a part of batchSize and cannot be larger",
        "spec.traning: is not a field of this API; did you mean training?",
        "spec.suspend: needs true or false, got 'yes'",
        "spec.model: is missing; Base model",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"training": {"epochs": "3"}}, "spec.training.epochs: needs a number, got '3'"),
        ({"training": {"batchSize": 1.5}}, "spec.training.batchSize: needs a whole number, got 1.5"),
        ({"training": {"batchSize": True}}, "spec.training.batchSize: needs a whole number, got true"),
        ({"training": {"seed": -1}}, "spec.training.seed: needs at least 0, got -1"),
        ({"training": {"seed": 2**31}}, "spec.training.seed: needs at most 2147483647, got 2147483648"),
        ({"training": {"learningRate": 2}}, "spec.training.learningRate: needs at most 1, got 2"),
        ({"training": {"maxGradNorm": float("inf")}}, "spec.training.maxGradNorm: needs a finite number, got Infinity"),
        ({"method": {"dropout": 1}}, "spec.method.dropout: needs less than 1, got 1"),
        ({"method": []}, "spec.method: needs a mapping of fields, got a list of 0 items"),
        ({"method": "lora"}, "spec.method: needs a mapping of fields, got 'lora'"),
        ({"tracking": {"mlflowUri": "x"}}, f"spec.tracking.mlflowUri: needs {HTTP_ADDRESS.words}, got 'x'"),
        (
            {"method": {"targetModules": "q, v"}},
            f"spec.method.targetModules: needs {MODULES.words}, got 'q, v'",
        ),
        ({"model": {"source": 7}}, 'spec.model.source: needs text, got 7; write it in quotes: "7"'),
        ({"model": {"source": ""}}, "spec.model.source: needs at least 1 character, got 0 characters"),
        (
            {"model": {"source": "hf://a/b", "revision": "v" * 129}},
            "spec.model.revision: needs at most 128 characters, got 129 characters",
        ),
        (
            {"model": {"source": "hf://a/b", "checksum": "abc"}},
            "spec.model.checksum: needs sha256: and 64 lower-case hex digits, got 'abc'",
        ),
        (
            {"evaluation": {"metrics": "rouge"}},
            "spec.evaluation.metrics: needs a list, got 'rouge'; write [rouge]",
        ),
        ({"evaluation": {"metrics": []}}, "spec.evaluation.metrics: needs at least 1 item, got 0"),
        (
            {"evaluation": {"generation": {"stop": ["."] * 17}}},
            "spec.evaluation.generation.stop: needs at most 16 items, got 17",
        ),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 0.5}}},
            'spec.resources.limits[nvidia.com/gpu]: needs text, got 0.5; write it in quotes: "0.5"',
        ),
        (
            {"resources": {"limits": {"memory": "16 GB"}}},
            f"spec.resources.limits.memory: needs {QUANTITY.words}, got '16 GB'",
        ),
        (
            {"evaluation": {"limit": 2**63}},
            "spec.evaluation.limit: needs a number of at most 64 bits, got 9223372036854775808",
        ),
        (
            {"evaluation": {"generation": {"stop": ["\ud800"]}}},
            "spec.evaluation.generation.stop[0]: needs text that can be written as UTF-8, got '\\xd800'",
        ),
        (
            {"pod": {"nodeSelector": {1: "a"}}},
            "spec.pod.nodeSelector.1: needs text as its name, got 1; write it in quotes",
        ),
        (
            {"learningRate": 0.1},
            "spec.learningRate: is not a field of this API; did you mean spec.training.learningRate?",
        ),
        (
            {"tracking": {"mlflowUri": "http://a", "wandb": "x"}},
            (
                "spec.tracking.wandb: is not a field of this API; the fields here are mlflowUri, experiment, runName,"
                " secretRef, weights"
            ),
        ),
        (
            {"notifications": [{"type": "slack"}]},
            (
                "spec.notifications[0].secretRef: is missing; Secret with the address and its credentials: url, and"
                " optionally token or header; for email host, from and to, and optionally port, username, password and"
                " tls"
            ),
        ),
    ],
)
def test_a_mistake_names_field_and_value_and_what_to_write(spec: dict[str, Any], message: str) -> None:
    assert messages(job(**spec)) == [message]


@pytest.mark.parametrize("template", ["{a", "a}", "{}", "{{a}", "{a{b}}"])
@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_a_template_with_unbalanced_braces_is_refused(template: str, field: str) -> None:
    rows = {"completion": "{answer}", field: template}
    (message,) = messages(job(dataset={"source": "rows.jsonl"} | rows))
    assert message.startswith(
        f"spec.dataset.{field}: needs text with {{column}} placeholders whose braces are balanced"
    )


@pytest.mark.parametrize("template", ["{a}", "{a}{b}", '{{"x": {a}}}', "plain", "{a column}", "line\n{a}\n"])
def test_a_template_with_placeholders_and_doubled_braces_is_accepted(template: str) -> None:
    assert messages(job(dataset={"source": "rows.jsonl", "completion": template})) == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (None, ["a manifest is a mapping with apiVersion, kind, metadata and spec"]),
        ([job()], ["a manifest is a mapping with apiVersion, kind, metadata and spec"]),
        (
            {},
            [
                "apiVersion: needs finetuning.dev/v1alpha1, got nothing",
                f"kind: needs one of {KIND_NAMES}, got nothing",
            ],
        ),
        (
            job() | {"kind": "FinetuneJob"},
            [f"kind: needs one of {KIND_NAMES}, got 'FinetuneJob'; did you mean FineTuningJob?"],
        ),
        (job() | {"apiVersion": "v1"}, ["apiVersion: needs finetuning.dev/v1alpha1, got 'v1'"]),
        (job() | {"spec": None}, ["spec: is missing; What to do"]),
        (job() | {"metadata": None}, ["metadata: is missing"]),
        (job() | {"metadata": {}}, ["metadata.name: is missing"]),
        (job() | {"sepc": {}}, ["sepc: is not a field of this API; did you mean spec?"]),
        (
            named(job(), "Triage_1"),
            [f"metadata.name: needs {LABEL.words}, got 'Triage_1'"],
        ),
    ],
)
def test_what_is_no_manifest_of_this_api_is_told(document: object, expected: list[str]) -> None:
    assert messages(document) == expected


def test_rules_of_sound_parts_are_told_beside_mistakes_in_other_parts() -> None:
    manifest = job(training={"microBatchSize": 99, "batchSize": "x"}, method={"type": "full", "dora": True}, pod=3)
    assert messages(manifest) == [
        "spec.training.batchSize: needs a whole number, got 'x'",
        "spec.method.type: dora and rslora are variants of lora; type full trains all weights",
        "spec.pod: needs a mapping of fields, got 3",
    ]


def test_an_unknown_field_keeps_no_rule_from_being_told() -> None:
    errors = validate_manifest(job(serving={"replica": 1}, evaluation={"enabled": False}))
    assert [error.path for error in errors] == ["spec.serving.replica", "spec.serving.afterGate"]


def test_status_and_what_a_server_fills_in_are_left_alone() -> None:
    metadata: dict[str, object] = {
        "name": "triage",
        "uid": "1",
        "managedFields": [{}],
        "creationTimestamp": None,
        "generation": 4,
    }
    assert messages(job() | {"metadata": metadata, "status": {"phase": "Nonsense"}}) == []
    assert messages(parse_stored(job() | {"metadata": metadata}).to_wire()) == []


def test_examples_are_valid() -> None:
    documents = [
        document.content
        for path in sorted((ROOT / "examples").glob("*.yaml"))
        for document in load_manifests(path.read_text(encoding="utf-8"))
        if belongs_to_api(document.content)
    ]
    assert len(documents) >= 7
    assert [messages(document) for document in documents] == [[]] * len(documents)


def test_a_file_may_hold_objects_of_other_apis() -> None:
    assert not belongs_to_api({"apiVersion": "v1", "kind": "Secret"})
    assert belongs_to_api({"apiVersion": "finetuning.dev/v2", "kind": "FineTuningJobs"})
    assert belongs_to_api({"apiVersion": "v1", "kind": "FineTuningJob"})
    assert belongs_to_api({"kind": "FineTuningJob"})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_manifest_survives_parsing_and_writing(kind: type[Resource]) -> None:
    manifest = EVERY_KIND[kind.__name__]()
    parsed = parse_manifest(manifest)

    assert isinstance(parsed, kind)
    assert parse_manifest({**parsed.to_wire(), "status": None}) == parsed
    assert parse_stored(json.loads(json.dumps(parsed.to_wire()))) == parsed


def test_a_manifest_with_mistakes_is_not_parsed() -> None:
    with pytest.raises(InvalidResourceError) as raised:
        parse_manifest(job(training={"epochs": 0, "seed": -1}))
    assert [error.path for error in raised.value.errors] == ["spec.training.epochs", "spec.training.seed"]


def test_a_stored_object_with_fields_of_a_newer_version_is_parsed() -> None:
    stored = job(training={"epochs": 2, "warp": 9}, later={"a": 1}) | {"status": {"phase": "Training", "mood": "good"}}
    parsed = parse_stored(stored)
    assert isinstance(parsed, FineTuningJob)
    assert (parsed.spec.training.epochs, parsed.status.phase) == (2, "Training")


@pytest.mark.parametrize(
    ("document", "paths"),
    [
        (3, [""]),
        ({"kind": "Pod", "apiVersion": "v1"}, ["apiVersion", "kind"]),
        (job(training={"epochs": "no"}), ["spec.training.epochs"]),
    ],
)
def test_a_stored_object_that_is_none_of_ours_raises_a_typed_error(document: object, paths: list[str]) -> None:
    with pytest.raises(InvalidResourceError) as raised:
        parse_stored(document)
    assert [error.path for error in raised.value.errors] == paths


def test_local_paths_are_valid_but_not_on_a_cluster() -> None:
    manifest = job(model={"source": "models/base"}, evaluation={"reference": {"source": "hf://owner/large"}})
    assert messages(manifest) == []
    assert [(error.path, error.value) for error in cluster_only_errors(parse_manifest(manifest))] == [
        ("spec.model.source", "models/base"),
        ("spec.dataset.source", "data/rows.jsonl"),
    ]
    assert [error.path for error in cluster_only_errors(parse_manifest(relocation(source="a")))] == ["spec.source"]
    assert cluster_only_errors(parse_manifest(relocation())) == []


def test_every_pattern_of_the_api_is_explained_in_words() -> None:
    explained = {pattern.regex for pattern in PATTERNS}
    assert set(patterns_in([structural_schema(kind) for kind in KINDS])) <= explained


def patterns_in(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["pattern"]] if isinstance(value.get("pattern"), str) else []
        return own + [pattern for child in value.values() for pattern in patterns_in(child)]
    return [pattern for child in value for pattern in patterns_in(child)] if isinstance(value, list) else []


def field_paths(node: Schema, *, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        below
        for name, child in node.get("properties", {}).items()
        for below in ((*path, name), *field_paths(child, path=(*path, name)))
    ]


SPEC_PATHS = {kind.__name__: field_paths(structural_schema(kind)["properties"]["spec"]) for kind in KINDS}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=6,
)


def with_value(manifest: Manifest, path: tuple[str, ...], value: object) -> Manifest:
    """Return the manifest with a value put at a path of its spec, through lists and maps made on the way."""
    spec = dict(manifest["spec"])
    inner = spec
    for part in path[:-1]:
        below = inner.get(part)
        inner[part] = dict(below) if isinstance(below, dict) else {}
        inner = inner[part]
    inner[path[-1]] = value
    return manifest | {"spec": spec}


@settings(STEADY, max_examples=150)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_told_in_plain_words_or_parsed(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(SPEC_PATHS)))
    manifest = with_value(EVERY_KIND[kind](), data.draw(st.sampled_from(SPEC_PATHS[kind])), data.draw(JSON_VALUES))

    errors = messages(manifest)

    assert not [error for error in errors if "nput should" in error or "another value" in error or "\n" in error]
    if not errors:
        assert parse_manifest(manifest).to_wire()["kind"] == kind


@settings(STEADY)
@given(document=JSON_VALUES)
def test_no_document_breaks_validation(document: object) -> None:
    assert validate_manifest(document)


def test_evaluation_jobs_are_validated_like_the_others() -> None:
    assert messages(evaluation(candidates=[])) == ["spec.candidates: needs at least 1 item, got 0"]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("perplexity", ""),
        ("rougel", "; did you mean rougeL?"),
        ("exact_match", "; did you mean exact-match?"),
    ],
)
def test_a_gate_on_what_is_not_evaluated_names_the_rule_the_metric_and_the_nearest_one(written: str, told: str) -> None:
    gate = [{"metric": "rougeL", "min": 0.1}, {"metric": written, "min": 0.1}]

    dataset = {"source": "rows.jsonl", "prompt": "{q}", "completion": "{a}"}
    (message,) = messages(job(dataset=dataset, evaluation={"metrics": ["rouge", "exact-match"], "gate": gate}))

    assert message == (
        f"spec.evaluation.gate: gate names a metric that is not evaluated: gate[1] is {written};"
        f" add it to metrics, or your own to custom or tasks{told}"
    )
