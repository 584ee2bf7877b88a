"""Images in tables: Parquet, and the Arrow files of Hugging Face datasets.

The listing reads light columns, never a picture.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from pipeline import MillError
from pipeline.manifest import Column, HuggingFaceSource, Image, ParquetSource
from pipeline.manifest.download import Download
from pipeline.sources.columns import captions_under, first_line, plain
from pipeline.sources.far.addresses import far, reader_of
from pipeline.sources.far.lists import read_far
from pipeline.sources.files import matching, nowhere, read_file, stamp
from pipeline.sources.raw import (
    MAX_BYTES,
    Columns,
    ListingContext,
    ProvidedJson,
    RawImage,
    TablePlace,
    Unreadable,
)
from pipeline.sources.row_stamps import RowStamps, arrow_paths, parquet_leaves

ENDINGS = (".parquet", ".parq", ".pq")
LIGHT = 1024  # bytes of a cell, on average, up to which a column is kept in the catalog
GROUP_BYTES = 2**31  # of one column in one row group, which a worker reads whole
KEPT_BYTES = 2**30  # of columns of row groups that a worker keeps for the next row

Address = Callable[[Path, int], str]  # file, row in the file -> the row's uri


def list_parquet(source: ParquetSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each row, file by file; a file that can't be read, or lacks a column, is one row with
    the reason.
    """
    files = matching(source.path, *ENDINGS, notes=context.notes)
    if not files:
        raise nowhere(source.path, ".parquet file")
    yield from list_rows(files, TableColumns.of(source))


