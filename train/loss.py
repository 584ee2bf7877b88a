"""What the network learns to predict, and how much each timestep counts."""

from typing import Any

import torch
from torch import Tensor


def noisy_and_target(
    latents: Tensor,  # [B, 4, h, w]
    noise: Tensor,  # [B, 4, h, w]
    level: Tensor,  # [B] share of signal variance left (alpha bar)
    scheduler: dict[str, Any],  # the base's config; its prediction_type is epsilon or v_prediction
) -> tuple[Tensor, Tensor]:  # [B, 4, h, w] each
    """Epsilon is the noise; v is signal * noise - spread * latents (Salimans and Ho 2022, appendix D)."""
    signal, spread = level.sqrt().view(-1, 1, 1, 1), (1 - level).sqrt().view(-1, 1, 1, 1)
    noisy = signal * latents + spread * noise
    return noisy, noise if predicts_epsilon(scheduler) else signal * noise - spread * latents


def timestep_weights(
    level: Tensor,  # [B] alpha bar
    scheduler: dict[str, Any],
    gamma: float,
) -> Tensor:  # [B]
    """Min-SNR-gamma (Hang et al. 2023, section 3.4): an error of the clean image counts min(SNR, gamma) at
    each timestep.

    Squared errors of epsilon are those of the image times SNR, and those of v times SNR + 1, so the weight is
    divided by that.
    """
    if predicts_epsilon(scheduler):
        # min(SNR, gamma) / SNR, also where no signal is left
        return (gamma * (1 - level) / level).clamp(max=1)
    return torch.minimum(level, gamma * (1 - level))  # min(SNR, gamma) / (SNR + 1)


def predicts_epsilon(scheduler: dict[str, Any]) -> bool:
    return bool(scheduler.get("prediction_type", "epsilon") == "epsilon")
