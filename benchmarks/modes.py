"""Middle-only against full connection: does the small-scale mode learn as fast, image for image, and what
does an image cost?

A narrow base of Stable Diffusion's kind, three levels on 8x8 latents, is first trained on toys: two colours,
which the caption tells, in sixteen cells, which only the hint tells. Then one ControlNet is trained on it in
each mode, from the same start, on the same images, noise and timesteps. What is told is the loss gap on
held-out pairs with fixed noise: the locked base's loss minus the ControlNet's, with the true hint and with
another image's. A gap that the true hint opens and the wrong one does not is a hint that is followed. Toys
say how the modes compare on this task, not how many steps Stable Diffusion needs.

    python benchmarks/modes.py --out modes.json
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from train.base import Base
    from train.batches import Draw, Pair

SIDE, CELLS, COLOURS, TEXT = 8, 4, 6, 16  # of the latents, of the mask, of the palette; width of the text
MODES = ("full", "middle")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the base, train both modes, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-steps", type=int, default=800, help="of the base, 16 images each")
    parser.add_argument("--images", type=int, default=6400, help="that each mode sees")
    parser.add_argument("--points", type=int, default=8, help="measures on the way")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[8, 16, 24], help="of the base's levels; multiples of 4"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="repeats with other hint encoders and another order"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    given = parser.parse_args(arguments)

    import torch

    from benchmarks.annotate import machine

    torch.set_num_threads(given.threads)
    began = time.monotonic()
    base, base_loss = toy_base(given.widths, given.base_steps)
    print(
        f"base: {given.base_steps} steps in {time.monotonic() - began:.0f} s, loss {base_loss:.3f}\n",
        flush=True,
    )
    held_out, curves = Toys(64, first=10**6), []
    print(f"{'mode':<8}{'seed':>5}{'images':>8}{'gap':>9}{'wrong hint':>12}{'images/s':>10}{'peak MiB':>10}")
    for seed in range(given.seeds):
        for mode in MODES:
            for point in learn(base, held_out, mode, seed, given):
                curves.append(point)
                print(
                    f"{mode:<8}{seed:>5}{point['images']:>8}{point['gap']:>9.4f}{point['gap_wrong_hint']:>12.4f}{point['images_per_s']:>10.1f}"
                    f"{point['peak'] / 2**20:>10.0f}",
                    flush=True,
                )
    answers = compare(curves)
    print(
        "\n"
        + "\n".join(
            f"{question}: {'never' if answer is None else round(answer, 3)}"
            for question, answer in answers.items()
        )
    )
    if given.out:
        told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
        facts = {
            "machine": machine("cpu"),
            "torch": torch.__version__,
            "options": told,
            "base_loss": base_loss,
        }
        seconds = round(time.monotonic() - began, 1)
        given.out.write_text(
            json.dumps({**facts, "seconds": seconds, "curves": curves, "answers": answers}, indent=2) + "\n"
        )


class Toys:
    """Pairs (train.batches): cells of two colours; the caption names the colours, the hint
    shows the cells.
    """

    def __init__(self, count: int, *, first: int = 0) -> None:
        self.numbers = range(first, first + count)
        self.ids: Sequence[str] = [f"toy-{number}" for number in self.numbers]
        self.sizes: Sequence[tuple[int, int]] = [(SIDE, SIDE)] * count
        self.empty_text: NDArray[np.float32] = np.zeros((2, TEXT), np.float32)
        fixed = np.random.default_rng(7)
        self.colours = fixed.uniform(-1.5, 1.5, (COLOURS, 4)).astype(np.float32)
        self.words = fixed.standard_normal((2, COLOURS, TEXT)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> "Pair":
        from train.batches import Pair

        rng = np.random.default_rng(self.numbers[i])
        under, over = rng.choice(COLOURS, 2, replace=False)
        mask = np.kron(rng.random((CELLS, CELLS)) < 0.5, np.ones((SIDE // CELLS, SIDE // CELLS), bool))
        mean = np.where(mask, self.colours[over][:, None, None], self.colours[under][:, None, None]).astype(
            np.float32
        )
        hint = np.kron(mask, np.ones((8, 8), bool))[..., None].repeat(3, axis=2).astype(np.uint8) * 255
        text = np.stack([self.words[0, under], self.words[1, over]])
        return Pair(
            image_id=self.ids[i], mean=mean, std=np.full_like(mean, 0.05), text=text, hints={"cells": hint}
        )

    def read(self, draws: "Sequence[Draw]") -> "list[Pair]":
        """Nothing is flipped here."""
        return [self[draw.index] for draw in draws]

    def ahead(self, draws: "Sequence[Draw]") -> None:
        """Everything is in memory."""


# and its mean loss over the last tenth
def toy_base(widths: Sequence[int], steps: int) -> tuple["Base", float]:
    """Trained as any base is, with a prompt dropped now and then."""
    import torch
    from diffusers import UNet2DConditionModel

    from benchmarks.shapes import SCHEDULER
    from train.base import Base, noise_levels
    from train.loss import noisy_and_target

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=tuple(widths),
        cross_attention_dim=TEXT,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(widths) - 1),
    )
    base = Base(
        unet=unet,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        scheduler=SCHEDULER,
        scaling_factor=1.0,
        name="toy",
        fingerprint="0" * 16,
        random_weights=False,
        device="cpu",
        dtype=torch.float32,
    )
    alphas, toys, losses = noise_levels(base), Toys(100_000, first=10_000), []
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * min(1.0, 3 * (1 - step / steps))
        latents, text, _ = stacked(toys, range(16 * step, 16 * step + 16))
        text = torch.where(torch.rand(16, 1, 1) < 0.1, 0.0, text)
        timesteps = torch.randint(0, 1000, (16,))
        noisy, target = noisy_and_target(
            latents, torch.randn_like(latents), alphas[timesteps], base.prediction_type
        )
        loss = (unet(noisy, timesteps, text).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    unet.requires_grad_(False).eval()
    return base, float(torch.stack(losses[-max(1, steps // 10) :]).mean())


def stacked(toys: Toys, rows: Sequence[int]) -> "tuple[Tensor, Tensor, Tensor]":  # latents, text, hints 0..1
    import torch

    pairs = [toys[i] for i in rows]
    latents, text = (
        torch.from_numpy(np.stack(arrays))
        for arrays in ([pair.mean for pair in pairs], [pair.text for pair in pairs])
    )
    return (
        latents,
        text,
        torch.from_numpy(np.stack([pair.hints["cells"] for pair in pairs])).permute(0, 3, 1, 2).float() / 255,
    )


# yields one row a point
def learn(base: "Base", held_out: Toys, mode: Any, seed: int, given: argparse.Namespace) -> Any:
    """The run stops at each point and goes on from its checkpoint, which changes nothing."""
    from train.fit import Calls, Options, fit
    from train.pretrained import load_controlnet
    from train.throughput import peak_memory, reset_peak

    every = given.images // given.points // given.batch * given.batch
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for point in range(1, given.points + 1):
            options = Options(
                images=point * every,
                batch=given.batch,
                lr=given.lr,
                seed=seed,
                connect=mode,
                prompt_drop=0.1,
                workers=0,
                held_out=0,
                checkpoint_every=every,
                log_every=every,
            )
            reset_peak("cpu")
            done = fit(
                base,
                Toys(4000),
                ["cells"],
                options,
                Path(folder) / "run",
                calls=Calls(log=lambda row: rates.append(float(row["images_per_second"]))),
            )
            peak = peak_memory("cpu")
            gap, wrong = gaps(base, held_out, load_controlnet(done.path / "cells", base.unet), mode)
            yield {
                "mode": mode,
                "seed": seed,
                "images": done.images,
                "gap": gap,
                "gap_wrong_hint": wrong,
                "images_per_s": statistics.median(rates),
                "peak": peak,
            }


# with the true hints and with wrong ones
def gaps(base: "Base", held_out: Toys, controlnet: Any, mode: str) -> tuple[float, float]:
    """The base's loss minus the ControlNet's; noise and timesteps are the same at every call."""
    import torch

    from train.base import noise_levels
    from train.loss import noisy_and_target
    from train.unet_parts import unet_decoder, unet_encoder

    latents, text, hints = stacked(held_out, range(len(held_out)))
    timesteps = torch.linspace(50, 950, len(latents)).long()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy, target = noisy_and_target(latents, noise, noise_levels(base)[timesteps], base.prediction_type)
    losses = []
    with torch.no_grad():
        skips, mid, emb = unet_encoder(base.unet, noisy, timesteps, text)
        for seen in (None, hints, hints.roll(1, 0)):
            residuals = None
            if seen is not None:
                downs, middle = controlnet(noisy, timesteps, text, seen)
                residuals = (downs if mode == "full" else None, middle)
            losses.append(
                float((unet_decoder(base.unet, skips, mid, emb, text, residuals) - target).square().mean())
            )
    return losses[0] - losses[1], losses[0] - losses[2]


def compare(curves: list[dict[str, Any]]) -> dict[str, float | None]:
    """Steps to a gap that full reaches halfway, at the end, and what a step costs; None = never reached."""
    found: dict[str, list[float]] = {}
    for mode in MODES:
        rows = [row for row in curves if row["mode"] == mode]
        last = max(row["images"] for row in rows)
        found[mode] = [
            statistics.median(row["gap"] for row in rows if row["images"] == last),
            statistics.median(row["images_per_s"] for row in rows),
            statistics.median(row["peak"] for row in rows),
        ]
    half = found["full"][0] / 2
    images: dict[str, float | None] = {}
    for mode in MODES:
        reached = [row["images"] for row in curves if row["mode"] == mode and row["gap"] >= half]
        images[mode] = min(reached, default=None)
    answers: dict[str, float | None] = {
        f"images to half of full's last gap, {mode}": images[mode] for mode in MODES
    }
    return answers | {
        "middle only: last gap against full": found["middle"][0] / found["full"][0],
        "middle only: time of a step against full": found["full"][1] / found["middle"][1],
        "middle only: peak memory against full": found["middle"][2] / max(1, found["full"][2]),
    }


if __name__ == "__main__":
    # Python puts this file's folder first, where a file could hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
