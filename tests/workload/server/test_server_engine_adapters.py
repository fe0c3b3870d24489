"""Adapters appear while the engine serves, and only those that are what they should be."""

import asyncio
import logging
import shutil
from pathlib import Path

import pytest
from tests.support.engines import (
    Answer,
    ask,
    complete_folder,
    decoded,
    of_transformers,
    question,
    run,
    serve_config,
    started,
    until,
    write_lora,
)
from tests.support.models import tiny_llama

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import MANIFEST_NAME, AdapterInput
from finetuning_server.engine.batching import BatchingEngine
from finetuning_workload.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


def awaited(adapter: AdapterInput) -> AdapterInput:
    return adapter.model_copy(update={"awaited": True})


def names(engine: BatchingEngine) -> list[str]:
    return [model.name for model in engine.models()]


def test_an_awaited_adapter_is_served_from_the_moment_that_it_is_complete(base: Path, tmp_path: Path) -> None:
    tuned = write_lora(base, tmp_path / "tuned", complete=False)

    async def serve() -> tuple[list[str], list[str], list[str]]:
        async with started(serve_config(base, adapters=[awaited(tuned)])) as engine:
            before = names(engine)
            # One of the base model goes on while the adapter is put into the model's layers.
            asked = question(engine, "the invoice was charged", max_new_tokens=300)
            of_base = engine.generate(asked)
            texts = [(await anext(of_base)).text]
            complete_folder(Path(tuned.path))
            await until(lambda: names(engine) == ["base", "tuned"])
            texts += [piece.text async for piece in of_base]
            of_tuned = question(engine, "one two", model="tuned")
            expected = [of_transformers(base, asked), of_transformers(base, of_tuned, adapter=tuned.path)]
            found = ["".join(texts), (await ask(engine, of_tuned)).text]
            return before, found, [decoded(engine, tokens) for tokens in expected]

    before, found, expected = run(serve)
    assert (before, found) == (["base"], expected)


def test_an_awaited_adapter_that_is_damaged_is_told_once_and_tried_again_when_it_changes(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = write_lora(base, tmp_path / "tuned")
    weights = Path(tuned.path) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + bytes(8))

    async def serve() -> None:
        async with started(serve_config(base, adapters=[awaited(tuned)])) as engine:
            assert names(engine) == ["base"]
            await asyncio.sleep(0.1)
            weights.write_bytes(whole)
            (Path(tuned.path) / MANIFEST_NAME).unlink()
            complete_folder(Path(tuned.path))
            await until(lambda: names(engine) == ["base", "tuned"])

    with caplog.at_level(logging.WARNING):
        run(serve)
    damage = f"{tuned.path} is damaged: adapter_model.safetensors Delete the folder; it is made again."
    told = [record.message for record in caplog.records if "tuned" in record.message]
    assert told == [f"the adapter tuned cannot be served: {damage}"]


def test_an_awaited_adapter_of_another_model_leaves_the_served_ones_as_they_are(base: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "larger", hidden=128)
    foreign = write_lora(other, tmp_path / "foreign")
    tuned = write_lora(base, tmp_path / "tuned")

    async def serve() -> tuple[list[Answer], list[str]]:
        async with started(serve_config(base, adapters=[awaited(foreign), awaited(tuned)])) as engine:
            assert names(engine) == ["base", "tuned"]
            requests = [question(engine, "one two", model=name) for name in names(engine)]
            expected = [of_transformers(base, requests[0]), of_transformers(base, requests[1], adapter=tuned.path)]
            found = [await ask(engine, request) for request in requests]
            return found, [decoded(engine, tokens) for tokens in expected]

    found, expected = run(serve)
    assert [answer.text for answer in found] == expected


def test_an_adapter_whose_folder_is_deleted_is_served_from_memory(base: Path, tmp_path: Path) -> None:
    tuned = write_lora(base, tmp_path / "tuned")

    async def serve() -> tuple[Answer, Answer]:
        async with started(serve_config(base, adapters=[tuned])) as engine:
            asked = question(engine, "one two", model="tuned")
            before = await ask(engine, asked)
            shutil.rmtree(tuned.path)
            return before, await ask(engine, asked)

    before, after = run(serve)
    assert after == before


def start(base: Path, adapter: AdapterInput) -> UserError:
    async def serve() -> None:
        async with started(serve_config(base, adapters=[adapter])):
            pass

    with pytest.raises(UserError) as caught:
        run(serve)
    return caught.value


def test_an_adapter_given_at_start_must_be_the_expected_one(base: Path, tmp_path: Path) -> None:
    tuned = write_lora(base, tmp_path / "tuned").model_copy(update={"digest": f"sha256:{'0' * 64}"})
    error = start(base, tuned)
    assert (error.reason, "expected sha256:000" in error.message) == (Reason.ARTIFACT_CORRUPT, True)


def test_an_adapter_given_at_start_must_fit_the_base_model(base: Path, tmp_path: Path) -> None:
    foreign = write_lora(tiny_llama(tmp_path / "larger", hidden=128), tmp_path / "foreign")
    error = start(base, foreign)
    assert (error.reason, "does not fit the base model" in error.message) == (Reason.INVALID_SPEC, True)
