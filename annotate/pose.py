"""Human keypoints by MediaPipe's BlazePose, mapped to the OpenPose and COCO skeletons."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from annotate.conditions import Condition
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.people import arranged
from annotate.weights import WeightFile, find

WEIGHTS = WeightFile(
    name="pose_landmark_full.tflite",
    sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    package="mediapipe",
    inside="modules/pose_landmark/pose_landmark_full.tflite",
    install="pip install --no-deps mediapipe==0.10.21",
)

# BlazePose's 33 landmarks that the two skeletons use; left is the person's left in all three
LANDMARKS = {
    "nose": 0, "left_eye": 2, "right_eye": 5, "left_ear": 7, "right_ear": 8, "left_shoulder": 11,
    "right_shoulder": 12,
    "left_elbow": 13, "right_elbow": 14, "left_wrist": 15, "right_wrist": 16, "left_hip": 23, "right_hip": 24,
    "left_knee": 25, "right_knee": 26, "left_ankle": 27, "right_ankle": 28,
}  # fmt: skip


@dataclass
class _Model:
    graph: Any
    greeted: bool = False  # it has said what it says once


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB -> people [0 or 1, 33, 3] with visibility as confidence: BlazePose finds one person in an
    image, never two.
    """
    model = _model(params["min_confidence"])
    return [_landmarks(model, image) for image in images]


def adapt(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """The condition's keypoints out of the 33; points outside the image or hardly visible are missing, the
    neck is mid-shoulder.
    """
    height, width = raw.meta["size"]
    x, y, visible = np.moveaxis(raw.array, 2, 0)
    seen = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1) & (visible >= params["min_visibility"])
    points = np.where(seen[..., None], raw.array, np.float32(0))[:, list(LANDMARKS.values())]
    people = arranged(points, list(LANDMARKS), str(condition.layout))
    people = people[people.any(axis=(1, 2))]
    return RawMap("people", people, {"size": raw.meta["size"], "layout": str(condition.layout)})


def _landmarks(model: _Model, image: np.ndarray) -> RawMap:
    height, width = image.shape[:2]
    with contextlib.nullcontext() if model.greeted else _quiet():
        result = model.graph.process(np.ascontiguousarray(image))
    model.greeted |= result.pose_landmarks is not None
    people = np.zeros((0, 33, 3), np.float32)
    if result.pose_landmarks is not None:
        # normalised to 0..1 over the image's area; pixel centres lie at integers here
        points = [
            (p.x * width - 0.5, p.y * height - 0.5, p.visibility) for p in result.pose_landmarks.landmark
        ]
        people = np.array([points], np.float32)
    return RawMap("people", people, {"size": [height, width], "layout": "blazepose_33"})


@functools.cache
def _model(min_confidence: float) -> _Model:
    """One graph per process; still images only, so that no image sees the one before it."""
    find(WEIGHTS)  # MediaPipe loads its own copy: make sure that it is the pinned one
    with _quiet():
        from mediapipe.python.solutions.pose import Pose

        # the wheel's only model is of complexity 1
        return _Model(
            Pose(static_image_mode=True, model_complexity=1, min_detection_confidence=min_confidence)
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MediaPipe's C++ half greets on file descriptor 2 and heeds no setting, the last time for its first
    person.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
