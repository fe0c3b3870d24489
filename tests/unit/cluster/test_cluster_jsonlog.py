import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from finetuning_operator.cluster.jsonlog import JsonFormatter, about, configure, without_secrets
from finetuning_operator.cluster.keys import ObjectKey

KEY = ObjectKey("FineTuningJob", "team", "triage")


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger of its own and what it writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("operator.test")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, stream
    logger.removeHandler(handler)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_logger_and_message(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log

    logger.info("created %d Jobs,\nall of them", 3)

    (line,) = _lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "logger": "operator.test", "message": "created 3 Jobs,\nall of them"}
    assert stream.getvalue().count("\n") == 1


def test_lines_name_the_object_that_they_are_about_across_tasks(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log

    async def work(name: str) -> None:
        with about(ObjectKey("FineTuningJob", "team", name)):
            await asyncio.sleep(0)
            logger.info("begin")
            await asyncio.create_task(_say(logger))

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))
        logger.info("end")

    asyncio.run(both())

    told = sorted((line["message"], line.get("kind", ""), line.get("name", "")) for line in _lines(stream))
    assert told == [
        ("begin", "FineTuningJob", "a"),
        ("begin", "FineTuningJob", "b"),
        ("end", "", ""),
        ("inner", "FineTuningJob", "a"),
        ("inner", "FineTuningJob", "b"),
    ]


async def _say(logger: logging.Logger) -> None:
    logger.info("inner")


def test_lines_of_kopf_name_their_object_themselves(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    reference = {"apiVersion": "v1", "kind": "Job", "namespace": "team", "name": "x", "uid": "u"}

    with about(KEY):
        logger.info("seen", extra={"k8s_ref": reference})

    (line,) = _lines(stream)
    assert (line["kind"], line["namespace"], line["name"]) == ("Job", "team", "x")


def _fail(message: str) -> None:
    raise ValueError(message)


def test_an_error_comes_with_the_end_of_its_traceback(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    message = "x" * 20_000 + " https://user:secret@host/"

    try:
        _fail(message)
    except ValueError:
        logger.exception("failed")

    (line,) = _lines(stream)
    assert len(line["error"]) == 8192
    assert line["error"].endswith("x https://***@host/")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer ***"),
        ("token eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrOHMifQ.c2lnbmF0dXJl refused", "token *** refused"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "HF_TOKEN=***"),
        ("git+https://me:pw@example.org/x", "git+https://***@example.org/x"),
        ("the bearer of news came to team/triage", "the bearer of news came to team/triage"),
    ],
)
def test_credentials_never_reach_the_log(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_every_logger_of_the_process_writes_json_once_configured() -> None:
    root = logging.getLogger()
    access = logging.getLogger("aiohttp.access")
    before, levels = list(root.handlers), (root.level, access.level)
    stream = io.StringIO()
    try:
        configure("INFO", stream)
        logging.getLogger("kopf.objects").info("hello")
        logging.getLogger("kopf.objects").debug("unheard")
        logging.getLogger("aiohttp.access").info("unheard")
    finally:
        root.handlers[:] = before
        root.setLevel(levels[0])
        access.setLevel(levels[1])

    assert [(line["logger"], line["message"]) for line in _lines(stream)] == [("kopf.objects", "hello")]
