"""What img2dataset wrote, in any of its formats: tars, folders of files, or Parquet.

What it failed to download is no row of ours.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline import MillError
from pipeline.manifest import Column, Image, Img2DatasetSource, Member
from pipeline.sources.archives import TarMembers, list_samples
from pipeline.sources.columns import MAX_TEXT, captions_under, json_columns
from pipeline.sources.files import matching, stamp_or_absent
from pipeline.sources.raw import Columns, ListingContext, RawImage
from pipeline.sources.sidecars import read_text

# its --encode_format: the file's ending, the tar's member and the Parquet column
ENCODINGS = ("jpg", "png", "webp")


def list_img2dataset(source: Img2DatasetSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each image that was downloaded; its web address and sizes are in `fields`. MillError
    where the path holds no tar, no numbered folder of images and no Parquet file with images.
    """
    tars, folders = matching(source.path, ".tar", notes=context.notes), _folders(source.path)
    if tars:
        return list_samples(tars, TarMembers(source.captions))
    if folders:
        return _list_folders(folders, source.captions)
    tables = matching(source.path, ".parquet")
    if tables and (column := _image_column(tables)):
        from pipeline.sources.tables import TableColumns, list_rows

        return list_rows(tables, TableColumns(column, _columns(source.captions)), keep=_is_downloaded)
    written = "TFRecord, which can't be read here" if matching(source.path, ".tfrecord") else "none of them"
    raise MillError(
        f"source.path: {source.path} holds {written}: set it to the output folder of img2dataset with"
        " --output_format webdataset, files or parquet."
    )


def _columns(captions: Member) -> Column:
    """The same caption in Parquet, where a member and a key of its JSON are both columns."""
    if not isinstance(captions, dict):
        return captions
    if "template" in captions:
        return {"template": captions["template"]}
    return {"column": captions.get("member") or captions["json"]}


def _is_downloaded(fields: Columns) -> bool:
    return fields.get("status", "success") == "success"


def _folders(path: str) -> list[Path]:
    """The folders 00000, 00001, … that hold images, sorted."""
    folders = [
        Path(folder)
        for folder, _, names in os.walk(Path(path).expanduser())
        if Path(folder).name.isdigit() and any(map(_is_image, names))
    ]
    return sorted(folder.absolute() for folder in folders)


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2] in ENCODINGS


def _list_folders(folders: list[Path], captions: Member) -> Iterator[RawImage]:
    for folder in folders:
        for path in sorted(inner for inner in folder.iterdir() if _is_image(inner.name)):
            fields = json_columns(data) if (data := _beside(path, "json")) is not None else {}
            texts: tuple[str, ...] = ()
            if isinstance(captions, dict):
                texts = captions_under(fields, captions.get("json", ""))
                if "template" in captions:
                    texts = (captions["template"],)
                if "member" in captions:
                    texts = read_text(_beside(path, captions["member"]) or b"", is_json=False).texts
            first, *more = texts or ("",)
            yield RawImage(
                str(path), first, fields, more_captions=tuple(more), stamp=stamp_or_absent(str(path))
            )


def _beside(path: Path, extension: str) -> bytes | None:
    """The bytes of the file that img2dataset wrote beside an image; None where there is none, or it is no
    such file.
    """
    other = path.with_suffix(f".{extension}")
    try:
        return other.read_bytes() if other.is_file() and other.stat().st_size <= MAX_TEXT else None
    except OSError:
        return None


def _image_column(tables: list[Path]) -> str | None:
    """The column with the images; the other formats write Parquet without one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for table in tables:
        try:
            names = set(pq.read_schema(table).names)
        except (pa.ArrowException, OSError):
            continue
        return next((name for name in ENCODINGS if name in names), None)
    return None
