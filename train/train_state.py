"""All that trains for one condition: its ControlNet, the base where it is unlocked, their optimizers and
averages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn, optim

from train import ema, integrity, optimizer, out_of_memory, precision, unlocked
from train.base import Base
from train.batches import Pair, rng
from train.controlnet import ControlNet
from train.distributed import ALONE, Ranks
from train.integrity import Checkpoint
from train.options import Options
from train.pretrained import load_controlnet
from train.weights_file import WEIGHTS


@dataclass(frozen=True)
class TrainState:
    """Keys are folders of a checkpoint: `<condition>`, `<condition>/unet`, and for averages `<condition>/ema`
    and `<condition>/ema/unet`.
    """

    models: dict[str, nn.Module]  # float32: those that train
    compute: dict[str, nn.Module]  # what runs for each of `models`: itself, or its bf16 twin
    optimizers: dict[str, optim.Optimizer]  # of `models`
    averages: dict[str, nn.Module]  # of `models` in the same order; empty without ema


def build_all(
    base: Base,  # on whose device they train
    example: Pair,  # any that trains: its hints tell how many channels a ControlNet reads
    conditions: Sequence[str],
    options: Options,
    *,
    warm_start: Mapping[str, Path],  # condition -> ControlNet to start from
    done: Checkpoint | None,
) -> dict[str, TrainState]:  # by condition
    return {
        condition: build(
            base.unet,
            condition,
            options,
            device=base.device,
            hint_channels=example.hints[condition].shape[-1] if condition in example.hints else 3,
            warm=warm_start.get(condition),
            done=done,
        )
        for condition in conditions
    }


def build(
    unet: Any,  # the base's, float32
    condition: str,
    options: Options,
    *,
    device: str,
    hint_channels: int,
    warm: Path | None,  # ControlNet folder to start from; None = a copy of the base
    done: Checkpoint | None,  # to go on from
) -> TrainState:
    """As the run began, or exactly as its checkpoint was left.

    ValueError: `warm` has an unlocked UNet that this run would ignore, a file is damaged or does not fit, or
    the optimizer needs a package that is not installed.
    """
    folder = done.path / condition if done is not None else warm
    controlnet = initial_controlnet(unet, condition, options.seed, warm, hint_channels)
    # also after a warm start from a full one, so that what samples adds what was trained and no more
    if options.connect == "middle":
        for parameter in controlnet.controlnet_down_blocks.parameters():
            nn.init.zeros_(parameter)
    if done is not None:
        controlnet = load_controlnet(done.path / condition, unet)
    models: dict[str, nn.Module] = {condition: controlnet}
    if options.unlock != "none":
        unet = unlocked.unlocked_copy(unet, options.unlock)
        if folder is not None and (done is not None or unlocked.has_unet(folder)):
            unlocked.load_unet(folder, unet)
        models[f"{condition}/{unlocked.FOLDER}"] = unet
    elif warm is not None and unlocked.has_unet(warm):
        raise ValueError(
            f"warm_start {warm} was trained with an unlocked base, {warm / unlocked.FOLDER}, which this run"
            " would ignore: set unlock to decoder or all to go on from both"
        )
    models = {name: model.to(device) for name, model in models.items()}
    optimizers: dict[str, optim.Optimizer] = {}
    averages: dict[str, nn.Module] = {}
    for name, model in models.items():
        lr = options.lr if name == condition or options.unlock_lr is None else options.unlock_lr
        optimizers[name] = optimizer.make(trainable(model), options, lr)
        if done is not None:
            optimizer.load_optimizer(done.path / name, model, optimizers[name])
        if options.ema is not None:
            mean = f"{condition}/{integrity.AVERAGE}{name.removeprefix(condition)}"
            averages[mean] = ema.start(model)
            if done is not None:
                averages[mean].load_state_dict(load_file(done.path / mean / WEIGHTS))
    compute = {name: precision.twin(model, options.precision) for name, model in models.items()}
    return TrainState(models, compute, optimizers, averages)


def initial_controlnet(
    unet: Any, condition: str, seed: int, warm: Path | None, hint_channels: int = 3
) -> ControlNet:
    """The hint encoder's first weights belong to (seed, condition), so that K joint runs start as K separate
    ones.

    ValueError: `warm` does not take hints of `hint_channels` channels, or is no ControlNet of this base.
    """
    if warm is not None:
        controlnet = load_controlnet(warm, unet)
        if controlnet.config["conditioning_channels"] != hint_channels:
            expected = controlnet.config["conditioning_channels"]
            raise ValueError(
                f"warm_start {warm} reads hints of {expected} channels, and those of {condition} have"
                f" {hint_channels}"
            )
        return controlnet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng(seed, condition, "hint encoder").integers(2**63)))
        return ControlNet.from_unet(unet, hint_channels)[0]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def zero_gradients(state: TrainState) -> None:
    for model in (*state.models.values(), *state.compute.values()):
        model.zero_grad(set_to_none=True)


def make_moments(state: TrainState) -> None:
    """Those of all parameters that have a gradient, in a step that learns nothing; the 8-bit optimizer makes
    its own, a quarter of the size, at its first step.
    """
    with out_of_memory.told_of("the optimizer's first step"):
        for model, each in zip(state.models.values(), state.optimizers.values(), strict=True):
            device = next(model.parameters()).device
            optimizer.step(each, torch.ones((), device=device))


def step_all(
    states: Mapping[str, TrainState], options: Options, *, images: int, ranks: Ranks
) -> dict[str, Tensor]:  # what `step` returns, by condition
    return {
        condition: step(state, options, images=images, ranks=ranks) for condition, state in states.items()
    }


def step(
    state: TrainState,
    options: Options,
    *,
    images: int,  # seen before this step
    ranks: Ranks = ALONE,
) -> Tensor:  # scalar on the device: the norm of the whole gradient before clipping
    """One loss has one gradient, so the ControlNet and an unlocked base are clipped together, and where it is
    not finite neither learns from it.
    """
    limit = options.clip if options.clip is not None else float("inf")
    parameters = [parameter for model in state.models.values() for parameter in trainable(model)]
    ranks.sum_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    wrong = norm.isfinite().logical_not().float()
    with out_of_memory.told_of("the optimizer's step"):
        for name, each in state.optimizers.items():
            optimizer.step(each, wrong)
            precision.refresh(state.compute[name], state.models[name])
    if options.ema is not None:
        for mean, model in zip(state.averages.values(), state.models.values(), strict=True):
            ema.update(mean, model, options.ema, images, options.batch)
    return norm
