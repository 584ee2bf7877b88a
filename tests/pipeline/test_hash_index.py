"""Near-duplicates are those that comparing each hash with all before gives, in a list or in tables."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from pipeline.catalog import duplicates, hash_index, hash_list
from pipeline.catalog.hash_index import Fetch, Hashes, HashIndex
from pipeline.dataset import quality

COUNT = 200  # images of a stream
KNOWN = 80  # of them that are loaded
DISTANCES = 0, 1, 2, 6, 8, 12, 16, 40  # bits
LISTED = 40  # images that are compared one by one, so that the others go to the tables


@pytest.fixture(params=["list", "tables"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once all images are in the list, once most are in tables."""
    if request.param == "tables":
        monkeypatch.setattr(hash_index, "LIST", LISTED)
    return str(request.param)


# --- the same by comparing all ---


def compared(hashes: Hashes, distance: int, fetch: Fetch | None = None) -> list[int]:
    """The leader of each image, itself where it has none."""
    numbers = np.arange(len(hashes))
    reach = np.full(len(hashes), distance)
    proposed = [np.ones(0, bool)] * len(hashes)
    if fetch:
        has, thumbnails = fetch(numbers)
        ground = np.zeros(len(hashes), bool)
        ground[has] = duplicates.some_ground(thumbnails)
        reach[has & ~ground] = max(distance, min(2 * distance, 16))
        reach[np.bitwise_count(hashes) < 8] = -1
        place = np.cumsum(has) - 1
    leaders: list[int] = []
    for i, own in enumerate(hashes):
        bits = np.bitwise_count(hashes[:i] ^ own).astype(int)
        proposed = bits <= reach[i]
        if fetch:
            proposed &= np.bitwise_count(hashes[:i]) >= 8
            proposed &= (bits <= distance) | (has[:i] & has[i] & ~ground[:i])
            seen = np.flatnonzero(proposed & has[:i]) if has[i] else numbers[:0]
            proposed[seen] = duplicates.alike(thumbnails, place[seen], np.full(len(seen), place[i]))
        leaders.append(min((leaders[k] for k in np.flatnonzero(proposed)), default=i))
    return leaders


def indexed(
    hashes: Hashes, distance: int, batches: Iterator[int], fetch: Fetch | None = None, known: int = 0
) -> list[int]:
    """The same by an index that knows the first already, and then takes batches of these sizes."""
    index, leaders = HashIndex(distance), compared(hashes[:known], distance, fetch)
    index.load(hashes[:known], np.array(leaders, np.int64))
    while len(leaders) < len(hashes):
        start, size = len(leaders), next(batches)
        joined = index.add(hashes[start : start + size], fetch)
        leaders += [own if leader < 0 else leader for own, leader in enumerate(joined.tolist(), start)]
        assert len(index) == len(leaders)
    return leaders


def sizes(seed: int) -> Iterator[int]:
    """Of batches: one, some, many."""
    draw = np.random.default_rng(seed)
    while True:
        yield int(draw.choice([1, 2, 7, 40, 150]))


# --- hashes ---


def turned(count: int, most: int, draw: np.random.Generator) -> Hashes:
    """So many bits at most, drawn for each."""
    order = draw.random((count, 64)).argsort(axis=1)
    bits = order < draw.integers(0, most + 1, (count, 1))
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def uniform(draw: np.random.Generator) -> Hashes:
    return draw.integers(0, 2**64, COUNT, dtype=np.uint64)


def with_copies(draw: np.random.Generator) -> Hashes:
    hashes = uniform(draw)
    return hashes[draw.integers(0, COUNT, COUNT)] ^ turned(COUNT, 10, draw)


def clustered(draw: np.random.Generator) -> Hashes:
    """In a few groups that touch."""
    return uniform(draw)[draw.integers(0, 5, COUNT)] ^ turned(COUNT, 8, draw)


def skewed(draw: np.random.Generator) -> Hashes:
    """An eighth of the bits are set."""
    return uniform(draw) & uniform(draw) & uniform(draw)


def in_one_word(draw: np.random.Generator) -> Hashes:
    """All alike but for 18 bits in the middle."""
    return draw.integers(0, 2**18, COUNT, dtype=np.uint64) << np.uint64(23) | np.uint64(0xFF << 50)


