"""What an evaluation compares answers with: closed sets to choose from, and JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from finetuning_api.reasons import Reason
from finetuning_workload.data import RenderedRow
from finetuning_workload.errors import UserError

MAX_CHOICES = 64

_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?```", re.DOTALL)


def choices_of(rows: Sequence[RenderedRow], *, wanted_by: str) -> tuple[str, ...]:
    """Return the distinct completions of the data set, sorted.

    Raises UserError(METRIC_UNAVAILABLE), which names the metrics that want them.
    """
    found = tuple(sorted({row.completion for row in rows}))
    hint = f"Remove {wanted_by} from evaluation.metrics; exact-match and rouge suit free text."
    if len(found) > MAX_CHOICES:
        message = f"{wanted_by}: a closed set of answers is needed; the data set has {len(found)} distinct completions"
        raise UserError(Reason.METRIC_UNAVAILABLE, f"{message}, at most {MAX_CHOICES} are compared", hint)
    if len(found) < 2:  # noqa: PLR2004  (one answer is no choice)
        message = f"{wanted_by}: two different completions are needed at least; the data set has only {found[0]!r}"
        raise UserError(Reason.METRIC_UNAVAILABLE, message, hint)
    return found


def shared_choices(rows: Sequence[RenderedRow], *, wanted_by: str) -> tuple[str, ...]:
    """Return the answers that all rows offer, sorted; none where they offer different ones.

    Raises UserError(METRIC_UNAVAILABLE) for a row with fewer than two answers, or without the right one; it names the
    metrics that want them.
    """
    for row in rows:
        offered = options(row, ())
        if row.completion not in offered or len(set(offered)) < 2:  # noqa: PLR2004  (one answer is no choice)
            message = f"{wanted_by}, row {row.row_id}: the answers {list(row.choices)} need to be two or more, and"
            hint = f"Correct the column that dataset.choices names, or remove {wanted_by} from evaluation.metrics."
            raise UserError(Reason.METRIC_UNAVAILABLE, f"{message} {row.completion.strip()!r} one of them", hint)
    sets = {frozenset(options(row, ())) for row in rows}
    return tuple(sorted(sets.pop())) if len(sets) == 1 else ()


def options(row: RenderedRow, choices: Sequence[str]) -> tuple[str, ...]:
    """Return the completions that a row chooses from: its own answers, else the data set's ``choices``.

    Around its own answers is the white space that its completion has.
    """
    if not row.choices:
        return tuple(choices)
    body = row.completion.strip()
    before, _, after = row.completion.partition(body) if body else ("", "", "")
    return tuple(dict.fromkeys(f"{before}{choice}{after}" for choice in row.choices))


def with_completion(row: RenderedRow, completion: str) -> RenderedRow:
    """Return the row with another last completion."""
    last = max(index for index, segment in enumerate(row.segments) if segment.supervised)
    segments = list(row.segments[: last + 1])
    segments[last] = replace(segments[last], text=completion)
    return replace(row, segments=tuple(segments))


def is_json(text: str) -> bool:
    """Return whether a text, or all of it inside one Markdown fence, is JSON; NaN and Infinity are not."""
    try:
        parse_json(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(text: str) -> object:
    """Return the value of a text that is JSON. Raises ValueError, or RecursionError for one nested too deeply."""
    stripped = text.strip()
    fenced = _FENCED.fullmatch(stripped)
    return json.loads(stripped if fenced is None else fenced[1], parse_constant=_refused)


def _refused(constant: str) -> object:
    raise ValueError(constant)
