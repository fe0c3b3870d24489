"""The real engine on tiny models, and what transformers itself answers, to compare."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.support.evaluation import model_input
from tests.support.models import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetuning_api.finetuningjob import Precision
from finetuning_api.runconfig import AdapterInput, JobIdentity, ServeConfig
from finetuning_server.engine.base import FinishReason, GenerationRequest, Piece, TokenScore
from finetuning_server.engine.batching import BatchingEngine, EngineSettings
from finetuning_workload.artifact import write_manifest

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SECONDS = 60
T = TypeVar("T")


def save_lively(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, *, seed: int = 0) -> Path:
    """Write a random model whose weights are so large that every prompt goes its own way; small ones repeat it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_lively(folder: Path) -> Path:
    """Write a lively Llama that is as small as they get, with its tokenizer."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
    )
    return save_lively(config, tokenizer, folder)


def write_lora(base: Path, folder: Path, *, seed: int = 1, complete: bool = True, **settings: Any) -> AdapterInput:  # noqa: ANN401  (LoRA's settings)
    """Write an adapter that changes what the base model says, and return it under its folder's name."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    wanted: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    } | settings
    adapted = get_peft_model(model, LoraConfig(**wanted))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(str(folder))
    if complete:
        complete_folder(folder)
    return AdapterInput(name=folder.name, path=str(folder))


def complete_folder(folder: Path) -> str:
    """Make an artifact of a folder and return its digest."""
    manifest = write_manifest(
        folder,
        source="training",
        resolved_revision=None,
        content_format="peft-adapter",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        tool="test",
    )
    return manifest.digest


def serve_config(model: Path, *, adapters: Sequence[AdapterInput] = (), **more: Any) -> ServeConfig:  # noqa: ANN401  (fields of the config)
    """Return what a server of a model is told; the base model is called base."""
    return ServeConfig(
        job=JobIdentity(kind="InferenceServer", name="test"),
        model=model_input(model),
        served_name="base",
        adapters=tuple(adapters),
        **more,
    )


@asynccontextmanager
async def started(config: ServeConfig, **settings: Any) -> AsyncIterator[BatchingEngine]:  # noqa: ANN401  (settings of the engine)
    """Run an engine in single precision on one core, which it is stopped on at the end."""
    wanted: dict[str, Any] = {"precision": Precision.FP32, "poll_seconds": 0.02} | settings
    engine = BatchingEngine(config, environment=ONE_THREAD, settings=EngineSettings(**wanted))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def run(act: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run something asynchronous, which may take a minute."""
    return asyncio.run(asyncio.wait_for(act(), SECONDS))


async def until(holds: Callable[[], bool]) -> None:
    """Let the engine work until something holds."""
    while not holds():  # noqa: ASYNC110  (what it waits for has no event)
        await asyncio.sleep(0.005)


def question(engine: BatchingEngine, text: str, *, model: str = "base", **fields: Any) -> GenerationRequest:  # noqa: ANN401  (fields of the request)
    """Return a request; greedy, without more said."""
    tokens = tuple(engine.tokenizer(text)["input_ids"])
    return GenerationRequest(model=model, tokens=tokens, **{"max_new_tokens": 24, **fields})


def decoded(engine: BatchingEngine, tokens: list[int]) -> str:
    """Return the text of tokens, without special ones."""
    return str(engine.tokenizer.decode(tokens, skip_special_tokens=True))


@dataclass(frozen=True, slots=True)
class Answer:
    """All pieces of a completion together."""

    text: str
    tokens: int
    finish: FinishReason | None
    scores: tuple[TokenScore, ...]


async def ask(engine: BatchingEngine, request: GenerationRequest) -> Answer:
    """Return a whole completion."""
    pieces: list[Piece] = [piece async for piece in engine.generate(request)]
    return Answer(
        text="".join(piece.text for piece in pieces),
        tokens=sum(piece.tokens for piece in pieces),
        finish=pieces[-1].finish,
        scores=tuple(score for piece in pieces for score in piece.scores),
    )


def of_transformers(model: Path, request: GenerationRequest, *, adapter: str | None = None) -> list[int]:
    """Return the tokens that transformers' own generate continues a prompt with, greedily."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tuned: PreTrainedModel | PeftModel = loaded if adapter is None else PeftModel.from_pretrained(loaded, adapter)
    ids = torch.tensor([request.tokens])
    output = tuned.eval().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(request.tokens) :].tolist()]
