"""Depth: known up to scale and shift, so the re-reading is first fitted to the condition by least squares, in
inverse depth.
"""

import numpy as np
from numpy.typing import NDArray

from evaluate import paper
from evaluate.comparison import Comparison, Map, Metric, Prepare, same_size, worst

FAR = 10.0  # ratio of the farthest to the nearest depth that relative maps are given, since theirs is unknown
DELTA = 1.25
PAIRS, SEED = 10_000, 0
APART = 0.02  # of the range: pairs of pixels nearer than that in depth have no order worth asking for

METRICS = (
    Metric(
        name="depth_rmse",
        title="Depth RMSE, aligned",
        kind="depth",
        unit="of the range",
        primary=True,
        higher_is_better=False,
        worst=0.5,
        best=0.0,
        definition=(
            "RMSE in inverse depth after the scale (not negative) and shift that fit best, in shares of the"
            " condition's range"
        ),
    ),
    Metric(
        name="depth_rmse_255",
        title="Depth RMSE, 0-255",
        kind="depth",
        unit="of 255",
        column="paper",
        higher_is_better=False,
        worst=255.0,
        best=0.0,
        definition=(
            "RMSE of the condition, min to max, and the re-reading divided by its maximum, both as 0-255"
        ),
        quirks=(
            "a perfect re-reading has an error, since only the condition loses its minimum; no"
            " scale or shift is fitted. ControlNet++'s formula, but that its map is rounded before it is"
            f" scaled back; its reader where that is dpt-large; {paper.ASKED}"
        ),
    ),
    Metric(
        name="depth_absrel",
        title="AbsRel",
        kind="depth",
        higher_is_better=False,
        worst=FAR - 1,
        best=0.0,
        definition=(
            "Mean of |z' - z| / z over aligned depths, with the condition's farthest point ten times as far"
            " as its nearest"
        ),
    ),
    Metric(
        name="depth_delta1",
        title="δ < 1.25",
        kind="depth",
        definition="Share of pixels where max(z / z', z' / z) < 1.25, of the same aligned depths as AbsRel",
    ),
    Metric(
        name="depth_ordinal",
        title="Ordinal agreement",
        kind="depth",
        definition=(
            "Share of 10,000 fixed pairs of pixels, those at least 2 % of the range apart, with the same one"
            " nearer; needs no alignment"
        ),
    ),
)
STATISTICS: dict[str, Prepare] = {}


def compare(truth: Map, reread: Map | None) -> Comparison:
    """The scores of one image's depth, read again, against its condition; None scores the worst.

    ValueError: the two maps differ in size, or one has a value that is not finite.
    """
    if reread is None:
        return Comparison(worst(METRICS), {})
    true, read = truth.array, reread.array
    same_size(true, read)
    if not (np.isfinite(true).all() and np.isfinite(read).all()):
        raise ValueError("depth to compare must be finite everywhere")
    low, high = float(true.min()), float(true.max())
    if low == high:  # nothing to follow: only another flat map keeps it
        return Comparison(
            {metric.name: metric.best if read.min() == read.max() else metric.worst for metric in METRICS},
            {},
        )
    t = (true.astype(np.float64) - low) / (high - low)
    fitted = aligned(t, read.astype(np.float64))
    z, again = depths(t), depths(fitted)
    return Comparison(
        {
            "depth_rmse": float(np.sqrt(np.mean((fitted - t) ** 2))),
            "depth_rmse_255": paper.depth_rmse(true, read),
            "depth_absrel": float(np.mean(np.abs(again - z) / z)),
            "depth_delta1": float(np.mean(np.maximum(z / again, again / z) < DELTA)),
            "depth_ordinal": ordinal(t, read),
        },
        {},
    )


def aligned(
    truth: NDArray[np.float64],  # [h, w] inverse depth
    reread: NDArray[np.float64],  # [h, w]
) -> NDArray[np.float64]:
    """argmin over s >= 0 and t of |s made + t - truth|^2: a negative scale would turn near into far and be
    praised for it.
    """
    centred = reread - reread.mean()
    spread = float((centred**2).sum())
    scale = max(float((centred * truth).sum()) / spread, 0.0) if spread else 0.0
    return scale * centred + truth.mean()


def depths(
    # 0 = the condition's farthest point, 1 = its nearest; what lies beyond is brought there
    inverse: NDArray[np.float64],
) -> NDArray[np.float64]:  # 1 .. FAR
    return 1 / ((1 - 1 / FAR) * inverse.clip(0, 1) + 1 / FAR)


def ordinal(truth: NDArray[np.float64], reread: np.ndarray) -> float:
    """Of the range 0..1 of `truth`; a tie in the re-reading is no agreement."""
    rng = np.random.default_rng(SEED)
    first, second = rng.integers(0, truth.size, (2, PAIRS))
    gap = truth.ravel()[first] - truth.ravel()[second]
    asked = np.abs(gap) >= APART
    values = reread.ravel()
    again = np.sign(values[first] - values[second])
    return float((again == np.sign(gap))[asked].mean()) if asked.any() else 1.0
