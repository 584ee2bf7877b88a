"""A listing beside what the catalog knows of its addresses: what is new, what may have changed, what is gone.

Millions are compared by hashes; only where these differ are images and rows of the catalog looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog import Catalog, addresses
from pipeline.catalog.addresses import KnownAddresses
from pipeline.dataset.changes import GONE, Change, Known, known
from pipeline.sources import Listing, RawImage
from pipeline.sources.batches import BARE, FAR, PROBLEM, UNTOLD
from pipeline.sources.listed import Positions

MANY = 50_000  # addresses that are looked at together


@dataclass(frozen=True)
class Comparison:
    """Rising positions in the listing, and hashes of addresses."""

    new: Positions
    again: Positions  # of what failed and is to be tried again
    doubtful: Positions  # that look otherwise, were gone, or lie far away
    vanished: NDArray[np.uint64]  # addresses that are listed no more


def compare(listed: Listing, before: KnownAddresses, limit: int | None = None) -> Comparison:
    """With a limit only the first addresses are looked at; the others are there all the same."""
    seen = np.zeros(len(before.address), bool)
    start, new, again, doubtful = 0, [], [], []
    for hashed in listed.hashes():
        places = before.find(hashed["address"])
        seen[places[places >= 0]] = True
        if limit is not None:
            left = max(0, limit - start)
            hashed, places = hashed[:left], places[:left]
        is_known = np.flatnonzero(places >= 0)
        places_known = places[is_known]
        new.append(np.flatnonzero(places < 0) + start)
        again.append(is_known[before.marks[places_known] & addresses.AGAIN > 0] + start)
        doubtful.append(is_known[_differ(hashed[is_known], before, places_known)] + start)
        start += len(hashed)
    return Comparison(
        np.concatenate(new), np.concatenate(again), np.concatenate(doubtful), vanished=before.living(seen)
    )


def _differ(rows: NDArray[np.void], before: KnownAddresses, places: Positions) -> NDArray[np.bool_]:
    """Whether the row of each known address must be looked at."""
    marks = before.marks[places]
    equal = rows["look"] == before.look[places]
    without_captions = rows["untold"] == before.untold[places]
    untold = rows["marks"] & UNTOLD > 0
    lost_caption = (rows["marks"] & BARE > 0) & (marks & addresses.CAPTIONED > 0)
    equal[untold] = without_captions[untold] & ~lost_caption[untold]
    equal |= without_captions & (marks & addresses.NO_CAPTIONS > 0)
    looked_at = ~equal | (marks & addresses.GONE > 0) | (rows["marks"] & FAR > 0)
    return looked_at & (rows["marks"] & PROBLEM == 0)


@dataclass(frozen=True)
class Doubtful:
    """Images that may have changed, and what the catalog knows of them."""

    raw_images: list[RawImage]
    positions: dict[str, int]  # in the listing, by address
    before: dict[str, Known]  # by address


def doubtful(listed: Listing, catalog: Catalog, positions: Positions) -> Iterator[Doubtful]:
    """The images at these positions, not too many at a time."""
    for start in range(0, len(positions), MANY):
        places = positions[start : start + MANY]
        raw_images = list(listed.take(places))
        uris = [raw.uri for raw in raw_images]
        by_address = dict(zip(uris, places.tolist(), strict=True))
        yield Doubtful(raw_images, by_address, known(catalog, uris))


def vanished(catalog: Catalog, hashes: NDArray[np.uint64]) -> Iterator[list[Change]]:
    """The addresses of these hashes as gone, not too many at a time."""
    for start in range(0, len(hashes), MANY):
        uris = addresses.of_hashes(catalog, hashes[start : start + MANY])
        yield [
            Change("gone", uri, was.image_id, GONE)
            for uri, was in known(catalog, uris).items()
            if not was.gone
        ]
