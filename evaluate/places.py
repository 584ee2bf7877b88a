"""Which differences are beyond chance among all that a reader sees at once, and which places systems may
hold by them.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evaluate.replicates import LEVEL, Replicated, chances


def beyond_chance(
    chances: Sequence[float | None],  # p of each test; None = too few prompts for one
) -> list[bool]:
    """Which tests of one family tell a difference, by Holm's correction: in 95 of 100 families not one of
    them is false.
    """
    tested = [k for k, p in enumerate(chances) if p is not None]
    found = [False] * len(chances)
    for place, k in enumerate(sorted(tested, key=lambda k: chances[k] or 0.0)):
        if (chances[k] or 0.0) > (1 - LEVEL) / (len(tested) - place):
            break
        found[k] = True
    return found


class Table(NamedTuple):
    """Scores of the systems of one benchmark by one measure."""

    scores: Sequence[Replicated]
    higher_is_better: bool


Places = tuple[int, int]  # the best and the worst place that the data allow, from 1


def ranks(scores: Sequence[Replicated], *, higher_is_better: bool) -> list[Places]:
    """Of a table that stands alone."""
    return ranks_of([Table(scores, higher_is_better)])[0]


def ranks_of(tables: Sequence[Table]) -> list[list[Places]]:
    """A place is lost only to those that are better beyond chance, where the pairs of all the tables are one
    family: whoever reads thirteen of them would else find a difference where there is none.
    """
    found = [chances(table.scores) for table in tables]
    told = iter(beyond_chance([None if math.isnan(p) else float(p) for table in found for p in table]))
    better = [np.zeros((len(table.scores),) * 2, bool) for table in tables]
    for table, beats in zip(tables, better, strict=True):
        for i, j in itertools.combinations(range(len(table.scores)), 2):
            if next(told):
                first = (table.scores[i].value > table.scores[j].value) == table.higher_is_better
                beats[(i, j) if first else (j, i)] = True
    return [
        [(1 + int(beats[:, k].sum()), len(beats) - int(beats[k].sum())) for k in range(len(beats))]
        for beats in better
    ]
