"""Line drawings, as behind ControlNet 1.1's line art: Anime2Sketch (Xiang 2021) for anime, and the
generators of Chan et al. 2022 (informative drawings), fine and coarse, for photographs.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from annotate import inference
from annotate.conditions import Condition
from annotate.drawing import fit
from annotate.maps import RawMap
from annotate.networks import filled, finite, quiet, stored, to_bytes
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, find

if TYPE_CHECKING:
    import torch

_pinned = functools.partial(
    WeightFile, repo="lllyasviel/Annotators", revision="982e7edaec38759d914a963c48c4726685de7d96"
)
WEIGHTS = _pinned(name="netG.pth", sha256="ccabdcc3f5cf3c07cf65d58776acb21df7dfda825cdc70c9766a93fd62bfc488")
# informative drawings: the styles `anime` and `opensketch` of their authors, by ControlNet's names
FINE = _pinned(name="sk_model.pth", sha256="c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6")
COARSE = _pinned(
    name="sk_model2.pth", sha256="30a534781061f34e83bb9406b4335da4ff2616c95d22a585c1245aa8363e74e0"
)
MULTIPLE = 256  # the U-Net halves its input eight times
# of 255: on the authors' own drawings the thin lines reach 60 to 110; at 128 only eyes and folds are left
THRESHOLD = 64


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> white lines on black in {0, 255}, at image size."""
    return [
        RawMap("edges", np.where(grey >= params["threshold"], np.uint8(255), np.uint8(0)))
        for grey in draw_grey(images, params, device)
    ]


def draw_grey(images: list[np.ndarray], params: Values, device: str) -> list[np.ndarray]:
    """The drawings before the threshold: uint8 [h, w] at image size, white on black, as controlnet_aux's
    LineartAnimeDetector.

    ControlNet 1.1's annotator gives black on white, and its application inverts it before the ControlNet sees
    it.

    ValueError: the network gave values that are not finite. WeightsError as for `load`.
    """
    import cv2

    forward = load(params["precision"], device, params.get("weights", PINNED))
    short = params["resolution"]
    seen = inference.at_resolution(images, short) if short else images
    wide = [
        cv2.resize(image, _padded(*image.shape[:2])[::-1], interpolation=cv2.INTER_CUBIC) for image in seen
    ]
    drawings = []
    for line, small, image in zip(
        inference.run(wide, forward, device, "anime2sketch"), seen, images, strict=True
    ):
        line = (
            cv2.resize(finite(line), small.shape[1::-1], interpolation=cv2.INTER_CUBIC)
            .clip(0, 255)
            .astype(np.uint8)
        )
        drawings.append(255 - fit(line, image.shape[:2]))
    return drawings


def _padded(height: int, width: int) -> tuple[int, int]:
    """Stretched, not filled up, to the next multiples, as in the release."""
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> Callable[[np.ndarray], np.ndarray]:
    """The network, once per process: uint8 [n, h, w, 3] RGB, sides multiples of 256 -> float32 [n, h, w] in
    0..255, black on white.

    WeightsError: the file is absent, is not the pinned one, or does not hold exactly the tensors of this
    network.
    """
    import torch

    kind = inference.dtype(precision)
    place = find(WEIGHTS, weights)
    network = filled(build(), stored(place), place, "Anime2Sketch")
    network = network.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            return (
                (network(x.to(kind, memory_format=torch.channels_last)).float()[:, 0] * 127.5 + 127.5)
                .cpu()
                .numpy()
            )

    return run


def build() -> "torch.nn.Module":
    """controlnet_aux's network without weights, on the meta device: eight halvings, instance norm without
    parameters.
    """
    import torch

    with quiet():
        from controlnet_aux.lineart_anime import UnetGenerator

    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    with torch.device("meta"):  # nothing is drawn at random that the file replaces anyway
        return UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)


def detect_informative(
    file: WeightFile,
    images: list[np.ndarray],
    params: Values,
    random_params: list[Values],
    parents: list[RawMap],
    device: str,
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> grey lines, white on black, at image size, as controlnet_aux's
    LineartDetector; `adapt` cuts them where a condition has only edges.
    """
    forward = load_informative(file, params["precision"], device, params.get("weights", PINNED))
    seen = inference.at_resolution(images, params["resolution"])
    drawings = inference.run(seen, forward, device, f"{file.name} {params['precision']}")
    return [
        RawMap("soft_edges", 255 - fit(to_bytes(each), image.shape[:2]))
        for each, image in zip(drawings, images, strict=True)
    ]


def adapt(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """Grey lines as they are where the condition keeps greys, else those of the threshold or stronger."""
    if condition.kind == raw.kind:
        return raw
    return RawMap("edges", np.where(raw.array >= params["threshold"], np.uint8(255), np.uint8(0)))


@functools.cache
def load_informative(
    file: WeightFile, precision: str, device: str, weights: str = PINNED
) -> Callable[[np.ndarray], np.ndarray]:
    """The generator, once per process: uint8 [n, h, w, 3] RGB, sides multiples of 4 -> float32 [n, h, w] in
    0..1, black on white.

    WeightsError as for `load`.
    """
    import torch

    kind = inference.dtype(precision)
    place = find(file, weights)
    network = filled(build_informative(), stored(place), place, "informative drawings")
    network = network.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
            return network(x.to(kind, memory_format=torch.channels_last))[:, 0].float().cpu().numpy()

    return run


def build_informative() -> "torch.nn.Module":
    """controlnet_aux's network without weights, on the meta device: three residual blocks."""
    import torch

    with quiet():
        from controlnet_aux.lineart import Generator

    with torch.device("meta"):
        return Generator(3, 1, 3)
