"""How quick the engine is beside its alternatives: ``python -m bench.server.bench_engine [--model FOLDER]``.

| Contestant | What answers |
|---|---|
| generate | transformers' ``generate``, one request after the other, in this process |
| engine | our engine in this process, every request for the base model |
| engine, adapters | the same, requests spread over the base model and two LoRA adapters |
| transformers serve | ``transformers serve --continuous-batching`` as a process of its own, asked over HTTP |

Every client asks one question after the other, greedily, always for the same number of tokens. Told are the tokens that
were generated a second, by all clients together, and the median and the longest time to a first token. The last table
is the time to the first token of a short prompt that comes just after a long one. Without ``--model`` it is a seeded
Llama of 15 M parameters. Each contestant has a process of its own; they run one after the other.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch
from tests.support.engines import serve_config, write_lora
from tests.support.models import tiny_tokenizer
from tests.support.served import free_port
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from finetuning_api.finetuningjob import Precision
from finetuning_api.runconfig import AdapterInput
from finetuning_server.engine.base import GenerationRequest
from finetuning_server.engine.batching import BatchingEngine, EngineSettings
from finetuning_workload.models import load_base_model, load_tokenizer, quiet_libraries

_CLIENTS = (1, 8, 32)
_ROUNDS = 4
"""Questions of a client: with few, what is measured is how clients begin and end rather than how many share steps."""
_NEW_TOKENS = 64
_LONG_WORDS = 1200
_HEAD_START_SECONDS = 0.05
_START_SECONDS = 120.0
_ADAPTERS = "adapter-*"
_WORDS = ("the", "invoice", "was", "charged", "twice", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, and what its answer took."""

    tokens: int
    first_seconds: float
    """From the question to the first token."""


Ask = Callable[[int, str], Coroutine[Any, Any, Asked]]
"""Asks the question of a client; the number is the client's."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant did for so many clients."""

    clients: int
    tokens_per_second: float
    first_median: float
    first_longest: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one contestant."""

    results: tuple[Result, ...]
    behind_long: float
    """Seconds to the first token of a short prompt behind a long one."""


def question(number: int) -> str:
    """Return a question of 20 to 110 words, another one for each number."""
    length = 20 + number * 37 % 90
    return " ".join(_WORDS[(number + place * (1 + number % 5)) % len(_WORDS)] for place in range(length))


async def measure(ask: Ask, clients: int) -> Result:
    """Let clients ask, each one question after the other."""

    async def client(number: int) -> list[Asked]:
        return [await ask(number, question(number + clients * turn)) for turn in range(_ROUNDS)]

    started = time.perf_counter()
    found = [one for answers in await asyncio.gather(*map(client, range(clients))) for one in answers]
    seconds = time.perf_counter() - started
    first = [one.first_seconds for one in found]
    return Result(clients, sum(one.tokens for one in found) / seconds, median(first), max(first))


async def measure_behind_long(ask: Ask) -> float:
    """Return the seconds to the first token of a short prompt that comes just after a long one."""
    long = asyncio.create_task(ask(0, " ".join(_WORDS[place % len(_WORDS)] for place in range(_LONG_WORDS))))
    await asyncio.sleep(_HEAD_START_SECONDS)
    short = await ask(1, "one two three")
    await long
    return short.first_seconds


class _FirstToken(BaseStreamer):
    """Notes when the first token came; transformers hands it the prompt before."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002  (the streamer's signature)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def chat_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a chat with one message: what ``transformers serve`` makes of it."""
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


@asynccontextmanager
async def generate_loop(folder: Path) -> AsyncIterator[Ask]:
    """Answer with ``generate``, one request after the other."""
    model: PreTrainedModel = load_base_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = load_tokenizer(folder)
    # One thread for all: each would bring compute threads of its own.
    turn = ThreadPoolExecutor(max_workers=1)

    def answer(tokens: list[int]) -> tuple[int, float]:
        ids, streamer = torch.tensor([tokens]), _FirstToken()
        output = model.generate(  # type: ignore[operator]  # a mixin that the type hints do not see
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            streamer=streamer,
        )
        return output.shape[1] - len(tokens), streamer.times[1]

    async def ask(_client: int, text: str) -> Asked:
        asked = time.perf_counter()
        tokens = chat_tokens(tokenizer, text)
        count, first = await asyncio.get_running_loop().run_in_executor(turn, answer, tokens)
        return Asked(count, first - asked)

    yield ask


