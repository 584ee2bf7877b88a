"""Whether the leaderboard's intervals hold what they say: ranks of planted models, ties of equal ones,
coverage, power, false signs of whole tables, bias of few samples; a table each.

Gaussian features of d dimensions stand for models, because their true distances have closed forms: N(0.2,
diag(0.5..1.5)²) against real ones, N(0, 1). What is made correlates with the real image of its prompt by
`follows`. An interval is asked whether it holds the distance's mean at that n (of all repeats), and the true
distance, of infinitely many. Planted models are rendered scenes with growing noise, read by Canny and by the
mini scorer; two equal ones differ in nothing but the noise's seed.

    python benchmarks/intervals.py --out benchmarks/results/intervals.json
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(it for it in sys.path if Path(it).resolve() != Path(__file__).resolve().parent),
]

from benchmarks.interval_populations import coverage, false_signs, few, neighbours
from evaluate import extractors, measures
from evaluate.distribution import kernel_distance_full
from evaluate.features import Images
from evaluate.fidelity import Map, compare
from evaluate.frechet import frechet_infinity
from evaluate.places import ranks
from evaluate.replicates import (
    Replicated,
    bootstrap_weights,
    detectable,
    difference,
    of_distance,
    of_means,
)
from pipeline.scenes import render

Floats = NDArray[np.float64]
NAMES = ("fd", "fd_infinity", "kd")
SHIFT, SEED = 0.2, 30_000
NOISE = (4, 8, 16, 32)  # standard deviations of planted models, of 255
POOL, PROMPTS, SIDE = 600, 200, 64  # scenes, those of one benchmark, pixels


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    start = time.process_time()
    many = options.repeats
    tables = {
        "planted": planted(),
        "kid": kid(many),
        "means": means(5 * many),
        "power": power(5 * many),
        "ties": ties(many // 2),
        "distances": distances(many),
        "coverage": coverage(many),
        "false signs": false_signs(2 * many),
        "few": few(many // 2),
        "neighbours": neighbours(many // 10),
    }
    found: dict[str, Any] = {"repeats": many, "machine": f"{platform.machine()}, one thread, processor time"}
    for name, rows in tables.items():
        found[name] = []
        for row in rows:
            if not found[name]:
                print(f"\n{name}\n" + "".join(f"{key:>14}" for key in row))
            print(
                "".join(
                    f"{value:>14.4g}" if isinstance(value, float) else f"{value!s:>14}"
                    for value in row.values()
                ),
                flush=True,
            )
            found[name].append(row)
    seconds = time.process_time() - start
    print(f"\n{seconds:.0f} s of one processor")
    if options.out:
        found["seconds"] = round(seconds)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def planted() -> Iterator[dict[str, Any]]:
    """Real images with growing noise: the order is known."""
    scores = {
        name: [scored(name, np.arange(PROMPTS), noise, 0) for noise in NOISE]
        for name in ("edge_f1", "fd (mini)", "kd (mini)")
    }
    for name, found in scores.items():
        better = measures.metric(name).higher_is_better
        for noise, score, (first, last) in zip(
            NOISE, found, ranks(found, higher_is_better=better), strict=True
        ):
            yield {
                "measure": name,
                "noise": noise,
                "n": PROMPTS,
                "value": score.value,
                "error": score.error or 0.0,
                "rank": f"{first}-{last}",
            }


def ties(repeats: int) -> Iterator[dict[str, Any]]:
    """Two equal models on prompts drawn anew: how often they are told apart."""
    rng = np.random.default_rng(1)
    for name in ("edge_f1", "fd (mini)", "kd (mini)"):
        tied = 0
        for _ in range(repeats):
            prompts = rng.permutation(POOL)[:PROMPTS]
            swapped = rng.integers(0, 2, PROMPTS)
            tied += equal(
                [scored(name, prompts, NOISE[2], swapped), scored(name, prompts, NOISE[2], 1 - swapped)]
            )
        yield {"measure": name, "of": "scenes", "d": 64, "n": PROMPTS, "tied %": 100 * tied / repeats}
    for d, n in ((16, 200), (64, 640)):
        counted: dict[str, int] = {}
        for _ in range(repeats):
            real = rng.normal(size=(n, d))
            pair = [all_of(gaussian(rng, real, 0.8), np.arange(n), real) for _ in range(2)]
            for name in pair[0]:
                counted[name] = counted.get(name, 0) + equal([one[name] for one in pair])
        yield from (
            {"measure": name, "of": "Gaussians", "d": d, "n": n, "tied %": 100 * tied / repeats}
            for name, tied in counted.items()
        )


def equal(scores: list[Replicated]) -> bool:
    return ranks(scores, higher_is_better=False) == [(1, 2), (1, 2)]


def distances(repeats: int) -> Iterator[dict[str, Any]]:
    """Jackknife intervals; "naive" leaves out blocks of samples, as if those of one prompt had nothing to do
    with each other.
    """
    rng = np.random.default_rng(2)
    for d, n, seeds, follows in (
        (16, 200, 1, 0.8),
        (16, 1000, 1, 0.8),
        (16, 5000, 1, 0.8),
        (64, 200, 1, 0.8),
        (64, 1000, 1, 0.8),
        (64, 5000, 1, 0.8),
        (16, 1000, 1, 0.0),
        (64, 1000, 1, 0.0),
        (16, 200, 4, 0.8),
    ):
        prompt = np.repeat(np.arange(n), seeds)
        ways: dict[str, list[dict[str, Replicated]]] = {"prompts": [], "naive": []}
        for number in range(repeats):
            real = rng.normal(size=(n, d))
            made = gaussian(rng, real[prompt], follows)
            quick = n < 5000 or number < repeats // 10
            ways["prompts"].append(all_of(made, prompt, real, NAMES if quick else NAMES[:2]))
            if seeds > 1:
                ways["naive"].append(all_of(made, np.arange(n * seeds), real[prompt]))
        for way, found in ways.items():
            yield from covered(found, {"d": d, "n": n, "seeds": seeds, "follows": follows, "blocks": way})


def kid(repeats: int) -> Iterator[dict[str, Any]]:
    """The kernel distance as published, which takes each made image and the real one of its prompt for
    independent draws.
    """
    rng = np.random.default_rng(6)
    for d, seeds, follows in ((16, 1, 0.0), (16, 1, 0.8), (64, 1, 0.8), (16, 4, 0.8)):
        prompt, values = np.repeat(np.arange(PROMPTS), seeds), []
        for _ in range(repeats):
            real = rng.normal(size=(PROMPTS, d))
            values.append(kernel_distance_full(gaussian(rng, real[prompt], follows), real))
        yield {
            "measure": "KID",
            "d": d,
            "n": PROMPTS,
            "seeds": seeds,
            "follows": follows,
            "bias %": percent(float(np.mean(values)), kernel_truth(d)),
        }


def covered(repeats: list[dict[str, Replicated]], facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in repeats[0] if repeats else ():
        found = [one[name] for one in repeats if name in one]
        values = np.array([one.value for one in found])
        truth = kernel_truth(facts["d"]) if name == "kd" else frechet_truth(facts["d"])
        low, high = np.array([one.interval for one in found]).T
        yield {
            "measure": name,
            **facts,
            "repeats": len(found),
            "bias %": percent(values.mean(), truth),
            "error/sd": float(np.mean([one.error for one in found]) / values.std(ddof=1)),
            "holds mean %": 100 * float(((low <= values.mean()) & (values.mean() <= high)).mean()),
            "holds true %": 100 * float(((low <= truth) & (truth <= high)).mean()),
        }


def percent(value: float, truth: float) -> float:
    return float(100 * (value / truth - 1))


def means(repeats: int) -> Iterator[dict[str, Any]]:
    """Skewed scores of mean 1; half of the variance is the prompt's."""
    rng = np.random.default_rng(3)
    for n, seeds in ((20, 4), (200, 1), (200, 4)):
        prompt = np.repeat(np.arange(n), seeds)
        together, apart = bootstrap_weights(n), bootstrap_weights(n * seeds)
        hits = np.zeros(2)
        for _ in range(repeats):
            values = (rng.exponential(1.0, n)[prompt] + rng.exponential(1.0, n * seeds)) / 2
            for k, score in enumerate(
                (of_means(values, prompt, together), of_means(values, np.arange(n * seeds), apart))
            ):
                low, high = score.interval or (0.0, 0.0)
                hits[k] += low <= 1 <= high
        clustered, naive = 100 * hits / repeats
        yield {
            "prompts": n,
            "seeds": seeds,
            "repeats": repeats,
            "clustered %": float(clustered),
            "naive %": float(naive),
        }


