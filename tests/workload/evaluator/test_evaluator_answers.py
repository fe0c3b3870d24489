"""Answers score the same whether their question is read once for all of them or with each."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support.models import tiny_gpt2, tiny_llama
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from finetuning_evaluator import answers as answers_module
from finetuning_evaluator.answers import Question, answer_log_probabilities
from finetuning_evaluator.score import Window, log_probabilities

QUESTIONS = (
    Question((5, 6, 7, 8, 9, 10), ((11,), (12, 13), (14, 15, 16, 17))),
    Question((20,), ((11, 2), (12, 2))),
    Question(tuple(range(30, 60)), ((3,), (4,))),
    Question(tuple(range(60, 75)), ((7, 8, 9), (7, 8), (9, 9, 9, 9, 9))),
)


def read_together(model: torch.nn.Module) -> list[list[float]]:
    return [
        [
            float(log_probabilities(model, [Window((*asked.ids, *answer), len(asked.ids))])[0].sum())
            for answer in asked.answers
        ]
        for asked in QUESTIONS
    ]


@pytest.fixture(params=["llama", "gpt2", "adapter", "softcap", "sliding"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[torch.nn.Module]:
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    match request.param:
        case "llama":
            yield AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path)).eval()
        case "gpt2":
            yield AutoModelForCausalLM.from_pretrained(tiny_gpt2(tmp_path)).eval()
        case "adapter":
            base = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path))
            settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            yield get_peft_model(base, settings).eval()
        case "softcap":
            yield Gemma2ForCausalLM(Gemma2Config(**small, **heads, final_logit_softcapping=0.05)).eval()
        case _:
            yield MistralForCausalLM(MistralConfig(**small, **heads, sliding_window=8)).eval()


def test_a_question_that_is_read_once_gives_the_scores_of_one_that_is_read_with_every_answer(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_together(model)
    whole_reads: list[int] = []

    def noted(*arguments: object, **options: object) -> object:
        whole_reads.append(1)
        return log_probabilities(*arguments, **options)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(answers_module, "log_probabilities", noted)

    found = answer_log_probabilities(model, QUESTIONS)

    for ones, others in zip(found, expected, strict=True):
        assert ones == pytest.approx(others, abs=1e-5)
    # Once for the comparison on the first question; were it more, nothing would have been saved.
    assert len(whole_reads) == 1


def test_a_model_without_keys_and_values_reads_every_answer_with_its_question_and_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()

    found = answer_log_probabilities(model, QUESTIONS)

    for ones, others in zip(found, read_together(model), strict=True):
        assert ones == pytest.approx(others, abs=1e-5)
    assert "every answer is read with its question" in caplog.text


@pytest.mark.parametrize("error", [TypeError("no cache"), torch.OutOfMemoryError("CUDA out of memory")])
def test_only_what_an_architecture_refuses_is_done_without(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path)).eval()

    def refuse(_module: object, _arguments: object, options: dict[str, Any]) -> None:
        if options.get("past_key_values") is not None:
            raise error

    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            answer_log_probabilities(model, QUESTIONS)
        return
    for ones, others in zip(answer_log_probabilities(model, QUESTIONS), read_together(model), strict=True):
        assert ones == pytest.approx(others, abs=1e-5)
    assert "the architecture refuses it: TypeError('no cache')" in caplog.text


def test_windows_that_differ_in_their_last_token_alone_are_read_once(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path)).eval()
    rows: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _module, _arguments, options: rows.append(options["input_ids"].shape[0]), with_kwargs=True
    )
    windows = [Window((5, 6, 7, last), 3) for last in (8, 9)] + [Window((5, 6, 8), 1)]

    found = log_probabilities(model, windows)

    assert rows[2:] == [2]  # The first two are the comparison of trunk and whole model.
    alone = [log_probabilities(model, [window])[0] for window in windows]
    assert [len(each) for each in found] == [1, 1, 2]
    for one, other in zip(found, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
