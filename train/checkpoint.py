"""Atomic checkpoints in the diffusers layout, with everything that an exact resume needs; safetensors and
JSON only.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn, optim

from train import hub, kinds, mini, original
from train.base import content_of
from train.controlnet import ControlNet, empty_controlnet

KEEP = 2  # newest checkpoints of a run
META = "meta.json"  # written last: a folder without it is no checkpoint
WEIGHTS = "diffusion_pytorch_model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TEMPORARY = ".tmp-"
SEAL = "sha256"  # of META: that of all else in it; those written before it was added have none
STEP = re.compile(r"step-\d{8,}")
ASIDE = "damaged-"  # before the name of a checkpoint that a run went on without
# of META: what a run needs to go on
RESUMED = ("conditions", "base", "pairs_hash", "warm_start", "options", "seconds")
KINDS: dict[str, Any] = {
    "conditions": list, "base": str, "pairs_hash": str, "warm_start": dict, "options": dict,
    "seconds": int | float, "began_with": dict,
}  # fmt: skip


class Damaged(FileNotFoundError):
    """A checkpoint's files are missing, or are not those that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint; `path / condition`, and `ema` in it, are folders that
    diffusers.ControlNetModel.from_pretrained loads.
    """

    path: Path
    images: int  # seen: the one counter everything else follows from
    step: int  # optimizer steps
    meta: dict[str, Any]


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
    models: Mapping[str, nn.Module],
    optimizers: dict[str, optim.Optimizer],  # by folder, of the models that train
    meta: dict[str, Any],  # has images and step; this adds the files
) -> Checkpoint:
    """Written under a temporary name, flushed to disk, renamed: a kill at any moment leaves the previous
    checkpoint whole.
    """
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
            str(path.relative_to(work)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
    }
    meta |= {SEAL: _seal(meta)}
    _write_json(work / META, meta)
    for path in (*files, work / META, *(path for path in work.rglob("*") if path.is_dir()), work):
        _fsync(path)
    if final.exists():  # an incomplete folder of that name: newest() would have resumed from a complete one
        _discard(final)
    work.rename(final)
    _fsync(out)
    shutil.rmtree(out / f"{ASIDE}{final.name}", ignore_errors=True)  # made again
    stay = {it.path for it in kept(out)}
    for old in folders(out)[:-KEEP]:
        if old not in stay:
            _discard(old)
    return Checkpoint(final, meta["images"], meta["step"], meta)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


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
    found = []
    for folder in folders(out):
        with contextlib.suppress(Damaged):
            found.append(read(folder))
    return [it for it in found if it.meta.get("kept")]


def take_over(begun: Checkpoint, out: Path) -> Path:  # the folder that it lay in
    """A longer run goes on from here: the log first, then the checkpoints that stay for good, this one last;
    their files are shared, not copied.

    The caller has hashed this one; of the others those that are damaged are left behind.
    """
    source = begun.path.parent
    out.mkdir(parents=True, exist_ok=True)
    for log in source.glob("*.jsonl"):
        shutil.copy2(log, out / log.name)
    stay = [it.path for it in kept(source) if it.images < begun.images and not problems(it.path)]
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


def read(folder: Path) -> Checkpoint:
    """By names and sizes.

    A file that is missing or cut short is named, since everything below would fail less clearly.
    """
    if not (folder / META).is_file():
        raise Damaged(f"{folder} is not a complete checkpoint: it has no {META}")
    meta = meta_of(folder)
    done = Checkpoint(folder, meta["images"], meta["step"], meta)
    for name in meta["files"]:
        if wrong := _wrong(done, name, hashed=False):
            raise Damaged(f"checkpoint {folder} is damaged: {name} {wrong}")
    return done


def whole(folder: Path, *, resume: bool = True) -> Checkpoint:
    """As `read`, and every file that is wanted is hashed; those who use it hash it once, those who only tell
    of it do not.
    """
    done = read(folder)
    lacking = [name for name in RESUMED if resume and name not in done.meta]
    if lacking:
        raise Damaged(f"checkpoint {folder} is damaged: {META} lacks {', '.join(lacking)}")
    for name in done.meta["files"]:
        if (resume or not name.endswith(OPTIMIZER)) and (wrong := _wrong(done, name)):
            raise Damaged(f"checkpoint {folder} is damaged: {name} {wrong}")
    return done


def problems(folder: Path) -> list[str]:  # none = it is whole
    """A sentence for each damaged file."""
    try:
        meta = meta_of(folder)
    except Damaged as error:
        return [str(error)]
    done = Checkpoint(folder, meta["images"], meta["step"], meta)
    wrong = {name: _wrong(done, name) for name in meta["files"]}
    return [f"checkpoint {folder} is damaged: {name} {what}" for name, what in wrong.items() if what]


def check_controlnet(controlnet: Path) -> None:
    """For those who use a ControlNet's folder: hashes its files where it lies in a run's checkpoint, also its
    average's and its base's.

    Damaged where they are not what was written. A folder from elsewhere has nothing to be compared with.
    """
    here = controlnet.resolve()
    for folder in here.parents[:2]:  # an average lies one deeper
        if not (folder / META).is_file():
            continue
        try:
            meta = meta_of(folder)
        except Damaged:
            if STEP.fullmatch(folder.name):
                raise
            continue  # somebody's file of the same name
        done = Checkpoint(folder, meta["images"], meta["step"], meta)
        below = f"{here.relative_to(folder).as_posix()}/"
        for name in meta["files"]:
            if name.startswith(below) and not name.endswith(OPTIMIZER) and (wrong := _wrong(done, name)):
                raise Damaged(f"checkpoint {folder} is damaged: {name} {wrong}")


def meta_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint's META says; Damaged where it is missing, or not what was written."""
    try:
        meta = json.loads((folder / META).read_bytes().decode())
        if _fits(meta, folder):
            return dict(meta)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{folder} is not a complete checkpoint: it has no {META}") from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass  # told below
    raise Damaged(f"checkpoint {folder} is damaged: {META} is not as it was written")


