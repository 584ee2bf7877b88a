"""Raw images in: where they are (`listing`, in the driver) and what they hold (`read`, in a worker)."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from annotate.flips import may_flip
from pipeline import MillError
from pipeline.manifest import Image
from pipeline.sources.far.addresses import local_path, reader_of, scheme_of
from pipeline.sources.listed import Listing
from pipeline.sources.raw import (
    Fetched,
    Gone,
    ListingContext,
    RawImage,
    ReadCaptions,
    Unreadable,
    clean,
    image_id,
)

# source kind -> module and function that list it: (source, image settings, context) -> RawImages in a stable
# order
LISTERS = {
    "folder": ("folders", "list_folder"),
    "list": ("lists", "list_table"),
    "webdataset": ("archives", "list_tars"),
    "img2dataset": ("img2dataset", "list_img2dataset"),
    "parquet": ("tables", "list_parquet"),
    "huggingface": ("hub", "list_dataset"),
    "scenes": ("rendered", "list_scenes"),
}
# RawImage.reader -> module and the function that reads one: RawImage -> raw bytes; or Unreadable
READERS = {
    "file": ("files", "read_file"),
    "tar": ("archives", "read_tar"),
    "parquet": ("tables", "read_row"),
    "huggingface": ("tables", "read_row"),
    "scene": ("rendered", "read_scene"),
    "url": ("far.urls", "read_url"),
    "object": ("far.objects", "read_object"),
}
# of those that are far away: what reads many of them at a time, and what looks whether they are as before
FAR = {
    "url": ("far.urls", "read_urls", "look"),
    "object": ("far.objects", "read_objects", "look"),
}
# of those whose captions may lie beside the image: RawImage -> ReadCaptions
CAPTION_READERS = {
    "file": ("sidecars", "read_captions"),
    "tar": ("archives", "read_captions"),
    "scene": ("rendered", "read_captions"),
    "object": ("far.objects", "read_captions"),
}


def listing(
    sources: Sequence[Any],
    image: Image,
    without: Path | None = None,
    spool: Path | None = None,
    notes: list[str] | None = None,
) -> Listing:
    """Every raw image of the manifest in a stable order, each address once; what lies below `without`, the
    workspace, is no source.

    `spool` is the folder in which a long listing lies while it is used, and a source that can be read only
    once keeps what it has read; `notes` takes sentences about what was left out. MillError where a source
    can't be listed, or there is no image in any.
    """
    context = ListingContext(without, spool, [] if notes is None else notes)
    listed = Listing(spool)
    for source in sources:
        try:
            _list_into(listed, source, image, context)
        except MillError as error:
            raise MillError(f"{source.at('path').where}{error}") from error
    listed.finish()
    if not len(listed):
        places = ", ".join(str(getattr(source, "path", source.kind)) for source in sources)
        left_out = "".join(f" {note}." for note in context.notes)
        raise MillError(
            f"{sources[0].at().where}No images found in {places}: check `source` in the manifest.{left_out}"
        )
    return listed


def _list_into(listed: Listing, source: Any, image: Image, context: ListingContext) -> None:
    inside = None if context.without is None else f"{context.without}{os.sep}"
    rows: Iterator[RawImage | pa.RecordBatch] = (
        _function("blocks", "list_rows")(source)
        if source.kind == "list"
        else _function(*LISTERS[source.kind])(source, image, context)
    )
    for each in rows:
        if isinstance(each, RawImage):
            if inside is None or not each.uri.startswith(inside):
                listed.add(each)
            continue
        if inside is not None:
            each = each.filter(pc.invert(pc.starts_with(each.column("uri"), inside)))
        listed.add_batch(each)


def lack(source: Any, image: Image) -> str | None:
    """One sentence where a source's files or columns are not there; None also where only the network could
    tell.

    A list is read to its end, since columns may be missing in some rows; of the others the first image tells
    enough.
    """
    path = local_path(str(getattr(source, "path", "")))
    if source.kind in ("scenes", "huggingface"):
        return None
    try:
        if reader_of(path) == "object" and source.kind in ("list", "folder"):
            return _function("far.objects", "lack")(scheme_of(path))
        if reader_of(path) == "url" and source.kind == "list":
            return None
        if not scheme_of(path) and not glob.glob(str(Path(path).expanduser())):  # noqa: PTH207 - a pattern may be absolute
            return f"{path} does not exist; put the data there, or set `path`"
        if source.kind == "folder":
            _function("folders", "folder_of")(source)
            return None
        for raw in _function(*LISTERS[source.kind])(source, image, ListingContext()):
            if not raw.problem and source.kind != "list":
                break
    except MillError as error:
        return str(error).removeprefix("source.path: ").rstrip(".")
    except RuntimeError as error:  # ~ of somebody who has no home
        return f"{path!r} is no path: {str(error).rstrip('.')}"
    return None


def read(raw: RawImage) -> bytes:
    """The raw bytes; raises Unreadable when there is nothing to be read."""
    if raw.problem:
        raise Unreadable(raw.problem)
    reader: Callable[[RawImage], bytes] = _function(*READERS[raw.reader])
    return reader(raw)


def read_all(raw_images: Sequence[RawImage]) -> Iterator[Fetched | Exception]:
    """What each address holds, in order, or why there is nothing to be read.

    Those far away are asked for many at a time, and read ahead while the caller works on earlier ones.
    """
    far = {
        reader: _function(module, read_many)([raw for raw in raw_images if raw.reader == reader])
        for reader, (module, read_many, _) in FAR.items()
        if any(raw.reader == reader for raw in raw_images)
    }
    try:
        for raw in raw_images:
            yield next(far[raw.reader]) if raw.reader in far else _read_or_reason(raw)
    finally:
        for answers in far.values():
            answers.close()


def _read_or_reason(raw: RawImage) -> Fetched | Exception:
    try:
        return Fetched(read(raw), raw.stamp)
    except Exception as error:
        return error


def look(raw_images: Sequence[RawImage], known: Mapping[str, str]) -> dict[str, str | Gone | None]:
    """The stamp that each address far away has now, by uri: "" where there is nothing to compare, None where
    it can't be asked now. `known` are the stamps of before, by uri.
    """
    stamps: dict[str, str | Gone | None] = {}
    for reader, (module, _, look_at) in FAR.items():
        members = [raw for raw in raw_images if raw.reader == reader and not raw.problem]
        if members:
            stamps |= _function(module, look_at)(members, known)
    return stamps


def read_captions(raw: RawImage) -> ReadCaptions:
    """The captions: those of the listing, else those that lie beside the image."""
    if raw.caption is not None:
        texts = (raw.caption, *raw.more_captions)
        return ReadCaptions(tuple(text for text in texts if text))
    reader: Callable[[RawImage], ReadCaptions] = _function(*CAPTION_READERS[raw.reader])
    return reader(raw)


def mirrored_caption(uri: str, caption: str) -> str | None:
    """The caption of the mirrored image; None where it names a side and nobody knows what of.

    A scene's words are known.
    """
    if uri.startswith("scene://"):
        from pipeline.scenes.description import mirrored

        return mirrored(caption)
    return caption if may_flip(caption) else None


def _function(module: str, name: str) -> Any:
    """Loaded when used: a folder of files does not need datasets."""
    return getattr(import_module(f"pipeline.sources.{module}"), name)


__all__ = [
    "LISTERS",
    "READERS",
    "Fetched",
    "Gone",
    "Listing",
    "RawImage",
    "ReadCaptions",
    "Unreadable",
    "clean",
    "image_id",
    "lack",
    "listing",
    "look",
    "mirrored_caption",
    "read",
    "read_all",
    "read_captions",
]
