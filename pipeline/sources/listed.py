"""What the sources of one run list: each address once, in memory while it is little, else in a file."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sources.batches import SCHEMA, Rows, batch_of, merged, raw_images_of
from pipeline.sources.raw import RawImage
from pipeline.storage.workspace import TEMPORARY, stopping

IN_MEMORY = 50_000  # addresses; those of a longer listing lie in a file
BATCH = 2**13  # rows of one batch in the file
HASHED = 2**17  # rows that are hashed at a time
Positions = NDArray[np.int64]


class Listing(Sequence[RawImage]):
    """Every raw image that was listed, in a stable order; as a file it has no name and ends with the run,
    however that ends.
    """

    def __init__(self, spool: Path | None = None) -> None:
        self._folder = spool
        self._small: list[RawImage] | None = []  # None: they are in the file
        self._places: dict[str, int] = {}  # of the small ones, by address
        self._rows = Rows()
        self._file: _BatchFile | None = None
        self._hashes: _HashFile | None = None

    # -- filling -----------------------------------------------------------------------------------------

    def add(self, raw: RawImage) -> None:
        """MillError where the disk is full."""
        if self._small is None:
            self._rows.add(raw)
            if len(self._rows) >= BATCH:
                self._write(self._rows.take())
            return
        place = self._places.setdefault(raw.uri, len(self._small))
        if place < len(self._small):
            self._small[place] = with_captions_of(self._small[place], raw)
        else:
            self._small.append(raw)
            if len(self._small) > IN_MEMORY:
                self._spill()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Rows of `pipeline.sources.batches.SCHEMA`."""
        self._spill()
        if len(self._rows):
            self._write(self._rows.take())
        self._write(batch)

    def finish(self) -> None:
        """After the last one: an address that stands there twice becomes one, in its first place."""
        self._places = {}
        if self._small is not None:
            return
        if len(self._rows):
            self._write(self._rows.take())
        assert self._file and self._hashes
        self._file.close_writing()
        self._hashes.flush()
        suspected = _repeated(self._hashes.column("address"))
        if len(suspected):
            self._merge(suspected)

    def _spill(self) -> None:
        if self._small is None:
            return
        self._file, self._hashes = _BatchFile(self._folder), _HashFile(self._folder)
        small, self._small, self._places = self._small, None, {}
        for raw in small:
            self.add(raw)

    def _write(self, batch: pa.RecordBatch) -> None:
        assert self._file and self._hashes
        for start in range(0, batch.num_rows, BATCH):
            piece = batch.slice(start, BATCH)
            self._file.write(piece)
            self._hashes.add(piece)

    def _merge(self, suspected: NDArray[np.uint64]) -> None:
        """Writes the file again without the addresses that stand there twice."""
        assert self._file and self._hashes
        positions = np.flatnonzero(np.isin(self._hashes.column("address"), suspected))
        first: dict[str, int] = {}
        changed: dict[int, RawImage | None] = {}  # None: it is left out
        firsts: dict[int, RawImage] = {}
        for position, raw in zip(positions.tolist(), self.take(positions), strict=True):
            place = first.setdefault(raw.uri, position)
            if place == position:
                firsts[place] = raw
            else:
                changed[position] = None
                changed[place] = firsts[place] = with_captions_of(firsts[place], raw)
        if not changed:
            return
        before, number = self._file, 0
        self._hashes.close()
        self._file, self._hashes = _BatchFile(self._folder), _HashFile(self._folder)
        for batch in before.batches():
            if any(place in changed for place in range(number, number + batch.num_rows)):
                kept = [changed.get(place, raw) for place, raw in enumerate(raw_images_of(batch), number)]
                batch_rows = batch_of([raw for raw in kept if raw])
            else:
                batch_rows = batch
            number += batch.num_rows
            if batch_rows.num_rows:
                self._write(batch_rows)
        before.close()
        self._file.close_writing()
        self._hashes.flush()

    # -- reading -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        if self._small is not None:
            return len(self._small)
        assert self._file
        return self._file.rows + len(self._rows)

    def __iter__(self) -> Iterator[RawImage]:
        if self._small is not None:
            yield from self._small
            return
        assert self._file
        for batch in self._file.batches():
            yield from raw_images_of(batch)

    @overload
    def __getitem__(self, index: int) -> RawImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[RawImage]: ...
    def __getitem__(self, index: int | slice) -> RawImage | list[RawImage]:
        places = np.arange(len(self))[index]
        if isinstance(index, slice):
            return list(self.take(places))
        return next(self.take(np.array([places])))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def take(self, positions: Positions) -> Iterator[RawImage]:
        """The images at these positions, in this order; quick where positions rise."""
        if self._small is not None:
            yield from map(self._small.__getitem__, positions.tolist())
            return
        assert self._file
        number, start, batch = -1, 0, pa.RecordBatch.from_pylist([], SCHEMA)
        batch_numbers = self._file.batch_of(positions)
        edges = np.flatnonzero(np.diff(batch_numbers)) + 1
        for group in np.split(np.arange(len(positions)), edges):
            if not len(group):
                continue
            if batch_numbers[group[0]] != number:
                number = int(batch_numbers[group[0]])
                start, batch = self._file.read(number)
            yield from raw_images_of(batch.take(pa.array(positions[group] - start)))

    def hashes(self) -> Iterator[NDArray[np.void]]:
        """`pipeline.catalog.addresses.HASHES` of all rows, in order, many at a time."""
        if self._small is not None:
            from pipeline.catalog.addresses import hashes  # a worker that reads addresses needs no DuckDB

            yield hashes([batch_of(self._small)])
            return
        assert self._hashes
        yield from self._hashes.pieces()

    def close(self) -> None:
        """Gives the file's room back."""
        if self._file and self._hashes:
            self._file.close()
            self._hashes.close()


