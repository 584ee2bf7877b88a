"""Left-right flips for augmentation: what a detector would find in the mirrored picture, and when a caption
forbids mirroring.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from annotate import wholebody
from annotate.maps import RawMap, resolution
from annotate.skeletons import SKELETONS

# whole words, also joined ones (left-hand, rightmost, left_side); "copyright" and "bright" say nothing about
# a side
_SIDES = re.compile(r"(?<![^\W\d_])(left|right)(most|wards?|hand(ed)?|side)?(?![^\W\d_])", re.IGNORECASE)


def flip(raw: RawMap) -> RawMap:
    """The raw map of the mirrored image.

    A second flip gives the map back, points within a float's rounding.
    """
    return replace(raw, array=_FLIPS[raw.kind](raw))


def may_flip(caption: str) -> bool:
    """Whether the caption stays true of the mirrored image: no English left or right; "all right" counts too,
    to be safe.
    """
    return _SIDES.search(caption) is None


def _mirror(raw: RawMap) -> np.ndarray:
    return np.ascontiguousarray(raw.array[:, ::-1])


def _lines(raw: RawMap) -> np.ndarray:
    array = raw.array.copy()
    array[:, [0, 2]] = resolution(raw)[1] - 1 - array[:, [0, 2]]
    return array


def _people(raw: RawMap) -> np.ndarray:
    """The left hand of a mirrored person is a right hand; a missing keypoint stays 0."""
    order = counterparts(raw.meta["layout"])
    if raw.array.shape[1] > len(order):
        order += [len(order) + point for point in wholebody.COUNTERPARTS]
    array = raw.array[:, order]
    array[..., 0] = np.where(array[..., 2] > 0, resolution(raw)[1] - 1 - array[..., 0], 0)
    return array


def counterparts(layout: str) -> list[int]:
    """Index of the keypoint that stands for each one in the mirrored image, by the names left_…
    and right_…
    """
    names = SKELETONS[layout].names
    other = {"left": "right", "right": "left"}
    return [names.index("_".join(other.get(word, word) for word in name.split("_"))) for name in names]


def _normals(raw: RawMap) -> np.ndarray:
    array = raw.array[:, ::-1].copy()  # a product with [-1, 1, 1] takes twice as long
    array[..., 0] *= -1
    return array


_FLIPS: dict[str, Callable[[RawMap], np.ndarray]] = {
    "edges": _mirror,
    "soft_edges": _mirror,
    "lines": _lines,
    "people": _people,
    "labels": _mirror,
    "depth": _mirror,
    "normals": _normals,
}
