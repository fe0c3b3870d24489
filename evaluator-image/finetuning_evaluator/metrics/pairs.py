"""Minimal pairs in the manner of BLiMP: is the acceptable sentence of a pair the more likely one.

The pairs are those of ``cola``: each acceptable sentence is followed by one that is broken in one place. Nothing is
asked of the model but likelihoods, so also small models that answer every question alike are told apart.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from finetuning_api.metrics import Metric
from finetuning_api.runconfig import ContractModel
from finetuning_evaluator.metrics.cola import Sentence
from finetuning_evaluator.metrics.matching import observe as observe_shares
from finetuning_evaluator.score import OnProgress, Window, log_probabilities
from finetuning_evaluator.statistics import Observations
from finetuning_workload.task_files.encoding import prefix_token

SIGNATURE = "cola-pairs|own sentences|summed log-likelihood after BOS, else EOS|share of pairs"


class PairScore(ContractModel):
    """Log-probabilities (nats) of the two sentences of a pair."""

    acceptable: float
    broken: float

    @property
    def right(self) -> bool:
        """Whether the acceptable sentence is the more likely one."""
        return self.acceptable > self.broken


def pairs_of(sentences: Sequence[Sentence]) -> tuple[tuple[Sentence, Sentence], ...]:
    """Return each acceptable sentence with the broken one that follows it."""
    return tuple(zip(sentences[::2], sentences[1::2], strict=True))


def score(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Sentence, Sentence]],
    *,
    on_progress: OnProgress | None = None,
) -> list[PairScore]:
    """Return the log-probabilities of both sentences of each pair.

    The first token is scored after BOS, or after EOS where there is no BOS, as lm-eval does with an empty context.
    """
    prefix = prefix_token(tokenizer, wanted_by=Metric.COLA_PAIRS)
    items = [_window(tokenizer, prefix, sentence.sentence) for pair in pairs for sentence in pair]
    sums = [float(scores.sum()) for scores in log_probabilities(model, items, on_progress=on_progress)]
    return [
        PairScore(acceptable=acceptable, broken=broken)
        for acceptable, broken in zip(sums[::2], sums[1::2], strict=True)
    ]


def observe(scores: Sequence[PairScore]) -> Observations:
    """Return the observations of the share of right pairs."""
    return observe_shares([score.right for score in scores])


def details(pairs: Sequence[tuple[Sentence, Sentence]], scores: Sequence[PairScore]) -> dict[str, float]:
    """Return the share of right pairs by phenomenon."""
    right: dict[str, list[bool]] = {}
    for (acceptable, _), found in zip(pairs, scores, strict=True):
        right.setdefault(acceptable.phenomenon, []).append(found.right)
    return {phenomenon: sum(found) / len(found) for phenomenon, found in right.items()}


def _window(tokenizer: PreTrainedTokenizerBase, prefix: int, sentence: str) -> Window:
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    return Window(tuple(ids) if ids[:1] == [prefix] else (prefix, *ids), 1)
