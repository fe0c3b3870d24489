"""`finetune serve` and `chat` as processes, with a real server of a small tuned job."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.processes import FINETUNE, environment, start, wait_until
from tests.support.tuned import BASE, NAME, finish_training, tuned_state
from typer.testing import CliRunner

from finetuning_cli.main import app

TOKENS = 8
_SECONDS = 240


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that `finetune serve` runs, and what the command printed."""

    process: "subprocess.Popen[str]"
    printed: list[str]

    @property
    def url(self) -> str:
        return self.printed[0].split(" at ")[1].split()[0]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def says(self, model: str, *turns: str) -> str:
        """Return the next answer in a chat of these turns, the user's first."""
        messages: list[Any] = [
            {"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)
        ]
        answer = self.client.chat.completions.create(model=model, messages=messages, max_tokens=TOKENS, temperature=0)
        return answer.choices[0].message.content or ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(state: Path, *arguments: str, lines: int = 2) -> Serving:
    """Start a server and return once it has printed so many lines."""
    process = start(FINETUNE, "serve", NAME, "--state", state, "--port", str(free_port()), *arguments, cwd=state)
    assert process.stdout is not None
    printed = [process.stdout.readline().rstrip("\n") for _ in range(lines)]
    assert all(printed), process.communicate(timeout=_SECONDS)[1]
    return Serving(process, printed)


def stop(serving: Serving) -> int:
    os.kill(serving.process.pid, signal.SIGINT)
    serving.process.communicate(timeout=_SECONDS)
    return serving.process.returncode


@dataclass(frozen=True, slots=True)
class Talk:
    """A chat that has ended."""

    exit_code: int
    answers: str
    told: str


def chat(said: str, *arguments: str | Path, token: str = "") -> Talk:
    command = [str(part) for part in (FINETUNE, "chat", *arguments, "--max-new-tokens", TOKENS)]
    own = environment({"FINETUNING_TOKEN": token} if token else {})
    done = subprocess.run(command, input=said.encode(), env=own, capture_output=True, timeout=_SECONDS, check=False)
    return Talk(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_state(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def serving(state: Path) -> Iterator[Serving]:
    running = serve(state)
    yield running
    running.process.kill()
    running.process.wait()


def test_served_models_answer_as_prompt_does_under_the_names_of_a_cluster(serving: Serving, state: Path) -> None:
    text = "the invoice was charged"
    asked = CliRunner().invoke(
        app, ["prompt", NAME, text, "--raw", "-o", "json", "--max-new-tokens", str(TOKENS), "--state", str(state)]
    )
    answers = {each["candidate"]: each["text"] for each in map(json.loads, asked.stdout.splitlines())}

    assert serving.printed[0] == f"serves {BASE}, {NAME} at {serving.url} until Ctrl-C"
    assert [model.id for model in serving.client.models.list()] == [BASE, NAME]
    served = {
        name: serving.client.completions.create(model=name, prompt=text, max_tokens=TOKENS, temperature=0)
        for name in (BASE, NAME)
    }
    assert {name: answer.choices[0].text for name, answer in served.items()} == {
        BASE: answers["base"],
        NAME: answers["tuned"],
    }
    assert answers["base"] != answers["tuned"]


def test_printed_curl_line_works_as_it_is(serving: Serving) -> None:
    done = subprocess.run(shlex.split(serving.printed[1]), capture_output=True, text=True, timeout=60, check=True)

    assert set(json.loads(done.stdout)) == {"response"}


def test_chat_remembers_what_was_said_until_it_is_reset(serving: Serving) -> None:
    done = chat("\nrefund please\nthank you\n/reset\nthank you\n/exit\nnever asked\n", "--url", serving.url)

    first = serving.says(NAME, "refund please")
    answers = [first, serving.says(NAME, "refund please", first, "thank you"), serving.says(NAME, "thank you")]
    assert done.exit_code == 0, done.told
    assert done.answers == "".join(f"{answer}\n" for answer in answers)
    assert answers[1] != answers[2]


def test_chat_changes_its_model(serving: Serving) -> None:
    done = chat(f"/model\n/model {BASE}\nrefund please\n", "--url", f"{serving.url}/v1/")

    assert done.answers == f"{serving.says(BASE, 'refund please')}\n"
    assert done.told == f"  {BASE}\n* {NAME}\n"
    assert done.exit_code == 0


def test_chat_goes_on_after_a_mistake_and_tells_of_it_at_its_end(serving: Serving) -> None:
    done = chat(f"/model other\n/jump\n{'long ' * 600}\nhi\n", "--url", serving.url, "--model", BASE)

    assert done.answers == f"{serving.says(BASE, 'hi')}\n"
    unknown, no_command, *advice, too_long = done.told.splitlines()[:6]
    assert unknown == f"error: the model 'other' is not served here; served are {BASE}, {NAME}"
    assert no_command == "there is no command /jump"
    assert [line.split()[0] for line in advice] == ["/model", "/reset", "/exit"]
    assert re.search(r"error: the server at \S+ answers 400 to /v1/chat/completions: .*limit is 511", too_long)
    assert done.exit_code == 1


def test_chat_starts_and_ends_the_server_of_a_local_job(state: Path, serving: Serving) -> None:
    done = chat("refund please\n", NAME, "--state", state)

    assert done.exit_code == 0, done.told
    assert done.answers == f"{serving.says(NAME, 'refund please')}\n"


def test_adapter_of_a_job_in_training_is_served_once_it_is_there_and_ctrl_c_ends_well(tmp_path: Path) -> None:
    running = serve(tuned_state(tmp_path, trained=False), lines=3)
    before = [model.id for model in running.client.models.list()]

    finish_training(tmp_path)
    wait_until(lambda: len(list(running.client.models.list())) == 2, what="the adapter is served")
    answer = running.says(NAME, "refund please")
    code = stop(running)

    assert running.printed[0] == f"serves {BASE} at {running.url} until Ctrl-C"
    assert running.printed[1] == f"  {NAME} is served from the moment that it is trained"
    assert before == [BASE]
    assert answer
    assert code == 0


def test_protected_server_wants_a_token(state: Path, tmp_path: Path) -> None:
    (tmp_path / "me").write_text("sesame\n")
    running = serve(state, "--tokens", str(tmp_path))
    try:
        refused = chat("hi\n", "--url", running.url)
        done = chat("hi\n", "--url", running.url, token="sesame")
    finally:
        running.process.kill()
        running.process.wait()

    assert "-H 'Authorization: Bearer TOKEN'" in running.printed[1]
    assert refused.exit_code == 1
    assert "answers 401 to /v1/models" in refused.told
    assert "FINETUNING_TOKEN" in refused.told
    assert (done.exit_code, done.told) == (0, "")
