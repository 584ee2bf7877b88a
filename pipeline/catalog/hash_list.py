"""Hashes that are compared one by one: those of the images that came last, or of all where images are few."""

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Small = NDArray[np.uint32]  # numbers of images, in half the memory

MOST_PAIRS = 1 << 22  # of near hashes, held at once


class HashList:
    """Images in the order of their hashes, leaders and numbers."""

    def __init__(self, hashes: Hashes, leaders: Small, numbers: Small) -> None:
        self.hashes, self.leaders, self.numbers = hashes, leaders, numbers

    def firsts(self) -> Numbers:
        """Where each hash begins, and the end."""
        if not len(self.hashes):
            return np.zeros(1, np.int64)
        return np.flatnonzero(np.concatenate([[True], self.hashes[1:] != self.hashes[:-1], [True]]))

    def insert(self, hashes: Hashes, leaders: Small, numbers: Small) -> None:
        """More images, with higher numbers."""
        order = np.lexsort((numbers, leaders, hashes))
        hashes, leaders, numbers = hashes[order], leaders[order], numbers[order]
        places, ends = self.hashes.searchsorted(hashes), self.hashes.searchsorted(hashes, "right")
        for i in np.flatnonzero(places < ends):
            places[i] += self.leaders[places[i] : ends[i]].searchsorted(leaders[i], "right")
        self.hashes = np.insert(self.hashes, places, hashes)
        self.leaders = np.insert(self.leaders, places, leaders)
        self.numbers = np.insert(self.numbers, places, numbers)


def empty() -> HashList:
    return HashList(np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint32))


def near(
    hashes: Hashes, queries: Hashes, reaches: Numbers, limits: Numbers
) -> tuple[Numbers, Numbers] | None:
    """Which of the first `limits[i]` hashes are within `reaches[i]` bits of query i; -1 bits is none.

    [k] index of the query, [k] of the hash, in their order; None where that is too much to hold at once, and
    of more than one query.
    """
    parts, count = [np.zeros(0, np.int64)], 0
    for query, reach, limit in zip(queries, reaches, limits, strict=True):
        parts.append(np.flatnonzero(np.bitwise_count(hashes[:limit] ^ query) <= reach))
        count += len(parts[-1])
        if count > MOST_PAIRS and len(queries) > 1:
            return None
    index = np.repeat(np.arange(len(queries)), [len(part) for part in parts[1:]])
    return index, np.concatenate(parts)
