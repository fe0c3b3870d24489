"""An engine that will never answer again says so, and one that only failed a request does not."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.engines import ask, question, run, serve_config, started, tiny_lively, until

from finetuning_server.engine.batching import BatchingEngine
from finetuning_server.engine.errors import EngineStopped, StepFailed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lively(tmp_path_factory.mktemp("model"))


@contextmanager
def breaking(engine: BatchingEngine, *, only_prompts_of: int | None = None) -> Iterator[None]:
    """Let the model fail as a broken accelerator makes it fail: always, or for prompts of one length alone."""
    core = engine._core
    assert core is not None

    def fail(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ANN401  (torch's hook)
        if only_prompts_of in {None, kwargs["input_ids"].shape[-1]}:
            raise RuntimeError("CUDA error: device-side assert triggered")

    hook = core.library.base.network.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def test_a_model_that_cannot_compute_any_more_is_a_fault(folder: Path) -> None:
    async def act() -> tuple[str, str]:
        async with started(serve_config(folder)) as engine:
            asked = question(engine, "some text")
            before = engine.fault()
            with breaking(engine), pytest.raises(StepFailed):
                await ask(engine, asked)
            with pytest.raises(EngineStopped, match="cannot compute any more"):
                await ask(engine, asked)
            return before, engine.fault()

    assert run(act) == ("", "the model cannot compute any more: RuntimeError")


def test_a_request_that_fails_alone_is_no_fault(folder: Path) -> None:
    async def act() -> tuple[str, int]:
        async with started(serve_config(folder)) as engine:
            poison, harmless = question(engine, "a text that is poison"), question(engine, "some text")
            assert len(poison.tokens) != len(harmless.tokens)
            with breaking(engine, only_prompts_of=len(poison.tokens)):
                with pytest.raises(StepFailed):
                    await ask(engine, poison)
                return engine.fault(), (await ask(engine, harmless)).tokens

    assert run(act) == ("", 24)


def test_a_step_that_does_not_end_is_a_fault_until_it_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> tuple[str, str, int]:
        async with started(serve_config(folder), stuck_seconds=0.05) as engine:
            core = engine._core
            assert core is not None
            released, step = threading.Event(), core.scheduler.step
            monkeypatch.setattr(core.scheduler, "step", lambda: released.wait() and step())
            waiting = asyncio.create_task(ask(engine, question(engine, "some text")))
            await until(lambda: bool(engine.fault()))
            held = engine.fault()
            with pytest.raises(EngineStopped):
                await ask(engine, question(engine, "another text"))
            monkeypatch.undo()
            released.set()
            answer = await waiting
            return held, engine.fault(), answer.tokens

    held, later, tokens = run(act)
    assert held.startswith("the engine is at one step for ")
    assert (later, tokens) == ("", 24)


def test_an_engine_that_takes_no_more_steps_lets_nobody_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> str:
        async with started(serve_config(folder)) as engine:

            def fail(_events: object) -> None:
                raise RuntimeError("broken")

            monkeypatch.setattr(engine, "_deliver", fail)
            with pytest.raises(EngineStopped, match="takes no more steps"):
                await ask(engine, question(engine, "some text"))
            return engine.fault()

    assert run(act) == "the engine takes no more steps"


def test_an_engine_that_was_stopped_is_not_broken(folder: Path) -> None:
    async def act() -> str:
        async with started(serve_config(folder)) as engine:
            await engine.stop()
            return engine.fault()

    assert run(act) == ""
