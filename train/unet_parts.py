"""The two parts of a Stable Diffusion UNet, so that K conditions can share one pass of the
locked encoder.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# for the twelve skips (None = middle only) and for the middle
Residuals = tuple[tuple[Tensor, ...] | None, Tensor]


def unet_encoder(
    trunk: Any,  # a UNet2DConditionModel or a ControlNet: both hold conv_in, time_*, down_blocks, mid_block
    x: Tensor,  # [B, 4, h, w] noisy latents
    timesteps: Tensor,  # [B] int64, 0..999
    text: Tensor,  # [B, T, D] text embeddings
    hint: Tensor | None = None,  # [B, C, h, w] features added once, behind conv_in; None = the plain base
    *,
    # gradient checkpointing: a block's inner maps are computed again for the backward pass, not kept
    recompute: bool = False,
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:  # twelve skips, middle, time embedding
    """The base and its trainable copy run the same lines, so that they can only differ by
    weights and hint.
    """
    emb = trunk.time_embedding(trunk.time_proj(timesteps.expand(x.shape[0])).to(x.dtype))
    x = trunk.conv_in(x)
    if hint is not None:
        x = x + hint
    skips: tuple[Tensor, ...] = (x,)
    for block in trunk.down_blocks:
        x, outputs = _run(recompute, block, hidden_states=x, temb=emb, **_text_for(block, text))
        skips += tuple(outputs)
    return (
        skips,
        _run(recompute, trunk.mid_block, hidden_states=x, temb=emb, **_text_for(trunk.mid_block, text)),
        emb,
    )


def unet_decoder(
    unet: Any,  # UNet2DConditionModel
    skips: Sequence[Tensor],
    mid: Tensor,
    emb: Tensor,
    text: Tensor,  # [B, T, D]
    residuals: Residuals | None = None,  # None = no control: the base as it is
    *,
    recompute: bool = False,  # as in unet_encoder
) -> Tensor:  # [B, 4, h, w] prediction
    """The zero convolutions add to the decoder's inputs only: the middle, and each skip before it is
    concatenated.
    """
    skips, x = tuple(skips), mid
    if residuals is not None:
        downs, middle = residuals
        x = x + middle
        if downs is not None:
            skips = tuple(skip + residual for skip, residual in zip(skips, downs, strict=True))
    # Sides that do not halve evenly at every level must be told the size to grow back to.
    uneven = any(side % 2**unet.num_upsamplers for side in skips[0].shape[-2:])
    last = len(unet.up_blocks) - 1
    for i, block in enumerate(unet.up_blocks):
        taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
        size = skips[-1].shape[2:] if uneven and i < last else None
        given = {"hidden_states": x, "temb": emb, "res_hidden_states_tuple": taken, "upsample_size": size}
        x = _run(recompute, block, **given, **_text_for(block, text))
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def _run(recompute: bool, block: Any, **given: Any) -> Any:
    return (
        checkpoint(block, **given, use_reentrant=False)
        if recompute and torch.is_grad_enabled()
        else block(**given)
    )


def _text_for(block: Any, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
