"""Line segments by M-LSD (Gu et al. 2022), the large network that ControlNet's Hough model was
trained with.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from annotate import inference
from annotate.drawing import scale_points
from annotate.maps import RawMap
from annotate.networks import filled, finite, quiet
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, find, tensors

if TYPE_CHECKING:
    import torch

WEIGHTS = WeightFile(
    name="mlsd_large_512_fp32.pth",
    sha256="5696f168eb2c30d4374bbfd45436f7415bb4d88da29bea97eea0101520fba082",
    repo="lllyasviel/Annotators",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
)
STRIDE = 2  # network pixels per cell of the field
MOST = 200  # segments of an image, the surest


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> segments at image size, the surest first; the score is the
    probability of the centre.
    """
    forward = load(params["precision"], device, params.get("weights", PINNED))
    seen = inference.at_resolution(images, params["resolution"])
    maps = []
    for image, small, field in zip(images, seen, inference.run(seen, forward, device, "mlsd"), strict=True):
        segments = decode(field, params["thr_v"], params["thr_d"])
        ends = segments[:, :4].reshape(-1, 2, 2)
        segments[:, :4] = scale_points(ends, small.shape[:2], image.shape[:2]).reshape(-1, 4)
        maps.append(RawMap("lines", segments, {"size": list(image.shape[:2])}))
    return maps


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> Callable[[np.ndarray], np.ndarray]:
    """The network, once per process: uint8 [n, h, w, 3] RGB, sides multiples of 16 -> fields float32 [n, 5, h
    / 2, w / 2].

    WeightsError: the file is absent, is not the pinned one, or does not hold exactly the tensors of this
    network.
    """
    import torch

    kind = inference.dtype(precision)
    place = find(WEIGHTS, weights)
    network = filled(build(), tensors(place), place, "M-LSD large")
    network = network.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = network.block23.conv3
    # in bf16 neighbours would tie for the maximum
    last.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            rgb = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
            # the fourth channel, meant as ones, goes through the same scaling in the release
            x = torch.nn.functional.pad(rgb, (0, 0, 0, 0, 0, 1), value=1.0) / 127.5 - 1.0
            return network(x.to(kind, memory_format=torch.channels_last))[:, :5].cpu().numpy()

    return run


def build() -> "torch.nn.Module":
    """controlnet_aux's network without weights, on the meta device."""
    import torch

    with quiet():
        from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    with torch.device("meta"):  # nothing is drawn at random that the file replaces anyway
        return MobileV2_MLSD_Large()


def decode(field: np.ndarray, thr_v: float, thr_d: float) -> np.ndarray:
    """Centre logit and the displacements x0 y0 x1 y1 in cells, float32 [5, h, w] -> float32 [N, 5] in network
    pixels, the surest first.

    The published rules (deccode_output_score_and_ptss, pred_lines): a centre is the maximum of its 3x3 cells,
    more probable than thr_v, one of the MOST surest; its segment is longer than thr_d cells.

    ValueError: a value of `field` that is not finite.
    """
    import cv2

    finite(field)
    heat = 1 / (1 + np.exp(-field[0].clip(-80, None)))
    y, x = np.nonzero((heat > thr_v) & (heat == cv2.dilate(heat, np.ones((3, 3), np.uint8))))
    best = np.argsort(-heat[y, x], kind="stable")[:MOST]
    y, x = y[best], x[best]
    x0, y0, x1, y1 = field[1:, y, x]
    long_enough = np.hypot(x1 - x0, y1 - y0) > thr_d
    segments = np.stack(
        [STRIDE * (x + x0), STRIDE * (y + y0), STRIDE * (x + x1), STRIDE * (y + y1), heat[y, x]], axis=1
    )
    return segments[long_enough].astype(np.float32)
