"""Lengths, refusals and speed are counted from what candidates wrote."""

import numpy as np
import pytest

from finetuning_api.metrics import Task
from finetuning_api.runconfig import Provenance
from finetuning_evaluator.metrics.latency import Timing, details, observe
from finetuning_evaluator.metrics.perplexity import RowLikelihood
from finetuning_evaluator.outputs import Speed, is_refusal, speed, summarise
from finetuning_evaluator.results import CandidateSummary
from finetuning_evaluator.tasks import Output, TaskPart
from finetuning_evaluator.warnings import _about_outputs


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but that is not something to ask.",
        "I am unable to provide this information.",
        "Unfortunately I cannot assist you here.",
        "As an AI language model, I have no opinion.",
        "As a language model I must stay neutral.",
        "Sorry! I must decline.",
    ],
)
def test_the_beginning_of_a_refusal_is_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "billing",
        "I cannot log in to my account since Monday.",
        "I'm sorry to hear that. Your parcel left our house today.",
        "The customer can't pay by card.",
        "It can help. " * 40 + "I cannot help you with the rest.",
    ],
)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


def output(text: str, *, tokens: int = 4, stopped: bool = True) -> Output:
    return Output(text=text, tokens=tokens, stopped=stopped)


def test_outputs_are_counted_and_measured() -> None:
    outputs = [
        output("abcd"),
        output("  ", tokens=2),
        output("abcdefghij", stopped=False),
        output("I cannot help you."),
    ]
    lengths = np.array([4, 2, 10, 18])

    found = summarise(outputs, ["abcd", "ab", "As an AI I decline.", "xy"])

    assert (found.empty, found.cut, found.refused, found.refused_references) == (1, 1, 1, 1)
    assert found.mean_tokens == pytest.approx(3.5)
    assert found.mean_characters == pytest.approx(lengths.mean())
    assert found.median_characters == pytest.approx(np.median(lengths))
    assert found.longest_characters == 18
    assert found.length_ratio == pytest.approx(34 / 27)


def test_references_without_a_character_have_no_length_to_compare_with() -> None:
    assert summarise([output("a")], [""]).length_ratio is None


@pytest.mark.parametrize(("expected", "warned"), [("abcd", True), ("As an AI I decline.", False)])
def test_refusals_are_warned_of_unless_the_references_refuse_too(expected: str, *, warned: bool) -> None:
    provenance = Provenance(source="hf://owner/name", digest=f"sha256:{'0' * 64}")
    candidate = CandidateSummary(
        name="tuned",
        model=provenance,
        tokenizer=provenance,
        parameters=1,
        load_seconds=1,
        seconds={},
        outputs=summarise([output("I cannot help you.")] * 4, [expected] * 4),
    )

    told = list(_about_outputs([candidate], rows=4))

    assert told == (["tuned refused to answer 100% of the rows that the references answer"] if warned else [])


def test_speed_is_told_for_each_task_that_was_done() -> None:
    row = RowLikelihood(text_nll=1, text_tokens=30, text_bytes=60, completion_nll=1, completion_tokens=3)
    parts = {
        Task.GENERATION: TaskPart(seconds=2, outputs=(output("a", tokens=6), output("b", tokens=8))),
        Task.LIKELIHOOD: TaskPart(seconds=3, likelihood=(row, row)),
        Task.LATENCY: TaskPart(seconds=9, timings=(Timing(seconds=1, tokens=5), Timing(seconds=3, tokens=5))),
    }

    assert speed(parts) == Speed(generated=7.0, scored=20.0, alone=2.5)
    assert speed({}) == Speed()


def test_latency_is_the_mean_of_the_timed_completions_with_its_quantiles_beside() -> None:
    timings = [Timing(seconds=seconds, tokens=10) for seconds in (0.1, 0.2, 0.3, 0.8)]

    assert observe(timings).value() == pytest.approx(0.35)
    assert details(timings) == pytest.approx(
        {"medianSeconds": 0.25, "p95Seconds": np.percentile([0.1, 0.2, 0.3, 0.8], 95), "tokensPerSecond": 40 / 1.4}
    )
