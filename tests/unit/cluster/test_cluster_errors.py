"""The answers below were given by an API server of Kubernetes 1.35, word for word."""

import json

import pytest

from finetuning_operator.cluster.errors import (
    LONGEST_MESSAGE,
    AlreadyExists,
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NamespaceTerminating,
    NotFound,
    NotServed,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unavailable,
    error_of,
)


def _status(code: int, reason: str, message: str, **details: object) -> str:
    content = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }
    return json.dumps(content)


_CHANGED = (
    'Operation cannot be fulfilled on finetuningjobs.finetuning.dev "a": the object has been modified; '
    "please apply your changes to the latest version and try again"
)
_OTHER_UID = (
    'Operation cannot be fulfilled on ConfigMap "a": the UID in the precondition (nope) does not match the UID in '
    "record (d121200e-cb5b-4f9e-b064-3cdadfcaeac3). The object might have been deleted and then recreated"
)
_NO_RIGHT = (
    'configmaps "zz" is forbidden: User "system:serviceaccount:default:bob" cannot get resource "configmaps" in API '
    'group "" in the namespace "default"'
)
_POD_SECURITY = (
    'pods "a" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "a" '
    "must set securityContext.allowPrivilegeEscalation=false)"
)
_LIMIT_RANGE = (
    'persistentvolumeclaims "b" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, '
    "but request is 5Gi"
)
_QUOTA = (
    'jobs.batch "a" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: count/jobs.batch=0, '
    "limited: count/jobs.batch=0"
)
_QUOTA_NEEDS_REQUESTS = 'pods "a" is forbidden: failed quota: cpu: must specify requests.cpu for: a'
_TERMINATING = 'configmaps "a" is forbidden: unable to create new content in namespace t because it is being terminated'
_TERMINATING_CAUSE = {
    "reason": "NamespaceTerminating",
    "message": "namespace t is being terminated",
    "field": "metadata.namespace",
}
_BAD_PHASE = (
    'FineTuningJob.finetuning.dev "a" is invalid: [status.phase: Unsupported value: "Running": supported values: '
    '"Pending", "Relocating", "Training", "Evaluating", "Serving", "Suspended", "Complete", "Failed"]'
)
_NOT_IN_SCHEMA = "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .nope: field not declared in schema"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, _status(404, "NotFound", 'configmaps "zz" not found', name="zz", kind="configmaps"), NotFound),
        (404, _status(404, "NotFound", 'namespaces "none" not found', name="none", kind="namespaces"), NotFound),
        (404, "404 page not found\n", NotServed),
        (409, _status(409, "AlreadyExists", 'configmaps "a" already exists', name="a"), AlreadyExists),
        (409, _status(409, "Conflict", _CHANGED, name="a"), Conflict),
        (409, _status(409, "Conflict", _OTHER_UID, name="a"), Conflict),
        (401, _status(401, "Unauthorized", "Unauthorized"), Unauthorized),
        (403, _status(403, "Forbidden", _NO_RIGHT, name="zz"), Forbidden),
        (403, _status(403, "Forbidden", _POD_SECURITY, name="a"), Forbidden),
        (403, _status(403, "Forbidden", _LIMIT_RANGE, name="b"), Forbidden),
        (403, _status(403, "Forbidden", _QUOTA, name="a"), QuotaExceeded),
        (403, _status(403, "Forbidden", _QUOTA_NEEDS_REQUESTS, name="a"), QuotaExceeded),
        (403, _status(403, "Forbidden", _TERMINATING, name="a", causes=[_TERMINATING_CAUSE]), NamespaceTerminating),
        (422, _status(422, "Invalid", _BAD_PHASE, name="a"), Invalid),
        (400, _status(400, "BadRequest", "container zz is not valid for pod a"), BadRequest),
        (413, _status(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"), Invalid),
        (500, _status(500, "", _NOT_IN_SCHEMA), Invalid),
        (500, _status(500, "InternalError", "Internal error occurred: failed calling webhook"), Unavailable),
        (410, _status(410, "Expired", "The provided continue parameter is too old"), Gone),
        (503, "upstream connect error", Unavailable),
        (418, "", ApiError),
    ],
)
def test_every_refusal_has_its_meaning(status: int, body: str, expected: type[ApiError]) -> None:
    error = error_of(status, body, {})

    assert type(error) is expected
    assert error.status == status
    assert error.retry_after is None


def test_what_the_server_said_is_kept() -> None:
    cause = {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.dataset"}
    message = 'FineTuningJob.finetuning.dev "a" is invalid: spec.dataset: Required value'
    body = _status(422, "Invalid", message, name="a", group="finetuning.dev", kind="FineTuningJob", causes=[cause])

    error = error_of(422, body.encode(), {})

    assert (str(error), error.message, error.reason, error.causes) == (message, message, "Invalid", (cause,))
    assert error.details["kind"] == "FineTuningJob"


def test_the_time_to_come_back_is_read_from_header_or_body() -> None:
    busy = _status(429, "TooManyRequests", "storage is (re)initializing", retryAfterSeconds=1)

    assert (type(error_of(429, busy, {})), error_of(429, busy, {}).retry_after) == (Throttled, 1.0)
    assert error_of(429, "Too many requests, please try again later.\n", {"Retry-After": "7"}).retry_after == 7.0
    for nonsense in ("soon", "-1", "nan", "inf", "Wed, 21 Oct 2026 07:28:00 GMT"):
        assert error_of(503, "", {"Retry-After": nonsense}).retry_after is None


@pytest.mark.parametrize("body", ["", "null", "[]", "<html>", '{"kind":"Status","details":7,"message":null}', b"\xff"])
def test_a_body_of_any_shape_is_harmless(body: str | bytes) -> None:
    error = error_of(502, body, {})

    assert (type(error), error.causes, bool(error.message)) == (Unavailable, (), True)


def test_a_message_with_a_whole_pod_template_in_it_is_clipped() -> None:
    error = error_of(422, _status(422, "Invalid", "x" * 100_000), {})

    assert len(error.message) == LONGEST_MESSAGE
    assert error.message.endswith("x…")
