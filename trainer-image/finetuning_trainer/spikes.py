"""Steps whose loss stands out: most often there are broken rows in them, and nobody sees it in the mean of an epoch."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

_WINDOW, _FEWEST = 50, 20
"""How many losses before a step say what is usual, and how many there must be."""
_DEVIATIONS = 6.0
_TO_SIGMA = 1.4826
"""Of normal values the median absolute deviation, times this, is the standard deviation (Hampel 1974)."""
_LEAST_EXCESS = 0.2
"""Relative to what is usual: losses that hardly differ have a deviation of next to nothing."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss that stands out."""

    usual: float
    """Median of the losses before, in nats."""
    rows: dict[str, str]
    """The beginning of each row of the step, by its id."""


class SpikeWatch:
    """Knows the losses of the last steps, across resumptions too."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses = deque(losses, maxlen=_WINDOW)

    def judge(self, loss: float) -> float | None:
        """Note the loss of a step; return what was usual before where this one is far above it, else None."""
        before = tuple(self._losses)
        self._losses.append(loss)
        if len(before) < _FEWEST:
            return None
        usual = median(before)
        deviation = _TO_SIGMA * median(abs(each - usual) for each in before)
        return usual if loss - usual > max(_DEVIATIONS * deviation, _LEAST_EXCESS * usual) else None
