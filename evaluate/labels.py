"""Label maps (segmentation): one confusion matrix of the whole set, kept as each image's classes, overlaps
and areas.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluate import paper
from evaluate.comparison import Comparison, Counts, Map, Metric, Prepare, Statistic, same_size, worst

VOID = 255  # "no class", in 8-bit and in 16-bit maps

METRICS = (
    Metric(
        name="miou",
        title="mIoU",
        kind="labels",
        level="set",
        primary=True,
        column="paper",
        definition=(
            "Intersection over union of each class from the pixels of all images together, averaged over the"
            " classes that occur; void pixels of the condition are left out"
        ),
        quirks=(
            "none: mmseg's IoUMetric, as ControlNet++ has it, needs no correction. Its formula; of its"
            " readers mask2former-ade20k in another training, none for COCO-Stuff's 171 classes;"
            f" {paper.ASKED}"
        ),
    ),
    Metric(
        name="pixel_accuracy",
        title="Pixel accuracy",
        kind="labels",
        definition="Share of an image's pixels with a class that are read again with the same one",
    ),
    Metric(
        name="pixel_accuracy_pooled",
        title="Pixel accuracy, pooled",
        kind="labels",
        level="set",
        column="diagnostic",
        definition="Share of all images' pixels with a class that are read again with the same one",
    ),
    Metric(
        name="miou_sample",
        title="mIoU by image",
        kind="labels",
        column="diagnostic",
        definition=(
            "IoU averaged over the classes of one image, then over images, as ControlNet v3 has it: not"
            " comparable with mIoU"
        ),
    ),
)


def compare(truth: Map, reread: Map | None) -> Comparison:
    """The scores of one image's labels, read again, against its condition, and the areas that those of the
    set are made of; None scores the worst.

    ValueError: the two maps differ in size or in label space.
    """
    true = truth.array
    read = np.full_like(true, VOID) if reread is None else reread.array
    same_size(true, read)
    if reread is not None and truth.meta.get("label_space") != reread.meta.get("label_space"):
        raise ValueError(
            f"labels of {reread.meta.get('label_space')} can't be compared with those of"
            f" {truth.meta.get('label_space')}"
        )
    seen = true != VOID
    t, m = true[seen].astype(np.int64), read[seen].astype(np.int64)
    size = int(max(t.max(initial=0), m.max(initial=0), VOID)) + 1
    truth_area, made_area, both = (np.bincount(labels, minlength=size) for labels in (t, m, t[t == m]))
    made_area[VOID] = 0
    classes = np.flatnonzero(truth_area + made_area)
    counts: dict[str, np.ndarray] = {
        "classes": classes.astype(np.int32),
        "both": both[classes],
        "truth": truth_area[classes],
        "made": made_area[classes],
    }
    if reread is None or (len(t) and (m == VOID).all()):
        return Comparison(worst(METRICS), counts)
    union = counts["truth"] + counts["made"] - counts["both"]
    return Comparison(
        {
            "pixel_accuracy": float(both.sum() / len(t)) if len(t) else 1.0,
            "miou_sample": float((counts["both"] / union).mean()) if len(classes) else 1.0,
        },
        counts,
    )


def _miou(counts: Sequence[Counts]) -> Statistic:
    classes = np.unique(np.concatenate([image["classes"] for image in counts]))
    both, areas = np.zeros((len(counts), len(classes))), np.zeros((len(counts), len(classes)))
    for row, image in enumerate(counts):
        at = np.searchsorted(classes, image["classes"])
        both[row, at], areas[row, at] = image["both"], image["truth"] + image["made"]

    def statistic(weights: NDArray[np.float64]) -> float:
        overlap = weights @ both
        union = weights @ areas - overlap
        occurs = union > 0
        return float((overlap[occurs] / union[occurs]).mean()) if occurs.any() else 1.0

    return statistic


def _accuracy(counts: Sequence[Counts]) -> Statistic:
    right, pixels = (
        np.array([image[key].sum() for image in counts], np.float64) for key in ("both", "truth")
    )

    def statistic(weights: NDArray[np.float64]) -> float:
        total = float(weights @ pixels)
        return float(weights @ right) / total if total else 1.0

    return statistic


STATISTICS: dict[str, Prepare] = {"miou": _miou, "pixel_accuracy_pooled": _accuracy}
