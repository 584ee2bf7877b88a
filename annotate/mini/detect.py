"""Rendered or generated scenes -> every condition that needs knowledge of them, and the objects that are
seen.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from annotate.conditions import Condition
from annotate.maps import RawMap, depth_map
from annotate.mini import figure
from annotate.mini.vocabulary import PERSON, Vocabulary
from annotate.parameters import Values
from annotate.skeletons import SKELETONS
from annotate.weights import PINNED, WeightFile, find

if TYPE_CHECKING:
    from annotate.mini.network import DetectorNetwork

WEIGHTS = WeightFile(
    name="detector.safetensors",
    sha256="9e4cccdecc0677d8c7403ed573d36af7c87a4e1507eeeb289f90f4d78a5c21e1",
    package="annotate",
    inside="mini/detector.safetensors",
    install="controlmill mini detector manifests/mini/detector.yaml",
)
SIDE = 128  # of the scenes it has learned from
STEP = 16  # sides that the network can halve as often as it does
# shares of the picture: about half of the smallest in rendered scenes
LEAST_OBJECT, LEAST_PERSON = 0.01, 0.02
LAYOUT = "openpose_18"


class Seen(NamedTuple):
    """An object of a scene."""

    shape: str
    colour: str
    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in shares of the sides


@dataclass(frozen=True)
class Reading:
    """All that one pass tells of one picture, at its size."""

    vocabulary: Vocabulary
    depth: np.ndarray  # float32 [h, w]: 1 / metres
    normals: np.ndarray  # float32 [h, w, 3] unit
    classes: np.ndarray  # uint8 [h, w]: of vocabulary.classes
    colours: np.ndarray  # uint8 [h, w]: of vocabulary.colours
    # float32 [18, 3]: x y confidence; all 0 where there is no person, or no net that reads one
    joints: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ReadingMap(RawMap):
    """The map of depth, which carries the whole reading to `adapt`."""

    reading: Reading


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes; one pass serves all conditions."""
    readings = read(load(params.get("weights", PINNED), device), images)
    depths = [depth_map(one.depth, "1/m") for one in readings]
    return [
        ReadingMap(depth.kind, depth.array, depth.meta, reading=one)
        for depth, one in zip(depths, readings, strict=True)
    ]


def adapt(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """The condition's own map: joints in its layout, labels of its first space."""
    assert isinstance(raw, ReadingMap)
    reading = raw.reading
    if condition.kind == "normals":
        return RawMap("normals", reading.normals)
    if condition.layout is not None:
        order = [SKELETONS[LAYOUT].names.index(name) for name in SKELETONS[condition.layout].names]
        people = reading.joints[None, order][: int(reading.joints.any())]
        return RawMap("people", people, {"size": list(reading.classes.shape), "layout": condition.layout})
    if condition.label_spaces:
        space = condition.label_spaces[0]
        return RawMap("labels", reading.vocabulary.ids(space)[reading.classes], {"label_space": space})
    return RawMap(raw.kind, raw.array, raw.meta)


@functools.cache
def load(weights: str = PINNED, device: str = "cpu") -> "DetectorNetwork":
    """Once per process."""
    from annotate.mini import network

    return network.load(find(WEIGHTS, weights)).to(device)


def read(net: "DetectorNetwork", images: Sequence[np.ndarray]) -> list[Reading]:  # uint8 HW3 RGB of any sizes
    """Each is scaled to the size of the scenes that were learned from, and what is found is scaled back."""
    import cv2
    import torch

    out = []
    device = next(net.parameters()).device
    for image in images:
        height, width = image.shape[:2]
        scale = SIDE / max(height, width)
        size = tuple(max(STEP, round(side * scale / STEP) * STEP) for side in (width, height))
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        with torch.inference_mode():
            pixels = (
                torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device).float()
                / 127.5
                - 1
            )
            outputs = {name: value[0].float().cpu().numpy() for name, value in net(pixels).items()}
        out.append(_reading(net, image, outputs, (width, height)))
    return out


def objects(reading: Reading) -> list[Seen]:
    """Connected areas of one colour where objects are, each of the shape that most of it has.

    Not areas of a shape: an object that is half taken for a cone and half for a pyramid would be two guesses
    at one thing.
    """
    import cv2

    out = []
    vocabulary, (height, width) = reading.vocabulary, reading.classes.shape
    numbers = [vocabulary.number(shape) for shape in vocabulary.shapes]
    anything = np.isin(reading.classes, numbers)
    for colour, name in enumerate(vocabulary.colours[1:], 1):
        count, areas, stats, _ = cv2.connectedComponentsWithStats(
            (anything & (reading.colours == colour)).astype(np.uint8)
        )
        for area in range(1, count):
            x, y, w, h, size = stats[area].tolist()
            if size < LEAST_OBJECT * height * width:
                continue
            votes = np.bincount(reading.classes[areas == area], minlength=len(vocabulary.classes))[numbers]
            box = (x / width, y / height, (x + w) / width, (y + h) / height)
            out.append(Seen(vocabulary.shapes[int(votes.argmax())], name, box))
    return out


def has_person(reading: Reading) -> bool:
    return bool((reading.classes == reading.vocabulary.number(PERSON)).mean() >= LEAST_PERSON)


# size: width, height
def _reading(
    net: "DetectorNetwork", image: np.ndarray, outputs: dict[str, np.ndarray], size: tuple[int, int]
) -> Reading:
    """Logits are scaled, so that a border of classes stays sharp.

    `image` is what the network saw, and the figure is cut out of that.
    """
    scaled = {
        name: _scaled(outputs[name].transpose(1, 2, 0), size) for name in ("normals", "classes", "colours")
    }
    normals = scaled["normals"] / np.maximum(np.linalg.norm(scaled["normals"], axis=-1, keepdims=True), 1e-6)
    classes, colours = (scaled[name].argmax(axis=-1).astype(np.uint8) for name in ("classes", "colours"))
    joints = np.zeros((len(SKELETONS[LAYOUT].names), 3), np.float32)
    reading = Reading(
        net.vocabulary, _scaled(np.exp(outputs["depth"]), size), normals, classes, colours, joints
    )
    mask = outputs["classes"].argmax(axis=0) == net.vocabulary.number(PERSON)
    if net.figure is not None and has_person(reading) and mask.any():
        joints[:] = figure.read(net.figure, image, mask)
        joints[:, :2] = np.where(
            joints[:, 2:] > 0, (joints[:, :2] + 0.5) * np.array(size) / image.shape[1::-1] - 0.5, 0
        )
    return reading


def _scaled(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    return (
        array
        if array.shape[1::-1] == size
        else cv2.resize(np.ascontiguousarray(array), size, interpolation=cv2.INTER_LINEAR)
    )
