"""Images in tables: Parquet, and the Arrow files of Hugging Face datasets.

The listing reads light columns, never a picture.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import MillError
from pipeline.manifest import Image, ParquetSource
from pipeline.sources.facts import caption_of, first_line, matching, nowhere, plain, stamp
from pipeline.sources.files import read_file
from pipeline.sources.raw import MAX_BYTES, RawImage, Unreadable

ENDINGS = (".parquet", ".parq", ".pq")
LIGHT = 1024  # bytes of a cell, on average, up to which a column is kept in the catalog
GROUP_BYTES = 2**31  # of one column in one row group, which a worker reads whole
KEPT_BYTES = 2**30  # of columns of row groups that a worker keeps for the next row

Address = Callable[[Path, int], str]  # file, row in the file -> the row's uri


def list_parquet(source: ParquetSource, image: Image) -> Iterator[RawImage]:
    """One RawImage for each row, file by file; a file that can't be read, or lacks a column, is one row with
    the reason.
    """
    files = matching(source.path, *ENDINGS)
    if not files:
        raise nowhere(source.path, ".parquet file")
    yield from list_rows(
        files,
        source.image_column,
        source.captions,
        {name: it.model_dump() for name, it in source.provided.items()},
    )


def list_rows(
    files: Iterable[Path],
    image_column: str,
    captions: Any,
    provided: Mapping[str, dict[str, Any]],
    *,
    reader: str = "parquet",
    address: Address = lambda path, row: f"{path}::{row}",
    folder: Path | None = None,
    keep: Callable[[dict[str, Any]], bool] | None = None,
) -> Iterator[RawImage]:
    """The rows of Parquet files; `folder`: where relative paths in cells start (None: beside the file);
    `keep` looks at the row's fields.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad: list[RawImage] = []
    good = False
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                lacking = lacks(file.schema_arrow.names, image_column, captions, provided)
                if lacking:
                    raise ValueError(lacking)
                sizes = _sizes(file.metadata)
                average = {name: sum(it) / max(file.metadata.num_rows, 1) for name, it in sizes.items()}
                columns, left_out = light(file.schema_arrow, average, image_column, captions, provided)
                where, start = (
                    {"file": str(path), "column": image_column, "folder": str(folder or path.parent)},
                    0,
                )
                for group in range(file.num_row_groups):
                    size = sizes[image_column][group]
                    if size > GROUP_BYTES:
                        uri = f"{path}::group {group}"
                        reason = (
                            f"row group {group} is too large to be read whole ({size} bytes): write it with"
                            " row_group_size=100"
                        )
                        bad.append(RawImage(uri, "", problem=reason))
                        start += file.metadata.row_group(group).num_rows
                        continue
                    table = file.read_row_group(group, columns=columns)
                    for row, (caption, fields) in enumerate(facts(table, captions, left_out)):
                        if keep is None or keep(fields):
                            place = where | {"group": group, "row": row}
                            yield RawImage(
                                address(path, start + row),
                                caption,
                                fields,
                                reader=reader,
                                place=place,
                                provided=dict(provided),
                            )
                    start += table.num_rows
                good = True
        except (pa.ArrowException, OSError, ValueError) as error:
            bad.append(RawImage(str(path), "", problem=first_line(error)))
    if bad and not good:
        raise MillError(f"{bad[0].uri}: {bad[0].problem}.")
    yield from bad


def lacks(
    names: list[str], image_column: str, captions: Any, provided: Mapping[str, dict[str, Any]]
) -> str | None:
    """What to set where a table has no column of a name that the manifest gives; None where it
    has them all.
    """
    caption = captions.get("column") if isinstance(captions, dict) else None
    asked = [("image_column", image_column), ("captions", caption)]
    asked += [
        (f"provided.{condition}", it.get(at))
        for condition, it in provided.items()
        for at in ("column", "mask")
    ]
    for key, name in asked:
        if name and name not in names:
            remedy = ", to {template: …} or to none" if key == "captions" else ""
            return f"there is no column {name!r}: set `source.{key}` to one of {', '.join(names)}{remedy}"
    return None


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


