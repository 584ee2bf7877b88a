"""Guided sampling with a ControlNet: an image depends on its seed, never on what else is in its batch."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import precision, unlocked
from train.base import Base
from train.batches import rng
from train.config import POOLED
from train.controlnet import ControlNet
from train.encoders import decode_latents
from train.integrity import folder_to_sample
from train.pretrained import load_controlnet
from train.samplers import CfgHint, Sampler, scheduler
from train.unet_parts import Residuals, unet_decoder, unet_encoder

CONTROL_POINTS = 13  # the twelve skips, then the middle


def load_trained(
    folder: Path,  # a ControlNet's folder, of a checkpoint or of diffusers
    base: Base,  # with its unet
) -> tuple[Base, ControlNet]:  # the base to sample with, and the ControlNet in evaluation mode on its device
    """The average of the weights where the run kept one, and the base that was trained along where the run
    unlocked it.
    """
    chosen = folder_to_sample(folder)
    controlnet: Any = load_controlnet(chosen, base.unet)
    layout = precision.layout(base.device, base.dtype)
    controlnet = controlnet.to(base.device, base.dtype, memory_format=layout).eval()
    if unlocked.has_unet(chosen):
        base = dataclasses.replace(base, unet=copy.deepcopy(base.unet))  # the caller's own stays as it is
        unlocked.load_unet(chosen, base.unet)
    return base, controlnet


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How to sample; names and defaults are those of diffusers' pipelines, but for the number of steps."""

    height: int = 512  # multiples of 8
    width: int = 512
    sampler: Sampler = "ddim"
    num_inference_steps: int = 20
    guidance_scale: float = 7.5  # 1 = off, at half the cost
    controlnet_conditioning_scale: float = 1.0  # of the ControlNet's residuals
    # which branch of the guidance sees the hint. conditional: guidance strengthens the hint as well as the
    # prompt. weighted: that, and each residual counts 64/h times, h its height in an image of 512 pixels, as
    # the paper has it (3.5, CFG resolution weighting): in images of other sizes the height of the latents
    # over that of the residual, so that the finest count once at any size
    cfg_hint: CfgHint = "both"
    # the hint leads instead of the prompt: as cfg_hint conditional, and the fine residuals get less
    guess_mode: bool = False
    control_guidance_start: float = 0.0  # the share of the steps from which on the ControlNet works
    control_guidance_end: float = 1.0  # ... and up to which

    def __post_init__(self) -> None:
        if self.height % 8 or self.width % 8:
            raise ValueError(f"height and width must be multiples of 8, not {self.height} x {self.width}")
        start, end = self.control_guidance_start, self.control_guidance_end
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"start and end are shares of the steps, 0 <= start < end <= 1, not {start} and {end}"
            )

    def controls(self, number: int) -> bool:
        """Whether the ControlNet works in this step, counted from 0."""
        return (
            self.control_guidance_start <= number / self.num_inference_steps
            and (number + 1) / self.num_inference_steps <= self.control_guidance_end
        )


