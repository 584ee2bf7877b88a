"""Scores with their replicates: what each would have been on other draws of the benchmark's prompts.

All systems of a benchmark are replicated on the same draws, so any two of them can be compared later without
their samples.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
BLOCKS = 20
LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Replicated:
    """One score of one system.

    Bootstrap: a value for each draw of prompts; jackknife: a value without each block of prompts.
    """

    value: float
    replicates: NDArray[np.float32]  # [R]; empty where there are too few prompts
    method: Literal["bootstrap", "jackknife"]
    clusters: int  # prompts
    possible: tuple[float, float] = (-math.inf, math.inf)  # the least and the most that the score can be

    @functools.cached_property
    def is_finite(self) -> bool:
        return math.isfinite(self.value) and bool(np.isfinite(self.replicates).all())

    @functools.cached_property
    def centred(self) -> NDArray[np.float64]:  # [R] replicates without their mean
        exact = self.replicates.astype(np.float64)
        return exact - exact.mean()

    @property
    def error(self) -> float | None:
        """Standard error; None = too few prompts to tell."""
        return _error(self.replicates.astype(np.float64), self)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, by Student's t: the percentiles of replicates of few prompts are too narrow.

        Cut where no score can lie, which costs no coverage; an interval of logits never gets there, and holds
        skewed means more often but an average precision less (benchmarks/intervals.py).
        """
        around, (least, most) = _around(self.value, self.error, self), self.possible
        return around and (max(around[0], least), min(around[1], most))


class Difference(NamedTuple):
    """a - b on the same prompts; None = too few prompts to tell."""

    value: float
    low: float | None
    high: float | None
    p: float | None  # two-sided, of "there is none"


def bootstrap_weights(
    clusters: int,
    *,
    count: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float32]:  # [count, clusters]: how often each prompt is drawn
    """With replacement, as many as there are."""
    rng = np.random.default_rng([seed, clusters])
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=count).astype(np.float32)


def of_means(
    values: NDArray[np.float64],  # [n] per-sample scores
    cluster: NDArray[np.int64],  # [n] number of each sample's prompt
    weights: NDArray[np.float32],  # [R, clusters]: how often each prompt is drawn
) -> Replicated:
    """The mean over samples; those of one prompt are drawn together.

    ValueError: a score that is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite: a failed sample"
            " scores the metric's worst"
        )
    size = weights.shape[1]
    sums, counts = np.bincount(cluster, weights=values, minlength=size), np.bincount(cluster, minlength=size)
    means = (weights @ sums) / np.maximum(weights @ counts, 1) if size > 1 else np.empty(0)
    return Replicated(float(values.mean()), means.astype(np.float32), "bootstrap", size)


# [clusters]: which of at most 20 blocks a prompt is left out with
def blocks(clusters: int) -> NDArray[np.int64]:
    return np.arange(clusters) % min(BLOCKS, clusters)


def least_left(cluster: NDArray[np.int64], clusters: int) -> int:
    """Prompts with an image that remain without any block: a distance needs two."""
    block = blocks(clusters)[np.unique(cluster)]
    return len(block) - int(np.bincount(block).max(initial=0))


def of_distance(
    distance: Callable[..., tuple[float, NDArray[np.float64]]],  # evaluate.measures.Distance
    features: NDArray[np.float32],  # [m, d] of the samples that have an image
    cluster: NDArray[np.int64],  # [m] number of each one's prompt
    clusters: int,
) -> Replicated:
    """Left out in blocks of prompts: a distance of a set in which prompts are drawn twice is biased."""
    value, without = distance(features, cluster, blocks(clusters))
    return Replicated(value, without.astype(np.float32), "jackknife", clusters)


def difference(a: Replicated, b: Replicated) -> Difference:
    """Of two systems on one benchmark: most of the spread is the prompts', and pairing takes it out."""
    value = a.value - b.value
    error = _paired(a, b)
    around = _around(value, error, a)
    if error is None or around is None:
        return Difference(value, None, None, None)
    return Difference(value, *around, _p(value, error, a))


def chances(
    scores: Sequence[Replicated],
) -> NDArray[
    np.float64
]:  # [pairs], as itertools.combinations gives them; NaN where there are too few prompts
    """`difference(a, b).p` of all pairs of one table, at once."""
    from scipy import special

    errors = _all_paired(scores)
    first, second = np.triu_indices(len(scores), 1)
    values = np.array([each.value for each in scores])
    apart = np.abs(values[first] - values[second])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2 * special.stdtr(_freedom(scores[0]) if scores else 1, -apart / errors)
    found[errors == 0] = np.where(apart[errors == 0] == 0, 1.0, 0.0)
    return np.asarray(found)


def detectable(scores: Sequence[Replicated]) -> float | None:
    """The true difference that a benchmark like this finds in 80 % of repeats, at 5 %, by the median pair's
    error; None = no two differ.
    """
    errors = [float(error) for error in _all_paired(scores) if error > 0]
    if not errors:
        return None
    return float(np.median(errors)) * sum(
        quantile(chance, _freedom(scores[0])) for chance in ((1 + LEVEL) / 2, POWER)
    )


def best(scores: Iterable[Replicated], higher_is_better: bool) -> Replicated | None:
    """The best by its value, as of two baselines the better is the floor; None = there are none."""
    return max(scores, key=lambda each: each.value if higher_is_better else -each.value, default=None)


