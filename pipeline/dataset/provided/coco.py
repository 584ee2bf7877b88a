"""One JSON of COCO's kind for a whole data set: what it says of one image, and label maps of its segments."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from annotate import label_spaces
from annotate.label_spaces import VOID
from pipeline.sources.raw import Unreadable

UNKNOWN = 0.001  # share of a panoptic PNG that may have ids which the JSON lacks


@dataclass(frozen=True)
class Record:
    """What a data set's JSON says of one image."""

    file_name: str
    size: tuple[int, int] | None  # (height, width)
    annotations: tuple[dict[str, Any], ...]
    categories: Mapping[int, str]
    folder: Path  # of panoptic PNGs: called as the JSON is


@dataclass(frozen=True)
class _DataSet:
    by_name: Mapping[str, tuple[dict[str, Any], ...]]  # last part of file_name -> records of images
    of_image: Mapping[Any, bytes]  # image id -> its annotations as JSON, which takes a tenth of the memory
    categories: Mapping[int, str]


def is_data_set(name: str) -> bool:
    """Whether a `provided` path names one JSON for many images."""
    return name.lower().endswith(".json") and "{stem}" not in name and "{name}" not in name


def find(path: Path, uri: str) -> Record:
    """The record of the image at an address. Unreadable: there is none, or several."""
    if not path.is_file():
        raise Unreadable(f"no map came with this image: {path} does not exist")
    state = path.stat()
    known = _load(path, state.st_mtime_ns, state.st_size)
    parts = PurePath(uri).parts
    fitting = [
        image
        for image in known.by_name.get(parts[-1] if parts else "", ())
        if parts[-len(PurePath(image["file_name"]).parts) :] == PurePath(image["file_name"]).parts
    ]
    longest = max((len(PurePath(image["file_name"]).parts) for image in fitting), default=0)
    fitting = [image for image in fitting if len(PurePath(image["file_name"]).parts) == longest]
    if len(fitting) != 1:
        found = "no image" if not fitting else f"{len(fitting)} images"
        raise Unreadable(
            f"no map came with this image: {path.name} has {found} whose `file_name` ends its address"
        )
    image = fitting[0]
    size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
    annotations = tuple(json.loads(known.of_image.get(image.get("id"), b"[]")))
    return Record(image["file_name"], size, annotations, known.categories, path.with_suffix(""))


@lru_cache(maxsize=4)
def _load(path: Path, modified: int, size: int) -> _DataSet:
    """Read once a process, for as long as the file stays as it is."""
    try:
        stored = json.loads(path.read_bytes())
        images, annotations = stored["images"], stored["annotations"]
        by_name: dict[str, tuple[dict[str, Any], ...]] = {}
        for image in images:
            last = PurePath(image["file_name"]).name
            by_name[last] = (*by_name.get(last, ()), image)
        lists: dict[Any, list[dict[str, Any]]] = {}
        for one in annotations:
            lists.setdefault(one["image_id"], []).append(one)
        categories = {int(one["id"]): str(one["name"]) for one in stored.get("categories", ())}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unreadable(
            f"{path} is no JSON of COCO's kind, with `images` and `annotations`: {error!r}"
        ) from error
    return _DataSet(by_name, {key: json.dumps(ones).encode() for key, ones in lists.items()}, categories)


def panoptic_png(record: Record) -> Path | None:
    """The PNG of an image's segments; None where it has polygons or run lengths instead, or no annotation.

    ValueError: several annotations name one, or a name leaves the folder.
    """
    named = [one for one in record.annotations if "segments_info" in one]
    if not named:
        return None
    if len(record.annotations) > 1:
        raise ValueError(f"{len(record.annotations)} panoptic annotations of {record.file_name}")
    name = PurePath(named[0].get("file_name", f"{PurePath(record.file_name).stem}.png"))
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{str(name)!r} leaves the folder of the panoptic PNGs")
    return record.folder / name


def labels(record: Record, space: str, read_png: Callable[[Path], np.ndarray]) -> np.ndarray:
    """uint8 [h, w] ids of a label space; what no segment covers is void.

    Segments of a panoptic PNG, or polygons and run lengths of instances, of which the smaller lie above. A
    category is known by its name. ValueError: a category that the space lacks, or a broken segment.
    """
    if png := panoptic_png(record):
        return _panoptic(record, space, read_png(png))
    if record.size is None:
        raise ValueError(f"the JSON does not say `height` and `width` of {record.file_name}")
    array = np.full(record.size, VOID, np.uint8)
    for one in sorted(record.annotations, key=lambda one: -float(one.get("area", 0))):
        array[_mask(one, record.size)] = _class(record, one, space)
    return array


def _class(record: Record, segment: Mapping[str, Any], space: str) -> int:
    """The id in the space of a segment's category."""
    name = record.categories.get(segment["category_id"])
    found = None if name is None else label_spaces.id_of(name, space)
    if found is None:
        known = f"{name!r} is" if name else "the JSON has no name in `categories`, and it is"
        raise ValueError(
            f"category {segment['category_id']}: {known} no class of {space}: set `labels` to the space of"
            " the JSON's categories"
        )
    return found


def _panoptic(record: Record, space: str, colours: np.ndarray) -> np.ndarray:
    (one,) = record.annotations
    if colours.ndim != 3 or colours.shape[2] < 3:
        raise ValueError("a panoptic PNG has colours: red + 256 green + 65536 blue is a segment's id")
    segments = colours[..., :3].astype(np.int64) @ [1, 256, 65536]
    classes = {int(segment["id"]): _class(record, segment, space) for segment in one["segments_info"]}
    ids, inverse = np.unique(segments, return_inverse=True)
    table = np.array([classes.get(int(number), VOID) for number in ids], np.uint8)
    unknown = np.array([int(number) != 0 and int(number) not in classes for number in ids])
    share = float(unknown[inverse].mean())
    if share > UNKNOWN:
        raise ValueError(f"{share:.1%} of the panoptic PNG are segments that the JSON does not name")
    return table[inverse].reshape(segments.shape)


def _mask(one: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """bool [h, w] of a segment."""
    segmentation = one.get("segmentation")
    if segmentation is None:
        raise ValueError(f"annotation {one.get('id')} has neither `segmentation` nor `segments_info`")
    if isinstance(segmentation, Mapping):
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        runs = _runs(counts) if isinstance(counts, str) else [int(count) for count in counts]
        if (height, width) != size or sum(runs) != height * width or min(runs, default=0) < 0:
            raise ValueError(f"the run lengths of annotation {one.get('id')} do not fill {width}×{height}")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    import cv2

    canvas = np.zeros(size, np.uint8)
    for polygon in segmentation:
        corners = np.rint(np.asarray(polygon, np.float64).reshape(-1, 2) - 0.5).astype(np.int32)
        cv2.fillPoly(canvas, [corners], 1)
    return canvas > 0


def _runs(text: str) -> list[int]:
    """Run lengths of COCO's compressed form: five bits a character, each run less the one before the last."""
    runs: list[int] = []
    at = 0
    while at < len(text):
        value = shift = 0
        more = True
        while more:
            digit = ord(text[at]) - 48
            value |= (digit & 31) << shift
            more, shift, at = bool(digit & 32), shift + 5, at + 1
        if digit & 16:
            value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
