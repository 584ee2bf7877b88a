"""Stable Diffusion at three sizes with random weights, and pairs in memory: what a training benchmark needs
and no hub gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from train.base import Base
    from train.batches import Draw, Pair


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Configurations of the three networks, and how much of them a step takes."""

    pixels: int  # side of the images; latents are an eighth of it
    tokens: int
    batch: int
    joined_batch: int  # where four ControlNets pass one decoder together: about what 78 GiB hold
    threads: int  # on a CPU
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]


FOUR_DOWN, FOUR_UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
SHAPES = {
    "sd15": Shape(
        pixels=512, tokens=77, batch=32, joined_batch=8, threads=16,
        unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
        text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 49408},
    ),
    "mini": Shape(
        pixels=128, tokens=40, batch=16, joined_batch=16, threads=1,
        unet={"sample_size": 16, "block_out_channels": (32, 64, 96, 96), "cross_attention_dim": 96,
        "attention_head_dim": 4},
        vae={"block_out_channels": (32, 64, 96, 128), "layers_per_block": 1, "sample_size": 128},
        text={"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 600},
    ),
    "tiny": Shape(
        pixels=64, tokens=6, batch=4, joined_batch=4, threads=1,
        unet={
            "sample_size": 8, "block_out_channels": (4, 8), "layers_per_block": 1, "cross_attention_dim": 8,
            "norm_num_groups": 2,
            "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        vae={"block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2,
        "sample_size": 64},
        text={"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 100},
    ),
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1,
    "prediction_type": "epsilon", "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def random_base(name: str, shape: Shape, device: str) -> "Base":
    """Drawn on the device, where 1.1 billion numbers take no time; then on the CPU, so that no contestant
    starts with a used card.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from train.base import Base

    torch.manual_seed(0)
    with torch.device(device):
        unet: Any = UNet2DConditionModel(**shape.unet)
        vae: Any = AutoencoderKL(
            **shape.vae, latent_channels=4, down_block_types=FOUR_DOWN, up_block_types=FOUR_UP
        )
        last = shape.text["vocab_size"] - 1
        marks = {"bos_token_id": last - 1, "eos_token_id": last, "hidden_act": "quick_gelu"}
        text: Any = CLIPTextModel(CLIPTextConfig(**shape.text, **marks, max_position_embeddings=shape.tokens))
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    return Base(
        **{part: model.to("cpu").requires_grad_(False).eval() for part, model in parts.items()},
        tokenizer=None,
        scheduler=SCHEDULER,
        scaling_factor=0.18215,
        name=f"random {name}",
        fingerprint="0" * 16,
        random_weights=True,
        device="cpu",
        dtype=torch.float32,
    )


class RandomPairs:
    """Pairs (train.batches) of noise: a layer's arithmetic does not depend on its numbers."""

    def __init__(
        self,
        shape: Shape,
        conditions: Sequence[str],
        count: int,
        size: tuple[int, int] | None = None,  # (h, w) of the latents; None = the shape's square
    ) -> None:
        rng, width = np.random.default_rng(0), shape.unet["cross_attention_dim"]
        height, across = size or (shape.pixels // 8, shape.pixels // 8)
        self.conditions, self.shape = tuple(conditions), shape
        self.means = rng.standard_normal((count, 4, height, across), dtype=np.float32)
        self.stds = np.full_like(self.means, 0.1)
        self.texts = rng.standard_normal((count, shape.tokens, width), dtype=np.float32)
        self.hints = {
            name: rng.integers(0, 256, (count, 8 * height, 8 * across, 3), dtype=np.uint8)
            for name in conditions
        }
        self.ids: Sequence[str] = [f"image-{i:04d}" for i in range(count)]
        self.sizes: Sequence[tuple[int, int]] = [(height, across)] * count
        self.empty_text: NDArray[np.float32] = rng.standard_normal((shape.tokens, width), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> "Pair":
        from train.batches import Pair

        hints = {name: array[i] for name, array in self.hints.items()}
        return Pair(
            image_id=self.ids[i], mean=self.means[i], std=self.stds[i], text=self.texts[i], hints=hints
        )

    def read(self, draws: "Sequence[Draw]") -> "list[Pair]":
        """Nothing is flipped here."""
        return [self[draw.index] for draw in draws]

    def ahead(self, draws: "Sequence[Draw]") -> None:
        """Everything is in memory."""


def flops_per_image(base: "Base", shape: Shape, conditions: int, *, connect: str, live: bool) -> float:
    """Of one training step, with the encoders of image and text where they run live."""
    import torch

    from train import throughput

    side = shape.pixels // 8
    flops = throughput.flops_per_image(
        base.unet, [3] * conditions, height=side, width=side, tokens=shape.tokens, connect=connect
    )
    if live:
        with torch.no_grad(), torch.device("meta"):
            vae, pixels = (
                type(base.vae).from_config(base.vae.config),
                torch.empty(1, 3, shape.pixels, shape.pixels),
            )
            flops += throughput.counted(lambda: vae.encode(pixels))[0]
        with torch.no_grad():
            flops += throughput.counted(
                lambda: base.text_encoder(torch.zeros(1, shape.tokens, dtype=torch.int64))
            )[0]
    return flops
