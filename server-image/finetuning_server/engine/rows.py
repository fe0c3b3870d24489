"""One request while it is generated."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from finetuning_server.engine.base import FinishReason, GenerationRequest, Piece, TokenScore
from finetuning_server.engine.cache import LayerStates
from finetuning_server.engine.library import Voice
from finetuning_server.engine.sampling import Chooser, score_token
from finetuning_server.engine.texts import TextStream


@dataclass(slots=True, eq=False)
class Row:
    """A request with its tokens so far, and where their keys and values are."""

    request: GenerationRequest
    voice: Voice
    tokenizer: PreTrainedTokenizerBase
    limit: int
    """Tokens to generate at most."""
    new: list[int] = field(default_factory=list)
    cached: int = 0
    """Tokens whose keys and values are held."""
    own: DynamicCache | None = None
    """The row's own cache, while it reads its prompt and where rows cannot share one."""
    states: Sequence[LayerStates] = ()
    """Keys and values of the whole prompt, on their way into the shared cache."""
    passed_over: int = 0
    """Steps in which other prompts were read."""
    cancelled: bool = False
    """Set by whoever asked; the row is dropped before the next step."""
    _chooser: Chooser = field(init=False)
    _stream: TextStream = field(init=False)
    _untold: int = field(init=False, default=0)
    _scores: list[TokenScore] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._chooser = Chooser(self.request.sampling)
        self._stream = TextStream(self.tokenizer, self.request.stop)

    @property
    def chooser(self) -> Chooser:
        """What chooses this row's tokens."""
        return self._chooser

    @property
    def prompt(self) -> tuple[int, ...]:
        """The encoded prompt."""
        return self.request.tokens

    @property
    def reads(self) -> bool:
        """Whether there is no token yet: the prompt is still to be read."""
        return not self.new

    @property
    def remaining(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return max(0, len(self.prompt) - self.cached)

    @property
    def reserved(self) -> int:
        """Tokens whose keys and values are held in the end, at most."""
        return len(self.prompt) + self.limit

    def take(self, token: int, logits: torch.Tensor) -> Piece | None:
        """Take the next token and return what is to be told now, if anything; ``logits`` is [vocabulary]."""
        self.new.append(token)
        self._untold += 1
        if self.request.top_logprobs is not None:
            alternatives = self.request.top_logprobs
            self._scores.append(score_token(self.tokenizer, logits, token, alternatives=alternatives))
        text = self._stream.push(token)
        finish = self._finish(token)
        if finish is not None:
            text += self._stream.finish()
            # What was held back may have hidden a stop text.
            finish = FinishReason.STOP if self._stream.stopped else finish
        return self._tell(text, finish) if text or finish is not None else None

    def _finish(self, token: int) -> FinishReason | None:
        if token in self.voice.eos or token in self.request.closing_tokens or self._stream.stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.new) >= self.limit else None

    def _tell(self, text: str, finish: FinishReason | None) -> Piece:
        piece = Piece(text=text, tokens=self._untold, scores=tuple(self._scores), finish=finish)
        self._untold, self._scores = 0, []
        return piece
