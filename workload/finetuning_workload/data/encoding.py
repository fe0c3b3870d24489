"""From the text of a sample to its tokens, and what happens to samples that are too long."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetuning_workload.data.rendering import RenderedRow
from finetuning_workload.data.segments import Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """One sample: token ids and, for each, whether it is a target of the loss."""

    row_id: str
    ids: list[int]
    supervised: list[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first supervised one; all of them where there is none."""
        return self.supervised.index(True) if True in self.supervised else len(self.ids)


class Encoder:
    """Turns rendered rows into tokens with one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        with_specials = tokenizer("a")["input_ids"]
        self._bos = [bos] if bos is not None and with_specials[:1] == [bos] else []
        eos = tokenizer.eos_token_id
        self._eos = [] if eos is None else [eos]

    def encode(self, rows: Sequence[RenderedRow]) -> list[TokenizedSample]:
        """Return the tokens of rows, tokenised in one batch.

        Segments are tokenised one by one. One BOS comes first where the tokenizer adds one and the text does not begin
        with it. The last supervised segment ends with exactly one EOS, an earlier one with its own closing mark or,
        where it has none, with EOS; both carry loss, also where EOS is the padding token. What follows the last
        supervised segment is left out: it carries no loss and no supervised token can see it.
        """
        segments = [_through_last_supervised(row) for row in rows]
        ids = iter(self._tokenize(segment for row in segments for segment in row))
        return [self._assemble(row.row_id, parts, ids) for row, parts in zip(rows, segments, strict=True)]

    def encode_prompt(self, row: RenderedRow) -> list[int]:
        """Return the tokens that generation starts from: a prefix of what ``encode`` returns."""
        segments = row.prompt_segments
        ids = iter(self._tokenize(segments))
        return self._assemble(row.row_id, segments, ids, prompt_only=True).ids

    def _tokenize(self, segments: Iterable[Segment]) -> list[list[int]]:
        """Return the tokens of every text and closing mark that is there, in order."""
        batch = [text for segment in segments for text in segment.parts]
        if not batch:
            return []
        # Longer than the model's limit is no mistake here: length is handled later.
        encoded = self._tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _assemble(
        self, row_id: str, segments: Sequence[Segment], texts: Iterator[list[int]], *, prompt_only: bool = False
    ) -> TokenizedSample:
        ids: list[int] = []
        supervised: list[bool] = []
        for number, segment in enumerate(segments, start=1):
            fresh = [token for _ in segment.parts for token in next(texts)]
            is_last = number == len(segments) and not prompt_only
            if segment.supervised and (is_last or not segment.closing) and fresh[-1:] != self._eos:
                fresh += self._eos
            ids += fresh
            supervised += [segment.supervised] * len(fresh)
        if ids[: len(self._bos)] != self._bos:
            ids, supervised = self._bos + ids, [False, *supervised]
        return TokenizedSample(row_id=row_id, ids=ids, supervised=supervised)


def encode_row(tokenizer: "PreTrainedTokenizerBase", row: RenderedRow) -> TokenizedSample:
    """Return the tokens of one row; see Encoder.encode."""
    return Encoder(tokenizer).encode([row])[0]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", row: RenderedRow) -> list[int]:
    """Return the tokens that generation starts from; see Encoder.encode_prompt."""
    return Encoder(tokenizer).encode_prompt(row)


def truncated(sample: TokenizedSample, max_length: int) -> TokenizedSample:
    """Return the first ``max_length`` tokens. A sample that lost its end has no closing EOS: it did not end there."""
    return TokenizedSample(sample.row_id, sample.ids[:max_length], sample.supervised[:max_length])


def pieces(sample: TokenizedSample, max_length: int) -> list[TokenizedSample]:
    """Return plain text as consecutive pieces of at most ``max_length`` tokens, so that none of it is lost.

    A piece begins with the last token of the piece before it, without loss: so every token but the very first one is
    predicted exactly once, from at least one token before it.
    """
    starts = range(0, len(sample) - 1, max_length - 1)
    return [
        TokenizedSample(
            row_id=f"{sample.row_id}#{number}",
            ids=sample.ids[start : start + max_length],
            supervised=[start == 0 and sample.supervised[0], *sample.supervised[start + 1 : start + max_length]],
        )
        for number, start in enumerate(starts, start=1)
    ]


def _through_last_supervised(row: RenderedRow) -> tuple[Segment, ...]:
    return row.segments[: len(row.prompt_segments) + 1]
