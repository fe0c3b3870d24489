"""Which token comes next: greedily or by chance, for each row by itself."""

import torch
from transformers import PreTrainedTokenizerBase

from finetuning_server.engine.base import Sampling, TokenScore


class Chooser:
    """Chooses the tokens of one completion. It has its own source of chance, so that no other request changes them."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # On the CPU whatever the device: equal seeds draw equal tokens there and here.
        self._generator = torch.Generator(device="cpu")
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self._sampling.temperature == 0

    def draw(self, logits: torch.Tensor) -> int:
        """Draw a token; ``logits`` is [vocabulary]."""
        probabilities = torch.softmax(logits.float().cpu() / self._sampling.temperature, dim=-1)
        if self._sampling.top_p < 1:
            probabilities = _nucleus(probabilities, self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator).item())


def score_token(
    tokenizer: PreTrainedTokenizerBase, logits: torch.Tensor, token: int, *, alternatives: int
) -> TokenScore:
    """Return a chosen token's logarithm of probability and its likeliest alternatives; ``logits`` is [vocabulary]."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top = torch.topk(logprobs, min(alternatives, len(logprobs)))
    return TokenScore(
        token=token,
        text=str(tokenizer.decode([token])),
        logprob=float(logprobs[token]),
        top=tuple(
            (str(tokenizer.decode([other])), value)
            for other, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ),
    )


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest of the likeliest tokens whose probabilities reach ``top_p``; always the likeliest one."""
    ordered, places = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter_(0, places, ordered.where(before < top_p, 0.0))
