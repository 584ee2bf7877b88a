"""Atomic checkpoints in the diffusers layout, with everything that an exact resume needs; safetensors and
JSON only.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.config import Config
from train.integrity import (
    META,
    OPTIMIZER,
    SEAL,
    STEP,
    Checkpoint,
    Damaged,
    name_of,
    problems,
    read,
    seal_of,
    whole,
)
from train.weights_file import WEIGHTS, sha256_of

if TYPE_CHECKING:
    from torch import nn, optim

KEEP = 2  # newest checkpoints of a run
TEMPORARY = ".tmp-"
ASIDE = "damaged-"  # before the name of a checkpoint that a run went on without


def began_with(meta: Mapping[str, Any]) -> dict[str, Any]:  # of a checkpoint, or of the run's identity
    """What of the options may change on the way, as it was at first: a run that was named after it is found
    again.
    """
    options = meta.get("options", {})
    return dict(
        meta.get("began_with") or {name: options.get(name) for name in ("micro_batch", "checkpoint_every")}
    )


def save(
    out: Path,
    # by folder: each condition's ControlNet; its average in <condition>/ema, an unlocked base in .../unet
    models: "Mapping[str, nn.Module]",
    optimizers: "dict[str, optim.Optimizer]",  # by folder, of the models that train
    meta: dict[str, Any],  # has images and step; this adds the files
) -> Checkpoint:
    """Written under a temporary name, flushed to disk, renamed: a kill at any moment leaves the previous
    checkpoint whole.
    """
    from safetensors.torch import save_file

    from train.optimizer import optimizer_tensors

    final = out / name_of(meta["step"])
    work = out / f"{TEMPORARY}{final.name}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    for name, model in models.items():
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "config.json", diffusers_config(model))
        weights = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        if name in optimizers:
            save_file(optimizer_tensors(model, optimizers[name]), folder / OPTIMIZER)
    files = sorted(path for path in work.rglob("*") if path.is_file())
    meta = meta | {
        "files": {
            str(path.relative_to(work)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files
        }
    }
    meta |= {SEAL: seal_of(meta)}
    _write_json(work / META, meta)
    for path in (*files, work / META, *(path for path in work.rglob("*") if path.is_dir()), work):
        _fsync(path)
    if final.exists():  # an incomplete folder of that name: newest() would have resumed from a complete one
        _discard(final)
    work.rename(final)
    _fsync(out)
    shutil.rmtree(out / f"{ASIDE}{final.name}", ignore_errors=True)  # made again
    stay = {each.path for each in kept(out)}
    for old in folders(out)[:-KEEP]:
        if old not in stay:
            _discard(old)
    return Checkpoint(final, meta["images"], meta["step"], meta)


def newest(out: Path) -> Checkpoint | None:
    """The last complete checkpoint by its files' names and sizes: quick enough to ask every second, also
    while training runs.
    """
    for folder in reversed(folders(out)):
        with contextlib.suppress(Damaged):
            return read(folder)
    return None


def newest_whole(
    out: Path,
    *,
    # False = its ControlNets are wanted alone, so damage to the optimizers' states does not matter
    resume: bool = True,
) -> tuple[Checkpoint | None, dict[Path, str]]:  # and those that are newer: folder -> what is wrong with it
    """The last checkpoint whose files have the sha256 that they were written with; reads all of it."""
    passed_over: dict[Path, str] = {}
    for folder in reversed(folders(out)):
        try:
            return whole(folder, resume=resume), passed_over
        except Damaged as error:
            passed_over[folder] = str(error)
    return None, passed_over


def set_aside(folder: Path) -> Path:
    """Out of the way of the run, which writes that step again and then deletes this; a person may still want
    what is whole in it.
    """
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def kept(out: Path) -> list[Checkpoint]:
    """Those that stay for good (Options.keep_every), oldest first."""
    checkpoints = []
    for folder in folders(out):
        with contextlib.suppress(Damaged):
            checkpoints.append(read(folder))
    return [each for each in checkpoints if each.meta.get("kept")]


def take_over(begun: Checkpoint, out: Path) -> Path:  # the folder that it lay in
    """A longer run goes on from here: the log first, then the checkpoints that stay for good, this one last;
    their files are shared, not copied.

    The caller has hashed this one; of the others those that are damaged are left behind.
    """
    source = begun.path.parent
    out.mkdir(parents=True, exist_ok=True)
    for log in source.glob("*.jsonl"):
        shutil.copy2(log, out / log.name)
    stay = [each.path for each in kept(source) if each.images < begun.images and not problems(each.path)]
    for folder in [*stay, begun.path]:
        work = out / f"{TEMPORARY}{folder.name}"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work, copy_function=_link)
        work.rename(out / folder.name)
    return source


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def sweep(out: Path) -> None:
    """Only the process that trains calls this: a temporary name may be another reader's checkpoint in the
    making.
    """
    for path in out.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def diffusers_config(
    model: Any,  # ControlNet, or the UNet2DConditionModel of an unlocked base
) -> Config:
    """The config.json that diffusers, and so ComfyUI and A1111, reads beside the weights."""
    from diffusers import __version__

    from train.controlnet import ControlNet

    name, settings = (
        ("ControlNetModel", model.config)
        if isinstance(model, ControlNet)
        else (type(model).__name__, dict(model.config))
    )
    facts = {
        key: value for key, value in settings.items() if not key.startswith("_")
    }  # a leading _ is diffusers' own: where a base came from
    return {"_class_name": name, "_diffusers_version": __version__, **facts}


def folders(out: Path) -> list[Path]:
    """Of a run's checkpoints in order of steps, whether complete or not."""
    return sorted(path for path in out.glob("step-*") if STEP.fullmatch(path.name))


def _discard(folder: Path) -> None:
    """Renamed first: a kill in the middle must not leave half a checkpoint under a checkpoint's name."""
    doomed = folder.with_name(f"{TEMPORARY}{folder.name}-old-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
