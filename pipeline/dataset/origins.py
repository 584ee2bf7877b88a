"""Where each image came from: the listed address of every row of the images shards, two numbers a row."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog import Catalog, addresses
from pipeline.sources import Listing, RawImage
from pipeline.sources.listed import Positions

PARTS_AT_ONCE = 256


@dataclass(frozen=True)
class Origins:
    """Of the readable images whose first address is listed, sorted by part and row."""

    listed: Listing
    places: NDArray[np.uint64]  # part << 31 | row
    positions: Positions  # in the listing

    def of_part(self, part: int) -> dict[int, RawImage]:
        """Row -> where the image came from."""
        first, last = self.places.searchsorted(np.array([part << 31, (part + 1) << 31], np.uint64))
        rows = (self.places[first:last] & np.uint64(2**31 - 1)).tolist()
        return dict(zip(rows, self.listed.take(self.positions[first:last]), strict=True))

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last of so many parts at a time, until there are no more."""
        parts = np.unique(self.places >> np.uint64(31)).tolist()
        for start in range(0, len(parts), PARTS_AT_ONCE):
            members = parts[start : start + PARTS_AT_ONCE]
            yield members[0], members[-1]


def none() -> Origins:
    """Where no condition has maps that came with the images."""
    return Origins(Listing(), np.empty(0, np.uint64), np.empty(0, np.int64))


def origins(catalog: Catalog, listed: Listing) -> Origins:
    hashed = np.concatenate([rows["address"] for rows in listed.hashes()])
    order = hashed.argsort()
    hashed = hashed[order]
    uris, places = addresses.first_addresses(catalog)
    if not len(uris):
        return none()
    found = hashed.searchsorted(uris).clip(max=len(hashed) - 1)
    there = hashed[found] == uris
    places, positions = places[there], order[found[there]]
    rising = places.argsort()
    return Origins(listed, places[rising], positions[rising])
