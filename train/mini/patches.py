"""Where the mini VAE's encoder starts: a principal component analysis of 8x8 blocks, written into
AutoencoderKL's own layers.

From random weights an encoder needs thousands of steps to find as much. Training goes on from here: the
residual branches are alive.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 8
# latents are components / deviation ** this: 1 = all equally strong. Coarse structure should outlast fine in
# the noise
WHITENING = 0.5
DEVIATION = 0.04  # of the posterior, everywhere. 0.1 cost 2 dB: eight numbers a block then hold too few bits
# constant channels of this size make up a group's variance, so that GroupNorm becomes a fixed factor
ANCHOR = 64.0


@dataclass(frozen=True)
class Basis:
    """latents = rows @ (block - mean), over all 8x8x3 values of a block in -1..1, ordered channel, y, x."""

    mean: NDArray[np.float32]  # [192]
    rows: NDArray[np.float32]  # [latent channels, 192]
    kept: float  # share of the variance that these components hold


def fit(
    images: NDArray[np.uint8],  # NHWC RGB, sides multiples of 8
    channels: int,
) -> Basis:
    """The components that hold most of the variance; together of unit variance, so that the scaling factor is
    1.
    """
    blocks = _blocks(images).reshape(-1, 3 * BLOCK**2).astype(np.float64)
    mean = blocks.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(blocks - mean, rowvar=False))
    values, vectors = values[::-1], vectors[:, ::-1].T
    # no sign left to chance
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)])[:, None]
    strength = np.sqrt(values[:channels]) ** (1 - WHITENING)
    factor = np.sqrt(values[:channels]) ** -WHITENING / np.sqrt((strength**2).mean())
    rows = vectors[:channels] * factor[:, None]
    return Basis(
        mean.astype(np.float32), rows.astype(np.float32), float(values[:channels].sum() / values.sum())
    )


def encode(basis: Basis, images: NDArray[np.uint8]) -> NDArray[np.float32]:  # NHWC => [N, C, H/8, W/8]
    """What `write_encoder`'s encoder computes as the posterior's mean."""
    latents = ((_blocks(images) - basis.mean) @ basis.rows.T).astype(np.float32, copy=False)
    return latents.transpose(0, 3, 1, 2)


def _blocks(images: NDArray[np.uint8]) -> NDArray[np.float32]:  # [N, H/8, W/8, 192] in -1..1
    n, height, width, _ = images.shape
    cut = images.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3).transpose(0, 1, 3, 5, 2, 4)
    return cut.reshape(n, height // BLOCK, width // BLOCK, 3 * BLOCK**2).astype(np.float32) / 127.5 - 1


@torch.no_grad()
def write_encoder(
    vae: Any,  # diffusers AutoencoderKL of four levels
    basis: Basis,
) -> None:
    """Space to depth twice, the analysis in the third stride, then pairs (x, -x): silu(x) - silu(-x) = x.

    Residual branches end in zeros, so they say nothing yet but can learn. The pairs' group means are 0 and
    the anchors rule the variance, so the last GroupNorm scales by a constant.

    ValueError: the encoder does not have four levels, of at least 12, 48, 48 and 4 x groups channels, or it
    has fewer groups than `basis` has components.
    """
    encoder, channels = vae.encoder, len(basis.rows)
    widths, groups = list(vae.config.block_out_channels), vae.config.norm_num_groups
    if (
        len(widths) != 4
        or widths[0] < 12
        or min(widths[1:3]) < 48
        or groups < channels
        or widths[3] < 4 * groups
    ):
        raise ValueError(
            f"an encoder of {channels} components needs four levels of at least 12, 48, 48 and {4 * groups}"
            f" channels and {channels} groups, not {widths} and {groups}"
        )
    for name, parameter in encoder.named_parameters():
        if any(part in name for part in ("conv_in.", "conv_out.", "conv_shortcut.", "conv2.", "to_out.0.")):
            parameter.zero_()
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1
    for block, carried in zip(encoder.down_blocks[:3], (3, 12, 48), strict=True):
        _carry(block, carried)
        stride = block.downsamplers[0].conv
        # what the branches may write into the other channels is read at random
        stride.weight[:, :carried] = 0
        stride.bias.zero_()
        if carried < 48:
            for channel, dy, dx in itertools.product(range(carried), range(2), range(2)):
                stride.weight[4 * channel + 2 * dy + dx, channel, dy, dx] = 1
    analysis = encoder.down_blocks[2].downsamplers[0].conv
    analysis.weight[:channels, :48, :2, :2] = _third_stride(basis)
    analysis.bias[:channels] = torch.from_numpy(-basis.rows @ basis.mean)
    _pair_up(encoder, channels, widths[3] // groups)
    # The last layer says how wide the posterior is, and nothing teaches it: the encoder may use all that
    # comes before for its means.
    vae.quant_conv.weight.copy_(torch.eye(2 * channels)[..., None, None])
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[channels:] = 2 * math.log(DEVIATION)


def _third_stride(basis: Basis) -> Tensor:  # [channels, 48, 2, 2]
    """Stride s of three moves by 1, 2 and 4 pixels, and each made four channels of one: 2 dy + dx within the
    older ones.
    """
    rows = torch.from_numpy(basis.rows).view(-1, 3, 2, 2, 2, 2, 2, 2)  # k, channel, y (4, 2, 1), x (4, 2, 1)
    return rows.permute(0, 1, 4, 7, 3, 6, 2, 5).reshape(len(rows), 48, 2, 2)


def _carry(block: Any, count: int) -> None:
    for resnet in block.resnets:
        if resnet.conv_shortcut is not None:
            resnet.conv_shortcut.weight[range(count), range(count), 0, 0] = 1


def _pair_up(encoder: Any, channels: int, width: int) -> None:  # width: channels of a group
    last = encoder.down_blocks[3]
    _carry(last, 0)
    first = last.resnets[0]
    if first.conv_shortcut is None:
        raise ValueError(
            "the last two levels of the encoder must differ in width, or there is no layer to put the"
            " pairs in"
        )
    scale = (2 * ANCHOR**2 / width + 2 / width) ** 0.5  # with components of about unit variance
    encoder.conv_norm_out.weight.zero_()
    for k in range(channels):
        plus, minus = k * width, k * width + 1
        first.conv_shortcut.weight[plus, k] = 1
        first.conv_shortcut.weight[minus, k] = -1
        first.conv_shortcut.bias[k * width + 2] = ANCHOR
        first.conv_shortcut.bias[k * width + 3] = -ANCHOR
        encoder.conv_norm_out.weight[[plus, minus]] = scale
        encoder.conv_out.weight[k, plus, 1, 1] = 1
        encoder.conv_out.weight[k, minus, 1, 1] = -1
