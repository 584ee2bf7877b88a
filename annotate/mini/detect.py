"""Rendered or generated scenes -> every condition that needs knowledge of them, and the objects that are seen."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from annotate.conditions import Condition
from annotate.label_spaces import SPACES
from annotate.maps import RawMap, depth_map
from annotate.mini.network import FACTS, WEIGHTS, Detector
from annotate.parameters import Values
from annotate.skeletons import SKELETONS
from annotate.weights import PINNED, WeightFile, find

FOLDER = Path(__file__).parent
SIDE = 128  # of the scenes it has learned from
LEAST_OBJECT, LEAST_PERSON = 0.004, 0.006  # shares of the picture
SURE = 0.25  # of a joint; hidden ones are learned as 0.5
LAYOUT = "openpose_18"
FILES = (
    WeightFile(name=WEIGHTS, package="annotate", inside=f"mini/{WEIGHTS}", install="git checkout annotate/mini"),
    WeightFile(name=FACTS, package="annotate", inside=f"mini/{FACTS}", install="git checkout annotate/mini"),
)


class Seen(NamedTuple):
    """An object of a scene."""

    shape: str
    colour: str
    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in shares of the sides


class Reading(NamedTuple):
    """All that one pass tells of one picture, at its size."""

    depth: np.ndarray  # float32 [h, w]: 1 / metres
    normals: np.ndarray  # float32 [h, w, 3] unit
    classes: np.ndarray  # uint8 [h, w]
    colours: np.ndarray  # uint8 [h, w]
    joints: np.ndarray  # float32 [18, 3]: x y confidence; all 0 without a person


def read(net: Detector, images: Sequence[np.ndarray]) -> list[Reading]:  # uint8 HW3 RGB of any sizes
    """Each is scaled to the size of the scenes that were learned from, and what is found is scaled back."""
    import torch

    out = []
    device = next(net.parameters()).device
    for image in images:
        height, width = image.shape[:2]
        scale = SIDE / max(height, width)
        size = tuple(max(16, round(side * scale / 16) * 16) for side in (width, height))
        small = image if size == (width, height) else cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1
            made = {name: value[0].float().cpu().numpy() for name, value in net(pixels).items()}
        out.append(_reading(net, made, (width, height)))
    return out


def _reading(net: Detector, made: dict[str, np.ndarray], size: tuple[int, int]) -> Reading:
    depth = _scaled(np.exp(made["depth"]), size)
    normals = _scaled(np.ascontiguousarray(made["normals"].transpose(1, 2, 0)), size)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    classes, colours = (
        _scaled(np.ascontiguousarray(made[name].transpose(1, 2, 0)), size).argmax(axis=-1).astype(np.uint8) for name in ("classes", "colours")
    )
    person = [name for name, *_ in net.words.classes].index("person")
    joints = _joints(1 / (1 + np.exp(-made["joints"])), size) if (classes == person).mean() >= LEAST_PERSON else np.zeros((len(made["joints"]), 3))
    return Reading(depth, normals.astype(np.float32), classes, colours, joints.astype(np.float32))


def _scaled(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # size: width, height
    return array if array.shape[1::-1] == size else cv2.resize(array, size, interpolation=cv2.INTER_LINEAR)


def _joints(spots: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # [18, h/2, w/2] => [18, 3]
    """The highest cell, and the mean of its neighbourhood for what lies between cells."""
    out = np.zeros((len(spots), 3))
    for one, spot in zip(out, spots, strict=True):
        row, column = np.unravel_index(spot.argmax(), spot.shape)
        if spot[row, column] < SURE:
            continue
        near = np.s_[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        y, x = np.indices(spot.shape)[(slice(None), *near)]
        weight = spot[near]
        scale = size[0] / (2 * spot.shape[1]), size[1] / (2 * spot.shape[0])
        at = [float((weight * axis).sum() / weight.sum()) * 2 + 0.5 for axis in (x, y)]
        one[:] = (at[0] + 0.5) * scale[0] - 0.5, (at[1] + 0.5) * scale[1] - 0.5, spot[row, column]
    return out


def objects(net: Detector, reading: Reading) -> list[Seen]:
    """Connected areas of a shape's class, each of the colour that most of it has."""
    out = []
    height, width = reading.classes.shape
    for index, (name, *_) in enumerate(net.words.classes):
        if name not in net.words.shapes:
            continue
        count, labels, stats, _ = cv2.connectedComponentsWithStats((reading.classes == index).astype(np.uint8))
        for area in range(1, count):
            x, y, w, h, size = stats[area]
            if size < LEAST_OBJECT * height * width:
                continue
            votes = np.bincount(reading.colours[labels == area], minlength=len(net.words.colours))
            votes[0] = 0
            box = (x / width, y / height, (x + w) / width, (y + h) / height)
            out.append(Seen(name, net.words.colours[int(votes.argmax())], box))
    return out


def has_person(net: Detector, reading: Reading) -> bool:
    person = [name for name, *_ in net.words.classes].index("person")
    return bool((reading.classes == person).mean() >= LEAST_PERSON)


# --- as a detector of annotate/detectors.py ---


def detect(images: list[np.ndarray], params: Values, draws: list[Values], parents: list[RawMap], device: str) -> list[RawMap]:
    """One pass for all conditions: a map of kind `scene` that `adapt` takes apart."""
    return [_Scene(reading) for reading in read(_net(str(params["weights"]), device), images)]  # type: ignore[misc]


class _Scene:
    """Stands where a shared pass gives a RawMap."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading


def adapt(found: Any, condition: Condition, params: Values) -> RawMap:
    """The condition's map out of the reading."""
    reading: Reading = found.reading
    net = _net(str(params["weights"]), "cpu")
    if condition.kind == "depth":
        return depth_map(reading.depth, "1/m")
    if condition.kind == "normals":
        return RawMap("normals", reading.normals)
    if condition.kind == "people":
        layout = str(condition.layout)
        order = [SKELETONS[LAYOUT].names.index(name) for name in SKELETONS[layout].names]
        people = reading.joints[None, order] if reading.joints.any() else np.zeros((0, len(order), 3), np.float32)
        height, width = reading.classes.shape
        return RawMap("people", np.ascontiguousarray(people), {"size": [height, width], "layout": layout})
    space = condition.label_spaces[0]
    names = SPACES[space].names
    column = 2 if space.startswith("ade") else 1
    table = np.array([names.index(row[column]) for row in net.words.classes], np.uint8)
    return RawMap("labels", table[reading.classes], {"label_space": space})


@functools.cache
def _net(weights: str, device: str) -> Detector:
    from annotate.mini.network import load

    folder = find(FILES[0], weights).parent
    return load(folder).to(device)


def missing(weights: str = PINNED) -> bool:
    """Whether the shipped weights are absent."""
    return not (FOLDER / WEIGHTS).is_file() if weights == PINNED else not Path(weights).exists()
