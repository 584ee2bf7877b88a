"""ControlNet's own HED (annotator/hed in its release): VGG16 with five sides, retrained by its authors and
free to use.

The layers run through the networks of annotate/hed.py, here with the published habits: RGB, floor pooling, no
margin, the mean of the five sides under one logistic function, and truncation to bytes.
"""

import functools
from pathlib import Path

import numpy as np

from annotate import inference
from annotate.drawing import fit
from annotate.hed import DEPTHS, PRECISIONS
from annotate.hed_float import EdgeNetwork, Layers
from annotate.maps import RawMap
from annotate.networks import to_bytes
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, find, tensors

WEIGHTS = WeightFile(
    name="ControlNetHED.pth",
    sha256="5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
    repo="lllyasviel/Annotators",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
)


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> soft edges at image size; resolution 0 = seen at image size, to
    the pixel.
    """
    network = load(params["precision"], device, params.get("weights", PINNED))
    short, margin = params["resolution"], params["margin"]
    seen = inference.at_resolution(images, short) if short else images
    framed = [np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "edge") for image in seen]
    strengths = inference.run(framed, network, device, "controlnet-hed")
    inner = [each[margin : each.shape[0] - margin, margin : each.shape[1] - margin] for each in strengths]
    return [
        RawMap("soft_edges", fit(to_bytes(each), image.shape[:2]))
        for each, image in zip(inner, images, strict=True)
    ]


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> EdgeNetwork:
    """The network, once per process."""
    return PRECISIONS[precision](read_layers(find(WEIGHTS, weights)), device)


def read_layers(path: Path) -> Layers:
    """The released file: norm [1, 3, 1, 1] RGB, block<n>.convs.<i> and block<n>.projection; ValueError if a
    tensor is absent.
    """

    stored = tensors(path)
    wanted = [f"block{n}.convs.{i}" for n, depth in enumerate(DEPTHS, 1) for i in range(depth)]
    wanted += [f"block{n}.projection" for n in range(1, len(DEPTHS) + 1)]
    absent = [name for layer in wanted for name in (f"{layer}.weight", f"{layer}.bias") if name not in stored]
    if absent or "norm" not in stored:
        raise ValueError(f"{path} is no ControlNetHED file: it has no {absent[0] if absent else 'norm'}")

    def read(layer: str, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = (
            stored[f"{layer}.{part}"].float().numpy() * np.float32(share) for part in ("weight", "bias")
        )
        return weight, bias

    blocks = tuple(
        tuple(read(f"block{n}.convs.{i}") for i in range(depth)) for n, depth in enumerate(DEPTHS, 1)
    )
    sides = tuple(read(f"block{n}.projection", 1 / len(DEPTHS)) for n in range(1, len(DEPTHS) + 1))
    red, green, blue = stored["norm"].float().flatten().tolist()
    return Layers(blocks, sides, 0.0, (red, green, blue), bgr=False, keeps_odd=False)
