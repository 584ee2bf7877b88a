"""Depth that comes with the images: distances or their inverse, in any unit, as inverse depth."""

import numpy as np

from annotate.maps import RawMap, depth_map
from pipeline.dataset.provided.frames import Given

# coding -> what a value is divided by to be metres
SCALES = {"metres": 1.0, "millimetres": 1000.0, "distance": 1.0}
NEAR = 0.99  # quantile of inverse depth that the near end is measured by
BEYOND = 3.0  # how many times nearer than that a pixel may be
SPARSE = 4  # every fourth row and column tells a quantile
TOLD = 0.001  # share of clipped pixels from which on the row says so


def read(given: Given) -> RawMap:
    """Inverse depth; what is invalid counts as infinitely far.

    Zero and negative distances are invalid, and so is what is not finite. A few pixels that are far nearer
    than the rest are set to the nearest of the rest: one of 1 mm would make all others black.
    """
    coding = given.required("depth")
    plane = given.grey("depths").astype(np.float32)
    valid = given.valid() & np.isfinite(plane)
    scale = given.settings.depth_scale or SCALES.get(coding, 1.0)
    plane = (np.where(valid, plane, 0) / scale).astype(np.float32)
    if coding != "inverse":  # of MiDaS's numbers only differences count, and zero is one of them
        valid &= plane > 0
    _check_unit(coding, plane[::SPARSE, ::SPARSE][valid[::SPARSE, ::SPARSE]])
    if coding in SCALES:
        inverse, unit = np.divide(1, plane, out=np.zeros_like(plane), where=valid), "1/m"
    else:
        far = plane[valid].min() if valid.any() and coding == "inverse" else 0
        inverse, unit = np.where(valid, plane, far), "relative"
    clipped = _clip_near_end(inverse, valid)
    depth = depth_map(inverse, unit=unit)
    if clipped:
        depth.meta["clipped"] = clipped
    if clipped >= TOLD:
        depth.meta["note"] = (
            f"{clipped:.1%} of the depths are over {BEYOND:g} times nearer than the rest and were set to the"
            " nearest of it"
        )
    return depth


def _check_unit(coding: str, distances: np.ndarray) -> None:
    """ValueError where no camera sees such distances in the unit that is declared."""
    if not distances.size or coding not in ("metres", "millimetres"):
        return
    near, far = (float(np.quantile(distances, share)) for share in (0.25, 0.75))
    if coding == "metres" and near > 500:
        raise ValueError(
            f"three quarters of the map lie beyond {near:.0f} m: set `depth: millimetres`, `depth_scale` to"
            " what a metre is in its numbers, or `depth: distance` where the unit does not matter"
        )
    if coding == "millimetres" and far < 0.02:
        raise ValueError(
            f"three quarters of the map lie nearer than {far * 1000:.2g} mm: set `depth: metres`, with a"
            " `depth_scale` where a metre is another number than 1"
        )


def _clip_near_end(inverse: np.ndarray, valid: np.ndarray) -> float:
    """Clips in place, and gives the share of valid pixels that it changed."""
    values = inverse[::SPARSE, ::SPARSE][valid[::SPARSE, ::SPARSE]]
    if not values.size:
        return 0.0
    low, high = values.min(), np.quantile(values, NEAR)
    limit = max(low + BEYOND * (high - low), 2 * high)
    if low == high or inverse.max(where=valid, initial=limit) <= limit:  # one plane, and a thing before it
        return 0.0
    near = valid & (inverse > limit)
    inverse[near] = inverse.max(where=valid & ~near, initial=low)
    return float(near.sum() / valid.sum())
