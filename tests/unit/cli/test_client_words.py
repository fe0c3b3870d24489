"""What the client says of answers, conditions and objects, without a cluster."""

import json

import pytest
from tests.support.objects import job

from finetuning_api.base import ConditionType
from finetuning_api.metrics import EvaluationRow, Metric, Verdict
from finetuning_cli.durations import seconds_of
from finetuning_client.errors import (
    Cause,
    ClusterError,
    ConflictError,
    CredentialsRefusedError,
    ForbiddenError,
    KindsMissingError,
    NotFoundError,
    RefusedError,
    Request,
    UnavailableError,
    explain,
)
from finetuning_client.objects import sent_content, typed
from finetuning_client.progress import progress_html
from finetuning_client.results import Results
from finetuning_client.waiting import Goal, Standing, standing
from finetuning_workload.errors import UserError

ASKED = Request("patch", "FineTuningJob", "finetuningjobs", "team", "https://cluster", "demo")


def answer(reason: str, message: str = "", **details: object) -> bytes:
    return json.dumps({"kind": "Status", "reason": reason, "message": message, "details": details}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected", "message"),
    [
        (401, answer("Unauthorized"), CredentialsRefusedError, "the cluster at https://cluster does not accept"),
        (403, answer("Forbidden", 'User "system:anonymous" cannot'), CredentialsRefusedError, "does not accept"),
        (
            403,
            answer("Forbidden", "no right"),
            ForbiddenError,
            "you may not patch finetuningjobs in the namespace",
        ),
        (403, answer("Forbidden", "exceeded quota: jobs"), ForbiddenError, "FineTuningJob demo: exceeded quota: jobs"),
        (404, b"404 page not found\n", KindsMissingError, "does not know finetuningjobs"),
        (404, answer("NotFound", name="demo", kind="finetuningjobs"), NotFoundError, "there is no FineTuningJob demo"),
        (404, answer("NotFound", name="team", kind="namespaces"), NotFoundError, "there is no namespace team"),
        (409, answer("AlreadyExists"), ConflictError, "FineTuningJob demo exists already"),
        (409, answer("Conflict", "modified"), ConflictError, "was changed by somebody else meanwhile"),
        (422, answer("Invalid", "is odd"), RefusedError, "the cluster refuses FineTuningJob demo:\n  is odd"),
        (429, answer("TooManyRequests", "later"), UnavailableError, "cannot patch FineTuningJob demo now (429): later"),
        (500, b"<html>oops</html>", UnavailableError, "(500): <html>oops</html>"),
        (503, b"\xff\xfe", UnavailableError, "(503)"),
        (418, b"[]", ClusterError, "answers 418"),
    ],
)
def test_every_answer_has_its_sentence(status: int, body: bytes, expected: type[ClusterError], message: str) -> None:
    error = explain(status, body, ASKED)

    assert type(error) is expected
    assert message in error.message


@pytest.mark.parametrize(
    ("told", "own"),
    [
        ("Invalid value: training is fixed at creation", "training is fixed at creation"),
        ('Invalid value: "object": training is fixed', "training is fixed"),
        ('Invalid value: "a\\": b": too odd', "too odd"),
        ("Invalid value: 0: should be greater than 0", "should be greater than 0"),
        ('Unsupported value: "x": supported values: "a"', 'supported values: "a"'),
        ("Required value", "Required value"),
    ],
)
def test_a_cause_loses_what_repeats_field_and_value(told: str, own: str) -> None:
    body = answer("Invalid", causes=[{"field": ".spec.training", "message": told}] * 2)

    error = explain(422, body, ASKED)

    assert isinstance(error, RefusedError)
    assert error.causes == (Cause("spec.training", own),)


def test_a_long_answer_is_cut() -> None:
    assert len(explain(500, b"x" * 1_000_000, ASKED).message) < 1200


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("complete", Goal()),
        ("Failed", Goal(ConditionType.FAILED)),
        ("condition=GatePassed", Goal(ConditionType.GATE_PASSED)),
        ("condition=gatepassed=false", Goal(ConditionType.GATE_PASSED, "False")),
        ("trained", Goal(ConditionType.TRAINED)),
    ],
)
def test_goals_are_read_as_people_write_them(text: str, goal: Goal) -> None:
    assert Goal.parse(text) == goal


@pytest.mark.parametrize("text", ["", "done", "condition", "condition=Done", "condition=Failed=maybe", "complete=x"])
def test_other_goals_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ClusterError) as caught:
        Goal.parse(text)
    assert "complete, failed or condition=NAME" in caught.value.hint


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, Standing.OPEN),
        ({"Complete": "False"}, Standing.OPEN),
        ({"Complete": "True"}, Standing.REACHED),
        ({"Failed": "False"}, Standing.OPEN),
        ({"Failed": "True"}, Standing.NEVER),
    ],
)
def test_where_a_job_stands(conditions: dict[str, str], expected: Standing) -> None:
    listed = [{"type": name, "status": status} for name, status in conditions.items()]

    assert standing({"kind": "FineTuningJob", "status": {"conditions": listed}}, Goal()) is expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5s", 0.5), (None, float("inf"))]
)
def test_spans_of_time(text: str | None, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 m", "-5s", "5x", "m"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(UserError, match="is no span of time"):
        seconds_of(text)


def test_an_object_of_a_newer_operator_is_told_so() -> None:
    stored = job().to_wire() | {"status": {"phase": "Dreaming"}}

    with pytest.raises(ClusterError, match="FineTuningJob demo cannot be read by this version") as caught:
        typed(stored)

    assert "upgrade" in caught.value.hint


def test_defaults_that_nobody_chose_are_not_sent() -> None:
    assert sent_content(job(training={"epochs": 2}))["spec"]["training"] == {"epochs": 2}


def test_names_in_html_are_text() -> None:
    warned = job().model_copy(update={"status": job().status.model_copy(update={"phase": "<script>", "stages": []})})
    row = EvaluationRow(metric=Metric.ROUGE_L, base=0.5, samples=3)
    results = Results("demo", (row,), verdict=Verdict.PASS, explanation="<b>")

    assert "<script>" not in progress_html(warned)
    assert "<td>rougeL</td><td>0.5</td><td></td>" in results._repr_html_()
    assert "Pass: &lt;b&gt;" in results._repr_html_()
