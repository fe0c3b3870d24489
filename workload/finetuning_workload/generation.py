"""Greedy generation in batches: the same plan for every candidate, so that only the weights differ."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError
from finetuning_workload.growing_cache import growing_cache

OnProgress = Callable[[int, int], None]
"""Called after each step with the tokens done and their greatest number; a finished prompt counts whole. May stop."""

_TAIL_TOKENS = 16
"""Tokens at the end of a completion that are searched for stop texts at each step, beside the stop text's own."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote."""

    text: str
    """Without special tokens, and cut before the first stop text."""
    tokens: int
    """Tokens generated, the closing EOS included."""
    stopped: bool
    """Whether it ended by itself, by EOS or a stop text, rather than at the limit."""


class Kept(Protocol):
    """Completions that outlive a generation, by the number of their prompt."""

    @property
    def known(self) -> Mapping[int, Completion]:
        """Those of earlier attempts."""

    def append(self, number: int, completion: Completion) -> None:
        """Keep one more."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends a completion beside the end-of-text tokens of model and tokenizer."""

    texts: Sequence[str] = ()
    tokens: Collection[int] = ()


NO_ENDS = Ends()


@dataclass(slots=True)
class _Row:
    """One prompt while it is continued."""

    index: int
    prompt: list[int]
    new: list[int] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Endings:
    """What ends a completion."""

    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]
    stop: tuple[str, ...]
    max_new_tokens: int
    context: int | None
    """Tokens that the model's positions reach."""

    def ends(self, row: _Row) -> bool:
        """Note whether a row stopped by itself, and return whether it is finished."""
        row.stopped = row.new[-1] in self.eos or self._holds_stop_text(row.new)
        full = self.context is not None and len(row.prompt) + len(row.new) > self.context
        return row.stopped or full or len(row.new) >= self.max_new_tokens

    def _holds_stop_text(self, new: list[int]) -> bool:
        if not self.stop:
            return False
        # A token is at least one byte: a stop text of n bytes lies within the last n tokens and a few to decode well.
        longest = max(len(text.encode()) for text in self.stop)
        tail = self.tokenizer.decode(new[-(longest + _TAIL_TOKENS) :], skip_special_tokens=True)
        return any(text in tail for text in self.stop)

    def text(self, row: _Row) -> str:
        """Return the completion's text."""
        text = str(self.tokenizer.decode(row.new, skip_special_tokens=True))
        cuts = [text.index(stop) for stop in self.stop if stop in text]
        return text[: min(cuts)] if cuts else text


def generate(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_tokens: int = 8192,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Continue every prompt greedily and return the texts in the order of the prompts; see ``complete``."""
    completions = complete(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        ends=Ends(stop),
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    return [completion.text for completion in completions]


@torch.inference_mode()
def complete(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    ends: Ends = NO_ENDS,
    batch_tokens: int = 8192,
    kept: Kept | None = None,
    on_progress: OnProgress | None = None,
) -> list[Completion]:
    """Continue every prompt (token ids) greedily until EOS, one of the ends, or ``max_new_tokens``.

    Prompts are sorted by length and batched so that rows x (prompt + new tokens) stays within ``batch_tokens``; the
    plan depends on nothing else. Batches are left-padded with position ids, and finished rows leave their batch.
    What ``kept`` knows has left its batch already, and what is finished is appended to it.
    Raises UserError(UNSUPPORTED) for a prompt without tokens or one that leaves no room in the model's context.
    """
    require_room([len(prompt) for prompt in prompts], context_length(model))
    eos = eos_token_ids(model, tokenizer) | frozenset(ends.tokens)
    endings = _Endings(tokenizer, eos, tuple(ends.texts), max_new_tokens, context_length(model))
    results = {} if kept is None else dict(kept.known)

    for batch in plan_batches([len(prompt) for prompt in prompts], extra=max_new_tokens, batch_tokens=batch_tokens):
        rows = [_Row(index, prompts[index]) for index in batch if index not in results]
        for step, finished in enumerate(_continue(model, rows, endings), start=1):
            for row in finished:
                results[row.index] = Completion(endings.text(row), len(row.new), row.stopped)
                if kept is not None:
                    kept.append(row.index, results[row.index])
            if on_progress is not None:
                going_on = sum(index not in results for index in batch)
                on_progress(len(results) * max_new_tokens + going_on * step, len(prompts) * max_new_tokens)
    return [results[index] for index in range(len(prompts))]


def plan_batches(lengths: Sequence[int], *, extra: int = 0, batch_tokens: int) -> list[list[int]]:
    """Return batches of indices, longest first, each within ``batch_tokens`` counted with padding (or of one row).

    Longest first: memory that does not suffice shows at once, and the estimated end only moves nearer.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = batches and (lengths[batches[-1][0]] + extra) * (len(batches[-1]) + 1) <= batch_tokens
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def eos_token_ids(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every token that ends a text: the tokenizer's EOS, which training appends, and the model's own."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list) else {configured}
    return frozenset(int(token) for token in ids | {tokenizer.eos_token_id} if isinstance(token, int))


def context_length(model: torch.nn.Module) -> int | None:
    """Return the tokens that a model's positions reach, None where it does not say."""
    config: Any = model.config
    return context_of(config)


def context_of(config: PreTrainedConfig) -> int | None:
    """Return the tokens that the positions of a model with this configuration reach, None where it does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def require_room(prompt_lengths: Sequence[int], context: int | None) -> None:
    """Raise UserError(UNSUPPORTED) for a prompt without tokens, or one that leaves no room in a model's context."""
    if any(not length for length in prompt_lengths):
        hint = "Give the prompt some text, or use a tokenizer that adds a BOS token."
        raise UserError(Reason.UNSUPPORTED, "a prompt has no tokens to start from", hint)
    longest = max(prompt_lengths, default=0)
    if context is not None and longest >= context:
        message = f"a prompt has {longest} tokens, the model's context has {context}: there is no room for a completion"
        raise UserError(Reason.UNSUPPORTED, message, "Shorten the prompt, or drop such rows from the data.")


def plain_model(model: torch.nn.Module) -> PreTrainedModel:
    """Return the transformers model inside an adapter's wrapper, or the model itself; adapters stay in its layers."""
    wrapper: Any = model
    return cast("PreTrainedModel", wrapper.get_base_model() if hasattr(model, "get_base_model") else model)


def _continue(model: torch.nn.Module, rows: list[_Row], endings: _Endings) -> Iterator[list[_Row]]:
    """Continue the rows of one batch until all are finished; after each token yield those that just finished."""
    if not rows:
        return
    device = next(model.parameters()).device
    ids, mask = left_padded([row.prompt for row in rows], device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = growing_cache(plain_model(model).config)
    last_only = {"logits_to_keep": 1} if _keeps_last_logits(model) else {}
    while rows:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
        chosen = output.logits[:, -1].argmax(dim=-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.new.append(token)
        ended = [endings.ends(row) for row in rows]
        yield [row for row, is_finished in zip(rows, ended, strict=True) if is_finished]
        if any(ended):
            kept = torch.tensor([place for place, is_finished in enumerate(ended) if not is_finished], device=device)
            rows = [row for row, is_finished in zip(rows, ended, strict=True) if not is_finished]
            cache.batch_select_indices(kept.long())
            chosen, mask, positions = (tensor[kept.long()] for tensor in (chosen, mask, positions))
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
        positions = positions[:, -1:] + 1


def left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, both [rows, longest prompt], with the padding on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(prompt)
        mask[place, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _keeps_last_logits(model: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(plain_model(model).forward).parameters
