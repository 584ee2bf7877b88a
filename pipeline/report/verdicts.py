"""The signs of a table: which of all that it compares is beyond chance."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from evaluate.places import beyond_chance
from evaluate.replicates import Replicated, bootstrap_weights, difference, of_means

Measured = Mapping[str, Any]  # of the held-out pairs, as train.held_out.summary tells it in the log


class Compared(NamedTuple):
    """What was trained against something else."""

    better: bool
    p: float | None  # two-sided, of "there is no difference"; None = too few for a test


def signs(
    compared: Mapping[tuple[int, str], Compared],  # by row and column
) -> dict[tuple[int, str], str]:
    """Of what it was compared with: < worse, > better; '' = that may be chance.

    All of a table are one family: thirteen conditions at 5 % each would give two equal systems a sign in
    every other table.
    """
    told = beyond_chance([it.p for it in compared.values()])
    return {
        key: ("<" if it.better else ">") if beyond else ""
        for (key, it), beyond in zip(compared.items(), told, strict=True)
    }


def against(trained: Replicated, other: Replicated, *, higher_is_better: bool) -> Compared:
    """Image by image."""
    between = difference(trained, other)
    return Compared((between.value > 0) == higher_is_better, between.p)


def gained(first: Measured, last: Measured) -> Compared:
    """Against its own start, pair by pair in shares of the loss, which differs a hundredfold between
    timesteps.
    """
    pairs = [
        (one, other)
        for one, other in zip(first.get("losses", ()), last.get("losses", ()), strict=False)
        if one and other is not None
    ]
    if not pairs:
        return Compared(False, None)
    start, end = np.array(pairs).T
    count = len(pairs)
    saved, nothing = (
        of_means(values, np.arange(count), bootstrap_weights(count))
        for values in (1 - end / start, np.zeros(count))
    )
    return against(saved, nothing, higher_is_better=True)


def followed(last: Measured) -> Compared:
    """Its own hints against others': what they save of the loss."""
    z = last.get("control_z")
    return Compared(False, None) if z is None else Compared(z > 0, 2 * NormalDist().cdf(-abs(z)))
