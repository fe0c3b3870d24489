"""Matches of whole answers: as written, after SQuAD's normalisation, and as JSON of the same structure."""

import re
import string
from collections.abc import Sequence

import numpy as np

from finetuning_evaluator.aggregates import Statistic
from finetuning_evaluator.statistics import Observations
from finetuning_workload.answers import is_json, parse_json

EXACT = "exact-match|white space trimmed"
NORMALIZED = "normalized-match|SQuAD 1.1: lower case, no ASCII punctuation, no a/an/the, single spaces"
JSON = "json-match|equal as JSON: order of keys, white space and the way of writing numbers do not count"

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_match(reference: str, prediction: str) -> bool:
    """Return whether the texts are equal but for white space at both ends."""
    return reference.strip() == prediction.strip()


def normalized(text: str) -> str:
    """Return a text as the evaluation of SQuAD 1.1 compares it (P. Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def is_normalized_match(reference: str, prediction: str) -> bool:
    """Return whether the texts are equal after normalisation."""
    return normalized(reference) == normalized(prediction)


def is_json_match(reference: str, prediction: str) -> bool:
    """Return whether a prediction is JSON and equals the reference, which must be JSON."""
    return is_json(prediction) and _same(parse_json(reference), parse_json(prediction))


def observe(matches: Sequence[bool]) -> Observations:
    """Return the observations of a share of right rows; also used for accuracy."""
    return Observations(Statistic.PROPORTION, np.array([[float(match), 1.0] for match in matches], dtype=np.float64))


def _same(first: object, second: object) -> bool:
    """Return whether two JSON values are equal: 1 is 1.0, but true is not 1, as it would be in Python."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return isinstance(first, bool) == isinstance(second, bool) and first == second
