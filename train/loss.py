"""The noise process: its levels, what the network learns to predict, and how much each timestep counts."""

from typing import Any

import torch
from torch import Tensor

NOISE_STEPS = 1000  # of the diffusion process


def noisy_and_target(
    latents: Tensor,  # [B, 4, h, w]
    noise: Tensor,  # [B, 4, h, w]
    level: Tensor,  # [B] share of signal variance left (alpha bar)
    prediction_type: str,  # of the base: epsilon | v_prediction
) -> tuple[Tensor, Tensor]:  # [B, 4, h, w] each
    """Epsilon is the noise; v is signal * noise - spread * latents (Salimans and Ho 2022, appendix D)."""
    signal, spread = level.sqrt().view(-1, 1, 1, 1), (1 - level).sqrt().view(-1, 1, 1, 1)
    noisy = signal * latents + spread * noise
    return noisy, noise if prediction_type == "epsilon" else signal * noise - spread * latents


def timestep_weights(
    level: Tensor,  # [B] alpha bar
    prediction_type: str,
    gamma: float,
) -> Tensor:  # [B]
    """Min-SNR-gamma (Hang et al. 2023, section 3.4): an error of the clean image counts min(SNR, gamma) at
    each timestep.

    Squared errors of epsilon are those of the image times SNR, and those of v times SNR + 1, so the weight is
    divided by that.
    """
    if prediction_type == "epsilon":
        # min(SNR, gamma) / SNR, also where no signal is left
        return (gamma * (1 - level) / level).clamp(max=1)
    return torch.minimum(level, gamma * (1 - level))  # min(SNR, gamma) / (SNR + 1)


def levels_of(
    what: str,  # how the error calls the base
    scheduler: dict[str, Any],  # its diffusers scheduler config
) -> Tensor:  # [1000] float32: the share of signal variance left at each timestep (alpha bar)
    """By diffusers' own scheduler, so that trained betas and a terminal SNR of zero count here as they do in
    sampling; ValueError for others.
    """
    from diffusers import DDIMScheduler

    predicted, own = scheduler.get("prediction_type", "epsilon"), str(scheduler.get("_class_name"))
    if "FlowMatch" in own or predicted == "flow_prediction" or scheduler.get("use_flow_sigmas"):
        raise ValueError(
            f"{what} was trained by flow matching ({own}), whose noise levels no sampler here follows: take a"
            " base that predicts epsilon or the velocity (v_prediction)"
        )
    if predicted not in ("epsilon", "v_prediction"):
        raise ValueError(f"{what} predicts {predicted!r}; epsilon and v_prediction are known")
    try:
        noise: Any = DDIMScheduler.from_config(scheduler)
    except (NotImplementedError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{what} has the noise schedule {scheduler.get('beta_schedule')!r}; scaled_linear, linear and"
            f" trained_betas are known ({error})"
        ) from error
    levels: Tensor = noise.alphas_cumprod
    if len(levels) != NOISE_STEPS:
        raise ValueError(f"{what} has {len(levels)} timesteps; bases of {NOISE_STEPS} are known")
    if not levels.all() and predicted == "epsilon":
        raise ValueError(
            f"{what} leaves no signal at its last timestep (rescale_betas_zero_snr) and predicts the noise,"
            " which says nothing of the image there: such a base predicts the velocity, prediction_type:"
            " v_prediction"
        )
    return levels
