"""How far a set of images lies from another, from their features: kernel distances, precision and recall; the
Fréchet distance is in evaluate/frechet.py. float64, no SciPy.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluate import features
from evaluate.features import Block, Features, Images, block_count, checked_pair, numbered_parts, parts

Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]  # [a, d], [b, d] -> [a, b]


def kernel_distance_full(x: Features, y: Features) -> float:
    """KID (arXiv 1801.01401) of all pairs at once: what its mean over random subsets estimates, without their
    noise.
    """
    n, m = len(x), len(y)
    within, other, across = _kernel_sums(
        Images(x, np.arange(n)), Images(y, np.arange(n, n + m)), np.zeros(n + m, np.int64)
    )
    return float(_squared_discrepancy([table.sum((1, 2)) for table in (within, other, across)]))


# of all, [blocks]
def kernel_distance_without(
    generated: Images, real: Images, block: Block
) -> tuple[float, NDArray[np.float64]]:
    """KID of all pairs of different prompts, and without each block in turn, for the price of one.

    What is made for a prompt is no independent draw beside the prompt's real image, nor beside another
    seed's: such pairs bias KID.
    """
    block_count(block)
    tables = _kernel_sums(generated, real, block)
    sums = [table.sum((1, 2)) for table in tables]
    left = [
        table.sum((1, 2))[:, None] - table.sum(1) - table.sum(2) + table.diagonal(axis1=1, axis2=2)
        for table in tables
    ]
    return float(_squared_discrepancy(sums)), _squared_discrepancy(left)


# each [2, ...], a sum and of how many
def _squared_discrepancy(terms: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    within, other, across = (total / count for total, count in terms)
    return np.asarray(within + other - 2 * across)


def _kernel_sums(x: Images, y: Images, block: Block) -> list[NDArray[np.float64]]:
    """Sums of the cubic kernel within x, within y and between them, each with the number of pairs: [2,
    blocks, blocks]. No pair of one prompt.
    """
    x, y = (
        Images(rows, images.prompt)
        for rows, images in zip(checked_pair(x.features, y.features), (x, y), strict=True)
    )
    of_block = np.eye(int(block.max()) + 1)[block]  # [prompts, blocks]
    tables = []
    for a, b in ((x, x), (y, y), (x, y)):
        sums = np.zeros((of_block.shape[1],) * 2)
        for start, rows in numbered_parts(a.features):
            for at, others in numbered_parts(b.features[: start + features.ROWS] if a is b else b.features):
                own, their = a.prompt[start : start + features.ROWS], b.prompt[at : at + features.ROWS]
                part = of_block[own].T @ (_cubic(rows, others) * (own[:, None] != their)) @ of_block[their]
                sums += part + part.T if a is b and at < start else part
        n, m = (np.bincount(images.prompt, minlength=len(block)) for images in (a, b))
        pairs = np.outer(n @ of_block, m @ of_block) - np.diag((n * m) @ of_block)
        tables.append(np.stack([sums, pairs]))
    return tables


def _cubic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:  # [a, d], [b, d] -> [a, b]
    shifted = a @ b.T / a.shape[1] + 1
    return shifted * shifted * shifted


def cmmd(x: Features, y: Features, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD (arXiv 2401.09603, biased like its code): MMD² of features of unit length under exp(-|a - b|² / 2
    sigma²), times `scale`.
    """
    first, second = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in checked_pair(x, y)
    )
    # of unit vectors |a - b|² is 2 - 2ab; expm1 keeps the digits that differences of numbers near 1 would
    # lose
    gaussian: Kernel = lambda a, b: np.expm1((a @ b.T - 1) / sigma**2)
    within, other, across = (
        _total(gaussian, a, b) / (len(a) * len(b))
        for a, b in ((first, first), (second, second), (first, second))
    )
    return scale * (within + other - 2 * across)


def prdc(real: Features, generated: Features, *, k: int = 5) -> dict[str, float]:
    """Precision, recall (arXiv 1904.06991), density and coverage (2002.09797), of balls that reach to the
    k-th nearest neighbour.

    ValueError: a side has no more than `k` samples, the sides differ in width, or a feature is not finite.
    """
    true, generated = checked_pair(real, generated)
    if min(len(true), len(generated)) <= k:
        raise ValueError(
            f"{k} neighbours need more than {k} samples on each side, found {len(true)} and {len(generated)}"
        )
    reach_true, reach_generated = _reach(true, k), _reach(generated, k)
    inside = np.zeros(len(generated))  # of how many true balls
    recalled, covered = 0, 0
    for start in range(0, len(true), features.ROWS):
        part = slice(start, start + features.ROWS)
        # [rows, made]
        apart = np.concatenate(
            [_squared(true[part].astype(np.float64), other) for other in parts(generated)], axis=1
        )
        within = apart < reach_true[part, None]
        inside += within.sum(0)
        recalled += int((apart < reach_generated).any(1).sum())
        covered += int(within.any(1).sum())
    return {
        "precision": float((inside > 0).mean()),
        "recall": recalled / len(true),
        "density": float(inside.mean() / k),
        "coverage": covered / len(true),
    }


def _reach(rows: Features, k: int) -> NDArray[np.float64]:  # [n]
    """Squared distance to the k-th nearest of the others."""
    reaches = []
    for start, part in numbered_parts(rows):
        apart = np.concatenate([_squared(part, other) for other in parts(rows)], axis=1)
        # a row is its own nearest, whatever rounding says
        apart[np.arange(len(part)), start + np.arange(len(part))] = -1
        reaches.append(np.partition(apart, k, axis=1)[:, k])
    return np.concatenate(reaches)


# [a, d], [b, d] -> [a, b]
def _squared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)).clip(0)


def _total(kernel: Kernel, x: Features, y: Features) -> float:
    return float(sum(kernel(part, other).sum() for part in parts(x) for other in parts(y)))
