"""What the mini base can do, measured on pictures that it has not seen."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from train.mini import autoencoder, denoiser, text
from train.mini.base import Parts
from train.mini.denoiser import Denoiser
from train.mini.latents import Latents
from train.mini.pictures import Pictures


class Scores(TypedDict, total=False):
    """Of the note beside the base: pairs are means with half the width of their 95 % intervals."""

    n: Required[int]  # held-out pictures
    reconstruction_psnr: Required[list[float]]  # dB
    reconstruction_edge_f1: Required[list[float]]
    epsilon_mse: Required[float]
    epsilon_mse_without_caption: Required[float]
    # where the mini detector was there to read samples: shares of what captions name
    objects_found: list[float]
    objects_found_in_scenes: list[float]
    samples: int


def measure(parts: Parts, held_out: Pictures, *, count: int = 500) -> Scores:
    """Means with half the width of their 95 % intervals, and n."""
    chosen = range(min(count, len(held_out.captions)))
    images = held_out.images(chosen)
    drawn = autoencoder.reconstruct(parts.vae, images)
    psnr = autoencoder.decibels(images, drawn)
    edges = _edge_agreement(images, drawn)
    tokens = text.tokens_of(parts.tokenizer, [held_out.caption(i) for i in chosen])
    scale = parts.vae.config.scaling_factor
    with torch.no_grad():
        means = np.concatenate(
            [
                parts.vae.encode(autoencoder.to_tensor(images[i : i + 1], "cpu")).latent_dist.mean.numpy()
                for i in chosen
            ]
        )
    half = (means * scale).astype(np.float16)
    data = Latents(
        len(half),
        half.shape[1:],
        lambda indices: half[indices],
        0.0,
        tokens,
        text.tokens_of(parts.tokenizer, [""])[0],
    )
    errors = denoiser.held_out_error(
        Denoiser(parts.unet, parts.text_encoder), data, denoiser.levels(), len(half)
    )
    return {
        "n": len(images),
        "reconstruction_psnr": _interval(psnr),
        "reconstruction_edge_f1": _interval(edges),
        "epsilon_mse": round(errors["held_out_epsilon"], 5),
        "epsilon_mse_without_caption": round(errors["held_out_epsilon_no_caption"], 5),
    }


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [
        round(float(values.mean()), 3),
        round(1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)), 3),
    ]


def _edge_agreement(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:  # [N]
    """F1 of Canny's edges (100, 200), a pixel's tolerance: whether a picture keeps its edges
    where they were.
    """
    import cv2

    scores = []
    for one, other in zip(images, others, strict=True):
        a, b = (cv2.Canny(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), 100, 200) > 0 for x in (one, other))
        near_a, near_b = (cv2.dilate(x.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for x in (a, b))
        precision, recall = (b & near_a).sum() / max(b.sum(), 1), (a & near_b).sum() / max(a.sum(), 1)
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return np.array(scores)


@torch.no_grad()
def draw(
    folder: Path, captions: Sequence[str], *, seed: int = 0, steps: int = 25, guidance: float = 3.0
) -> NDArray[np.uint8]:
    """Samples at the base's own size [N, s, s, 3], by diffusers' own pipeline."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True
    ).to(torch.float32)
    if shown:
        logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    side = 8 * pipeline.unet.config.sample_size
    out = []
    for i in range(0, len(captions), 16):
        some = list(captions[i : i + 16])
        generators = [torch.Generator().manual_seed(seed + i + k) for k in range(len(some))]
        out.append(
            pipeline(
                some,
                height=side,
                width=side,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
                output_type="np",
            ).images
        )
    return (np.concatenate(out) * 255).round().astype(np.uint8)
