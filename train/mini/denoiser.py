"""The mini UNet and its text encoder, trained together on latents that are computed once."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from train.batches import rng
from train.loss import NOISE_STEPS, noisy_and_target, timestep_weights
from train.mini.latents import Latents
from train.mini.learning import place

BETA_START, BETA_END, PREDICTION_TYPE = 0.00085, 0.012, "v_prediction"
SCHEDULER = {
    "beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear",
    "num_train_timesteps": NOISE_STEPS,
    # at a width where epsilon's errors at high noise would be magnified into wrong colours
    "prediction_type": PREDICTION_TYPE,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
# images at the full learning rate, which then falls with the root of the images: it can be stopped anywhere
FULL = 64_000


@dataclass(frozen=True, kw_only=True)
class DenoiserRecipe:
    """Sizes and schedule."""

    widths: tuple[int, ...] = (48, 80, 96, 96)
    groups: int = 8
    heads: int = 2  # of attention; four cost a tenth of the time more
    text_width: int = 128
    text_layers: int = 2
    images: int = 1_600_000
    batch: int = 16
    lr: float = 1e-3
    prompt_drop: float = 0.1
    min_snr: float = 5.0
    half_life: float = 8_000  # images, of the average
    bf16: bool = True  # autocast: 1.4 times as fast on a processor that has it


class Denoiser(nn.Module):
    """Both in one, so that they share optimizer, average and state."""

    def __init__(self, unet: Any, text_encoder: Any) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(tokens)[0]).sample


# diffusers UNet2DConditionModel
def build_unet(recipe: DenoiserRecipe, *, latent_channels: int, side: int, seed: int) -> Any:
    """SD 1.5's: two layers a block, cross-attention on three of four levels, thirteen control points."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=side // 8,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=recipe.widths,
            layers_per_block=2,
            cross_attention_dim=recipe.text_width,
            norm_num_groups=recipe.groups,
            attention_head_dim=recipe.heads,
        )


def rate(recipe: DenoiserRecipe, seen: int) -> float:
    return recipe.lr * (FULL / max(seen, FULL)) ** 0.5


def levels() -> Tensor:  # [1000] float32: alpha bar
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NOISE_STEPS) ** 2
    return torch.cumprod(1 - betas, dim=0)


def loss_at(
    net: nn.Module, seen: int, *, data: Latents, recipe: DenoiserRecipe, alpha_bar: Tensor, seed: int
) -> Tensor:
    """Min-SNR weighted; noise, timesteps, prompt drops and the posterior's draw are functions
    of the counter.
    """
    rows = [place(data.count, seed, seen + i) for i in range(recipe.batch)]
    generator = rng(seed, "denoiser", seen)
    shape = (recipe.batch, *data.shape)
    means = data.means(rows).astype(np.float32) + np.float32(data.deviation) * generator.standard_normal(
        shape, dtype=np.float32
    )
    # Evenly spread over the batch: the same mean as independent draws, with less noise.
    timesteps = torch.from_numpy(
        (np.arange(recipe.batch) + generator.random()) / recipe.batch * NOISE_STEPS
    ).long()
    dropped = torch.from_numpy(generator.random(recipe.batch) < recipe.prompt_drop)
    tokens = torch.where(dropped[:, None], data.empty, data.tokens[rows])
    with _fast(alpha_bar.device.type, recipe.bf16):
        return _weighted_error(
            net,
            torch.from_numpy(means),
            torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)),
            timesteps,
            tokens,
            alpha_bar,
            recipe.min_snr,
        )


@contextlib.contextmanager
def _fast(device: str, bf16: bool) -> Iterator[None]:
    """On a processor plain attention outruns the fused one, whose backward pass is slow for so few tokens."""
    plain = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()
    with plain, torch.autocast(device, torch.bfloat16, enabled=bf16):
        yield


def _weighted_error(
    net: nn.Module,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    tokens: Tensor,
    alpha_bar: Tensor,
    gamma: float,
) -> Tensor:
    device = alpha_bar.device
    level = alpha_bar[timesteps.to(device)]
    noisy, target = noisy_and_target(latents.to(device), noise.to(device), level, PREDICTION_TYPE)
    error = (
        (net(noisy, timesteps.to(device), tokens.to(device)).float() - target).square().mean(dim=(1, 2, 3))
    )
    return (timestep_weights(level, PREDICTION_TYPE, gamma) * error).mean()


@torch.no_grad()
def held_out_error(net: nn.Module, data: Latents, alpha_bar: Tensor, count: int) -> dict[str, float]:
    """Squared error of epsilon, at fixed noise and evenly spread timesteps, and how much the caption takes
    off it.
    """
    noise = torch.from_numpy(rng(0, "held out").standard_normal((count, *data.shape), dtype=np.float32))
    timesteps = ((torch.arange(count) * 7919 % count + 0.5) / count * NOISE_STEPS).long()
    latents = torch.cat([torch.from_numpy(data.means([i]).astype(np.float32)) for i in range(count)])
    errors = {}
    for name, tokens in (
        ("held_out_epsilon", data.tokens),
        ("held_out_epsilon_no_caption", data.empty.expand_as(data.tokens)),
    ):
        total = 0.0
        for i in range(0, count, 32):
            cut = slice(i, min(i + 32, count))
            level = alpha_bar[timesteps[cut].to(alpha_bar.device)]
            noisy, target = noisy_and_target(
                latents[cut].to(level.device), noise[cut].to(level.device), level, PREDICTION_TYPE
            )
            prediction = net(noisy, timesteps[cut].to(level.device), tokens[cut].to(level.device))
            total += float(
                (level.view(-1, 1, 1, 1) * (prediction - target).square()).mean(dim=(1, 2, 3)).sum()
            )  # epsilon = sqrt(a) v + sqrt(1 - a) x
        errors[name] = total / count
    return {**errors, "n": count}
