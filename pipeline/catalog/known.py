"""The images and addresses that are known, in memory: a commit finds the few that it shows again without
reading the others.
"""

from dataclasses import dataclass, field

import duckdb
import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Integers = NDArray[np.integer]
READ = 2**20  # rows that are read of the catalog at a time
LEVEL = 2  # a level is at least so many times as large as the next


@dataclass
class HashedKeys:
    """Integer keys by 64-bit hash, in sorted levels that are merged as they grow: 12 bytes a key."""

    levels: list[tuple[Hashes, NDArray[np.int32]]] = field(default_factory=list)  # the largest first

    def add(self, hashes: Hashes, keys: Integers) -> None:
        if not len(hashes):
            return
        order = np.argsort(hashes)
        self.levels.append((hashes[order], keys.astype(np.int32)[order]))
        while len(self.levels) > 1 and len(self.levels[-2][0]) < LEVEL * len(self.levels[-1][0]):
            (one, some), (other, more) = self.levels[-2:]
            self.levels[-2:] = []
            both = np.concatenate([one, other])
            order = np.argsort(both, kind="stable")  # merges two sorted parts
            self.levels.append((both[order], np.concatenate([some, more])[order]))

    def find(self, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each place in `hashes` [n] with each key of an equal hash, as two arrays: places, keys."""
        order = np.argsort(hashes)
        asked = hashes[order]  # neighbours in memory are asked for one after the other
        places, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for level, of_level in self.levels:
            start = level.searchsorted(asked)
            there = np.flatnonzero(level[np.minimum(start, len(level) - 1)] == asked)
            start = start[there]
            counts = level.searchsorted(asked[there], side="right") - start
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places.append(np.repeat(order[there], counts))
            keys.append(of_level[np.repeat(start, counts) + within].astype(np.int64))
        return np.concatenate(places), np.concatenate(keys)


@dataclass
class KnownImages:
    """Integer keys of the images of one image key, by the hashes of their ids and of their addresses.

    A hash that is found says only where to look: rows may be gone, and other texts may hash alike.
    """

    ids: HashedKeys = field(default_factory=HashedKeys)
    addresses: HashedKeys = field(default_factory=HashedKeys)  # also those that are gone


def load(connection: duckdb.DuckDBPyConnection, key: str) -> KnownImages:
    """Of the images of a key."""
    known = KnownImages()
    of_key = "(SELECT shard_number FROM shard_rows WHERE kind = 'images' AND key = ?)"
    for keys, table, text in ((known.ids, "image_rows", "image_id"), (known.addresses, "source_rows", "uri")):
        sql = f"SELECT hash({text}) AS hash, image FROM {table} WHERE shard_number IN {of_key}"
        relation = connection.sql(sql, params=[key])
        # its name in DuckDB 1
        reader = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
        for batch in reader(READ):
            keys.add(batch.column("hash").to_numpy(), batch.column("image").to_numpy())
    return known
