"""The Fréchet distance of two sets of images, without each block of prompts, and of infinitely many prompts.
float64, no SciPy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluate.features import Block, Features, Images, block_count, checked, parts

# samples for each dimension; with fewer, a Fréchet distance is mostly bias, which is not the same for all
# models
ENOUGH = 10
# real images for each dimension, at least, that a line in 1/n is drawn for: its halves have half as many
LINE = 5


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
        rows = checked(features)
        mean = rows.mean(0, dtype=np.float64)
        scatter = np.zeros((rows.shape[1],) * 2)
        for part in parts(rows):
            centred = part - mean
            scatter += centred.T @ centred
        return cls(len(rows), mean, scatter)

    @property
    def cov(self) -> NDArray[np.float64]:  # [d, d]
        """The covariance of the features, divided by n - 1. ValueError: fewer than two samples."""
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


def frechet(generated: Moments, reference: Moments) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½) (arXiv 1706.08500).

    S1 S2 has the eigenvalues of the symmetric F^T S1 F with F F^T = S2, so that no square root has an
    imaginary part to be dropped.

    ValueError: the two differ in width, or one has fewer than two samples.
    """
    if generated.mean.shape != reference.mean.shape:
        raise ValueError(
            f"features to compare must have one width, found {len(generated.mean)} and {len(reference.mean)}"
        )
    product = reference.factor.T @ generated.cov @ reference.factor
    overlap = np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum()
    apart = generated.mean - reference.mean
    return max(0.0, float(apart @ apart + np.trace(generated.cov) + np.trace(reference.cov) - 2 * overlap))


def frechet_without(generated: Images, real: Images, block: Block) -> NDArray[np.float64]:  # [blocks]
    """The Fréchet distance without each block in turn: what a jackknife needs.

    Other prompts would have other real images too.
    """
    whole = Moments.of(generated.features), Moments.of(real.features)
    return np.array(
        [
            frechet(_less(whole[0], generated, block == left), _less(whole[1], real, block == left))
            for left in range(block_count(block))
        ]
    )


# of all, [blocks]
def frechet_infinity(generated: Images, real: Images, block: Block) -> tuple[float, NDArray[np.float64]]:
    """Fréchet distance of infinitely many prompts, and without each block: a line in 1/n through all and two
    halves (after arXiv 1911.07023).

    There it goes through random subsets of what is made, and which ones is noise in the result; two halves
    hold each prompt once.

    ValueError: fewer than four blocks, or sets that `checked` or `frechet` refuses.
    """
    count = block_count(block)
    if count < 4:
        raise ValueError(f"halves without a block need at least four blocks, found {count}")
    both = (generated, real)
    halves = [
        tuple(Moments.of(images.features[block[images.prompt] % 2 == half]) for images in both)
        for half in (0, 1)
    ]
    far = [frechet(*half) for half in halves]
    whole = halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    without = []
    for left in range(count):
        rest, half = (
            tuple(_less(moments, images, block == left) for moments, images in zip(pair, both, strict=True))
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
