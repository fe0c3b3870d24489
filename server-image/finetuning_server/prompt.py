"""One prompt, answered by every candidate: base and tuned from one load with the adapter switched."""

import sys
import time
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetuning_api.finetuningjob import Precision
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ContractModel, PromptConfig
from finetuning_workload.candidates import LoadedCandidate, loaded, plan_loads, require_distinct
from finetuning_workload.data import RenderedRow, Segment, encode_prompt
from finetuning_workload.errors import UserError
from finetuning_workload.generation import complete
from finetuning_workload.hardware import choose_device, choose_dtype, set_threads
from finetuning_workload.memory import explained_memory_errors
from finetuning_workload.program import Context

_MEMORY_HINT = "Use a machine with more memory, or a smaller model."


class Answer(ContractModel):
    """One line of output."""

    candidate: str
    text: str
    tokens: int
    """Tokens generated, the closing EOS included."""
    seconds: float
    """Wall time of the generation, without loading."""


def answer_prompt(config: PromptConfig, context: Context) -> None:
    """Write one JSON line per candidate to standard output, each as soon as it is ready.

    Raises UserError for what cannot be loaded or rendered, and Interrupted when asked to stop.
    """
    require_distinct(config.candidates)
    set_threads(context.environment)
    device = choose_device()
    dtype = choose_dtype(Precision.AUTO, device).dtype
    for load in plan_loads(config.candidates):
        with explained_memory_errors("answering", hint=_MEMORY_HINT), loaded(load, dtype=dtype, device=device) as ready:
            for candidate in ready:
                answer = _answer(candidate, config, context)
                sys.stdout.write(f"{answer.model_dump_json(by_alias=True)}\n")
                sys.stdout.flush()


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool) -> list[int]:
    """Return the tokens that generation starts from, encoded as training encodes prompts.

    Raises UserError(UNSUPPORTED) for a chat without a chat template.
    """
    text = _as_chat(tokenizer, prompt) if chat else prompt
    return encode_prompt(tokenizer, RenderedRow("prompt", (Segment(text, supervised=False),)))


def _answer(candidate: LoadedCandidate, config: PromptConfig, context: Context) -> Answer:
    started = time.monotonic()
    with candidate.active():
        (completion,) = complete(
            candidate.model,
            candidate.tokenizer,
            [prompt_tokens(candidate.tokenizer, config.prompt, chat=config.chat)],
            max_new_tokens=config.max_new_tokens,
            stop=config.stop,
            on_progress=lambda _done, _total: context.stop.raise_if_set("stopped while answering"),
        )
    return Answer(
        candidate=candidate.candidate.name,
        text=completion.text,
        tokens=completion.tokens,
        seconds=time.monotonic() - started,
    )


def _as_chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    if not tokenizer.chat_template:
        message = f"the tokenizer {Path(tokenizer.name_or_path).name} has no chat template"
        raise UserError(Reason.UNSUPPORTED, message, "Prompt without chat, or use a model that was trained on chats.")
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
