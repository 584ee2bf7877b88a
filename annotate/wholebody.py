"""Hands and face of people, stored behind the keypoints of the body: where they stand, how ControlNet 1.1
draws them, what they are in a mirror.
"""

import colorsys

import numpy as np

HAND, FACE = 21, 68  # points: OpenPose's of a hand, wrist first; iBUG's of a face, jaw first
# behind a body, in this order
LEFT, RIGHT, HEAD = slice(0, HAND), slice(HAND, 2 * HAND), slice(2 * HAND, 2 * HAND + FACE)
EXTRA = 2 * HAND + FACE
# from the wrist along each finger, thumb first
BONES = tuple(
    (4 * finger + joint if joint else 0, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
)
BONE, JOINT, SPOT = 2, 4, 3  # width of a bone, radius of its joints, of a point of the face; pixels
# of the face's points, whose mirror images go the other way: jaw, brows, bridge of the nose, its base, eyes
# above and below, lips outside and inside, each above and below
_FACE = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
)  # fmt: skip
# index of the point that stands for each one in the mirrored image: left and right hand change places
COUNTERPARTS = (*range(HAND, 2 * HAND), *range(HAND), *(2 * HAND + point for point in _FACE))


def draw(extra: np.ndarray, canvas: np.ndarray) -> None:
    """One person's hands and face float [EXTRA, 3] (or none, [0, 3]) on `canvas` uint8 HW3, as controlnet_aux
    (open_pose/util.py): a hue a bone, blue joints, white points; nothing in the first row and column.
    """
    import cv2

    for hand in (extra[LEFT], extra[RIGHT]):
        points = [_pixel(point) for point in hand]
        for (a, b), colour in zip(BONES, _HUES, strict=True):
            if len(hand) and (start := points[a]) and (end := points[b]):
                cv2.line(canvas, start, end, colour, thickness=BONE)
        for joint in filter(None, points):
            cv2.circle(canvas, joint, JOINT, (0, 0, 255), thickness=-1)
    for spot in filter(None, map(_pixel, extra[HEAD])):
        cv2.circle(canvas, spot, SPOT, (255, 255, 255), thickness=-1)


def _pixel(point: np.ndarray) -> tuple[int, int] | None:
    x, y = int(point[0]), int(point[1])
    return (x, y) if point[2] > 0 and x > 0 and y > 0 else None


_HUES = tuple(
    tuple(255 * part for part in colorsys.hsv_to_rgb(bone / len(BONES), 1.0, 1.0))
    for bone in range(len(BONES))
)
