"""The published code bug for bug, so that its numbers can stand beside ours; nothing here is how it should be
done.

ControlNet++: liming-ai/ControlNet_Plus_Plus, eval/. HumanSD: IDEA-Research/HumanSD, utils/metrics/.
"""

import numpy as np
from numpy.typing import NDArray

BATCH = 10  # images of which HumanSD takes an AP of its own
# what of ControlNet++'s protocol is no matter of the measure
ASKED = "its sampler, size and four images of a prompt where the benchmark asks for them"


def depth_rmse(
    truth: NDArray[np.floating],  # [h, w] inverse depth
    reread: NDArray[np.floating],
) -> float:  # 0 .. 255
    """eval.py divides the label by its range and the prediction by its maximum alone; both are cut down to
    uint8.
    """
    low, high = float(truth.min()), float(truth.max())
    label = ((truth.astype(np.float64) - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    top = float(reread.max())
    scaled = (reread.astype(np.float64).clip(0) / (top if top > 0 else 1.0) * 255).astype(np.uint8)
    return float(np.sqrt(np.mean((scaled.astype(np.float64) - label) ** 2)))


def person_area(person: NDArray[np.floating]) -> float:  # [17, 3] x y confidence, 0 0 0 = missing
    """pose_metrics.py takes the box of all keypoints, so that a missing one stretches it to the corner of the
    image.
    """
    x, y = person[:, 0].astype(np.float64), person[:, 1].astype(np.float64)
    return float((x.max() - x.min()) * (y.max() - y.min()))


def cosine(
    true: NDArray[np.floating],  # [17, 3]
    reread: NDArray[np.floating],  # [17, 3]
    sigmas: NDArray[np.float64],  # [17]
) -> float:  # NaN where the true person has no extent: it then matches at every threshold, as it did there
    """coco_similarity.py, weightedCosineSimilarity: `yd = xd / ...` puts x in the place of the made y, so
    that height never counts.
    """
    seen = true[:, 2] > 0
    xg, yg = ((true[:, axis] / sigmas)[seen] for axis in (0, 1))
    xd = (reread[:, 0] / sigmas)[seen]
    with np.errstate(invalid="ignore", divide="ignore"):
        xg, yg, xd = (_stretched(values) for values in (xg, yg, xd))
        yd = xd / np.sqrt((xd**2).sum())
        g, d = np.concatenate([xg, yg]), np.concatenate([xd, yd])
        return float((g * d).sum() / (np.linalg.norm(g) * np.linalg.norm(d)))


def _stretched(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To 0..1, then to length one."""
    values = (values - values.min()) / (values.max() - values.min())
    return np.asarray(values / np.sqrt((values**2).sum()))
