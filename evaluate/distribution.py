"""How far a set of images lies from another, from their features: Fréchet and kernel distances, precision and recall. float64, no SciPy."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [n, d], a row for each image
Sums = TypeVar("Sums", float, NDArray[np.float64])
Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]  # [a, d], [b, d] -> [a, b]
Block = NDArray[np.integer]  # [n]: number of the block of prompts that a row belongs to, from 0 without gaps

ROWS = 512  # rows of a matrix of pairs at a time: bounds memory, changes no result beyond rounding
ENOUGH = 10  # samples for each dimension; with fewer, a Fréchet distance is mostly bias, which is not the same for all models


@dataclass(frozen=True, eq=False)
class Moments:
    """What a Fréchet distance knows of a set. Sets without rows in common add up, and a part can be taken away again."""

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
    def root(self) -> NDArray[np.float64]:  # [d, d]
        """Symmetric square root of the covariance, found once for a reference that many are compared with."""
        values, vectors = np.linalg.eigh(self.cov)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

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

    S1 S2 has the eigenvalues of the symmetric R S1 R with R² = S2, so that no square root has an imaginary part to be dropped.
    """
    if found.mean.shape != reference.mean.shape:
        raise ValueError(f"features to compare must have one width, found {len(found.mean)} and {len(reference.mean)}")
    product = reference.root @ found.cov @ reference.root
    overlap = np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum()
    apart = found.mean - reference.mean
    return max(0.0, float(apart @ apart + np.trace(found.cov) + np.trace(reference.cov) - 2 * overlap))


def frechet_without(features: Features, reference: Moments, block: Block) -> NDArray[np.float64]:  # [blocks]
    """The Fréchet distance without each block in turn: what a jackknife needs."""
    rows, whole = _checked(features), Moments.of(features)
    return np.array([frechet(whole - Moments.of(rows[block == left]), reference) for left in range(_count(rows, block))])


