"""Maps that come with the images: read from where the source keeps them, and carried over to the canonical
image.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from pipeline import sources
from pipeline.dataset import formats, images
from pipeline.dataset.images import Placement
from pipeline.dataset.provided import coco, depth, files, labels, normals, outlines, people
from pipeline.dataset.provided.frames import Frame, Given
from pipeline.dataset.provided.pixels import UNLIKE, one_channel, pixels
from pipeline.manifest import Image, Provided
from pipeline.sources.raw import RawImage, Unreadable

# kind of map -> what reads one
READERS: dict[str, Callable[[Given], RawMap]] = {
    "labels": labels.read, "depth": depth.read, "normals": normals.read, "people": people.read,
    "edges": outlines.edges, "soft_edges": outlines.soft_edges, "lines": outlines.lines,
}  # fmt: skip


def read(raw: RawImage, conditions: list[str], image: Image) -> dict[str, RawMap | Exception]:
    """The maps of one image at its canonical size, or for each condition why there is none."""
    if raw.reader == "scene":
        from pipeline.sources.rendered import truth

        return truth(raw, conditions)
    try:
        with formats.opened(sources.read(raw)) as (_, header):
            to = images.place(*header.upright, image)
    except Exception as error:
        return dict.fromkeys(conditions, error)
    return {name: _read_one(raw, name, to, header.orientation) for name in conditions}


def source_hash(raw: RawImage, condition: str) -> str | None:
    """sha256 of what the map of an image is read from, its mask's bytes too; None where there is none."""
    stored = raw.provided.get(condition) or raw.provided.get(CONDITIONS[condition].shares or "")
    if stored is None:
        return None
    digest = hashlib.sha256()
    try:
        for name in (stored.get("column") or stored.get("path"), stored.get("mask")):
            digest.update(files.content(files.fetch(raw, str(name))) if name else b"")
    except Unreadable:
        return None
    return digest.hexdigest()


def _read_one(raw: RawImage, condition: str, to: Placement, orientation: int) -> RawMap | Exception:
    stored = raw.provided.get(condition) or raw.provided.get(CONDITIONS[condition].shares or "")
    if stored is None:
        return Unreadable("no map came with this image: its source has no `provided` for this condition")
    try:
        settings = Provided.model_validate(stored)
        value = files.fetch(raw, str(settings.column or settings.path))
        frame = Frame(to, _turn(condition, settings, orientation))
        mask = _mask(raw, settings.mask) if settings.mask else None
        kind = CONDITIONS[condition].kind
        if isinstance(value, coco.Record) and kind not in ("people", "labels"):
            raise ValueError(f"a data set's JSON holds people or labels, and {condition} is neither")
        return READERS[kind](Given(condition, settings, value, frame, mask))
    except Exception as error:
        return error


def _turn(condition: str, settings: Provided, orientation: int) -> int:
    """The EXIF orientation that the map shares with the photograph's file; ValueError where nobody says."""
    if orientation == 1 or settings.frame == "upright":
        return 1
    if settings.frame is None:
        raise ValueError(
            f"EXIF turns this photograph (orientation {orientation}), and it is not said whether its map is"
            f" turned already: set `provided.{condition}.frame` to `stored` (as the file's pixels lie) or"
            " `upright` (as the photograph is shown)"
        )
    return orientation


def _mask(raw: RawImage, name: str) -> np.ndarray:
    value = files.fetch(raw, name)
    if isinstance(value, coco.Record):
        raise ValueError(f"{name} is a data set's JSON, and a mask is a picture or .npy")
    return one_channel(pixels(value), "masks", UNLIKE) > 0
