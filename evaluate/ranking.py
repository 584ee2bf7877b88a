"""Average precision of findings ranked by score, over a weighted set of samples: COCO's for people, wireframe
parsing's for lines.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluate.comparison import Counts, Statistic

RECALLS = np.linspace(0.0, 1.0, 101)  # where COCO reads the precision


def average_precision(
    # of each sample: scores [d], n_truth [1], and `hits` [d, t] of 0 and 1 at t thresholds
    counts: Sequence[Counts],
    hits: str,  # key in counts
    *,
    thresholds: slice = slice(None),  # which of the t to average over
    # recalls to read the precision at; None = the area below it
    points: NDArray[np.float64] | None = RECALLS,
    # samples that are ranked among themselves alone, then averaged; None = all together
    batch: int | None = None,
) -> Statistic:
    """Sorted once; findings of one score enter together, so that the order of the samples doesn't count."""
    group = np.arange(len(counts)) // (batch or max(len(counts), 1))
    groups = int(group.max(initial=-1)) + 1
    n_truth = np.array([int(image["n_truth"][0]) for image in counts], np.float64)
    score = np.concatenate([image["scores"] for image in counts]) if len(counts) else np.empty(0)
    hit = (
        np.concatenate([image[hits][:, thresholds] for image in counts]) if len(counts) else np.empty((0, 1))
    )
    sample = np.repeat(np.arange(len(counts)), [len(image["scores"]) for image in counts])
    order = np.lexsort((-score, group[sample]))
    score, hit, sample = score[order], hit[order], sample[order]
    # as a block with a row for each group, filled up with findings of weight 0
    row = group[sample]
    column = np.arange(len(row)) - np.searchsorted(row, row)
    shape = groups, int(column.max(initial=0)) + 1
    hit_of, sample_of = np.zeros((hit.shape[1], *shape)), np.zeros(shape, np.int64)
    real, last_of = np.zeros(shape, bool), np.zeros(shape, bool)  # last: of the findings with its score
    hit_of[:, row, column], sample_of[row, column], real[row, column] = hit.T, sample, True
    last_of[row, column] = np.append((np.diff(row) != 0) | (np.diff(score) != 0), True)[: len(row)]

    def statistic(weights: NDArray[np.float64]) -> float:
        asked = np.bincount(group, weights * n_truth, minlength=groups)
        known = np.flatnonzero(asked)
        weight = weights[sample_of[known]] * real[known]
        if not len(known):
            return 0.0 if (weights[sample_of] * real).any() else 1.0
        true = np.cumsum(weight * hit_of[:, known], axis=-1)
        retrieved = np.maximum(np.cumsum(weight, axis=-1), 1e-12)
        envelope = np.maximum.accumulate((true / retrieved * last_of[known])[..., ::-1], axis=-1)[..., ::-1]
        recall = true / asked[known, None]
        covered = recall if points is None else np.searchsorted(points, recall, side="right") / len(points)
        return float((np.diff(covered, axis=-1, prepend=0.0) * envelope).sum(axis=-1).mean())

    return statistic


def average_recall(counts: Sequence[Counts], hits: str) -> Statistic:
    """COCO's AR: the share of the true that is found, averaged over the thresholds."""
    n_truth = np.array([int(image["n_truth"][0]) for image in counts], np.float64)
    recalled = np.array([float(image[hits].sum(axis=0).mean()) for image in counts])

    def statistic(weights: NDArray[np.float64]) -> float:
        asked = float(weights @ n_truth)
        return float(weights @ recalled) / asked if asked else 1.0

    return statistic
