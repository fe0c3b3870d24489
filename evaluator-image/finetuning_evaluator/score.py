"""Log-likelihoods: right-padded batches by token budget, the output layer only where a token is scored."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetuning_workload.generation import context_length, plain_model, plan_batches

FloatArray = NDArray[np.float64]
OnProgress = Callable[[int, int], None]
"""Called with the sequences that are scored and their number in all; may raise to stop."""

BATCH_TOKENS = 2048
_LOGITS_BYTES = 16 << 20
"""Float32 logits that are held at once; the rows of a chunk follow from the vocabulary. More than a core's cache holds
costs twice the time."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of tokens for one forward pass; positions from ``first`` on are scored, those before are context."""

    ids: tuple[int, ...]
    first: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.first


def windows(ids: Sequence[int], *, max_length: int) -> list[Window]:
    """Cut a document into overlapping windows of at most ``max_length`` tokens, half a window apart.

    Each token but the first is scored exactly once; after the first window each has at least half a window of context.
    The first token of a document is context only: nothing predicts it.
    """
    stride = max(1, max_length // 2)
    cut: list[Window] = []
    done = 1
    start = 0
    while done < len(ids):
        end = min(start + max_length, len(ids))
        cut.append(Window(tuple(ids[start:end]), done - start))
        done = end
        start += stride
    return cut


def document_log_probabilities(
    model: torch.nn.Module,
    documents: Sequence[Sequence[int]],
    *,
    max_length: int,
    on_progress: OnProgress | None = None,
) -> list[FloatArray]:
    """Return for every document the natural log-probabilities of its tokens from the second on: [tokens - 1] each.

    ``max_length`` is cut to the model's own context.
    """
    limit = min(max_length, context_length(model) or max_length)
    cut = [windows(ids, max_length=limit) for ids in documents]
    flat = [window for parts in cut for window in parts]
    scores = iter(log_probabilities(model, flat, on_progress=on_progress))
    return [_joined(next(scores) for _ in parts) for parts in cut]


@torch.inference_mode()
def log_probabilities(
    model: torch.nn.Module, items: Sequence[Window], *, best: bool = False, on_progress: OnProgress | None = None
) -> list[FloatArray]:
    """Return the natural log-probabilities of each window's scored tokens, in the order of the windows.

    With ``best`` they are those of the tokens that are likeliest in their places. The log-softmax is computed in
    float32 whatever the number format of the model.
    """
    results: list[FloatArray] = [np.zeros(0)] * len(items)
    output_layer = OutputLayer(model, best=best)
    alike = _alike(items)
    inputs, done = list(alike), 0
    for batch in plan_batches([len(ids) for ids in inputs], batch_tokens=BATCH_TOKENS):
        asked = [(place, index) for place, number in enumerate(batch) for index in alike[inputs[number]]]
        scores = output_layer.score([inputs[number] for number in batch], [(place, items[at]) for place, at in asked])
        cuts = np.cumsum([items[index].scored for _, index in asked])[:-1]
        for (_, index), item_scores in zip(asked, np.split(scores, cuts), strict=True):
            results[index] = item_scores
        done += len(asked)
        if on_progress is not None:
            on_progress(done, len(items))
    return results


def _alike(items: Sequence[Window]) -> dict[tuple[int, ...], list[int]]:
    """Return the places of windows by what a model reads for them: all but the last token, which is only scored.

    Windows that differ in their last token alone, as answers of one token to one question do, are read once.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(items):
        alike.setdefault(item.ids[:-1], []).append(index)
    return alike


def probe_logits(model: torch.nn.Module, documents: Sequence[Sequence[int]], *, tokens: int = 64) -> torch.Tensor:
    """Return the float32 logits after the first tokens of a few documents, to tell whether two models differ."""
    with torch.inference_mode():
        device = next(model.parameters()).device
        logits = [model(input_ids=torch.tensor([list(ids[:tokens])], device=device)).logits[0] for ids in documents]
        return torch.cat(logits).float().cpu()


class OutputLayer:
    """Runs a model's trunk on whole windows and its output layer on scored positions only.

    Some architectures scale or cap their logits after the output layer. Whether trunk and layer alone give the model's
    own logits is tried once; where they do not, the model's full forward pass is used.
    """

    def __init__(self, model: torch.nn.Module, *, best: bool = False) -> None:
        self._model = model
        self._best = best
        self._device = next(model.parameters()).device
        plain = plain_model(model)
        self._trunk: torch.nn.Module | None = getattr(plain, plain.base_model_prefix, None)
        self._head: torch.nn.Module | None = plain.get_output_embeddings()
        self._vocabulary = int(plain.config.get_text_config().vocab_size)
        if not self._is_faithful():
            self._trunk = None

    def score(self, inputs: Sequence[Sequence[int]], asked: Sequence[tuple[int, Window]]) -> FloatArray:
        """Return the log-probabilities of the scored tokens of windows, one after another: [sum of scored].

        ``asked`` says of each window which of the inputs (its tokens but the last) it belongs to.
        """
        width = max(len(ids) for ids in inputs)
        padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in inputs], device=self._device)
        # Causal attention never looks to the right: padding there needs no mask.
        hidden = self.hidden(padded)
        predictors = [(place, at - 1) for place, item in asked for at in range(item.first, len(item.ids))]
        targets = [token for _, item in asked for token in item.ids[item.first :]]
        return self.gathered(
            hidden, torch.tensor(predictors, device=self._device), torch.tensor(targets, device=self._device)
        )

    def gathered(self, hidden: torch.Tensor, predictors: torch.Tensor, targets: torch.Tensor) -> FloatArray:
        """Return the log-probabilities of ``targets`` [scored], or of the likeliest tokens where these are asked for.

        ``predictors`` [scored, 2] are rows and places.
        """
        chunk = max(1, _LOGITS_BYTES // (4 * self._vocabulary))
        parts = []
        for places, wanted in zip(predictors.split(chunk), targets.split(chunk), strict=True):
            logits = self._logits(hidden[places[:, 0], places[:, 1]]).float()
            told = logits.argmax(dim=-1) if self._best else wanted
            parts.append(-torch.nn.functional.cross_entropy(logits, told, reduction="none"))
        return torch.cat(parts).double().cpu().numpy()

    def hidden(self, ids: torch.Tensor, **context: object) -> torch.Tensor:
        """Return hidden states, or where trunk and layer do not suffice the logits themselves.

        ``context`` is handed on; without one nothing is cached.
        """
        handed = context or {"use_cache": False}
        if self._trunk is None:
            logits: torch.Tensor = self._model(input_ids=ids, **handed).logits
            return logits
        states: torch.Tensor = self._trunk(input_ids=ids, **handed).last_hidden_state
        return states

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._trunk is None or self._head is None:
            return hidden
        logits: torch.Tensor = self._head(hidden)
        return logits

    def _is_faithful(self) -> bool:
        if self._trunk is None or self._head is None or self._trunk is plain_model(self._model):
            return False
        ids = torch.arange(min(8, self._vocabulary), device=self._device)[None]
        own = self._model(input_ids=ids, use_cache=False).logits.float()
        return torch.equal(self._logits(self.hidden(ids)).float(), own)


def _joined(parts: Iterable[FloatArray]) -> FloatArray:
    found = list(parts)
    return np.concatenate(found) if found else np.zeros(0)
