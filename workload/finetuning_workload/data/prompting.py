"""What completions go on from: the prompts of rows, which need not hold a completion themselves."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from finetuning_api.dataset import RowFormat
from finetuning_api.reasons import Reason
from finetuning_workload.data.chat import ChatRenderer, Message, Role, read_messages
from finetuning_workload.data.reading import Row, Table
from finetuning_workload.data.rendering import FIELD, RenderedRow
from finetuning_workload.data.segments import Segment
from finetuning_workload.data.splitting import chosen_ids
from finetuning_workload.data.templates import is_missing, parse_template, require_column
from finetuning_workload.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = Message(Role.ASSISTANT, "answer")
"""Stands for the completion that is to come: what is before it is then the prompt, rendered as training renders it."""
_PromptOf = Callable[[Row, int], tuple[Segment, ...]]


def iterate_prompts(
    table: Table, rows: RowFormat, tokenizer: "PreTrainedTokenizerBase", *, limit: int | None
) -> Iterator[tuple[int, RenderedRow]]:
    """Go through the rows of a table for their prompts, with their numbers, counted from 1; ``limit`` of them at most.

    The tokens of a prompt are those that a completion starts from in training and evaluation. The split is not looked
    at, and columns of the completion need not be there: in its place is a word that stands for it. A chat goes on after
    its last turn that is not an answer. A row without anything to go on from has an empty prompt. Mistakes that concern
    all rows are raised before the first one.

    Raises UserError with COLUMN_NOT_FOUND, INVALID_SPEC (a template, or no prompt at all), DATASET_UNREADABLE (a chat)
    or UNSUPPORTED (no chat template).
    """
    prompt_of = _prompt_of(table, rows, tokenizer)
    chosen = chosen_ids(table.row_ids, limit=rows.limit, seed=rows.split.seed)
    return _numbered(table, prompt_of, chosen=chosen, limit=limit)


def count_prompts(table: Table, rows: RowFormat, *, limit: int | None) -> int:
    """Return how many prompts there are."""
    return min(each for each in (len(table), rows.limit, limit) if each is not None)


def _numbered(
    table: Table, prompt_of: _PromptOf, *, chosen: frozenset[str] | None, limit: int | None
) -> Iterator[tuple[int, RenderedRow]]:
    done = 0
    for number, (row_id, row) in enumerate(zip(table.row_ids, table, strict=True), start=1):
        if done == limit:
            return
        if chosen is None or row_id in chosen:
            done += 1
            yield number, RenderedRow(row_id, prompt_of(row, number))


def _prompt_of(table: Table, rows: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> _PromptOf:
    if rows.prompt is not None:
        template = parse_template(rows.prompt, field=f"{FIELD}.prompt")
        template.require_columns(table.columns)
        return lambda row, _number: _plain(template.render(row))
    if rows.messages is not None:
        return _prompt_of_chat(table, rows.messages, tokenizer)
    hint = "Set spec.dataset.prompt or spec.dataset.messages; of plain text the prompt is '{text}'."
    raise UserError(Reason.INVALID_SPEC, "the data has no prompts to go on from", hint)


def _plain(text: str) -> tuple[Segment, ...]:
    before = (Segment(text, supervised=False),) if text else ()
    return (*before, Segment(_ANSWER.content, supervised=True))


def _prompt_of_chat(table: Table, column: str, tokenizer: "PreTrainedTokenizerBase") -> _PromptOf:
    require_column(column, table.columns, field=f"{FIELD}.messages")
    chat = ChatRenderer(tokenizer)

    def prompt_of(row: Row, number: int) -> tuple[Segment, ...]:
        value, where = row.get(column), f"row {number}, column {column!r}"
        if is_missing(value) or not value:
            return _plain("")
        messages = list(read_messages(value, where=where))
        while messages and messages[-1].role is Role.ASSISTANT:
            messages.pop()
        return chat.segments([*messages, _ANSWER], where=where) if messages else _plain("")

    return prompt_of
