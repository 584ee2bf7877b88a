"""A photograph with a map beside it, read as a stage reads it."""

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as Pillow

from annotate.maps import RawMap
from pipeline.dataset import formats, provided
from pipeline.manifest import Image, Provided
from pipeline.sources import RawImage

TALL, WIDE = 64, 96  # of the photograph; the canonical image is its middle, 64 x 64


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def read_map(
    folder: Path,
    condition: str,
    data: Any,
    orientation: int = 1,
    fit: Literal["crop", "squash"] = "crop",
    **settings: Any,
) -> RawMap:
    """The map whose bytes, or whose JSON, lie beside a photograph; what is wrong with it is raised."""
    exif = Pillow.Exif()
    exif[formats.ORIENTATION] = orientation
    Pillow.new("RGB", (WIDE, TALL), "red").save(folder / "a.jpg", exif=exif)
    (folder / "a.map").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    stored = Provided(path="{stem}.map", **settings).model_dump()
    raw = RawImage(str(folder / "a.jpg"), "", place={"root": str(folder)}, provided={condition: stored})
    made = provided.read(raw, [condition], Image(resolution=64, fit=fit))[condition].map
    if isinstance(made, Exception):
        raise made
    return made
