"""Raw images in: where they are (`listing`, in the driver) and what they hold (`read`, in a worker)."""

import glob
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from annotate.flips import may_flip
from pipeline import MillError
from pipeline.manifest import Image
from pipeline.sources.raw import RawImage, Unreadable, clean, image_id

# source kind -> module and function that list it: (source, image settings) -> RawImages in a stable order
LISTERS = {
    "folder": ("files", "list_folder"),
    "list": ("files", "list_table"),
    "webdataset": ("archives", "list_tars"),
    "img2dataset": ("img2dataset", "list_img2dataset"),
    "parquet": ("tables", "list_parquet"),
    "huggingface": ("hub", "list_dataset"),
    "scenes": ("rendered", "list_scenes"),
}
# RawImage.reader -> module and the function that reads one: RawImage -> raw bytes and caption; or Unreadable
READERS = {
    "file": ("files", "read_file"),
    "tar": ("archives", "read_tar"),
    "parquet": ("tables", "read_row"),
    "huggingface": ("tables", "read_row"),
    "scene": ("rendered", "read_scene"),
}


def listing(
    sources: Sequence[Any], image: Image, without: Path | None = None, spool: Path | None = None
) -> list[RawImage]:
    """Every raw image of the manifest in a stable order, each address once; what lies below `without`, the
    workspace, is no source.

    `spool` is the folder in which a source that can be read only once keeps what it has read. MillError where
    a source can't be listed, or there is no image in any.
    """
    by_address: dict[str, RawImage] = {}
    for source in sources:
        lister: Callable[..., Iterator[RawImage]] = _function(*LISTERS[source.kind])
        try:
            for raw in (
                lister(source, image, spool=spool)
                if getattr(source, "streaming", False)
                else lister(source, image)
            ):
                if without is None or not Path(raw.uri).is_relative_to(without):
                    by_address.setdefault(raw.uri, raw)
        except MillError as error:
            raise MillError(f"{source.at('path').where}{error}") from error
    if not by_address:
        places = ", ".join(str(getattr(source, "path", source.kind)) for source in sources)
        raise MillError(
            f"{sources[0].at().where}No images found in {places}: check `source` in the manifest."
        )
    return list(by_address.values())


def lack(source: Any, image: Image) -> str | None:
    """One sentence where a source's files or columns are not there; None also where only the network could
    tell.

    A list is read to its end, since columns may be missing in some rows; of the others the first image tells
    enough.
    """
    path = str(getattr(source, "path", ""))
    if source.kind in ("scenes", "huggingface"):
        return None
    try:
        if not glob.glob(str(Path(path).expanduser())):  # noqa: PTH207 - a pattern may be absolute
            return f"{path} does not exist; put the data there, or set `path`"
        if source.kind == "folder":
            _function("files", "folder_of")(source)
            return None
        for raw in _function(*LISTERS[source.kind])(source, image):
            if not raw.problem and source.kind != "list":
                break
    except MillError as error:
        return str(error).removeprefix("source.path: ").rstrip(".")
    except RuntimeError as error:  # ~ of somebody who has no home
        return f"{path!r} is no path: {str(error).rstrip('.')}"
    return None


def read(raw: RawImage) -> tuple[bytes, str]:
    """The raw bytes and the caption; raises Unreadable when there is nothing to be read."""
    if raw.problem:
        raise Unreadable(raw.problem)
    reader: Callable[[RawImage], tuple[bytes, str]] = _function(*READERS[raw.reader])
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
    """Loaded when used: a folder of files needs neither datasets nor pyarrow."""
    return getattr(import_module(f"pipeline.sources.{module}"), name)


__all__ = [
    "LISTERS",
    "READERS",
    "RawImage",
    "Unreadable",
    "clean",
    "image_id",
    "lack",
    "listing",
    "mirrored_caption",
    "read",
]
