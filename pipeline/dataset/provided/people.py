"""Keypoints that come with the images: COCO's or OpenPose's, as people of the condition's layout."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from annotate.skeletons import SKELETONS
from pipeline.dataset.provided import coco
from pipeline.dataset.provided.frames import Given

# coding -> how many keypoints a person may have -> their names, in order; None = one that no layout has
COUNTS: dict[str, dict[int, tuple[str | None, ...]]] = {
    "coco": {
        17: SKELETONS["coco_17"].names,
        133: (*SKELETONS["coco_17"].names, *[None] * 116),  # COCO-WholeBody: feet, face, hands
    },
    "openpose": {
        18: SKELETONS["openpose_18"].names,
        # BODY_25: the middle of the hips after the wrists, three points of each foot at the end
        25: (
            *SKELETONS["openpose_18"].names[:8], None,
            *SKELETONS["openpose_18"].names[8:], *[None] * 6,
        ),
    },
}  # fmt: skip
BODY = ("keypoints", "pose_keypoints_2d")
# what no drawing has: key -> its name
DROPPED = {
    "hand_left_keypoints_2d": "hands", "hand_right_keypoints_2d": "hands", "face_keypoints_2d": "face",
    "lefthand_kpts": "hands", "righthand_kpts": "hands", "face_kpts": "face", "foot_kpts": "feet",
}  # fmt: skip


def read(given: Given) -> RawMap:
    """COCO's annotations of one image ([{keypoints: [x, y, v, …]}, …]) or OpenPose's JSON ({people:
    [{pose_keypoints_2d: …}]}); the neck is mid-shoulder where the coding has none.

    ValueError: another number of keypoints, another canvas, or coordinates whose unit can't be told.
    """
    coding = given.required("keypoints")
    people, canvas = _people(given.value)
    if people and not any(_has_body(one) for one in people):
        raise ValueError(f"none of the {len(people)} people has `keypoints` or `pose_keypoints_2d`")
    bodies = [body for one in people if (body := _body(one))]
    layout = str(CONDITIONS[given.condition].layout)
    names = SKELETONS[layout].names
    joints = np.array([_named(body, coding, names, given) for body in bodies], np.float32)
    joints = joints.reshape(-1, len(names), 3)
    seen = joints[..., 2] > 0
    xy = given.on_image(joints[seen][:, :2], canvas)
    _check_inside(given, xy)
    joints[~seen] = 0
    joints[seen, :2] = given.frame.points(xy)
    height, width = given.frame.to.size
    x, y = joints[..., 0], joints[..., 1]
    joints[~(seen & (x >= 0) & (x < width) & (y >= 0) & (y < height))] = 0
    raw = RawMap("people", joints[joints[..., 2].any(axis=1)], {"size": [height, width], "layout": layout})
    if note := _dropped(people, given.condition):
        raw.meta["note"] = note
    return raw


def _people(value: Any) -> tuple[list[Any], tuple[int, int] | None]:
    """The people of an image, and (height, width) of what their coordinates count, where it is told."""
    if isinstance(value, coco.Record):
        return [one for one in value.annotations if one.get("num_keypoints", 1)], value.size
    stored = json.loads(value) if isinstance(value, bytes | str) else value
    if (
        isinstance(stored, list)
        and stored
        and all(isinstance(one, dict) and "people" in one for one in stored)
    ):
        if len(stored) > 1:
            raise ValueError(f"keypoints of {len(stored)} frames where one image is wanted")
        stored = stored[0]
    if not isinstance(stored, dict):
        return list(stored if stored is not None else []), None
    if "people" not in stored and "annotations" not in stored:
        raise ValueError(f"keypoints are in `people` or `annotations`, and the JSON has {', '.join(stored)}")
    people = stored.get("people", stored.get("annotations")) or []
    size = stored.get("canvas_height"), stored.get("canvas_width")
    canvas = (int(size[0]), int(size[1])) if size[0] and size[1] else None
    return list(people), canvas


def _has_body(one: Any) -> bool:
    return not isinstance(one, Mapping) or any(key in one for key in BODY)


def _body(one: Any) -> list[Any]:
    if not isinstance(one, Mapping):
        return list(one if one is not None else [])
    return next((list(one[key]) for key in BODY if one.get(key)), [])


def _named(body: list[Any], coding: str, names: tuple[str, ...], given: Given) -> np.ndarray:
    """float32 [K, 3] in the order of `names` of one person in a coding."""
    numbers = np.asarray(body, np.float32).ravel()
    known = COUNTS[coding]
    if numbers.size % 3 or numbers.size // 3 not in known:
        count = f"{numbers.size / 3:g} keypoints"
        other = next((name for name, counts in COUNTS.items() if numbers.size / 3 in counts), None)
        remedy = f": set `keypoints: {other}` if that is what they are" if other else ""
        raise ValueError(
            f"a person of {count} where `provided.{given.condition}.keypoints: {coding}` has"
            f" {' or '.join(map(str, known))}{remedy}"
        )
    triples = numbers.reshape(-1, 3)
    if not np.isfinite(triples).all():
        raise ValueError("a keypoint is not a finite number")
    # flags: 2 = seen, 1 = hidden, 0 = not labelled; what is found by a network has its score there
    if coding == "coco" and np.isin(triples[:, 2], (0, 1, 2)).all():
        triples = triples * np.array([1, 1, 0.5], np.float32)
    points = {
        name: point for name, point in zip(known[len(triples)], triples, strict=True) if name is not None
    }
    if "neck" not in points:
        points["neck"] = _between(points["left_shoulder"], points["right_shoulder"])
    return np.array([points[name] for name in names], np.float32)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The middle of two keypoints, as sure as the less sure one; missing if one is."""
    if a[2] <= 0 or b[2] <= 0:
        return np.zeros(3, np.float32)
    return np.array([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2, min(a[2], b[2])], np.float32)


def _check_inside(given: Given, xy: np.ndarray) -> None:
    """ValueError where most keypoints lie outside of the raw image: they count another canvas's pixels."""
    height, width = given.frame.size
    outside = ((xy < -1) | (xy > [width, height])).any(axis=1)
    if outside.any() and outside.mean() > 0.5:
        raise ValueError(
            f"{outside.mean():.0%} of the keypoints lie outside of the image of {width}×{height} pixels:"
            " their JSON needs `canvas_width` and `canvas_height` of the picture that they were found in"
        )


def _dropped(people: list[Any], condition: str) -> str | None:
    """A sentence on what came with the bodies and no drawing has."""
    parts: dict[str, None] = {}
    for one in people:
        if isinstance(one, Mapping):
            parts |= {name: None for key, name in DROPPED.items() if np.any(one.get(key) or 0)}
            counts = [len(np.ravel(one[key])) // 3 for key in BODY if one.get(key)]
            parts |= {"hands": None, "face": None, "feet": None} if 133 in counts else {}
            parts |= {"feet": None} if 25 in counts else {}
    if not parts:
        return None
    *others, last = parts
    return f"{', '.join(others)}{' and ' if others else ''}{last} dropped: {condition} draws bodies only"
