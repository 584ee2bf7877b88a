"""Maps that come with the images: read from where the source keeps them, and carried over to the canonical
image.
"""

import hashlib
import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, cast

import numpy as np

from annotate import label_spaces
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap, depth_map
from pipeline import sources
from pipeline.dataset import images
from pipeline.dataset.images import Placement
from pipeline.manifest import Image, Provided
from pipeline.sources.raw import MAX_BYTES, FilePlace, RawImage, Unreadable

COCO_KEYPOINTS, OPENPOSE_KEYPOINTS = 17, 18


def read(raw: RawImage, conditions: list[str], image: Image) -> dict[str, RawMap | Exception]:
    """The maps of one image at its canonical size, or for each condition why there is none."""
    if raw.reader == "scene":
        from pipeline.sources.rendered import truth

        return truth(raw, conditions)
    try:
        data = sources.read(raw)
        height, width = images.upright_size(data)
    except Exception as error:
        return dict.fromkeys(conditions, error)
    to = images.place(height, width, image)
    return {name: _read_one(raw, name, to) for name in conditions}


def _read_one(raw: RawImage, condition: str, to: Placement) -> RawMap | Exception:
    stored = raw.provided.get(condition) or raw.provided.get(CONDITIONS[condition].shares or "")
    if stored is None:
        return Unreadable("no map came with this image: its source has no `provided` for this condition")
    try:
        settings = Provided.model_validate(stored)
        value = _fetch(raw, str(settings.column or settings.path))
        mask = _fetch(raw, settings.mask) if settings.mask else None
        valid = None if mask is None else _pixels(mask).reshape(_pixels(mask).shape[:2]) > 0
        return READERS[CONDITIONS[condition].kind](value, settings, to, valid, condition)
    except Exception as error:
        return error


def source_hash(raw: RawImage, condition: str) -> str | None:
    """sha256 of what the map of an image is read from, its mask's bytes too; None where there is none."""
    stored = raw.provided.get(condition) or raw.provided.get(CONDITIONS[condition].shares or "")
    if stored is None:
        return None
    digest = hashlib.sha256()
    try:
        for name in (stored.get("column") or stored.get("path"), stored.get("mask")):
            value = _fetch(raw, name) if name else b""
            digest.update(value if isinstance(value, bytes) else repr(value).encode())
    except Unreadable:
        return None
    return digest.hexdigest()


def _fetch(raw: RawImage, name: str) -> Any:
    """The bytes of a map, or the numbers of a cell that holds them."""
    if raw.reader in LOOKUPS:
        module, function = LOOKUPS[raw.reader]
        return getattr(import_module(f"pipeline.sources.{module}"), function)(raw, name)
    place = cast(FilePlace, raw.place)
    if name in place.get("cells", ()):  # a list's column: a path, the numbers themselves, or their JSON
        cell = place["cells"][name]
        if cell is None:
            raise Unreadable(f"no map came with this image: its row has no {name!r}")
        return (
            _file(Path(place["root"], cell))
            if isinstance(cell, str) and cell.lstrip()[:1] not in ("[", "{")
            else cell
        )
    path = PurePath(raw.uri)
    root = Path(place["root"])
    inside = path.parent.is_relative_to(root)
    if "{folder}" in name and not inside:
        raise Unreadable(
            f"provided: {name!r} asks for the image's folder below {root}, but the image lies elsewhere"
        )
    folder = path.parent.relative_to(root).as_posix() if inside else ""
    inner = name.format(folder=folder, stem=path.stem, name=path.name)
    if PurePosixPath(inner).is_absolute():
        raise Unreadable(f"provided: {name!r} must be a path that begins at the source's folder")
    return _file(root / inner)


LOOKUPS = {
    "tar": ("archives", "read_member"),
    "parquet": ("tables", "read_cell"),
    "huggingface": ("tables", "read_cell"),
}


