"""The optimizers: AdamW, and the same with its two moments in eight bits; their state in a checkpoint, by
name.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn, optim

from train.integrity import OPTIMIZER
from train.options import Options


def make(
    # float32, on the device; those of an 8-bit optimizer are made contiguous
    parameters: Sequence[nn.Parameter],
    options: Options,
    lr: float,
) -> optim.Optimizer:
    """AdamW keeps 8 bytes a parameter, and its 8-bit form (Dettmers et al. 2022) 2.03; tensors under 4096
    values stay in float32.

    ValueError: the 8-bit form is asked for, and the package bitsandbytes is not installed.
    """
    if options.optimizer == "adamw":
        return optim.AdamW(parameters, lr=lr, weight_decay=options.weight_decay, fused=True)
    absent = lacking(options.optimizer)
    if absent is not None:
        raise ValueError(absent)
    import bitsandbytes

    # bitsandbytes does so at its first step, too late: the moments, made before, would lie in another order
    # than the weights.
    for parameter in parameters:
        parameter.data = parameter.data.contiguous()
    return bitsandbytes.optim.AdamW8bit(parameters, lr=lr, weight_decay=options.weight_decay)


def step(
    optimizer: optim.Optimizer,
    wrong: torch.Tensor,  # float32 scalar on the device: 1 = the gradient is not finite, 0 = it is
) -> None:
    """Takes the step unless `wrong`: weights, moments and the count of steps stay as they are then.

    AdamW's fused kernel looks at `wrong` on the device, so that no step waits for the host; the 8-bit form
    has to ask.
    """
    if isinstance(optimizer, optim.AdamW):
        optimizer.found_inf = wrong  # type: ignore[attr-defined]
        optimizer.step()
    elif not wrong.item():
        optimizer.step()


# what to install, in a sentence without its full stop; None = it works here
def lacking(optimizer: str) -> str | None:
    if optimizer == "adamw" or importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return (
        f"optimizer: {optimizer} needs the package bitsandbytes: `pip install 'controlmill[lean]'`, or set"
        " optimizer to adamw"
    )


def optimizer_tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, torch.Tensor]:
    """`<parameter>.<state>`, by name, so that no pickle and no parameter order is involved; an int becomes an
    int64 tensor without axes.
    """
    tensors: dict[str, torch.Tensor] = {}
    # what parameters share, such as the code book of an 8-bit optimizer, is written for each: a file can't
    # share
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.tensor(value) if isinstance(value, int) else value.contiguous()
            tensors[f"{name}.{key}"] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
    return tensors


def load_optimizer(folder: Path, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """The reverse of optimizer_tensors; a parameter that never had a gradient has no state."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor | int]] = {}
    for name, tensor in load_file(folder / OPTIMIZER).items():
        parameter, key = name.rsplit(".", 1)
        state.setdefault(index[parameter], {})[key] = (
            int(tensor) if tensor.ndim == 0 and tensor.dtype == torch.int64 else tensor
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
