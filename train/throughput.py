"""What a training step costs, what this machine can give, and what was taken: FLOPs, a matrix product's rate,
memory.
"""

import ctypes
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train import precision
from train.batches import Pair
from train.controlnet import ControlNet
from train.options import Options
from train.out_of_memory import unless_out_of_memory
from train.step import DiffusionModel
from train.unet_parts import unet_decoder, unet_encoder
from train.unlocked import unlocked_copy

# of the square matrices: large enough that starting a kernel costs nothing
SIDES = {"cuda": 8192, "cpu": 1024}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_at_reset: dict[str, int] = {}  # device -> bytes resident when its peak was last reset


def flops_per_image(
    unet: Any,  # UNet2DConditionModel, on any device: its config is read, not its weights
    hint_channels: Sequence[int],  # one for each of the K conditions that train together
    *,
    height: int,  # of the latents
    width: int,
    tokens: int,  # of the text
    connect: str = "full",  # full | middle
    unlock: str = "none",  # none | decoder | all
    recompute: bool = False,  # True adds what gradient checkpointing computes twice: work, but of no use
) -> float:  # 2 x multiply-adds of one training step for all conditions; attention's matrix products included
    """Counted on the meta device over the lines that train, so that no formula can drift from the network."""
    shape = height, width, tokens
    kind: Any = type(unet)
    return _flops(
        kind,
        json.dumps(dict(unet.config), sort_keys=True, default=str),
        tuple(hint_channels),
        shape,
        connect,
        unlock,
        recompute,
    )


@functools.lru_cache(maxsize=64)
def _flops(
    kind: Any,
    config: str,
    hint_channels: tuple[int, ...],
    shape: tuple[int, int, int],
    connect: str,
    unlock: str,
    recompute: bool,
) -> float:
    """Takes a second, so it is done once for each network and mode."""
    height, width, tokens = shape
    with torch.device("meta"):
        base = kind.from_config(json.loads(config)).requires_grad_(False)
        base = base if unlock == "none" else unlocked_copy(base, unlock)
        latents = torch.empty(1, base.config.in_channels, height, width)
        timesteps, text = (
            torch.empty(1, dtype=torch.int64),
            torch.empty(1, tokens, base.config.cross_attention_dim),
        )

    def encode() -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        with torch.set_grad_enabled(unlock == "all"):
            return unet_encoder(base, latents, timesteps, text, recompute=recompute)

    def learn(channels: int) -> None:
        controlnet = ControlNet(base, hint_channels=channels)
        hint = torch.empty(1, channels, 8 * height, 8 * width, device="meta")
        downs, middle = controlnet(latents, timesteps, text, hint, recompute=recompute)
        residuals = (downs if connect == "full" else None, middle)
        unet_decoder(base, skips, mid, emb, text, residuals, recompute=recompute).sum().backward()

    shared, (skips, mid, emb) = counted(encode)
    each = {channels: counted(functools.partial(learn, channels))[0] for channels in set(hint_channels)}
    return shared + sum(each[channels] for channels in hint_channels)


def utilisation(
    model: DiffusionModel,
    example: Pair,  # any that trains: what an image costs follows from its size
    options: Options,
    device: str,
    speed: float,  # images per second and process
) -> float | None:  # None = the matrix product was not measured
    """Model FLOP/s as a share of what a matrix product reaches here, in the precision of the passes."""
    rate = matmul_rate(device, precision.dtype_of(options.precision))
    if rate is None:
        return None
    height, width = example.mean.shape[1:]
    flops = flops_per_image(
        model.unet,
        [controlnet.config["conditioning_channels"] for controlnet in model.controlnets.values()],
        height=height,
        width=width,
        tokens=len(example.text),
        connect=options.connect,
        unlock=options.unlock,
    )
    return flops * speed / rate


# FLOPs of the call and of its backward pass where it makes one; its result
def counted(run: Callable[[], Any]) -> tuple[float, Any]:
    """Only matrix products and convolutions count, as everywhere where a share of the peak is told."""
    from torch.utils.flop_counter import FlopCounterMode

    counter: Any = FlopCounterMode(display=False)
    with counter:
        result = run()
    return float(counter.get_total_flops()), result


@functools.cache
def matmul_rate(
    device: str,
    dtype: torch.dtype,
    repeats: int = 9,
) -> float | None:  # FLOP/s of one large square matrix product; None = there is no memory for it
    """The yardstick of every share of the peak: measured here, since what a data sheet promises is not what a
    card gives. Training asks for it before anything else takes memory.
    """
    side = SIDES["cuda" if device.startswith("cuda") else "cpu"]
    with unless_out_of_memory():
        a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = []
        for turn in range(3 + repeats):
            wait(device)
            start = time.perf_counter()
            torch.mm(a, b)
            wait(device)
            if turn >= 3:  # the first ones choose kernels and wake the clock
                seconds.append(time.perf_counter() - start)
        return 2 * side**3 / statistics.median(seconds)
    return None


def wait(device: str) -> None:
    """Until the device has done all it was told to."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def reset_peak(device: str) -> None:
    """From here on peak_memory counts; on a CPU, what is free already goes back to the system first, or it
    would be taken again unseen.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
    try:
        _CLEAR.write_text("5")  # proc(5): the high-water mark becomes what is resident now
        _at_reset[device] = _resident("VmRSS")
    except OSError:  # not allowed here, so only what goes beyond the old mark can be seen
        _at_reset[device] = _resident("VmHWM")


def peak_memory(device: str) -> int:  # bytes
    """CUDA: the most that tensors held at once since reset_peak.

    CPU: by how much the process grew since then, at its largest.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return max(0, _resident("VmHWM") - _at_reset.get(device, 0))


def _resident(line: str) -> int:  # bytes; 0 on systems that have no /proc
    """VmRSS is what is resident now, VmHWM its high-water mark."""
    if not _STATUS.exists():
        return 0
    words = next(text for text in _STATUS.read_text().splitlines() if text.startswith(f"{line}:")).split()
    return int(words[1]) * 1024
