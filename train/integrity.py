"""A checkpoint as it lies on the disk, and whether its files are those that were written."""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from train.weights_file import sha256_of

OPTIMIZER = "optimizer.safetensors"
# the average, in the ControlNet's folder, itself in the diffusers layout; give diffusers this path, not
# `subfolder=`
AVERAGE = "ema"
META = "meta.json"  # written last: a folder without it is no checkpoint
SEAL = "sha256"  # of META: that of all else in it; those written before it was added have none
STEP = re.compile(r"step-\d{8,}")
# of META: what a run needs to go on
RESUMED = ("conditions", "base", "pairs_hash", "warm_start", "options", "seconds")
KINDS: dict[str, type | UnionType] = {
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


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def read(folder: Path) -> Checkpoint:
    """By names and sizes.

    A file that is missing or cut short is named, since everything below would fail less clearly.

    Damaged: META is missing or is not as it was written, or a file is missing or has another size.
    """
    if not (folder / META).is_file():
        raise Damaged(f"{folder} is not a complete checkpoint: it has no {META}")
    done = _described(folder)
    for name in done.meta["files"]:
        if wrong := _wrong(done, name, hashed=False):
            raise Damaged(f"checkpoint {folder} is damaged: {name} {wrong}")
    return done


def whole(folder: Path, *, resume: bool = True) -> Checkpoint:
    """As `read`, and every file that is wanted is hashed; those who use it hash it once, those who only tell
    of it do not.

    Damaged: as for `read`, or a file has another sha256 or can't be read; to resume, also META lacks what a
    run needs to go on.
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
        done = _described(folder)
    except Damaged as error:
        return [str(error)]
    wrong = {name: _wrong(done, name) for name in done.meta["files"]}
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
            done = _described(folder)
        except Damaged:
            if STEP.fullmatch(folder.name):
                raise
            continue  # somebody's file of the same name
        below = f"{here.relative_to(folder).as_posix()}/"
        for name in done.meta["files"]:
            if name.startswith(below) and not name.endswith(OPTIMIZER) and (wrong := _wrong(done, name)):
                raise Damaged(f"checkpoint {folder} is damaged: {name} {wrong}")


def _described(folder: Path) -> Checkpoint:
    """By its META alone, whatever became of its files."""
    meta = meta_of(folder)
    return Checkpoint(folder, meta["images"], meta["step"], meta)


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
        and meta.get(SEAL) in (None, seal_of(meta))
    )


def seal_of(meta: Mapping[str, object]) -> str:
    return hashlib.sha256(
        json.dumps({name: meta[name] for name in meta if name != SEAL}, sort_keys=True).encode()
    ).hexdigest()


def _wrong(done: Checkpoint, name: str, *, hashed: bool = True) -> str:  # '' = the file is what was written
    path, fact = done.path / name, done.meta["files"][name]
    try:
        if path.stat().st_size != fact["bytes"]:
            return "is missing or has the wrong size"
        return (
            "" if not hashed or sha256_of(path) == fact["sha256"] else f"has another sha256 than {META} says"
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "is missing or has the wrong size"
        if error.errno != errno.EIO:
            raise
        return f"can't be read ({error.strerror})"


def folder_to_sample(
    controlnet: Path,  # a ControlNet's folder in a checkpoint
) -> Path:
    """The rule for all who use a ControlNet rather than train it further: its average where one was kept,
    else its weights.
    """
    return controlnet / AVERAGE if (controlnet / AVERAGE / "config.json").is_file() else controlnet
