"""Straight line segments."""

from typing import Any

import numpy as np

from annotate.maps import RawMap
from annotate.parameters import Values


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """OpenCV's line segment detector (von Gioi 2010); the score is -log10 of the number of false alarms, the
    best first.
    """
    import cv2

    detector = cv2.createLineSegmentDetector(cv2.LSD_REFINE_ADV)
    return [_segments(detector, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), params) for image in images]


def _segments(detector: Any, grey: np.ndarray, params: Values) -> RawMap:
    ends, _, _, score = detector.detect(grey)
    found = np.zeros((0, 5), np.float32)
    if ends is not None:
        found = np.concatenate([ends.reshape(-1, 4), score.reshape(-1, 1)], axis=1).astype(np.float32)
    long_enough = np.hypot(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]) >= params["min_length"]
    found = found[long_enough & (found[:, 4] >= params["min_score"])]
    found = found[np.argsort(-found[:, 4], kind="stable")]
    return RawMap("lines", found, {"size": list(grey.shape)})