@asynccontextmanager
async def own_engine(folder: Path, adapters: Sequence[AdapterInput] = ()) -> AsyncIterator[Ask]:
    """Answer with our engine; the clients ask for base model and adapters in turn."""
    config = serve_config(folder, adapters=adapters, max_running=32)
    engine = BatchingEngine(config, environment=os.environ, settings=EngineSettings(precision=Precision.FP32))
    await engine.start()
    names = [model.name for model in engine.models()]

    async def ask(client: int, text: str) -> Asked:
        tokens = tuple(chat_tokens(engine.tokenizer, text))
        request = GenerationRequest(names[client % len(names)], tokens, _NEW_TOKENS, top_logprobs=None)
        asked, first, count = time.perf_counter(), 0.0, 0
        async for piece in engine.generate(request):
            first = first or time.perf_counter() - asked
            count += piece.tokens
        return Asked(count, first)

    try:
        yield ask
    finally:
        await engine.stop()


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    port = free_port()
    options = ["--device", "cpu", "--dtype", "float32", "--port", str(port), "--continuous-batching"]
    blocks = ["--cb-num-blocks", "128", "--cb-block-size", "256", "--cb-max-batch-tokens", "256"]
    program = Path(sys.executable).parent / "transformers"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [str(program), "serve", str(folder), *options, *blocks],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


async def _wait_until_up(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            await client.get("/health")
        except httpx.TransportError:
            await asyncio.sleep(0.2)
        else:
            return
    raise RuntimeError("transformers serve did not start")


@asynccontextmanager
async def transformers_serve(folder: Path) -> AsyncIterator[Ask]:
    """Answer with transformers' own server."""
    with _serving(folder) as url:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            await _wait_until_up(client)

            async def ask(_client: int, text: str) -> Asked:
                body = {
                    "model": str(folder),
                    "messages": [{"role": "user", "content": text}],
                    "max_tokens": _NEW_TOKENS,
                    "temperature": 0,
                    "stream": True,
                }
                asked, first, count = time.perf_counter(), 0.0, 0
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    async for line in answer.aiter_lines():
                        chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
                        if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                            first = first or time.perf_counter() - asked
                        count = (chunk.get("usage") or {}).get("completion_tokens", count)
                return Asked(count, first)

            yield ask


def seeded_llama(folder: Path) -> Path:
    """Write a random Llama of 15 M parameters; all its tokens have a text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f" word{number}" for number in range(8192 - len(tokenizer))])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CONTESTANTS: dict[str, Callable[[Path, Sequence[AdapterInput]], AbstractAsyncContextManager[Ask]]] = {
    "generate": lambda folder, _adapters: generate_loop(folder),
    "engine": lambda folder, _adapters: own_engine(folder),
    "engine, adapters": own_engine,
    "transformers serve": lambda folder, _adapters: transformers_serve(folder),
}


async def measure_one(name: str, folder: Path, *, clients: Sequence[int]) -> Measured:
    """Measure one contestant."""
    adapters = [AdapterInput(name=path.name, path=str(path)) for path in sorted(folder.parent.glob(_ADAPTERS))]
    async with CONTESTANTS[name](folder, adapters) as ask:
        await ask(0, question(0))
        results = tuple([await measure(ask, count) for count in clients])
        return Measured(results, await measure_behind_long(ask))


def measure_apart(name: str, folder: Path, *, clients: Sequence[int]) -> Measured:
    """Measure one contestant in a process of its own: threads that another one left behind would slow it down."""
    options = ["--only", name, "--model", str(folder), "--clients", *map(str, clients)]
    command = [sys.executable, "-m", "bench.server.bench_engine", *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found = json.loads(output)
    return Measured(tuple(Result(**one) for one in found["results"]), found["behind_long"])


def _print(measured: dict[str, Measured]) -> None:
    _say(
        "| clients | contestant | tokens/s | times generate | first token, median s | longest s |\n"
        "|---|---|---|---|---|---|"
    )
    for place, plain in enumerate(measured["generate"].results):
        for name, found in measured.items():
            one = found.results[place]
            ratio = one.tokens_per_second / plain.tokens_per_second
            first = f"{one.first_median:.2f} | {one.first_longest:.2f}"
            _say(f"| {one.clients} | {name} | {one.tokens_per_second:.0f} | {ratio:.1f} | {first} |")
    _say("\n| contestant | first token of a short prompt behind a long one, s |\n|---|---|")
    for name, found in measured.items():
        _say(f"| {name} | {found.behind_long:.2f} |")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a causal language model with a chat template")
    parser.add_argument("--clients", type=int, nargs="+", default=_CLIENTS)
    parser.add_argument("--without-serve", action="store_true", help="leave transformers serve out")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.only:
        found = asyncio.run(measure_one(arguments.only, arguments.model, clients=arguments.clients))
        _say(json.dumps(asdict(found)))
        return
    names = [name for name in CONTESTANTS if name != "transformers serve" or not arguments.without_serve]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        if arguments.model:
            folder.symlink_to(arguments.model.resolve(), target_is_directory=True)
        else:
            seeded_llama(folder)
        for seed in range(2):
            write_lora(folder, Path(scratch, f"adapter-{seed}"), seed=seed)
        _say(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f} before\n")
        _print({name: measure_apart(name, folder, clients=arguments.clients) for name in names})


if __name__ == "__main__":
    main()
