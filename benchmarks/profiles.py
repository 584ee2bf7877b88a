"""Where the time of a pass goes, and how fast this machine could make it at best.

A network that computes the same sums can't be faster than those sums take at the machine's rate: this is
what the figures of a detector are held against.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

# part of an operator's name -> what kind of work it is; the first that fits
KINDS = (
    ("attention", "attention"),
    ("conv", "convolutions"),
    ("mm", "matrix products"),
    ("linear", "matrix products"),
    ("copy_", "copies and casts"),
    ("norm", "norms"),
    ("upsample", "resizing"),
)


def of(run: Callable[[], Any], dtype: str, device: str) -> dict[str, Any]:
    """Of one call of `run`: its sums (GFLOP), seconds, the shares of its time by kind of work, and the least
    seconds that the sums take at the best rate of `dtype` ("fp32" or "bf16") here.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    start = time.perf_counter()
    with profile(activities=activities) as profiled:
        run()
        if gpu:
            torch.cuda.synchronize(device)
    wall = time.perf_counter() - start
    spent: Counter[str] = Counter()
    for row in profiled.key_averages():
        own = row.self_device_time_total if gpu else row.self_cpu_time_total
        if own and (not gpu or not row.key.startswith("cuda")):
            spent[kind(row.key)] += own / 1e6
    spent["outside of torch"] = max(0.0, wall - sum(spent.values()))
    gflop = counter.get_total_flops() / 1e9
    return {
        "gflop": round(gflop, 1),
        "seconds": round(wall, 3),
        "least_seconds": round(gflop / best_rate(dtype, device), 3),
        "shares": {name: round(seconds / wall, 3) for name, seconds in spent.most_common()},
    }


def kind(operator: str) -> str:
    """The kind of work of an operator of torch."""
    return next((kind for part, kind in KINDS if part in operator), "the rest of torch")


@functools.cache
def best_rate(dtype: str, device: str) -> float:
    """GFLOP/s of the product of two large square matrices, by the yardstick of training."""
    from annotate import inference
    from train.throughput import matmul_rate

    rate = matmul_rate(device, inference.dtype(dtype))
    if rate is None:
        raise RuntimeError("there is no memory for the matrices whose product is timed")
    return rate / 1e9
