"""Runs a user's function on the outputs of every candidate: ``python -P -m finetuning_evaluator.custom_child``.

It reads request.json in its folder and writes answer.json there: scores by candidate, or what is wrong. Nothing of ours
but this module shares the process with the user's code.
"""

import importlib.util
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetuning_workload.parent import follow_parent

REQUEST_NAME, ANSWER_NAME = "request.json", "answer.json"
_LONGEST = 500


class _ProblemError(Exception):
    """What is wrong with the user's function, as a sentence."""


def answer(request: dict[str, Any]) -> dict[str, object]:
    """Return the scores of every candidate, or why there are none."""
    try:
        function = _load(Path(request["folder"]), request["file"], request["function"])
        return {
            "scores": {
                name: _scores(function, predictions, request=request)
                for name, predictions in request["predictions"].items()
            }
        }
    except _ProblemError as problem:
        return {"problem": str(problem)}


def _load(folder: Path, file: str, name: str) -> Callable[..., object]:
    sys.path.insert(0, str((folder / file).parent))
    specification = importlib.util.spec_from_file_location("custom_metric", folder / file)
    if specification is None or specification.loader is None:
        message = f"{file} is no Python file"
        raise _ProblemError(message)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except MemoryError:
        raise
    except Exception as error:  # Whatever the user's code raises is told with its line.
        raise _told(error, file, f"{file} cannot be loaded") from error
    function = getattr(module, name, None)
    if not callable(function):
        message = f"{name} in {file} is no function"
        raise _ProblemError(message)
    found: Callable[..., object] = function
    return found


def _scores(function: Callable[..., object], predictions: Sequence[str], *, request: dict[str, Any]) -> list[float]:
    name, file, ids = request["function"], request["file"], request["ids"]
    who = f"{name} in {file}"
    try:
        # Copies: what it does to its arguments is its own affair.
        returned: Any = function(list(predictions), list(request["references"]), [dict(row) for row in request["rows"]])
        values = list(returned)
    except MemoryError:
        raise
    except Exception as error:  # As above.
        raise _told(error, file, f"{who} failed") from error
    if len(values) != len(ids):
        message = f"{who} returned {len(values)} values for {len(ids)} rows"
        raise _ProblemError(message)
    return [_number(value, who=who, row=row) for value, row in zip(values, ids, strict=True)]


def _number(value: Any, *, who: str, row: str) -> float:  # noqa: ANN401  (whatever somebody else's code returns)
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        message = f"{who} returned {str(value)[:_LONGEST]!r} for row {row}, which is no finite number"
        raise _ProblemError(message)
    return number


def _told(error: Exception, file: str, what: str) -> _ProblemError:
    """Return an exception of the user's code as a sentence, with the last line of its file; the log has it whole."""
    traceback.print_exception(error)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
    place = f", line {lines[-1]}" if lines else ""
    return _ProblemError(f"{what}{place}: {type(error).__name__}: {str(error)[:_LONGEST]}")


def main() -> None:
    """Answer the request in the current folder."""
    follow_parent(os.environ)
    # Before any code of the user's, which may change the folder.
    target = Path(ANSWER_NAME).absolute()
    found = answer(json.loads(Path(REQUEST_NAME).read_text(encoding="utf-8")))
    target.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
