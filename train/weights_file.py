"""Files of weights: their tensors, read without running code from a file, and the hash of their content."""

import functools
import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Size, Tensor

WEIGHTS = "diffusion_pytorch_model.safetensors"  # of a model's folder in the diffusers layout
SAFE_SUFFIX = ".safetensors"
SUFFIXES = (SAFE_SUFFIX, ".ckpt", ".pth", ".pt", ".bin")


def read_file(
    path: Path,
    prefixes: tuple[str, ...],  # the first that any name begins with is taken; "" = all tensors
    # gets all names of the file, and raises where it is not what is wanted
    look: Callable[[Iterable[str]], None] = lambda names: None,
    # that prefix, the tensors below it by the rest of their names, the header's texts
) -> "tuple[str, dict[str, Tensor], dict[str, str]]":
    """No code in a file is run: safetensors, or torch.load(weights_only=True).

    Without any of the prefixes there are no tensors.

    ValueError: the name has another ending than SUFFIXES, or the file is damaged, holds objects other than
    tensors that could run code, or holds no state dict.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no file of weights: its name should end in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == SAFE_SUFFIX:
            with safe_open(path, framework="pt") as file:
                look(file.keys())
                prefix, names = _below(file.keys(), prefixes)
                return prefix, {name: file.get_tensor(prefix + name) for name in names}, file.metadata() or {}
        stored = _unpickled(path)
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} can't be read: it is damaged, or no {path.suffix} file ({_first_line(error)})"
        ) from error
    except pickle.UnpicklingError as error:
        if not _is_pickle(path):
            raise ValueError(f"{path} can't be read: it is damaged, or no {path.suffix} file") from error
        raise ValueError(
            f"{path} holds more than tensors, and reading that could run code from the file: get the"
            " .safetensors of this model, or save its state dict alone"
        ) from error
    from torch import Tensor

    outer = stored
    if isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds a {type(stored).__name__}, not a state dict")
    look(name for name in (*outer, *stored) if isinstance(name, str))
    tensors = {
        name: value for name, value in stored.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    prefix, names = _below(tensors, prefixes)
    return prefix, {name: tensors[prefix + name] for name in names}, {}


def _unpickled(path: Path) -> Any:
    """Nothing but tensors is made; RuntimeError, EOFError or UnpicklingError where it holds anything else."""
    import torch

    try:
        # Mapped, so that a model of 6 GB around a ControlNet of 1.4 GB is not read whole.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError):
        raise
    except Exception as error:  # the unpickler raises whatever it likes on broken data
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def check_fit(
    where: str, prefix: str, weights: "Mapping[str, Tensor]", expected: "Mapping[str, Size]"
) -> None:
    """ValueError with the first name that is missing, of another shape, or unknown, and what was expected of
    it.
    """
    for name, shape in expected.items():
        if name not in weights:
            raise ValueError(
                f"{where} lacks the tensor {prefix}{name} with the shape"
                f" {list(shape)}{_others(expected.keys() - weights.keys())}"
            )
        if weights[name].shape != shape:
            differ = {one for one in expected.keys() & weights.keys() if weights[one].shape != expected[one]}
            raise ValueError(
                f"{where} belongs to another base: {prefix}{name} has the shape {list(weights[name].shape)}, "
                f"{list(shape)} was expected{_others(differ)}"
            )
    unknown = weights.keys() - expected.keys()
    if unknown:
        raise ValueError(
            f"{where} has the tensor {prefix}{min(unknown)}, which has no place in this"
            f" network{_others(unknown)}"
        )


def tensors_of(path: Path) -> "dict[str, Tensor]":
    """As they are stored; a damaged file is named, which the library does not do.

    ValueError: the file is damaged, or is not in the safetensors format.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read: it is damaged, or no .safetensors file ({error})") from error


def sha256_of(path: Path) -> str:  # 64 hex
    """Of the bytes as they lie on the disk now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_of(path: Path) -> str:  # sha256
    """Of a large file; it is read again only where its size or its time has changed."""
    return _content_of(path.resolve(), path.stat().st_size, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _content_of(path: Path, size: int, mtime_ns: int) -> str:
    """The hub's cache names large files by their hash already; others are read once per process."""
    return path.name if re.fullmatch(r"[0-9a-f]{64}", path.name) else sha256_of(path)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _is_pickle(path: Path) -> bool:
    """By its first byte: a page of a web server, or the pointer that git leaves without LFS, holds text."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == pickle.PROTO


def _below(names: Iterable[str], prefixes: tuple[str, ...]) -> tuple[str, list[str]]:
    names = list(names)
    prefix = next((one for one in prefixes if any(name.startswith(one) for name in names)), prefixes[-1])
    return prefix, [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _others(names: set[str]) -> str:
    return f", and {len(names) - 1} more like it" if len(names) > 1 else ""
