"""Canny edges: OpenCV's, and kornia's, which ControlNet++ evaluates by."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from annotate.maps import RawMap
from annotate.parameters import Values

# of kornia: weights of red, green, blue; steps y, x to the neighbour along a gradient, by eighths of a turn;
# thresholds of ControlNet++, where a step from black to white has about 2.6
GREY = np.array([0.299, 0.587, 0.114], np.float32)
ALONG = ((0, 1), (1, 1), (1, 0), (1, -1))
LOW, HIGH = 0.1, 0.2


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
        RawMap("edges", cv2.Canny(*gradient, s["low"], s["high"]))
        for gradient, s in zip(strongest_gradients(images), settings, strict=True)
    ]


def strongest_gradients(images: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """uint8 HW3 -> int16 [h, w] along x and along y, as cv2.Canny has them: of the channel in which the two
    together are the largest, of equal ones the first. Valid until the next is asked for.

    cv2.Canny compares the channels pixel by pixel; whole planes at a time take a sixth of that.
    """
    import cv2

    planes = np.empty((7, 0, 0), np.int16)
    for image in images:
        if planes.shape[1:] != image.shape[:2]:  # fresh memory for each image would cost as much as the rest
            planes = np.empty((7, *image.shape[:2]), np.int16)
            channels = [np.empty(image.shape[:2], np.uint8) for _ in range(3)]
        right, down, most, x, y, size, spare = planes
        for number, channel in enumerate(cv2.split(image, channels)):
            along, across, both = (x, y, size) if number else (right, down, most)
            cv2.spatialGradient(channel, along, across, ksize=3, borderType=cv2.BORDER_REPLICATE)
            np.add(np.abs(along, out=both), np.abs(across, out=spare), out=both)
            if number:
                larger = cv2.compare(size, most, cv2.CMP_GT)
                for plane, strongest in ((x, right), (y, down), (size, most)):
                    cv2.copyTo(plane, larger, strongest)
        yield right, down


def detect_kornia(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """As ControlNet++ reads edges."""
    return [RawMap("edges", kornia_canny(image)) for image in images]


def kornia_canny(
    image: np.ndarray,  # uint8 HW3 RGB
    low: float = LOW,
    high: float = HIGH,
) -> np.ndarray:  # uint8 HW of 0 and 255
    """kornia 0.7's canny() of the picture as 0..1; of two equal pixels across an edge neither is kept."""
    import cv2

    grey = (image.astype(np.float32) / 255) @ GREY
    bell = cv2.getGaussianKernel(5, 1, cv2.CV_32F)
    blurred = cv2.sepFilter2D(grey, cv2.CV_32F, bell, bell, borderType=cv2.BORDER_REFLECT_101)
    right, down = (
        cv2.Sobel(blurred, cv2.CV_32F, x, y, ksize=3, borderType=cv2.BORDER_REPLICATE)
        for x, y in ((1, 0), (0, 1))
    )
    strength = np.sqrt(right * right + down * down + np.float32(1e-6))
    direction = np.rint(np.arctan2(down, right) * (4 / np.pi)).astype(np.int8) % len(ALONG)
    (height, width), around = strength.shape, np.pad(strength, 1)
    peak = np.zeros(strength.shape, bool)
    for number, (dy, dx) in enumerate(ALONG):
        ahead, behind = (
            around[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in ((dy, dx), (-dy, -dx))
        )
        peak |= (direction == number) & (strength > ahead) & (strength > behind)
    weak = peak & (strength > low)
    count, part = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, np.uint8)
    kept[part[weak & (strength > high)]] = 255  # what hangs together with a strong pixel
    return kept[part]


def _span(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, list) else (value, value)
