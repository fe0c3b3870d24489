"""The documents of a task as a model is asked about them: templates filled, examples put before, answers in place.

What comes out is what lm-evaluation-harness 0.4 makes of the same file, character by character.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetuning_api.dataset import DataFormat, RowFormat
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TaskInput
from finetuning_workload.data import load_table
from finetuning_workload.errors import UserError
from finetuning_workload.task_files.file import OutputType, TaskFile, read_task_file, refused

Row = Mapping[str, object]
Target = str | int | list[object]
"""What doc_to_target gives: a text or the number of a choice, or several of one kind that are all right."""

_WITH_SEVERAL_RIGHT = (OutputType.MULTIPLE_CHOICE, OutputType.GENERATE)
_SEED = 1234
"""What the harness draws examples with where it is not told another."""


@dataclass(frozen=True, slots=True)
class Document:
    """One question of a task."""

    context: str
    answers: tuple[str, ...]
    """Every choice, or every text that is right; a text that is scored without a context is alone here."""
    right: tuple[int, ...] = (0,)
    """The places of the right answers, of which one is enough."""

    @property
    def references(self) -> tuple[str, ...]:
        """The right answers."""
        return tuple(self.answers[place] for place in self.right)


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A task with its documents."""

    name: str
    file: TaskFile
    documents: tuple[Document, ...]
    digest: str
    """Of the folder that it came from."""
    source: str

    def answer(self, document: Document, place: int) -> str:
        """Return what is scored after the context."""
        if self.file.output_type is OutputType.MULTIPLE_CHOICE:
            return self.file.target_delimiter + document.answers[place]
        return document.answers[place]


def load_task(task: TaskInput) -> LoadedTask:
    """Read a task and its data. Raises UserError: METRIC_UNAVAILABLE, or what reading data raises."""
    file = read_task_file(task)
    reader = _Reader(task, file)
    documents = tuple(reader.documents())
    if not documents:
        raise refused(task, f"the split {file.split} has no rows", "Check the files in dataset_kwargs.data_files.")
    return LoadedTask(task.name, file, documents, task.provenance.digest, task.provenance.source)