def _file(path: Path) -> bytes:
    if not path.is_file():
        raise Unreadable(f"no map came with this image: {path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise Unreadable(f"too large: {path}")
    return path.read_bytes()


def _pixels(data: Any) -> np.ndarray:
    """An array from .npy or picture bytes (as stored: 8 or 16 bit, palette indices kept), or from nested
    numbers.
    """
    if not isinstance(data, bytes):
        return np.asarray(json.loads(data) if isinstance(data, str) else data)
    if data[:6] == b"\x93NUMPY":
        return np.load(io.BytesIO(data), allow_pickle=False)
    from PIL import Image as Pillow

    try:
        opened = Pillow.open(io.BytesIO(data), formats=images.FORMATS)
    except Pillow.UnidentifiedImageError:  # its own words name an address in memory, another for each image
        raise Unreadable("a map is a picture or .npy; this file is neither") from None
    with opened as picture:
        if picture.width * picture.height > 2**28:
            raise Unreadable(f"a map of {picture.width}×{picture.height} pixels is too large")
        # Pillow cuts 16-bit colours down to 8
        if data[:4] == b"\x89PNG" and data[24:26] in (b"\x10\x02", b"\x10\x06"):
            import cv2

            deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if deep is None:
                raise Unreadable("a map is a broken PNG")
            return deep[..., 2::-1]
        return np.asarray(picture)


def _plane(data: Any, to: Placement, channels: int = 1) -> np.ndarray:
    """The canonical part of a map that covers the raw image, nearest neighbour: no label and no depth is ever
    blended.
    """
    import cv2

    array = _pixels(data)
    array = (
        array.reshape(array.shape[:2]) if channels == 1 and array.ndim == 3 and array.shape[2] == 1 else array
    )
    if array.ndim != (2 if channels == 1 else 3) or (channels > 1 and array.shape[2] < channels):
        raise ValueError(
            f"a map of shape {array.shape} where {channels} channel{'s are' if channels > 1 else ' is'}"
            " wanted"
        )
    height, width = array.shape[:2]
    # another aspect ratio by more than a pixel
    if abs(height * to.raw[1] - width * to.raw[0]) > max(height, width, *to.raw):
        raise ValueError(
            f"the map has {width}×{height} pixels, its image {to.raw[1]}×{to.raw[0]}: they don't cover the"
            " same"
        )
    y, x = height / to.raw[0], width / to.raw[1]
    rows = slice(round(to.top * y), round((to.top + to.height) * y))
    columns = slice(round(to.left * x), round((to.left + to.width) * x))
    array = np.ascontiguousarray(
        array[rows, columns][..., :channels] if channels > 1 else array[rows, columns]
    )
    if array.shape[:2] == to.size:
        return array
    wide = array.astype(np.float32) if array.dtype not in (np.uint8, np.uint16, np.float32) else array
    return cv2.resize(wide, to.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(array.dtype)


def _valid(mask: np.ndarray | None, to: Placement) -> np.ndarray:
    return np.ones(to.size, bool) if mask is None else _plane(mask.astype(np.uint8), to) > 0


def _labels(value: Any, settings: Provided, to: Placement, mask: np.ndarray | None, condition: str) -> RawMap:
    if not settings.labels:
        raise ValueError(f"provided.{condition}: set `labels` to what the numbers mean")
    array, space = (
        label_spaces.translate(_plane(value, to), settings.labels),
        label_spaces.SOURCES[settings.labels],
    )
    if space not in CONDITIONS[condition].label_spaces:
        raise ValueError(
            f"{condition} takes labels of {' or '.join(CONDITIONS[condition].label_spaces)}, not of {space}"
        )
    array = np.where(_valid(mask, to), array, label_spaces.VOID).astype(array.dtype)
    return RawMap("labels", array, {"label_space": space})


def _depth(value: Any, settings: Provided, to: Placement, mask: np.ndarray | None, condition: str) -> RawMap:
    """Inverse depth; what is invalid counts as infinitely far."""
    plane = _plane(value, to).astype(np.float32)
    valid = _valid(mask, to) & np.isfinite(plane)
    if settings.depth == "inverse":
        return depth_map(np.where(valid, plane, plane[valid].min() if valid.any() else 0), unit="relative")
    valid &= plane > 0
    return depth_map(np.divide(1, plane, out=np.zeros_like(plane), where=valid), unit="1/m")


def _normals(
    value: Any, settings: Provided, to: Placement, mask: np.ndarray | None, condition: str
) -> RawMap:
    """What is 0 0 0 is invalid: black in a picture of normals too, which no unit vector gives."""
    array = _plane(value, to, channels=3)
    nonzero = array.any(axis=2)
    if array.dtype.kind == "u":  # a picture of them
        array = array.astype(np.float32) / np.iinfo(array.dtype).max * 2 - 1
    array = array.astype(np.float32) * (
        1 if settings.normals != "x right, y down, z away" else np.array([1, -1, -1], np.float32)
    )
    length = np.linalg.norm(array, axis=2, keepdims=True)
    valid = nonzero & (length[..., 0] > 0.5) & np.isfinite(array).all(axis=2) & _valid(mask, to)
    return RawMap(
        "normals", np.where(valid[..., None], array / np.where(length > 0, length, 1), 0).astype(np.float32)
    )


def _people(value: Any, settings: Provided, to: Placement, mask: np.ndarray | None, condition: str) -> RawMap:
    """COCO's annotations of one image ([{keypoints: [x, y, v, …]}, …]) or OpenPose's JSON ({people:
    [{pose_keypoints_2d: …}]}).
    """
    stored = json.loads(value) if isinstance(value, bytes | str) else value
    people = stored.get("people", stored.get("annotations", [])) if isinstance(stored, dict) else stored
    lists = (
        []
        if people is None
        else [
            one.get("keypoints") or one.get("pose_keypoints_2d") if isinstance(one, dict) else one
            for one in people
        ]
    )
    layout = str(CONDITIONS[condition].layout)
    count = {"coco_17": COCO_KEYPOINTS, "openpose_18": OPENPOSE_KEYPOINTS}[layout]
    given = [np.asarray(one, np.float32).reshape(-1, 3) for one in lists if one]
    odd = next((len(one) for one in given if len(one) != count), None)
    if odd is not None:
        raise ValueError(f"a person of {odd} keypoints where {condition} takes {count}")
    joints = np.array(given, np.float32).reshape(-1, count, 3)
    if settings.keypoints == "coco":  # 2 = seen, 1 = hidden, 0 = not labelled
        joints[..., 2] /= 2
    y, x = to.size[0] / to.height, to.size[1] / to.width
    joints[..., 0] = (joints[..., 0] - to.left + 0.5) * x - 0.5
    joints[..., 1] = (joints[..., 1] - to.top + 0.5) * y - 0.5
    inside = (
        (joints[..., 0] >= 0)
        & (joints[..., 0] < to.size[1])
        & (joints[..., 1] >= 0)
        & (joints[..., 1] < to.size[0])
    )
    joints[~(inside & (joints[..., 2] > 0))] = 0
    return RawMap("people", joints[joints[..., 2].any(axis=1)], {"size": list(to.size), "layout": layout})


def _edges(value: Any, settings: Provided, to: Placement, mask: np.ndarray | None, condition: str) -> RawMap:
    return RawMap("edges", np.where(_grey(value, to, small=1) > 127, np.uint8(255), np.uint8(0)))


def _soft_edges(
    value: Any, settings: Provided, to: Placement, mask: np.ndarray | None, condition: str
) -> RawMap:
    return RawMap("soft_edges", _grey(value, to))


def _grey(value: Any, to: Placement, small: int = 0) -> np.ndarray:
    """uint8 from 8 or 16 bit, from truth values or fractions; integers that go up to `small` at most are
    truth values.
    """
    array = _plane(value, to)
    least, most = array.min(), array.max()
    top = 65535 if array.dtype == np.uint16 else 255
    if array.dtype.kind not in "biuf" or not 0 <= least <= most <= top:
        raise ValueError(f"edges go from 0 to 255 or from 0 to 1, not from {least} to {most}")
    full = 1 if most <= (1 if array.dtype.kind in "bf" else small) else top
    return np.rint(array.astype(np.float32) * (255 / full)).astype(np.uint8)


def _lines(value: Any, settings: Provided, to: Placement, mask: np.ndarray | None, condition: str) -> RawMap:
    """float [N, 4 or 5]: x0 y0 x1 y1 and a score, on the raw image."""
    given = np.asarray(_pixels(value), np.float32)
    y, x = to.size[0] / to.height, to.size[1] / to.width
    lines = np.concatenate(
        [given[:, :4], given[:, 4:5] if given.shape[1] > 4 else np.ones((len(given), 1), np.float32)], axis=1
    )
    lines[:, [0, 2]] = (lines[:, [0, 2]] - to.left + 0.5) * x - 0.5
    lines[:, [1, 3]] = (lines[:, [1, 3]] - to.top + 0.5) * y - 0.5
    return RawMap("lines", lines, {"size": list(to.size)})


# kind of map -> (value, settings, placement, where it is valid, condition) -> the map
READERS: dict[str, Callable[[Any, Provided, Placement, np.ndarray | None, str], RawMap]] = {
    "labels": _labels, "depth": _depth, "normals": _normals, "people": _people,
    "edges": _edges, "soft_edges": _soft_edges, "lines": _lines,
}  # fmt: skip
