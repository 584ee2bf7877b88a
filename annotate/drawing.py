"""Draw raw maps as the RGB hints that ControlNets are trained on; one row of PROTOCOLS per published way of
drawing.
"""

import hashlib
import random
from collections.abc import Callable
from typing import TypedDict

import numpy as np

from annotate.label_drawing import flat, outlined
from annotate.parameters import Values
from annotate.skeletons import SKELETONS, draw_cn10, draw_cn11, draw_lines


class MapMeta(TypedDict, total=False):
    """What is stored of a raw map beside its array; which keys it has, its kind says (annotate/maps.py)."""

    size: list[int]  # [height, width] of the image
    layout: str  # of keypoints
    label_space: str
    scale: float  # of the 16-bit code of depth, as is shift
    shift: float
    unit: str
    seen: list[int]  # [height, width] that MiDaS saw
    clipped: float  # share of provided depths that were set to a farther one
    note: str  # what is doubtful about a provided map, or was dropped from it


# array of the map, meta, (height, width) -> uint8 [height, width, 3] RGB
Drawer = Callable[[np.ndarray, MapMeta, tuple[int, int]], np.ndarray]


SAFE = 0.75  # share of soft edges in three steps that ControlNet 1.1 was trained with (its README)


def drawer(kind: str, protocol: str, drawn: Values) -> Drawer:
    """How a kind of map is drawn by a protocol, with what `draw` gave of one image or {}.

    ValueError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown drawing protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    return soft_edges if drawn.get("safe_steps") is False else PROTOCOLS[protocol][kind]


def draw(kind: str, protocol: str, seed: int, image_id: str) -> Values:
    """What is drawn at random as one image of a training set is drawn: `safe_steps` of cn11's soft edges, {}
    of all others; the same for the same seed and image id, whatever else is drawn.
    """
    if PROTOCOLS[protocol][kind] is not soft_edges_safe:
        return {}
    digest = hashlib.sha256(f"{protocol}\0{kind}\0{seed}\0{image_id}".encode()).digest()
    return {"safe_steps": random.Random(int.from_bytes(digest[:8], "big")).random() < SAFE}


def fit(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map of continuous values: by area when it shrinks, bilinearly when it grows; unchanged at its
    own size.
    """
    import cv2

    if array.shape[:2] == size:
        return array
    shrinks = size[0] * size[1] < array.shape[0] * array.shape[1]
    return cv2.resize(
        array, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def scale_points(xy: np.ndarray, stored: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Move float [..., 2] points x, y to another resolution; pixel centres lie at integers."""
    factor = np.array([size[1] / stored[1], size[0] / stored[0]], np.float32)
    return (xy + 0.5) * factor - 0.5


def edges(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """White on black; shrinking keeps every pixel that an edge touches, so that no line breaks."""
    import cv2

    h, w = array.shape
    if size[0] <= h and size[1] <= w:
        array = np.where(fit(array, size) > 0, np.uint8(255), np.uint8(0))
    else:
        array = cv2.resize(array, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return _grey(array)


def soft_edges(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """The strength of the edge as brightness."""
    return _grey(fit(array, size))


def soft_edges_safe(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """ControlNet 1.1's safe_step(x, 2), so that no grey picture hides in the edges: 0 below 85, 127 below
    170, 255 from there on; of a training set a quarter is drawn without (`draw`).
    """
    level = np.minimum(fit(array, size) // 85, 2)  # floor(3 x) of x = value / 255
    return _grey((level.astype(np.uint16) * 255 // 2).astype(np.uint8))


def lines(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """White lines of one pixel."""
    import cv2

    canvas, (height, width) = np.zeros(size, np.uint8), meta["size"]
    ends = np.rint(scale_points(array[:, :4].reshape(-1, 2, 2), (height, width), size)).astype(np.int32)
    for (x0, y0), (x1, y1) in ends.tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), 255, 1, cv2.LINE_8)
    return _grey(canvas)


def people_drawer(by_layout: dict[str, Callable[..., np.ndarray]]) -> Drawer:
    """A drawer of keypoints that knows one way of drawing per layout."""

    def people(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
        moved, (height, width) = array.copy(), meta["size"]
        moved[..., :2] = scale_points(array[..., :2], (height, width), size)
        return by_layout[meta["layout"]](moved, SKELETONS[meta["layout"]], np.zeros((*size, 3), np.uint8))

    return people


def labels(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """Each id in the colour of its label space, void black: as ControlNet 1.0 drew (annotator/uniformer) and
    data sets do.

    ValueError: an unknown label space, or an id that the space does not have.
    """
    return flat(array, meta["label_space"], size)


def labels_cn11(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """Outlined, as ControlNet 1.1's OneFormer was drawn (annotator/oneformer/oneformer/demo/visualizer.py);
    COCO-Stuff in the classes and colours of COCO panoptic.

    ValueError: an unknown label space, or an id that the space does not have.
    """
    return outlined(array, meta["label_space"], size)


def depth(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """Near is white: inverse depth, minimum to maximum of this image; a flat map is black."""
    values = fit(array.astype(np.float32), size)
    low, high = float(values.min()), float(values.max())
    return _grey(np.rint((values - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8))


def normals_cn11(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """Red is left, green is up, blue is to the viewer; an invalid pixel is mid grey."""
    import cv2

    return cv2.merge(_colours_of_normals(array, size))


def normals_cn10(array: np.ndarray, meta: MapMeta, size: tuple[int, int]) -> np.ndarray:
    """The released normal model was fed its map with red and blue exchanged: red is to the viewer, blue is
    left.
    """
    import cv2

    return cv2.merge(_colours_of_normals(array, size)[::-1])


def _colours_of_normals(array: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """uint8 [h, w] for left, up and to the viewer: plane by plane, since numpy is slow along an axis of 3."""
    import cv2

    axes = cv2.split(fit(array.astype(np.float32, copy=False), size))
    length = np.sqrt(axes[0] * axes[0] + axes[1] * axes[1] + axes[2] * axes[2])
    invalid = ~(length > 1e-6)
    length[invalid] = 1
    colours = []
    for axis, factor in zip(axes, (-127.5, 127.5, 127.5), strict=True):
        axis = axis / length
        axis[invalid] = 0
        axis *= np.float32(factor)
        axis += np.float32(127.5)
        colours.append(axis.clip(0, 255, out=axis).astype(np.uint8))
    return colours


def _grey(array: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.merge([array, array, array])


_SAME = {"edges": edges, "soft_edges": soft_edges, "lines": lines, "labels": labels, "depth": depth}

PROTOCOLS: dict[str, dict[str, Drawer]] = {
    "cn10": {
        **_SAME,
        "normals": normals_cn10,
        "people": people_drawer({"openpose_18": draw_cn10, "coco_17": draw_lines}),
    },
    "cn11": {
        **_SAME,
        "soft_edges": soft_edges_safe,
        "labels": labels_cn11,
        "normals": normals_cn11,
        "people": people_drawer({"openpose_18": draw_cn11, "coco_17": draw_lines}),
    },
}
