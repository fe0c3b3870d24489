"""A folder of tasks in the format of lm-evaluation-harness, and what the harness itself makes of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetuning_api.runconfig import Provenance, TaskInput

COLOURS = ("red", "green", "blue", "a dark yellow")
TASK: Mapping[str, object] = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/colours.jsonl", "shown": "data/shown.json"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question {{number}}: what is the colour of the {{thing}}?\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "{{right}}",
}


def colours(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Return questions with four answers."""
    return [
        {
            "number": number,
            "thing": f"thing number {'x' * (number % 5)}",
            "choices": list(COLOURS),
            "right": number % 4,
            "colour": COLOURS[number % 4],
            "text": f"The {number}th message is about a refund.\nIt has {'many ' * (number % 9)}words, äöü.",
        }
        for number in range(start, start + count)
    ]


def write_task(folder: Path, *, remove: Sequence[str] = (), **changes: object) -> TaskInput:
    """Write the folder with one task, which differs from the usual one by ``changes``."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data/colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in colours(23)))
    (folder / "data/shown.json").write_text(json.dumps(colours(7, start=100)))
    content = {key: value for key, value in {**TASK, **changes}.items() if key not in remove}
    (folder / "colours.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return task_input(folder)


def task_input(folder: Path, name: str = "colours") -> TaskInput:
    """Return the folder as an evaluation is told of it."""
    return TaskInput(name=name, path=str(folder), provenance=Provenance(source="file://tasks", digest="sha256:1"))
