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
    segments = np.zeros((0, 5), np.float32)
    if ends is not None:
        segments = np.concatenate([ends.reshape(-1, 4), score.reshape(-1, 1)], axis=1).astype(np.float32)
    long_enough = (
        np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1]) >= params["min_length"]
    )
    segments = segments[long_enough & (segments[:, 4] >= params["min_score"])]
    segments = segments[np.argsort(-segments[:, 4], kind="stable")]
    return RawMap("lines", segments, {"size": list(grey.shape)})
