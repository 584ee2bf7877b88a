"""Tiny bases and pairs: 128 pixels, 16x16 latents, a network of some ten thousand parameters."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from train.base import Base
from train.batches import Draw, Pair
from train.random_base import build_random

TINY = {
    "sample_size": 16, "block_out_channels": (4, 8, 12, 12), "layers_per_block": 2, "cross_attention_dim": 8,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1,
    "prediction_type": "epsilon", "set_alpha_to_one": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**{**TINY, **changes}).requires_grad_(False).eval()


def tiny_base() -> Base:
    return Base(
        unet=tiny_unet(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        scheduler=SCHEDULER,
        scaling_factor=1.0,
        name="tiny",
        fingerprint="0123456789abcdef",
        random_weights=True,
        device="cpu",
        dtype=torch.float32,
    )


@dataclass
class ToyPairs:
    """A hint that is white where the latents are high: what a ControlNet can learn from."""

    count: int = 6
    conditions: tuple[str, ...] = ("edges",)
    side: int = 16
    wide: tuple[int, ...] = ()  # which of the pairs are of side x 2 side

    @property
    def ids(self) -> Sequence[str]:
        return [f"image-{i}" for i in range(self.count)]

    @property
    def empty_text(self) -> np.ndarray:
        return np.zeros((5, 8), np.float32)

    def __len__(self) -> int:
        return self.count

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [(self.side, self.side * (1 + (i in self.wide))) for i in range(self.count)]

    def read(self, draws: Sequence[Draw]) -> list[Pair]:
        return [self.mirrored(it.index) if it.mirrored else self[it.index] for it in draws]

    def ahead(self, draws: Sequence[Draw]) -> None: ...

    def mirrored(self, i: int) -> Pair:
        pair = self[i]
        hints = {name: hint[:, ::-1].copy() for name, hint in pair.hints.items()}
        return dataclasses.replace(
            pair, mean=pair.mean[..., ::-1].copy(), std=pair.std[..., ::-1].copy(), hints=hints
        )

    def __getitem__(self, i: int) -> Pair:
        rng = np.random.default_rng(i)
        cells = rng.random((4, 4 * (1 + (i in self.wide)))) < 0.5
        mask = np.kron(cells, np.ones((self.side // 4, self.side // 4)))
        latents = np.where(mask, 1.0, -1.0).astype(np.float32)[None].repeat(4, axis=0)
        hint = (np.kron(mask, np.ones((8, 8)))[..., None].repeat(3, axis=2) * 255).astype(np.uint8)
        return Pair(
            image_id=self.ids[i],
            mean=latents,
            std=np.full_like(latents, 0.01),
            text=rng.standard_normal((5, 8)).astype(np.float32),
            hints={name: hint if k == 0 else 255 - hint for k, name in enumerate(self.conditions)},
        )


@pytest.fixture(scope="session")
def random_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "random"
    build_random(folder)
    return folder
