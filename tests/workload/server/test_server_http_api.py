"""OpenAI's own client, curl and plain HTTP get what OpenAI's API promises."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from tests.support.processes import wait_until
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served import Served, serve_config, served

from finetuning_server.engine.base import GenerationRequest, Sampling, ServedModel
from finetuning_server.engine.errors import EngineError, EngineStopped, OutOfMemory, QueueFull, StepFailed
from finetuning_server.prompt import prompt_tokens

USER: ChatCompletionUserMessageParam = {"role": "user", "content": "refund please"}


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def server(engine: ScriptedEngine) -> Iterator[Served]:
    with served(engine) as running:
        yield running


def error_of(answer: openai.APIStatusError) -> dict[str, Any]:
    return dict(answer.response.json()["error"])


def test_models_are_the_base_and_its_adapters(server: Served) -> None:
    models = server.openai().models.list().data

    assert [(model.id, model.object) for model in models] == [("base", "model"), ("tuned", "model")]
    assert server.openai().models.retrieve("tuned").model_dump()["root"] == "base"


def test_a_completion_carries_text_finish_reason_and_usage(server: Served) -> None:
    answer = server.openai().completions.create(model="tuned", prompt="the invoice", max_tokens=3)

    assert answer.object == "text_completion"
    assert answer.model == "tuned"
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "one two three", "length")
    ]
    assert answer.usage is not None
    prompt = len(server.engine.tokenizer("the invoice")["input_ids"])
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt,
        "completion_tokens": 3,
        "total_tokens": prompt + 3,
    }


def test_every_parameter_reaches_the_engine(server: Served, engine: ScriptedEngine) -> None:
    server.openai().completions.create(
        model="base",
        prompt="the invoice",
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=11,
        stop=["\n", "END"],
        logprobs=2,
        n=2,
    )

    tokens = tuple(prompt_tokens(engine.tokenizer, "the invoice", chat=False))
    assert engine.requests[-2:] == [
        GenerationRequest(
            model="base",
            tokens=tokens,
            max_new_tokens=7,
            stop=("\n", "END"),
            sampling=Sampling(temperature=0.5, top_p=0.9, seed=seed),
            top_logprobs=2,
        )
        for seed in (11, 12)
    ]


def test_max_tokens_never_exceed_what_the_context_has_room_for(server: Served, engine: ScriptedEngine) -> None:
    server.openai().completions.create(model="base", prompt=[5] * 60, max_tokens=1000)
    server.openai().chat.completions.create(model="base", messages=[USER])

    completion, chat = engine.requests[-2:]
    assert completion.max_new_tokens == 4
    assert chat.max_new_tokens == engine.context_length - len(chat.tokens)


@pytest.mark.parametrize(
    ("prompt", "count"), [("one", 1), (["one", "two"], 2), ([5, 6, 7], 1), ([[5, 6], [7], [8]], 3)]
)
def test_a_prompt_may_be_text_or_token_ids_one_or_several(server: Served, prompt: Any, count: int) -> None:  # noqa: ANN401
    answer = server.openai().completions.create(model="base", prompt=prompt, n=2)

    assert [choice.index for choice in answer.choices] == list(range(2 * count))
    assert {choice.text for choice in answer.choices} == {"one two three four"}


def test_a_stream_of_completions_joins_to_the_whole_and_tells_usage_last(server: Served) -> None:
    chunks = list(
        server.openai().completions.create(
            model="base", prompt=["one", "two"], stream=True, stream_options={"include_usage": True}
        )
    )

    texts = ["", ""]
    for chunk in chunks[:-1]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["one two three four"] * 2
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices].count("stop") == 2
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_chat_is_answered_whole(server: Served) -> None:
    answer = server.openai().chat.completions.create(model="tuned", messages=[USER], max_completion_tokens=2)

    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "one two", "length")
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_a_chat_streams_role_words_and_end(server: Served) -> None:
    async def chunks() -> list[Any]:
        stream = await server.async_openai().chat.completions.create(model="base", messages=[USER], stream=True)
        return [chunk async for chunk in stream]

    found = [chunk.choices[0] for chunk in asyncio.run(chunks())]

    assert [choice.delta.model_dump(exclude_unset=True) for choice in found] == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": " two"},
        {"content": " three"},
        {"content": " four"},
        {},
    ]
    assert [choice.finish_reason for choice in found] == [None] * 5 + ["stop"]


def test_logprobs_have_the_shape_of_each_api(server: Served) -> None:
    completion = server.openai().completions.create(model="base", prompt="x", logprobs=1, max_tokens=2)
    chat = server.openai().chat.completions.create(
        model="base",
        messages=[USER],
        logprobs=True,
        top_logprobs=1,
        max_tokens=2,
    )

    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.model_dump() == {
        "tokens": ["one", " two"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"one0": -1.0}, {" two0": -1.0}],
        "text_offset": [0, 3],
    }
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert [token.model_dump() for token in content] == [
        {
            "token": text,
            "logprob": -0.5,
            "bytes": list(text.encode()),
            "top_logprobs": [{"token": f"{text}0", "logprob": -1.0, "bytes": list(f"{text}0".encode())}],
        }
        for text in ("one", " two")
    ]


def test_text_offsets_go_on_over_the_chunks_of_a_stream(server: Served) -> None:
    stream = server.openai().completions.create(model="base", prompt="x", logprobs=0, stream=True)

    offsets = [place for chunk in stream for choice in chunk.choices for place in choice.logprobs.text_offset]  # type: ignore[union-attr]

    assert offsets == [0, 3, 7, 13]


def test_the_single_prompt_is_answered_by_the_adapter_or_by_whom_is_named(
    server: Served, engine: ScriptedEngine
) -> None:
    with server.http() as client:
        default = client.post("/prompt", json={"input_prompt": "the invoice"})
        named = client.post("/prompt", json={"input_prompt": "the invoice", "model": "base"})

    assert default.json() == named.json() == {"response": "one two three four"}
    assert [request.model for request in engine.requests[-2:]] == ["tuned", "base"]
    assert engine.requests[-1].sampling == Sampling()


def test_the_single_prompt_is_answered_by_the_base_model_where_no_adapter_is_served() -> None:
    engine = ScriptedEngine(served=(ServedModel("base"),))
    with served(engine) as server, server.http() as client:
        client.post("/prompt", json={"input_prompt": "the invoice"}).raise_for_status()

    assert [request.model for request in engine.requests] == ["base"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code", "words"),
    [
        ("completions", {"model": "nope", "prompt": "x"}, 404, "model", "model_not_found", "served are base, tuned"),
        ("chat/completions", {"model": "nope", "messages": [USER]}, 404, "model", "model_not_found", "'nope'"),
        ("completions", {"model": "base"}, 400, "prompt", "invalid_value", "prompt: field required"),
        ("completions", {"model": "base", "prompt": 3}, 400, "prompt", "invalid_value", "a valid string; or: "),
        ("completions", {"model": "base", "prompt": ""}, 400, "prompt", "invalid_value", "at least 1 character"),
        ("completions", {"model": "base", "prompt": [5, 384]}, 400, "prompt", "invalid_value", "384"),
        (
            "completions",
            {"model": "base", "prompt": [5] * 64},
            400,
            "prompt",
            "context_length_exceeded",
            "the prompt has 64 tokens; with at least one to generate the limit is 63",
        ),
        ("completions", {"model": "base", "prompt": "x", "echo": True}, 400, "echo", "invalid_value", "not supported"),
        ("completions", {"model": "base", "prompt": "x", "top_k": 3}, 400, "top_k", "unknown_parameter", "top_k"),
        ("completions", {"model": "base", "prompt": "x", "n": 0}, 400, "n", "invalid_value", "greater than"),
        ("completions", {"model": "base", "prompt": ["x"] * 9, "n": 4}, 400, "n", "invalid_value", "more than 32"),
        ("completions", {"model": "base", "prompt": "x", "max_tokens": "9"}, 400, "max_tokens", "invalid_value", "int"),
        (
            "completions",
            {"model": "base", "prompt": "x", "presence_penalty": False},
            400,
            "presence_penalty",
            "invalid_value",
            "not supported",
        ),
        ("chat/completions", {"model": "base", "messages": []}, 400, "messages", "invalid_value", "at least 1 item"),
        (
            "chat/completions",
            {"model": "base", "messages": [{"role": "tool", "content": "x"}]},
            400,
            "messages.0.role",
            "invalid_value",
            "'system', 'developer', 'user' or 'assistant'",
        ),
        (
            "chat/completions",
            {"model": "base", "messages": [USER], "tools": [{"type": "function"}]},
            400,
            "tools",
            "invalid_value",
            "not supported",
        ),
    ],
)
def test_what_is_wrong_with_a_request_is_told_with_its_field(
    server: Served, path: str, body: dict[str, Any], status: int, param: str, code: str, words: str
) -> None:
    with server.http() as client:
        answer = client.post(f"/v1/{path}", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"], error["code"]) == (
        status,
        "invalid_request_error",
        param,
        code,
    )
    assert words in error["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b'{"model": ', "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b'{"model": "base", "prompt": "\\ud800"}', "application/json", 400, "invalid_value"),
        (b'{"model": "base", "prompt": "x", "temperature": NaN}', "application/json", 400, "invalid_value"),
        (b"[]", "application/json", 400, "invalid_value"),
        (b"", "application/json", 400, "invalid_value"),
        (b'{"model": "base", "prompt": "x"}', "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    server: Served, content: bytes, kind: str, status: int, code: str
) -> None:
    with server.http() as client:
        answer = client.post("/v1/completions", content=content, headers={"content-type": kind})

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_paths_and_methods_that_there_are_not_get_error_objects(server: Served) -> None:
    with server.http() as client:
        nowhere, method = client.get("/v2"), client.get("/prompt")
        pages = [client.get(path).status_code for path in ("/docs", "/redoc")]

    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"
    assert pages == [404, 404]


def test_embeddings_are_refused_with_a_sentence(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai().embeddings.create(model="base", input="x")

    assert "embeddings are not served" in error_of(caught.value)["message"]


@pytest.mark.parametrize(
    ("refusal", "raised", "status", "code", "retry_after"),
    [
        (QueueFull(waiting=64, retry_after_seconds=7), openai.RateLimitError, 429, "queue_full", "7"),
        (OutOfMemory("out of memory"), openai.InternalServerError, 503, "out_of_memory", None),
        (EngineStopped("the server is being stopped"), openai.InternalServerError, 503, "stopped", "5"),
        (StepFailed("the model failed"), openai.InternalServerError, 500, "internal", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_has_a_status_before_any_stream_begins(
    server: Served,
    engine: ScriptedEngine,
    refusal: EngineError,
    raised: type[openai.APIStatusError],
    status: int,
    code: str,
    retry_after: str | None,
    *,
    stream: bool,
) -> None:
    engine.script.refusal = refusal
    try:
        with pytest.raises(raised) as caught:
            server.openai().completions.create(model="base", prompt="x", stream=stream)
    finally:
        engine.script.refusal = None

    assert (caught.value.status_code, error_of(caught.value)["code"]) == (status, code)
    assert caught.value.response.headers.get("retry-after") == retry_after


def test_one_request_out_of_memory_leaves_the_server_and_the_others_alone(
    server: Served, engine: ScriptedEngine
) -> None:
    engine.script.failure = OutOfMemory("out of memory in this request")
    try:
        with pytest.raises(openai.APIStatusError, match="out of memory"):
            server.openai().completions.create(model="base", prompt="x")
        with pytest.raises(openai.APIError, match="out of memory in this request"):
            list(server.openai().completions.create(model="base", prompt="x", stream=True))
    finally:
        engine.script.failure = None

    assert server.openai().completions.create(model="base", prompt="x").choices[0].text == "one two three four"
    assert engine.running == 0


def test_a_fault_of_the_server_is_told_with_the_id_under_which_the_log_has_it(
    server: Served, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script.failure = ZeroDivisionError("division by zero")
    try:
        with server.http() as client:
            answer = client.post(
                "/v1/completions", json={"model": "base", "prompt": "x"}, headers={"X-Request-Id": "trace-7"}
            )
    finally:
        engine.script.failure = None

    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "trace-7"
    assert answer.json()["error"]["message"] == (
        "the server failed at this request; its log has the details under the id trace-7"
    )
    wait_until(lambda: "request trace-7 failed" in caplog.messages, what="the log tells of the fault")


def test_a_tokenizer_without_chat_template_refuses_chats_and_nothing_else() -> None:
    engine = ScriptedEngine()
    engine.tokenizer.chat_template = None
    with served(engine) as server:
        with pytest.raises(openai.BadRequestError) as caught:
            server.openai().chat.completions.create(model="base", messages=[USER])
        server.openai().completions.create(model="base", prompt="x")

    assert error_of(caught.value)["code"] == "no_chat_template"
    assert "/v1/completions" in error_of(caught.value)["message"]


def test_curl_streams_line_by_line_until_done(server: Served) -> None:
    body = json.dumps({"model": "base", "prompt": "x", "stream": True})
    command = ["curl", "-sN", "-i", f"{server.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body]

    said = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()

    head, _, events = said.partition("\r\n\r\n")
    assert "content-type: text/event-stream; charset=utf-8" in head.lower().splitlines()
    lines = [line for line in events.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-1]]
    assert texts == ["one", " two", " three", " four", ""]


def test_a_request_is_logged_without_its_prompt(server: Served) -> None:
    with server.http(headers={"X-Request-Id": "trace-8"}) as client:
        answer = client.post("/v1/completions", json={"model": "tuned", "prompt": "a secret", "max_tokens": 2})
        refused = client.post(
            "/v1/completions", json={"model": "nope", "prompt": "a secret"}, headers={"X-Request-Id": 'a"b'}
        )
        client.get("/healthz", headers={"X-Request-Id": "probe-1"})

    first, second = server.line("trace-8"), server.line(refused.headers["x-request-id"])
    assert answer.json()["id"] == "cmpl-trace-8"
    assert {name: first[name] for name in first if not name.endswith("seconds") and name != "time"} == {
        "request_id": "trace-8",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "tuned",
        "prompt_tokens": len(server.engine.tokenizer("a secret")["input_ids"]),
        "completion_tokens": 2,
    }
    assert 0 <= first["first_token_seconds"] <= first["seconds"]
    assert (second["status"], second["request_id"].isalnum()) == (404, True)
    assert "a secret" not in server.log.getvalue()
    assert "probe-1" not in server.log.getvalue()


def test_prompts_are_logged_where_the_server_is_told_to() -> None:
    with served(config=serve_config(log_prompts=True)) as server:
        first = server.openai().completions.create(model="base", prompt="a secret")
        second = server.openai().chat.completions.create(model="base", messages=[USER])

        ids = [answer.id.partition("-")[2] for answer in (first, second)]
        assert [server.line(request_id)["prompt"] for request_id in ids] == ["a secret", [USER]]


def test_metrics_count_requests_tokens_and_what_is_in_flight(server: Served, engine: ScriptedEngine) -> None:
    labels = {"route": "/v1/completions", "model": "tuned", "status": "200"}
    before = server.metric("requests_total", **labels)
    generated = server.metric("generated_tokens_total", model="tuned")
    engine.script.held = True
    try:
        stream = server.openai().completions.create(model="tuned", prompt="x", stream=True, n=2)
        first = next(iter(stream))
        during = (server.metric("requests_in_flight"), server.metric("requests_running"))
    finally:
        engine.script.held = False
    list(stream)

    assert first.choices[0].text == "one"
    assert during == (1.0, 2.0)
    wait_until(lambda: server.metric("requests_total", **labels) == before + 1, what="the request is counted")
    assert server.metric("requests_in_flight") == 0.0
    assert server.metric("generated_tokens_total", model="tuned") == generated + 8
    assert server.metric("first_token_seconds_count", model="tuned") >= 1
    assert server.metric("request_seconds_count", route="/v1/completions") >= 1
