"""HED in 8-bit integers for CPUs with AVX512-VNNI: twice as fast there as bf16, and exact whatever the threads or the batch.

Weights have one scale per output channel, activations one per layer. Since the weights are pinned, the activations' ranges
are facts: each layer's largest value over seven photographs (scikit-image's astronaut, coffee and chelsea, scikit-learn's china
and flower, ultralytics' bus and zidane). A larger value saturates; pictures outside the seven stay as close (benchmarks/annotate.py).
"""

from typing import Any

import numpy as np

from annotate.hed import MEAN_BGR, Layers, Network, fuse

# largest activation after each of the thirteen convolutions (measured, fp32, short side 512)
LARGEST = (742.0, 1700.0, 2306.0, 1279.0, 724.0, 722.0, 551.0, 241.0, 171.0, 115.0, 265.0, 260.0, 893.0)


def int8_network(layers: Layers) -> Network:
    """uint8 [n, h, w, 3] RGB -> float32 [n, h, w] in 0..1."""
    import torch

    convolve = torch.ops.onednn.qconv_pointwise
    mean = np.array(MEAN_BGR, np.float32)
    border = np.rint(mean).astype(np.uint8)  # zero padding of (image - mean) is padding by the mean

    def prepare(weight: np.ndarray, bias: np.ndarray, scale_in: float, scale_out: float | None, pad: int) -> tuple[Any, ...]:
        """Arguments of the operator behind its input; scale_out None = float output, otherwise ReLU and uint8."""
        scales = np.abs(weight).max(axis=(1, 2, 3)) / 127
        quantised = torch.from_numpy(np.rint(weight / scales[:, None, None, None]).astype(np.int8))
        scales = torch.from_numpy(scales.astype(np.float32))
        packed = torch.ops.onednn.qconv_prepack(quantised, scales, scale_in, 0, [1, 1], [pad, pad], [1, 1], 1, None)
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
            prepared.append(prepare(weight, bias, scale, LARGEST[done] / 255, 0 if first else 1))
            scale, done = LARGEST[done] / 255, done + 1
        blocks.append(prepared)
        sides.append(prepare(*layers.sides[n], scale, None, 0))

    def run(images: np.ndarray) -> np.ndarray:
        count, height, width, _ = images.shape
        padded = np.empty((count, height + 2, width + 2, 3), np.uint8)
        padded[:] = border
        padded[:, 1:-1, 1:-1] = images[..., ::-1]
        with torch.inference_mode():
            x = torch.from_numpy(padded).permute(0, 3, 1, 2)
            outputs = []
            for n, block in enumerate(blocks):
                x = _halve(x) if n else x
                for arguments in block:
                    x = convolve(x, *arguments)
                outputs.append(convolve(x, *sides[n]))
            return fuse(outputs, layers.bias)

    return run


def _halve(x: Any) -> Any:
    """2x2 maximum, the last odd row and column kept; torch's own pooling of bytes refuses maps of this size."""
    import torch
    from torch.nn import functional

    x = functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)) if x.shape[-1] % 2 or x.shape[-2] % 2 else x
    rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])
