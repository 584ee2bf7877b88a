"""Where the pieces of a run's pairs lie: millions of them, held as columns."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.workspace import canonical_json

MAP = "map of "  # before a condition: the column of its shards
CHUNK = 2**16  # ids that are Python texts at a time


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

    def __init__(self, table: pa.Table) -> None:
        # image_id, row, latents, height and width of the latents, and a column of maps for each condition
        self.table = table.unify_dictionaries().combine_chunks()

    @classmethod
    def of(cls, addresses: Iterable[PairAddress], conditions: Sequence[str]) -> "PairAddresses":
        rows = [
            {
                "image_id": it.image_id,
                "row": it.row,
                "latents": it.latents,
                "height": it.size[0],
                "width": it.size[1],
            }
            | {MAP + name: it.maps[name] for name in conditions}
            for it in addresses
        ]
        return cls(pa.Table.from_pylist(rows, schema_of(conditions)))

    @property
    def conditions(self) -> list[str]:
        return [name.removeprefix(MAP) for name in self.table.column_names if name.startswith(MAP)]

    @property
    def ids(self) -> Texts:
        return Texts(self.table["image_id"])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(h, w) of the latents; pairs of one size share theirs."""
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
            return PairAddresses(self.table.slice(start, max(0, stop - start)))
        cell = lambda name: self.table[name][index].as_py()
        return PairAddress(
            cell("image_id"),
            cell("row"),
            cell("latents"),
            {name: cell(MAP + name) for name in self.conditions},
            (cell("height"), cell("width")),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PairAddresses) and bool(self.table.equals(other.table))

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
        return PairAddresses(table)


def schema_of(conditions: Sequence[str]) -> pa.Schema:
    shard = pa.dictionary(pa.int32(), pa.string())  # many pairs share a shard
    return pa.schema([
        ("image_id", pa.string()), ("row", pa.int32()), ("latents", shard),
        ("height", pa.int32()), ("width", pa.int32()), *((MAP + name, shard) for name in conditions),
    ])  # fmt: skip


def fingerprint_with(identity: Mapping[str, Any], name: str, texts: Iterable[str]) -> str:
    """`fingerprint(identity | {name: [*texts]})`, without ever holding all texts at once."""
    digest = hashlib.sha256()
    for number, key in enumerate(sorted([*identity, name])):
        digest.update(f"{',' if number else '{'}{canonical_json(key)}:".encode())
        if key != name:
            digest.update(canonical_json(identity[key]).encode())
            continue
        digest.update(b"[")
        for place, text in enumerate(texts):
            digest.update(f"{',' if place else ''}{canonical_json(text)}".encode())
        digest.update(b"]")
    digest.update(b"}")
    return digest.hexdigest()[:16]
