"""Rules between fields: each one accepts, refuses with its message at its field, and guards what may not change."""

from collections.abc import Iterator

import pytest
from tests.unit.api.factories import EVERY_KIND, Manifest, evaluation, job, server
from tests.unit.api.rule_cases import CHANGEABLE_FIELDS, FIXED_FIELDS, RULE_CASES, Change, RuleCase

from finetuning_api import KINDS
from finetuning_api.rules import holds, with_defaults
from finetuning_api.schema import RULES, Schema, structural_schema
from finetuning_api.validation import FieldError, validate_manifest, validate_update


def rules_in(node: Schema) -> Iterator[dict[str, str]]:
    yield from node.get(RULES, ())
    for child in (*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")):
        if child:
            yield from rules_in(child)


def told(errors: list[FieldError]) -> set[tuple[str, str]]:
    return {(error.path, error.message) for error in errors}


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_a_rule_accepts_what_keeps_it_and_names_the_field_of_what_breaks_it(case: RuleCase) -> None:
    assert validate_manifest(case.accepted) == []
    errors = validate_manifest(case.rejected)
    assert any(error.path == case.path and error.message.startswith(case.message) for error in errors)


@pytest.mark.parametrize(
    "case",
    [case for case in RULE_CASES if case.message.startswith(("mode predict computes", "nothing says when"))],
    ids=str,
)
def test_one_mistake_is_told_once(case: RuleCase) -> None:
    assert [error.path for error in validate_manifest(case.rejected)] == [case.path]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_rule_of_every_kind_has_a_case(kind: type) -> None:
    # Transition rules and bounds of keys are derived from the types, and have tests of their own.
    written = {
        rule["message"]
        for rule in rules_in(structural_schema(kind))
        if "oldSelf" not in rule["rule"] and "self.all(key" not in rule["rule"]
    }
    tested = tuple(case.message for case in RULE_CASES if case.kind == kind.__name__)
    assert {message for message in written if not message.startswith(tested)} == set()


def test_keys_of_maps_are_bounded_by_type_and_by_rule() -> None:
    too_long = {"a" * 318: "1"}
    (rule,) = structural_schema(KINDS[0])["properties"]["spec"]["properties"]["resources"]["properties"]["limits"][
        RULES
    ]

    assert told(validate_manifest(job(resources={"limits": too_long}))) == {
        (f"spec.resources.limits.{'a' * 318}", "needs at most 317 characters, got 318 characters")
    }
    assert not holds(rule["rule"], value=too_long)
    assert holds(rule["rule"], value={"nvidia.com/gpu": "1"})


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_smallest_manifest_of_every_kind_is_valid(kind: str) -> None:
    assert validate_manifest(EVERY_KIND[kind]()) == []


def changed(kind: str, change: Change) -> tuple[Manifest, Manifest]:
    return with_field(kind, change.field, change.before), with_field(kind, change.field, change.after)


def with_field(kind: str, field: str, value: object) -> Manifest:
    manifest = EVERY_KIND[kind]()
    manifest["spec"].pop(field, None)
    return manifest | {"spec": manifest["spec"] | ({} if value is None else {field: value})}


FIXED = [(kind, change) for kind, changes in FIXED_FIELDS.items() for change in changes]
CHANGEABLE = [(kind, change) for kind, changes in CHANGEABLE_FIELDS.items() for change in changes]


@pytest.mark.parametrize(("kind", "change"), FIXED, ids=str)
def test_a_fixed_field_can_neither_change_nor_come_nor_go(kind: str, change: Change) -> None:
    old, new = changed(kind, change)

    (error, *others) = validate_update(old, new)

    assert others == []
    assert error.path == f"spec.{change.field}"
    assert error.message.startswith(f"{change.field} is fixed at creation; create a new {kind}")


@pytest.mark.parametrize(("kind", "change"), CHANGEABLE, ids=str)
def test_a_changeable_field_changes(kind: str, change: Change) -> None:
    old, new = changed(kind, change)
    assert validate_update(old, new) == []


def test_every_field_of_every_spec_is_known_as_fixed_or_changeable() -> None:
    for kind in KINDS:
        fields = set(structural_schema(kind)["properties"]["spec"]["properties"])
        tables = (FIXED_FIELDS[kind.__name__], CHANGEABLE_FIELDS[kind.__name__])
        assert {change.field for table in tables for change in table} == fields


def test_of_serving_only_replicas_and_canary_change() -> None:
    old = job(serving={"replicas": 1, "afterGate": True})

    assert validate_update(old, job(serving={"replicas": 2, "afterGate": True})) == []
    (error,) = validate_update(old, job(serving={"replicas": 2, "afterGate": False}))
    assert error.path == "spec.serving.afterGate"
    assert error.message == (
        "serving.afterGate is fixed at creation; create a new FineTuningJob with another name (only suspend,"
        " ttlSecondsAfterFinished, serving.replicas, serving.canary, notifications, exports and tracking can be"
        " changed)"
    )


def test_writing_a_default_out_changes_nothing() -> None:
    assert validate_update(job(), job(training={"epochs": 3}, method={}, backoffLimit=3)) == []


def test_a_whole_number_is_the_same_value_as_a_decimal_one() -> None:
    assert validate_update(job(method={"alpha": 32}), job(method={"alpha": 32.0})) == []


def test_an_update_tells_only_what_the_update_breaks() -> None:
    broken = job(training={"microBatchSize": 99})
    assert validate_update(broken, broken | {"spec": broken["spec"] | {"suspend": True}}) == []


def test_defaults_are_filled_in_at_every_level_before_rules_are_evaluated() -> None:
    spec = with_defaults(structural_schema(KINDS[0]), job(evaluation={"gate": [{"metric": "cola", "min": 1}]}))
    assert isinstance(spec, dict)
    assert spec["spec"]["training"]["learningRate"] == 2.0e-4
    assert spec["spec"]["storage"]["dataset"] == {"accessModes": []}
    assert spec["spec"]["evaluation"]["gate"] == [{"metric": "cola", "min": 1.0}]
    assert isinstance(spec["spec"]["evaluation"]["gate"][0]["min"], float)


def test_affinity_is_handed_on_as_it_is_but_offers_no_required_pod_affinity() -> None:
    terms = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone", "weight": 0.5}]}

    assert validate_manifest(job(pod={"affinity": {"nodeAffinity": terms, "podAntiAffinity": terms}})) == []
    ((path, message),) = told(validate_manifest(job(pod={"affinity": {"podAffinity": terms}})))
    assert path == "spec.pod.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    assert message == "is not a field of this API"


def test_a_null_is_an_unset_field() -> None:
    assert validate_manifest(job(training=None, tokenizer=None, evaluation={"seed": None})) == []


@pytest.mark.parametrize(
    ("manifest", "path"),
    [
        (job(pod={"env": [{"name": "A"}, {"name": "A", "value": "1"}]}), "spec.pod.env[1]"),
        (job(evaluation={"metrics": ["cola", "cola"]}), "spec.evaluation.metrics[1]"),
        (
            evaluation(candidates=[{"name": "base", "jobRef": "a"}, {"name": "base", "jobRef": "b"}]),
            "spec.candidates[1]",
        ),
        (server(adapters=[{"name": "a", "jobRef": "a"}, {"name": "a", "jobRef": "b"}]), "spec.adapters[1]"),
    ],
)
def test_lists_with_keys_and_sets_hold_nothing_twice(manifest: Manifest, path: str) -> None:
    ((found, message),) = told(validate_manifest(manifest))
    assert found == path
    assert message.startswith("the list holds")


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("has(self.a)", {}, False),
        ("has(self.a) && self.a.b == 1", {}, False),
        ("self.a.b == 1 || true", {}, True),
        ("self.a.b == 1", {}, False),
        ("size(self.a) == 4", {"a": "äöü€"}, True),
        ("self.a.matches('b')", {"a": "abc"}, True),
        ("self.a.all(x, x > 1.0)", {"a": [1.5, 2.0]}, True),
        ("self.a.exists(x, x.b == 'c')", {"a": [{"b": "c"}]}, True),
        ("'a' in self", {"a": None}, True),
        ("self.a ? self.b == 'x' : self.b == 'y'", {"a": False, "b": "y"}, True),
    ],
)
def test_rules_mean_what_cel_says(rule: str, value: object, *, expected: bool) -> None:
    assert holds(rule, value=value) is expected
