"""Layouts of published files (tests/published): names and shapes of their tensors, and files of zeros in
these layouts that take next to no room.

In a name, `{0..11}` stands for each of these numbers and `{bias,weight}` for each of these words.
"""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "published"
UNKNOWN: dict[str, str] = json.loads((FOLDER / "unknown.json").read_text())  # name -> why no layout is here
INTEGERS = ("position_ids", "num_batches_tracked", "relative_position_index")
Shapes = dict[str, list[int]]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "unknown")


def read(name: str) -> dict[str, Any]:
    """A layout with all its names written out."""
    told: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return {
        **told,
        "tensors": {each: shape for key, shape in told["tensors"].items() for each in written_out(key)},
    }


def written_out(name: str) -> list[str]:
    parts = [
        _choices(part) if number % 2 else [part] for number, part in enumerate(re.split(r"\{(.*?)\}", name))
    ]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _choices(told: str) -> list[str]:
    first, span, last = told.partition("..")
    return [str(number) for number in range(int(first), int(last) + 1)] if span else told.split(",")


def zeros(shapes: Shapes) -> dict[str, Any]:
    """One number for each tensor, seen in its shape; a pickle of them is as small."""
    import torch

    return {
        name: torch.zeros((), dtype=torch.int64 if name.endswith(INTEGERS) else torch.float32).expand(shape)
        for name, shape in shapes.items()
    }


def write(path: Path, shapes: Shapes) -> Path:
    """A file of zeros: a pickle, or a sparse .safetensors in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".safetensors":
        import torch

        torch.save(zeros(shapes), path)
        return path
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        kind, size = ("I64", 8) if name.endswith(INTEGERS) else ("F16", 2)
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def write_folder(folder: Path, name: str, within: str = "") -> Path:
    """The layout's file with its config.json beside it, in the folder."""
    told = read(name)
    path = write(folder / within / Path(told["file"]).name, told["tensors"])
    (path.parent / "config.json").write_text(json.dumps(told["config"]))
    return path


def drawn(model: Any) -> list[str]:
    """Names of a model's parameters that did not come from a file of zeros."""
    return [name for name, tensor in model.named_parameters() if tensor.is_meta or tensor.any()]
