"""Groups of near-duplicates: whose group the images of a commit join, without asking the catalog again."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog import duplicates
from pipeline.catalog.duplicates import Numbers
from pipeline.catalog.hash_index import Hashes, HashIndex

READ = 2**15  # thumbnails that are read from the catalog at a time: 12 MB


class ThumbnailFile:
    """The thumbnails of all images by their number, in a file without a name, which goes with its process:
    few are read at a time, from anywhere, and all are too many for memory.
    """

    RECORD = 1 + duplicates.BYTES  # whether there is a thumbnail, and the thumbnail

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed with the object

    def close(self) -> None:
        self._file.close()

    def write(self, numbers: Numbers, thumbnails: pa.Array) -> None:
        """Of images whose numbers rise; one of another length is none."""
        whole = pc.equal(pc.binary_length(thumbnails), duplicates.BYTES).fill_null(False)
        flat = pc.binary_join(
            pa.ListArray.from_arrays([0, pc.sum(whole).as_py() or 0], thumbnails.filter(whole)), b""
        )
        records = np.zeros((len(numbers), self.RECORD), np.uint8)
        present = whole.to_numpy(zero_copy_only=False)
        records[present, 0] = 1
        records[present, 1:] = np.frombuffer(flat[0].as_py(), np.uint8).reshape(-1, duplicates.BYTES)
        for run in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) != 1) + 1):
            if len(run):
                os.pwrite(self._file.fileno(), records[run].tobytes(), int(numbers[run[0]]) * self.RECORD)

    def read(self, numbers: Numbers) -> tuple[NDArray[np.bool_], duplicates.Thumbnails]:
        """Which of these have a thumbnail [n], and those thumbnails uint8 [m, BYTES]."""
        file = self._file.fileno()
        data = b"".join(os.pread(file, self.RECORD, number * self.RECORD) for number in numbers.tolist())
        records = np.frombuffer(data, np.uint8).reshape(-1, self.RECORD)
        present = records[:, 0] == 1
        return present, records[present, 1:]


@dataclass
class Groups:
    """Of the images of one key that could be read, numbered in the order of their commits."""

    images: NDArray[np.int32]  # integer keys, rising
    index: HashIndex
    thumbnails: ThumbnailFile

    def join(
        self,
        images: Numbers,  # [m] keys of new images, which are not in the catalog yet
        hashes: Hashes,  # [m]
        thumbnails: pa.Array,  # [m] binary
    ) -> Numbers:  # [m] the image whose group each joins; -1 = none
        known = len(self.images)
        self.images = np.concatenate([self.images, images.astype(np.int32)])
        self.thumbnails.write(known + np.arange(len(images)), thumbnails)
        leaders = self.index.add(hashes, self.thumbnails.read)
        return np.where(leaders < 0, -1, self.images[leaders])


def load(connection: duckdb.DuckDBPyConnection, key: str, near: int) -> Groups:
    """Of the images of a key that are in the catalog; `near` in bits of the perceptual hash."""
    sql = f"SELECT image, phash, coalesce(leader, image) AS leader {OF_KEY} ORDER BY image"
    rows = connection.execute(sql, [key]).fetchnumpy()
    images, hashes = np.asarray(rows["image"], np.int32), np.asarray(rows["phash"], np.uint64)
    leaders = np.arange(len(images))
    follows = np.flatnonzero(rows["leader"] != images)
    led, group = np.unique(rows["leader"][follows], return_inverse=True)
    # the earliest of a group leads, also where the image that they joined was taken out or came back later
    first = np.full(len(led), len(images))
    np.minimum.at(first, group, follows)
    place = np.minimum(images.searchsorted(led), len(images) - 1)
    there = images[place] == led
    first[there] = np.minimum(first[there], place[there])
    leaders[follows] = first[group]
    leaders[place[there]] = first[there]
    index = HashIndex(near)
    index.load(hashes, leaders)
    thumbnails = ThumbnailFile(_folder(connection))
    for some, of_some in _stored(connection, key):
        order = np.argsort(some)
        thumbnails.write(images.searchsorted(some[order]), of_some.take(pa.array(order)))
    return Groups(images, index, thumbnails)


OF_KEY = """
    FROM image_rows
    WHERE phash IS NOT NULL
      AND shard_number IN (SELECT shard_number FROM shard_rows WHERE kind = 'images' AND key = ?)"""


def _stored(connection: duckdb.DuckDBPyConnection, key: str) -> Iterator[tuple[NDArray[np.int32], pa.Array]]:
    """Images with their thumbnails, in the order in which they lie."""
    relation = connection.sql(f"SELECT image, thumbnail {OF_KEY}", params=[key])
    # its name before DuckDB 1.4
    reader = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
    for batch in reader(READ):
        yield batch.column("image").to_numpy(), batch.column("thumbnail")


def _folder(connection: duckdb.DuckDBPyConnection) -> Path | None:
    """Where the catalog lies; None where it is in memory."""
    row = connection.execute("SELECT path FROM duckdb_databases() WHERE database_name = current_database()")
    (path,) = row.fetchall()[0]
    return Path(path).parent if path else None
