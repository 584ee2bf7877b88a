"""Intervals and paired tests over per-sample scores; samples of one prompt or image are drawn together, never alone."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Values = Sequence[float] | np.ndarray          # [n] finite floats, one per sample
Clusters = Sequence[Hashable] | np.ndarray     # [n] ids (prompt or image) of the samples; None = every sample is its own

CHUNK = 1 << 21                                # numbers drawn at a time: bounds memory, does not change the draws


class Estimate(NamedTuple):
    """A mean and its interval; low and high are None where there are fewer than two clusters to draw from."""

    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """Mean of a - b over the same samples, its interval, and the two-sided p of "a and b are exchangeable"."""

    mean: float
    low: float | None
    high: float | None
    p: float | None


def bootstrap(values: Values, clusters: Clusters | None = None, *, seed: int = 0, draws: int = 2000, level: float = 0.95) -> Estimate:
    """Percentile interval of the mean over whole clusters, widened for few clusters (Hesterberg, arXiv 1411.5279, "expanded")."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    sums, counts = _per_cluster(values, clusters)
    mean = float(sums.sum() / counts.sum())
    n = len(sums)
    if n < 2:
        return Estimate(mean, None, None)
    means = np.concatenate([sums[drawn].sum(1) / counts[drawn].sum(1) for drawn in _chunks(n, draws, seed)])
    # A percentile interval is too short by the factor sqrt((n - 1) / n) and by z against t; ask for tails that make up for both.
    from scipy import stats  # takes a second to import, and most of the job never asks for an interval

    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))


def paired_difference(
    a: Values,                                 # [n] scores of one system
    b: Values,                                 # [n] scores of the other, sample by sample on the same prompts and seeds
    clusters: Clusters | None = None,          # [n] prompt or image of each sample
    *, seed: int = 0, draws: int = 2000, level: float = 0.95,
) -> Difference:
    """Two systems compared on the same samples: most of the spread is the images', and pairing takes it out."""
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise ValueError(f"paired scores must be of the same samples, found {len(first)} and {len(second)}")
    estimate = bootstrap(first - second, clusters, seed=seed, draws=draws, level=level)
    sums, _ = _per_cluster(first - second, clusters)
    return Difference(*estimate, p=_sign_flip(sums, seed=seed, draws=draws))


def _sign_flip(sums: np.ndarray, *, seed: int, draws: int) -> float | None:
    """Share of sign patterns at least as extreme as the one seen: all 2^n of them where that is no more than `draws`, else random ones."""
    n = len(sums)
    if n < 2:
        return None
    seen = abs(sums.sum()) * (1 - 1e-9)        # a pattern equal but for rounding counts as equal
    if n < 31 and 2**n <= draws:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * bits) @ sums) >= seen).mean())
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    extreme = 0
    for start in range(0, draws, rows):
        signs = 1 - 2 * rng.integers(0, 2, (min(rows, draws - start), n), dtype=np.int8)
        extreme += int((np.abs(signs @ sums) >= seen).sum())
    return (1 + extreme) / (1 + draws)         # the pattern seen is itself one of the draws, so p is never 0


def _chunks(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of n clusters with replacement, int [rows, n], `draws` rows in all."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    for start in range(0, draws, rows):
        yield rng.integers(0, n, (min(rows, draws - start), n))


def _per_cluster(values: Values, clusters: Clusters | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each cluster, float64 [c] and [c]: all that a mean over clusters needs."""
    scores = _checked(values)
    if clusters is None:
        return scores, np.ones(len(scores))
    if len(clusters) != len(scores):
        raise ValueError(f"{len(scores)} scores came with {len(clusters)} cluster ids: give one id per score")
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    return np.bincount(index, weights=scores), np.bincount(index).astype(np.float64)


def _checked(values: Values) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores must be a list of at least one number, found shape {scores.shape}")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise ValueError(f"{bad} of {len(scores)} scores are not finite: a failed sample scores the metric's worst")
    return scores
