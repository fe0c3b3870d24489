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
_LOGITS_BYTES = 64 << 20
"""Float32 logits that are held at once; the rows of a chunk follow from the vocabulary."""


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
    model: torch.nn.Module, items: Sequence[Window], *, on_progress: OnProgress | None = None
) -> list[FloatArray]:
    """Return the natural log-probabilities of each window's scored tokens, in the order of the windows.

    The log-softmax is computed in float32 whatever the number format of the model.
    """
    results: list[FloatArray] = [np.zeros(0)] * len(items)
    output_layer = _OutputLayer(model)
    done = 0
    for batch in plan_batches([len(item.ids) for item in items], batch_tokens=BATCH_TOKENS):
        rows = [items[index] for index in batch]
        scores = output_layer.score(rows)
        for index, row_scores in zip(
            batch, np.split(scores, np.cumsum([row.scored for row in rows])[:-1]), strict=True
        ):
            results[index] = row_scores
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(items))
    return results


def probe_logits(model: torch.nn.Module, documents: Sequence[Sequence[int]], *, tokens: int = 64) -> torch.Tensor:
    """Return the float32 logits after the first tokens of a few documents, to tell whether two models differ."""
    with torch.inference_mode():
        device = next(model.parameters()).device
        logits = [model(input_ids=torch.tensor([list(ids[:tokens])], device=device)).logits[0] for ids in documents]
        return torch.cat(logits).float().cpu()


class _OutputLayer:
    """Runs a model's trunk on whole windows and its output layer on scored positions only.

    Some architectures scale or cap their logits after the output layer. Whether trunk and layer alone give the model's
    own logits is tried once; where they do not, the model's full forward pass is used.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        plain = plain_model(model)
        self._trunk: torch.nn.Module | None = getattr(plain, plain.base_model_prefix, None)
        self._head: torch.nn.Module | None = plain.get_output_embeddings()
        self._vocabulary = int(plain.config.get_text_config().vocab_size)
        if not self._is_faithful():
            self._trunk = None

    def score(self, rows: Sequence[Window]) -> FloatArray:
        """Return the log-probabilities of the rows' scored tokens, one after another: [sum of scored]."""
        width = max(len(row.ids) for row in rows)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
        # Causal attention never looks to the right: padding there needs no mask.
        hidden = self._hidden(ids.to(self._device))
        scored = [(place, position) for place, row in enumerate(rows) for position in range(row.first, len(row.ids))]
        places = torch.tensor(scored, device=self._device)
        targets = ids.to(self._device)[places[:, 0], places[:, 1]]
        predictors = places - torch.tensor([0, 1], device=self._device)
        return self._gathered(hidden, predictors, targets)

    def _gathered(self, hidden: torch.Tensor, predictors: torch.Tensor, targets: torch.Tensor) -> FloatArray:
        chunk = max(1, _LOGITS_BYTES // (4 * self._vocabulary))
        parts = []
        for places, wanted in zip(predictors.split(chunk), targets.split(chunk), strict=True):
            logits = self._logits(hidden[places[:, 0], places[:, 1]]).float()
            parts.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1))
        return torch.cat(parts).double().cpu().numpy()

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return hidden states, or where trunk and layer do not suffice the logits themselves."""
        if self._trunk is None:
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
            return logits
        states: torch.Tensor = self._trunk(input_ids=ids, use_cache=False).last_hidden_state
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
        return torch.equal(self._logits(self._hidden(ids)).float(), own)


def _joined(parts: Iterable[FloatArray]) -> FloatArray:
    found = list(parts)
    return np.concatenate(found) if found else np.zeros(0)
