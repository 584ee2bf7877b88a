"""A listing beside the catalog: by hashes the same is found as by comparing every image with every row."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.catalog import Catalog, addresses
from pipeline.dataset.changes import Change, differences, known
from pipeline.dataset.comparison import compare, doubtful, vanished
from pipeline.sources import Listing, RawImage, listed
from pipeline.storage.workspace import Workspace, canonical_json

SHARDS = """INSERT INTO shard_rows BY NAME
            SELECT unnest([1, 2, 3]) AS shard_number, 'images' AS kind, unnest(['k', 'k', 'other']) AS key,
                   unnest([0, 1, 0]) AS part, unnest(['1', '2', '3']) AS shard"""
IMAGE = """INSERT INTO image_rows BY NAME
           SELECT ? AS image, ? AS image_id, 1 AS shard_number, ? AS status, ? AS transient"""
SOURCE = """INSERT INTO source_rows BY NAME
            SELECT ? AS image, ? AS uri, ? AS shard_number, ? AS row, ? AS stamp, ? AS caption_stamp,
                   ?::VARCHAR[] AS captions, ? AS fields, ? AS gone"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(Workspace(tmp_path))
    catalog.create()
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO settings VALUES ('image_key', 'k')")
        connection.execute(SHARDS)
    return catalog


def listing(raw_images: list[RawImage]) -> Listing:
    found = Listing()
    for raw in raw_images:
        found.add(raw)
    found.finish()
    return found


def all_kinds() -> tuple[list[RawImage], list[tuple[object, ...]]]:
    """Every way in which an image and what is known of it may agree or not."""
    images, rows = [], []
    of_listing = itertools.product(
        ["", "s"], [None, "", "a"], [(), ("b",)], ["", "c"], ["file", "tar", "url"], ["", "no"]
    )
    of_catalog = itertools.product(
        [None, "s", "t"], [None, "c"], [None, [], ["a"], ["a", "b"]], [None, "gone"]
    )
    for number, (one, other) in enumerate(itertools.product(of_listing, of_catalog)):
        stamp, caption, more, caption_stamp, reader, problem = one
        uri, fields = f"address {number}", {"n": number % 2}
        known_fields = fields if number % 3 else {"n": 7}
        images.append(
            RawImage(
                uri,
                caption,
                fields,
                problem,
                reader,
                more_captions=more,
                stamp=stamp,
                caption_stamp=caption_stamp,
            )
        )
        known_stamp, known_caption_stamp, captions, gone = other
        rows.append(
            (
                1,
                uri,
                1 + number % 2,
                number,
                known_stamp,
                known_caption_stamp,
                captions,
                canonical_json(known_fields),
                gone,
            )
        )
    return images, rows


@pytest.mark.parametrize("in_memory", [1, pytest.param(10**6, marks=pytest.mark.slow)])
def test_hashes_find_what_a_look_at_everything_finds(
    in_memory: int, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed, "IN_MEMORY", in_memory)
    monkeypatch.setattr(listed, "HASHED", 1000)
    images, rows = all_kinds()
    images = [raw for number, raw in enumerate(images) if number % 5 or number < 100]
    found = listing([*images, RawImage("new 1", "a"), RawImage("new 2")])
    rows += [
        (1, "address 1", 1, 10**6, "old", "", ["before"], "{}", "gone"),
        (1, "elsewhere", 3, 0, "", "", [], "{}", None),
    ]
    with catalog.transaction() as connection:
        connection.execute(IMAGE, [1, "image", "ok", None])
        connection.executemany(SOURCE, rows)
    everything = known(catalog, [str(row[1]) for row in rows])
    assert len(everything) == len(rows) - 2
    expected = differences(images, everything)
    compared = compare(found, addresses.known(catalog))
    assert [raw.uri for raw in found.take(compared.new)] == ["new 1", "new 2"]
    suspects, certain = [], list[Change]()
    for some in doubtful(found, catalog, compared.doubtful):
        part = differences(some.raw_images, some.before)
        suspects += part.suspects
        certain += part.certain
        assert not part.new
    assert suspects == expected.suspects and certain == expected.certain
    there = {raw.uri for raw in images}
    gone = {change.uri for some in vanished(catalog, compared.vanished) for change in some}
    assert gone == {uri for uri, was in everything.items() if not was.gone and uri not in there}
    few = compare(found, addresses.known(catalog), limit=7)
    assert (few.vanished == compared.vanished).all() and not len(few.new)
    assert few.doubtful.tolist() == [place for place in compared.doubtful.tolist() if place < 7]


def test_two_addresses_of_one_hash_are_told_apart(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    with catalog.transaction() as connection:
        connection.execute(IMAGE, [1, "image", "ok", None])
        connection.execute(SOURCE, [1, "there", 1, 0, "s", "", ["a"], "{}", None])
    found = listing([RawImage("there", "a", stamp="s"), RawImage("another", "a", stamp="s")])
    monkeypatch.setattr(
        addresses.KnownAddresses, "find", lambda self, hashes: np.zeros(len(hashes), np.int64)
    )
    compared = compare(found, addresses.known(catalog))
    (some,) = doubtful(found, catalog, compared.doubtful)
    assert [raw.uri for raw in differences(some.raw_images, some.before).new] == ["another"]


@pytest.mark.parametrize(("retry", "expected"), [(False, ["for a while"]), (True, ["broken", "for a while"])])
def test_what_failed_for_a_while_is_tried_again(retry: bool, expected: list[str], catalog: Catalog) -> None:
    with catalog.transaction() as connection:
        for image, (uri, status, transient) in enumerate(
            [
                ("ok", "ok", None),
                ("broken", "failed", None),
                ("for a while", "failed", True),
                ("not listed", "failed", True),
            ]
        ):
            connection.execute(IMAGE, [image, uri, status, transient])
            connection.execute(SOURCE, [image, uri, 1, image, "s", "", ["a"], "{}", None])
    found = listing([RawImage(uri, "a", stamp="s") for uri in ("broken", "ok", "for a while")])
    compared = compare(found, addresses.known(catalog, retry_failed=retry))
    assert [raw.uri for raw in found.take(compared.again)] == expected
    assert not len(compared.new) and not len(compared.doubtful)
    assert addresses.of_hashes(catalog, compared.vanished) == ["not listed"]
    assert not compare(found, addresses.known(catalog), limit=2).again.tolist()
