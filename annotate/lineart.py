"""Line drawings by Anime2Sketch (Xiang 2021), the network behind ControlNet 1.1's anime line art."""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from annotate import inference
from annotate.drawing import fit
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, tensors

if TYPE_CHECKING:
    import torch

WEIGHTS = WeightFile(
    name="netG.pth",
    sha256="ccabdcc3f5cf3c07cf65d58776acb21df7dfda825cdc70c9766a93fd62bfc488",
    repo="lllyasviel/Annotators",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
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
        if not np.isfinite(line).all():
            raise ValueError(
                "the network gave values that are not finite: other weights, or precision fp32, may help"
            )
        line = (
            cv2.resize(line, small.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
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
    network = build()
    stored = {name.removeprefix("module."): tensor for name, tensor in tensors(place).items()}
    try:
        network.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{place} holds no weights of Anime2Sketch: {' '.join(str(error).split())[:200]}"
        ) from error
    network = network.to(device, kind, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

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

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        # the library tells what it lacks for detectors that are not used here
        warnings.simplefilter("ignore")
        from controlnet_aux.lineart_anime import UnetGenerator

    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    with torch.device("meta"):  # nothing is drawn at random that the file replaces anyway
        return UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)
