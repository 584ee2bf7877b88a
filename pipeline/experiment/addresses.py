"""Where the pieces of a run's pairs lie: millions of them, held as columns."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import copies
from pipeline.storage.workspace import canonical_json, write_whole

MAP = "map of "  # before a condition: the column of its shards
CHUNK = 2**16  # ids that are Python texts at a time
ENCODER = b"encoder"  # in the metadata of a file: the key of the shards of texts


@dataclass(frozen=True, slots=True)
class PairAddress:
    """Where one pair's pieces lie: shards relative to the workspace; images, maps and latents
    share the row.
    """

    image_id: str
    row: int
    latents: str
    maps: dict[str, str]  # by condition
    size: tuple[int, int]  # (h, w) of the latents
    # where its texts lie (`TextPlaces`); none = its text is beside the latents, as in earlier shards
    texts: tuple[int, ...] = ()
    # of each text that of the mirrored image, None where it would be wrong of that
    mirrored_texts: tuple[int | None, ...] = ()


class Texts(Sequence[str]):
    """A column of texts, made one by one."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            texts: list[str] = self.column.take(
                pa.array(range(*index.indices(len(self))), pa.int64())
            ).to_pylist()
            return texts
        return str(self.column[index].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            yield from self.column.slice(start, CHUNK).to_pylist()


class PairAddresses(Sequence[PairAddress]):
    """Of the pairs of one or more conditions, in the order of their image ids: about 100 bytes a pair."""

    def __init__(self, table: pa.Table, encoder: str = "") -> None:
        # image_id, row, latents, height and width of the latents, texts, and a column of maps for each
        # condition
        self.table = table.unify_dictionaries().combine_chunks()
        self.encoder = encoder  # the key of the shards of texts
        self.path: Path | None = None  # of the file that it was opened from

    @classmethod
    def of(
        cls, addresses: Iterable[PairAddress], conditions: Sequence[str], encoder: str = ""
    ) -> "PairAddresses":
        rows = [
            {
                "image_id": it.image_id,
                "row": it.row,
                "latents": it.latents,
                "height": it.size[0],
                "width": it.size[1],
                "texts": list(it.texts) or None,
                "mirrored_texts": list(it.mirrored_texts) or None,
            }
            | {MAP + name: it.maps[name] for name in conditions}
            for it in addresses
        ]
        return cls(pa.Table.from_pylist(rows, schema_of(conditions)), encoder)

    def save(self, path: Path) -> None:
        """Writes them as an Arrow file, which many processes then map into their memory at once."""
        table = self.table.replace_schema_metadata({ENCODER: self.encoder.encode()})

        def write(temporary: Path) -> None:
            with pa.ipc.new_file(temporary, table.schema) as file:
                file.write_table(table)

        write_whole(path, write)

    @classmethod
    def open(cls, path: Path) -> "PairAddresses":
        """What `save` wrote, read where it is asked for."""
        table = pa.ipc.open_file(pa.memory_map(str(copies.copy_of(path)))).read_all()
        opened = cls(table, table.schema.metadata[ENCODER].decode())
        opened.path = path
        return opened

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same file."""
        if self.path is not None:
            return PairAddresses.open, (self.path,)
        return PairAddresses, (self.table, self.encoder)

    @property
    def conditions(self) -> list[str]:
        return [name.removeprefix(MAP) for name in self.table.column_names if name.startswith(MAP)]

    @property
    def ids(self) -> Texts:
        return Texts(self.table["image_id"])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(h, w) of the latents; pairs of one size share theirs."""
        heights, widths = (pc.min_max(self.table[side]).as_py() for side in ("height", "width"))
        if len(self) and heights["min"] == heights["max"] and widths["min"] == widths["max"]:
            return [(heights["min"], widths["min"])] * len(self)
        codes = self.table["height"].to_numpy().astype(np.int64) << 32 | self.table["width"].to_numpy()
        kinds, kind_of = np.unique(codes, return_inverse=True)
        sizes = [(int(code) >> 32, int(code) & 0xFFFFFFFF) for code in kinds]
        return [sizes[kind] for kind in kind_of.tolist()]

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> PairAddress: ...
    @overload
    def __getitem__(self, index: slice) -> "PairAddresses": ...
    def __getitem__(self, index: int | slice) -> "PairAddress | PairAddresses":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "pairs are taken in their order"
            return PairAddresses(self.table.slice(start, max(0, stop - start)), self.encoder)
        return self.take([range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[PairAddress]:
        for start in range(0, len(self), CHUNK):
            yield from self.take(range(start, min(start + CHUNK, len(self))))

    def take(self, indices: Sequence[int]) -> list[PairAddress]:
        """Some of them; IndexError where there are fewer."""
        rows = self.table.take(pa.array(indices, pa.int64())).to_pylist()
        return [
            PairAddress(
                row["image_id"],
                row["row"],
                row["latents"],
                {name: row[MAP + name] for name in self.conditions},
                (row["height"], row["width"]),
                tuple(row["texts"] or ()),
                tuple(row["mirrored_texts"] or ()),
            )
            for row in rows
        ]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PairAddresses)
            and self.encoder == other.encoder
            and bool(self.table.equals(other.table))
        )

    __hash__ = None  # type: ignore[assignment]

    def joined(self, others: Sequence["PairAddresses"]) -> "PairAddresses":
        """The pairs that the others have too, with the maps of all."""
        table = self.table
        for other in others:
            table = table.filter(pc.is_in(table["image_id"], other.table["image_id"]))
        for other in others:
            shared = other.table.filter(pc.is_in(other.table["image_id"], table["image_id"]))
            for name in other.conditions:
                table = table.append_column(MAP + name, shared[MAP + name])
        return PairAddresses(table, self.encoder)


def schema_of(conditions: Sequence[str]) -> pa.Schema:
    shard = pa.dictionary(pa.int32(), pa.string())  # many pairs share a shard
    return pa.schema([
        ("image_id", pa.string()), ("row", pa.int32()), ("latents", shard),
        ("height", pa.int32()), ("width", pa.int32()),
        ("texts", pa.list_(pa.int64())), ("mirrored_texts", pa.list_(pa.int64())),
        *((MAP + name, shard) for name in conditions),
    ])  # fmt: skip


def fingerprint_with(identity: Mapping[str, Any], name: str, texts: Iterable[str]) -> str:
    """`fingerprint(identity | {name: [*texts]})`, without ever holding all texts at once."""
    digest = hashlib.sha256()
    for number, key in enumerate(sorted([*identity, name])):
        digest.update(f"{',' if number else '{'}{canonical_json(key)}:".encode())
        if key != name:
            digest.update(canonical_json(identity[key]).encode())
            continue
        rest, before = iter(texts), b"["
        while chunk := list(islice(rest, CHUNK)):
            digest.update(before + _spelled(chunk).encode())
            before = b","
        digest.update(b"]" if before == b"," else b"[]")
    digest.update(b"}")
    return digest.hexdigest()[:16]


def _spelled(texts: list[str]) -> str:
    """Canonical JSON of texts, with commas between: of plain ones, as image ids are, all at once."""
    joined = '","'.join(texts)
    plain = joined.isascii() and joined.isprintable() and "\\" not in joined
    if plain and joined.count('"') == 2 * (len(texts) - 1):
        return f'"{joined}"'
    return ",".join(map(canonical_json, texts))
