"""HED in floating point: the layers of one set of weights, and what they compute."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


# uint8 [n, h, w, 3] RGB -> float32 [n, h, w] in 0..1
EdgeNetwork = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Layers:
    """Weights as float32 (out, in, 3, 3) and biases; sides are 1x1 with one output, already multiplied by
    their fusing weight.
    """

    blocks: tuple[tuple[tuple[np.ndarray, np.ndarray], ...], ...]
    sides: tuple[tuple[np.ndarray, np.ndarray], ...]
    bias: float  # of the fusing layer
    mean: tuple[float, float, float]  # of the channels in the order the first layer takes them, 0 to 255
    bgr: bool  # that order
    keeps_odd: bool  # pooling keeps an odd last row and column
    # activation after each 3x3 convolution, for int8; None = to be measured
    largest: tuple[float, ...] | None = None


def float_network(
    layers: Layers, device: str, dtype: str, seen: Callable[[float], object] | None = None
) -> EdgeNetwork:
    """fp32 or bf16, channels last; sides are added up in fp32.

    `seen` is told the largest activation after each 3x3 convolution.
    """
    import torch
    from torch.nn import functional

    kind: torch.dtype = getattr(torch, dtype)

    def tensor(pair: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = (torch.from_numpy(part).to(device, kind) for part in pair)
        return weight.contiguous(memory_format=torch.channels_last), bias

    blocks = [[tensor(pair) for pair in block] for block in layers.blocks]
    sides = [tensor(pair) for pair in layers.sides]
    mean = torch.tensor(layers.mean, device=device)

    def convolve(x: torch.Tensor, block: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        for weight, bias in block:
            x = functional.conv2d(x, weight, bias, padding=1).relu_()
            if seen:
                seen(float(x.max()))
        return x

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # (n, 3, h, w) seen through channels-last memory
            x = torch.from_numpy(images).to(device)
            x = ((x.flip(-1) if layers.bgr else x).float() - mean).to(kind).permute(0, 3, 1, 2)
            outputs = []
            for n, block in enumerate(blocks):
                x = functional.max_pool2d(x, 2, ceil_mode=layers.keeps_odd) if n else x
                x = convolve(x, block)
                outputs.append(functional.conv2d(x, *sides[n]).float())
            return fuse(outputs, layers.bias)

    return run


def fuse(outputs: list["torch.Tensor"], bias: float) -> np.ndarray:
    """Sum the weighted sides at the size of the first, then the logistic function: float32 [n, h, w]."""
    from torch.nn import functional

    total = outputs[0]
    for output in outputs[1:]:
        total = total + functional.interpolate(output, size=total.shape[-2:], mode="bilinear")
    return (total + bias).sigmoid()[:, 0].cpu().numpy()
