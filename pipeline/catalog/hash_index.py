"""Near-duplicates: whose group an image joins. Asked when its shard is committed.

Perceptual hashes propose pairs, their thumbnails decide (`duplicates.py`). All hashes are held in memory, 36
bytes for each image: those that came last in a list that is compared one by one, all before in tables
(`hash_tables.py`). The answers are those of comparing every hash with every one before.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog import duplicates, hash_list
from pipeline.catalog.duplicates import Numbers, Thumbnails
from pipeline.catalog.hash_list import Hashes, HashList

if TYPE_CHECKING:
    from pipeline.catalog.hash_tables import HashTables

Flags = NDArray[np.bool_]
# numbers of images -> which of them have a thumbnail [n], and those thumbnails
Fetch = Callable[[Numbers], tuple[Flags, Thumbnails]]

BITS = 8  # of a hash that are not 0, at least: flat pictures and plain gradients have fewer
WIDEST = 16  # bits: no pair further apart is proposed
LIST = (
    20_000  # images that are compared one by one, and that the list has at least before it joins the tables
)
SHARE = 256  # of all images: the list has one in so many before it joins the tables
MOST = 2**32 - 1  # images
BATCH = 2048  # incoming images at once
PAIRS = 16  # of incoming images with each other, for each of them: of more, the batch is halved
FIRST, LATER = 16, 256  # images that one is compared with at once, at first and at most


class _Pictures(NamedTuple):
    has: Flags  # [n] whether each image has a thumbnail
    thumbnails: Thumbnails  # of those that have

    def part(self, part: slice) -> "_Pictures":
        before = int(self.has[: part.start].sum())
        return _Pictures(self.has[part], self.thumbnails[before : before + int(self.has[part].sum())])

    def of(self, images: Numbers) -> Thumbnails:
        """Of images that have one."""
        return self.thumbnails[(np.cumsum(self.has) - 1)[images]]


class _Runs(NamedTuple):
    """Known images that are proposed to incoming ones: k runs, each of images with one hash."""

    query: Numbers  # [k] index of the incoming image
    tabled: Flags  # [k] whether they stand in the tables, else in the list
    start: Numbers  # [k] place of the first that was not compared yet
    end: Numbers  # [k]
    near: Flags  # [k] whether their hash is within the distance that needs no detail
    hashes: Hashes  # [k]

    def of(self, chosen: NDArray[np.generic]) -> "_Runs":
        return _Runs(*(array[chosen] for array in self))


class HashIndex:
    """The hashes of all images of a dataset, numbered in the order of their commits, and whom each follows.

    Images without a thumbnail are near-duplicates within `distance` bits. With thumbnails, and without a
    plain ground, they are looked for within twice of it. The earliest leader among its near-duplicates leads
    an image; one that bridges two groups joins the earlier, and they stay two.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self._list = hash_list.empty()
        self._tables: HashTables | None = None

    def __len__(self) -> int:
        return len(self._list.hashes) + (len(self._tables) if self._tables else 0)

    def load(self, hashes: Hashes, leaders: Numbers) -> None:
        """Once, before any is added: all images [n] and the number of each one's leader, itself where it has
        none.
        """
        _check(len(hashes))
        order = np.argsort(hashes).astype(np.uint32)
        leaders_in_order, hashes = leaders.astype(np.uint32)[order], hashes[order]
        again = hashes[1:] == hashes[:-1]
        equal = np.flatnonzero(np.append(again, False) | np.insert(again, 0, False))
        del again
        turn = equal[np.lexsort((order[equal], leaders_in_order[equal], hashes[equal]))]
        order[equal], leaders_in_order[equal] = order[turn], leaders_in_order[turn]
        self._list = HashList(hashes, leaders_in_order, order)
        del order, hashes, leaders_in_order
        self._tidy()

    def add(self, incoming: Hashes, fetch: Fetch | None) -> Numbers:
        """The numbers of the leaders [m] of images that come next; -1 = none: it leads itself. From now on
        they are known.

        `fetch` is asked for images counted through, the incoming from `len(self)` on; None = the hash alone
        decides, on flat ones too.
        """
        _check(len(self) + len(incoming))
        parts = [np.zeros(0, np.int64)]
        for start in range(0, len(incoming), BATCH):
            hashes, pictures = incoming[start : start + BATCH], None
            reaches = np.full(len(hashes), self.distance)
            if fetch:
                pictures = _Pictures(*fetch(np.arange(len(self), len(self) + len(hashes))))
                detailed = np.flatnonzero(pictures.has)[~duplicates.some_ground(pictures.thumbnails)]
                reaches[detailed] = max(self.distance, min(2 * self.distance, WIDEST))
                reaches[np.bitwise_count(hashes) < BITS] = -1
            parts.append(self._add(hashes, reaches, pictures, fetch))
        return np.concatenate(parts)

    def _add(
        self, hashes: Hashes, reaches: Numbers, pictures: _Pictures | None, fetch: Fetch | None
    ) -> Numbers:  # as `add` gives
        own = np.arange(len(self), len(self) + len(hashes))
        pairs = self._near(hashes, hashes, reaches, np.arange(len(hashes)))
        runs = self._runs(hashes, reaches)
        if pairs is None or runs is None:
            return self._add_halves(hashes, reaches, pictures, fetch)
        best = own.copy()
        if pictures is None or fetch is None:
            np.minimum.at(best, runs.query, self._leaders(runs.tabled, runs.start))
        else:
            self._look(runs.of(np.bitwise_count(runs.hashes) >= BITS), best, pictures, fetch)
        # no incoming image gets an earlier leader than all before it in the batch have already
        useful = np.minimum.accumulate(best)[pairs[1]] < best[pairs[0]]
        pairs = pairs[0][useful], pairs[1][useful]
        if pictures is not None:
            if len(pairs[0]) > PAIRS * len(hashes):
                return self._add_halves(hashes, reaches, pictures, fetch)
            pairs = self._confirmed(hashes, pairs, pictures)
        leaders = best.tolist()
        for after, before in zip(*(numbers.tolist() for numbers in pairs), strict=True):
            leaders[after] = min(leaders[after], leaders[before])
        result = np.array(leaders, np.int64)
        self._list.insert(hashes, result.astype(np.uint32), own.astype(np.uint32))
        self._tidy()
        return np.where(result == own, -1, result)

    def _add_halves(
        self, hashes: Hashes, reaches: Numbers, pictures: _Pictures | None, fetch: Fetch | None
    ) -> Numbers:
        """`_add` of a batch with too many pairs to hold or to compare, so of more than one image."""
        middle = len(hashes) // 2
        return np.concatenate([
            self._add(hashes[part], reaches[part], pictures and pictures.part(part), fetch)
            for part in (slice(0, middle), slice(middle, len(hashes)))
        ])  # fmt: skip

    def _tidy(self) -> None:
        """Moves the list to the tables when it is long."""
        images = self._list.hashes, self._list.leaders, self._list.numbers
        if len(self._list.hashes) < max(LIST, len(self) // SHARE):
            return
        self._list = hash_list.empty()
        if self._tables:
            self._tables.insert(*images)
            return
        from pipeline.catalog.hash_tables import HashTables

        self._tables = HashTables(*images)

    # --- what hashes propose ---

    def _near(
        self, hashes: Hashes, queries: Hashes, reaches: Numbers, limits: Numbers
    ) -> tuple[Numbers, Numbers] | None:
        """As `hash_list.near`, which needs no numba, does."""
        if self._tables:
            from pipeline.catalog import hash_tables

            return hash_tables.near(hashes, queries, reaches, limits)
        return hash_list.near(hashes, queries, reaches, limits)

    def _runs(self, hashes: Hashes, reaches: Numbers) -> _Runs | None:
        """Known images within `reaches` bits; None where that is too much to hold, of more than one."""
        places = self._list.firsts()
        unique = self._list.hashes[places[:-1]]
        listed = self._near(unique, hashes, reaches, np.full(len(hashes), len(unique)))
        if listed is None:
            return None
        query, which = listed
        parts = [self._run(hashes, query, unique[which], places[which], places[which + 1], tabled=False)]
        for reach in np.unique(reaches[reaches >= 0]) if self._tables else ():
            assert self._tables
            asked = np.flatnonzero(reaches == reach)
            tabled = self._tables.search(hashes[asked], int(reach))
            if tabled is None:
                return None
            query, near = asked[tabled[0]], tabled[1]
            place, starts = self._tables.places(near), self._tables.starts
            ends = starts[place].astype(np.int64), starts[place + 1].astype(np.int64)
            parts.append(self._run(hashes, query, near, *ends, tabled=True))
        return _Runs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _run(
        self, hashes: Hashes, query: Numbers, near: Hashes, start: Numbers, end: Numbers, *, tabled: bool
    ) -> _Runs:
        close = np.bitwise_count(hashes[query] ^ near) <= self.distance
        return _Runs(query, np.full(len(query), tabled), start, end, close, near)

    def _leaders(self, tabled: Flags, places: Numbers) -> Numbers:
        return self._images("leaders", tabled, places)

    def _images(self, which: Literal["leaders", "numbers"], tabled: Flags, places: Numbers) -> Numbers:
        """The `leaders` or `numbers` of images at places in the tables or in the list."""
        result = np.empty(len(places), np.int64)
        for holder, chosen in ((self._list, ~tabled), (self._tables, tabled)):
            if chosen.any():
                result[chosen] = getattr(holder, which)[places[chosen]]
        return result

    # --- what thumbnails decide ---

    def _look(self, runs: _Runs, best: Numbers, pictures: _Pictures, fetch: Fetch) -> None:
        """Lowers `best` to the earliest leader of the known images that each incoming one is a copy of.

        They are compared in the order of their leaders, so that few are where many are copies of each other.
        """
        step = FIRST
        while len(runs.query):
            leaders = self._leaders(runs.tabled, runs.start)
            order = np.lexsort((leaders, runs.query))
            runs = runs.of(order)
            counts = np.bincount(runs.query, minlength=len(best))
            rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[runs.query]
            share = step // np.clip(counts, 1, step)[runs.query]
            taken = np.where(rank < step, np.minimum(share, runs.end - runs.start), 0)
            each = np.repeat(np.arange(len(taken)), taken)
            places = runs.start[each] + np.arange(len(each)) - (np.cumsum(taken) - taken)[each]
            query, tabled = runs.query[each], runs.tabled[each]
            numbers = self._images("numbers", tabled, places)
            asked, one = np.unique(numbers, return_inverse=True)
            good = self._copies(_Pictures(*fetch(asked)), one, pictures, query, runs.near[each])
            np.minimum.at(best, query[good], self._leaders(tabled, places)[good])
            runs = runs._replace(start=runs.start + taken)
            runs = runs.of(runs.start < runs.end)
            runs = runs.of(self._leaders(runs.tabled, runs.start) < best[runs.query])
            step = min(8 * step, LATER)

    def _confirmed(
        self, hashes: Hashes, pairs: tuple[Numbers, Numbers], pictures: _Pictures
    ) -> tuple[Numbers, Numbers]:
        """Pairs of incoming images that are near-duplicates."""
        after, before = pairs
        solid = np.bitwise_count(hashes[before]) >= BITS
        after, before = after[solid], before[solid]
        near = np.bitwise_count(hashes[after] ^ hashes[before]) <= self.distance
        good = self._copies(pictures, before, pictures, after, near)
        return after[good], before[good]

    def _copies(
        self, known: _Pictures, one: Numbers, pictures: _Pictures, other: Numbers, near: Flags
    ) -> Flags:  # [k]
        """Of pairs, the later of which looks further than `distance` only if it has no plain ground."""
        result = near.copy()
        seen = known.has[one] & pictures.has[other]
        result[seen] = False
        result[~seen & ~near] = False
        left = np.flatnonzero(seen)
        first, second = known.of(one[left]), pictures.of(other[left])
        if self._tables:
            from pipeline.catalog import hash_tables

            kept = ~hash_tables.too_unlike(first, second)
            left, first, second = left[kept], first[kept], second[kept]
        wide = np.flatnonzero(~near[left])
        kept = np.ones(len(left), bool)
        kept[wide] = ~duplicates.some_ground(first[wide])
        left, both = left[kept], np.concatenate([first[kept], second[kept]])
        result[left] = duplicates.alike(both, np.arange(len(left)), np.arange(len(left), 2 * len(left)))
        return result


def leaders(
    known: Hashes,  # [n] hashes in the order of their commits
    incoming: Hashes,  # [m] in the order in which they are to be committed
    distance: int,  # bits
    # [n] the leader of each known image, itself where it has none; None = each leads itself
    led: Numbers | None = None,
    fetch: Fetch | None = None,
) -> Numbers:  # [m] as `HashIndex.add` gives
    """Whom images follow, beside known ones that are asked about once."""
    index = HashIndex(distance)
    index.load(known, np.arange(len(known)) if led is None else led)
    return index.add(incoming, fetch)


def _check(images: int) -> None:
    if images > MOST:
        raise ValueError(f"near-duplicates are grouped among {MOST:,} images at most: set near: null")
