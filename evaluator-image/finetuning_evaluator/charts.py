"""Charts as inline SVG: no script, no font and no image from elsewhere."""

from dataclasses import dataclass
from html import escape

from finetuning_evaluator.wording import interval, signed

_WIDTH, _HEIGHT = 240, 28
_HALF = 108
"""Half of the drawn width: the greatest distance from zero ends a little before the edge."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of a forest plot. Metrics have no common unit, so every line has its own scale."""

    delta: float
    low: float | None
    high: float | None
    lower_is_better: bool
    outcome: str

    @property
    def gain(self) -> tuple[float, float, float]:
        """Low, middle and high of the improvement: positive is better."""
        low = self.delta if self.low is None else self.low
        high = self.delta if self.high is None else self.high
        return (-high, -self.delta, -low) if self.lower_is_better else (low, self.delta, high)

    @property
    def scale(self) -> float:
        """The greatest distance from zero on this line."""
        return max(abs(self.gain[0]), abs(self.gain[2]), 1e-12)


def effect_line(effect: Effect) -> str:
    """Return one line of a forest plot: right of the middle is better, a line that meets the middle is unclear."""
    middle, y = _WIDTH / 2, _HEIGHT / 2
    low, centre, high = (middle + _HALF * value / effect.scale for value in effect.gain)
    whiskers = (
        ""
        if effect.low is None
        else (
            f'<line class="span" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>'
            f'<line class="span" x1="{low:.1f}" y1="{y - 5}" x2="{low:.1f}" y2="{y + 5}"/>'
            f'<line class="span" x1="{high:.1f}" y1="{y - 5}" x2="{high:.1f}" y2="{y + 5}"/>'
        )
    )
    label = escape(f"{signed(effect.delta)} {interval(effect.low, effect.high)}, {effect.outcome}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" class="effect {effect.outcome}">'
        f"<title>{label}</title>"
        f'<line class="zero" x1="{middle}" y1="0" x2="{middle}" y2="{_HEIGHT}"/>{whiskers}'
        f'<circle cx="{centre:.1f}" cy="{y}" r="5"/></svg>'
    )


def tally(wins: int, ties: int, losses: int) -> str:
    """Return a bar of wins, ties and losses, wins on the left."""
    total = max(wins + ties + losses, 1)
    bars, start = [], 0.0
    for name, count in (("better", wins), ("tie", ties), ("worse", losses)):
        width = 100 * count / total
        bars.append(f'<rect class="{name}" x="{start:.2f}" y="0" width="{width:.2f}" height="8"/>')
        start += width
    label = f"{wins} wins, {ties} ties, {losses} losses"
    return (
        f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{label}" class="tally">'
        f"<title>{label}</title>{''.join(bars)}</svg>"
    )
