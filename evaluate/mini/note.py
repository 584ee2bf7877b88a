"""What lies beside the weights of a mini scorer, and what identifies them."""

import json
from pathlib import Path
from typing import Any

from evaluate.weights import Mark, file_sha256

NAME = "mini-clip"
VERSION = "1"  # of what is done with pictures and captions before and after the weights
WEIGHTS, NOTE = "scorer.safetensors", "scorer.json"


def described(folder: Path) -> dict[str, Any]:
    """The note beside the weights, which has their sha256; ValueError where it is that of others."""
    for name in (WEIGHTS, NOTE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: a mini scorer is a folder with {WEIGHTS} and {NOTE}")
    note: dict[str, Any] = json.loads((folder / NOTE).read_text())
    sha256 = file_sha256(folder / WEIGHTS)
    if note["sha256"] != sha256:
        raise ValueError(
            f"{folder / WEIGHTS} has sha256 {sha256[:12]}…, {NOTE} beside it says {note['sha256'][:12]}…:"
            " take both from one training"
        )
    return note


def mark(folder: Path = Path(__file__).parent) -> Mark:
    """Of the network, without loading it; ValueError as for `load`."""
    return Mark(NAME, VERSION, described(folder)["sha256"])
