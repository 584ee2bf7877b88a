"""Line segments (Hough): structural F1 and sAP of wireframe parsing (Zhou et al. 2019, lcnn), and their
pixels.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from evaluate.comparison import Comparison, Map, Metric, Prepare, worst
from evaluate.edges import edge_counts, f1
from evaluate.matching import most_pairs
from evaluate.ranking import average_precision

SIDE = 128.0  # of the square in which segments are compared
REACHES = (5.0, 10.0, 15.0)  # sum of squared distances of both ends, in that square
PRIMARY = 10.0
RASTER = 0.01  # of the diagonal: the tolerance of wireframe parsing's heat maps

METRICS = (
    *(
        Metric(
            name=f"line_f1_{reach:g}",
            title=f"Structural F1 at {reach:g}",
            kind="lines",
            primary=reach == PRIMARY,
            definition=(
                "F1 of segments matched one to one where the squared distances of both ends, at 128 x 128,"
                f" sum to less than {reach:g}"
            ),
        )
        for reach in REACHES
    ),
    Metric(
        name="line_raster_f1",
        title="F1 of lines' pixels",
        kind="lines",
        column="diagnostic",
        definition=(
            "F1 of the pixels of both drawings at 128 x 128, matched one to one within 1 % of the diagonal:"
            " forgives lines cut in two"
        ),
    ),
    *(
        Metric(
            name=f"line_sap_{reach:g}",
            title=f"sAP {reach:g}",
            kind="lines",
            level="set",
            definition=(
                "Average precision over all segments ranked by score, each true one found once, where the"
                f" squared distances of both ends, at 128 x 128, sum to less than {reach:g}"
            ),
        )
        for reach in REACHES
    ),
)
STATISTICS: dict[str, Prepare] = {
    f"line_sap_{reach:g}": partial(
        average_precision, hits="hits", thresholds=slice(index, index + 1), points=None
    )
    for index, reach in enumerate(REACHES)
}


def compare(truth: Map, reread: Map | None) -> Comparison:
    true = _segments(truth, "truth")
    read = np.empty((0, 5), np.float32) if reread is None else _segments(reread, "made")
    distance = distances(_scaled(read, (reread or truth).meta["size"]), _scaled(true, truth.meta["size"]))
    counts: dict[str, np.ndarray] = {
        "scores": read[:, 4].copy(),
        "hits": np.stack([hits(distance, read[:, 4], reach) for reach in REACHES], axis=1).astype(np.uint8),
        "n_truth": np.array([len(true)], np.int32),
    }
    if reread is None or (len(true) and not len(read)):
        return Comparison(worst(METRICS), counts)
    values = {f"line_f1_{reach:g}": structural_f1(distance, reach) for reach in REACHES}
    pixels = edge_counts(
        _drawn(true, truth.meta["size"]), _drawn(read, reread.meta["size"]), RASTER * SIDE * 2**0.5
    )
    return Comparison(values | {"line_raster_f1": f1(pixels)}, counts)


def distances(
    read: NDArray[np.float32],  # [m, 4] x0 y0 x1 y1
    true: NDArray[np.float32],  # [n, 4]
) -> NDArray[np.float32]:  # [m, n]: squared distances of both ends, summed, in the better order of the ends
    def apart(a: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(sum((a[:, None, axis] - true[None, :, axis]) ** 2 for axis in range(4)), np.float32)

    return np.minimum(apart(read), apart(read[:, [2, 3, 0, 1]]))


def structural_f1(distance: NDArray[np.float32], reach: float) -> float:
    m, n = distance.shape
    return 2 * most_pairs(np.argwhere(distance < reach).astype(np.int32)) / (m + n) if m + n else 1.0


def hits(
    distance: NDArray[np.float32],  # [m, n]
    score: NDArray[np.float32],  # [m]
    reach: float,
) -> NDArray[np.bool_]:  # [m]: true positives as lcnn's msTPFP counts them
    """The surest first, each to its nearest true segment alone: where that is taken, it is false, whatever
    else is near.
    """
    hit = np.zeros(len(distance), bool)
    if not distance.size:
        return hit
    nearest, taken = distance.argmin(axis=1), np.zeros(distance.shape[1], bool)
    for i in np.argsort(-score, kind="stable"):
        if distance[i, nearest[i]] < reach and not taken[nearest[i]]:
            hit[i] = taken[nearest[i]] = True
    return hit


def _segments(given: Map, name: str) -> NDArray[np.float32]:
    if given.array.ndim != 2 or given.array.shape[1] != 5 or "size" not in given.meta:
        raise ValueError(
            f"{name} must be segments, float32 [n, 5] with meta size, found {list(given.array.shape)} with"
            f" {sorted(given.meta)}"
        )
    return given.array.astype(np.float32)


def _scaled(segments: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    h, w = size
    return segments[:, :4] * np.array([SIDE / w, SIDE / h, SIDE / w, SIDE / h], np.float32)


def _drawn(segments: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.uint8]:
    import cv2

    canvas = np.zeros((int(SIDE), int(SIDE)), np.uint8)
    for x0, y0, x1, y1 in np.rint(_scaled(segments, size)).astype(int).tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), 255, 1)
    return canvas
