"""How far a set of images lies from another, from their features: Fréchet and kernel distances, precision and
recall. float64, no SciPy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [n, d], a row for each image
Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]  # [a, d], [b, d] -> [a, b]
# [prompts]: number of the block that a prompt is left out with, from 0 without gaps
Block = NDArray[np.integer]

ROWS = 256  # rows of a matrix of pairs at a time: bounds memory, changes no result beyond rounding
# samples for each dimension; with fewer, a Fréchet distance is mostly bias, which is not the same for all
# models
ENOUGH = 10
# real images for each dimension, at least, that a line in 1/n is drawn for: its halves have half as many
LINE = 5


class Images(NamedTuple):
    """Features with what ties them together: those of one prompt, made or real, are left out together and are
    no independent draws.
    """

    features: Features
    prompt: NDArray[np.integer]  # [n]: number of each row's prompt


@dataclass(frozen=True, eq=False)
class Moments:
    """What a Fréchet distance knows of a set.

    Sets without rows in common add up, and a part can be taken away again.
    """

    n: int
    mean: NDArray[np.float64]  # [d]
    scatter: NDArray[np.float64]  # [d, d]: sum of (x - mean)(x - mean)^T

    @classmethod
    def of(cls, features: Features) -> "Moments":
        rows = _checked(features)
        mean = rows.mean(0, dtype=np.float64)
        scatter = np.zeros((rows.shape[1],) * 2)
        for part in _parts(rows):
            centred = part - mean
            scatter += centred.T @ centred
        return cls(len(rows), mean, scatter)

    @property
    def cov(self) -> NDArray[np.float64]:  # [d, d]
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two samples, found {self.n}")
        return self.scatter / (self.n - 1)

    @cached_property
    def factor(self) -> NDArray[np.float64]:  # [d, d]
        """F with F F^T = the covariance: Cholesky's where there is one, since it is cheaper than the
        symmetric root.
        """
        try:
            return np.asarray(np.linalg.cholesky(self.cov))
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(self.cov)
            return np.asarray(vectors * np.sqrt(values.clip(0)))

    def __add__(self, other: "Moments") -> "Moments":
        """Chan, Golub and LeVeque (1979)."""
        n = self.n + other.n
        apart = other.mean - self.mean
        between = np.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), self.scatter + other.scatter + between)

    def __sub__(self, part: "Moments") -> "Moments":
        """The set without a part of it."""
        n = self.n - part.n
        if n < 1:
            raise ValueError(f"{part.n} of {self.n} samples can't be taken away")
        mean = self.mean + (self.mean - part.mean) * (part.n / n)
        apart = mean - part.mean
        return Moments(n, mean, self.scatter - part.scatter - np.outer(apart, apart) * (n * part.n / self.n))


def frechet(found: Moments, reference: Moments) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½) (arXiv 1706.08500).

    S1 S2 has the eigenvalues of the symmetric F^T S1 F with F F^T = S2, so that no square root has an
    imaginary part to be dropped.
    """
    if found.mean.shape != reference.mean.shape:
        raise ValueError(
            f"features to compare must have one width, found {len(found.mean)} and {len(reference.mean)}"
        )
    product = reference.factor.T @ found.cov @ reference.factor
    overlap = np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum()
    apart = found.mean - reference.mean
    return max(0.0, float(apart @ apart + np.trace(found.cov) + np.trace(reference.cov) - 2 * overlap))


def frechet_without(made: Images, real: Images, block: Block) -> NDArray[np.float64]:  # [blocks]
    """The Fréchet distance without each block in turn: what a jackknife needs.

    Other prompts would have other real images too.
    """
    whole = Moments.of(made.features), Moments.of(real.features)
    return np.array(
        [
            frechet(_less(whole[0], made, block == left), _less(whole[1], real, block == left))
            for left in range(_count(block))
        ]
    )


# of all, [blocks]
def frechet_infinity(made: Images, real: Images, block: Block) -> tuple[float, NDArray[np.float64]]:
    """Fréchet distance of infinitely many prompts, and without each block: a line in 1/n through all and two
    halves (after arXiv 1911.07023).

    There it goes through random subsets of what is made, and which ones is noise in the result; two halves
    hold each prompt once.
    """
    count = _count(block)
    if count < 4:
        raise ValueError(f"halves without a block need at least four blocks, found {count}")
    halves = [
        tuple(Moments.of(it.features[block[it.prompt] % 2 == half]) for it in (made, real)) for half in (0, 1)
    ]
    far = [frechet(*half) for half in halves]
    whole = halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    without = []
    for left in range(count):
        rest, half = (
            tuple(_less(moments, it, block == left) for moments, it in zip(pair, (made, real), strict=True))
            for pair in (whole, halves[left % 2])
        )
        other = 1 - left % 2
        without.append(_at_infinity(rest, (half, halves[other]), (frechet(*half), far[other])))
    return _at_infinity(whole, halves, far), np.array(without)


def _at_infinity(
    whole: tuple[Moments, ...], halves: Sequence[tuple[Moments, ...]], far: Sequence[float]
) -> float:
    """Where the line through (1/n, distance) of the whole and of the mean half meets 0."""
    near, there = 1 / whole[0].n, float(np.mean([1 / half[0].n for half in halves]))
    return (there * frechet(*whole) - near * float(np.mean(far))) / (there - near)


def _less(whole: Moments, images: Images, left: NDArray[np.bool_]) -> Moments:  # [prompts]
    """The set without some prompts, of which there may be no image."""
    rows = images.features[left[images.prompt]]
    return whole - Moments.of(rows) if len(rows) else whole