@torch.no_grad()
def generate(
    base: Base,  # with its unet and vae
    controlnet: ControlNet | None,  # None = the base alone
    *,
    # NHWC at height x width, RGB or what it was trained on; None only without a ControlNet
    hints: NDArray[np.uint8] | None,
    prompt_embeds: NDArray[np.float32],  # [N, T, D]; with guess_mode it may be that of ""
    negative_prompt_embeds: NDArray[np.float32],  # [T, D], of "" where there is no negative prompt
    seeds: list[int],  # one per sample
    # one per sample, e.g. image ids: then the noise belongs to (seed, key). None = to the seed
    noise_keys: list[str] | None = None,
    settings: SamplingSettings = SamplingSettings(),
) -> NDArray[np.uint8]:  # NHWC RGB
    """Both branches of the guidance see the hint, as in the released code, unless it is to be guided too.

    A ControlNet that pools its residuals controls the prompted branch alone, as in diffusers. ValueError:
    what is given does not fit, or the sampler can't take so many steps.
    """
    _check(controlnet, hints, prompt_embeds, seeds, noise_keys, settings)
    unet, device, dtype = base.unet, base.device, base.dtype
    guided = settings.guidance_scale != 1.0
    sampler = scheduler(base.scheduler, settings.sampler, settings.num_inference_steps)
    noise = initial_noise(seeds, noise_keys, settings.height, settings.width, unet.config.in_channels)
    latents = noise.to(device) * float(sampler.init_noise_sigma)
    text = torch.from_numpy(np.array(prompt_embeds)).to(device, dtype)
    if guided:
        empty = torch.from_numpy(np.array(negative_prompt_embeds)).to(device, dtype)
        text = torch.cat([empty.expand_as(text), text])
    control = None
    if controlnet is not None and hints is not None:
        control = _control(controlnet, hints, settings, len(text), device, dtype)
    for number, timestep in enumerate(sampler.timesteps):
        seen = sampler.scale_model_input(latents, timestep)
        x = seen.repeat(len(text) // len(seen), 1, 1, 1).to(dtype)
        t = timestep.to(device).expand(len(x))
        skips, mid, emb = unet_encoder(unet, x, t, text)
        residuals = control.residuals(x, t, text) if control and settings.controls(number) else None
        prediction = unet_decoder(unet, skips, mid, emb, text, residuals).float()
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + settings.guidance_scale * (conditional - unconditional)
        latents = sampler.step(prediction, timestep, latents).prev_sample
    return decode_latents(base, latents)


@dataclass(frozen=True)
class Control:
    """A ControlNet with its hints, at work on the last rows of each pass."""

    controlnet: ControlNet
    features: Tensor  # [rows, C, h, w] of the hints
    scales: list[float]  # of the thirteen residuals
    weighted: bool = False  # whether a residual counts more the coarser it is

    def residuals(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Residuals:
        """Of all rows; zero in front of those that are controlled."""
        rows = len(self.features)
        downs, middle = self.controlnet.residuals(x[-rows:], timesteps[-rows:], text[-rows:], self.features)
        scaled = [
            _behind_zeros(residual * (scale * self._weight(x, residual)), len(x))
            for residual, scale in zip((*downs, middle), self.scales, strict=True)
        ]
        return tuple(scaled[:-1]), scaled[-1]

    def _weight(self, x: Tensor, residual: Tensor) -> float:
        return x.shape[-2] / residual.shape[-2] if self.weighted else 1.0


def _control(
    controlnet: ControlNet,
    hints: NDArray[np.uint8],
    settings: SamplingSettings,
    rows: int,  # of a pass: a row per hint, or two with guidance
    device: str,
    dtype: torch.dtype,
) -> Control:
    pooled = bool(controlnet.config.get(POOLED))
    conditional = settings.cfg_hint != "both" or settings.guess_mode or pooled
    controlnet = _as_computed(controlnet, device, dtype)
    hint = torch.from_numpy(np.array(hints)).to(device).permute(0, 3, 1, 2).to(dtype) / 255
    repeats = 1 if conditional else rows // len(hint)
    features = controlnet.controlnet_cond_embedding(hint).repeat(repeats, 1, 1, 1)
    scales = point_scales(settings.controlnet_conditioning_scale, settings.guess_mode and not pooled)
    return Control(controlnet, features, scales, weighted=settings.cfg_hint == "weighted")


def point_scales(
    scale: float,
    guess_mode: bool,
) -> list[float]:  # of the twelve skips, from the finest, and of the middle
    """A ControlNet that must guess leads by its coarse maps: a tenth at the finest, as diffusers has it;
    0.825 ** (12 - i) in the released code.
    """
    return [
        scale * 10 ** (i / (CONTROL_POINTS - 1) - 1) if guess_mode else scale for i in range(CONTROL_POINTS)
    ]


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
        rng(seed, key, "sample").standard_normal(shape, dtype=np.float32)
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
    prompt_embeds: NDArray[np.float32],
    seeds: list[int],
    noise_keys: list[str] | None,
    settings: SamplingSettings,
) -> None:
    if len(prompt_embeds) != len(seeds) or (noise_keys is not None and len(noise_keys) != len(seeds)):
        raise ValueError(
            f"{len(seeds)} seeds need as many texts and noise keys, not {len(prompt_embeds)} and"
            f" {len(noise_keys or seeds)}"
        )
    if controlnet is not None and hints is None:
        raise ValueError("a ControlNet needs hints; pass controlnet=None to sample the base alone")
    channels = controlnet.config["conditioning_channels"] if controlnet is not None else 3
    wanted = (len(seeds), settings.height, settings.width, channels)
    if hints is not None and (hints.dtype != np.uint8 or hints.shape != wanted):
        raise ValueError(f"hints must be uint8 {wanted}, not {hints.dtype} {hints.shape}")