def _fits(meta: Any, folder: Path) -> bool:
    """Whether what its readers compute with is of the kind that they expect, and agrees with the rest; may
    raise where it does not.
    """
    images, step, room = meta["images"], meta["step"], meta.get("room", {"micro": 1, "join": False})
    counts = [images, step, room["micro"], *(file["bytes"] for file in meta["files"].values())]
    batch = meta.get("options", {}).get("batch")
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and all(isinstance(file["sha256"], str) for file in meta["files"].values())
        and all(isinstance(meta[name], kind) for name, kind in KINDS.items() if name in meta)
        and type(meta.get("options", {}).get("images", 0)) is int
        and set(room) == {"micro", "join"}
        and room["micro"] > 0
        and isinstance(room["join"], bool)
        and (batch is None or images == step * batch)
        and (not STEP.fullmatch(folder.name) or folder.name == name_of(step))
        and meta.get(SEAL) in (None, _seal(meta))
    )


def _seal(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps({name: meta[name] for name in meta if name != SEAL}, sort_keys=True).encode()
    ).hexdigest()


def _wrong(done: Checkpoint, name: str, *, hashed: bool = True) -> str:  # '' = the file is what was written
    path, fact = done.path / name, done.meta["files"][name]
    try:
        if path.stat().st_size != fact["bytes"]:
            return "is missing or has the wrong size"
        return "" if not hashed or _sha256(path) == fact["sha256"] else f"has another sha256 than {META} says"
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "is missing or has the wrong size"
        if error.errno != errno.EIO:
            raise
        return f"can't be read ({error.strerror})"


