"""Populations whose true score is known, for benchmarks/intervals.py: how often each kind of interval holds
it, how many tables of equal systems show a false sign, and how far scores of few samples lie from it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluate import extractors
from evaluate.comparison import Counts
from evaluate.distribution import cmmd, prdc
from evaluate.fidelity import Map, compare, prepared
from evaluate.oks import THRESHOLDS
from evaluate.places import Table, beyond_chance, ranks_of
from evaluate.replicates import (
    NormalizedScore,
    Replicated,
    bootstrap_weights,
    difference,
    normalized_score,
    of_means,
    quantile,
)
from pipeline.scenes import render

Floats = NDArray[np.float64]
Rng = np.random.Generator
Row = dict[str, Any]
SHARES: dict[str, tuple[Callable[[Rng, int], Floats], float]] = {  # of one sample: how it is drawn, its mean
    "mean, near 1": (lambda rng, n: rng.beta(19, 1, n), 0.95),
    "mean, in the middle": (lambda rng, n: rng.beta(2, 2, n), 0.5),
    "mean, near 0": (lambda rng, n: rng.beta(0.5, 4, n), 1 / 9),
    "mean, one in ten failed": (lambda rng, n: rng.beta(19, 1, n) * (rng.random(n) > 0.1), 0.855),
}
CONDITIONS, FEW = 13, 20  # of a table, prompts of each
DRAWS = 300  # of prompts, where a statistic of the whole set is computed in each


def coverage(repeats: int) -> Iterator[Row]:
    """Intervals cut at what is possible ("holds"), and of logits for comparison; "leaves": before the cut."""
    rng = np.random.default_rng(11)
    for name, (draw, truth) in SHARES.items():
        for n in (FEW, 100):
            weights, alone = bootstrap_weights(n), np.arange(n)
            found = [of_means(draw(rng, n), alone, weights) for _ in range(5 * repeats)]
            yield held(name, n, truth, found)
    for name, pool, metric in (
        ("AP, sure", people(rng, 5000, 1.5, 2.0), "people_ap"),
        ("AP, unsure", people(rng, 5000, 1.5, 0.0), "people_ap"),
        ("mIoU", labels(rng, 2000), "miou"),
    ):
        truth = prepared(metric, pool)(np.ones(len(pool)))
        for n in (FEW, 100):
            yield held(name, n, truth, [of_set(rng, pool, metric, n) for _ in range(repeats // 2)])
    for n in (FEW, 100):
        yield shares(rng, n, 5 * repeats)


def held(name: str, n: int, truth: float, found: Sequence[Replicated]) -> Row:
    reach = [quantile(0.975, n - 1) * (it.error or 0.0) for it in found]
    low, high = (
        np.array([it.value + sign * r for it, r in zip(found, reach, strict=True)]) for sign in (-1, 1)
    )
    logits = np.array([_logit(it.value, r) for it, r in zip(found, reach, strict=True)])
    return {
        "score": name,
        "n": n,
        "repeats": len(found),
        "bias": float(np.mean([it.value for it in found]) - truth),
        "holds %": _percent((low <= truth) & (truth <= high)),
        "logit %": _percent((logits[:, 0] <= truth) & (truth <= logits[:, 1])),
        "leaves %": _percent((low < 0) | (high > 1)),
    }


def _logit(value: float, reach: float) -> tuple[float, float]:
    if not 0 < value < 1:
        return value - reach, value + reach
    middle, arm = np.log(value / (1 - value)), reach / (value * (1 - value))
    return float(1 / (1 + np.exp(arm - middle))), float(1 / (1 + np.exp(-arm - middle)))


def _percent(hits: NDArray[np.bool_]) -> float:
    return 100 * float(hits.mean())


def shares(rng: Rng, n: int, repeats: int) -> Row:
    """The normalized score of .6 on the way from .2 to .9, whose prompts differ more than the systems."""
    weights, alone = bootstrap_weights(n), np.arange(n)
    hits = told = 0
    for _ in range(repeats):
        hard = rng.normal(0, 0.15, n)
        score, floor, ceiling = (
            of_means(level + hard + rng.normal(0, 0.1, n), alone, weights) for level in (0.6, 0.2, 0.9)
        )
        found = normalized_score(score, floor, ceiling, higher_is_better=True)
        if isinstance(found, NormalizedScore):
            told, hits = told + 1, hits + (found.low <= 0.4 / 0.7 <= found.high)
    return {
        "score": "normalized score", "n": n, "repeats": told, "bias": None, "holds %": 100 * hits / told,
        "logit %": None, "leaves %": None,
    }  # fmt: skip


def false_signs(repeats: int) -> Iterator[Row]:
    """Equal systems in all of thirteen conditions at n = 20: tables with at least one false sign, each
    condition tested alone and all together; "places": of five systems.
    """
    rng, weights, alone = np.random.default_rng(12), bootstrap_weights(FEW), np.arange(FEW)

    def equal(draw: Callable[[Rng, int], Floats], systems: int) -> list[Replicated]:
        hard = draw(rng, FEW)
        return [of_means((hard + draw(rng, FEW)) / 2, alone, weights) for _ in range(systems)]

    for name, (draw, _) in SHARES.items():
        wrong = {"alone": 0, "together": 0, "places": 0}
        for _ in range(repeats):
            pairs = [difference(*equal(draw, 2)).p for _ in range(CONDITIONS)]
            wrong["alone"] += any(p is not None and p < 0.05 for p in pairs)
            wrong["together"] += any(beyond_chance(pairs))
            five = [Table(equal(draw, 5), True) for _ in range(CONDITIONS)]
            wrong["places"] += any(place != (1, 5) for held in ranks_of(five) for place in held)
        yield {"scores": name, "tables": repeats} | {
            f"{how} %": 100 * it / repeats for how, it in wrong.items()
        }


def few(repeats: int) -> Iterator[Row]:
    """An average precision less that of 5,000 people, and how often two systems of one average precision but
    unlike scores are told apart at 5 %.
    """
    rng = np.random.default_rng(13)
    for target in (0.1, 0.4, 0.7):
        systems = [(quality(target, sure), sure) for sure in (0.0, 2.0)]
        for n in (FEW, 50, 200, 500):
            weights, values, apart = bootstrap_weights(n, count=DRAWS), [], 0
            for _ in range(repeats):
                hard = rng.normal(size=n)
                pair = [
                    _drawn("people_ap", people(rng, n, level, sure, hard), weights) for level, sure in systems
                ]
                p = difference(*pair).p
                values.append([it.value - target for it in pair])
                apart += p is not None and p < 0.05
            unsure, certain = np.mean(values, axis=0)
            yield {
                "AP": target, "people": n, "repeats": repeats, "bias, unsure": float(unsure),
                "bias, sure": float(certain), "spread": float(np.std(values, axis=0).mean()),
                "told apart %": 100 * apart / repeats,
            }  # fmt: skip


def quality(target: float, sure: float) -> float:
    """At which 5,000 people have this average precision."""
    low, high = -4.0, 5.0
    for _ in range(12):
        middle = (low + high) / 2
        pool = people(np.random.default_rng(1), 5000, middle, sure)
        low, high = (middle, high) if prepared("people_ap", pool)(np.ones(5000)) < target else (low, middle)
    return (low + high) / 2


def people(rng: Rng, n: int, level: float, sure: float, hard: Floats | None = None) -> list[Counts]:
    """Images of one person, who is found as well as the level says, some with a second who isn't there; how
    sure the detector is follows how right it is by `sure`.
    """
    likeness = 1 / (
        1 + np.exp(-(level + (rng.normal(size=n) if hard is None else hard) + rng.normal(size=n)))
    )
    out: list[Counts] = []
    for one, extra in zip(likeness, rng.random(n) < 0.3, strict=True):
        similar = np.array([one, 0.0] if extra else [one])
        scores = 1 / (1 + np.exp(-(4 * sure * (similar - 0.5) + rng.normal(size=len(similar)))))
        hits = (similar[:, None] >= THRESHOLDS).astype(np.uint8)
        out.append({"scores": scores.astype(np.float32), "hits": hits, "n_truth": np.ones(1, np.int32)})
    return out


def labels(rng: Rng, n: int) -> list[Counts]:
    """Maps of twelve classes, of which some are rare, read again with a fifth of the pixels wrong."""
    often = 0.7 ** np.arange(12)
    out: list[Counts] = []
    for _ in range(n):
        classes = rng.choice(12, 5, replace=False, p=often / often.sum()).astype(np.uint8)
        coarse = classes[rng.integers(0, 5, (4, 4))]
        truth = cv2.resize(coarse, (16, 16), interpolation=cv2.INTER_NEAREST)
        wrong = classes[rng.integers(0, 5, truth.shape)]
        made = np.where(rng.random(truth.shape) < rng.beta(1, 3), wrong, truth)
        meta = {"label_space": "ade20k_150"}
        out.append(compare("labels", Map(truth, meta), Map(made, meta)).counts)
    return out


def of_set(rng: Rng, pool: Sequence[Counts], metric: str, n: int) -> Replicated:
    some = [pool[k] for k in rng.integers(0, len(pool), n)]
    return _drawn(metric, some, bootstrap_weights(n, count=DRAWS))


def _drawn(metric: str, counts: Sequence[Counts], weights: NDArray[np.float32]) -> Replicated:
    statistic = prepared(metric, counts)
    found = [statistic(row.astype(np.float64)) for row in weights]
    return Replicated(statistic(np.ones(len(counts))), np.array(found, np.float32), "bootstrap", len(counts))


def neighbours(repeats: int) -> Iterator[Row]:
    """Real pictures of scenes against other scenes ("same"), and against the half of them that lies on one
    side of what they differ in most ("half"), features by the mini scorer.
    """
    net, rng, most = extractors.load("mini"), np.random.default_rng(14), 1000
    real, other = (
        np.concatenate(
            [net([render(seed, k, 64).image for k in range(at, at + 100)]) for at in range(0, n, 100)]
        )
        for seed, n in ((30_000, most), (40_000, 2 * most))
    )
    centred = other - other.mean(0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    half = other[along > np.median(along)]
    for n in (FEW, 50, 100, 200, 500, most):
        for name, made in (("half", half), ("same", other)):
            found: list[dict[str, float]] = []
            for _ in range(repeats if n < most else 1):
                a, b = real[rng.permutation(most)[:n]], made[rng.permutation(len(made))[:n]]
                found.append(prdc(a, b) | {"cmmd": cmmd(a, b)})
            yield {"made": name, "n": n, "repeats": len(found)} | {
                key: float(np.mean([it[key] for it in found])) for key in found[0]
            }