class NormalizedScore(NamedTuple):
    """The normalized score: how far a score is on the way from floor (0) to ceiling (1)."""

    value: float
    low: float
    high: float


NO_FLOOR = "neither no control nor the shuffled condition has a score by this measure"
NO_CEILING = "the real image has no score by this measure"
NOT_BETTER = "the real image scores no better than the better baseline"
BY_CHANCE = "the real image scores better than the better baseline, but that may be chance"
TOO_FEW = "there are too few prompts to tell whether the real image scores better than the better baseline"
NOT_FINITE = "not all of the scores that it takes are finite numbers"


def normalized_score(
    score: Replicated,
    floor: Replicated | None,  # the better baseline; None = there is none
    ceiling: Replicated | None,  # the real image
    *,
    higher_is_better: bool,
) -> NormalizedScore | str:  # a reason where there is no normalized score
    """Only where the ceiling is better than the floor beyond chance (5 %): the quotient of a distance that
    may be zero, or that points the other way, can be any number. So its interval is finite too: by Fieller's
    theorem all shares whose place on the way the score may have.
    """
    if floor is None or ceiling is None:
        return NO_FLOOR if ceiling is not None else NO_CEILING
    if not (score.is_finite and floor.is_finite and ceiling.is_finite):
        return NOT_FINITE
    sign = 1 if higher_is_better else -1
    length = sign * (ceiling.value - floor.value)
    if length <= 0:
        return NOT_BETTER
    if len(score.replicates) < 2:
        return TOO_FEW
    way = sign * (score.value - floor.value) + 0.0  # never -0
    moved, apart = score.centred - floor.centred, ceiling.centred - floor.centred
    moved_moved, moved_apart, apart_apart = (
        quantile((1 + LEVEL) / 2, _freedom(score)) ** 2 * _covariance(a, b, score)
        for a, b in ((moved, moved), (moved, apart), (apart, apart))
    )
    # (way - share * length)^2 = t^2 Var(way - share * length), solved for the share
    square, linear, constant = length**2 - apart_apart, way * length - moved_apart, way**2 - moved_moved
    if square <= 0:
        return BY_CHANCE
    reach = math.sqrt(max(0.0, linear**2 - square * constant))
    return NormalizedScore(way / length, (linear - reach) / square, (linear + reach) / square)


def _paired(a: Replicated, b: Replicated) -> float | None:
    """Standard error of a - b on the same prompts."""
    _must_be_alike(a, b)
    return _error(a.replicates.astype(np.float64) - b.replicates, a)


def _all_paired(scores: Sequence[Replicated]) -> NDArray[np.float64]:
    """`_paired` of all pairs, as itertools.combinations gives them; NaN where there are too few prompts."""
    for other in scores[1:]:
        _must_be_alike(scores[0], other)
    rows = np.array([each.replicates for each in scores], np.float64)
    apart = [_errors(rows[number] - rows[number + 1 :], scores[0]) for number in range(len(scores) - 1)]
    return np.concatenate(apart) if apart else np.empty(0)


def _must_be_alike(a: Replicated, b: Replicated) -> None:
    if (a.method, a.replicates.shape, a.clusters) != (b.method, b.replicates.shape, b.clusters):
        raise ValueError("scores to compare must be of one benchmark, replicated alike")


def _error(replicates: NDArray[np.float64], of: Replicated) -> float | None:
    return None if len(replicates) < 2 else float(_errors(replicates[None], of)[0])


def _errors(replicates: NDArray[np.float64], of: Replicated) -> NDArray[np.float64]:  # [n, R] -> [n]
    """Standard errors; NaN of fewer than two replicates."""
    count = replicates.shape[1]
    if count < 2:
        return np.full(len(replicates), np.nan)
    if of.method == "jackknife":
        apart = replicates - replicates.mean(axis=1, keepdims=True)
        return np.sqrt((count - 1) / count * (apart**2).sum(axis=1))
    return np.asarray(replicates.std(axis=1, ddof=1) * math.sqrt(of.clusters / (of.clusters - 1)))


def _covariance(a: NDArray[np.float64], b: NDArray[np.float64], of: Replicated) -> float:
    """Of centred replicates; as `_error`, whose square it is where a is b."""
    count, product = len(a), float(a @ b)
    return (
        product * (count - 1) / count
        if of.method == "jackknife"
        else product / (count - 1) * of.clusters / (of.clusters - 1)
    )


def _around(value: float, error: float | None, of: Replicated) -> tuple[float, float] | None:
    if error is None:
        return None
    reach = error * quantile((1 + LEVEL) / 2, _freedom(of))
    return value - reach, value + reach


def _freedom(of: Replicated) -> int:
    return (len(of.replicates) if of.method == "jackknife" else of.clusters) - 1


def _p(value: float, error: float, of: Replicated) -> float:
    """Of the t distribution that the interval is made of, so that p < 5 % where the interval leaves 0 out."""
    from scipy import special

    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * special.stdtr(_freedom(of), -abs(value) / error))


@functools.cache
def quantile(chance: float, freedom: int) -> float:
    """Of Student's t; from scipy.special, since importing scipy.stats takes longer than most that is asked of
    it.
    """
    from scipy import special

    return float(special.stdtrit(freedom, chance))
