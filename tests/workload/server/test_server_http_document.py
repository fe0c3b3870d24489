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
generating = schema.include(path=["/v1/completions", "/v1/chat/completions", "/prompt"])


def asks_for_too_much(body: dict[str, Any]) -> bool:
    prompts, copies = body.get("prompt"), body.get("n")
    return isinstance(prompts, list) and isinstance(copies, int | float) and len(prompts) * copies > MAX_CHOICES


@schema.parametrize()
@settings(max_examples=20, derandomize=True)
def test_every_answer_is_one_that_the_document_tells_of(case: Case[Any]) -> None:
    case.call_and_validate()


@generating.parametrize()
@settings(max_examples=25, derandomize=True)
def test_every_generated_answer_has_its_documented_shape(case: Case[Any]) -> None:
    """As above, but with a model that is served: a made-up name never gets as far as the engine."""
    if not isinstance(case.body, dict) or not isinstance(case.body.get("model"), str):
        case.call_and_validate()
        return
    # The one bound of two fields together, which no schema can tell.
    assume(not asks_for_too_much(case.body))
    case.body["model"] = "base"

    case.call_and_validate(excluded_checks=[negative_data_rejection])


def test_requests_did_reach_the_engine() -> None:
    asked = [request.model for request in ENGINE.requests]

    # Whether a request to /prompt without a model, which asks "tuned", is among them is left to chance.
    assert set(asked) <= {"base", "tuned"}
    assert asked.count("base") > 20
