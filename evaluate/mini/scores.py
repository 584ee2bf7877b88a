"""How often the mini scorer tells the right caption of a held-out scene from others, and the right scene of a
caption.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluate.mini.clip import MiniClip

AMONG = 32  # captions or pictures, the right one with 31 of other scenes
BEFORE = "caption before one with"  # a change: half of them are, by chance
Z = 1.959964  # of a 95 % interval


class Proportion(NamedTuple):
    """Of n scenes; Wilson's interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, hits: NDArray[np.bool_]) -> "Proportion":
        n, p = len(hits), float(hits.mean())
        centre, half = (
            (p + Z**2 / (2 * n)) / (1 + Z**2 / n),
            Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n),
        )
        return cls(p, max(0.0, centre - half), min(1.0, centre + half), n)


def measure(
    scorer: MiniClip,
    images: NDArray[np.uint8],  # [N, s, s, 3]
    captions: Sequence[str],
    # kind of change -> for each scene its caption with one such change; None = it has none
    false: Mapping[str, Sequence[str | None]],
    *,
    seed: int = 0,
) -> dict[str, Proportion]:
    """A tie is no hit: a scorer that tells nothing apart has none."""
    seen, said = scorer.images(images), scorer.texts(captions)
    likeness = seen @ said.T
    others = drawn(captions, seed)
    own, rows = likeness.diagonal(), np.arange(len(captions))[:, None]
    out = {
        f"caption first of {AMONG}": Proportion.of(own > likeness[rows, others].max(1)),
        f"picture first of {AMONG}": Proportion.of(own > likeness[others, rows].max(1)),
    }
    for kind, texts in false.items():
        which = [row for row, text in enumerate(texts) if text is not None]
        if which:
            wrong = (seen[which] * scorer.texts([str(texts[row]) for row in which])).sum(1)
            out[f"{BEFORE} {kind}"] = Proportion.of((seen[which] * said[which]).sum(1) > wrong)
    return out


# [N, 31]: rows of other scenes, whose captions are not the same
def drawn(captions: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Drawn for each scene alone; ValueError where there are too few others."""
    out = np.empty((len(captions), AMONG - 1), np.int64)
    texts = np.array(captions)
    for row, caption in enumerate(captions):
        others = np.flatnonzero(texts != caption)
        if len(others) < AMONG - 1:
            raise ValueError(
                f"scene {row} can be told from {len(others)} others only, {AMONG - 1} are needed: hold out"
                " more scenes"
            )
        out[row] = np.random.default_rng([seed, row]).choice(others, AMONG - 1, replace=False)
    return out
