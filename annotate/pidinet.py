"""Soft edges by PiDiNet (Su et al. 2021), pixel difference networks, as controlnet_aux runs them.

The release feeds it BGR in 0..1 without the mean and deviation that it was trained with; so do we, since
ControlNets have learned from these edges.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from annotate import inference
from annotate.drawing import fit
from annotate.maps import RawMap
from annotate.networks import filled, quiet, stored, to_bytes
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, find

if TYPE_CHECKING:
    import torch

WEIGHTS = WeightFile(
    name="table5_pidinet.pth",
    sha256="80860ac267258b5f27486e0ef152a211d0b08120f62aeb185a050acc30da486c",
    repo="lllyasviel/Annotators",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
)
# the kinds of its convolutions in turn (carv4): central, angular and radial differences, and a plain one
TURNS = ("cd", "ad", "rd", "cv")
# radial: in a window of 5 x 5, each of eight pixels of the outer ring less the one inwards of it
OUTER, INNER = [0, 2, 4, 10, 14, 20, 22, 24], [6, 7, 8, 11, 13, 16, 17, 18]
NEXT = [3, 0, 1, 6, 4, 2, 7, 8, 5]  # angular: each of the 3 x 3 less its neighbour, clockwise


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> soft edges at image size; equal sizes run together."""
    network = load(params["precision"], device, params.get("weights", PINNED))
    seen = inference.at_resolution(images, params["resolution"])
    strengths = inference.run(seen, network, device, f"pidinet {params['precision']}")
    return [
        RawMap("soft_edges", fit(to_bytes(each), image.shape[:2]))
        for each, image in zip(strengths, images, strict=True)
    ]


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> Callable[[np.ndarray], np.ndarray]:
    """The network, once per process: uint8 [n, h, w, 3] RGB -> float32 [n, h, w] in 0..1.

    WeightsError: the file is absent, is not the pinned one, or does not hold exactly the tensors of this
    network.
    """
    import torch

    kind = inference.dtype(precision)
    place = find(WEIGHTS, weights)
    network = build()
    found = stored(place, "state_dict")
    network = filled(network, {name: plain(name, each) for name, each in found.items()}, place, "PiDiNet")
    network = network.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(images[..., ::-1].copy()).to(device).permute(0, 3, 1, 2).float() / 255
            return network(x.to(kind, memory_format=torch.channels_last))[-1][:, 0].float().cpu().numpy()

    return run


def build() -> "torch.nn.Module":
    """controlnet_aux's network for converted weights, without any, on the meta device."""
    import torch

    with quiet():
        from controlnet_aux.pidi.model import PiDiNet

    with torch.device("meta"):
        return PiDiNet(60, list(TURNS * 4), dil=24, sa=True, convert=True)


def plain(name: str, weight: "torch.Tensor") -> "torch.Tensor":
    """The weight with which an ordinary convolution computes what the layer of this name does by pixel
    differences (section 3.2); computed once, where the library does it anew for every image.
    """
    layer, shape = _turn(name), weight.shape
    if layer is None or len(shape) != 4 or shape[2:] != (3, 3):
        return weight
    flat = weight.flatten(2)
    if TURNS[layer] == "cd":
        out = flat.clone()
        out[..., 4] -= flat.sum(-1)
        return out.view(shape)
    if TURNS[layer] == "ad":
        return (flat - flat[..., NEXT]).view(shape)
    if TURNS[layer] == "rd":
        wide = flat.new_zeros((*shape[:2], 25))
        wide[..., OUTER], wide[..., INNER] = flat[..., 1:], -flat[..., 1:]
        return wide.view(*shape[:2], 5, 5)
    return weight


def _turn(name: str) -> int | None:
    """Which kind the layer is, a place in TURNS; None = no layer that takes differences.

    init_block is the first of sixteen, block1_1 the second, block2_1 the fifth.
    """
    match name.split("."):
        case ["init_block", "weight"]:
            return 0
        case [block, "conv1", "weight"] if block.startswith("block"):
            stage, number = map(int, block.removeprefix("block").split("_"))
            return number % 4 if stage == 1 else (number - 1) % 4
    return None