def with_captions_of(first: RawImage, again: RawImage) -> RawImage:
    """An address that is listed twice keeps the captions of both."""
    if first.caption is None:
        return first
    known = (first.caption, *first.more_captions)
    texts = merged(known, (again.caption, *again.more_captions))
    if texts is known:
        return first
    caption, *more = texts
    return replace(first, caption=caption, more_captions=tuple(more))


def _repeated(addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sorted hashes that are there more than once; sorts what it is given."""
    addresses.sort()
    return np.unique(addresses[1:][addresses[1:] == addresses[:-1]])


def _temporary(folder: Path | None) -> IO[bytes]:
    """A file without a name, in a workspace that is there, else where the system has such files."""
    if folder is not None and folder.parent.is_dir():
        folder.mkdir(exist_ok=True)
        return tempfile.TemporaryFile(dir=folder, prefix=TEMPORARY)
    return tempfile.TemporaryFile(prefix=TEMPORARY)


def _written(write: Callable[[], object], folder: Path | None) -> None:
    try:
        write()
    except OSError as error:
        raise stopping(error, str(folder or tempfile.gettempdir())) or error from error


class _BatchFile:
    """Record batches in an Arrow file, each of which can be read alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._file = folder, _temporary(folder)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), SCHEMA, options=options)
        self._reader: Any = None
        self._starts = [0]

    @property
    def rows(self) -> int:
        return self._starts[-1]

    def write(self, batch: pa.RecordBatch) -> None:
        _written(lambda: self._writer.write_batch(batch), self._folder)
        self._starts.append(self.rows + batch.num_rows)

    def close_writing(self) -> None:
        _written(self._writer.close, self._folder)
        _written(self._file.flush, self._folder)
        self._reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))

    def batch_of(self, positions: Positions) -> Positions:
        """The number of the batch that holds each."""
        return np.searchsorted(self._starts, positions, side="right") - 1

    def read(self, number: int) -> tuple[int, pa.RecordBatch]:
        """The position of its first row, and the batch."""
        return self._starts[number], self._reader.get_batch(number)

    def batches(self) -> Iterator[pa.RecordBatch]:
        for number in range(len(self._starts) - 1):
            yield self._reader.get_batch(number)

    def close(self) -> None:
        self._file.close()


class _HashFile:
    """The hashes of a listing, in the order of its rows."""

    def __init__(self, folder: Path | None) -> None:
        from pipeline.catalog.addresses import HASHES, hashes

        self._folder, self._file, self._type = folder, _temporary(folder), HASHES
        self._hashes = hashes
        self._waiting: list[pa.RecordBatch] = []
        self._count = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._count += batch.num_rows
        if self._count >= HASHED:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            hashed = self._hashes(self._waiting)
            _written(lambda: self._file.write(hashed.tobytes()), self._folder)
            self._waiting, self._count = [], 0
        _written(self._file.flush, self._folder)

    def pieces(self) -> Iterator[NDArray[np.void]]:
        self._file.seek(0)
        place = 0
        while data := self._file.read(HASHED * self._type.itemsize):
            place = self._file.tell()
            yield np.frombuffer(data, self._type)
            self._file.seek(place)  # somebody else may have read meanwhile

    def column(self, name: str) -> NDArray[np.uint64]:
        self._file.seek(0, 2)
        column, start = np.empty(self._file.tell() // self._type.itemsize, self._type[name]), 0
        for piece in self.pieces():
            column[start : start + len(piece)] = piece[name]
            start += len(piece)
        return column

    def close(self) -> None:
        self._file.close()
