"""Guided sampling with a ControlNet: an image depends on its seed, never on what else is in its batch."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import unlocked
from train.average import folder_to_sample
from train.base import Base, decode_latents
from train.batches import draws
from train.checkpoint import load_controlnet
from train.controlnet import POOLED, ControlNet
from train.halves import Residuals, decode_half, encode_half

CONTROL_POINTS = 13  # the twelve skips, then the middle


def load_trained(
    folder: Path,  # a ControlNet's folder, of a checkpoint or of diffusers
    base: Base,  # with its unet
) -> tuple[Base, ControlNet]:  # the base to sample with, and the ControlNet in evaluation mode on its device
    """The average of the weights where the run kept one, and the base that was trained along where the run
    unlocked it.
    """
    chosen = folder_to_sample(folder)
    controlnet = load_controlnet(chosen, base.unet).to(base.device).eval()
    if unlocked.has_unet(chosen):
        base = dataclasses.replace(base, unet=copy.deepcopy(base.unet))  # the caller's own stays as it is
        unlocked.load_unet(chosen, base.unet)
    return base, controlnet


@torch.no_grad()
def generate(
    base: Base,  # with its unet and vae
    controlnet: ControlNet | None,  # None = the base alone
    *,
    # NHWC at height x width, RGB or what it was trained on; None only without a ControlNet
    hints: NDArray[np.uint8] | None,
    text: NDArray[np.float32],  # [N, T, D] of the captions; with `guess` it may be that of ""
    empty_text: NDArray[np.float32],  # [T, D] of ""
    seeds: list[int],  # one per sample
    # one per sample, e.g. image ids: then the noise belongs to (seed, key). None = to the seed
    noise_keys: list[str] | None = None,
    height: int = 512,  # multiples of 8
    width: int = 512,
    steps: int = 20,
    guidance: float = 7.5,  # 1 = off, at half the cost
    scale: float = 1.0,  # of the ControlNet's residuals
    # guidance strengthens the hint as well as the prompt: the unconditional branch gets no control (paper,
    # 3.5)
    guide_hint: bool = False,
    # the hint leads instead of the prompt: as guide_hint, and the fine residuals get less
    guess: bool = False,
    start: float = 0.0,  # the share of the steps from which on the ControlNet works
    end: float = 1.0,  # ... and up to which
) -> NDArray[np.uint8]:  # NHWC RGB
    """DDIM without added noise; both branches of the guidance see the hint, as in the released code, unless
    it is to be guided too.

    A ControlNet that pools its residuals controls the prompted branch alone, as in diffusers.
    """
    from diffusers import DDIMScheduler

    _check(controlnet, hints, text, seeds, noise_keys, height, width)
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"start and end are shares of the steps, 0 <= start < end <= 1, not {start} and {end}"
        )
    unet, device, dtype = base.unet, base.device, base.dtype
    scheduler: Any = DDIMScheduler.from_config(base.scheduler, clip_sample=False)
    scheduler.set_timesteps(steps)
    latents = (
        initial_noise(seeds, noise_keys, height, width, unet.config.in_channels).to(device)
        * scheduler.init_noise_sigma
    )
    texts = torch.from_numpy(np.array(text)).to(device, dtype)
    if guidance != 1.0:
        texts = torch.cat([torch.from_numpy(np.array(empty_text)).to(device, dtype).expand_as(texts), texts])
    pooled = controlnet is not None and bool(controlnet.config.get(POOLED))
    scales = point_scales(scale, guess and not pooled)
    # the last rows of a pass: those that get control
    led = len(seeds) if guide_hint or guess or pooled else len(texts)
    features = None
    if controlnet is not None and hints is not None:
        controlnet = _as_computed(controlnet, device, dtype)
        hint = torch.from_numpy(np.array(hints)).to(device).permute(0, 3, 1, 2).to(dtype) / 255
        features = controlnet.controlnet_cond_embedding(hint).repeat(led // len(hint), 1, 1, 1)
    for number, timestep in enumerate(scheduler.timesteps):
        x = latents.repeat(len(texts) // len(latents), 1, 1, 1).to(dtype)
        t = timestep.to(device).expand(len(x))
        skips, mid, emb = encode_half(unet, x, t, texts)
        residuals: Residuals | None = None
        if (
            controlnet is not None
            and features is not None
            and start <= number / steps
            and (number + 1) / steps <= end
        ):
            downs, middle = controlnet.residuals(x[-led:], t[-led:], texts[-led:], features)
            points = [
                _behind_zeros(point * share, len(x))
                for point, share in zip((*downs, middle), scales, strict=True)
            ]
            residuals = (tuple(points[:-1]), points[-1])
        prediction = decode_half(unet, skips, mid, emb, texts, residuals).float()
        if guidance != 1.0:
            plain, prompted = prediction.chunk(2)
            prediction = plain + guidance * (prompted - plain)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return decode_latents(base, latents)


def point_scales(
    scale: float,
    guess: bool,
) -> list[float]:  # of the twelve skips, from the finest, and of the middle
    """A ControlNet that must guess leads by its coarse maps: a tenth at the finest, as diffusers has it;
    0.825 ** (12 - i) in the released code.
    """
    return [scale * 10 ** (i / (CONTROL_POINTS - 1) - 1) if guess else scale for i in range(CONTROL_POINTS)]


def initial_noise(
    seeds: list[int], noise_keys: list[str] | None, height: int, width: int, channels: int = 4
) -> Tensor:  # [N, channels, H/8, W/8] float32
    """Drawn on the CPU one sample at a time, so that a GPU and another batch size start from
    the same noise.
    """
    shape = (channels, height // 8, width // 8)
    if noise_keys is None:
        return torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
    keyed = [
        draws(seed, key, "sample").standard_normal(shape, dtype=np.float32)
        for seed, key in zip(seeds, noise_keys, strict=True)
    ]
    return torch.from_numpy(np.stack(keyed))


def _as_computed(controlnet: ControlNet, device: str, dtype: torch.dtype) -> ControlNet:
    """Module.to works in place: one that is still training must not be rounded, or moved, by
    being looked at.
    """
    own = controlnet.controlnet_mid_block.weight
    if own.dtype == dtype and own.device.type == torch.device(device).type:
        return controlnet
    return copy.deepcopy(controlnet).to(device, dtype)


def _behind_zeros(residual: Tensor, rows: int) -> Tensor:
    return residual if len(residual) == rows else torch.cat([torch.zeros_like(residual), residual])


def _check(
    controlnet: ControlNet | None,
    hints: NDArray[np.uint8] | None,
    text: NDArray[np.float32],
    seeds: list[int],
    noise_keys: list[str] | None,
    height: int,
    width: int,
) -> None:
    if height % 8 or width % 8:
        raise ValueError(f"height and width must be multiples of 8, not {height} x {width}")
    if len(text) != len(seeds) or (noise_keys is not None and len(noise_keys) != len(seeds)):
        raise ValueError(
            f"{len(seeds)} seeds need as many texts and noise keys, not {len(text)} and"
            f" {len(noise_keys or seeds)}"
        )
    if controlnet is not None and hints is None:
        raise ValueError("a ControlNet needs hints; pass controlnet=None to sample the base alone")
    wanted = (
        len(seeds),
        height,
        width,
        controlnet.config["conditioning_channels"] if controlnet is not None else 3,
    )
    if hints is not None and (hints.dtype != np.uint8 or hints.shape != wanted):
        raise ValueError(f"hints must be uint8 {wanted}, not {hints.dtype} {hints.shape}")
