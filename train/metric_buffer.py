"""What the device computed since the last log row, read back only then: no training step waits
for the host.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.distributed import ALONE, Ranks

MOST_SKIPPED = 16  # steps of a condition in a row whose gradient is not finite; it learns nothing any more
NAMED = 8  # images that a sentence names
REMEDY = "look at these pairs, or lower lr; the checkpoints already written are good"


class NotFinite(RuntimeError):
    """Losses or gradients are no numbers any more; nothing after the last checkpoint is worth keeping."""


@dataclass(frozen=True)
class Means:
    """Of the steps since the last log row, over all ranks, by condition; one is left out where all its steps
    were skipped.
    """

    steps: int
    loss: dict[str, float]
    gradient_norm: dict[str, float]
    skipped: dict[str, int] = field(default_factory=dict)  # steps whose gradient was not finite, where any
    notes: tuple[str, ...] = ()  # a sentence for each condition of which steps were skipped


class MetricBuffer:
    """Numbers still on the device, with the images they came from."""

    def __init__(self, conditions: list[str], ranks: Ranks = ALONE) -> None:
        self.conditions, self.ranks = conditions, ranks
        self.in_a_row = dict.fromkeys(conditions, 0)  # steps that were skipped, up to the last one
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

        NotFinite: a loss is not finite where its gradient is, or too many gradients in a row were not; the
        message names the step and its images.
        """
        loss, norm, skipped, notes = {}, {}, {}, []
        for condition in self.conditions:
            losses = self.ranks.gather(torch.stack(self.losses[condition])).double().cpu()
            norms = torch.stack(self.norms[condition]).double().cpu()
            taken = norms.isfinite()
            self._check(condition, step - len(self.images) + 1, losses, taken)
            if taken.any():
                loss[condition] = float(losses[taken].mean())
                norm[condition] = float(norms[taken].mean())
            if not taken.all():
                last = int((~taken).nonzero()[-1])
                skipped[condition] = int((~taken).sum())
                notes.append(
                    f"{condition}: {skipped[condition]} of {len(self.images)} steps were skipped, since their"
                    f" gradient was not finite; the last was step {step - len(self.images) + 1 + last},"
                    f" {self._named(last, losses[last])}"
                )
        means = Means(len(self.images), loss, norm, skipped, tuple(notes))
        self.clear()
        return means

    def _check(
        self,
        condition: str,
        first: int,  # number of the first step
        losses: Tensor,  # [steps, b of all ranks]
        taken: Tensor,  # [steps] bool
    ) -> None:
        for i, is_taken in enumerate(taken.tolist()):
            self.in_a_row[condition] = 0 if is_taken else self.in_a_row[condition] + 1
            if is_taken and losses[i].isfinite().all():
                continue
            if is_taken:
                what = f"the loss of {condition} is not finite at step {first + i}"
            elif self.in_a_row[condition] == MOST_SKIPPED:
                what = (
                    f"{MOST_SKIPPED} gradients of {condition} in a row were not finite, the last at step"
                    f" {first + i}"
                )
            else:
                continue
            raise NotFinite(f"{what}, {self._named(i, losses[i])}: {REMEDY}")

    def _named(
        self,
        i: int,  # of the steps since the last log row
        losses: Tensor,  # [b of all ranks]
    ) -> str:
        """The images whose loss is not finite, or all of the step where each is."""
        # All ranks come here together, and any of them may be the one that is heard.
        everyone = list(itertools.chain(*self.ranks.all_of(self.images[i])))
        wrong = (~losses.isfinite()).tolist()
        names = [name for name, bad in zip(everyone, wrong, strict=True) if bad] or everyone
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"images {', '.join(names[:NAMED])}{more}"
