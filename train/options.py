"""The options of a training run, checked as a whole before anything is loaded."""

import dataclasses
import math
from typing import Literal

# What a resumed run may change: no weight depends on it.
OPERATIONAL = {
    "images",
    "checkpoint_every",
    "log_every",
    "workers",
    "gradient_checkpointing",
    "held_out",
    "watch_every",
    "grids",
    "keep_every",
}
# What it may change too, and says: sums are then rounded otherwise, so the weights differ in their last bits.
ROUNDING = {"micro_batch", "deterministic"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to train; everything is counted in images, so that another batch size means the same run length."""

    images: int  # to see in total, epochs and all
    batch: int  # images per optimizer step
    # images per forward pass and rank; None = as many as there are; halved where memory runs out
    micro_batch: int | None = None
    lr: float = 1e-5
    weight_decay: float = 0.01
    prompt_drop: float = 0.5  # share of prompts replaced by the empty one; the paper's value
    seed: int = 0
    clip: float | None = 1.0  # largest norm of a ControlNet's gradient; None = no clipping
    checkpoint_every: int = 4000  # images
    # images between checkpoints that stay for good, for a run's learning curve; None = the newest stay
    keep_every: int | None = None
    log_every: int = 400  # images
    # middle = the paper's small-scale mode: no residuals for the skips
    connect: Literal["full", "middle"] = "full"
    workers: int = 1  # threads that read pairs ahead; 0 = none
    # gamma of the min-SNR weighting of the loss, 5 in its paper; None = every timestep alike
    min_snr: float | None = None
    # half-life in images of an average of the weights, kept beside them; None = no average
    ema: float | None = None
    # of the base: nothing, what the released code unlocks, or its whole UNet
    unlock: Literal["none", "decoder", "all"] = "none"
    unlock_lr: float | None = None  # of the unlocked part; None = lr
    # computes forward passes twice rather than keep them: less memory, more time, the same gradients
    gradient_checkpointing: bool = False
    # of the passes; what learns is float32 always. bf16 goes with channels_last
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False  # torch.compile of encoder, ControlNet and decoder, each shape once
    # only kernels that give the same bits again, on a GPU too, where they are slower; a CPU has no others
    deterministic: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    flip: float = 0.0  # share of images seen mirrored, hints and all
    # the decoder passes of all conditions as one batch: faster while it is small, K times the memory
    join: bool = False
    held_out: int = 64  # pairs that the conditioning gain is measured on; 0 = none
    watch_every: int | None = None  # images between two such measures; None = checkpoint_every
    # held-out pairs whose samples are drawn at each checkpoint: condition | generated | target
    grids: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "batch", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(
                f"keep_every counts images, at least 1, not {self.keep_every}; None keeps the newest"
                " checkpoints alone"
            )
        if self.images % self.batch:
            lower = self.images // self.batch * self.batch
            either = f"{lower} or {lower + self.batch}" if lower else str(self.batch)
            raise ValueError(
                f"images ({self.images}) must be a multiple of batch ({self.batch}): set images to {either}"
            )
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch % self.micro_batch):
            raise ValueError(
                f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch}): change either"
            )
        if not 0 <= self.prompt_drop <= 1:
            raise ValueError(f"prompt_drop must lie between 0 and 1, not {self.prompt_drop}")
        if (
            not self.lr > 0
            or self.weight_decay < 0
            or self.workers < 0
            or (self.clip is not None and not self.clip > 0)
        ):
            raise ValueError(
                "lr and clip must be above 0 (clip: None switches it off), weight_decay and workers at"
                " least 0"
            )
        if self.connect not in ("full", "middle"):
            raise ValueError(f"connect must be full or middle, not {self.connect!r}")
        if self.unlock not in ("none", "decoder", "all"):
            raise ValueError(f"unlock must be none, decoder or all, not {self.unlock!r}")
        if self.unlock_lr is not None and (self.unlock == "none" or not self.unlock_lr > 0):
            raise ValueError(
                "unlock_lr must be above 0, and says nothing while unlock is none: remove it, or unlock the"
                " decoder"
            )
        if self.precision not in ("fp32", "bf16") or self.optimizer not in ("adamw", "adamw8bit"):
            raise ValueError(
                f"precision is fp32 or bf16, optimizer adamw or adamw8bit, not {self.precision!r} and"
                f" {self.optimizer!r}"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is the share of images seen mirrored, between 0 and 1, not {self.flip}")
        if self.held_out < 0 or self.grids < 0 or (self.watch_every is not None and self.watch_every < 1):
            raise ValueError("held_out and grids count pairs (0 = none), watch_every images (at least 1)")
        if self.min_snr is not None and not self.min_snr > 0:
            raise ValueError(
                f"min_snr must be above 0 (5 is usual; None switches it off), not {self.min_snr}"
            )
        if self.ema is not None and not self.ema >= 1:
            raise ValueError(
                f"ema is a half-life in images, at least 1, not a decay per step: {self.ema} won't"
                f" do{half_life_of(self.ema, self.batch)}"
            )


def half_life_of(decay: float, batch: int) -> str:
    """What someone who gave the decay of each step most likely wants, as the end of a sentence."""
    if not 0 < decay < 1:
        return ""
    return f"; a decay of {decay} at a batch of {batch} is ema: {batch * math.log(0.5) / math.log(decay):.0f}"
