"""What computes and what learns: bf16 passes over a locked base in bf16, float32 masters for everything that
trains.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from train.base import Base

# instructions of a processor that multiply in bf16
FAST = {"avx512_bf16", "amx_bf16"}
CPU = Path("/proc/cpuinfo")
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


def settled(
    precision: str,  # fp32 | bf16 | auto
    device: str,
) -> str:  # fp32 | bf16
    """`auto` is bf16 where the device multiplies in it, and so gains by it: GPUs since Ampere, CPUs with
    AVX512-BF16 or AMX.
    """
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = set(CPU.read_text(errors="replace").split()) if CPU.is_file() else set()
    return "bf16" if FAST & flags else "fp32"


def layout(device: str, dtype: torch.dtype) -> torch.memory_format:
    """Of a UNet or a ControlNet that draws: on a CPU channels_last gains nothing there."""
    gains = device.startswith("cuda") and dtype == torch.bfloat16
    return torch.channels_last if gains else torch.preserve_format


def for_sampling(
    base: Base,  # float32; changed in place, for the caller's own use
    precision: str,  # fp32 | bf16
) -> Base:
    """UNet and VAE in the precision, and in channels_last where convolutions gain by it: both on a GPU, on a
    CPU the VAE alone. Text embeddings stay float32, and so do noise, guidance and the sampler's steps.
    """
    if precision == "fp32":
        return base
    dtype = dtype_of(precision)
    base.unet.to(dtype=dtype, memory_format=layout(base.device, dtype))
    base.vae.to(dtype=dtype, memory_format=torch.channels_last)
    return dataclasses.replace(base, dtype=dtype)


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
