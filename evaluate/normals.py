"""Surface normals: the angle between the condition's and the re-read one, pixel by pixel."""

import numpy as np
from numpy.typing import NDArray

from evaluate.comparison import Comparison, Map, Metric, Prepare, same_size, worst

WITHIN = (11.25, 22.5, 30.0)  # degrees

METRICS = (
    Metric(
        name="normal_angle",
        title="Mean angle",
        kind="normals",
        unit="°",
        primary=True,
        higher_is_better=False,
        worst=180.0,
        best=0.0,
        definition=(
            "Mean angle between normals where the condition has one; a pixel without one in the re-reading"
            " counts as 180°"
        ),
    ),
    Metric(
        name="normal_median",
        title="Median angle",
        kind="normals",
        unit="°",
        higher_is_better=False,
        worst=180.0,
        best=0.0,
        definition="Median of an image's angles, averaged over images",
    ),
    Metric(
        name="normal_rmse",
        title="RMSE of angles",
        kind="normals",
        unit="°",
        higher_is_better=False,
        worst=180.0,
        best=0.0,
        definition="Root of an image's mean squared angle, averaged over images",
    ),
    *(
        Metric(
            name=f"normal_within_{limit:g}",
            title=f"Within {limit:g}°",
            kind="normals",
            definition=f"Share of the pixels with a normal whose angle is less than {limit:g}°",
        )
        for limit in WITHIN
    ),
)
STATISTICS: dict[str, Prepare] = {}


def compare(truth: Map, reread: Map | None) -> Comparison:
    if reread is None:
        return Comparison(worst(METRICS), {})
    same_size(truth.array[..., 0], reread.array[..., 0])
    seen, given = (np.asarray(each.array.any(axis=2)) for each in (truth, reread))
    if seen.any() and not given.any():
        return Comparison(worst(METRICS), {})
    if not seen.any():  # nothing to follow
        return Comparison(
            {metric.name: metric.worst if given.any() else metric.best for metric in METRICS}, {}
        )
    angle = np.where(given[seen], angles(truth.array[seen], reread.array[seen]), np.float32(180))
    return Comparison(
        {
            "normal_angle": float(angle.mean(dtype=np.float64)),
            "normal_median": float(np.median(angle)),
            "normal_rmse": float(np.sqrt((angle**2).mean(dtype=np.float64))),
        }
        | {f"normal_within_{limit:g}": float((angle < limit).mean()) for limit in WITHIN},
        {},
    )


def angles(
    a: NDArray[np.floating],  # [n, 3], of any length but 0
    b: NDArray[np.floating],  # [n, 3]
) -> NDArray[np.floating]:  # [n] degrees, 0..180
    """By atan2, which is exact where the arc cosine is not: a map against itself is 0."""
    ax, ay, az = np.ascontiguousarray(a.T)
    bx, by, bz = np.ascontiguousarray(b.T)
    cross = np.sqrt((ay * bz - az * by) ** 2 + (az * bx - ax * bz) ** 2 + (ax * by - ay * bx) ** 2)
    return np.asarray(np.degrees(np.arctan2(cross, ax * bx + ay * by + az * bz)))
