"""The loop of the mini models: one network, one average of it, one counter; it can be stopped and gone on
with at any step.
"""

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train import ema
from train.batches import rng

STATE = "state.pt"
FIRST = 100  # steps until the learning rate is at its full height, also after a start from weights alone


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How to train one network; `images` counts from nothing, sessions and all."""

    part: str  # its name in the log and in the folder
    images: int  # to have seen at the end
    batch: int
    half_life: float  # of the average, in images; shorter while few have been seen
    save_every: float = 300.0  # seconds
    measure_every: int = 8000  # images
    log_every: int = 800  # images
    clip: float = 1.0  # largest norm of the gradient


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn at a share of the learning rate."""

    parameters: Sequence[nn.Parameter]
    share: float = 1.0


@dataclass(frozen=True)
class Objective:
    """What a network is to learn."""

    groups: Sequence[ParameterGroup]
    # the network, images seen before this batch => loss; a pure function of both
    loss_at: Callable[[nn.Module, int], Tensor]
    rate: Callable[[int], float]  # images seen => learning rate
    measure: Callable[[nn.Module], dict[str, float]]  # of the average, on held-out pictures


@dataclass
class Spent:
    """What a network has cost so far, in all sessions."""

    images: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0


def learn(
    net: nn.Module,
    objective: Objective,
    loop: Loop,
    folder: Path,
    *,
    spent: Spent,  # before this call; a saved state knows better
    until: float,  # time.monotonic() at which to stop
) -> tuple[nn.Module, Spent, bool]:  # the average, what it has cost, and whether it has seen all its images
    """Saves and returns at `until`, at SIGTERM, and at the end."""
    mean = ema.start(net)
    groups = [{"params": list(group.parameters), "lr": group.share} for group in objective.groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    spent, start = _load(folder, net, mean, optimizer, spent)
    stop, restore = _stop_at_sigterm()
    saved, clock, cpu = time.monotonic(), time.monotonic(), time.process_time()
    losses: list[float] = []
    base_seconds, base_cpu = spent.seconds, spent.cpu_seconds
    while spent.images < loop.images and not stop.is_set() and time.monotonic() < until:
        warm = min(1.0, (1 + (spent.images - start) / loop.batch) / FIRST)
        rate = objective.rate(spent.images)
        for group, learned in zip(optimizer.param_groups, objective.groups, strict=True):
            group["lr"] = learned.share * warm * rate
        loss = objective.loss_at(net, spent.images)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), loop.clip)
        if bool(torch.isfinite(norm)):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(mean, net, loop.half_life, spent.images, loop.batch)
        before, spent.images = spent.images, spent.images + loop.batch
        spent.seconds, spent.cpu_seconds = (
            base_seconds + time.monotonic() - clock,
            base_cpu + time.process_time() - cpu,
        )
        losses.append(float(loss.detach()))
        if _passes(before, spent.images, loop.log_every):
            row = {"loss": sum(losses) / len(losses), "gradient_norm": float(norm), "lr": rate * warm}
            _log(folder, loop.part, spent, row)
            losses = []
        if _passes(before, spent.images, loop.measure_every) or spent.images >= loop.images:
            _log(folder, loop.part, spent, objective.measure(mean.eval()))
        if time.monotonic() - saved > loop.save_every:
            _save(folder, net, mean, optimizer, spent, start)
            saved = time.monotonic()
    _save(folder, net, mean, optimizer, spent, start)
    restore()
    return mean.eval(), spent, spent.images >= loop.images


def place(n: int, seed: int, counter: int) -> int:  # images seen so far => index of the next of n
    """Every epoch is its own permutation."""
    epoch, offset = divmod(counter, n)
    return int(_permutation(n, seed, epoch)[offset])


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return rng(seed, "order", epoch).permutation(n)


def spent_of(folder: Path) -> Spent | None:
    """What the saved state of a folder has cost; None = there is none."""
    state = _state(folder)
    return None if state is None else Spent(**state["spent"])


def average_of(folder: Path, net: nn.Module) -> bool:
    """Puts the saved average into a network, where there is one."""
    state = _state(folder)
    if state is not None:
        net.load_state_dict(state["mean"])
    return state is not None


def _state(folder: Path) -> dict[str, Any] | None:
    path = folder / STATE
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


# ..., images at the start
def _load(folder: Path, net: nn.Module, mean: nn.Module, optimizer: Any, spent: Spent) -> tuple[Spent, int]:
    state = _state(folder)
    if state is None:
        return spent, spent.images
    net.load_state_dict(state["net"])
    mean.load_state_dict(state["mean"])
    optimizer.load_state_dict(state["optimizer"])
    return Spent(**state["spent"]), state["start"]


def _save(folder: Path, net: nn.Module, mean: nn.Module, optimizer: Any, spent: Spent, start: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "net": net.state_dict(),
        "mean": mean.state_dict(),
        "optimizer": optimizer.state_dict(),
        "spent": vars(spent),
        "start": start,
    }
    work = folder / f".tmp-{STATE}-{os.getpid()}"
    torch.save(state, work)
    work.rename(folder / STATE)


def _log(folder: Path, part: str, spent: Spent, row: dict[str, float]) -> None:
    line = {
        "part": part,
        **{key: round(value, 1) for key, value in vars(spent).items()},
        **{k: round(v, 6) for k, v in row.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _passes(before: int, after: int, every: int) -> bool:
    return before // every < after // every


def _stop_at_sigterm() -> tuple[threading.Event, Callable[[], None]]:
    """Only the main thread may handle a signal; elsewhere the event stays unset."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return stop, lambda: None
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop, lambda: (signal.signal(signal.SIGTERM, before), None)[1]
