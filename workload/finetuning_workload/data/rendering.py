"""From a row of a table to the text of a sample. Training, evaluation and prompting all render here."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetuning_api.dataset import RowFormat
from finetuning_workload.data.chat import ChatRenderer, read_messages
from finetuning_workload.data.choices import read_choices
from finetuning_workload.data.reading import TEXT_COLUMN, Row, Table
from finetuning_workload.data.segments import Segment, close_turn, closing_marks
from finetuning_workload.data.templates import Template, cell_text, is_missing, parse_template, require_column

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELD = "spec.dataset"


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """One row as text: segments in order, of which the supervised ones carry loss."""

    row_id: str
    segments: tuple[Segment, ...]
    group: str | None = None
    """Value of the column that the split groups by; None groups by equal prompt."""
    choices: tuple[str, ...] = ()
    """The row's own answers to choose from, where the data has them."""

    @property
    def text(self) -> str:
        """The whole sample, with the closing marks that a chat template writes itself."""
        return "".join(segment.text + segment.closing for segment in self.segments)

    @property
    def prompt(self) -> str:
        """Everything before the last supervised segment: what generation starts from. All of an unusable row."""
        return "".join(segment.text + segment.closing for segment in self.prompt_segments)

    @property
    def completion(self) -> str:
        """Text of the last supervised segment without its closing mark; empty for an unusable row."""
        index = self._last_supervised
        return "" if index is None else self.segments[index].text

    @property
    def prompt_segments(self) -> tuple[Segment, ...]:
        """The segments that make the prompt."""
        return self.segments[: self._last_supervised]

    @property
    def usable(self) -> bool:
        """Whether there is something to learn: a supervised segment that is not blank."""
        return self._last_supervised is not None

    @property
    def is_plain(self) -> bool:
        """Whether the row is plain language modelling: nothing comes before what is learned, so it can go in pieces."""
        return self._last_supervised == 0

    @property
    def split_key(self) -> str:
        """What decides the side of the split: equal keys are always on one side."""
        if self.group is not None:
            return f"group:{self.group}"
        return f"prompt:{self.prompt}" if self.prompt else f"text:{self.text}"

    @property
    def _last_supervised(self) -> int | None:
        found = (index for index in reversed(range(len(self.segments))) if self.segments[index].supervised)
        return next(found, None)


SegmentsOf = Callable[[Row, int], tuple[Segment, ...]]
"""Makes the segments of a row; the second argument is its number, counted from 1, for messages."""


def render_rows(table: Table, rows: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> list[RenderedRow]:
    """Return every row of a table as text; rows with nothing to learn have ``usable`` false.

    Raises UserError with COLUMN_NOT_FOUND, INVALID_SPEC (a template), DATASET_UNREADABLE (a chat) or UNSUPPORTED (no
    chat template).
    """
    return list(iterate_rendered(table, rows, tokenizer))


def iterate_rendered(table: Table, rows: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> Iterator[RenderedRow]:
    """Render row by row, as render_rows does. Mistakes that concern all rows are raised here, before the first one."""
    segments_of = _renderer(table.columns, rows, tokenizer)
    group_by = rows.split.group_by
    if group_by is not None:
        require_column(group_by, table.columns, field=f"{FIELD}.split.groupBy")
    choices_of = _choices_reader(table.columns, rows.choices)
    return (
        RenderedRow(
            row_id=row_id,
            segments=segments_of(row, number),
            group=None if group_by is None else cell_text(row.get(group_by)),
            choices=choices_of(row, number),
        )
        for number, (row_id, row) in enumerate(zip(table.row_ids, table, strict=True), start=1)
    )


def _renderer(columns: Iterable[str], rows: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> SegmentsOf:
    if rows.completion is not None:
        return _template_renderer(columns, rows, tokenizer)
    if rows.messages is not None:
        return _chat_renderer(columns, rows.messages, tokenizer)
    return _text_renderer(columns, rows, tokenizer)


def _template_renderer(columns: Iterable[str], rows: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> SegmentsOf:
    prompt = None if rows.prompt is None else parse_template(rows.prompt, field=f"{FIELD}.prompt")
    completion = parse_template(rows.completion or "", field=f"{FIELD}.completion")
    rejected = None if rows.rejected is None else parse_template(rows.rejected, field=f"{FIELD}.rejected")
    for template in (prompt, completion, rejected):
        if template is not None:
            template.require_columns(columns)
    marks = closing_marks(tokenizer)

    def segments_of(row: Row, _number: int) -> tuple[Segment, ...]:
        before = () if prompt is None else (Segment(prompt.render(row), supervised=False),)
        return before if says_nothing(completion, row) else before + close_turn(completion.render(row), marks)

    return segments_of


def says_nothing(template: Template, row: Row) -> bool:
    """Whether a row has nothing for a template: text around nothing, as `Answer: {answer}`, is nothing to learn."""
    return bool(template.columns) and all(_is_blank(row.get(column)) for column in template.columns)


def _text_renderer(columns: Iterable[str], rows: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> SegmentsOf:
    column = rows.text or TEXT_COLUMN
    field = f"{FIELD}.text" if rows.text else f"{FIELD} sets none of completion, messages and text"
    require_column(column, columns, field=field)
    marks = closing_marks(tokenizer)
    return lambda row, _number: close_turn(cell_text(row.get(column)), marks)


def _chat_renderer(columns: Iterable[str], column: str, tokenizer: "PreTrainedTokenizerBase") -> SegmentsOf:
    require_column(column, columns, field=f"{FIELD}.messages")
    chat = ChatRenderer(tokenizer)

    def segments_of(row: Row, number: int) -> tuple[Segment, ...]:
        value = row.get(column)
        if _is_blank(value):
            return ()
        where = f"row {number}, column {column!r}"
        return chat.segments(read_messages(value, where=where), where=where)

    return segments_of


def _choices_reader(columns: Iterable[str], column: str | None) -> Callable[[Row, int], tuple[str, ...]]:
    if column is None:
        return lambda _row, _number: ()
    require_column(column, columns, field=f"{FIELD}.choices")
    return lambda row, number: read_choices(row.get(column), where=f"row {number}, column {column!r}")


def _is_blank(value: object) -> bool:
    return is_missing(value) or value == [] or (isinstance(value, str) and not value.strip())
