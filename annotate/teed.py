"""Soft edges by TEED (Soria et al. 2023), a network of 58,910 weights, and AnyLine, which lays dark lines
over them.

Both as controlnet_aux runs them: RGB of 0 to 255 without a mean, and the mean of all four sides.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from annotate import inference
from annotate.maps import RawMap
from annotate.networks import filled, finite, quiet, stored, to_bytes
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, find

if TYPE_CHECKING:
    import torch

# no hash: the hub's file could not be compared with the one of the authors' repository
TEED = WeightFile(name="5_model.pth", repo="fal-ai/teed")
MTEED = WeightFile(
    name="Anyline/MTEED.pth",
    also="MTEED.pth",
    sha256="a3c2d8a8ce9422555c787160bd46362d761325a565333c0e3f6a53e0bae2abdb",
    repo="TheMistoAI/MistoLine",
)
SHORT = 1280  # at which AnyLine sees an image
BLUR, DARKER = 2.0, 3  # pixels, and of 255: what counts for the median of the dark lines
# pixels; scikit-image takes away what has at most 36 in three equal channels (before 0.26: fewer than 36)
LEAST_SPECK = 13
LEAST_MEDIAN = 16  # of 255: faint lines are not made stronger than this allows


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> soft edges at image size; equal sizes run together."""
    seen = inference.at_resolution(images, params["resolution"])
    strengths = _strengths(seen, TEED, params, device)
    return [
        RawMap("soft_edges", _sized(to_bytes(each), image))
        for each, image in zip(strengths, images, strict=True)
    ]


def detect_anyline(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> lines of all greys, white on black, at image size."""
    seen = inference.at_resolution(images, params["resolution"])
    return [
        RawMap("soft_edges", _sized(BLENDS[params["blend"]](three_levels(each), dark_lines(small)), image))
        for each, small, image in zip(_strengths(seen, MTEED, params, device), seen, images, strict=True)
    ]


def _strengths(
    seen: list[np.ndarray], weights: WeightFile, params: Values, device: str
) -> list[np.ndarray]:  # float64 [h, w] in 0..1
    network = load(weights, params["precision"], device, params.get("weights", PINNED))
    logits = inference.run(seen, network, device, f"{weights.name} {params['precision']}")
    return [1 / (1 + np.exp(-finite(each).astype(np.float64))) for each in logits]


@functools.cache
def load(
    file: WeightFile, precision: str, device: str, weights: str = PINNED
) -> Callable[[np.ndarray], np.ndarray]:
    """The network, once per process: uint8 [n, h, w, 3] RGB, sides multiples of 8 -> float32 [n, h, w], the
    mean of the logits of its sides.

    WeightsError: the file is absent, is not the pinned one, or does not hold exactly the tensors of this
    network.
    """
    import torch

    kind = inference.dtype(precision)
    place = find(file, weights)
    network = filled(build(), stored(place), place, "TEED")
    network = network.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
            sides = network(x.to(kind, memory_format=torch.channels_last))
            return torch.cat([side.float() for side in sides], 1).mean(1).cpu().numpy()

    return run


def build() -> "torch.nn.Module":
    """controlnet_aux's network without weights, on the meta device."""
    import torch

    with quiet():
        from controlnet_aux.teed.ted import TED

    with torch.device("meta"):
        return TED()


def three_levels(strength: np.ndarray) -> np.ndarray:
    """safe_step(x, 2) of the release: uint8 0, 127 and 255, by thirds of 0..1."""
    return np.array([0, 127, 255, 255], np.uint8)[(strength.astype(np.float32) * 3).astype(np.int32)]


def dark_lines(image: np.ndarray) -> np.ndarray:
    """uint8 HW3 -> uint8 [h, w]: by how much a pixel is darker than what lies around it, the median line at
    127, without specks.
    """
    import cv2

    x = image.astype(np.float32)
    darker = np.min(cv2.GaussianBlur(x, (0, 0), BLUR) - x, axis=2).clip(0, 255)
    lines = darker[darker > DARKER]
    darker /= max(LEAST_MEDIAN, np.median(lines) if lines.size else 0)
    grey = (darker * 127).clip(0, 255).astype(np.uint8)
    _, areas, stats, _ = cv2.connectedComponentsWithStats((grey > 0).astype(np.uint8), connectivity=4)
    return np.where(stats[areas, cv2.CC_STAT_AREA] >= LEAST_SPECK, grey, np.uint8(0))


def _screen(edges: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Both brighten: 1 - (1 - a)(1 - b), as in the authors' own program (ComfyUI-Anyline, anyline.py)."""
    product = edges.astype(np.float32) * lines / 255
    return np.rint(edges.astype(np.float32) + lines - product).astype(np.uint8)


def _wrapped(edges: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """controlnet_aux computes the same on bytes, where 1 is 1 of 255 and what passes 255 begins at 0 again:
    lines over edges come out in any grey.
    """
    return np.where(lines > 0, 1 - (1 - lines) * (1 - edges), edges)


BLENDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"screen": _screen, "bytes": _wrapped}


def _sized(array: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Bilinearly to the size of the image, also where it shrinks, as the library does."""
    import cv2

    return cv2.resize(array, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