def frechet_infinity(features: Features, reference: Moments, *, points: int = 15, seed: int = 0) -> float:
    """Fréchet distance of infinitely many samples: subsets of n/2 to n, and a line through their distances in 1/N (arXiv 1911.07023).

    There they start at n/10, of 50,000; with few samples for each dimension the distances of small subsets leave the line.
    """
    rows = _checked(features)
    sizes = np.unique(np.linspace(max(2, len(rows) // 2), len(rows), points).astype(int))
    if len(sizes) < 2:
        raise ValueError(f"a line in 1/N needs subsets of at least two sizes: {len(rows)} samples are too few")
    rng = np.random.default_rng(seed)
    distances = [frechet(Moments.of(rows[rng.permutation(len(rows))[:size]]), reference) for size in sizes]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def ranking(n: int, dimensions: int) -> Literal["fd", "kd"]:
    """Which distance ranks models at this size; the other one is shown beside it, the Fréchet distance marked biased."""
    return "fd" if n >= ENOUGH * dimensions else "kd"


def kernel_distance(x: Features, y: Features, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """KID as published (arXiv 1801.01401): mean of the unbiased estimates of random subsets; `size` shrinks to the smaller set."""
    first, second = _pair(x, y)
    size = min(size, len(first), len(second))
    rng = np.random.default_rng(seed)
    return float(np.mean([
        kernel_distance_full(first[rng.choice(len(first), size, replace=False)], second[rng.choice(len(second), size, replace=False)])
        for _ in range(subsets)
    ]))  # fmt: skip


def kernel_distance_full(x: Features, y: Features) -> float:
    """KID of all pairs at once: what the mean over subsets estimates, without their noise."""
    first, second = _pair(x, y)
    one = np.zeros(len(first), np.int64)
    within, across, other = _kernel_sums(first, second, one)
    return _unbiased(float(within[0, 0]), len(first), float(across[0]), other, len(second))


def kernel_distance_without(x: Features, y: Features, block: Block) -> NDArray[np.float64]:  # [blocks]
    """The full kernel distance without each block of x in turn, for the price of one."""
    first, second = _pair(x, y)
    size = np.bincount(block, minlength=_count(first, block))
    within, across, other = _kernel_sums(first, second, block)
    left = within.sum() - within.sum(0) - within.sum(1) + within.diagonal()
    return _unbiased(left, len(first) - size, across.sum() - across, other, len(second))


def _kernel_sums(x: Features, y: Features, block: Block) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Sums of the cubic kernel: [blocks, blocks] within x, [blocks] between x and y, and within y; no row with itself."""
    of_block = np.eye(int(block.max()) + 1)[block]  # [n, blocks]
    within, across = np.zeros((of_block.shape[1],) * 2), np.zeros(of_block.shape[1])
    for start, part in _numbered(x):
        own = of_block[start : start + ROWS]
        for at, other in _numbered(x):
            within += own.T @ _cubic(part, other) @ of_block[at : at + ROWS]
        within -= np.diag(_cubic_alone(part) @ own)
        for other in _parts(y):
            across += own.T @ _cubic(part, other).sum(1)
    return within, across, _total(_cubic, y, y) - float(sum(_cubic_alone(part).sum() for part in _parts(y)))


def _unbiased(within: Sums, n: Any, across: Sums, other: float, m: int) -> Sums:
    return within / (n * (n - 1)) + other / (m * (m - 1)) - 2 * across / (n * m)


def _cubic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:  # [a, d], [b, d] -> [a, b]
    found = a @ b.T / a.shape[1] + 1
    return found * found * found


def _cubic_alone(rows: NDArray[np.float64]) -> NDArray[np.float64]:  # [a]: the kernel of each row with itself
    return ((rows * rows).sum(1) / rows.shape[1] + 1) ** 3


def cmmd(x: Features, y: Features, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD (arXiv 2401.09603, biased like its code): MMD² of features of unit length under exp(-|a - b|² / 2 sigma²), times `scale`."""
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in _pair(x, y))
    # of unit vectors |a - b|² is 2 - 2ab; expm1 keeps the digits that differences of numbers near 1 would lose
    gaussian: Kernel = lambda a, b: np.expm1((a @ b.T - 1) / sigma**2)
    within, other, across = (_total(gaussian, a, b) / (len(a) * len(b)) for a, b in ((first, first), (second, second), (first, second)))
    return scale * (within + other - 2 * across)


def prdc(real: Features, made: Features, *, k: int = 5) -> dict[str, float]:
    """Precision, recall (arXiv 1904.06991), density and coverage (2002.09797), of balls that reach to the k-th nearest neighbour."""
    true, found = _pair(real, made)
    if min(len(true), len(found)) <= k:
        raise ValueError(f"{k} neighbours need more than {k} samples on each side, found {len(true)} and {len(found)}")
    reach_true, reach_found = _reach(true, k), _reach(found, k)
    inside = np.zeros(len(found))  # of how many true balls
    recalled, covered = 0, 0
    for start in range(0, len(true), ROWS):
        part = slice(start, start + ROWS)
        apart = np.concatenate([_squared(true[part].astype(np.float64), other) for other in _parts(found)], axis=1)  # [rows, made]
        within = apart < reach_true[part, None]
        inside += within.sum(0)
        recalled += int((apart < reach_found).any(1).sum())
        covered += int(within.any(1).sum())
    return {
        "precision": float((inside > 0).mean()), "recall": recalled / len(true),
        "density": float(inside.mean() / k), "coverage": covered / len(true),
    }  # fmt: skip


def _reach(rows: Features, k: int) -> NDArray[np.float64]:  # [n]
    """Squared distance to the k-th nearest of the others."""
    found = []
    for start, part in _numbered(rows):
        apart = np.concatenate([_squared(part, other) for other in _parts(rows)], axis=1)
        apart[np.arange(len(part)), start + np.arange(len(part))] = -1  # a row is its own nearest, whatever rounding says
        found.append(np.partition(apart, k, axis=1)[:, k])
    return np.concatenate(found)


def _squared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:  # [a, d], [b, d] -> [a, b]
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
        raise ValueError(f"features to compare must have one width, found {first.shape[1]} and {second.shape[1]}")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a distance of sets needs at least two samples on each side, found {len(first)} and {len(second)}")
    return first, second


def _count(rows: Features, block: Block) -> int:
    if len(block) != len(rows):
        raise ValueError(f"{len(rows)} samples came with the blocks of {len(block)}")
    count = int(block.max()) + 1
    if count < 2:
        raise ValueError("leaving out a block needs at least two blocks")
    return count


def _checked(features: Features) -> Features:
    rows = np.asarray(features)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"features must be a table of samples and dimensions, found shape {rows.shape}")
    if not math.isfinite(float(rows.sum(dtype=np.float64))):
        raise ValueError(f"{int((~np.isfinite(rows)).any(1).sum())} of {len(rows)} samples have features that are not finite")
    return rows
