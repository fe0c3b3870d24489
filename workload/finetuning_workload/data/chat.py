"""Chats: messages of one row, rendered turn by turn with the tokenizer's own chat template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from finetuning_api.reasons import Reason
from finetuning_workload.data.segments import Segment, close_turn, closing_marks
from finetuning_workload.data.templates import cell_text, is_missing
from finetuning_workload.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHAPE_HINT = 'A chat is a list such as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


# The second spelling is that of ShareGPT: {"from": "human", "value": "..."}.
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
    "model": Role.ASSISTANT,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str

    @property
    def is_answer(self) -> bool:
        """Whether the turn is one to learn."""
        return self.role is Role.ASSISTANT and bool(self.content.strip())


def read_messages(value: object, *, where: str) -> tuple[Message, ...]:
    """Return the messages in a cell: a list of {role, content} or {from, value}, or JSON text of one (as in CSV).

    ``where`` names row and column. Raises UserError with DATASET_UNREADABLE, or UNSUPPORTED for tools.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            message = f"{where} is text that is not JSON: {error.msg} at character {error.pos + 1}"
            raise UserError(Reason.DATASET_UNREADABLE, message, _SHAPE_HINT) from error
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        message = f"{where} holds a {type(value).__name__}, not a list of messages"
        raise UserError(Reason.DATASET_UNREADABLE, message, _SHAPE_HINT)
    return tuple(_read_message(item, where=f"{where}, message {number}") for number, item in enumerate(value, start=1))


def _read_message(item: object, *, where: str) -> Message:
    if not isinstance(item, Mapping):
        message = f"{where} is a {type(item).__name__}, not an object with role and content"
        raise UserError(Reason.DATASET_UNREADABLE, message, _SHAPE_HINT)
    # In parquet every message has every key; those that it lacks are None.
    role = item.get("role") or item.get("from")
    if role in {"tool", "function", "function_call", "observation"} or item.get("tool_calls"):
        message = f"{where} uses tools, which are not supported"
        raise UserError(Reason.UNSUPPORTED, message, "Leave such rows out, or write the call as text of the assistant.")
    if not isinstance(role, str) or role not in _ROLES:
        message = f"{where} has the role {role!r}; roles are {', '.join(Role)}"
        raise UserError(Reason.DATASET_UNREADABLE, message, _SHAPE_HINT)
    return Message(role=_ROLES[role], content=_content(item.get("content") or item.get("value"), where=where))


def _content(value: object, *, where: str) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return cell_text(value)
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        return "".join(cell_text(part.get("text")) for part in value)
    message = f"{where} has content that is not text"
    raise UserError(Reason.UNSUPPORTED, message, "content is a string, or a list of parts with type text.")


class ChatRenderer:
    """Renders chats with one tokenizer's chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raises UserError(UNSUPPORTED) for a tokenizer without a chat template."""
        if not tokenizer.chat_template:
            message = "spec.dataset.messages needs a chat template, and the tokenizer has none"
            hint = "Use the instruct variant of the model, set spec.tokenizer to one that has a chat template,"
            raise UserError(Reason.UNSUPPORTED, message, f"{hint} or set prompt and completion instead of messages.")
        self._tokenizer = tokenizer
        self._marks = closing_marks(tokenizer)

    def segments(self, messages: Sequence[Message], *, where: str) -> tuple[Segment, ...]:
        """Return a chat as segments whose texts, put together, are what the template makes of the whole chat.

        Every answer is supervised, with the mark that ends its turn. A template that writes earlier turns differently
        once later ones follow (some drop the reasoning of earlier answers) leaves only the last answer supervised: what
        comes before is then exactly what the model will see. Raises UserError(UNSUPPORTED) where not even that works.
        """
        # An opening that answers nothing is what the model sees, not what it learns.
        answers = [index for index, message in enumerate(messages) if message.is_answer and index > 0]
        whole = self._render(messages, where=where)
        if not answers:
            return (Segment(whole, supervised=False),)
        cuts = self._cuts(messages, answers, where=where)
        if not all(whole.startswith(text) for text in cuts) or not _grows(cuts):
            # Turns after the last answer carry no loss; without them the last answer is sure to be written as such.
            whole = self._render(messages[: answers[-1] + 1], where=where)
            cuts = self._cuts(messages, answers[-1:], where=where)
        if not all(whole.startswith(text) for text in cuts) or not _grows(cuts):
            message = f"{where}: the tokenizer's chat template does not begin an answer with its own generation prompt"
            hint = "Set spec.tokenizer to one with another chat template, or use prompt and completion."
            raise UserError(Reason.UNSUPPORTED, message, hint)
        return self._segments(whole, [len(text) for text in cuts])

    def _cuts(self, messages: Sequence[Message], answers: Sequence[int], *, where: str) -> list[str]:
        """Return, for each answer, the text up to its beginning (generation prompt included) and up to its end."""
        cuts = []
        for index in answers:
            cuts.append(self._render(messages[:index], where=where, add_generation_prompt=True))
            cuts.append(self._render(messages[: index + 1], where=where))
        return cuts

    def _segments(self, whole: str, cuts: list[int]) -> tuple[Segment, ...]:
        """Cut a chat: pieces at odd places are answers."""
        pieces = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
        segments: list[Segment] = []
        for number, piece in enumerate(pieces):
            fresh = close_turn(piece, self._marks) if number % 2 else (Segment(piece, supervised=False),)
            segments += (segment for segment in fresh if segment.text or segment.closing)
        return tuple(_merged(segments))

    def _render(self, messages: Sequence[Message], *, where: str, add_generation_prompt: bool = False) -> str:
        conversation = [{"role": message.role.value, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, IndexError) as error:
            message = f"{where}: the tokenizer's chat template refuses the chat: {error}"
            hint = (
                "Many templates want user and assistant in turns, beginning with the user and without a system message."
            )
            raise UserError(Reason.DATASET_UNREADABLE, message, hint) from error
        return str(text)


def _grows(cuts: Sequence[str]) -> bool:
    return all(len(before) <= len(after) for before, after in pairwise(cuts))


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours without loss, so that a prompt is tokenised in one go, as at generation."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and not (merged[-1].supervised or segment.supervised):
            merged[-1] = Segment(merged[-1].text + segment.text, supervised=False)
        else:
            merged.append(segment)
    return merged
