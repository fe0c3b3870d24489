"""One prompt is answered by every candidate, each answer a line of its own."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from tests.support.engines import save_lively, write_lora
from tests.support.evaluation import Finished, candidate, run_program
from tests.support.greedy import greedy
from tests.support.models import tiny_llama
from transformers import AutoConfig

from finetuning_api.dataset import RowFormat
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import CandidateInput, JobIdentity, PromptConfig
from finetuning_server.prompt import prompt_tokens
from finetuning_workload.data import encode_prompt, load_table, render_rows
from finetuning_workload.errors import UserError
from finetuning_workload.models import load_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompt")
    tiny_llama(folder / "small")
    # Choices that are clear in any number format.
    save_lively(AutoConfig.from_pretrained(folder / "small"), load_tokenizer(folder / "small"), folder / "base")
    write_lora(folder / "base", folder / "adapter")
    return folder


def ask(candidates: list[CandidateInput], folder: Path, *, prompt: str = "the invoice", chat: bool = False) -> Finished:
    config = PromptConfig(
        job=JobIdentity(kind="FineTuningJob", name="support-triage"),
        candidates=tuple(candidates),
        prompt=prompt,
        chat=chat,
        max_new_tokens=12,
    )
    return run_program("finetuning_server", config.to_json(), folder)


def test_base_and_tuned_answer_side_by_side_each_with_its_own_weights(world: Path, tmp_path: Path) -> None:
    pair = [candidate("base", world / "base"), candidate("tuned", world / "base", world / "adapter")]

    finished = ask(pair, tmp_path)

    assert finished.exit_code == ExitCode.DONE, finished.log
    lines = [json.loads(line) for line in finished.output.splitlines()]
    answers = [line for line in lines if "text" in line]
    assert [set(answer) for answer in answers] == [{"candidate", "text", "tokens", "seconds"}] * 2
    assert [answer["candidate"] for answer in answers] == ["base", "tuned"]
    assert answers[0]["text"] != answers[1]["text"]
    tokens = prompt_tokens(load_tokenizer(world / "base"), "the invoice", chat=False)
    assert {answer["candidate"]: (answer["text"], answer["tokens"]) for answer in answers} == {
        name: (completion.text, completion.tokens)
        for name, (completion,) in greedy(pair, [tokens], max_new_tokens=12).items()
    }
    assert finished.log.count("serving on") == 1


def test_answers_come_in_pieces_one_after_the_other(world: Path, tmp_path: Path) -> None:
    pair = [candidate("base", world / "base"), candidate("tuned", world / "base", world / "adapter")]

    lines = [json.loads(line) for line in ask(pair, tmp_path).output.splitlines()]

    assert [name for name, _ in groupby(line["candidate"] for line in lines)] == ["base", "tuned"]
    for name in ("base", "tuned"):
        *pieces, answer = [line for line in lines if line["candidate"] == name]
        assert "".join(piece["piece"] for piece in pieces) == answer["text"]
    assert len(lines) > 4


def test_a_plain_prompt_is_encoded_as_it_stands(world: Path) -> None:
    tokenizer = load_tokenizer(world / "base")

    assert prompt_tokens(tokenizer, "the invoice", chat=False) == tokenizer("the invoice")["input_ids"]


def test_a_chat_prompt_has_the_tokens_that_training_on_chats_gives_it(world: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(world / "base")
    messages = [{"role": "user", "content": "refund please"}, {"role": "assistant", "content": "done"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    rows = RowFormat(messages="messages")
    (trained,) = render_rows(load_table(tmp_path / "chats.jsonl", rows), rows, tokenizer)

    found = prompt_tokens(tokenizer, "refund please", chat=True)

    assert found == encode_prompt(tokenizer, trained)
    assert "refund please" in tokenizer.decode(found)


def test_a_chat_prompt_without_a_template_is_refused(world: Path) -> None:
    tokenizer = load_tokenizer(world / "base")
    tokenizer.chat_template = None

    with pytest.raises(UserError, match="no chat template") as caught:
        prompt_tokens(tokenizer, "refund please", chat=True)
    assert caught.value.reason is Reason.UNSUPPORTED


def test_a_missing_adapter_is_a_mistake_with_a_message_and_no_traceback(world: Path, tmp_path: Path) -> None:
    finished = ask([candidate("tuned", world / "base", tmp_path / "nowhere")], tmp_path)

    assert finished.exit_code == ExitCode.USER_ERROR
    assert "is not an adapter" in finished.last_words.message
    assert "Traceback" not in finished.log


def test_an_empty_prompt_is_refused(world: Path, tmp_path: Path) -> None:
    finished = ask([candidate("base", world / "base")], tmp_path, prompt="")

    assert finished.exit_code == ExitCode.USER_ERROR
    assert finished.last_words.reason is Reason.UNSUPPORTED
