"""Exact match: does the greedy completion equal the reference after trimming white space."""

from collections.abc import Sequence

import numpy as np

from finetuning_evaluator.statistics import Observations, Statistic


def is_match(reference: str, prediction: str) -> bool:
    """Return whether the texts are equal but for white space at both ends."""
    return reference.strip() == prediction.strip()


def observe(matches: Sequence[bool]) -> Observations:
    """Return the observations of a share of right rows; also used for accuracy."""
    return Observations(Statistic.PROPORTION, np.array([[float(match), 1.0] for match in matches], dtype=np.float64))
