"""Maps that come with the images: read from where the source keeps them, and carried over to the canonical
image.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from annotate import memory
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

Told = TypeVar("Told")
# kind of map -> what reads one
READERS: dict[str, Callable[[Given], RawMap]] = {
    "labels": labels.read, "depth": depth.read, "normals": normals.read, "people": people.read,
    "edges": outlines.edges, "soft_edges": outlines.soft_edges, "lines": outlines.lines,
}  # fmt: skip


@dataclass(frozen=True)
class ProvidedMap:
    """A map that came with an image, or why there is none, and the sha256 of what it was read from."""

    map: RawMap | Exception
    source_hash: str | None = None  # None: nothing could be read


def read(raw: RawImage, conditions: list[str], image: Image) -> dict[str, ProvidedMap]:
    """The maps of one image at its canonical size."""
    if raw.reader == "scene":
        from pipeline.sources.rendered import truth

        return {name: ProvidedMap(answer) for name, answer in truth(raw, conditions).items()}
    try:
        with formats.opened(sources.read(raw)) as (_, header):
            to = images.place(*header.upright, image)
    except Exception as error:
        memory.let_through(error)
        return dict.fromkeys(conditions, ProvidedMap(error))
    return {name: _read_one(raw, name, to, header.orientation) for name in conditions}


def of_condition(by_name: Mapping[str, Told], condition: str) -> Told | None:
    """What stands under the condition, or under that whose maps it shares."""
    return by_name.get(condition) or by_name.get(CONDITIONS[condition].shares or "")


def source_hash(raw: RawImage, condition: str) -> str | None:
    """sha256 of what the map of an image is read from, its mask's bytes too; None where there is none."""
    settings = of_condition(raw.provided, condition)
    try:
        return _hash(*_fetch(raw, Provided.model_validate(settings))) if settings else None
    except Unreadable:
        return None


def _fetch(raw: RawImage, settings: Provided) -> tuple[Any, Any]:
    """The values of the map and of its mask, None where it has none."""
    value = files.fetch(raw, str(settings.column or settings.path))
    return value, files.fetch(raw, settings.mask) if settings.mask else None


def _hash(value: Any, mask: Any) -> str:
    return hashlib.sha256(files.content(value) + (b"" if mask is None else files.content(mask))).hexdigest()


def _read_one(raw: RawImage, condition: str, to: Placement, orientation: int) -> ProvidedMap:
    stored = of_condition(raw.provided, condition)
    if stored is None:
        reason = "no map came with this image: its source has no `provided` for this condition"
        return ProvidedMap(Unreadable(reason))
    digest = None
    try:
        settings = Provided.model_validate(stored)
        value, mask = _fetch(raw, settings)
        digest = _hash(value, mask)
        frame = Frame(to, _turn(condition, settings, orientation))
        valid = None if mask is None else _valid(mask, settings)
        kind = CONDITIONS[condition].kind
        if isinstance(value, coco.Record) and kind not in ("people", "labels"):
            raise ValueError(f"a data set's JSON holds people or labels, and {condition} is neither")
        return ProvidedMap(READERS[kind](Given(condition, settings, value, frame, valid)), digest)
    except Exception as error:
        memory.let_through(error)
        return ProvidedMap(error, digest)


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


def _valid(mask: Any, settings: Provided) -> np.ndarray:
    if isinstance(mask, coco.Record):
        raise ValueError(f"{settings.mask} is a data set's JSON, and a mask is a picture or .npy")
    return one_channel(pixels(mask), "masks", UNLIKE) > 0
