"""How many held-out rows stand in the training rows as well: word by word, or nearly so.

A model may know such rows by heart: they say nothing about rows that it has not seen.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from finetuning_api.runconfig import ContractModel
from finetuning_workload.data import RenderedRow

WORDS = 5
"""Words of a shingle."""
NEAR = 0.8
"""Share of a row's shingles in one training row from which on it is a near-duplicate."""
_COMMON_ROWS, _COMMON_SHARE = 10, 0.001
_EXAMPLES = 5
_WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
"""Runs of letters and digits; kana and Chinese characters one by one."""


class OverlapPair(ContractModel):
    """A held-out row and the training row that is most like it."""

    row_id: str
    training_row_id: str
    containment: float
    """Share of the held-out row's shingles that the training row has."""


class Overlap(ContractModel):
    """Held-out rows that stand in the training side of the same data set as well."""

    training_rows: int
    """Rows that were compared with."""
    exact: int
    """Held-out rows with the same words in the same order as a training row; case and punctuation do not count."""
    near: int
    """Further held-out rows of which a training row has at least 80 % of the shingles."""
    share: float
    """(exact + near) / held-out rows."""
    examples: tuple[OverlapPair, ...] = ()


def measure(held_out: Sequence[RenderedRow], training: Sequence[RenderedRow]) -> Overlap:
    """Compare every held-out row with every training row, prompt and completion together.

    Containment of word shingles (A. Z. Broder, "On the Resemblance and Containment of Documents", 1997) of five words
    and a threshold of 0.8 (K. Lee et al., "Deduplicating Training Data Makes Language Models Better", 2022). Shingles
    in more than ten training rows, or in more than one of a thousand, are templates and phrases and do not count (after
    T. Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C). A row without others is compared word
    by word only.
    """
    wanted = [_Fingerprint.of(row) for row in held_out]
    found = _Found.among(training, wanted)
    same = {place: found.twins[row.whole] for place, row in enumerate(wanted) if row.whole in found.twins}
    near = {
        place: nearest for place, nearest in _nearest(wanted, found).items() if nearest[1] >= NEAR and place not in same
    }
    pairs = {**{place: (twin, 1.0) for place, twin in same.items()}, **near}
    return Overlap(
        training_rows=len(training),
        exact=len(same),
        near=len(near),
        share=len(pairs) / len(held_out),
        examples=tuple(
            OverlapPair(row_id=held_out[place].row_id, training_row_id=twin, containment=containment)
            for place, (twin, containment) in list(pairs.items())[:_EXAMPLES]
        ),
    )


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """A row's words as numbers: of all of them, and of every five in a row."""

    whole: int
    shingles: frozenset[int]

    @classmethod
    def of(cls, row: RenderedRow) -> "_Fingerprint":
        words = _WORD.findall(row.text.casefold()) or [row.text]
        starts = range(max(1, len(words) - WORDS + 1))
        return cls(hash(tuple(words)), frozenset(hash(tuple(words[start : start + WORDS])) for start in starts))


@dataclass(frozen=True, slots=True)
class _Found:
    """What the training rows have of the held-out rows."""

    twins: dict[int, str]
    """Id of the first training row with the same words, by these words."""
    shingles: list[tuple[str, frozenset[int]]]
    """Id of a training row and its shingles that a held-out row has too."""
    common: frozenset[int]
    """Shingles in so many training rows that they tell nothing."""

    @classmethod
    def among(cls, training: Sequence[RenderedRow], wanted: Sequence[_Fingerprint]) -> "_Found":
        most = max(_COMMON_ROWS, int(_COMMON_SHARE * len(training)))
        wholes = {fingerprint.whole for fingerprint in wanted}
        telling = set[int]().union(*(fingerprint.shingles for fingerprint in wanted))
        common: set[int] = set()
        rows_with: Counter[int] = Counter()
        twins: dict[int, str] = {}
        shingles: list[tuple[str, frozenset[int]]] = []
        for row in training:
            fingerprint = _Fingerprint.of(row)
            if fingerprint.whole in wholes:
                twins.setdefault(fingerprint.whole, row.row_id)
            # What is known to be common is dropped at once: a template would otherwise be kept for every row.
            shared = fingerprint.shingles & telling
            rows_with.update(shared)
            common |= {shingle for shingle in shared if rows_with[shingle] > most}
            telling -= common & shared
            shingles.append((row.row_id, shared))
        return cls(twins, [(row_id, shared - common) for row_id, shared in shingles if shared], frozenset(common))


def _nearest(wanted: Sequence[_Fingerprint], found: _Found) -> dict[int, tuple[str, float]]:
    """Return by place of a held-out row the training row that has most of its shingles, and their share."""
    telling = [fingerprint.shingles - found.common for fingerprint in wanted]
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for place, shingles in enumerate(telling):
        for shingle in shingles:
            holders[shingle].append(place)
    nearest: dict[int, tuple[str, float]] = {}
    for row_id, shared in found.shingles:
        counts = Counter(place for shingle in shared for place in holders[shingle])
        for place, count in counts.items():
            containment = count / len(telling[place])
            if containment > nearest.get(place, ("", 0.0))[1]:
                nearest[place] = (row_id, containment)
    return nearest
