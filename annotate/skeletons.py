"""Keypoint layouts and how published protocols draw them; "left" is the person's left everywhere."""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from annotate import wholebody

STICK = 4  # half width of a limb in pixels, whatever the resolution: the released ControlNets saw 512 x 512
RADIUS = 4  # of a joint
LINE = 6  # width of OpenPifPaf's lines


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Names of the keypoints in stored order, and the limbs as pairs of their indices in drawing order."""

    names: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]
    colours: tuple[tuple[int, int, int], ...]  # RGB


def _indices(names: tuple[str, ...], limbs: str) -> tuple[tuple[int, int], ...]:
    pairs = (limb.split("-") for limb in limbs.split())
    return tuple((names.index(a), names.index(b)) for a, b in pairs)


def _hue(hue: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 1.0, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


_OPENPOSE = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
_COCO = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

SKELETONS: dict[str, Skeleton] = {
    # limbs and colours, 20 degrees of hue apart, in the order of OpenPose and ControlNet
    "openpose_18": Skeleton(
        names=_OPENPOSE,
        limbs=_indices(
            _OPENPOSE,
            "neck-right_shoulder neck-left_shoulder right_shoulder-right_elbow right_elbow-right_wrist"
            " left_shoulder-left_elbow left_elbow-left_wrist neck-right_hip right_hip-right_knee"
            " right_knee-right_ankle neck-left_hip left_hip-left_knee left_knee-left_ankle neck-nose"
            " nose-right_eye right_eye-right_ear nose-left_eye left_eye-left_ear",
        ),
        colours=(
            (255, 0, 0),
            (255, 85, 0),
            (255, 170, 0),
            (255, 255, 0),
            (170, 255, 0),
            (85, 255, 0),
            (0, 255, 0),
            (0, 255, 85),
            (0, 255, 170),
            (0, 255, 255),
            (0, 170, 255),
            (0, 85, 255),
            (0, 0, 255),
            (85, 0, 255),
            (170, 0, 255),
            (255, 0, 255),
            (255, 0, 170),
            (255, 0, 85),
        ),
    ),
    # the 19 connections of COCO person keypoints that OpenPifPaf draws; one hue each, evenly spaced (our
    # choice)
    "coco_17": Skeleton(
        names=_COCO,
        limbs=_indices(
            _COCO,
            "left_ankle-left_knee left_knee-left_hip right_ankle-right_knee right_knee-right_hip"
            " left_hip-right_hip left_shoulder-left_hip right_shoulder-right_hip left_shoulder-right_shoulder"
            " left_shoulder-left_elbow right_shoulder-right_elbow left_elbow-left_wrist"
            " right_elbow-right_wrist left_eye-right_eye nose-left_eye nose-right_eye left_eye-left_ear"
            " right_eye-right_ear left_ear-left_shoulder right_ear-right_shoulder",
        ),
        colours=tuple(_hue(i / 19) for i in range(19)),
    ),
}


def body(people: np.ndarray, layout: str) -> np.ndarray:
    """People float32 [P, K or K + wholebody.EXTRA, 3] without hands and face."""
    return people[:, : len(SKELETONS[layout].names)] if layout in SKELETONS else people


def draw_cn10(people: np.ndarray, skeleton: Skeleton, canvas: np.ndarray) -> np.ndarray:
    """ControlNet 1.0 on `canvas` uint8 HW3: all joints first, then each limb blended 0.6 over what is there;
    people float [P, K, 3].
    """
    import cv2

    canvas = _joints(people, skeleton, canvas)
    for (a, b), colour in zip(skeleton.limbs, skeleton.colours, strict=False):
        for person in people:
            if person[a, 2] > 0 and person[b, 2] > 0:
                over = cv2.fillConvexPoly(canvas.copy(), _stick(person[a], person[b]), colour)
                canvas = cv2.addWeighted(canvas, 0.4, over, 0.6, 0)
    return canvas


def draw_cn11(people: np.ndarray, skeleton: Skeleton, canvas: np.ndarray) -> np.ndarray:
    """ControlNet 1.1: person by person, limbs at 0.6 of their colour, the joints on top, then hands and face
    where they are stored.
    """
    import cv2

    for person in people:
        for (a, b), colour in zip(skeleton.limbs, skeleton.colours, strict=False):
            if person[a, 2] > 0 and person[b, 2] > 0:
                cv2.fillConvexPoly(canvas, _stick(person[a], person[b]), [int(c * 0.6) for c in colour])
        canvas = _joints(person[None], skeleton, canvas)
        wholebody.draw(person[len(skeleton.names) :], canvas)
    return canvas


def draw_lines(people: np.ndarray, skeleton: Skeleton, canvas: np.ndarray) -> np.ndarray:
    """Our drawing of OpenPifPaf's skeleton: 6-pixel lines, one hue per connection, white joints of radius 3
    on top.
    """
    import cv2

    for person in people:
        for (a, b), colour in zip(skeleton.limbs, skeleton.colours, strict=True):
            if person[a, 2] > 0 and person[b, 2] > 0:
                cv2.line(canvas, _pixel(person[a]), _pixel(person[b]), colour, LINE, cv2.LINE_8)
        joints = person[: len(skeleton.names)]
        for point in joints[joints[:, 2] > 0]:
            cv2.circle(canvas, _pixel(point), LINE // 2, (255, 255, 255), thickness=-1)
    return canvas


def _joints(people: np.ndarray, skeleton: Skeleton, canvas: np.ndarray) -> np.ndarray:
    import cv2

    for k, colour in enumerate(skeleton.colours[: people.shape[1]]):
        for person in people:
            if person[k, 2] > 0:
                cv2.circle(canvas, _pixel(person[k]), RADIUS, colour, thickness=-1)
    return canvas


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _stick(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The ellipse that spans two joints, as both protocols round it."""
    import cv2

    dx, dy = float(a[0] - b[0]), float(a[1] - b[1])
    centre = int((a[0] + b[0]) / 2), int((a[1] + b[1]) / 2)
    return np.asarray(
        cv2.ellipse2Poly(
            centre, (int(math.hypot(dx, dy) / 2), STICK), int(math.degrees(math.atan2(dy, dx))), 0, 360, 1
        )
    )
