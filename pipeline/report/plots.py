"""Geometry of the report's plots, in percent of their box, so that a page of any width draws them with text
of one size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POINTS = 400  # of a drawn line: more than its pixels would only make the page heavy
SMOOTHING = 0.04  # share of the run that the smoothed line averages over


@dataclass(frozen=True, kw_only=True)
class Axis:
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]  # (place in percent, label)

    def place(self, value: float) -> float:
        """Where a value lies, in percent of the axis; outside values stop at its ends."""
        return round(min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low))), 3)


@dataclass(frozen=True, kw_only=True)
class LossPlot:
    x: Axis
    y: Axis  # percent from the bottom
    raw: str  # SVG path in a box of 100 × 100, y down
    smooth: str
    last: float  # the smoothed loss at the end
    n: int


def axis(low: float, high: float, *, ticks: int = 5, tight: bool = False) -> Axis:
    """An axis with round ticks (1, 2 or 5 times a power of ten): low..high itself where `tight`, else out to
    the next ticks.
    """
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.5, low + (abs(low) or 1) * 0.5
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    outward = (math.ceil, math.floor) if tight else (math.floor, math.ceil)
    first, last = (
        outward[0](low / step + 1e-9 * (1 - 2 * tight)),
        outward[1](high / step - 1e-9 * (1 - 2 * tight)),
    )
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [number * step for number in range(first, last + 1)]
    start, end = (low, high) if tight else (values[0], values[-1])
    places = [round(100 * (value - start) / (end - start), 3) for value in values]
    labels = [f"{value:,.{decimals}f}" for value in values]
    return Axis(low=start, high=end, ticks=tuple(zip(places, labels, strict=True)))


def loss_plot(points: Sequence[tuple[float, float]]) -> LossPlot | None:
    """Loss over images seen: records pale (mostly the noise level that was drawn), a moving average on top;
    None = under two points.
    """
    kept = np.array(
        [(images, loss) for images, loss in points if math.isfinite(loss) and math.isfinite(images)],
        dtype=np.float64,
    )
    if len(kept) < 2:
        return None
    images, loss = kept.T
    window = max(1, round(len(loss) * SMOOTHING))
    smooth = _moving_average(loss, window)
    x, y = (
        axis(0.0, float(images[-1]), tight=True),
        axis(float(min(loss.min(), smooth.min())), float(loss.max()), ticks=4),
    )
    return LossPlot(
        x=x,
        y=y,
        raw=_path(*_envelope(images, loss), x, y),
        smooth=_path(*_thinned(images, smooth), x, y),
        last=float(smooth[-1]),
        n=len(loss),
    )


def gain_plot(points: Sequence[tuple[float, float, float | None]]) -> LossPlot | None:
    """Conditioning gain over images seen, with an image's own hint (smooth) and a shuffled one (raw); None =
    under two points.
    """
    kept = np.array(
        [(images, own, math.nan if other is None else other) for images, own, other in points],
        dtype=np.float64,
    )
    if len(kept) < 2:
        return None
    images, own, other = kept.T
    x, y = (
        axis(0.0, float(images[-1]), tight=True),
        axis(float(np.nanmin(kept[:, 1:])), float(np.nanmax(kept[:, 1:])), ticks=4),
    )
    has = np.isfinite(other)
    return LossPlot(
        x=x,
        y=y,
        raw=_path(images[has], other[has], x, y) if has.any() else "",
        smooth=_path(images, own, x, y),
        last=float(own[-1]),
        n=len(own),
    )


def learning_plot(
    points: Sequence[tuple[int, float, float | None, float | None]], floor: float | None
) -> LossPlot | None:
    """Fidelity over images seen, with its intervals (raw) and the floor from end to end; None = under two
    points.
    """
    if len(points) < 2:
        return None
    spans = [
        (images, value if low is None else low, value if high is None else high)
        for images, value, low, high in points
    ]
    ends = [end for _, *both in spans for end in both] + ([] if floor is None else [floor])
    x, y = axis(0.0, float(points[-1][0]), tight=True), axis(min(ends), max(ends), ticks=4)
    images, values = np.array([(at, value) for at, value, *_ in points], dtype=np.float64).T
    pale = [
        _path(np.array([at, at], dtype=np.float64), np.array([low, high]), x, y) for at, low, high in spans
    ]
    if floor is not None:
        pale.append(_path(np.array([0.0, images[-1]]), np.array([floor, floor]), x, y))
    return LossPlot(
        x=x,
        y=y,
        raw=" ".join(pale),
        smooth=_path(images, values, x, y),
        last=float(values[-1]),
        n=len(values),
    )


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the points within `window` on each side, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start, end = np.maximum(0, at - window), np.minimum(len(values), at + window + 1)
    return (sums[end] - sums[start]) / (end - start)


def _envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points that keep the lowest and the highest value of each stretch, so that thinning
    hides no spike.
    """
    if len(y) <= POINTS:
        return x, y
    keep: set[int] = set()
    for part in np.array_split(np.arange(len(y)), POINTS // 2):
        keep |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    index = np.array(sorted(keep))
    return x[index], y[index]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.unique(np.linspace(0, len(y) - 1, min(len(y), POINTS)).round().astype(int))
    return x[index], y[index]


def _path(x: np.ndarray, y: np.ndarray, across: Axis, up: Axis) -> str:
    return "M" + "L".join(
        f"{across.place(a):g} {100 - up.place(b):g}" for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )
