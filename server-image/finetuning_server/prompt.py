"""One prompt, answered by every candidate: base and tuned from one load, piece by piece."""

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetuning_api.finetuningjob import Precision
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import CandidateInput, ContractModel, PromptConfig
from finetuning_server.engine.base import Engine, GenerationRequest
from finetuning_server.engine.errors import EngineError, PromptTooLong
from finetuning_server.groups import Engines, Group, failure_of, groups_of
from finetuning_workload.candidates import require_distinct
from finetuning_workload.data import RenderedRow, Segment, encode_prompt
from finetuning_workload.errors import UserError
from finetuning_workload.models import load_tokenizer
from finetuning_workload.program import Context, StopFlag

_MEMORY_HINT = "Use a machine with more memory, or a smaller model."


class AnswerPiece(ContractModel):
    """A line of output while an answer grows."""

    candidate: str
    piece: str


class Answer(ContractModel):
    """The line of output of a whole answer."""

    candidate: str
    text: str
    tokens: int
    """Tokens generated, the closing EOS included."""
    seconds: float
    """Wall time of the generation, without loading."""


def answer_prompt(config: PromptConfig, context: Context, *, engines: Engines) -> None:
    """Write JSON lines to standard output: the pieces of each candidate's answer as they come, and then the whole.

    Raises UserError for what cannot be loaded or rendered, and Interrupted when asked to stop.
    """
    require_distinct(config.candidates)
    for group in groups_of(config.candidates):
        tokenizer = load_tokenizer(Path(group.candidates[0].model.tokenizer_path))
        tokens = prompt_tokens(tokenizer, config.prompt, chat=config.chat)
        if not tokens:
            hint = "Give the prompt some text."
            raise UserError(Reason.UNSUPPORTED, "the prompt has no tokens to start from", hint)
        asyncio.run(_answer_all(engines, group, config, tokens=tokens, stop=context.stop))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool) -> list[int]:
    """Return the tokens that generation starts from, encoded as training encodes prompts.

    Raises UserError(UNSUPPORTED) for a chat without a chat template.
    """
    text = _as_chat(tokenizer, prompt) if chat else prompt
    return encode_prompt(tokenizer, RenderedRow("prompt", (Segment(text, supervised=False),)))


async def _answer_all(
    engines: Engines, group: Group, config: PromptConfig, *, tokens: Sequence[int], stop: StopFlag
) -> None:
    engine = engines(group.serve_config(config.job, max_running=1), precision=Precision.AUTO)
    await engine.start()
    try:
        for candidate in group.candidates:
            request = GenerationRequest(
                model=group.served_name(candidate),
                tokens=tuple(tokens),
                max_new_tokens=config.max_new_tokens,
                stop=config.stop,
            )
            _write(await _answer(engine, request, candidate, stop=stop))
    except PromptTooLong as error:
        raise UserError(Reason.UNSUPPORTED, str(error), "Shorten the prompt.") from error
    except EngineError as error:
        raise failure_of(error, doing="answering", memory_hint=_MEMORY_HINT) from error
    finally:
        await engine.stop()


async def _answer(engine: Engine, request: GenerationRequest, candidate: CandidateInput, *, stop: StopFlag) -> Answer:
    started, texts, tokens = time.monotonic(), [], 0
    async with aclosing(engine.generate(request)) as pieces:
        async for piece in pieces:
            stop.raise_if_set("stopped while answering")
            texts.append(piece.text)
            tokens += piece.tokens
            if piece.text:
                _write(AnswerPiece(candidate=candidate.name, piece=piece.text))
    seconds = time.monotonic() - started
    return Answer(candidate=candidate.name, text="".join(texts), tokens=tokens, seconds=seconds)


def _write(line: ContractModel) -> None:
    sys.stdout.write(f"{line.model_dump_json(by_alias=True)}\n")
    sys.stdout.flush()


def _as_chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    if not tokenizer.chat_template:
        message = f"the tokenizer {Path(tokenizer.name_or_path).name} has no chat template"
        raise UserError(Reason.UNSUPPORTED, message, "Prompt without chat, or use a model that was trained on chats.")
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