def power(repeats: int) -> Iterator[dict[str, Any]]:
    """Two models that lie as far apart as is called detectable: how often their difference is found."""
    rng = np.random.default_rng(4)
    for n in (20, 200):
        drawn = bootstrap_weights(n)

        def score(prompts: Floats, gain: float, drawn: Any = drawn) -> Replicated:
            return of_means(prompts + gain + rng.normal(0, 0.5, len(prompts)), np.arange(len(prompts)), drawn)

        told = float(
            np.median(
                [
                    detectable([score(prompts, 0), score(prompts, 0)]) or 0
                    for prompts in rng.normal(size=(200, n))
                ]
            )
        )
        found = sum(
            significant(score(prompts, told), score(prompts, 0)) for prompts in rng.normal(size=(repeats, n))
        )
        yield {"measure": "mean", "n": n, "detectable": told, "found %": 100 * found / repeats}
    d, n = 16, 1000

    def far(real: Floats, shift: float) -> Replicated:
        return all_of(gaussian(rng, real, 0.8, shift), np.arange(n), real, ("fd",))["fd"]

    told = float(
        np.median(
            [detectable([far(one, SHIFT), far(one, SHIFT)]) or 0 for one in rng.normal(size=(50, n, d))]
        )
    )
    farther = float(np.sqrt(SHIFT**2 + told / d))  # a shift whose distance is greater by what is detectable
    found = sum(
        significant(far(one, farther), far(one, SHIFT)) for one in rng.normal(size=(repeats // 5, n, d))
    )
    yield {"measure": "fd", "n": n, "detectable": told, "found %": 500 * found / repeats}


def significant(a: Replicated, b: Replicated) -> bool:
    p = difference(a, b).p
    return p is not None and p < 0.05


def scale(d: int) -> Floats:
    return np.linspace(0.5, 1.5, d)


# [n, d]
def gaussian(
    rng: np.random.Generator, real: Floats, follows: float, shift: float = SHIFT
) -> NDArray[np.float32]:
    """What a model makes of the prompts that these are the real images of; N(shift, scale²)
    over all prompts.
    """
    noise = rng.normal(size=real.shape)
    return (shift + scale(real.shape[1]) * (follows * real + np.sqrt(1 - follows**2) * noise)).astype(
        np.float32
    )


def all_of(
    made: NDArray[np.float32], prompt: NDArray[np.int64], real: Floats, names: tuple[str, ...] = NAMES
) -> dict[str, Replicated]:
    """As the leaderboard has them, but the line in 1/n from any n on; `real`: of each prompt."""
    known = Images(real.astype(np.float32), np.arange(len(real)))
    ways = {metric.name.split()[0]: it for metric, it in measures.distances("g", *known, len(real))}
    ways["fd_infinity"] = lambda found, prompt, block: frechet_infinity(Images(found, prompt), known, block)
    return {name: of_distance(ways[name], made, prompt, len(real)) for name in names}


def frechet_truth(d: int) -> float:
    return float(d * SHIFT**2 + ((scale(d) - 1) ** 2).sum())


def kernel_truth(d: int) -> float:
    """Means of (x·y/d + 1)³ over pairs of the made, of the real, and between."""
    zero, one, mean, variance = np.zeros(d), np.ones(d), np.full(d, SHIFT), scale(d) ** 2
    return (
        _cube(mean, variance, mean, variance)
        + _cube(zero, one, zero, one)
        - 2 * _cube(mean, variance, zero, one)
    )


def _cube(mean: Floats, variance: Floats, of_other: Floats, others: Floats) -> float:
    """x·y/d + 1 is, given y, Gaussian; its level and spread are polynomials of y."""
    d = len(mean)
    level = 1 + mean @ of_other / d
    moved = mean @ (others * mean) / d**2  # variance of the level
    spread = (variance * (of_other**2 + others)).sum() / d**2
    together = 2 * (mean * variance * others * of_other).sum() / d**3  # covariance of level and spread
    return float(level**3 + 3 * level * moved + 3 * (level * spread + together))


def scored(name: str, prompts: NDArray[np.int64], noise: int, seed: NDArray[np.int64] | int) -> Replicated:
    """Of scenes with noise of one seed, or of the seed that each prompt has."""
    features, edges = harmed(noise)
    if name == "edge_f1":
        return of_means(edges[seed, prompts], np.arange(len(prompts)), _draws())
    real = pictures_and_features()[1][prompts]
    distance = next(
        it
        for metric, it in measures.distances("mini", real, np.arange(len(prompts)), len(prompts))
        if metric.name == name
    )
    return of_distance(distance, features[seed, prompts], np.arange(len(prompts)), len(prompts))


@cache
def _draws() -> NDArray[np.float32]:
    return bootstrap_weights(PROMPTS)


@cache
def pictures_and_features() -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    pictures = [render(SEED, index, SIDE).image for index in range(POOL)]
    return pictures, extractors.load("mini")(pictures)


@cache
def harmed(noise: int) -> tuple[NDArray[np.float32], Floats]:  # [seeds, POOL, d], [seeds, POOL]
    """Features and edge F1 of every scene with noise of two seeds."""
    pictures, _ = pictures_and_features()
    net, features, edges = extractors.load("mini"), [], []
    for seed in (0, 1):
        made = [noisy(picture, noise, [seed, index]) for index, picture in enumerate(pictures)]
        features.append(net(made))
        edges.append(
            [
                compare("edges", canny(a), canny(b)).values["edge_f1"]
                for a, b in zip(pictures, made, strict=True)
            ]
        )
    return np.array(features), np.array(edges)


def noisy(picture: NDArray[np.uint8], noise: int, seed: list[int]) -> NDArray[np.uint8]:
    return (
        (picture + np.random.default_rng(seed).normal(0, noise, picture.shape))
        .clip(0, 255)
        .round()
        .astype(np.uint8)
    )


def canny(picture: NDArray[np.uint8]) -> Map:
    return Map(np.asarray(cv2.Canny(picture, 100, 200)), {})


if __name__ == "__main__":
    main()
