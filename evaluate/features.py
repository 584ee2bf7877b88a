"""Features of sets of images as the distances take them: checked, paired, in parts that fit into memory."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]  # [n, d], a row for each image
# [prompts]: number of the block that a prompt is left out with, from 0 without gaps
Block = NDArray[np.integer]

ROWS = 256  # rows of a matrix of pairs at a time: bounds memory, changes no result beyond rounding


class Images(NamedTuple):
    """Features with what ties them together: those of one prompt, made or real, are left out together and are
    no independent draws.
    """

    features: Features
    prompt: NDArray[np.integer]  # [n]: number of each row's prompt


def parts(rows: Features) -> Iterator[NDArray[np.float64]]:
    return (part for _, part in numbered_parts(rows))


def numbered_parts(rows: Features) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each part with the number of its first row."""
    return ((start, rows[start : start + ROWS].astype(np.float64)) for start in range(0, len(rows), ROWS))


def checked_pair(x: Features, y: Features) -> tuple[Features, Features]:
    """Both sets, as `checked` gives them.

    ValueError: they differ in width, one has fewer than two samples, or `checked` refuses it.
    """
    first, second = checked(x), checked(y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features to compare must have one width, found {first.shape[1]} and {second.shape[1]}"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"a distance of sets needs at least two samples on each side, found {len(first)} and"
            f" {len(second)}"
        )
    return first, second


def block_count(block: Block) -> int:
    """How many blocks of prompts there are. ValueError: fewer than two."""
    count = int(block.max()) + 1
    if count < 2:
        raise ValueError("leaving out a block needs at least two blocks")
    return count


def checked(features: Features) -> Features:
    """The same features, as an array. ValueError: not two axes, no values, or one that is not finite."""
    rows = np.asarray(features)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"features must be a table of samples and dimensions, found shape {rows.shape}")
    if not math.isfinite(float(rows.sum(dtype=np.float64))):
        raise ValueError(
            f"{int((~np.isfinite(rows)).any(1).sum())} of {len(rows)} samples have features that are not"
            " finite"
        )
    return rows
