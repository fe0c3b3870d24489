"""The answers that a row offers to choose from."""

import json

from finetuning_api.reasons import Reason
from finetuning_workload.data.templates import cell_text, is_missing
from finetuning_workload.errors import UserError

_SHOWN = 60


def read_choices(value: object, *, where: str) -> tuple[str, ...]:
    """Return the answers in a cell, white space at their ends cut off; none where the cell is empty.

    A cell of a CSV file may hold the list as JSON. Raises UserError(DATASET_UNREADABLE) for what is no list of texts or
    numbers; ``where`` names the cell.
    """
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return ()
    found = _parsed(value) if isinstance(value, str) else value
    if not isinstance(found, list) or any(isinstance(item, list | dict) for item in found):
        message = f"{where}: spec.dataset.choices needs a list of answers, found {str(value)[:_SHOWN]!r}"
        raise UserError(Reason.DATASET_UNREADABLE, message, 'Write for example ["red", "green"].')
    return tuple(cell_text(item).strip() for item in found)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
