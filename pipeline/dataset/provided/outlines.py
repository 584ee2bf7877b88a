"""Edges, soft edges and lines that come with the images."""

import numpy as np

from annotate.maps import RawMap
from pipeline.dataset.provided.frames import Given
from pipeline.dataset.provided.pixels import pixels

MOST = 0.67  # share of a map that edges may cover where nobody says which colour they have


def edges(given: Given) -> RawMap:
    """White on black; integers that go up to 1 at most are truth values."""
    grey = _white_on_black(given, _grey(given, small=1))
    return RawMap("edges", np.where(grey > 127, np.uint8(255), np.uint8(0)))


def soft_edges(given: Given) -> RawMap:
    """The strength of the edge as brightness."""
    return RawMap("soft_edges", _white_on_black(given, _grey(given)))


def _grey(given: Given, small: int = 0) -> np.ndarray:
    """uint8 from 8 or 16 bit, from truth values or fractions; integers that go up to `small` at most are
    truth values.
    """
    array = given.grey("edges")
    least, most = array.min(), array.max()
    top = 65535 if array.dtype == np.uint16 else 255
    if array.dtype.kind not in "biuf" or not 0 <= least <= most <= top:
        raise ValueError(f"edges go from 0 to 255 or from 0 to 1, not from {least} to {most}")
    full = 1 if most <= (1 if array.dtype.kind in "bf" else small) else top
    return np.rint(array.astype(np.float32) * (255 / full)).astype(np.uint8)


def _white_on_black(given: Given, grey: np.ndarray) -> np.ndarray:
    """ValueError where most of the map is edge, unless the manifest says which colour edges have."""
    ink = given.settings.ink
    if ink == "dark":
        grey = 255 - grey
    share = float((grey > 127).mean())
    if share > MOST and ink != "light":
        remedy = "light" if ink else "dark"
        drawn = "dark lines on a light ground" if ink is None else "light lines on a dark ground"
        raise ValueError(
            f"{share:.0%} of the map is edge, as in {drawn}: set `provided.{given.condition}.ink` to"
            f" `{remedy}`"
        )
    return grey


def lines(given: Given) -> RawMap:
    """float [N, 4 or 5]: x0 y0 x1 y1 and a score, on the raw image.

    ValueError: another shape, an end that is no number, or ends whose unit can't be told.
    """
    array = np.asarray(pixels(given.value), np.float32)
    array = array.reshape(0, 4) if not array.size else array
    if array.ndim != 2 or array.shape[1] not in (4, 5):
        raise ValueError(f"lines are rows of x0 y0 x1 y1 and perhaps a score, not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{int((~np.isfinite(array)).any(axis=1).sum())} of {len(array)} lines have an end or a score"
            " that is not a finite number"
        )
    ends = given.frame.points(given.on_image(array[:, :4].reshape(-1, 2), None)).reshape(-1, 4)
    scores = array[:, 4:] if array.shape[1] > 4 else np.ones((len(array), 1), np.float32)
    return RawMap("lines", np.concatenate([ends, scores], axis=1), {"size": list(given.frame.to.size)})
