"""Millions of hashes in four tables, one for each 16 bits of them, and the images that have each hash.

Two hashes that differ in few bits differ in very few of some 16 of them, so that only buckets with nearly the
same key need to be looked at (multi-index hashing; Norouzi, Punjani and Fleet 2014). Each table has its own
radius. Every hash within a reach of r bits is within the radius of one table at least where the radii sum up
to r - 3: were it further in each, it would differ in r + 1 bits. Which radii are the cheapest is measured
on the hashes that there are. Equal hashes stand in a table once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog import duplicates, hash_loops
from pipeline.catalog.duplicates import Numbers, Thumbnails
from pipeline.catalog.hash_list import MOST_PAIRS, Hashes, Small
from pipeline.catalog.hash_loops import KEYS, WORD, WORDS

Places = NDArray[np.int64]

ROOM = 1 << 16  # for what a search gives, at first
PROBE = 60  # hashes that are compared in the time that a bucket takes by itself
SAMPLE = 16  # hashes that costs are estimated by


def near(
    hashes: Hashes, queries: Hashes, reaches: Numbers, limits: Numbers
) -> tuple[Numbers, Numbers] | None:
    """As `hash_list.near`."""
    return collect(hash_loops.near, (hashes, queries, reaches, limits), len(queries), np.int64)


def too_unlike(one: Thumbnails, other: Thumbnails) -> NDArray[np.bool_]:  # uint8 [n, 384] -> [n]
    """Pairs of thumbnails that `duplicates.alike` is certain to refuse, in a fifth of its time."""
    result = np.empty(len(one), bool)
    limits = duplicates.LEFT, duplicates.ROUNDING, duplicates.FAINT
    hash_loops.too_unlike(one, other, *limits, result)
    return result


def collect(
    loop: Callable[..., int], arguments: tuple[Any, ...], queries: int, kind: type[Any]
) -> tuple[Numbers, NDArray[Any]] | None:
    """What a loop gives, with as much room as that takes; None where it is too much to hold at once, and of
    more than one query.
    """
    room = ROOM
    while True:
        index, what = np.empty(room, np.int64), np.empty(room, kind)
        count = loop(*arguments, index, what)
        if count <= room:
            return index[:count].copy(), what[:count].copy()
        if count > MOST_PAIRS and queries > 1:
            return None
        room = count


class HashTables:
    """Hashes with the images that have them, and these images' leaders; 36 bytes for each image.

    The images of a hash stand in `numbers` and `leaders` from `starts[place]` to `starts[place + 1]`, in the
    order of their leaders, then of their numbers; the place is that of the hash among all, sorted.
    """

    def __init__(self, hashes: Hashes, leaders: Small, numbers: Small) -> None:
        """Of images in the order of their hashes, leaders and numbers; the latter two arrays are kept."""
        first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        self.starts: Small = np.concatenate([first, [len(hashes)]]).astype(np.uint32)
        self.leaders, self.numbers = leaders, numbers
        unique = hashes[first] if len(first) < len(hashes) else hashes
        del first
        self._offsets = [np.zeros(KEYS + 1, np.uint32) for _ in range(WORDS)]
        self._rest: list[tuple[NDArray[np.uint16], ...]] = [
            tuple(np.empty(len(unique), np.uint16) for _ in range(WORDS - 1)) for _ in range(WORDS)
        ]
        for table in range(WORDS):
            hash_loops.fill(unique, table, self._offsets[table], self._rest[table])
        self._costs = self._measured()
        self._measured_at = len(self)

    def __len__(self) -> int:
        """Images."""
        return len(self.numbers)

    # --- looking ---

    def search(self, queries: Hashes, reach: int) -> tuple[Numbers, Hashes] | None:
        """Every hash within `reach` bits of a query, once: [k] index of the query, [k] the hash; None as
        `collect` says.
        """
        words, radii = _words(queries), self._radii(reach)
        parts = []
        for table in np.flatnonzero(radii >= 0):
            arguments = self._offsets[table], self._rest[table], table, words, radii, reach
            part = collect(hash_loops.scan, arguments, len(queries), np.uint64)
            if part is None:
                return None
            parts.append(part)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def places(self, hashes: Hashes) -> Places:
        """Where the hashes stand among all, or would have to."""
        places = np.empty(len(hashes), np.int64)
        hash_loops.find(self._offsets[0], self._rest[0], hashes, places)
        return places

    def _measured(self) -> NDArray[np.float64]:  # [4, 17]
        """What it costs in each table to look one bit further, from none to all, by some of the hashes."""
        keys = np.arange(KEYS, dtype=np.uint16)
        count = len(self._rest[0][0])
        chosen = np.linspace(0, count - 1, SAMPLE).astype(np.int64)
        own = (self._offsets[0].searchsorted(chosen, "right") - 1).astype(np.uint16)
        words = np.stack([own, *(self._rest[0][k][chosen] for k in range(WORDS - 1))])
        costs = np.zeros((WORDS, WORD + 1))
        for table in range(WORDS):
            sizes = np.diff(self._offsets[table]) + float(PROBE)
            for word in words[table]:
                distances = np.bitwise_count(keys ^ word)
                costs[table] += np.bincount(distances, sizes, WORD + 1)
        return costs

    def _radii(self, reach: int) -> NDArray[np.int64]:  # [4], -1: this table is not looked at
        """Those that cost least, chosen bit by bit; they sum up to `reach` - 3."""
        radii = np.full(WORDS, -1)
        for _ in range(min(reach, 64) + 1):
            more = [self._costs[t, radii[t] + 1] if radii[t] < WORD else np.inf for t in range(WORDS)]
            radii[int(np.argmin(more))] += 1
        return radii

    # --- growing ---

    def insert(self, hashes: Hashes, leaders: Small, numbers: Small) -> None:
        """More images, in the order of their hashes, leaders and numbers."""
        first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        counts = np.diff(np.append(first, len(hashes)))
        unique = hashes[first]
        places = self.places(unique)
        known = self._hashes_at(np.minimum(places, len(self._rest[0][0]) - 1)) == unique
        known &= places < len(self._rest[0][0])
        at = np.repeat(self.starts[places].astype(np.int64), counts)
        for k in np.flatnonzero(known):
            start, end = self.starts[places[k]], self.starts[places[k] + 1]
            own = slice(first[k], first[k] + counts[k])
            at[own] += self.leaders[start:end].searchsorted(leaders[own], "right")
        _insert(self.leaders, at, leaders)
        _insert(self.numbers, at, numbers)
        # a new hash starts where its neighbour did, and what comes after moves by what was put in before
        new = ~known
        begin, put_in_at = self.starts[places[new]], places + np.cumsum(new) - new
        _insert(self.starts, places[new], begin)
        hash_loops.raise_starts(self.starts, put_in_at, counts)
        self._insert_hashes(unique[new], places[new])
        if len(self) > 2 * self._measured_at:
            self._costs, self._measured_at = self._measured(), len(self)

    def _insert_hashes(self, hashes: Hashes, places: Places) -> None:
        words = _words(hashes)
        for table in range(WORDS):
            order = np.argsort(words[:, table], kind="stable")
            keys = words[order, table].astype(np.int64)
            at = places if table == 0 else self._offsets[table][keys + 1].astype(np.int64)
            for k in range(WORDS - 1):
                _insert(self._rest[table][k], at, words[order, (table + 1 + k) % WORDS])
            self._offsets[table][1:] += np.cumsum(np.bincount(keys, minlength=KEYS)).astype(np.uint32)

    def _hashes_at(self, places: Places) -> Hashes:
        value = (self._offsets[0].searchsorted(places, "right") - 1).astype(np.uint64)
        for k in range(WORDS - 1):
            value = value << np.uint64(WORD) | self._rest[0][k][places]
        return value


def _words(hashes: Hashes) -> NDArray[np.uint16]:  # [n, 4]
    return np.ascontiguousarray(hashes.astype(">u8").view(">u2").reshape(-1, WORDS).astype(np.uint16))


def _insert(array: NDArray[Any], places: Places, values: NDArray[Any]) -> None:
    """As `hash_loops.insert`, in an array that grows where it lies; nobody else may look at it."""
    array.resize(len(array) + len(values), refcheck=False)
    hash_loops.insert(array, places, values)
