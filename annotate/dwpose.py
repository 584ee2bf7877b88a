"""Body, hands and face of many people by DWPose (2307.15880), one at a time, in the boxes that YOLOX
(2107.08430) finds; both as ONNX graphs in onnxruntime.

The arithmetic before and after them is our own: rtmlib, which has it too, asks for opencv-python, which
overwrites the headless build.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from annotate import memory, wholebody
from annotate.conditions import Condition
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.people import arranged, keep_inside
from annotate.skeletons import SKELETONS
from annotate.weights import PINNED, WeightFile, WeightsError, find

REPO = "yzd-v/DWPose"
POSE = WeightFile(
    name="dw-ll_ucoco_384.onnx",
    sha256="724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843",
    repo=REPO,
)
BOXES = WeightFile(
    name="yolox_l.onnx",
    sha256="7860ae79de6c89a3c1eb72ae9a2756c0ccfbe04b7791bb5880afabd97855a411",
    repo=REPO,
)
LAYOUT = "coco_17"
BODY, FEET = 17, 6  # COCO-WholeBody: body, feet, face, left hand, right hand
POINTS = BODY + FEET + wholebody.EXTRA
STRIDES = (8, 16, 32)  # pixels per cell of YOLOX's three grids
GREY = 114  # right of and below the image in the square that YOLOX sees
OVERLAP = 0.45  # of two boxes, above which the less sure one goes
MARGIN = 1.25  # what the pose network sees, times the box
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB in 0..255
SPLIT = 2.0  # bins per pixel of the pose network's two axes

# float32 [1, 3, h, w] -> the graph's outputs
Graph = Callable[[np.ndarray], list[np.ndarray]]


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> people [P, 17 + wholebody.EXTRA, 3], the surest boxes first; a
    point outside the image is missing. One image and one person a pass: the graphs have that size.
    """
    weights = params.get("weights", PINNED)
    (boxes, square), (pose, size) = load(BOXES, device, weights), load(POSE, device, weights)
    maps = []
    for image in images:
        seen, factor = letterbox(image, square)
        corners = people_boxes(boxes(seen)[0], square, factor, params["box_threshold"])
        found = np.zeros((len(corners), POINTS, 3), np.float32)
        for n, box in enumerate(corners):
            centre, scale = region(box, size)
            found[n] = points(pose(crop(image, centre, scale, size)), centre, scale, size)
        sure = found[..., 2:] >= params["min_confidence"]
        inside = keep_inside(np.where(sure, found, 0), image.shape[:2])
        inside = inside[inside[:, :BODY, 2].any(axis=1)]
        maps.append(RawMap("people", stored(inside), {"size": list(image.shape[:2]), "layout": LAYOUT}))
    return maps


def adapt(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """The condition's keypoints of COCO's 17; hands and face stay behind them."""
    layout = str(condition.layout)
    people = arranged(raw.array, SKELETONS[LAYOUT].names, layout)
    return RawMap("people", people, {**raw.meta, "layout": layout})


@functools.cache
def load(weight: WeightFile, device: str, weights: str = PINNED) -> tuple[Graph, tuple[int, int]]:
    """A graph, once per process, and the (height, width) that it sees; on the GPU where the installed
    onnxruntime has one.

    WeightsError: the file is absent, is not the pinned one, or is no such graph.
    """
    import onnxruntime

    place = find(weight, weights)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))  # as torch; 0 = all cores
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        number = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    try:
        session = onnxruntime.InferenceSession(str(place), options, providers=providers)
        (given,) = session.get_inputs()
        height, width = (int(side) for side in given.shape[2:])
    except Exception as error:  # its own errors have no base but this
        memory.let_through(error)
        told = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{place} is no graph that sees images of one size: get others ({told})"
        ) from error
    return lambda image: session.run(None, {given.name: image}), (height, width)


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """float32 [1, 3, h, w] BGR of 0 to 255 with the whole image in its upper left corner, and the factor that
    scaled it; as YOLOX was trained.
    """
    import cv2

    factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = int(image.shape[0] * factor), int(image.shape[1] * factor)
    full = np.full((*size, 3), GREY, np.uint8)
    full[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    return np.ascontiguousarray(full.transpose(2, 0, 1)[None], np.float32), factor


def people_boxes(output: np.ndarray, size: tuple[int, int], factor: float, threshold: float) -> np.ndarray:
    """YOLOX's output [1, cells, 5 + classes] for an input of `size` -> corners x0 y0 x1 y1 of people in
    pixels of the image, float32 [P, 4], the surest first. ValueError where a value is not finite.
    """
    if not np.isfinite(output).all():
        raise ValueError("YOLOX's output has values that are not finite")
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride].reshape(2, -1)
        cells.append(np.stack([x, y], axis=1).astype(np.float32))
        strides.append(np.full((len(x), 1), stride, np.float32))
    step = np.concatenate(strides)
    found = output[0].astype(np.float32)
    if len(found) != len(step) or found.shape[1] < 6:
        raise ValueError(f"YOLOX's output of shape {list(output.shape)} does not fit an input of {size}")
    score = found[:, 4] * found[:, 5]  # class 0 is a person
    sure = score > threshold
    middle = (found[sure, :2] + np.concatenate(cells)[sure]) * step[sure]
    half = np.exp(found[sure, 2:4]) * step[sure] / 2
    corners = np.concatenate([middle - half, middle + half], axis=1) / np.float32(factor)
    return corners[_apart(corners, score[sure])]


