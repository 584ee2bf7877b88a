"""The gradients of one logical batch: one pass of the locked encoder, then each condition's ControlNet and
decoder, in the memory there is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from train.batches import Batch
from train.controlnet import ControlNet
from train.halves import Residuals, decode_half, encode_half
from train.loss import noisy_and_target, timestep_weights
from train.options import Options


@dataclass(frozen=True)
class Room:
    """How much of a logical batch is on the device at once; the gradients are the same, but for rounding."""

    micro: int  # images per forward pass
    join: bool  # whether all conditions' decoder passes are one batch

    def smaller(self) -> "Room":
        """Where memory ran out: first the conditions part, then half the images; MemoryError where one image
        is too much.
        """
        if self.join:
            return replace(self, join=False)
        if self.micro == 1:
            raise MemoryError(
                "training runs out of memory with one image at a time: set gradient_checkpointing: true,"
                " connect: middle, optimizer: adamw8bit or precision: bf16, train fewer conditions at once,"
                " or lower image.resolution"
            )
        return replace(self, micro=(self.micro + 1) // 2)


@dataclass(frozen=True)
class Network:
    """All that a step runs, as it computes; `encode`, `control` and `decode` may be compiled."""

    unet: Any  # UNet2DConditionModel: the base, or the copy of it that trains too
    controlnets: Mapping[str, ControlNet]
    alphas: Tensor  # [1000] share of signal variance left, on the device
    scheduler: dict[str, Any]
    encode: Callable[..., tuple[tuple[Tensor, ...], Tensor, Tensor]] = encode_half
    control: Callable[..., tuple[tuple[Tensor, ...], Tensor]] = lambda controlnet, *given, **more: controlnet(
        *given, **more
    )
    decode: Callable[..., Tensor] = decode_half

    def compiled(self, backend: str = "inductor") -> "Network":
        """Each hot half once for each shape; K ControlNets share one program, since their weights are its
        inputs.
        """
        # aspect buckets and last micro-batches
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        halves = {name: getattr(self, name) for name in ("encode", "control", "decode")}
        made: dict[str, Any] = {
            name: torch.compile(half, dynamic=False, backend=backend) for name, half in halves.items()
        }
        return replace(self, **made)


def gradients(
    network: Network,
    parts: Sequence[Batch],  # of one logical batch (this rank's share), each of one size
    options: Options,
    room: Room,
    # by condition: [b] float32 losses on the device, detached; the gradients lie in the parameters
) -> dict[str, Tensor]:
    """Raises torch.OutOfMemoryError with some of the gradients written: forget them, and try with a smaller
    room.
    """
    losses: dict[str, list[Tensor]] = {condition: [] for condition in network.controlnets}
    groups = [list(network.controlnets)] if room.join else [[condition] for condition in network.controlnets]
    device, dtype, again = (
        network.alphas.device,
        next(network.unet.parameters()).dtype,
        options.gradient_checkpointing,
    )
    for batch in parts:
        for start in range(0, len(batch.image_ids), room.micro):
            rows = slice(start, start + room.micro)
            latents, noise, timesteps, text = (
                tensor[rows].to(device, non_blocking=True)
                for tensor in (batch.latents, batch.noise, batch.timesteps, batch.text)
            )
            noisy, target = noisy_and_target(latents, noise, network.alphas[timesteps], network.scheduler)
            noisy, text = noisy.to(dtype), text.to(dtype)
            with torch.set_grad_enabled(options.unlock == "all"):
                half = network.encode(network.unet, noisy, timesteps, text, recompute=again)
            for group in groups:
                residuals = []
                for condition in group:
                    hint = batch.hints[condition][rows].to(device, non_blocking=True).to(dtype) / 255
                    downs, middle = network.control(
                        network.controlnets[condition], noisy, timesteps, text, hint, recompute=again
                    )
                    residuals.append((downs if options.connect == "full" else None, middle))
                prediction = network.decode(network.unet, *_together(half, text, residuals), recompute=again)
                # [K, b]
                errors = (
                    (prediction.float().unflatten(0, (len(group), -1)) - target).square().mean(dim=(2, 3, 4))
                )
                if options.min_snr is not None:
                    errors = errors * timestep_weights(
                        network.alphas[timesteps], network.scheduler, options.min_snr
                    )
                (errors.sum() / options.batch).backward()
                for condition, each in zip(group, errors.detach(), strict=True):
                    losses[condition].append(each)
    return {condition: torch.cat(each) for condition, each in losses.items()}


def _together(
    half: tuple[tuple[Tensor, ...], Tensor, Tensor],  # of b images
    text: Tensor,  # [b, T, D]
    residuals: list[Residuals],  # of K conditions, b images each
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor, Residuals]:  # decode_half's arguments for K * b images
    (skips, mid, emb), k = half, len(residuals)
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
