"""The documents of a task as tokens, cut where lm-evaluation-harness 0.4 cuts them."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError
from finetuning_workload.task_files.documents import LoadedTask
from finetuning_workload.task_files.file import OutputType

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """What is read first, and what is scored after it: every choice, or one text. Nothing is scored in a generation."""

    context: Ids
    answers: tuple[Ids, ...] = ()


def encode_task(task: LoadedTask, tokenizer: PreTrainedTokenizerBase) -> Iterator[EncodedDocument]:
    """Return the documents of a task as tokens, in their order.

    Raises UserError(METRIC_UNAVAILABLE) where a text is to be scored after nothing and there is no token for that.
    """
    for document in task.documents:
        places = range(len(document.answers))
        match task.file.output_type:
            case OutputType.GENERATE:
                yield EncodedDocument(_whole(tokenizer, document.context))
            case OutputType.ROLLING:
                start = prefix_token(tokenizer, wanted_by=task.name)
                yield EncodedDocument((start,), (_whole(tokenizer, document.answers[0]),))
            case _ if document.context:
                pairs = [_pair(tokenizer, document.context, task.answer(document, place)) for place in places]
                yield EncodedDocument(pairs[0][0], tuple(answer for _, answer in pairs))
            case _:
                start = prefix_token(tokenizer, wanted_by=task.name)
                yield EncodedDocument(
                    (start,), tuple(_alone(tokenizer, start, task.answer(document, place)) for place in places)
                )


def require_tokens(task: LoadedTask, tokenizer: PreTrainedTokenizerBase, *, candidate: str, limit: int | None) -> None:
    """Raise UserError(UNSUPPORTED) for a document without a token to score, or longer than a model's context.

    The harness cuts such a document at its left and goes on. A text without a context is scored in windows.
    """
    for number, document in enumerate(encode_task(task, tokenizer)):
        where = f"the task {task.name}, document {number}"
        generates, rolls = (task.file.output_type is kind for kind in (OutputType.GENERATE, OutputType.ROLLING))
        if not document.context or not all(document.answers):
            message = f"{where}: {candidate}'s tokenizer makes no token of the text that is to be scored"
            raise UserError(Reason.UNSUPPORTED, message, "Change or drop such rows of the data of the task.")
        # The last token of an answer is not read, only scored; a generation needs room for one token.
        length = len(document.context) + max((len(answer) - 1 for answer in document.answers), default=1)
        if limit is not None and length > limit and not rolls:
            message = f"{where}: {'the prompt' if generates else 'prompt and longest answer'} with {length} tokens"
            hint = "Show fewer examples (num_fewshot), or drop such rows of the data of the task."
            raise UserError(Reason.UNSUPPORTED, f"{message} leaves the context of {candidate}, which is {limit}", hint)


def prefix_token(tokenizer: PreTrainedTokenizerBase, *, wanted_by: str) -> int:
    """Return the token that texts are scored after. Raises UserError(METRIC_UNAVAILABLE) where there is none."""
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        message = f"{wanted_by} cannot be computed: the tokenizer has neither a BOS nor an EOS to score texts after"
        raise UserError(Reason.METRIC_UNAVAILABLE, message, f"Remove {wanted_by} from the evaluation.")
    return int(found)


def _pair(tokenizer: PreTrainedTokenizerBase, context: str, answer: str) -> tuple[Ids, Ids]:
    """Return context and answer, tokenised together and cut where the context alone ends.

    White space at the end of the context belongs to the answer: tokenizers put it before words.
    """
    stripped = context.rstrip()
    whole = _whole(tokenizer, context + answer)
    read = _whole(tokenizer, stripped)
    return read, whole[len(read) :]


def _alone(tokenizer: PreTrainedTokenizerBase, start: int, answer: str) -> Ids:
    ids = tuple(tokenizer.encode(answer, add_special_tokens=False))
    return ids[1:] if ids[:1] == (start,) else ids


def _whole(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Return the tokens of a text with those that the tokenizer puts around texts, unless it begins with its first."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    begins = start is not None and text.startswith(str(tokenizer.decode(start)))
    return tuple(tokenizer.encode(text, add_special_tokens=not begins))