def _apart(corners: np.ndarray, score: np.ndarray) -> list[int]:
    """The surest boxes that overlap no surer one; pixels are counted, so that sides are one longer."""
    order = list(np.argsort(-score, kind="stable"))
    sides = lambda box: (box[..., 2:] - box[..., :2] + 1).clip(min=0)
    area = sides(corners).prod(axis=1)
    kept: list[int] = []
    for n in order:
        low = np.maximum(corners[kept, :2], corners[n, :2])
        high = np.minimum(corners[kept, 2:], corners[n, 2:])
        shared = sides(np.concatenate([low, high], axis=1)).prod(axis=1)
        if not (shared / (area[kept] + area[n] - shared) > OVERLAP).any():
            kept.append(int(n))
    return kept


def region(box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Middle and sides, x before y, of what the pose network sees of a box: MARGIN around it, widened or
    heightened to the shape of `size` (h, w).
    """
    width, height = (box[2:] - box[:2]) * MARGIN
    shape = size[1] / size[0]
    sides = (width, width / shape) if width > height * shape else (height * shape, height)
    return (box[:2] + box[2:]) / 2, np.array(sides)


def crop(image: np.ndarray, centre: np.ndarray, scale: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [1, 3, h, w] RGB, normalized; black outside of the image."""
    import cv2

    factor = size[1] / scale[0]
    shift = np.array([size[1], size[0]]) / 2 - centre * factor
    matrix = np.array([[factor, 0, shift[0]], [0, factor, shift[1]]])
    seen = cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
    return np.ascontiguousarray(((seen - MEAN) / DEVIATION).transpose(2, 0, 1)[None], np.float32)


def points(
    outputs: list[np.ndarray], centre: np.ndarray, scale: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """The pose network's bins of x [1, 133, SPLIT w] and y [1, 133, SPLIT h] -> float32 [133, 3] in pixels of
    the image; confidence is the mean of both heights. ValueError where one is not finite or of another size.
    """
    (x,), (y,) = outputs
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the pose network's bins have values that are not finite")
    if x.shape != (POINTS, SPLIT * size[1]) or y.shape != (POINTS, SPLIT * size[0]):
        raise ValueError(f"bins of shapes {list(x.shape)} and {list(y.shape)} are not those of DWPose")
    confidence = (x.max(axis=1) + y.max(axis=1)) / 2
    place = np.stack([x.argmax(axis=1), y.argmax(axis=1)], axis=1) / SPLIT
    xy = place / (size[1], size[0]) * scale + centre - scale / 2
    found = np.concatenate([xy, confidence[:, None]], axis=1)
    return np.where(confidence[:, None] > 0, found, 0).astype(np.float32)


def stored(people: np.ndarray) -> np.ndarray:
    """COCO-WholeBody's 133 points [P, 133, 3] in the order that maps have: body, left hand, right hand, face;
    the feet are left out.
    """
    face = BODY + FEET + wholebody.FACE
    return np.concatenate([people[:, :BODY], people[:, face:], people[:, BODY + FEET : face]], axis=1)
