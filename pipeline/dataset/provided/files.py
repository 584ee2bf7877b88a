"""Where the source keeps the map of an image: a file beside it, a cell, a member, or one JSON for all."""

from importlib import import_module
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, cast

from pipeline.dataset.provided import coco
from pipeline.sources.far.addresses import local_path, reader_of
from pipeline.sources.far.lists import read_far
from pipeline.sources.maps import is_path
from pipeline.sources.raw import MAX_BYTES, FilePlace, RawImage, Unreadable

LOOKUPS = {
    "tar": ("archives", "read_member"),
    "parquet": ("tables", "read_cell"),
    "huggingface": ("tables", "read_cell"),
}


def fetch(raw: RawImage, name: str) -> Any:
    """The bytes of a map, the numbers of a cell that holds them, or a data set's record of the image.

    Unreadable: there is none.
    """
    reader = "parquet" if "column" in raw.place else raw.reader  # of a row whose image is far away
    if reader in LOOKUPS:
        module, function = LOOKUPS[reader]
        return getattr(import_module(f"pipeline.sources.{module}"), function)(raw, name)
    place = cast(FilePlace, raw.place)
    if name in place.get("cells", ()):  # a list's column: a path, the numbers themselves, or their JSON
        cell = place["cells"][name]
        if cell is None:
            raise Unreadable(f"no map came with this image: its row has no {name!r}")
        if not is_path(cell):
            return cell
        if reader_of(cell.strip()):
            return read_far(cell, place)
        return read_file(Path(place["root"], local_path(cell)))
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
    return coco.find(root / inner, raw.uri) if coco.is_data_set(name) else read_file(root / inner)


def content(value: Any) -> bytes:
    """What `fetch` gave, as bytes that are the same while the map is."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, coco.Record):
        return repr(value).encode()
    png = coco.panoptic_png(value)
    return repr((value.size, value.annotations, value.categories)).encode() + (read_file(png) if png else b"")


def read_file(path: Path) -> bytes:
    """The bytes of a map; Unreadable where there are none, or too many."""
    if not path.is_file():
        raise Unreadable(f"no map came with this image: {path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise Unreadable(f"too large: {path}")
    return path.read_bytes()
