"""Numbers as a page shows them: digits, spans of places, normalized scores in words and as a bar."""

import math
from collections.abc import Sequence

from pipeline.report.leaderboard_data import Score

# shares that a bar has room for: a model below the floor has none, one above the ceiling sticks out a little
ENDS = (0.0, 1.08)


def digits(values: Sequence[float]) -> int:
    """Of all numbers of a column, so that they stand under each other: four of the largest count, three below
    one.
    """
    top = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(6, max(0, 3 - math.floor(math.log10(top)) - (top < 1))) if top else 3


def figure(value: float | None, places: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{places}f}".replace("-", "−")


def places(rank: tuple[int, int]) -> str:
    """A tie group as it is said: 1, 2–4."""
    return f"{rank[0]}" if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def share_text(score: Score, *, intervals: bool = False) -> str:
    if score.share is None or not math.isfinite(score.share):
        return ""
    between = (
        f" ({_percent(score.share_low)} – {_percent(score.share_high)})"
        if intervals and score.share_low is not None
        else ""
    )
    whole = (
        f"{_percent(score.share)}{between} of the way from floor to ceiling"
        if intervals
        else _percent(score.share)
    )
    return ", ".join(filter(None, (whole, above(score) if intervals else "")))


def above(score: Score) -> str:
    """What a share of more than 100 % means, in words; '' = it is not."""
    if score.share is None or not score.share > 1:
        return ""
    return "better than the real image" + (
        "" if score.share_low is not None and score.share_low > 1 else ", within chance"
    )


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "–"
    return f"{round(100 * share)} %".replace("-", "−")  # an int: there is no −0


def bar(score: Score, vae: float | None = None) -> str:
    """The bar of a normalized score as CSS: where its fill starts and how wide it is, the same for its
    interval, and where the tick of the VAE's own ceiling stands, all in percent of its box.
    """
    if score.share is None or not math.isfinite(score.share):
        return ""
    start, end = sorted((_place(0.0), _place(score.share)))
    drawn = f"--x:{start:.1f}%;--w:{end - start:.1f}%"
    if vae is not None and math.isfinite(vae):
        drawn += f";--v:{_place(vae):.1f}%"
    if (
        score.share_low is None
        or score.share_high is None
        or not math.isfinite(score.share_low + score.share_high)
    ):
        return drawn
    low, high = _place(score.share_low), _place(score.share_high)
    return f"{drawn};--l:{low:.1f}%;--h:{high - low:.1f}%"


def _place(share: float) -> float:
    low, high = ENDS
    return 100 * (min(high, max(low, share)) - low) / (high - low)
