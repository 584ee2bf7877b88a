"""How well a generated image keeps its condition: the map read again from it against the map it was made
from, measures for each kind.

Columns: "corrected" is what we stand for, "paper" what the literature's code computes, bug for bug where it
has bugs, "diagnostic" the rest.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from evaluate import depth, edges, labels, lines, normals, people, soft_edges
from evaluate.comparison import Comparison, Counts, Map, Metric, Prepare, Statistic

__all__ = [
    "METRICS",
    "NAMES",
    "RETIRED",
    "Comparison",
    "Counts",
    "Map",
    "Metric",
    "compare",
    "pooled",
    "prepared",
]

# kind of comparison (Condition.compared_as) -> where its measures are
_ROOMS = {
    "edges": edges,
    "soft_edges": soft_edges,
    "lines": lines,
    "people": people,
    "labels": labels,
    "depth": depth,
    "normals": normals,
}
_COMPARE: dict[str, Callable[[Map, Map | None], Comparison]] = {
    **{kind: room.compare for kind, room in _ROOMS.items()},
    "wide_edges": partial(edges.compare, wide=True),
}
_STATISTICS: dict[str, Prepare] = {
    name: prepare for room in _ROOMS.values() for name, prepare in room.STATISTICS.items()
}

METRICS: dict[str, Metric] = {metric.name: metric for room in _ROOMS.values() for metric in room.METRICS}
NAMES: dict[str, tuple[str, ...]] = {
    kind: tuple(metric.name for metric in room.METRICS) for kind, room in _ROOMS.items()
}
NAMES["wide_edges"] = NAMES["edges"]
# Measures that were taken out, by kind: name -> last version. Scores stored with them stay valid, so a
# score's identity (pipeline/benchmark/systems.py) goes on naming them; they are neither computed nor shown.
RETIRED: dict[str, dict[str, str]] = {"edges": {"edge_ms_ssim_uint8": "1"}}
# Measures that came later, of counts that were stored before: no sample need be read again for them.
DERIVED = ("edge_f1_prompt",)
# Measures whose newer version says of a kind what an older one said: its stored scores stay valid, so their
# identity goes on naming the older one.
UNCHANGED: dict[str, dict[str, str]] = {
    "edges": dict.fromkeys((name for name in edges.MATCHED if name not in DERIVED), "1")
}


def versions(kind: str) -> dict[str, str]:
    """Of the measures of a kind of comparison, as a score's identity has them."""
    own = {name: METRICS[name].version for name in NAMES[kind] if name not in DERIVED}
    return own | UNCHANGED.get(kind, {}) | RETIRED.get(kind, {})


def retired(name: str) -> bool:
    """Whether a stored score is of a measure that is no longer shown."""
    return any(name in names for names in RETIRED.values())


def compare(
    kind: str,  # of comparison
    truth: Map,  # the map the image was generated from
    reread: Map | None,  # the map read from the generated image; None = there is none
) -> Comparison:
    """One sample; what can't be read again, or is empty where the condition is not, scores the worst and
    stays in the set.

    ValueError: no measure is known for maps of this kind, or the two maps can't be compared.
    """
    if kind not in _COMPARE:
        raise ValueError(
            f"no fidelity measure for maps of kind '{kind}': there are measures for {', '.join(_COMPARE)}"
        )
    return _COMPARE[kind](truth, reread)


def as_matched(kind: str, metric: str, given: Map) -> Map:
    """What a measure of this kind sees of a map."""
    if kind == "wide_edges" and metric in edges.MATCHED:
        return given._replace(array=edges.thinned(edges.edges(given.array, "map")))
    return given


def prepared(
    metric: str,  # of level "set"
    counts: Sequence[Counts],  # of each sample, in the order of the benchmark
) -> Statistic:
    """The score of the set as a function of the samples' weights, for many draws of one set.

    ValueError: the metric is no score of a whole set.
    """
    if metric not in _STATISTICS:
        raise ValueError(f"'{metric}' is no score of a whole set: those are {', '.join(_STATISTICS)}")
    return _STATISTICS[metric](counts)


def pooled(
    metric: str,  # of level "set"
    counts: Sequence[Counts],
    weights: NDArray[np.float64] | None = None,  # [n] how often each sample counts; None = once
) -> float:
    """The score of the set."""
    return prepared(metric, counts)(
        np.ones(len(counts)) if weights is None else np.asarray(weights, np.float64)
    )