@dataclass(frozen=True)
class TableColumns:
    """What a manifest takes of a table."""

    image: str
    captions: Column
    provided: dict[str, ProvidedJson] = field(default_factory=dict)
    download: Download = field(default_factory=Download)

    @classmethod
    def of(cls, source: ParquetSource | HuggingFaceSource) -> "TableColumns":
        provided = {name: given.model_dump() for name, given in source.provided.items()}
        return cls(source.image_column, source.captions, provided, source.download)

    @property
    def caption(self) -> str | None:
        """The column of captions; None = there is none."""
        return self.captions.get("column") if isinstance(self.captions, dict) else None

    @property
    def pictures(self) -> list[str]:
        """The columns of the image, of maps and of masks."""
        names = [given.get(at) for given in self.provided.values() for at in ("column", "mask")]
        return list(dict.fromkeys([self.image, *(name for name in names if name)]))

    def lacking(self, names: list[str]) -> str | None:
        """What to set where a table of these columns lacks one that the manifest names; None = it has all."""
        asked = [("image_column", self.image), ("captions", self.caption)]
        asked += [
            (f"provided.{condition}", given.get(at))
            for condition, given in self.provided.items()
            for at in ("column", "mask")
        ]
        for key, name in asked:
            if name and name not in names:
                remedy = ", to {template: …} or to none" if key == "captions" else ""
                return f"there is no column {name!r}: set `source.{key}` to one of {', '.join(names)}{remedy}"
        return None

    def light(self, schema: Any, average: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """The columns that the catalog keeps, and those that are too large for it; bytes, the image and
        provided maps are neither. `average`: bytes of a cell, by column.
        """
        keep: list[str] = []
        left_out: list[str] = []
        for column in schema:
            if column.name == self.caption:
                keep.append(column.name)
            elif column.name not in self.pictures and not _binary(column.type):
                (keep if average[column.name] <= LIGHT else left_out).append(column.name)
        return keep, left_out

    def read(self, table: Any, left_out: list[str]) -> Iterator[tuple[tuple[str, ...], Columns]]:
        """Captions and further columns of each row; a class is given by its name where the file tells it."""
        column = self.caption
        template = self.captions.get("template") if isinstance(self.captions, dict) else None
        classes = _classes(table.schema)
        for cells in table.to_pylist() if table.num_columns else [{} for _ in range(table.num_rows)]:
            fields = plain(cells)
            fields |= {name: _named(names, fields[name]) for name, names in classes.items() if name in fields}
            captions = (template,) if template else () if column is None else captions_under(fields, column)
            if column is not None and not isinstance(fields.get(column), list | dict):
                fields.pop(column, None)
            yield captions, fields | ({"left_out": left_out} if left_out else {})


def list_rows(
    files: Iterable[Path],
    columns: TableColumns,
    *,
    reader: str = "parquet",
    address: Address = lambda path, row: f"{path}::{row}",
    folder: Path | None = None,
    keep: Callable[[Columns], bool] | None = None,
) -> Iterator[RawImage]:
    """The rows of Parquet files; `folder`: where relative paths in cells start (None: beside the file);
    `keep` looks at the row's fields.

    A file that can't be read whole gives one row with a `problem`; MillError where that is true of all of
    them.
    """
    import pyarrow as pa

    bad: list[RawImage] = []
    any_read = False
    for path in files:
        try:
            for raw in _list_file(path, columns, reader, address, folder or path.parent):
                if raw.problem:
                    bad.append(raw)
                elif keep is None or keep(raw.fields):
                    yield raw
            any_read = True
        except (pa.ArrowException, OSError, ValueError) as error:
            bad.append(RawImage(str(path), "", problem=first_line(error)))
    if bad and not any_read:
        raise MillError(f"{bad[0].uri}: {bad[0].problem}.")
    yield from bad


def _list_file(
    path: Path, columns: TableColumns, reader: str, address: Address, folder: Path
) -> Iterator[RawImage]:
    """The rows of one file; a row group that is too large to be read is one row with the reason."""
    import pyarrow.parquet as pq

    version = stamp(str(path))
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        lacking = columns.lacking(file.schema_arrow.names)
        if lacking:
            raise ValueError(lacking)
        sizes = _sizes(file.metadata)
        average = {name: sum(each) / max(file.metadata.num_rows, 1) for name, each in sizes.items()}
        names, left_out = columns.light(file.schema_arrow, average)
        start = 0
        for group in range(file.num_row_groups):
            size = sizes[columns.image][group]
            if size > GROUP_BYTES:
                reason = (
                    f"row group {group} is too large to be read whole ({size} bytes): write it with"
                    " row_group_size=100"
                )
                yield RawImage(f"{path}::group {group}", "", problem=reason)
                start += file.metadata.row_group(group).num_rows
                continue
            table = file.read_row_group(group, columns=names)
            leaves = parquet_leaves(file, group, columns.pictures)
            named = file.read_row_group(group, columns=leaves)
            stamps = RowStamps(version, folder, arrow_paths(named, named.column_names), start)
            for row, (captions, fields) in enumerate(columns.read(table, left_out)):
                place: TablePlace = {
                    "file": str(path),
                    "column": columns.image,
                    "folder": str(folder),
                    "group": group,
                    "row": row,
                }
                raw = RawImage(
                    address(path, start + row),
                    next(iter(captions), ""),
                    fields,
                    reader=reader,
                    place=place,
                    provided=dict(columns.provided),
                    stamp=stamps.of(columns.image, row),
                    more_captions=captions[1:],
                    map_stamps=stamps.of_maps(columns.provided, row),
                )
                yield far(raw, stamps.path(columns.image, row), columns.download)
            start += table.num_rows


def _sizes(metadata: Any) -> dict[str, list[int]]:
    """Top-level column -> uncompressed bytes in each row group, from the footer."""
    sizes: dict[str, list[int]] = {
        name: [0] * metadata.num_row_groups for name in metadata.schema.to_arrow_schema().names
    }
    leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    tops = [path if path in sizes else path.split(".")[0] for path in leaves]
    for group in range(metadata.num_row_groups):
        for number, top in enumerate(tops):
            if top in sizes:
                sizes[top][group] += metadata.row_group(group).column(number).total_uncompressed_size
    return sizes


def _binary(kind: Any) -> bool:
    import pyarrow as pa

    inner = [kind.field(number).type for number in range(kind.num_fields)] if pa.types.is_nested(kind) else []
    flat = (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
    return flat or isinstance(kind, pa.BaseExtensionType) or any(map(_binary, inner))


def _classes(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its numbers, from what `datasets` writes into a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named(names: list[str], value: Any) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def read_row(raw: RawImage) -> bytes:
    """The raw bytes of a row's image; raises Unreadable."""
    column = cast(TablePlace, raw.place)["column"]
    data = read_cell(raw, column)
    if not isinstance(data, bytes):
        raise Unreadable(f"the cell of {column!r} holds {type(data).__name__}, no picture")
    if not data:
        raise Unreadable("empty file")
    return data


def read_cell(raw: RawImage, column: str) -> Any:
    """The bytes that a cell holds or names, as {bytes, path} or as a path; numbers, lists and JSON text as
    they are. Raises Unreadable.
    """
    place = cast(TablePlace, raw.place)
    cell = _cell(place, column)
    if isinstance(cell, dict) and cell and cell.keys() <= {"bytes", "path"}:
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if cell is None:
        raise Unreadable(f"the cell of {column!r} is empty")
    if isinstance(cell, bytes) and len(cell) > MAX_BYTES:
        raise Unreadable(f"too large: {len(cell)} bytes")
    if not isinstance(cell, str) or cell.lstrip()[:1] in ("[", "{"):
        return cell
    if reader_of(cell.strip()):
        return read_far(cell, place)
    if "://" in cell or "::" in cell or "\0" in cell:
        raise Unreadable(
            f"the cell of {column!r} holds no picture, only the address {cell[:100]!r}: download it first"
        )
    return read_file(RawImage(str(Path(place["folder"], cell)), ""))


def _cell(place: TablePlace, column: str) -> Any:
    import pyarrow as pa

    try:
        version = stamp(place["file"])
        if "group" in place:
            return _column(place["file"], version, place["group"], column)[place["row"]].as_py()
        return arrow(place["file"], version).column(column)[place["row"]].as_py()
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror or first_line(error)}") from error
    except (pa.ArrowException, ValueError, KeyError, IndexError) as error:
        raise Unreadable(f"broken table: {first_line(error)}") from error


_columns: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # what this process read last, up to KEPT_BYTES


def _column(path: str, version: str, group: int, name: str) -> Any:
    """One column of one row group, read once for all its rows."""
    import pyarrow.parquet as pq

    key = (path, version, group, name)
    if key not in _columns:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _columns[key] = file.read_row_group(group, columns=[name]).column(name)
    _columns.move_to_end(key)
    while len(_columns) > 1 and sum(column.nbytes for column in _columns.values()) > KEPT_BYTES:
        _columns.popitem(last=False)
    return _columns[key]


@lru_cache(maxsize=8)
def arrow(path: str, version: str) -> Any:
    """The table of one of the Arrow files of `datasets`, mapped into memory: nothing is read
    until a cell is.
    """
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(path)).read_all()
