"""The file of a task: which keys and values are supported, and a message for each that is not."""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TaskInput
from finetuning_api.wording import got, need, shown, suggestion
from finetuning_workload.artifact import artifact_files
from finetuning_workload.errors import UserError

_SHOWN = 10
_SUFFIXES = frozenset({".yaml", ".yml"})


class OutputType(StrEnum):
    """What is asked of a model for each document."""

    MULTIPLE_CHOICE = "multiple_choice"
    LOGLIKELIHOOD = "loglikelihood"
    ROLLING = "loglikelihood_rolling"
    GENERATE = "generate_until"


METRICS: Mapping[OutputType, tuple[str, ...]] = {
    OutputType.MULTIPLE_CHOICE: ("acc", "acc_norm"),
    OutputType.LOGLIKELIHOOD: ("perplexity", "acc"),
    OutputType.ROLLING: ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    OutputType.GENERATE: ("exact_match",),
}
"""The metrics that are computed; also those of a file without a metric_list, as in the harness."""


LOWER_IS_BETTER = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})
_AGGREGATIONS: Mapping[str, str] = {
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
}
"""How a metric becomes one number of all documents; the others are means."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Data(_Part):
    data_files: str | list[str] | dict[str, str | list[str]]


class _MetricEntry(_Part):
    """One metric; how it is aggregated, and which way is better, is the metric's own."""

    metric: str
    aggregation: str | None = None
    higher_is_better: bool | None = None
    regexes_to_ignore: list[str] = []
    ignore_case: bool = False
    ignore_punctuation: bool = False


class _Generation(_Part):
    until: Annotated[list[str], BeforeValidator(lambda told: [told] if isinstance(told, str) else told)] | None = None
    max_gen_toks: int = Field(default=256, ge=1)
    do_sample: Literal[False] = False
    temperature: float = Field(default=0, ge=0, le=0)


class _FewShot(_Part):
    sampler: Literal["default", "first_n"] = "default"
    split: str | None = None
    samples: list[dict[str, Any]] | None = None


class FilterFunction(_Part):
    """One step from what a model wrote to what is compared; the other settings are those of ``regex``."""

    function: Literal["take_first", "remove_whitespace", "lowercase", "regex"]
    regex_pattern: str = r"#### (\-?[0-9\.\,]+)"
    group_select: int = 0
    """Which of the places that the pattern fits, from 0; -1 is the last."""
    fallback: str = "[invalid]"


class _Filter(_Part):
    name: str
    filter: list[FilterFunction]


class TaskFile(_Part):
    """A task as its file tells it; the names and the defaults are those of lm-evaluation-harness."""

    task: str
    task_alias: str | None = None
    tag: str | list[str] | None = None
    metadata: dict[str, Any] | None = None
    dataset_path: Literal["json", "parquet"]
    dataset_name: None = None
    dataset_kwargs: _Data
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    fewshot_config: _FewShot = _FewShot()
    num_fewshot: int = Field(default=0, ge=0)
    output_type: Annotated[OutputType, Field(strict=False)] = OutputType.GENERATE
    description: str = ""
    doc_to_text: str = ""
    doc_to_target: str | int
    doc_to_choice: str | list[str] | dict[str, str] | None = None
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    metric_list: list[_MetricEntry] | None = Field(default=None, min_length=1)
    generation_kwargs: _Generation = _Generation()
    filter_list: list[_Filter] = Field(default=[], max_length=1)
    repeats: Literal[1] = 1
    should_decontaminate: Literal[False] = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the file asks for."""
        if self.metric_list is None:
            return METRICS[self.output_type]
        return tuple(dict.fromkeys(entry.metric for entry in self.metric_list))

    @property
    def split(self) -> str | None:
        """The split that is evaluated."""
        return self.test_split or self.validation_split

    @property
    def filters(self) -> tuple[FilterFunction, ...]:
        """What is done with the text that a model writes, step by step."""
        return tuple(step for each in self.filter_list for step in each.filter)

    @property
    def until(self) -> tuple[str, ...]:
        """The texts that end what a model writes."""
        told = self.generation_kwargs.until
        return (self.fewshot_delimiter,) if told is None else tuple(told)


_KEYS = frozenset(
    key
    for part in (TaskFile, _Data, _MetricEntry, _Generation, _FewShot, FilterFunction, _Filter)
    for key in part.model_fields
)


class _Loader(yaml.SafeLoader):
    """Refuses tags that are not YAML's own: !function names code, and code of others is not run."""


class _IndexLoader(yaml.SafeLoader):
    """Reads files only to learn which task they hold: what a tag stands for does not matter."""


_IndexLoader.add_multi_constructor("!", lambda *_: None)


def read_task_file(task: TaskInput) -> TaskFile:
    """Return the file of a task. Raises UserError(METRIC_UNAVAILABLE), naming file, key and what is supported."""
    path = _find(task)
    content = _merged(task, path, seen=())
    file = path.relative_to(task.path).as_posix()
    try:
        told = TaskFile.model_validate({key: value for key, value in content.items() if value is not None})
    except ValidationError as error:
        raise refused(task, f"{file}: {_problem(error)}") from error
    _require_metrics(task, told, file=file)
    for problem in (*_filter_problems(told), *_pattern_problems(told)):
        raise refused(task, f"{file}: {problem}")
    if told.split is None:
        raise refused(task, f"{file}: neither test_split nor validation_split is set: there is nothing to evaluate on")
    if told.output_type is OutputType.MULTIPLE_CHOICE and told.doc_to_choice is None:
        raise refused(task, f"{file}: output_type multiple_choice needs doc_to_choice")
    return told


