"""How well a generated image keeps its condition: the map read again from it against the map it was made from, a measure per kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.statistics import Clusters, bootstrap

EdgeMap = np.ndarray                       # bool HW, or uint8 HW of 0 and one other value; non-zero = edge


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What never varies about a measure; `worst` is the score of a sample whose map could not be read again."""

    name: str
    version: str                           # part of a score's identity: raise it when the definition changes
    definition: str                        # one sentence for the report
    higher_is_better: bool
    worst: float
    best: float


@dataclass(frozen=True, kw_only=True)
class EdgeCounts:
    """Sufficient statistics of precision, recall and F1; counts of many pairs may be added up and then scored."""

    matched: int                           # pairs of a true and a made pixel, no pixel in two pairs
    n_truth: int                           # edge pixels of the condition
    n_made: int                            # edge pixels read from the generated image

    def __add__(self, other: "EdgeCounts") -> "EdgeCounts":
        return EdgeCounts(matched=self.matched + other.matched, n_truth=self.n_truth + other.n_truth, n_made=self.n_made + other.n_made)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number that knows where it came from."""

    metric: str
    metric_version: str
    value: float                           # mean over the n samples
    low: float | None                      # 95 % interval over clusters; None = fewer than two clusters
    high: float | None
    n: int                                 # samples asked for, those that failed included
    n_failed: int                          # samples that count as the worst value because nothing could be read again
    higher_is_better: bool
    system: str                            # a run's name, or a baseline: "no_control", "shuffled_condition"
    condition: str
    benchmark: str                         # fingerprint of the image ids, split, sampler, steps and guidance
    checkpoint: str | None                 # fingerprint of the weights; None = the base model alone
    detector: str                          # fingerprint of the detector that read the maps, both times
    seeds: tuple[int, ...]                 # seeds of the samples of one prompt


def edge_counts(truth: EdgeMap, made: EdgeMap, tolerance: float = 0.0) -> EdgeCounts:
    """As many one-to-one pairs of edge pixels as there can be within a Euclidean `tolerance` in pixels: 1.0 reaches the four neighbours.

    Martin, Fowlkes and Malik (PAMI 2004) match boundaries one to one too, by least cost; a distance transform counts thick or doubled
    edges more than once, which raises the score of a shuffled condition.
    """
    true, found = _edges(truth, "truth"), _edges(made, "made")
    if true.shape != found.shape:
        raise ValueError(f"maps to compare must have one size, found {true.shape} and {found.shape} (height, width)")
    if tolerance < 0:
        raise ValueError(f"tolerance is a distance in pixels and can't be negative, found {tolerance}")
    # centres lie on integers: within less than a pixel there is only the same pixel
    n_truth, n_made = int(true.sum()), int(found.sum())
    if tolerance < 1 or not n_truth or not n_made:
        return EdgeCounts(matched=int((true & found).sum()), n_truth=n_truth, n_made=n_made)
    return EdgeCounts(matched=_most_pairs(true, found, tolerance), n_truth=n_truth, n_made=n_made)


def f1(counts: EdgeCounts) -> float:
    """Harmonic mean of precision and recall, in 0..1; two empty maps agree (1), one empty map finds nothing (0)."""
    edges = counts.n_truth + counts.n_made
    return 2 * counts.matched / edges if edges else 1.0


def edge_fidelity(truth: EdgeMap, made: EdgeMap) -> dict[str, float]:
    """Both edge scores of one sample: published tables hold the exact one, which a shift of one pixel costs 70 %; the other forgives it."""
    return {"edge_f1": f1(edge_counts(truth, made)), "edge_f1_1px": f1(edge_counts(truth, made, 1.0))}


METRICS: dict[str, Metric] = {metric.name: metric for metric in (
    Metric(name="edge_f1", version="1", higher_is_better=True, worst=0.0, best=1.0,
           definition="F1 of edge pixels that coincide exactly"),
    Metric(name="edge_f1_1px", version="1", higher_is_better=True, worst=0.0, best=1.0,
           definition="F1 of edge pixels matched one to one within one pixel (Euclidean), as many pairs as possible"),
)}

# kind of map (annotate.conditions) -> scores of one sample; the keys are names in METRICS
FIDELITY: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {"edges": edge_fidelity}
NAMES: dict[str, tuple[str, ...]] = {"edges": ("edge_f1", "edge_f1_1px")}


def sample_fidelity(
    kind: str,                             # kind of map: a key of FIDELITY
    truth: np.ndarray,                     # the map the image was generated from, as stored (annotate.maps)
    made: np.ndarray | None,               # the map read from the generated image; None = the detector failed
) -> dict[str, float]:
    """Scores of one sample by metric name; one that can't be read again scores the worst, so that failing never helps a system."""
    if kind not in FIDELITY:
        raise ValueError(f"no fidelity measure for maps of kind '{kind}' yet: scored so far are {', '.join(sorted(FIDELITY))}")
    if made is None:
        return {name: METRICS[name].worst for name in NAMES[kind]}
    return FIDELITY[kind](truth, made)