def equal(draw: np.random.Generator) -> Hashes:
    return np.repeat(draw.integers(0, 2**64, 3, dtype=np.uint64), [KNOWN, 10, COUNT - KNOWN - 10])


KINDS: list[Callable[[np.random.Generator], Hashes]] = [
    uniform, with_copies, clustered, skewed, in_one_word, equal,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_hashes_alone_give_the_same_leaders(store: str, kind: Callable[..., Hashes]) -> None:
    for distance in DISTANCES:
        hashes = kind(np.random.default_rng(distance))
        expected = compared(hashes, distance)
        assert indexed(hashes, distance, sizes(distance)) == expected
        assert indexed(hashes, distance, iter([COUNT]), known=KNOWN) == expected


def test_tables_find_every_hash_within_reach_once_and_no_other() -> None:
    from pipeline.catalog.hash_tables import HashTables

    draw = np.random.default_rng(8)
    hashes = np.sort(np.concatenate([kind(draw) for kind in KINDS]))
    numbers = np.arange(len(hashes), dtype=np.uint32)
    parts = np.sort(draw.permutation(len(hashes))[:700]), slice(None)
    first = np.zeros(len(hashes), bool)
    first[parts[0]] = True
    tables = HashTables(hashes[first], numbers[first], numbers[first])
    tables.insert(hashes[~first], numbers[~first], numbers[~first])
    unique, counts = np.unique(hashes, return_counts=True)
    assert tables.places(unique).tolist() == list(range(len(unique)))
    assert np.diff(tables.starts).tolist() == counts.tolist()
    assert (hashes[tables.numbers] == hashes).all()
    queries = np.concatenate([unique[::20], draw.integers(0, 2**64, 20, dtype=np.uint64)])
    for reach in (0, 3, 6, 12, 16, 30, 64):
        which, near = tables.search(queries, reach) or (np.zeros(0), np.zeros(0))
        pairs = list(zip(which.tolist(), near.tolist(), strict=True))
        expected = {
            (i, int(other))
            for i, own in enumerate(queries)
            for other in unique[np.bitwise_count(unique ^ own) <= reach]
        }
        assert len(pairs) == len(set(pairs)) and set(pairs) == expected


def test_more_near_hashes_than_can_be_held_at_once_are_taken_in_parts(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.catalog import hash_tables

    for module in (hash_list, hash_tables):
        monkeypatch.setattr(module, "MOST_PAIRS", 50)
    monkeypatch.setattr(hash_tables, "ROOM", 4)
    hashes = clustered(np.random.default_rng(2))
    assert indexed(hashes, 6, sizes(2), known=KNOWN) == compared(hashes, 6)


def test_few_images_need_no_compiler() -> None:
    code = (
        "import sys, numpy as np; from pipeline.catalog.hash_index import leaders;"
        "leaders(np.arange(9, dtype='u8'), np.arange(9, dtype='u8'), 2); print('numba' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


# --- thumbnails ---


@dataclass(frozen=True)
class Pictures:
    """Thumbnails of drawn scenes and of copies of them; some images have none."""

    thumbnails: duplicates.Thumbnails  # [k, 384]
    of: np.ndarray  # [COUNT] which of them an image has, -1: none

    def fetch(self, numbers: duplicates.Numbers) -> tuple[np.ndarray, duplicates.Thumbnails]:
        which = self.of[numbers]
        return which >= 0, self.thumbnails[which[which >= 0]]


def variants(seed: int, count: int) -> list[np.ndarray]:
    """A picture of soft noise, half of them on a plain ground, and copies of it."""
    draw = np.random.default_rng(seed)
    picture = cv2.resize(
        draw.integers(0, 256, (9, 9, 3), dtype=np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC
    )
    if seed % 2:
        picture[:, :40] = 255
    changes = [
        lambda p: p,
        lambda p: cv2.convertScaleAbs(p, alpha=0.9),
        lambda p: cv2.GaussianBlur(p, (0, 0), 1.0),
        lambda p: p[1:, 2:],
        lambda p: p[:, :-6],
    ]
    return [change(picture) for change in changes[:count]]


def pictures(seed: int) -> Pictures:
    draw = np.random.default_rng(seed)
    drawn = [picture for scene in range(8) for picture in variants(scene, 5)]
    data = b"".join(quality.thumbnail(picture) for picture in drawn)
    thumbnails = np.frombuffer(data, np.uint8).reshape(-1, duplicates.BYTES)
    return Pictures(thumbnails, np.where(draw.random(COUNT) < 0.1, -1, draw.integers(0, len(drawn), COUNT)))


@pytest.mark.parametrize("kind", [with_copies, clustered, skewed, equal])
def test_thumbnails_give_the_same_leaders(store: str, kind: Callable[..., Hashes]) -> None:
    for distance in (0, 6):
        hashes, seen = kind(np.random.default_rng(distance)), pictures(distance)
        hashes[::9] &= np.uint64(0b1001001)  # flat ones
        expected = compared(hashes, distance, seen.fetch)
        assert indexed(hashes, distance, sizes(3), seen.fetch, KNOWN) == expected
        assert indexed(hashes, distance, iter([COUNT]), seen.fetch) == expected
    assert 1 < len(set(expected)) < COUNT


def test_few_thumbnails_are_fetched_where_many_images_are_copies(store: str) -> None:
    """An image is compared with the earliest leaders' first, and with no more after a copy."""
    seen, asked = Pictures(pictures(0).thumbnails, np.zeros(COUNT, int)), 0

    def fetch(numbers: duplicates.Numbers) -> tuple[np.ndarray, duplicates.Thumbnails]:
        nonlocal asked
        asked += len(numbers)
        return seen.fetch(numbers)

    hashes = np.full(COUNT, 0xFFFF, np.uint64)
    index = HashIndex(6)
    index.load(hashes[:-10], np.zeros(COUNT - 10, np.int64))
    assert index.add(hashes[-10:], fetch).tolist() == [0] * 10
    assert asked <= 10 + hash_index.FIRST


def test_what_is_too_unlike_is_never_alike() -> None:
    from pipeline.catalog.hash_tables import too_unlike

    draw = np.random.default_rng(4)
    thumbnails = pictures(0).thumbnails
    noise = draw.integers(0, 256, (20, duplicates.BYTES), dtype=np.uint8)
    flat = np.repeat(draw.integers(0, 256, (10, 1), dtype=np.uint8), duplicates.BYTES, axis=1)
    every = np.concatenate([thumbnails, noise, flat, np.clip(flat[:5] + noise[:5] % 3, 0, 255)])
    one, other = np.indices((len(every), len(every))).reshape(2, -1)
    refused, good = too_unlike(every[one], every[other]), duplicates.alike(every, one, other)
    assert not (refused & good).any()
    assert good.sum() > len(every) and refused.sum() > 0.6 * (~good).sum()


# --- groups, by examples ---


def test_a_near_duplicate_is_led_by_the_earliest_of_its_kind() -> None:
    known = np.array([0b0000, 0xFF00], np.uint64)
    incoming = np.array([0xFF01, 0xF0F0F0F0, 0xF0F0F0F1, 0b0001], np.uint64)
    # the second of the incoming is number 3
    assert hash_index.leaders(known, incoming, 1).tolist() == [1, -1, 3, 0]


def test_an_image_that_follows_another_of_its_batch_has_that_ones_leader() -> None:
    chain = np.array([0b0001, 0b0011, 0b0111], np.uint64)  # each one bit from the next
    assert hash_index.leaders(np.array([0b0000], np.uint64), chain, 1).tolist() == [0, 0, 0]
    assert hash_index.leaders(np.array([], np.uint64), chain, 1).tolist() == [-1, 0, 0]


def test_an_image_that_bridges_two_groups_joins_the_earlier() -> None:
    known = np.array([0b0000, 0b1111, 0b1_0000], np.uint64)
    assert hash_index.leaders(known, np.array([0b0011], np.uint64), 2).tolist() == [0]
    # The third is of the first's group; the bridge touches only it and the second, which came later than the
    # first.
    led = np.array([0, 1, 0])
    assert hash_index.leaders(known, np.array([0b1_0111], np.uint64), 3, led).tolist() == [0]
    assert hash_index.leaders(known, np.array([0b1_0111], np.uint64), 3).tolist() == [1]
