"""Validation grids: one picture per condition, always of the same held-out pairs from the same noise, so that
two checkpoints compare.
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.base import Base
from train.batches import Pair, Pairs
from train.controlnet import ControlNet
from train.encoders import decode_latents
from train.held_out import choose
from train.sample import SamplingSettings, generate

COLUMNS = ("condition", "generated", "target")
INK, PAPER = 235, 24  # grey of the labels and of what lies behind them
LINE = 22  # pixels of a line of the label


@dataclass(frozen=True)
class Grid:
    """What a grid shows."""

    condition: str
    count: int  # pairs, a row each: the first of those that the conditioning gain is measured on
    seed: int
    num_inference_steps: int = 20
    guidance_scale: float = 7.5


def write(
    path: Path,  # .png; replaced as a whole
    base: Base,  # with its vae, in any precision and on any device
    # UNet2DConditionModel as it computes, on the device: the base's, or the copy of it that trained along
    unet: Any,
    controlnet: ControlNet,  # on the same device; stays as it is
    pairs: Pairs,  # held out
    grid: Grid,
    images: int,  # seen so far, for the label
) -> NDArray[np.uint8]:  # HWC RGB, what was written
    """Condition, generated, target: the target is what the VAE makes of the pair's mean latents, the best
    that training could reach.
    """
    from PIL import Image

    sampler, controlnet = as_one(base, unet), for_sampling(controlnet, unet)
    rows = [
        row(sampler, controlnet, pairs[i], pairs.empty_text, grid)
        for i in choose(pairs.ids, grid.count, grid.seed)
    ]
    note = ", random weights" if base.random_weights else ""
    picture = assemble(rows, f"{grid.condition}, {images} images seen, {base.name}{note}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    Image.fromarray(picture).save(temporary, format="PNG")
    temporary.replace(path)
    return picture


def row(
    base: Base, controlnet: ControlNet, pair: Pair, empty_text: NDArray[np.float32], grid: Grid
) -> NDArray[np.uint8]:  # [H, 3W, 3]
    """One pair at a time, since they may be of several sizes; its noise belongs to (seed, image id)."""
    hint = pair.hints[grid.condition]
    settings = SamplingSettings(
        height=hint.shape[0],
        width=hint.shape[1],
        num_inference_steps=grid.num_inference_steps,
        guidance_scale=grid.guidance_scale,
    )
    (generated,) = generate(
        base,
        controlnet,
        hints=hint[None],
        prompt_embeds=pair.text[None],
        negative_prompt_embeds=empty_text,
        seeds=[grid.seed],
        noise_keys=[pair.image_id],
        settings=settings,
    )
    with torch.no_grad():
        (target,) = decode_latents(base, torch.from_numpy(pair.mean)[None] * base.scaling_factor)
    shown = (
        hint if hint.shape[-1] == 3 else hint.mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1)
    )
    return np.concatenate([shown, generated, target], axis=1)


def as_one(base: Base, unet: Any) -> Base:
    """A base has one device and one dtype: here those of the UNet that trains, and a copy of the VAE where it
    lies elsewhere.

    ValueError: the base was loaded without its VAE.
    """
    if base.vae is None:
        raise ValueError(
            f"base {base.name} was loaded without its vae, which draws the grids: add it to `parts`, or set"
            " grids to 0"
        )
    weight, theirs = next(unet.parameters()), next(base.vae.parameters())
    vae = base.vae
    if (theirs.device, theirs.dtype) != (weight.device, weight.dtype):
        vae = copy.deepcopy(vae).to(weight.device, weight.dtype)
    return dataclasses.replace(base, unet=unet, vae=vae, device=str(weight.device), dtype=weight.dtype)


def for_sampling(controlnet: ControlNet, unet: Any) -> ControlNet:
    """Itself where it will do, else a copy: a float32 master is never rounded."""
    dtype = next(unet.parameters()).dtype
    return controlnet if next(controlnet.parameters()).dtype == dtype else copy.deepcopy(controlnet).to(dtype)


def assemble(
    rows: list[NDArray[np.uint8]],  # [H, 3W, 3] RGB of any sizes
    title: str,  # ASCII
) -> NDArray[np.uint8]:  # HWC RGB
    """Narrow rows begin where the others do; where the width changes, the columns are named anew."""
    width = max(picture.shape[1] for picture in rows)
    parts = [_label(title, width)]
    before = None
    for picture in rows:
        if picture.shape[1] != before:
            names = np.concatenate([_label(name, picture.shape[1] // 3) for name in COLUMNS], axis=1)
            parts.append(_pad(names, width))
            before = picture.shape[1]
        parts.append(_pad(picture, width))
    return np.concatenate(parts)


def _label(line: str, width: int) -> NDArray[np.uint8]:  # [LINE, width, 3]
    """As large as a line holds, and no wider than the picture."""
    import cv2

    bar = np.full((LINE, width, 3), PAPER, np.uint8)
    wanted = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    scale = 0.5 * min(1.0, (width - 8) / wanted)
    cv2.putText(bar, line, (4, LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, scale, (INK, INK, INK), 1, cv2.LINE_AA)
    return bar


def _pad(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=PAPER)