def summarise(
    metric: str,                           # a key of METRICS
    values: Sequence[float | None],        # [n] per-sample scores; None = failed, scored as the worst and counted
    clusters: Clusters,                    # [n] prompt or image id of each sample
    *, system: str, condition: str, benchmark: str, checkpoint: str | None, detector: str, seeds: tuple[int, ...],
) -> Score:
    """The mean over samples with its clustered 95 % interval, and everything needed to say what the number is of."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric '{metric}': the metrics are {', '.join(sorted(METRICS))}")
    facts = METRICS[metric]
    estimate = bootstrap([facts.worst if value is None else value for value in values], clusters)
    return Score(
        metric=metric, metric_version=facts.version, value=estimate.mean, low=estimate.low, high=estimate.high,
        n=len(values), n_failed=sum(value is None for value in values), higher_is_better=facts.higher_is_better,
        system=system, condition=condition, benchmark=benchmark, checkpoint=checkpoint, detector=detector, seeds=seeds,
    )


def _edges(edge_map: EdgeMap, name: str) -> np.ndarray:
    """The map as bool HW; a map with grey levels is refused, because any threshold chosen here would be a guess."""
    if edge_map.ndim != 2 or edge_map.dtype not in (np.dtype(bool), np.dtype(np.uint8)):
        raise ValueError(f"{name} must be an edge map, bool or uint8 [height, width], found {edge_map.dtype} {list(edge_map.shape)}")
    edges = edge_map != 0
    if edge_map.size and (edge_map[edges] != edge_map.max()).any():
        raise ValueError(f"{name} must be a binary edge map, found grey levels: threshold it where it is made")
    return edges


def _most_pairs(true: np.ndarray, found: np.ndarray, tolerance: float) -> int:
    """Size of a maximum matching between the pixels of two bool HW maps, found as a flow source -> true -> near found -> sink.

    SciPy's maximum_bipartite_matching gives the same number but takes exponential time on thick edges (scipy issue 26147); Dinic's
    algorithm does not.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    reach = int(np.floor(tolerance))
    n, m = int(true.sum()), int(found.sum())
    numbers = np.pad(np.full(found.shape, -1, dtype=np.int32), reach, constant_values=-1)
    numbers[reach:reach + found.shape[0], reach:reach + found.shape[1]][found] = np.arange(n + 1, n + m + 1)
    y, x = np.nonzero(true)
    steps = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1) if dy * dy + dx * dx <= tolerance * tolerance]
    steps.sort(key=lambda step: step[0] ** 2 + step[1] ** 2)         # nearest first, so that the search starts from a good matching
    near = np.stack([numbers[y + reach + dy, x + reach + dx] for dy, dx in steps], axis=1)        # int32 [n, steps], -1 = no pixel there
    exists = near >= 0
    sink = n + m + 1
    to = np.concatenate([np.arange(1, n + 1), near[exists], np.full(m, sink)]).astype(np.int32)
    ends = np.cumsum(np.concatenate([[0, n], exists.sum(1), np.ones(m, dtype=np.int64), [0]])).astype(np.int32)
    graph = csr_array((np.ones(len(to), dtype=np.int32), to, ends), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph, 0, sink, method="dinic").flow_value)
