"""Object keypoint similarity (OKS) of COCO's protocol, and its greedy matching of people."""

import numpy as np
from numpy.typing import NDArray

from evaluate.comparison import Map

SIGMAS = (
    np.array(
        [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]
    )
    / 10
)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
LEFT_OUT = 2  # in hits: neither right nor wrong
COCO = "coco_17"
# where COCO's 17 keypoints stand in other layouts; OpenPose's neck is left out
POSITIONS: dict[str, list[int]] = {
    COCO: list(range(17)),
    "openpose_18": [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10],
}

People = NDArray[np.float32]  # [p, 17, 3] x y confidence, 0 = missing


def coco(given: Map, name: str) -> People:
    """COCO's 17 keypoints of the people who have any.

    ValueError: an unknown layout of keypoints, or an array that is not [p, k, 3] with 17 keypoints or more.
    """
    layout = given.meta.get("layout", COCO)
    if layout not in POSITIONS:
        raise ValueError(
            f"{name} has keypoints of layout '{layout}': people are compared in {' or '.join(POSITIONS)}"
        )
    if given.array.ndim != 3 or given.array.shape[1] < 17:
        raise ValueError(
            f"{name} must be people, float32 [p, k, 3] of layout {layout}, found {list(given.array.shape)}"
        )
    people = given.array[:, POSITIONS[layout]].astype(np.float32)
    return people[(people[..., 2] > 0).any(axis=1)]


def area(person: NDArray[np.float32]) -> float:  # [17, 3]
    """Of the box of the visible keypoints, square pixels; COCO has the area of the person's outline, which a
    map doesn't know.
    """
    sides = np.ptp(person[person[:, 2] > 0, :2].astype(np.float64), axis=0)
    return float(sides[0] * sides[1])


def oks(
    read: People,
    true: People,
    areas: NDArray[np.float64],  # of the true people, square pixels
) -> NDArray[np.float64]:  # [read, true]
    """exp(-d^2 / (2 s^2 k^2)) averaged over the true person's visible keypoints, k = 2 sigma (cocoeval); a
    missing keypoint is infinitely far.
    """
    d, t = read.astype(np.float64)[:, None], true.astype(np.float64)[None]
    squared = ((d[..., :2] - t[..., :2]) ** 2).sum(axis=-1)  # [read, true, 17]
    error = squared / (2 * SIGMAS) ** 2 / (areas[None, :, None] + np.spacing(1)) / 2
    seen = t[..., 2] > 0
    near = np.where(seen & (d[..., 2] > 0), np.exp(-error), 0.0)
    return np.asarray(near.sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1))


def hits(
    similar: NDArray[np.float64],  # [read, true], the read from the surest down
    asked: NDArray[np.bool_] | None = None,  # [true] who counts; None = everyone
) -> NDArray[np.uint8]:  # [read, 10]: 1 = found a true person at this threshold, LEFT_OUT = one not asked for
    """cocoeval's greedy matching, the surest first: each to the most similar that is left of those who count,
    else to one who doesn't.
    """
    matches = np.zeros((len(similar), len(THRESHOLDS)), np.uint8)
    wanted = np.ones(similar.shape[1], bool) if asked is None else asked
    groups = ((np.flatnonzero(wanted).tolist(), 1), (np.flatnonzero(~wanted).tolist(), LEFT_OUT))
    for t, threshold in enumerate(THRESHOLDS):
        taken: set[int] = set()
        for i, row in enumerate(similar):
            for people, worth in groups:
                match = _most_similar(row, [j for j in people if j not in taken], threshold)
                if match is not None:
                    taken.add(match)
                    matches[i, t] = worth
                    break
    return matches


def _most_similar(row: NDArray[np.float64], people: list[int], threshold: float) -> int | None:
    """The last of the most similar; NaN is never less than a threshold, as in cocoeval."""
    best, match = min(threshold, 1 - 1e-10), None
    for j in people:
        if not row[j] < best:
            best, match = row[j], j
    return match
