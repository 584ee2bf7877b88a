"""Parquet shards: written once, checked when read, each naming in its footer what it holds and from what it
was made.
"""

import bisect
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import MillError
from pipeline.storage import copies, stores
from pipeline.storage.stores import StoreError, shown
from pipeline.storage.workspace import fingerprint, set_aside, stopping, write_whole

FOOTER = b"controlmill"
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)  # what reading a damaged file raises
REMEDY = (
    "`controlmill verify WORKSPACE --repair` takes it out of the catalog, and the next run makes it again."
)
# at most, of a row group: what is read for one row; training reads them in no order
GROUP_ROWS, GROUP_BYTES = 32, 2**20

IMAGES = pa.schema([
    ("image_id", pa.string()), ("status", pa.string()), ("reason", pa.string()),
    ("uri", pa.string()), ("caption", pa.string()), ("fields", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()), ("raw_width", pa.int32()), ("raw_height", pa.int32()),
    ("raw_format", pa.string()), ("raw_bytes", pa.int64()), ("group_id", pa.string()), ("split", pa.string()),
    ("sharpness", pa.float64()), ("contrast", pa.float64()), ("colour", pa.float64()), ("grey", pa.bool_()),
    ("phash", pa.uint64()), ("thumbnail", pa.binary()),
    ("frames", pa.int32()), ("colour_space", pa.string()), ("damage", pa.string()),
    ("orientation", pa.int8()), ("upright_width", pa.int32()), ("upright_height", pa.int32()),
    ("crop_left", pa.int32()), ("crop_top", pa.int32()),
    ("crop_width", pa.int32()), ("crop_height", pa.int32()),
    ("captions", pa.list_(pa.string())), ("caption_problem", pa.string()), ("http_status", pa.int32()),
    ("stamp", pa.string()), ("caption_stamp", pa.string()),
    ("transient", pa.bool_()),  # of what failed: whether it is tried again
    ("image", pa.binary()),
])  # fmt: skip
# what a run noticed at addresses that it knew; of a map also of which condition, and what it is now
CHANGES = pa.schema([
    ("change", pa.string()), ("uri", pa.string()), ("image_id", pa.string()), ("reason", pa.string()),
    ("stamp", pa.string()), ("caption_stamp", pa.string()), ("captions", pa.list_(pa.string())),
    ("caption_problem", pa.string()), ("fields", pa.string()),
    ("condition", pa.string()), ("source_hash", pa.string()),
])  # fmt: skip
CAPTIONS = pa.schema(
    [("image_id", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("caption", pa.string())]
)
MAPS = pa.schema([
    ("image_id", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("seconds", pa.float32()),
    ("measures", pa.map_(pa.string(), pa.float64())), ("meta", pa.string()), ("draws", pa.string()),
    ("source_stamp", pa.string()), ("source_hash", pa.string()),  # of the file that a provided map came from
    ("map", pa.binary()),
])  # fmt: skip
# each distinct text once, by its sha256, with its embedding
TEXTS = pa.schema([
    ("text_id", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("caption", pa.string()),
    ("may_flip", pa.bool_()),  # whether it names no side, so that it stays true of a mirrored image
    ("turned", pa.string()),  # id of the text with left and right exchanged, which a scene's mirror image has
    ("text", pa.binary()),
])  # fmt: skip
# caption and text: of shards of earlier versions, which had the text of each image beside its moments
LATENTS = pa.schema([
    ("image_id", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("caption", pa.string()),
    ("mean", pa.binary()), ("std", pa.binary()), ("text", pa.binary()),
])  # fmt: skip
# of earlier shards: text only where it differs; all null where the caption forbade mirroring
MIRRORED = ("mean_mirrored", "std_mirrored", "text_mirrored")
FLIPPED_LATENTS = pa.schema([*LATENTS, *((name, pa.binary()) for name in MIRRORED)])
SAMPLES = pa.schema([
    ("image_id", pa.string()), ("hint_image_id", pa.string()), ("status", pa.string()),
    ("reason", pa.string()),
    ("seed", pa.int64()), ("seconds", pa.float32()), ("image", pa.binary()),
])  # fmt: skip
SCORES = pa.schema([
    ("image_id", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("seed", pa.int64()),
    ("values", pa.map_(pa.string(), pa.float64())), ("meta", pa.string()), ("map", pa.binary()),
    ("counts", pa.binary()), ("features", pa.map_(pa.string(), pa.binary())),
])  # fmt: skip
# in the order in which they are made
SCHEMAS = {
    "images": IMAGES,
    "changes": CHANGES,
    "captions": CAPTIONS,
    "maps": MAPS,
    "texts": TEXTS,
    "latents": LATENTS,
    "samples": SAMPLES,
    "scores": SCORES,
}
# the heavy columns, which the catalog never reads
PAYLOADS = {"image", "map", "counts", "features", "mean", "std", "text", *MIRRORED}


Row = dict[str, Any]  # of a shard: value by column of its schema


@dataclass(frozen=True)
class Shard:
    """A complete, verified file. `metadata` is its footer: kind, key, part, what it was made from.

    `light` has its rows without the pictures, each with its number: who wrote or verified the file has read
    them, so that the driver need not.
    """

    path: Path
    rows: int
    bytes: int
    sha256: str
    metadata: dict[str, Any]
    light: pa.Table


def write(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    schema: pa.Schema,
    metadata: Mapping[str, object],
    *,
    replace: bool = False,
) -> Shard:
    """Writes rows as one shard unless a shard of that name is there already (its name is its identity).

    Returns what is there then, read back in full. MillError where another process was here first and made it
    from other inputs.
    """
    table = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(
        {FOOTER: json.dumps(metadata, sort_keys=True).encode()}
    )
    light = [field.name for field in schema if field.name not in PAYLOADS]
    written: list[Shard] = []

    def save(temporary: Path) -> None:
        pq.write_table(
            table,
            temporary,
            row_group_size=max(1, min(GROUP_ROWS, GROUP_BYTES * table.num_rows // max(1, table.nbytes))),
            compression={field.name: "zstd" if field.name in light else "none" for field in schema},
            use_dictionary=[
                name for name in ("status", "reason", "split", "raw_format") if name in schema.names
            ],
            write_page_checksum=True,
        )
        written.append(_verified(path, temporary))

    if write_whole(path, save, replace=replace):
        return written[0]
    return verify(path, str(metadata["made_from"]))


def metadata(path: Path) -> dict[str, Any]:
    """The footer alone; raises one of BROKEN on a file that is not a whole shard: ArrowInvalid where the
    footer is not ControlMill's, or is one that this version does not know.
    """
    return _footer_of(path, _content(path))


def _footer_of(path: Path, content: Path | pa.Buffer) -> dict[str, Any]:
    stored = pq.read_metadata(_opened(content)).metadata or {}
    if FOOTER not in stored:
        raise pa.ArrowInvalid(f"{path.name} is a Parquet file without ControlMill's footer")
    footer = json.loads(stored[FOOTER])
    if (
        footer["kind"] not in SCHEMAS
        or not isinstance(footer["part"], int)
        or not isinstance(footer["key"], str)
    ):
        raise pa.ArrowInvalid(f"{path.name} has a footer that this version does not know")
    return footer


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    with _must_be_whole(path):
        return _read(_content(path), columns)


def _light(table: pa.Table, kind: str) -> pa.Table:
    """Every column but the pictures, in the order of today's schema, with the row's number in front; what a
    shard of an earlier version does not tell is null.
    """
    fields = [field for field in SCHEMAS[kind] if field.name not in PAYLOADS]
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in fields
    ]
    row = pa.array(np.arange(table.num_rows, dtype=np.int32))
    return pa.Table.from_arrays([row, *columns], names=["row", *(field.name for field in fields)])


def read_row(path: Path, row: int, columns: list[str]) -> Row:
    """One row, from the one row group that holds it. MillError where the shard is missing or broken,
    IndexError where it has no such row.
    """
    return read_rows(path, [row], columns)[row]


def read_rows(path: Path, rows: Iterable[int], columns: list[str]) -> dict[int, Row]:  # by number
    """Some rows of one shard, each row group that holds any of them read once; errors as of `read_row`."""
    wanted = sorted(set(rows))
    with _must_be_whole(path):
        try:
            return _read_rows(path, wanted, columns)
        except BROKEN:
            if not stores.address_of(path):
                raise
            copies.forget(path)  # the object may be whole where its copy here is damaged
            return _read_rows(path, wanted, columns)


def _read_rows(path: Path, rows: Sequence[int], columns: list[str]) -> dict[int, Row]:
    file = _parquet_file(path)
    found: dict[int, Row] = {}
    for group, start, here in _groups_of(file.metadata, rows):
        table = file.read_row_group(group, columns=columns, use_threads=False)
        found |= {row: {name: table[name][row - start].as_py() for name in columns} for row in here}
    if len(found) < len(rows):
        raise IndexError(f"{path.name} has no row {rows[len(found)]}")
    return found


def _groups_of(
    footer: pq.FileMetaData, rows: Sequence[int]
) -> Iterator[tuple[int, int, Sequence[int]]]:  # group, its first row, those of `rows` in it
    start = taken = 0
    for group in range(footer.num_row_groups):
        if taken == len(rows):
            return
        end = start + footer.row_group(group).num_rows
        upto = bisect.bisect_left(rows, end, lo=taken)
        if upto > taken:
            yield group, start, rows[taken:upto]
        start, taken = end, upto


def ahead(path: Path, rows: Iterable[int], columns: Sequence[str]) -> None:
    """What `read_rows` will ask for is on its way when it does: an object is downloaded, and of a file the
    system is told what to read. An error is left to `read_rows`.
    """
    with suppress(MillError, *BROKEN):
        file = copies.copy_of(path)
        state = file.stat()
        footer = _footer(file, state.st_ino, state.st_mtime_ns)
        names = [footer.row_group(0).column(number).path_in_schema for number in range(footer.num_columns)]
        wanted = [number for number, name in enumerate(names) if name.partition(".")[0] in columns]
        descriptor = os.open(file, os.O_RDONLY)
        try:
            for group, _, _ in _groups_of(footer, sorted(set(rows))):
                for number in wanted:
                    chunk = footer.row_group(group).column(number)
                    start = min(
                        offset
                        for offset in (chunk.dictionary_page_offset, chunk.data_page_offset)
                        if offset is not None
                    )
                    os.posix_fadvise(descriptor, start, chunk.total_compressed_size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def verify(path: Path, made_from: str | None = None) -> Shard:
    """Reads the whole file, every page against its checksum; raises one of BROKEN where it is not whole, and
    StoreError where a store does not say.

    With `made_from`, the file must come from those inputs, else MillError: a worker that outlived its driver
    may have been here first.
    """
    shard = _verified(path, _content(path))
    if made_from is not None and shard.metadata["made_from"] != made_from:
        raise MillError(
            f"{shown(path)} was written by another process from other inputs: run the same command again."
        )
    return shard


def size(path: Path) -> int | None:
    """In bytes; None where there is no such shard."""
    if stores.address_of(path):
        facts = stores.head(path)
        return facts.bytes if facts else None
    return path.stat().st_size if path.is_file() else None


def adopt(path: Path, made_from: str) -> Shard | None:
    """A complete shard that a killed driver never committed, if it was made from the same inputs; else the
    file is removed.
    """
    if size(path) is None:
        return None
    try:
        return verify(path, made_from)
    except StoreError:  # nothing is known of the file
        raise
    except (*BROKEN, MillError):
        set_aside(path)
        return None


def _verified(path: Path, content: Path | pa.Buffer) -> Shard:
    """The shard `path` whose bytes are these."""
    table, footer = _read(content), _footer_of(path, content)
    if isinstance(content, Path):
        with content.open("rb") as file:
            length, digest = content.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    else:
        length, digest = content.size, hashlib.sha256(content).hexdigest()
    return Shard(path, table.num_rows, length, digest, footer, _light(table, footer["kind"]))


def _content(path: Path) -> Path | pa.Buffer:
    """An object's bytes in memory, by one request; of a plain file its path."""
    return pa.py_buffer(stores.read(path)) if stores.address_of(path) else path


def _opened(content: Path | pa.Buffer) -> Path | pa.BufferReader:
    return content if isinstance(content, Path) else pa.BufferReader(content)


def made_from(*parts: Any) -> str:
    """Identity of a shard's inputs, kept in its footer."""
    return fingerprint(parts)


def _parquet_file(path: Path) -> pq.ParquetFile:
    """Of an object its copy, which another process may delete before it is open here."""
    for last in (False, True):
        copy = copies.copy_of(path)
        try:
            state = copy.stat()
            footer = _footer(copy, state.st_ino, state.st_mtime_ns)
            return pq.ParquetFile(copy, metadata=footer, page_checksum_verification=True)
        except FileNotFoundError:
            if last or not stores.address_of(path):
                raise
    raise AssertionError("unreachable")


@functools.lru_cache(256)
def _footer(path: Path, inode: int, changed: int) -> pq.FileMetaData:
    """For those who read one row after another of the same files."""
    return pq.read_metadata(path)


def _read(content: Path | pa.Buffer, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(_opened(content), columns=columns, page_checksum_verification=True, memory_map=False)


@contextmanager
def _must_be_whole(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MillError(f"The shard {shown(path)} is missing: {REMEDY}") from error
    except BROKEN as error:
        if stopping(error):
            raise
        reason = str(error).splitlines()[0]
        raise MillError(f"The shard {shown(path)} is broken ({reason}): {REMEDY}") from error
