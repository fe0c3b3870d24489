"""Likelihoods from batches and windows equal those of a naive loop over single rows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tests.support.models import tiny_gpt2, tiny_llama
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from finetuning_api.metrics import Metric
from finetuning_evaluator.metrics import accuracy, cola, general, pairs, perplexity
from finetuning_evaluator.score import Window, document_log_probabilities, log_probabilities, windows
from finetuning_workload.data import RenderedRow, Segment, encode_row
from finetuning_workload.models import load_base_model, load_tokenizer

TEXTS = ("the invoice", "one two three four five six seven", "red", "ä 漢字 🙂 and the report " * 4)


def row(row_id: str, prompt: str, completion: str) -> RenderedRow:
    return RenderedRow(row_id, (Segment(prompt, supervised=False), Segment(completion, supervised=True)))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]
    return make(tmp_path_factory.mktemp(request.param), positions=128)


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return load_base_model(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


@torch.inference_mode()
def naive(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of all tokens from the second on, by the model's own forward pass on one unpadded row."""
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].double()
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(list(ids[1:]))[:, None])[:, 0]


def test_batched_log_probabilities_equal_those_of_single_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    documents = [tokenizer(text)["input_ids"] for text in TEXTS]
    found = document_log_probabilities(model, documents, max_length=1024)

    for ids, scores in zip(documents, found, strict=True):
        assert scores == pytest.approx(naive(model, ids).numpy()[: len(scores)], abs=1e-5)
        assert len(scores) == len(ids) - 1


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 12, 13, 40, 41])
def test_windows_score_each_token_once_and_with_half_a_window_of_context(length: int) -> None:
    ids = list(range(length))
    cut = windows(ids, max_length=8)

    assert [token for window in cut for token in window.ids[window.first :]] == ids[1:]
    assert all(len(window.ids) <= 8 for window in cut)
    assert all(window.first >= 4 for window in cut[1:])


def test_a_document_longer_than_the_context_is_scored_in_overlapping_windows(model: PreTrainedModel) -> None:
    ids = torch.randint(3, 300, (75,), generator=torch.Generator().manual_seed(0)).tolist()
    (found,) = document_log_probabilities(model, [ids], max_length=32)

    expected = [naive(model, ids[0:32])]
    expected += [naive(model, ids[start : start + 32])[15:] for start in (16, 32)]
    expected += [naive(model, ids[48:75])[15:]]
    assert found == pytest.approx(torch.cat(expected).numpy(), abs=1e-5)


def test_a_window_is_cut_to_the_model_s_own_context(model: PreTrainedModel) -> None:
    ids = torch.randint(3, 300, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    (found,) = document_log_probabilities(model, [ids], max_length=1024)

    assert len(found) == 199
    assert found[:127] == pytest.approx(naive(model, ids[:128]).numpy(), abs=1e-5)


def test_perplexities_and_bits_per_byte_equal_their_definitions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [row(str(index), f"Triage {text}:\n", text) for index, text in enumerate(TEXTS)]
    text_nll = text_tokens = completion_nll = completion_tokens = text_bytes = 0.0
    for item in rows:
        sample = encode_row(tokenizer, item)
        scores = naive(model, sample.ids).tolist()
        assert sample.ids[-1] == tokenizer.eos_token_id
        text_nll -= sum(scores[:-1])
        text_tokens += len(scores) - 1
        completion = len(tokenizer(item.completion)["input_ids"]) + 1
        completion_nll -= sum(scores[-completion:])
        completion_tokens += completion
        first_token = str(tokenizer.decode([sample.ids[0]]))
        text_bytes += len(item.text.encode()) - len(first_token.encode())

    scored = perplexity.score_rows(model, tokenizer, rows, max_length=1024)
    values = {metric: perplexity.observe(metric, scored).value() for metric in perplexity.LIKELIHOOD_METRICS}

    assert values[Metric.PERPLEXITY] == pytest.approx(math.exp(text_nll / text_tokens), rel=1e-5)
    assert values[Metric.COMPLETION_PERPLEXITY] == pytest.approx(math.exp(completion_nll / completion_tokens), rel=1e-5)
    assert values[Metric.BITS_PER_BYTE] == pytest.approx(text_nll / math.log(2) / text_bytes, rel=1e-5)


def test_acceptability_is_judged_by_the_log_likelihood_of_the_two_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    judged = cola.sentences()[:7]
    found = cola.judge(model, tokenizer, judged)

    for sentence, judgement in zip(judged, found, strict=True):
        prompt = f"{sentence.sentence}\nQuestion: Does this sentence make sense?\nAnswer:"
        for answer, score in ((" no", judgement.no), (" yes", judgement.yes)):
            context, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + answer)["input_ids"]
            expected = naive(model, whole)[len(context) - 1 :].sum().item()
            assert score == pytest.approx(expected, abs=1e-4)