def sweep(out: Path) -> None:
    """Only the process that trains calls this: a temporary name may be another reader's checkpoint in the
    making.
    """
    for path in out.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def locate(spec: str | Path, *, download: bool = True) -> Path:
    """The folder or single file behind `spec`: `mini/canny` and the like, a path, or a hub id owner/name, of
    which the local cache is asked first.
    """
    if root := mini.root(str(spec)):
        return root
    here = Path(spec).expanduser()
    if here.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(spec)):
        if not here.exists():
            raise FileNotFoundError(
                f"{spec}: no such ControlNet: neither a folder, nor a file, nor a hub id of the form"
                " owner/name"
            )
        _check_kind(here)
        return here
    needed = ["config.json", WEIGHTS]
    found = hub.folder(
        str(spec),
        str(spec),
        needed,
        download,
        "name its path",
        lambda cached: [name for name in needed if not (cached / name).is_file()],
    )
    _check_kind(found)
    return found


def _check_kind(controlnet: Path) -> None:
    """Before any work: a plan asks, and little but names is read."""
    if controlnet.is_file():
        original.read_file(
            controlnet,
            (original.PREFIX + original.FIRST_HINT,),
            look=functools.partial(kinds.check_names, controlnet),
        )
    elif (controlnet / "config.json").is_file():
        kinds.read_config(controlnet)


def load_controlnet(
    # in the diffusers layout: config.json and diffusion_pytorch_model.safetensors; or a single file in the
    # original layout
    folder: Path,
    unet: Any = None,  # a UNet2DConditionModel to check the topology against; None = as config.json says
) -> ControlNet:  # float32 on the CPU, trainable
    """Strict in both directions: a ControlNet with a tensor missing would run, and run wrongly."""
    if folder.is_file():
        tensors, config = original.read_controlnet(folder, None if unet is None else unet.config)
        controlnet = empty_controlnet(config)
        controlnet.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        return controlnet.requires_grad_(True)
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no ControlNet in the diffusers layout: it has no"
                f" {name}{kinds.in_place_of(folder / name)}"
            )
    controlnet = empty_controlnet(kinds.read_config(folder))
    if unet is not None:
        theirs = {
            name: unet.state_dict()[name].shape
            for name in unet.state_dict()
            if name in controlnet.state_dict()
        }
        odd = [name for name, shape in theirs.items() if controlnet.state_dict()[name].shape != shape]
        if odd:
            raise ValueError(
                f"the ControlNet in {folder} belongs to another base: {len(odd)} tensors differ in shape,"
                f" first {odd[0]}"
            )
    # Copies: a file's tensors lie at any address, and products of matrices depend in their last bits on how
    # their operands are aligned.
    weights = {name: tensor.float().clone() for name, tensor in tensors_of(folder / WEIGHTS).items()}
    kinds.check_names(folder, weights)
    expected = {name: tensor.shape for name, tensor in controlnet.state_dict().items()}
    wrong = sorted(
        name
        for name in expected.keys() | weights.keys()
        if name not in weights or expected.get(name) != weights[name].shape
    )
    if wrong:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit its config.json: {len(wrong)} tensors differ, first {wrong[0]}"
        )
    controlnet.load_state_dict(weights, assign=True)
    return controlnet.requires_grad_(True)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """As they are stored; a damaged file is named, which the library does not do."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read: it is damaged, or no .safetensors file ({error})") from error


def write_rounded(
    folder: Path,  # a ControlNet in the diffusers layout
    dest: Path,
) -> None:
    """The same ControlNet in bfloat16: half the bytes, for what is shipped."""
    dest.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in tensors_of(folder / WEIGHTS).items()}
    save_file(weights, dest / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(folder / "config.json", dest / "config.json")


def weights_hash(folder: Path) -> str:  # 16 hex
    """Identity of the weights of a ControlNet's folder or single file, wherever it lies."""
    if folder.is_file():
        return content_of(folder)[:16]
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} is no ControlNet in the diffusers layout: it has no {WEIGHTS}")
    return content_of(folder / WEIGHTS)[:16]


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


def diffusers_config(
    model: Any,  # ControlNet, or the UNet2DConditionModel of an unlocked base
) -> dict[str, Any]:
    """The config.json that diffusers, and so ComfyUI and A1111, reads beside the weights."""
    from diffusers import __version__

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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
