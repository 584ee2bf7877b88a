"""The gradients of one logical batch: one pass of the locked encoder, then each condition's ControlNet and
decoder, in the memory there is.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from train.batches import Batch
from train.controlnet import ControlNet
from train.loss import noisy_and_target, timestep_weights
from train.options import Options
from train.out_of_memory import REMEDY
from train.unet_parts import Residuals, unet_decoder, unet_encoder

SHAPES = 256  # that torch.compile may meet, of each part of the model


@dataclass(frozen=True)
class MicroBatch:
    """How much of a logical batch is on the device at once; the gradients are the same, but for rounding."""

    images: int  # per forward pass
    join: bool  # whether all conditions' decoder passes are one batch
    fits: bool = field(default=False, compare=False)  # whether a step of this run was done with it

    def smaller(self) -> "MicroBatch":
        """Where memory ran out: first the conditions part, then half the images; MemoryError where one image
        is too much.
        """
        if self.join:
            return replace(self, join=False, fits=False)
        if self.images == 1:
            raise MemoryError(f"training runs out of memory with one image at a time: {REMEDY}")
        return replace(self, images=(self.images + 1) // 2, fits=False)


@dataclass(frozen=True)
class DiffusionModel:
    """All that a step runs, as it computes; `encode`, `control` and `decode` may be compiled."""

    unet: Any  # UNet2DConditionModel: the base, or the copy of it that trains too
    controlnets: Mapping[str, ControlNet]
    alphas: Tensor  # [1000] share of signal variance left, on the device
    prediction_type: str  # epsilon | v_prediction
    encode: Callable[..., tuple[tuple[Tensor, ...], Tensor, Tensor]] = unet_encoder
    control: Callable[..., tuple[tuple[Tensor, ...], Tensor]] = lambda controlnet, *given, **more: controlnet(
        *given, **more
    )
    decode: Callable[..., Tensor] = unet_decoder
    eager: "DiffusionModel | None" = None  # the same, not compiled; None = this one is not

    def compiled(self, backend: str | Callable[..., Any] = "inductor") -> "DiffusionModel":
        """Each part once for each shape; K ControlNets share one program, since their weights are its
        inputs.
        """
        # twice as many as there are aspect buckets: whole micro-batches of each, and the last ones
        torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
        compile_part = functools.partial(torch.compile, dynamic=False, backend=backend)
        return replace(
            self,
            encode=compile_part(self.encode),
            control=compile_part(self.control),
            decode=compile_part(self.decode),
            eager=self,
        )

    @property
    def uncompiled(self) -> "DiffusionModel":
        return self.eager or self


def gradients(
    model: DiffusionModel,
    parts: Sequence[Batch],  # of one logical batch (this rank's share), each of one size
    options: Options,
    micro_batch: MicroBatch,
    # by condition: [b] float32 losses on the device, detached; the gradients lie in the parameters
) -> dict[str, Tensor]:
    """A mixed batch of several sizes has parts of any number of images, so it is not compiled: there would be
    no end of shapes.

    Where memory runs out (out_of_memory.py) some of the gradients are written: forget them, and try with a
    smaller micro-batch.
    """
    model = model if len(parts) == 1 else model.uncompiled
    losses: dict[str, list[Tensor]] = {condition: [] for condition in model.controlnets}
    groups = (
        [list(model.controlnets)] if micro_batch.join else [[condition] for condition in model.controlnets]
    )
    device, dtype, again = (
        model.alphas.device,
        next(model.unet.parameters()).dtype,
        options.gradient_checkpointing,
    )
    for batch in parts:
        for start in range(0, len(batch.image_ids), micro_batch.images):
            rows = slice(start, start + micro_batch.images)
            latents, noise, timesteps, text = (
                tensor[rows].to(device, non_blocking=True)
                for tensor in (batch.latents, batch.noise, batch.timesteps, batch.text)
            )
            noisy, target = noisy_and_target(latents, noise, model.alphas[timesteps], model.prediction_type)
            noisy, text = noisy.to(dtype), text.to(dtype)
            with torch.set_grad_enabled(options.unlock == "all"):
                encoded = model.encode(model.unet, noisy, timesteps, text, recompute=again)
            for group in groups:
                residuals = []
                for condition in group:
                    hint = batch.hints[condition][rows].to(device, non_blocking=True).to(dtype) / 255
                    downs, middle = model.control(
                        model.controlnets[condition], noisy, timesteps, text, hint, recompute=again
                    )
                    residuals.append((downs if options.connect == "full" else None, middle))
                prediction = model.decode(model.unet, *_together(encoded, text, residuals), recompute=again)
                # [K, b]
                errors = (
                    (prediction.float().unflatten(0, (len(group), -1)) - target).square().mean(dim=(2, 3, 4))
                )
                if options.min_snr is not None:
                    errors = errors * timestep_weights(
                        model.alphas[timesteps], model.prediction_type, options.min_snr
                    )
                (errors.sum() / options.batch).backward()
                for condition, each in zip(group, errors.detach(), strict=True):
                    losses[condition].append(each)
    return {condition: torch.cat(each) for condition, each in losses.items()}


def _together(
    encoded: tuple[tuple[Tensor, ...], Tensor, Tensor],  # skips, middle, time embedding of b images
    text: Tensor,  # [b, T, D]
    residuals: list[Residuals],  # of K conditions, b images each
) -> tuple[
    tuple[Tensor, ...], Tensor, Tensor, Tensor, Residuals
]:  # unet_decoder's arguments for K * b images
    (skips, mid, emb), k = encoded, len(residuals)
    if k == 1:
        return skips, mid, emb, text, residuals[0]
    downs = [down for down, _ in residuals if down is not None]
    joined = tuple(torch.cat(each) for each in zip(*downs, strict=True)) if downs else None
    return (
        tuple(skip.repeat(k, 1, 1, 1) for skip in skips),
        mid.repeat(k, 1, 1, 1),
        emb.repeat(k, 1),
        text.repeat(k, 1, 1),
        (joined, torch.cat([middle for _, middle in residuals])),
    )