def refused(task: TaskInput, why: str, hint: str = "") -> UserError:
    """Return the error for a task that cannot be evaluated."""
    advice = hint or "docs/evaluation.md lists what of the format is supported; change the file, or remove the task."
    return UserError(Reason.METRIC_UNAVAILABLE, f"the task {task.name} cannot be evaluated: {why}", advice)


def _find(task: TaskInput) -> Path:
    """Return the file that holds a task by its name."""
    files = [path for path in artifact_files(Path(task.path)) if path.suffix in _SUFFIXES]
    names = {path: _name_in(path) for path in files}
    found = [path for path in files if names[path] == task.name]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(path.relative_to(task.path).as_posix() for path in found[:2])
        raise refused(task, f"{task.provenance.source} holds it twice, in {both}", "Remove one of them.")
    there = ", ".join(sorted(name for name in names.values() if name)[:_SHOWN])
    told = f"it holds {there}" if there else "it holds no YAML file with a task in it"
    raise refused(task, f"{task.provenance.source} has no task of this name; {told}", "Name it as its file does: task.")


def _name_in(path: Path) -> str | None:
    try:
        content = yaml.load(path.read_bytes(), _IndexLoader)  # noqa: S506  (a safe loader: tags become nothing)
    except (yaml.YAMLError, UnicodeError):
        return None  # Another file's mistake; this task's is told when it is read.
    name = content.get("task") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _merged(task: TaskInput, path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a file over those of the files that it includes."""
    file = path.relative_to(task.path).as_posix()
    content = _read(task, path, file=file)
    told = content.pop("include", [])
    merged: dict[str, Any] = {}
    for name in told if isinstance(told, list) else [told]:
        included = path.parent / str(name)
        if not included.is_file() or not included.resolve().is_relative_to(Path(task.path).resolve()):
            raise refused(task, f"{file}: include names {name}, which is no file in the folder of the task")
        if included in (*seen, path):
            raise refused(task, f"{file}: include names {name}, which includes this file")
        merged |= _merged(task, included, seen=(*seen, path))
    return merged | content


def _read(task: TaskInput, path: Path, *, file: str) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_bytes(), _Loader)  # noqa: S506  (a safe loader)
    except yaml.constructor.ConstructorError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "it"
        message = f"{file}: {where} has a tag that runs code or is unknown ({error.problem}): only plain YAML is read"
        hint = "Write the template in doc_to_text itself, and prepare the data beforehand."
        raise refused(task, message, hint) from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise refused(task, f"{file} is no YAML: {' '.join(str(error).split())}", "Correct the file.") from error
    if not isinstance(content, dict):
        raise refused(task, f"{file} holds no mapping of keys to values", "Correct the file.")
    return content


def _problem(error: ValidationError) -> str:
    """Return the first mistake as a sentence."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part in _KEYS or isinstance(part, int))
    key = str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        known = sorted(TaskFile.model_fields) if len(first["loc"]) == 1 else ()
        listed = f"; supported are {', '.join(known)}" if known else ""
        place = f"{where}.{key}" if where else key
        return f"{place} is not supported{listed} {suggestion(key, known)}".rstrip()
    if first["type"] == "missing":
        return f"{key} is missing"
    context = first.get("ctx", {})
    return f"{where or key} {need(first['type'], context)}, {got(first['type'], context, value=first['input'])}"


def _require_metrics(task: TaskInput, told: TaskFile, *, file: str) -> None:
    known = METRICS[told.output_type]
    for metric in told.metrics:
        if metric not in known:
            message = f"{file}: metric_list has {metric}; of {told.output_type} are supported {', '.join(known)}"
            raise refused(task, message)
    for entry in told.metric_list or ():
        aggregation, higher = _AGGREGATIONS.get(entry.metric, "mean"), entry.metric not in LOWER_IS_BETTER
        if entry.aggregation not in {None, aggregation} or entry.higher_is_better not in {None, higher}:
            only = f"aggregation {aggregation} and higher_is_better {str(higher).lower()}"
            raise refused(task, f"{file}: metric_list has {entry.metric} with other settings than {only}")


def _filter_problems(told: TaskFile) -> Iterator[str]:
    """Yield what the harness would fail at, or make nonsense of."""
    for number, step in enumerate(told.filters):
        where = f"filter_list.0.filter.{number}"
        if told.output_type is not OutputType.GENERATE and step.function != "take_first":
            yield f"{where}.function: {step.function} is for {OutputType.GENERATE}, where there is a text"
        foreign = sorted(step.model_fields_set - {"function"})
        if step.function != "regex" and foreign:
            yield f"{where}.{foreign[0]} is a setting of regex, not of {step.function}"
    if any(step.function == "take_first" for step in told.filters[:-1]):
        yield "filter_list.0.filter: take_first comes last, after it there is one text and no list"


def _pattern_problems(told: TaskFile) -> Iterator[str]:
    """Yield every pattern that is no regular expression."""
    patterns = {
        f"filter_list.0.filter.{number}.regex_pattern": step.regex_pattern for number, step in enumerate(told.filters)
    }
    for number, entry in enumerate(told.metric_list or ()):
        ignored = enumerate(entry.regexes_to_ignore)
        patterns |= {f"metric_list.{number}.regexes_to_ignore.{place}": pattern for place, pattern in ignored}
    for where, pattern in patterns.items():
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{where} needs a regular expression, got {shown(pattern)}: {error}"
