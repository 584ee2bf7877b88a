"""The base's encoders of images and text, and the decoder of its latents."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.base import Base


@torch.no_grad()
def encode_images(
    base: Base,
    images: NDArray[np.uint8],  # NHWC RGB, sides multiples of 8
    # mean, std: [N, 4, H/8, W/8], before the scaling factor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The posterior rather than a sample of it, so that each epoch can draw its own."""
    _check_images(images)
    pixels = torch.from_numpy(np.array(images)).to(base.device).permute(0, 3, 1, 2).to(base.dtype) / 127.5 - 1
    posterior = _part(base, "vae").encode(pixels).latent_dist
    return posterior.mean.float().cpu().numpy(), posterior.std.float().cpu().numpy()


@torch.no_grad()
def encode_text(base: Base, captions: list[str]) -> NDArray[np.float32]:  # [N, T, D]; "" is the empty prompt
    """The last hidden state at the tokenizer's full length, as Stable Diffusion 1.5 was trained with."""
    _part(base, "text_encoder")
    tokens = base.tokenizer(
        captions,
        padding="max_length",
        max_length=base.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return base.text_encoder(tokens.input_ids.to(base.device))[0].float().cpu().numpy()


@torch.no_grad()
# [N, 4, h, w], scaled to unit variance => NHWC RGB
def decode_latents(base: Base, latents: Tensor) -> NDArray[np.uint8]:
    """One image at a time: the decoder's largest maps are the peak of memory of a whole sampling run."""
    vae = _part(base, "vae")
    # the layout that its convolutions are fast in, on a CPU too
    given = (
        one[None].to(base.device, base.dtype, memory_format=torch.channels_last) / base.scaling_factor
        for one in latents
    )
    images = [vae.decode(one).sample[0] for one in given]
    pixels = (torch.stack(images).float() * 127.5 + 127.5).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def _part(base: Base, name: str) -> Any:
    part = getattr(base, name)
    if part is None:
        raise ValueError(f"base {base.name} was loaded without its {name}: add it to `parts`")
    return part


def _check_images(images: NDArray[np.uint8]) -> None:
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] != 3
        or images.shape[1] % 8
        or images.shape[2] % 8
    ):
        raise ValueError(
            f"images must be uint8 NHWC RGB with sides in multiples of 8, not {images.dtype} {images.shape}"
        )
