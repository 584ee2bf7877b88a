"""What computes and what learns: bf16 passes over a locked base in bf16, float32 masters for everything that
trains.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def locked(
    unet: Model,  # float32; stays as it is, where it is
    precision: str,  # fp32 | bf16
    device: str,
) -> Model:
    """The base as it computes.

    In bf16 it takes half the memory, and channels_last is the layout that its convolutions are fast in.
    """
    if precision == "fp32" and next(unet.parameters()).device.type == torch.device(device).type:
        return unet
    return _copy(unet, precision, device)


def twin(
    master: Model,  # float32 on the device
    precision: str,
) -> Model:
    """The module that computes for `master`: itself in fp32.

    In bf16 a copy, whose gradients are handed over to the master's as they come.
    """
    if precision == "fp32":
        return master
    copied = _copy(master, precision)
    for low, high in zip(copied.parameters(), master.parameters(), strict=True):
        if high.requires_grad:
            low.register_post_accumulate_grad_hook(_hand_over_to(high))
    return copied


@torch.no_grad()
def refresh(compute: nn.Module, master: nn.Module) -> None:
    """After each step of the optimizer the twin is the rounded master again; nothing to do where they are
    one.
    """
    if compute is master:
        return
    pairs = [
        (low, high)
        for low, high in zip(compute.parameters(), master.parameters(), strict=True)
        if high.requires_grad
    ]
    torch._foreach_copy_([low for low, _ in pairs], [high for _, high in pairs])


def dtype_of(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _copy(module: Model, precision: str, device: str | None = None) -> Model:
    """Tensor by tensor, so that no second copy in float32 is ever held."""

    def converted(tensor: Tensor) -> Tensor:
        dtype = dtype_of(precision) if tensor.is_floating_point() else tensor.dtype
        layout = torch.channels_last if precision == "bf16" and tensor.dim() == 4 else torch.preserve_format
        return tensor.detach().to(device, dtype, copy=True, memory_format=layout)

    converted_by_id: dict[int, Any] = {id(buffer): converted(buffer) for buffer in module.buffers()}
    converted_by_id |= {
        id(each): nn.Parameter(converted(each), each.requires_grad) for each in module.parameters()
    }
    return copy.deepcopy(module, converted_by_id)


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