class _Reader:
    """Makes documents of rows."""

    def __init__(self, task: TaskInput, file: TaskFile) -> None:
        self._task = task
        self._file = file
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        self._environment.filters["regex_replace"] = _regex_replace
        self._where = ""
        self._several: bool | None = None

    def documents(self) -> Iterator[Document]:
        rows = self._rows(self._file.split or "")
        examples = self._examples()
        for number, row in enumerate(rows):
            self._where = f"document {number}"
            description = self._rendered("description", self._file.description, row) if self._file.description else ""
            shown = examples.draw(row) if examples else ()
            yield self._document(row, description + "".join(map(self._example, shown)))

    def _document(self, row: Row, before: str) -> Document:
        target = self._target(row)
        self._require_kind(target)
        if self._file.output_type is OutputType.ROLLING:
            return Document("", (str(target),))
        context = before + self._text(row)
        if self._file.output_type is OutputType.MULTIPLE_CHOICE:
            choices = self._choices(row)
            return Document(context, choices, self._right(target, choices))
        answers = self._answers(row, target)
        return Document(context, answers, tuple(range(len(answers))))

    def _require_kind(self, target: Target) -> None:
        """Raise UserError(METRIC_UNAVAILABLE) for several right answers where the harness has no meaning for them."""
        several = isinstance(target, list)
        if several and self._file.output_type not in _WITH_SEVERAL_RIGHT:
            known = " and ".join(_WITH_SEVERAL_RIGHT)
            raise self._refused("doc_to_target", f"gives a list: several right answers are supported of {known}")
        # The harness looks at the first document alone, and takes the others for the same.
        if self._several not in {None, several}:
            found, first = ("a list", "no list") if several else ("no list", "a list")
            raise self._refused("doc_to_target", f"gives {found}, that of document 0 {first}: all need the same")
        self._several = several

    def _example(self, row: Row) -> str:
        delimiter, end = self._file.target_delimiter, self._file.fewshot_delimiter
        answer = self._answers(row, self._target(row))[0]
        return self._text(row) + (delimiter + answer + end if answer else "")

    def _answers(self, row: Row, target: Target) -> tuple[str, ...]:
        """Return the right answers as texts: of numbers their choices, where there are any."""
        if self._file.doc_to_choice is not None and not isinstance(target, str):
            choices = self._choices(row)
            return tuple(choices[place] for place in self._right(target, choices))
        if not isinstance(target, list):
            return (str(target),)
        return self._texts("doc_to_target", target)

    def _text(self, row: Row) -> str:
        told = self._file.doc_to_text
        text = row[told] if told in row else self._rendered("doc_to_text", told, row)
        if not isinstance(text, str) or (text.isdigit() and self._file.doc_to_choice is not None):
            raise self._refused("doc_to_text", "gives a number: choices as several contexts are not supported")
        return text

    def _target(self, row: Row) -> Target:
        told = self._file.doc_to_target
        if isinstance(told, int):
            return told
        if told in row:
            found = row[told]
            if not isinstance(found, str | int | list):
                raise self._refused("doc_to_target", f"gives {found!r:.80}; a text, a whole number or a list is needed")
            return found
        text = self._rendered("doc_to_target", told, row)
        if text.isdigit() and self._file.doc_to_choice is not None:
            return int(text)
        if not (text.startswith("[") and text.endswith("]")):
            return text
        try:
            listed = _literal(text)
        except ValueError:
            return text  # A text in brackets, to the harness as well.
        if not isinstance(listed, list):
            raise self._refused("doc_to_target", f"gives {text!r:.80}, which is neither a list nor a text")
        return listed

    def _choices(self, row: Row) -> tuple[str, ...]:
        told = self._file.doc_to_choice
        if isinstance(told, dict):
            found: object = list(told.values())
        elif isinstance(told, str):
            found = row[told] if told in row else self._listed(self._rendered("doc_to_choice", told, row))
        else:
            found = told
        return self._texts("doc_to_choice", found)

    def _texts(self, key: str, found: object) -> tuple[str, ...]:
        if not isinstance(found, list) or not found or not all(isinstance(each, str) and each for each in found):
            raise self._refused(key, f"gives {found!r:.80}; a list of texts that are not empty is needed")
        return tuple(found)

    def _right(self, target: Target, choices: Sequence[str]) -> tuple[int, ...]:
        asked: list[object]
        if isinstance(target, str):
            asked = [choices.index(target)] if target in choices else []
        else:
            asked = target if isinstance(target, list) else [int(target)]
        # In a list True would be 1, where it more likely marks its choice as right.
        numbers = [each for each in asked if isinstance(each, int) and not isinstance(each, bool)]
        places = tuple(place for place in numbers if 0 <= place < len(choices))
        if places and len(places) == len(asked):
            return places
        wrong = "which are not numbers" if isinstance(target, list) else "which is none"
        raise self._refused("doc_to_target", f"gives {target!r:.80}, {wrong} of the {len(choices)} choices")

    def _listed(self, text: str) -> object:
        try:
            return _literal(text)
        except ValueError as error:
            raise self._refused("doc_to_choice", f"gives {text!r:.80}, which is no list") from error

    def _rendered(self, key: str, template: str, row: Row) -> str:
        try:
            return self._environment.from_string(template).render(**row)
        except TemplateError as error:
            raise self._refused(key, f"cannot be filled: {error}") from error
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, re.error) as error:
            # What a template does with the values of a row is the user's: the error is about them.
            raise self._refused(key, f"cannot be filled: {type(error).__name__}: {error}") from error

    def _refused(self, key: str, why: str) -> UserError:
        return refused(self._task, f"{self._where}: {key} {why}")

    def _examples(self) -> "_Examples | None":
        told, count = self._file.fewshot_config, self._file.num_fewshot
        if not count:
            return None
        split = told.split or self._file.fewshot_split
        pool = split or self._file.training_split or self._file.validation_split or self._file.test_split
        rows = self._rows(pool or "") if split or told.samples is None else tuple(told.samples)
        # A question is no example for itself. The harness tells by what both splits are named, or that none of them is.
        apart = split == self._file.test_split
        if len(rows) < count + apart:
            raise refused(self._task, f"num_fewshot is {count}, but there are {len(rows)} rows to show")
        return _Examples(rows, count, random=told.sampler == "default", apart=apart)

    def _rows(self, split: str) -> tuple[Row, ...]:
        files = self._file.dataset_kwargs.data_files
        by_split = files if isinstance(files, dict) else {"train": files}
        if split not in by_split:
            known = ", ".join(by_split)
            raise refused(self._task, f"there is no split {split!r} in dataset_kwargs.data_files; it has {known}")
        names = by_split[split]
        rows = [row for name in ([names] if isinstance(names, str) else names) for row in self._read(name)]
        columns = dict.fromkeys(column for row in rows for column in row)
        return tuple({column: row.get(column) for column in columns} for row in rows)

    def _read(self, name: str) -> Iterator[Row]:
        root = Path(self._task.path)
        path = root / name
        if Path(name).is_absolute() or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            message = f"dataset_kwargs.data_files names {name}, which is no file in {self._task.provenance.source}"
            hint = "Put the data into the folder, and name it from there, as data/test.jsonl."
            raise refused(self._task, message, hint)
        wanted = DataFormat.JSON if self._file.dataset_path == "json" else DataFormat.PARQUET
        try:
            yield from load_table(path, RowFormat(format=wanted))
        except UserError as error:
            why = f"{name} has no rows" if error.reason is Reason.DATASET_EMPTY else error.message
            raise refused(self._task, why, "Repair the file.") from error


class _Examples:
    """Draws the rows that are shown before a question, as the harness does: in turn, from one stream of chance."""

    def __init__(self, rows: Sequence[Row], count: int, *, random: bool, apart: bool) -> None:
        self._rows = list(rows)
        self._count = count
        self._random = Random(_SEED) if random else None
        self._apart = apart

    def draw(self, row: Row) -> Sequence[Row]:
        """Return the examples for a question."""
        if self._random is None:
            pool = [each for each in self._rows if each != row] if self._apart else self._rows
            return pool[: self._count]
        drawn = self._random.sample(self._rows, self._count + self._apart)
        kept = [each for each in drawn if each != row] if self._apart else drawn
        if len(kept) < self._count:
            kept = self._random.sample([each for each in self._rows if each != row], self._count)
        return kept[: self._count]


def _literal(text: str) -> object:
    """Return the value that a text is in Python. Raises ValueError where it is none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        # A list as a key is a TypeError; the last two are how the parser tells of brackets that are nested too deep.
        raise ValueError(text) from error


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)
