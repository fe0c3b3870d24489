"""The server as its image runs it: a process with a real model, real sockets and real signals."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai.types.chat import ChatCompletionUserMessageParam
from tests.support.engines import complete_folder, save_lively, write_lora
from tests.support.evaluation import program_environment, run_program
from tests.support.models import tiny_llama
from tests.support.processes import wait_until
from tests.support.served import SECONDS, Served, is_ready, serve_config
from transformers import AutoConfig, AutoModelForCausalLM

from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import AdapterInput, LastWords, ServeConfig
from finetuning_server.prompt import prompt_tokens
from finetuning_workload.generation import complete
from finetuning_workload.models import load_tokenizer

PROMPT = "the invoice was charged twice"
USER: ChatCompletionUserMessageParam = {"role": "user", "content": "refund please"}
TOKENS = 24


@dataclass(slots=True)
class Program:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    folder: Path
    client: Served

    @property
    def log(self) -> str:
        """Everything that it wrote."""
        return (self.folder / "log").read_text() + (self.folder / "access").read_text()

    def end(self) -> int:
        """Ask it to end as the kubelet does and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def last_words(self) -> LastWords:
        """Return what it left."""
        return LastWords.model_validate_json((self.folder / "last-words.json").read_bytes())


@contextmanager
def program(config: ServeConfig, folder: Path) -> Iterator[Program]:
    """Run the server until the end of the context, from when it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    environment = program_environment(folder / "config.json", folder / "last-words.json")
    with (folder / "access").open("wb") as access, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetuning_server"], env=environment, stdout=access, stderr=log
        )
    url = f"http://127.0.0.1:{config.port}"
    running = Program(process, folder, Served(url=url, engine=None))
    try:
        wait_until(lambda: process.poll() is not None or is_ready(url), what="the server is ready")
        assert process.poll() is None, running.log
        yield running
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    tiny_llama(folder / "small")
    config = AutoConfig.from_pretrained(folder / "small")
    save_lively(config, load_tokenizer(folder / "small"), folder / "base")
    write_lora(folder / "base", folder / "tuned")
    write_lora(folder / "base", folder / "later", seed=2, complete=False)
    return folder


@pytest.fixture(scope="module")
def server(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    adapters = (
        AdapterInput(name="tuned", path=str(world / "tuned")),
        AdapterInput(name="later", path=str(world / "later"), awaited=True),
    )
    with program(serve_config(world / "base", adapters=adapters), tmp_path_factory.mktemp("program")) as running:
        yield running


def test_greedy_text_is_what_the_model_says_by_itself_and_the_adapter_says_something_else(
    server: Program, world: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    tokenizer = load_tokenizer(world / "base")
    (alone,) = complete(model, tokenizer, [prompt_tokens(tokenizer, PROMPT, chat=False)], max_new_tokens=TOKENS)
    client = server.client.openai()

    base, tuned = (
        client.completions.create(model=name, prompt=PROMPT, max_tokens=TOKENS, temperature=0)
        for name in ("base", "tuned")
    )

    assert base.choices[0].text == alone.text
    assert base.usage is not None
    assert base.usage.completion_tokens == alone.tokens
    assert tuned.choices[0].text != alone.text


def test_many_at_once_stream_what_each_gets_alone(server: Program) -> None:
    client = server.client.openai()
    prompts = [f"{PROMPT} {number} times" for number in range(8)]

    def whole(prompt: str) -> str:
        answer = client.completions.create(model="tuned", prompt=prompt, max_tokens=TOKENS, temperature=0)
        return answer.choices[0].text

    def streamed(prompt: str) -> str:
        chunks = client.completions.create(model="tuned", prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True)
        return "".join(choice.text for chunk in chunks for choice in chunk.choices)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(streamed, prompts))

    assert together == [whole(prompt) for prompt in prompts]
    assert len(set(together)) > 1


def test_equal_seeds_draw_equal_answers_and_others_do_not(server: Program) -> None:
    def drawn(seed: int) -> str | None:
        answer = server.client.openai().chat.completions.create(
            model="base", messages=[USER], seed=seed, temperature=1.5, max_tokens=TOKENS
        )
        return answer.choices[0].message.content

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_logprobs_belong_to_the_text_and_its_alternatives(server: Program) -> None:
    answer = server.client.openai().completions.create(
        model="base", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=2
    )

    told = answer.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert len(told.token_logprobs) == 4
    assert [max(top.values()) for top in told.top_logprobs] == told.token_logprobs
    assert all(logprob <= 0 for logprob in told.token_logprobs)


def test_a_prompt_longer_than_the_context_is_refused_with_the_limit(server: Program) -> None:
    with pytest.raises(openai.BadRequestError, match="the limit is 511") as caught:
        server.client.openai().completions.create(model="base", prompt=[5] * 512)

    assert caught.value.code == "context_length_exceeded"


def test_a_token_that_there_is_not_is_refused_and_the_server_goes_on(server: Program) -> None:
    client = server.client.openai()
    with pytest.raises(openai.BadRequestError, match="999999"):
        client.completions.create(model="base", prompt=[999_999])

    assert client.completions.create(model="base", prompt=[5], max_tokens=1).usage is not None


def test_the_single_prompt_is_answered(server: Program) -> None:
    with server.client.http() as client:
        answer = client.post("/prompt", json={"input_prompt": PROMPT, "model": "base", "max_tokens": TOKENS})
    greedy = server.client.openai().completions.create(model="base", prompt=PROMPT, max_tokens=TOKENS, temperature=0)

    assert answer.json() == {"response": greedy.choices[0].text}


def test_an_adapter_that_is_completed_later_is_served_without_a_restart_and_also_once_its_folder_is_gone(
    server: Program, world: Path
) -> None:
    client = server.client.openai()
    before = [model.id for model in client.models.list()]

    complete_folder(world / "later")

    wait_until(lambda: "later" in [model.id for model in client.models.list()], what="the adapter is served")
    first = client.completions.create(model="later", prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    shutil.rmtree(world / "later")
    second = client.completions.create(model="later", prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    assert before == ["base", "tuned"]
    assert second.choices[0].text == first.choices[0].text


@dataclass(slots=True)
class Caller:
    """A client that asks again and again until nobody listens any more."""

    url: str
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: bool = False

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=SECONDS) as client:
            while not self.refused and not self.wrong:
                self._ask(client)

    def _ask(self, client: httpx.Client) -> None:
        body = {"model": "tuned", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        try:
            answer = client.post("/v1/completions", json=body)
        except httpx.ConnectError:
            self.refused = True
        except httpx.HTTPError as error:
            self.wrong.append(repr(error))
        else:
            if answer.status_code != httpx.codes.OK or not answer.text.endswith("data: [DONE]\n\n"):
                self.wrong.append(f"{answer.status_code} {answer.text}")
            self.answered += 1


def test_sigterm_under_load_drops_no_request_and_ends_with_success(world: Path, tmp_path: Path) -> None:
    adapters = (AdapterInput(name="tuned", path=str(world / "tuned")),)
    with program(serve_config(world / "base", adapters=adapters), tmp_path) as running:
        callers = [Caller(running.client.url) for _ in range(12)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(caller.answered for caller in callers), what="every client was answered")
        before = [caller.answered for caller in callers]

        exit_code = running.end()
        for thread in threads:
            thread.join(SECONDS)

        assert [caller.wrong for caller in callers] == [[]] * 12
        assert all(caller.refused for caller in callers)
        assert [caller.answered for caller in callers] > before
        assert exit_code == ExitCode.DONE
        assert running.last_words().reason is Reason.SUCCEEDED
        assert "Traceback" not in running.log


def test_a_model_volume_that_is_missing_is_told_in_the_last_words(tmp_path: Path) -> None:
    finished = run_program("finetuning_server", serve_config(tmp_path / "nowhere").to_json(), tmp_path / "run")

    assert finished.exit_code == ExitCode.ENVIRONMENT
    assert finished.last_words.reason is Reason.VOLUME_UNAVAILABLE
    assert finished.last_words.message == f"the folder of the base model, {tmp_path / 'nowhere'}, is not there"
    assert "mounted" in finished.last_words.hint
    assert "Traceback" not in finished.log


def test_a_folder_without_a_model_is_told_in_the_last_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    finished = run_program("finetuning_server", serve_config(tmp_path / "empty").to_json(), tmp_path / "run")

    assert finished.exit_code == ExitCode.USER_ERROR
    assert finished.last_words.reason is Reason.MODEL_UNREADABLE
    assert "Traceback" not in finished.log
