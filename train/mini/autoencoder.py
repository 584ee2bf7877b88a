"""The mini VAE: diffusers' AutoencoderKL, trained on crops from an encoder that is a principal component
analysis.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.batches import rng
from train.mini import patches
from train.mini.learning import ParameterGroup, place
from train.mini.pictures import Pictures

CROP = 64  # pixels; one image counts as one crop, so that a step costs the same at both sizes
WHOLE = 0.75  # of the schedule is done when whole pictures take the place of crops
FIRST_FIT = 800  # pictures whose blocks the components are found on
ENCODER_RATE = 0.5  # of the decoder's, because it starts from something
STRETCH = 5e-4  # weight of the latents' square: without it they grow away from the posterior's noise


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Sizes and schedule."""

    widths: tuple[int, ...] = (16, 48, 96, 128)
    groups: int = 8
    latent_channels: int = 8
    images: int = 16_000  # crops of 64x64, of encoder and decoder together
    polish: int = 100_000  # more of them, of the decoder alone, once latents must not change any more
    batch: int = 8
    lr: float = 1.5e-3
    half_life: float = 1_500  # images, of the average
    bf16: bool = True  # autocast: 1.5 times as fast on a processor that has it


# diffusers AutoencoderKL with random weights
def build(recipe: AutoencoderRecipe, side: int, seed: int) -> Any:
    """Four levels, a layer a block: SD 1.5's, but narrow."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=recipe.widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=recipe.groups,
            latent_channels=recipe.latent_channels,
            sample_size=side,
            scaling_factor=1.0,
        )


def start(vae: Any, pictures: Pictures) -> None:
    """Puts the components into the encoder."""
    chosen = np.linspace(0, len(pictures) - 1, min(FIRST_FIT, len(pictures))).astype(int)
    patches.write_encoder(vae, patches.fit(pictures.images(chosen), vae.config.latent_channels))


def parameter_groups(vae: Any) -> tuple[ParameterGroup, ParameterGroup]:
    """Encoder and decoder; the encoder goes more slowly."""
    return (
        ParameterGroup([*vae.encoder.parameters(), *vae.quant_conv.parameters()], ENCODER_RATE),
        ParameterGroup([*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]),
    )


def rate(recipe: AutoencoderRecipe, seen: int) -> float:
    """Down to nothing along a straight line."""
    return recipe.lr * max(1 - seen / recipe.images, 0.01)


def loss_at(
    vae: Any, seen: int, *, pictures: Pictures, recipe: AutoencoderRecipe, seed: int, device: str
) -> Tensor:
    """Squared error, since what counts is that edges lie where they lay."""
    images = to_tensor(_crops(pictures, seen, recipe, seed), device)
    noise = torch.from_numpy(
        rng(seed, "posterior", seen).standard_normal(
            (len(images), recipe.latent_channels, *(n // 8 for n in images.shape[2:])), dtype=np.float32
        )
    ).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=recipe.bf16):
        latents = vae.encode(images).latent_dist.mean.float()
        drawn = vae.decode(latents + patches.DEVIATION * noise).sample.float()
    return (drawn - images).square().mean() + STRETCH * latents.square().mean()


def _crops(pictures: Pictures, seen: int, recipe: AutoencoderRecipe, seed: int) -> NDArray[np.uint8]:
    """A batch of crops, or as many pixels of whole pictures; a function of the counter."""
    side = pictures.side
    if side <= CROP or seen >= WHOLE * recipe.images:
        count = max(recipe.batch * CROP**2 // side**2, 1)
        return pictures.images([place(len(pictures), seed, seen + i) for i in range(count)])
    images = pictures.images([place(len(pictures), seed, seen + i) for i in range(recipe.batch)])
    corners = rng(seed, "crop", seen).integers(0, (side - CROP) // 8 + 1, (len(images), 2)) * 8
    return np.stack(
        [image[y : y + CROP, x : x + CROP] for image, (y, x) in zip(images, corners, strict=True)]
    )


def to_tensor(images: NDArray[np.uint8], device: str) -> Tensor:  # NHWC => NCHW in -1..1
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def reconstruct(vae: Any, images: NDArray[np.uint8], *, device: str = "cpu") -> NDArray[np.uint8]:  # NHWC
    """From the posterior's mean."""
    out = [
        vae.decode(vae.encode(to_tensor(images[i : i + 1], device)).latent_dist.mean).sample
        for i in range(len(images))
    ]
    pixels = (torch.cat(out).float() * 127.5 + 127.5).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


# [N]: PSNR of each
def decibels(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    error = (images.astype(np.float64) - others).reshape(len(images), -1)
    return 10 * np.log10(255**2 / np.maximum((error**2).mean(axis=1), 1e-9))


def deviation(vae: Any) -> float:  # of the posterior, before the scaling factor: the same everywhere
    return math.exp(float(vae.quant_conv.bias[-1].detach()) / 2)


@torch.no_grad()
def settle(vae: Any, pictures: Pictures, *, device: str = "cpu", count: int = 256) -> None:
    """The scaling factor that gives latents unit variance, once they are learned."""
    chosen = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int)
    latents = torch.cat(
        [vae.encode(to_tensor(pictures.images([i]), device)).latent_dist.mean for i in chosen]
    )
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
