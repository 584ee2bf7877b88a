"""Canny edges."""

import random

import numpy as np

from annotate.maps import RawMap
from annotate.parameters import Values


def check(params: Values) -> None:
    """The high threshold must reach above the low one for every draw.

    ValueError: `low`, or one end of its range, lies above that of `high`.
    """
    (low, low_most), (high, high_most) = _span(params["low"]), _span(params["high"])
    if low > high or low_most > high_most:
        raise ValueError(
            f"opencv-canny: low {params['low']} lies above high {params['high']}; set high to {low_most} or"
            " more"
        )


def draw_params(params: Values, rng: random.Random) -> Values:
    """Thresholds of one image where a range is given (the paper: random thresholds); fixed ones
    are no draw.
    """
    low_range, high_range = _span(params["low"]), _span(params["high"])
    if low_range[0] == low_range[1] and high_range[0] == high_range[1]:
        return {}
    low = rng.randint(*low_range)
    return {"low": low, "high": rng.randint(max(low, high_range[0]), high_range[1])}


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """cv2.Canny on uint8 RGB, as ControlNet calls it: the strongest channel's gradient counts."""
    import cv2

    settings = [{**params, **drawn} for drawn in random_params]
    return [
        RawMap("edges", cv2.Canny(image, s["low"], s["high"]))
        for image, s in zip(images, settings, strict=True)
    ]


def _span(value: int | list[int]) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, list) else (value, value)
