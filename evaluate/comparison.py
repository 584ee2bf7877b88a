"""What a measure is, and what comparing two maps gives; the rooms of the kinds (evaluate/edges.py and so on)
fill these in.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# sufficient statistics of one sample: small int and float arrays, at least one axis each; a score of a whole
# set also finds the number of the sample's prompt under PROMPT
Counts = Mapping[str, np.ndarray]
PROMPT = "prompt"
Statistic = Callable[[NDArray[np.float64]], float]  # weights [n] of the samples -> a score of the whole set
Prepare = Callable[[Sequence[Counts]], Statistic]


class Map(NamedTuple):
    """A condition map as it is stored: array and meta of annotate.maps.RawMap, which says what each kind
    holds.
    """

    array: np.ndarray
    meta: Mapping[str, Any]


class Comparison(NamedTuple):
    """What is known of one sample: its own scores, and what the scores of the whole set are made of."""

    values: dict[str, float]  # by metric of level "sample"; finite
    counts: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What never varies about a measure; `worst` is the score of a sample whose map could not
    be read again.
    """

    name: str
    title: str
    version: str = "1"  # part of a score's identity: raise it when the definition changes
    definition: str  # one sentence for the report
    kind: str = ""  # of map; empty = not a measure of maps
    unit: str = ""  # empty = a share or an index without a unit
    higher_is_better: bool = True
    worst: float = 0.0
    best: float = 1.0
    # the least and the most that a score can be; None = from the worst to the best
    limits: tuple[float, float] | None = None
    column: Literal["corrected", "paper", "diagnostic"] = "corrected"
    primary: bool = False  # the one that says how well a condition of this kind is kept
    level: Literal["sample", "set"] = "sample"  # set: not a mean over samples, see Statistic
    quirks: str = ""  # paper: what the published code does that its paper doesn't say
    dimensions: int | None = None  # of the features a distance is between
    groups: int = 1  # that the images are measured in, each on its own

    @property
    def possible(self) -> tuple[float, float]:
        """What an interval must not leave."""
        return self.limits or (min(self.worst, self.best), max(self.worst, self.best))


def worst(metrics: Iterable[Metric]) -> dict[str, float]:
    """Of every metric of samples: a re-reading that found nothing is counted, so that failing never helps a
    system.
    """
    return {metric.name: metric.worst for metric in metrics if metric.level == "sample"}


def same_size(truth: np.ndarray, reread: np.ndarray) -> None:
    """Refuse maps that can't be compared pixel by pixel. ValueError: the two differ in size."""
    if truth.shape != reread.shape:
        raise ValueError(
            f"maps to compare must have one size, found {truth.shape} and {reread.shape} (height, width)"
        )
