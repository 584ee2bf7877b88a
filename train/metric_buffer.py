"""What the device computed since the last log row, read back only then: no training step waits
for the host.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from train.distributed import ALONE, Ranks


class NotFinite(RuntimeError):
    """The loss or a gradient is no number any more; nothing after the last checkpoint is worth keeping."""


@dataclass(frozen=True)
class Means:
    """Of the steps since the last log row, over all ranks, by condition."""

    steps: int
    loss: dict[str, float]
    gradient_norm: dict[str, float]


class MetricBuffer:
    """Numbers still on the device, with the images they came from."""

    def __init__(self, conditions: list[str], ranks: Ranks = ALONE) -> None:
        self.conditions, self.ranks = conditions, ranks
        self.clear()

    def clear(self) -> None:
        # one [b] per step: this rank's images
        self.losses: dict[str, list[Tensor]] = {condition: [] for condition in self.conditions}
        # one scalar per step, of all ranks
        self.norms: dict[str, list[Tensor]] = {condition: [] for condition in self.conditions}
        self.images: list[tuple[str, ...]] = []  # ids of each step's images

    def add(self, images: tuple[str, ...], losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        self.images.append(images)
        for condition in self.losses:
            self.losses[condition].append(losses[condition])
            self.norms[condition].append(norms[condition])

    def take(self, step: int) -> Means:
        """Means over all steps and ranks, and the buffer is empty again.

        NotFinite: a loss or a gradient's norm is not finite; the message names its step and its images.
        """
        mine = {condition: torch.stack(parts) for condition, parts in self.losses.items()}
        losses = {condition: self.ranks.gather(values).double().cpu() for condition, values in mine.items()}
        norms = {condition: torch.stack(parts).double().cpu() for condition, parts in self.norms.items()}
        for i, images in enumerate(self.images):
            for condition in losses:
                bad = ~losses[condition][i].isfinite()
                if not bad.any() and norms[condition][i].isfinite():
                    continue
                what = "loss" if bad.any() else "gradient"
                # All ranks come here together, and any of them may be the one that is heard.
                everyone = itertools.chain(*self.ranks.all_of(images))
                names = [
                    name for name, wrong in zip(everyone, bad.tolist(), strict=True) if wrong or not bad.any()
                ]
                raise NotFinite(
                    f"the {what} of {condition} is not finite at step {step - len(self.images) + i + 1},"
                    f" images {', '.join(names)}: look at these pairs, or lower lr; the checkpoints already"
                    " written are good"
                )
        means = Means(
            steps=len(self.images),
            loss={condition: float(values.mean()) for condition, values in losses.items()},
            gradient_norm={condition: float(values.mean()) for condition, values in norms.items()},
        )
        self.clear()
        return means
