"""Groups of near-duplicates, in memory: whose group the images of a commit join."""

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalog import duplicates
from pipeline.catalog.duplicates import Numbers
from pipeline.catalog.hash_index import Hashes, HashIndex


@dataclass
class Groups:
    """Of the images of one key that could be read, in the order of their commits."""

    images: NDArray[np.int32]  # integer keys, rising
    index: HashIndex

    def join(
        self,
        connection: duckdb.DuckDBPyConnection,
        images: Numbers,  # [m] keys of new images, which are not in the catalog yet
        hashes: Hashes,  # [m]
        thumbnails: pa.Array,  # [m] binary
    ) -> Numbers:  # [m] the image whose group each joins; -1 = none
        known = len(self.images)
        self.images = np.concatenate([self.images, images.astype(np.int32)])

        def fetch(numbers: Numbers) -> tuple[NDArray[np.bool_], duplicates.Thumbnails]:
            of_catalog = numbers[numbers < known]
            found = _stored(connection, self.images[of_catalog])
            fresh = thumbnails.take(pa.array(numbers[numbers >= known] - known)).to_pylist()
            found |= dict(zip(self.images[numbers[numbers >= known]].tolist(), fresh, strict=True))
            each = [found.get(image) for image in self.images[numbers].tolist()]
            there = [one for one in each if one is not None and len(one) == duplicates.BYTES]
            present = np.array([one is not None and len(one) == duplicates.BYTES for one in each], bool)
            return present, np.frombuffer(b"".join(there), np.uint8).reshape(-1, duplicates.BYTES)

        leaders = self.index.add(hashes, fetch)
        return np.where(leaders < 0, -1, self.images[leaders])


def load(connection: duckdb.DuckDBPyConnection, key: str, near: int) -> Groups:
    """Of the images of a key that are in the catalog; `near` in bits of the perceptual hash."""
    rows = connection.execute(
        """
        SELECT image, phash, coalesce(leader, image) AS leader
        FROM image_rows
        WHERE phash IS NOT NULL
          AND shard_number IN (SELECT shard_number FROM shard_rows WHERE kind = 'images' AND key = ?)
        ORDER BY image""",
        [key],
    ).fetchnumpy()
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
    return Groups(images, index)


def _stored(connection: duckdb.DuckDBPyConnection, images: NDArray[np.int32]) -> dict[int, bytes]:
    """Image -> its thumbnail; those of before there were thumbnails have none."""
    if not len(images):
        return {}
    connection.register("asked", pa.table({"image": images}))
    sql = "SELECT image, thumbnail FROM image_rows JOIN asked USING (image) WHERE thumbnail IS NOT NULL"
    rows = connection.execute(sql).fetchall()
    connection.unregister("asked")
    return dict(rows)
