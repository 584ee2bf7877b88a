"""How networks see images: at which size, how many at a time, in which precision.

Shared by all learned detectors.
"""

import functools
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotate import memory
from annotate.parameters import Choice, Number, Values

if TYPE_CHECKING:
    import torch

PRECISION = Choice(default="auto", options=("auto", "fp32", "bf16"))
MOST = 32  # images in one forward pass on a GPU
SHARE = 0.8  # of the free GPU memory that a batch may take
FAST = {"avx512_vnni", "avx512_bf16", "amx_bf16"}  # instructions that choose a precision

# uint8 [n, h, w, 3] RGB, all of one size, and what `run` was told of each -> one result per image
Forward = Callable[..., Sequence[Any] | np.ndarray]


def resolution(default: int) -> Number:
    """The parameter that says how large a network sees an image: its short side in pixels; 0 = as the image
    is.
    """
    return Number(default=default, least=0, most=4096, whole=True)


def settle(params: Values) -> Values:
    """Replace precision `auto` by bf16 where the machine computes it fast, else fp32, so that the choice is
    on record.
    """
    return (
        {**params, "precision": "bf16" if fast_bf16() else "fp32"}
        if params.get("precision") == "auto"
        else params
    )


def fast_bf16() -> bool:
    """An NVIDIA GPU, or a CPU with instructions for it."""
    return has_gpu() or bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded, without importing torch."""
    return Path("/proc/driver/nvidia/version").exists()


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the kernel says the CPU can do and oneDNN may use, without importing torch; nothing where it can't
    be known.
    """
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return frozenset()
    with info.open() as file:
        flags = frozenset(next((line for line in file if line.startswith("flags")), "").split())
    return (
        flags - FAST
        if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ("SSE41", "AVX", "AVX2", "AVX512_CORE")
        else flags
    )


def dtype(precision: str) -> "torch.dtype":
    """fp32 or bf16 as torch names it."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def detection_size(height: int, width: int, short: int, multiple: int = 64) -> tuple[int, int]:
    """(height, width) with the short side at `short` and both rounded to `multiple`, as ControlNet's
    resize_image; 0 = only rounded.
    """
    scale = short / min(height, width) if short else 1.0
    return tuple(max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))  # type: ignore[return-value]


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 HW3 at (height, width): Lanczos up, area down, as ControlNet's resize_image."""
    import cv2

    if image.shape[:2] == size:
        return image
    grows = size[0] * size[1] > image.shape[0] * image.shape[1]
    return cv2.resize(
        image, (size[1], size[0]), interpolation=cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    )


def at_resolution(images: Sequence[np.ndarray], short: int) -> list[np.ndarray]:
    """uint8 HW3 images at the sizes at which a network sees them: short sides at `short`; 0 = only rounded to
    multiples of 64.
    """
    return [resize(image, detection_size(image.shape[0], image.shape[1], short)) for image in images]


def run(
    images: Sequence[np.ndarray],
    forward: Forward,
    device: str,
    name: str,
    told: Sequence[Any] | None = None,  # of each image: `forward` gets those of its images as a list
) -> list[Any]:
    """One result per image.

    Equal sizes run together; a short batch is filled up to a power of two, so that passes have few shapes.

    One image a pass on a CPU: as fast as several, and no map depends on its neighbours. On a GPU the batch is
    as large as the memory that one image took allows (`name` keys what was measured), and is halved when that
    was too much.
    """

    def passed(chosen: list[int]) -> Sequence[Any] | np.ndarray:
        batch = np.stack([images[i] for i in chosen])
        return forward(batch) if told is None else forward(batch, [told[i] for i in chosen])

    results: dict[int, Any] = {}
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(i)
    for shape, same in sizes.items():
        todo = list(same)
        while todo:
            most = _micro_batch(name, shape, device, functools.partial(passed, same[:1]))
            micro = min(most, 1 << (len(todo) - 1).bit_length())
            chosen = todo[:micro]
            outputs = _passed((chosen + chosen[-1:] * micro)[:micro], passed)
            if outputs is None:
                _BATCHES[name, shape, device] = micro // 2
            else:
                results.update(zip(chosen, list(outputs), strict=False))
                todo = todo[micro:]
    return [results[i] for i in range(len(images))]


def _passed(
    chosen: list[int], passed: Callable[[list[int]], Sequence[Any] | np.ndarray]
) -> Sequence[Any] | np.ndarray | None:
    """None where memory ran out in a pass of several images."""
    try:
        return passed(chosen)
    except Exception as error:
        if not memory.ran_out(error) or len(chosen) == 1:
            raise
    import torch

    # the error is gone, and with it what held the tensors of the pass
    torch.cuda.empty_cache()
    return None


_BATCHES: dict[tuple[str, tuple[int, ...], str], int] = {}  # measured in this process


def _micro_batch(name: str, shape: tuple[int, ...], device: str, one: Callable[[], Any]) -> int:
    if not device.startswith("cuda"):
        return 1
    key = (name, shape, device)
    if key not in _BATCHES:
        import torch

        one()  # what a library allocates once
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        one()
        each = max(torch.cuda.max_memory_allocated(device) - before, 1)
        torch.cuda.empty_cache()  # what torch keeps of memory that nobody uses counts as free
        _BATCHES[key] = batch_that_fits(torch.cuda.mem_get_info(device)[0], each)
    return _BATCHES[key]


def batch_that_fits(free: int, each: int) -> int:
    """The largest power of two, at most MOST, of images of `each` bytes in SHARE of `free` bytes; at least
    one.
    """
    fits = int(free * SHARE) // max(each, 1)
    return min(MOST, 1 << max(fits.bit_length() - 1, 0))