def test_the_chosen_completion_is_the_most_likely_one_with_its_end(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    choices = ("red", "red green", "blue")
    rows = [row(str(index), f"{text} is ", "red") for index, text in enumerate(TEXTS)]
    expected = []
    for item in rows:
        prompt = tokenizer(item.prompt)["input_ids"]
        sums = []
        for choice in choices:
            ids = prompt + tokenizer(choice)["input_ids"] + [tokenizer.eos_token_id]
            sums.append(naive(model, ids)[len(prompt) - 1 :].sum().item())
        expected.append(choices[int(np.argmax(sums))])

    assert accuracy.choose(model, tokenizer, rows, choices=choices) == expected


def test_each_row_chooses_among_its_own_answers_as_lm_eval_scores_them(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    offered = [("red", "green"), ("a cat", "one dog", "two"), ("yes", "no", "maybe", "never")]
    rows = [
        replace(row(str(number), f"Question {number}:", f" {answers[0]}"), choices=answers)
        for number, answers in enumerate(offered)
    ]
    requests = [
        Instance(
            request_type="loglikelihood", doc={}, arguments=(item.prompt, f" {answer}{tokenizer.eos_token}"), idx=number
        )
        for number, item in enumerate(rows)
        for answer in item.choices
    ]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    scores = iter([score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)])
    expected = [max(answers, key={answer: next(scores) for answer in answers}.__getitem__) for answers in offered]

    found = accuracy.choose(model, tokenizer, rows, choices=())

    assert found == [f" {answer}" for answer in expected]


def test_a_model_that_caps_its_logits_is_scored_with_its_own_forward_pass() -> None:
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.05,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    ids = list(range(5, 60))

    (found,) = log_probabilities(model, [Window(tuple(ids), 1)])

    assert found == pytest.approx(naive(model, ids).numpy(), abs=1e-5)


def test_acceptability_scores_are_those_of_lm_eval(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    judged = cola.sentences()[:12]
    requests = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=(f"{item.sentence}\nQuestion: Does this sentence make sense?\nAnswer:", choice),
            idx=index,
        )
        for index, item in enumerate(judged)
        for choice in (" no", " yes")
    ]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5)
    expected = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]

    found = [score for judgement in cola.judge(model, tokenizer, judged) for score in (judgement.no, judgement.yes)]

    assert found == pytest.approx(expected, abs=1e-4)


def test_sentences_of_pairs_score_as_lm_eval_scores_them_after_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = pairs.pairs_of(cola.sentences())[:9]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=("", sentence.sentence), idx=index)
        for index, sentence in enumerate(sentence for pair in asked for sentence in pair)
    ]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5)
    expected = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]

    found = pairs.score(model, tokenizer, asked)

    assert [score for pair in found for score in (pair.acceptable, pair.broken)] == pytest.approx(expected, abs=1e-4)
    assert [pair.right for pair in found] == [
        first > second for first, second in zip(*[iter(expected)] * 2, strict=True)
    ]


def test_general_text_scores_as_lm_eval_scores_all_but_its_first_token(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "roomy", positions=1024)
    model, tokenizer = load_base_model(folder, dtype=torch.float32, device=torch.device("cpu")), load_tokenizer(folder)
    requests = []
    for index, passage in enumerate(general.passages()):
        first = str(tokenizer.decode(tokenizer(passage.text)["input_ids"][:1]))
        arguments = (first, passage.text.removeprefix(first))
        requests.append(Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=index))
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=1024)
    expected = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]

    found = general.score(model, tokenizer, max_length=1024)

    assert [-row.text_nll for row in found] == pytest.approx(expected, rel=1e-6)
