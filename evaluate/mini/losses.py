"""What the mini scorer learns by: captions of other pictures, and false captions of the same one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from evaluate.mini.network import Scorer

SHARPEST = math.log(100)  # CLIP's bound of the inverse temperature


def loss(
    net: Scorer,
    images: Tensor,  # [B, s, s, 3] uint8
    captions: Sequence[str],
    false: Sequence[str],  # of each picture a caption that differs in one thing
    *,
    bf16: bool = False,
) -> Tensor:
    """InfoNCE in both directions (arXiv 2103.00020, figure 3); each picture must also tell its caption from
    its false one.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        seen = net.of_cells(net.cells(images.permute(0, 3, 1, 2).float() / 127.5 - 1))
        said = net.of_texts(net.numbered([*captions, *false]).to(images.device))
    return contrast(seen, said[: len(captions)], said[len(captions) :], net.scale)


def contrast(
    seen: Tensor,  # [B, d] unit length
    said: Tensor,  # [B, d]
    false: Tensor,  # [B, d]
    scale: Tensor,  # log of the inverse temperature
) -> Tensor:
    factor = scale.clamp(max=SHARPEST).exp()
    right = torch.arange(len(seen), device=seen.device)
    of_images = torch.cat([seen @ said.T, (seen * false).sum(1, keepdim=True)], dim=1)
    return (
        functional.cross_entropy(factor * of_images, right)
        + functional.cross_entropy(factor * said @ seen.T, right)
    ) / 2
