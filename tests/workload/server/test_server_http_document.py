"""The server does what its own OpenAPI document says, whatever it is sent."""

import io
from typing import Any

import schemathesis
from hypothesis import assume, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served import serve_config

from finetuning_server.http.app import Life, Phase, create_app
from finetuning_server.http.schemas import MAX_CHOICES

ENGINE = ScriptedEngine(context_length=100_000, vocabulary=2**31)
"""Has room for every prompt and knows every token: what is left to refuse is what the document can tell of."""
APP = create_app(ENGINE, serve_config(), life=Life(Phase.READY), log=io.StringIO())
# Embeddings are always refused, which no document can call a way to ask.
schema = schemathesis.openapi.from_asgi("/openapi.json", APP).exclude(path="/v1/embeddings")


def asks_for_too_much(body: dict[str, Any]) -> bool:
    prompts, copies = body.get("prompt"), body.get("n")
    return isinstance(prompts, list) and isinstance(copies, int | float) and len(prompts) * copies > MAX_CHOICES


def answered_as_told(path: str) -> Any:  # noqa: ANN401  (a test, as schemathesis makes it)
    """Return a test of all that may be sent to a path.

    A test for each: those that schemathesis makes of one share an id, and pytest-xdist runs one test for an id.
    """

    @schema.include(path=path).parametrize()
    @settings(max_examples=20, derandomize=True)
    def test(case: Case[Any]) -> None:
        case.call_and_validate()

    return test


def generated_as_told(path: str) -> Any:  # noqa: ANN401
    """As above, but with a model that is served: a made-up name never gets as far as the engine."""

    @schema.include(path=path).parametrize()
    @settings(max_examples=25, derandomize=True)
    def test(case: Case[Any]) -> None:
        if not isinstance(case.body, dict) or not isinstance(case.body.get("model"), str):
            case.call_and_validate()
            return
        # The one bound of two fields together, which no schema can tell.
        assume(not asks_for_too_much(case.body))
        case.body["model"] = "base"

        case.call_and_validate(excluded_checks=[negative_data_rejection])

    return test


test_models = answered_as_told("/v1/models")
test_one_model = answered_as_told("/v1/models/{model}")
test_completions = answered_as_told("/v1/completions")
test_chat_completions = answered_as_told("/v1/chat/completions")
test_prompt = answered_as_told("/prompt")
test_health = answered_as_told("/healthz")
test_readiness = answered_as_told("/readyz")
test_metrics = answered_as_told("/metrics")
test_generated_completions = generated_as_told("/v1/completions")
test_generated_chat_completions = generated_as_told("/v1/chat/completions")
test_generated_answers_to_prompts = generated_as_told("/prompt")


def test_no_path_was_forgotten() -> None:
    paths = {path for path in schema.raw_schema["paths"] if path != "/v1/embeddings"}

    assert paths == {
        *("/v1/models", "/v1/models/{model}", "/v1/completions", "/v1/chat/completions", "/prompt"),
        *("/healthz", "/readyz", "/metrics"),
    }


def test_requests_did_reach_the_engine() -> None:
    asked = [request.model for request in ENGINE.requests]

    # Whether a request to /prompt without a model, which asks "tuned", is among them is left to chance.
    assert set(asked) <= {"base", "tuned"}
    assert asked.count("base") > 20
