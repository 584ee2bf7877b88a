"""HED in 8-bit integers for CPUs with AVX512-VNNI: twice as fast there as bf16, and exact whatever the
threads or the batch.

Weights have one scale per output channel, activations one per layer: the largest value that the layer gives.
For the BSDS500 weights that was measured once, on photographs; for others when they are loaded, on a made-up
picture. A larger value saturates.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from annotate.hed_float import EdgeNetwork, Layers, float_network, fuse

STRAYS = 4.0  # of 255: further from fp32 than this on the made-up picture, and int8 is refused


def int8_network(layers: Layers) -> EdgeNetwork:
    """uint8 [n, h, w, 3] RGB -> float32 [n, h, w] in 0..1; ValueError where weights with unknown activations
    don't stand it.
    """
    if layers.largest is None:
        return _measured(layers)
    import torch

    convolve = torch.ops.onednn.qconv_pointwise
    mean, largest = np.array(layers.mean, np.float32), layers.largest
    # zero padding of (image - mean) is padding by the mean
    border = np.rint(mean).clip(0, 255).astype(np.uint8)

    def prepare(
        weight: np.ndarray, bias: np.ndarray, scale_in: float, scale_out: float | None, pad: int
    ) -> tuple[Any, ...]:
        """Arguments of the operator behind its input; scale_out None = float output, otherwise ReLU and
        uint8.
        """
        scales = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-12) / 127
        quantised = torch.from_numpy(np.rint(weight / scales[:, None, None, None]).astype(np.int8))
        scales = torch.from_numpy(scales.astype(np.float32))
        packed = torch.ops.onednn.qconv_prepack(
            quantised, scales, scale_in, 0, [1, 1], [pad, pad], [1, 1], 1, None
        )
        after = (1.0, 0, torch.float32, "none") if scale_out is None else (scale_out, 0, torch.uint8, "relu")
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        biases = torch.from_numpy(bias.astype(np.float32))
        return (scale_in, 0, packed, scales, zeros, biases, [1, 1], [pad, pad], [1, 1], 1, *after, [], "")

    blocks, sides, scale, done = [], [], 1.0, 0
    for n, block in enumerate(layers.blocks):
        prepared = []
        for weight, bias in block:
            first = done == 0  # it sees the image itself, and its bias takes the mean off
            bias = bias - (weight * mean[:, None, None]).sum(axis=(1, 2, 3)) if first else bias
            prepared.append(prepare(weight, bias, scale, largest[done] / 255, 0 if first else 1))
            scale, done = largest[done] / 255, done + 1
        blocks.append(prepared)
        sides.append(prepare(*layers.sides[n], scale, None, 0))

    def run(images: np.ndarray) -> np.ndarray:
        count, height, width, _ = images.shape
        padded = np.empty((count, height + 2, width + 2, 3), np.uint8)
        padded[:] = border
        padded[:, 1:-1, 1:-1] = images[..., ::-1] if layers.bgr else images
        with torch.inference_mode():
            x = torch.from_numpy(padded).permute(0, 3, 1, 2)
            outputs = []
            for n, block in enumerate(blocks):
                x = _halve(x, layers.keeps_odd) if n else x
                for arguments in block:
                    x = convolve(x, *arguments)
                outputs.append(convolve(x, *sides[n]))
            return fuse(outputs, layers.bias)

    return run


def _measured(layers: Layers) -> EdgeNetwork:
    """Ranges from the made-up picture, rounded up to three digits so that every machine gets the same; then a
    look whether they serve.
    """
    picture = mosaic()[None]
    largest: list[float] = []
    exact = float_network(layers, "cpu", "float32", seen=largest.append)(picture)
    largest = [float(f"{1.005 * value:.2e}") or 1.0 for value in largest]
    network = int8_network(replace(layers, largest=tuple(largest)))
    strays = 255 * float(np.abs(network(picture) - exact).mean())
    if not strays <= STRAYS:
        raise ValueError(
            f"precision int8 strays {strays:.1f} of 255 from fp32 with these weights; set precision: fp32 or"
            " bf16"
        )
    return network


def mosaic() -> np.ndarray:
    """uint8 [256, 256, 3]: random grey squares of 64, 32, 16 and 4 pixels, a quarter of the picture each.

    With the BSDS500 weights it gives 0.7 to 1.3 times the largest activations of six photographs.
    """
    random = np.random.default_rng(0)
    quarters = [
        random.integers(0, 256, (128 // side, 128 // side)).repeat(side, 0).repeat(side, 1)
        for side in (64, 32, 16, 4)
    ]
    grey = np.block([quarters[:2], quarters[2:]]).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _halve(x: Any, keeps_odd: bool) -> Any:
    """2x2 maximum; torch's own pooling of bytes refuses maps of this size."""
    import torch
    from torch.nn import functional

    height, width = x.shape[-2:]
    if keeps_odd:
        x = functional.pad(x, (0, width % 2, 0, height % 2)) if width % 2 or height % 2 else x
    else:
        x = x[..., : height // 2 * 2, : width // 2 * 2]
    rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])
