"""An exponential moving average of the weights that train, whose half-life is counted in images."""

import copy
from typing import TypeVar

import torch
from torch import nn

RAMP_UP = 0.05  # of the images seen: the longest half-life, so that a young average forgets where it started
Model = TypeVar("Model", bound=nn.Module)


def start(model: Model) -> Model:
    """The average of no step is the model as it is."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def update(
    average: nn.Module,
    model: nn.Module,
    half_life: float,  # images
    seen: int,  # images before this step
    batch: int,  # images of this step
) -> None:
    """One step of Karras et al. 2022 (EDM, training_loop.py): a pure function of the counter, so a resume
    can't change it.
    """
    decay = 0.5 ** (batch / max(min(half_life, RAMP_UP * seen), 1e-8))
    pairs = [
        (mean, now)
        for mean, now in zip(average.parameters(), model.parameters(), strict=True)
        if now.requires_grad
    ]
    torch._foreach_lerp_([mean for mean, _ in pairs], [now for _, now in pairs], 1 - decay)
