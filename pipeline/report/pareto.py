"""Fidelity against realism, with better always up and to the right; geometry in percent of the plot's box."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.leaderboard_data import Measure, Score
from pipeline.report.plots import Axis, axis

DISTANCES = ("fd", "fid", "kd", "kid")  # first words of the names of measures that compare sets of images


@dataclass(frozen=True, kw_only=True)
class Point:
    model: str
    fidelity: float
    distance: float
    x: float  # percent from the left
    y: float  # percent from the bottom
    seconds: float | None  # per image
    front: bool  # no model is better in both
    baseline: bool


@dataclass(frozen=True, kw_only=True)
class Pareto:
    fidelity: Measure
    distance: Measure
    digits: tuple[int, int]  # of their values, after the point
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    points: tuple[Point, ...]  # models by fidelity, best first, then baselines
    # x1 y1 x2 y2 of the front's stairs, y from the bottom
    steps: tuple[tuple[float, float, float, float], ...]


def pareto(
    fidelity: Measure,
    metrics: Mapping[Measure, int],  # digits of each after the point
    scores: Sequence[Score],  # of one condition
    seconds: Mapping[str, float],  # model -> per image
) -> Pareto | None:
    """Of the models and of `no_control`; None = no model has both a fidelity and a distance."""
    shown = [
        score for score in scores if score.arm in ("control", "no_control") and math.isfinite(score.value)
    ]
    distance = _distance(list(metrics), [score for score in shown if score.arm == "control"])
    if distance is None:
        return None
    values: dict[str, dict[tuple[str, str], float]] = {fidelity.name: {}, distance.name: {}}
    for score in shown:
        if score.metric in values:
            values[score.metric][score.model, score.arm] = score.value
    keys = [key for key in values[fidelity.name] if key in values[distance.name]]
    if not any(arm == "control" for _, arm in keys):
        return None
    y, x = (_axis([values[metric.name][key] for key in keys]) for metric in (fidelity, distance))
    spots = {
        key: (
            _place(x, distance, values[distance.name][key]),
            _place(y, fidelity, values[fidelity.name][key]),
        )
        for key in keys
    }
    front = _front({key: spot for key, spot in spots.items() if key[1] == "control"})
    order = sorted(keys, key=lambda key: (key[1] != "control", -spots[key][1]))
    return Pareto(
        fidelity=fidelity,
        distance=distance,
        digits=(metrics[fidelity], metrics[distance]),
        steps=_stairs([spots[key] for key in front]),
        x_ticks=tuple((_flipped(place, distance), label) for place, label in x.ticks),
        y_ticks=tuple((_flipped(place, fidelity), label) for place, label in y.ticks),
        points=tuple(
            Point(
                model=key[0],
                fidelity=values[fidelity.name][key],
                distance=values[distance.name][key],
                x=spots[key][0],
                y=spots[key][1],
                seconds=seconds.get(key[0]),
                front=key in front,
                baseline=key[1] != "control",
            )
            for key in order
        ),
    )


def _distance(metrics: Sequence[Measure], scores: Sequence[Score]) -> Measure | None:
    """The first of those with the fewest marks: a biased Fréchet distance gives way to the kernel distance
    beside it, also where both are marked for the images that a model lacks.
    """
    scored = {score.metric for score in scores}
    marks = Counter(score.metric for score in scores for _ in score.marks)
    measured = [
        metric
        for word in DISTANCES
        for metric in metrics
        if metric.name.split(" ")[0].lower() == word and metric.name in scored
    ]
    return min(measured, key=lambda metric: marks[metric.name], default=None)


def _axis(values: Sequence[float]) -> Axis:
    return axis(min(values), max(values), ticks=4)


def _place(across: Axis, metric: Measure, value: float) -> float:
    return _flipped(across.place(value), metric)


def _flipped(place: float, metric: Measure) -> float:
    return place if metric.higher_is_better else round(100 - place, 3)


def _front(spots: Mapping[tuple[str, str], tuple[float, float]]) -> list[tuple[str, str]]:
    """Keys that no other beats in one way without losing in the other, from the left."""
    best = [
        key
        for key, (x, y) in spots.items()
        if not any(other[0] >= x and other[1] >= y and other != (x, y) for other in spots.values())
    ]
    return sorted(best, key=lambda key: spots[key])


def _stairs(spots: Sequence[tuple[float, float]]) -> tuple[tuple[float, float, float, float], ...]:
    steps, left = [], 0.0
    for number, (x, y) in enumerate(spots):
        steps.append((left, y, x, y))
        below = spots[number + 1][1] if number + 1 < len(spots) else 0.0
        steps.append((x, y, x, below))
        left = x
    return tuple(steps)
