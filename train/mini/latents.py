"""What the UNet learns from: latents of the pictures, computed when they are first asked for and kept in a
file.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.mini import autoencoder, text
from train.mini.pictures import Pictures


@dataclass(frozen=True)
class Latents:
    """Half precision is finer than the posterior's noise."""

    count: int
    shape: tuple[int, int, int]  # C, h, w
    means: Callable[[Sequence[int]], NDArray[np.float16]]  # indices => [N, C, h, w], scaled to unit variance
    deviation: float  # of the posterior, scaled
    tokens: Tensor  # [N, T] int64
    empty: Tensor  # [T] int64: the empty prompt


def of_pictures(
    vae: Any,
    tokenizer: Any,
    pictures: Pictures,
    cache: Path,  # one file for each VAE and set of pictures
    *,
    device: str,
) -> Latents:
    """Training starts at once, and a picture that no step has reached costs nothing."""
    digest = hashlib.sha256("\n".join([fingerprint(vae), *pictures.captions]).encode())
    side, scale = pictures.side // 8, vae.config.scaling_factor
    shape = (vae.config.latent_channels, side, side)
    cache.mkdir(parents=True, exist_ok=True)
    kept = _kept(cache / f"{digest.hexdigest()[:16]}.npy", (len(pictures), *shape))

    @torch.no_grad()
    def means(indices: Sequence[int]) -> NDArray[np.float16]:
        rows = kept[indices]
        new = [k for k, one in enumerate(rows) if not one.any()]
        if new:
            images = autoencoder.to_tensor(pictures.images([indices[k] for k in new]), device)
            with torch.autocast(device, torch.bfloat16):
                rows[new] = (
                    (vae.encode(images).latent_dist.mean.float() * scale).cpu().numpy().astype(np.float16)
                )
            for k in new:
                kept[indices[k]] = rows[k]
        return rows

    tokens = text.tokens_of(tokenizer, [pictures.caption(i) for i in range(len(pictures))])
    return Latents(
        len(pictures),
        shape,
        means,
        autoencoder.deviation(vae) * scale,
        tokens,
        text.tokens_of(tokenizer, [""])[0],
    )


def fingerprint(vae: Any) -> str:  # 16 hex
    """Of the encoder, which decides what latents are."""
    digest = hashlib.sha256()
    for name, weights in (*vae.encoder.state_dict().items(), *vae.quant_conv.state_dict().items()):
        digest.update(name.encode() + weights.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(path: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Zeros where nothing has been computed yet: a file of holes, which takes no space before
    it is filled.
    """
    if not path.is_file():
        np.lib.format.open_memmap(path.with_suffix(".tmp"), mode="w+", dtype=np.float16, shape=shape).flush()
        path.with_suffix(".tmp").rename(path)
    return np.lib.format.open_memmap(path, mode="r+")
