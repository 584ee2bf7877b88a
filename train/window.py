"""What the device computed since the last log row, read back only then: no training step waits for the host."""

import torch
from torch import Tensor

from train.batches import Batch


class NotFinite(RuntimeError):
    """The loss or a gradient is no number any more; nothing after the last checkpoint is worth keeping."""


class Window:
    """Numbers still on the device, with the batches they came from."""

    def __init__(self, conditions: list[str]) -> None:
        self.losses: dict[str, list[Tensor]] = {condition: [] for condition in conditions}  # one [b] per micro-batch
        self.norms: dict[str, list[Tensor]] = {condition: [] for condition in conditions}  # one scalar per step
        self.batches: list[Batch] = []

    def read(self, step: int, size: int) -> dict[str, dict[str, float]]:
        """Means of the window; a number that is not finite is traced to its step and its images."""
        losses = {condition: torch.cat(parts).view(-1, size).double().cpu() for condition, parts in self.losses.items()}
        norms = {condition: torch.stack(parts).double().cpu() for condition, parts in self.norms.items()}
        for i, batch in enumerate(self.batches):
            for condition in losses:
                bad = ~losses[condition][i].isfinite()
                if not bad.any() and norms[condition][i].isfinite():
                    continue
                what = "loss" if bad.any() else "gradient"
                names = [name for name, wrong in zip(batch.image_ids, bad.tolist(), strict=True) if wrong or not bad.any()]
                raise NotFinite(
                    f"the {what} of {condition} is not finite at step {step - len(self.batches) + i + 1}, images {', '.join(names)}: "
                    f"look at these pairs, or lower lr; the checkpoints already written are good"
                )
        return {
            "loss": {condition: float(values.mean()) for condition, values in losses.items()},
            "gradient_norm": {condition: float(values.mean()) for condition, values in norms.items()},
        }
