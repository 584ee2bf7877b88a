"""What computes and what learns: bf16 passes over a locked base in bf16, float32 masters for everything that trains."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def locked(
    unet: Model,  # float32; stays as it is, where it is
    precision: str,  # fp32 | bf16
    device: str,
) -> Model:
    """The base as it computes. In bf16 it takes half the memory, and channels_last is the layout that its convolutions are fast in."""
    if precision == "fp32" and next(unet.parameters()).device.type == torch.device(device).type:
        return unet
    return _to(copy.deepcopy(unet), precision, device)


def twin(
    master: Model,  # float32 on the device
    precision: str,
) -> Model:
    """The module that computes for `master`: itself in fp32. In bf16 a copy, whose gradients are handed over to the master's as they come."""
    if precision == "fp32":
        return master
    made = _to(copy.deepcopy(master), precision)
    for low, high in zip(made.parameters(), master.parameters(), strict=True):
        if high.requires_grad:
            low.register_post_accumulate_grad_hook(_hand_over_to(high))
    return made


@torch.no_grad()
def refresh(compute: nn.Module, master: nn.Module) -> None:
    """After each step of the optimizer the twin is the rounded master again; nothing to do where they are one."""
    if compute is master:
        return
    pairs = [(low, high) for low, high in zip(compute.parameters(), master.parameters(), strict=True) if high.requires_grad]
    torch._foreach_copy_([low for low, _ in pairs], [high for _, high in pairs])


def dtype_of(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _to(module: Model, precision: str, device: str | None = None) -> Model:
    if precision == "fp32":
        return module.to(device)
    return module.to(device, torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _hand_over_to(master: nn.Parameter) -> Any:
    """Micro-batches add up in float32, and no bf16 gradient outlives its backward pass."""

    @torch.no_grad()
    def hook(twin: nn.Parameter) -> None:
        assert twin.grad is not None
        if master.grad is None:
            master.grad = torch.empty_like(master).copy_(twin.grad)
        else:
            master.grad.add_(twin.grad)
        twin.grad = None

    return hook
