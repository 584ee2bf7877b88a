"""Samplers by name: diffusers' schedulers, none of which draws noise on its way, so that an image is a
function of its first noise alone.
"""

from typing import Any, Literal

Sampler = Literal["ddim", "unipc", "dpm++", "euler"]
Precision = Literal["fp32", "bf16", "auto"]  # of the networks that draw; auto: train.precision.for_sampling
CfgHint = Literal["both", "conditional", "weighted"]  # train.sample.SamplingSettings
TITLES: dict[Sampler, str] = {  # as papers call them
    "ddim": "DDIM, eta 0",
    "unipc": "UniPC",
    "dpm++": "DPM-Solver++ 2M",
    "euler": "Euler",
}
# sampler -> class of diffusers, and what its name promises whatever the base's own scheduler says
_SCHEDULERS: dict[Sampler, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2", "predict_x0": True}),
    "dpm++": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
}


def scheduler(
    config: dict[str, Any],  # of the base's own scheduler: noise schedule, prediction, spacing of timesteps
    sampler: Sampler,
    steps: int,
) -> Any:  # diffusers' scheduler, its timesteps set; of one use, since multistep samplers remember
    """ValueError: so many steps do not fit into the base's timesteps."""
    import diffusers

    name, promised = _SCHEDULERS[sampler]
    made: Any = getattr(diffusers, name).from_config(config, **promised)
    known = int(made.config.num_train_timesteps)
    # diffusers stops somewhere within, divides by the distance of two equal noise levels, or rounds its way
    # to a timestep below 0 (61 steps with a trailing spacing)
    if steps > known or not _fits(made, steps, known):
        raise ValueError(
            f"the sampler {sampler} can't take {steps} steps on this base, which has {known} timesteps with a"
            f" {made.config.timestep_spacing} spacing: take another number of steps, such as {known // 20}"
        )
    return made


def _fits(made: Any, steps: int, known: int) -> bool:
    """Sets the timesteps: each within the base's, and each at a noise level of its own."""
    try:
        made.set_timesteps(steps)
    except (AssertionError, IndexError):
        return False
    levels = getattr(made, "sigmas", made.timesteps) if len(made.timesteps) == steps else made.timesteps[:0]
    return len(levels) > 0 and bool(made.timesteps.max() < known and (levels.diff() < 0).all())