def ranking(n: int, dimensions: int) -> Literal["fd", "kd"]:
    """Which distance ranks models at this size; the other one is shown beside it, the Fréchet distance marked
    biased.
    """
    return "fd" if n >= ENOUGH * dimensions else "kd"


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
def kernel_distance_without(made: Images, real: Images, block: Block) -> tuple[float, NDArray[np.float64]]:
    """KID of all pairs of different prompts, and without each block in turn, for the price of one.

    What is made for a prompt is no independent draw beside the prompt's real image, nor beside another
    seed's: such pairs bias KID.
    """
    _count(block)
    tables = _kernel_sums(made, real, block)
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
    x, y = (Images(rows, it.prompt) for rows, it in zip(_pair(x.features, y.features), (x, y), strict=True))
    of_block = np.eye(int(block.max()) + 1)[block]  # [prompts, blocks]
    found = []
    for a, b in ((x, x), (y, y), (x, y)):
        sums = np.zeros((of_block.shape[1],) * 2)
        for start, rows in _numbered(a.features):
            for at, others in _numbered(b.features[: start + ROWS] if a is b else b.features):
                own, their = a.prompt[start : start + ROWS], b.prompt[at : at + ROWS]
                part = of_block[own].T @ (_cubic(rows, others) * (own[:, None] != their)) @ of_block[their]
                sums += part + part.T if a is b and at < start else part
        n, m = (np.bincount(it.prompt, minlength=len(block)) for it in (a, b))
        pairs = np.outer(n @ of_block, m @ of_block) - np.diag((n * m) @ of_block)
        found.append(np.stack([sums, pairs]))
    return found


def _cubic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:  # [a, d], [b, d] -> [a, b]
    found = a @ b.T / a.shape[1] + 1
    return found * found * found


def cmmd(x: Features, y: Features, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD (arXiv 2401.09603, biased like its code): MMD² of features of unit length under exp(-|a - b|² / 2
    sigma²), times `scale`.
    """
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in _pair(x, y))
    # of unit vectors |a - b|² is 2 - 2ab; expm1 keeps the digits that differences of numbers near 1 would
    # lose
    gaussian: Kernel = lambda a, b: np.expm1((a @ b.T - 1) / sigma**2)
    within, other, across = (
        _total(gaussian, a, b) / (len(a) * len(b))
        for a, b in ((first, first), (second, second), (first, second))
    )
    return scale * (within + other - 2 * across)


def prdc(real: Features, made: Features, *, k: int = 5) -> dict[str, float]:
    """Precision, recall (arXiv 1904.06991), density and coverage (2002.09797), of balls that reach to the
    k-th nearest neighbour.
    """
    true, found = _pair(real, made)
    if min(len(true), len(found)) <= k:
        raise ValueError(
            f"{k} neighbours need more than {k} samples on each side, found {len(true)} and {len(found)}"
        )
    reach_true, reach_found = _reach(true, k), _reach(found, k)
    inside = np.zeros(len(found))  # of how many true balls
    recalled, covered = 0, 0
    for start in range(0, len(true), ROWS):
        part = slice(start, start + ROWS)
        # [rows, made]
        apart = np.concatenate(
            [_squared(true[part].astype(np.float64), other) for other in _parts(found)], axis=1
        )
        within = apart < reach_true[part, None]
        inside += within.sum(0)
        recalled += int((apart < reach_found).any(1).sum())
        covered += int(within.any(1).sum())
    return {
        "precision": float((inside > 0).mean()),
        "recall": recalled / len(true),
        "density": float(inside.mean() / k),
        "coverage": covered / len(true),
    }


def _reach(rows: Features, k: int) -> NDArray[np.float64]:  # [n]
    """Squared distance to the k-th nearest of the others."""
    found = []
    for start, part in _numbered(rows):
        apart = np.concatenate([_squared(part, other) for other in _parts(rows)], axis=1)
        # a row is its own nearest, whatever rounding says
        apart[np.arange(len(part)), start + np.arange(len(part))] = -1
        found.append(np.partition(apart, k, axis=1)[:, k])
    return np.concatenate(found)


# [a, d], [b, d] -> [a, b]
def _squared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)).clip(0)


def _total(kernel: Kernel, x: Features, y: Features) -> float:
    return float(sum(kernel(part, other).sum() for part in _parts(x) for other in _parts(y)))


def _parts(rows: Features) -> Iterator[NDArray[np.float64]]:
    return (part for _, part in _numbered(rows))


def _numbered(rows: Features) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each part with the number of its first row."""
    return ((start, rows[start : start + ROWS].astype(np.float64)) for start in range(0, len(rows), ROWS))


def _pair(x: Features, y: Features) -> tuple[Features, Features]:
    first, second = _checked(x), _checked(y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features to compare must have one width, found {first.shape[1]} and {second.shape[1]}"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"a distance of sets needs at least two samples on each side, found {len(first)} and"
            f" {len(second)}"
        )
    return first, second


def _count(block: Block) -> int:
    count = int(block.max()) + 1
    if count < 2:
        raise ValueError("leaving out a block needs at least two blocks")
    return count


def _checked(features: Features) -> Features:
    rows = np.asarray(features)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"features must be a table of samples and dimensions, found shape {rows.shape}")
    if not math.isfinite(float(rows.sum(dtype=np.float64))):
        raise ValueError(
            f"{int((~np.isfinite(rows)).any(1).sum())} of {len(rows)} samples have features that are not"
            " finite"
        )
    return rows