def light(
    schema: Any,
    average: Mapping[str, float],
    image_column: str,
    captions: Any,
    provided: Mapping[str, dict[str, Any]],
) -> tuple[list[str], list[str]]:
    """The columns that the catalog keeps, and those that are too large for it; bytes, the image and provided
    maps are neither.
    """
    caption = captions.get("column") if isinstance(captions, dict) else None
    taken = {image_column} | {it.get(at) for it in provided.values() for at in ("column", "mask")}
    keep: list[str] = []
    left_out: list[str] = []
    for field in schema:
        if field.name == caption:
            keep.append(field.name)
        elif field.name not in taken and not _binary(field.type):
            (keep if average[field.name] <= LIGHT else left_out).append(field.name)
    return keep, left_out


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


def facts(table: Any, captions: Any, left_out: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Caption and fields of each row; a class is given by its name where the file tells it."""
    column = captions.get("column") if isinstance(captions, dict) else None
    template = captions.get("template", "") if isinstance(captions, dict) else ""
    classes = _classes(table.schema)
    for cells in table.to_pylist() if table.num_columns else [{} for _ in range(table.num_rows)]:
        fields = plain(cells)
        fields |= {name: _named(names, fields[name]) for name, names in classes.items() if name in fields}
        caption = template if column is None else caption_of(fields, column)
        if column is not None and not isinstance(fields.get(column), list):
            fields.pop(column, None)
        yield caption, fields | ({"left_out": left_out} if left_out else {})


def _classes(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its numbers, from what `datasets` writes into a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: it["names"]
            for name, it in features.items()
            if isinstance(it, dict) and it.get("_type") == "ClassLabel" and it.get("names")
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named(names: list[str], value: Any) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def read_row(raw: RawImage) -> tuple[bytes, str]:
    """The raw bytes and the caption of a row; raises Unreadable."""
    data = read_cell(raw, raw.place["column"])
    if not isinstance(data, bytes):
        raise Unreadable(f"the cell of {raw.place['column']!r} holds {type(data).__name__}, no picture")
    if not data:
        raise Unreadable("empty file")
    return data, raw.caption or ""


def read_cell(raw: RawImage, column: str) -> Any:
    """The bytes that a cell holds or names, as {bytes, path} or as a path; numbers, lists and JSON text as
    they are. Raises Unreadable.
    """
    cell = _cell(raw.place, column)
    if isinstance(cell, dict) and cell and cell.keys() <= {"bytes", "path"}:
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if cell is None:
        raise Unreadable(f"the cell of {column!r} is empty")
    if isinstance(cell, bytes) and len(cell) > MAX_BYTES:
        raise Unreadable(f"too large: {len(cell)} bytes")
    if not isinstance(cell, str) or cell.lstrip()[:1] in ("[", "{"):
        return cell
    if "://" in cell or "::" in cell or "\0" in cell:
        raise Unreadable(
            f"the cell of {column!r} holds no picture, only the address {cell[:100]!r}: download it first"
        )
    return read_file(RawImage(str(Path(raw.place["folder"], cell)), ""))[0]


def _cell(place: Mapping[str, Any], column: str) -> Any:
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


def _column(path: str, version: tuple[int, int], group: int, name: str) -> Any:
    """One column of one row group, read once for all its rows."""
    import pyarrow.parquet as pq

    key = (path, version, group, name)
    if key not in _columns:
        with pq.ParquetFile(path) as file:
            _columns[key] = file.read_row_group(group, columns=[name]).column(name)
    _columns.move_to_end(key)
    while len(_columns) > 1 and sum(column.nbytes for column in _columns.values()) > KEPT_BYTES:
        _columns.popitem(last=False)
    return _columns[key]


@lru_cache(maxsize=8)
def arrow(path: str, version: tuple[int, int]) -> Any:
    """The table of one of the Arrow files of `datasets`, mapped into memory: nothing is read
    until a cell is.
    """
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(path)).read_all()
