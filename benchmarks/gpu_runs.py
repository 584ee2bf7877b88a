"""Trainings of a few steps, compared bit for bit: killed and resumed, and in a group of one rank."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_setting import Row, Setting, Tell

STEPS = 12
SAVED, KILLED = STEPS // 2, 3 * STEPS // 4  # steps


def resume(setting: Setting, tell: Tell) -> None:
    """The weights of a run that was killed and went on, beside those of the same run twice without a kill:
    what differs between the latter two is the kernels', and no resume can undo it.
    """
    rows: list[Row] = []
    for compiled in (False, True) if setting.cuda else (False,):
        for deterministic in (True, False) if setting.cuda else (False,):  # a CPU has no other kernels
            row: Row = {"compile": compiled, "deterministic": deterministic}
            rows.append(row)
            begun = time.monotonic()
            try:
                _resume_row(setting, row)
            except RuntimeError as error:
                row["failed"] = str(error)
            row["seconds"] = round(time.monotonic() - begun, 1)
            tell({"steps": STEPS, "saved": SAVED, "killed": KILLED, "rows": rows})


def _resume_row(setting: Setting, row: Row) -> None:
    from train.integrity import name_of
    from train.log_file import LOG, read_log

    folders = {name: setting.folder / "runs" / name for name in ("whole", "again", "killed")}
    for name, folder in folders.items():
        if name == "killed":
            in_process(setting, row, folder, kill_at=KILLED)
        in_process(setting, row, folder)
    ends = {name: folder / name_of(STEPS) for name, folder in folders.items()}
    log, _ = read_log(folders["whole"] / LOG)
    speeds = [line["images_per_second"] for line in log if line["step"] > STEPS // 4]
    row["images_per_s"] = round(statistics.median(speeds), 3)
    row["again"] = difference(ends["whole"], ends["again"])
    row["resumed"] = difference(ends["whole"], ends["killed"])
    shutil.rmtree(setting.folder / "runs")


def in_process(setting: Setting, row: Row, folder: Path, kill_at: int | None = None) -> None:
    """RuntimeError where it did not end as it should, or time is over."""
    context = multiprocessing.get_context("spawn")
    options = {key: row[key] for key in ("compile", "deterministic")}
    running = context.Process(
        target=train_run, args=(setting.device, setting.shape, options, folder, kill_at)
    )
    running.start()
    running.join(setting.left)
    if running.is_alive():
        running.kill()
        running.join()
        raise RuntimeError("the time was over before it ended")
    wanted = 0 if kill_at is None else -signal.SIGKILL
    if running.exitcode != wanted:
        raise RuntimeError(
            f"a training ended with status {running.exitcode}, not {wanted}: see what it printed"
        )


def train_run(
    device: str, shape_name: str, settings: dict[str, Any], folder: Path, kill_at: int | None = None
) -> float:  # seconds
    """A short run as users have it, with a checkpoint in its middle; `kill_at` is the step behind which the
    process kills itself.
    """
    import torch

    from benchmarks.shapes import SHAPES, RandomPairs, random_base
    from train.fit import Calls, Options, fit

    shape, cuda = SHAPES[shape_name], device.startswith("cuda")
    batch = min(8, shape.batch)
    if not cuda:
        torch.set_num_threads(1)
    pairs = RandomPairs(shape, ["condition"], 2 * batch)
    usual = {"precision": "bf16" if cuda else "fp32", "workers": 2, "held_out": 0, "log_every": batch}
    options = Options(images=STEPS * batch, batch=batch, checkpoint_every=SAVED * batch, **usual | settings)

    def log(row: Any) -> None:
        if kill_at is not None and row["step"] >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    base = dataclasses.replace(random_base(shape_name, shape, device), device=device)
    begun = time.monotonic()
    fit(base, pairs, ["condition"], options, folder, calls=Calls(log=log))
    return time.monotonic() - begun


def difference(one: Path, other: Path) -> dict[str, Any]:
    """Of two checkpoints, optimizer and all: tensors, those whose bits differ, the largest difference."""
    import torch
    from safetensors.torch import load_file

    count, differ, largest = 0, 0, 0.0
    for path in sorted(one.rglob("*.safetensors")):
        theirs = load_file(other / path.relative_to(one))
        for name, tensor in load_file(path).items():
            count += 1
            if not torch.equal(tensor, theirs[name]):
                differ += 1
                largest = max(largest, float((tensor.double() - theirs[name].double()).abs().max()))
    return {"tensors": count, "differ": differ, "largest": largest}


def nccl(setting: Setting, tell: Tell) -> None:
    """A run in a group of one rank, whose messages all go through NCCL (gloo on a CPU), and the same run
    alone: weights must be equal bit for bit. This proves nothing of several GPUs.
    """
    import torch.distributed as dist

    from train.integrity import name_of

    found: dict[str, Any] = {"backend": "nccl" if setting.cuda else "gloo"}
    for name in ("alone", "group"):
        if name == "group":
            address = f"file://{setting.folder / 'meeting'}"
            dist.init_process_group(found["backend"], init_method=address, rank=0, world_size=1)
        try:
            settings = {"deterministic": True}
            seconds = train_run(setting.device, setting.shape, settings, setting.folder / name)
            found[f"{name}_seconds"] = round(seconds, 2)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        tell(found)
    ends = [setting.folder / name / name_of(STEPS) for name in ("alone", "group")]
    tell(found | {"difference": difference(*ends)})
