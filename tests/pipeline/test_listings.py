"""What a run listed: in memory or in a file, the same images in the same order, each address once."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import MillError, sources
from pipeline.manifest import FolderSource, Image, ListSource
from pipeline.sources import RawImage, blocks, listed
from pipeline.sources.batches import batch_of, fields_text, raw_images_of
from pipeline.sources.raw import TarPlace
from pipeline.storage.workspace import canonical_json


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every listing is long: it lies in a file, and a list is read in blocks by other processes."""
    monkeypatch.setattr(listed, "IN_MEMORY", 2)
    monkeypatch.setattr(listed, "BATCH", 3)
    monkeypatch.setattr(blocks, "LONG", 1)
    monkeypatch.setattr(blocks, "BLOCK", 64)


def same(one: Any, other: Any) -> bool:
    """As parts are identified."""
    return canonical_json([asdict(raw) for raw in one]) == canonical_json([asdict(raw) for raw in other])


HOSTILE = [
    '{"image": "a.jpg", "caption": " a ", "n": 7, "x": 0.5, "tiny": 1e-7, "huge": 1e16, "z": -0.0}',
    '{"image": "sub/../b.jpg", "caption": "b", "big": 123456789012345678901234567890}',
    '{"image": "./c.jpg", "caption": null, "nan": NaN, "inf": -Infinity, "over": 1e999}',
    '{"image": "d//e.jpg", "caption": ["one", "", "two", "one"]}',
    '{"image": "f.jpg", "caption": {"en": "x"}, "deep": {"b": [1, {"a": null}], "a": true}}',
    '{"image": "caf\u00e9.jpg", "caption": "sm\u00f8r \\ud83d\\ude00 \\ud800", "\\ud800": "\\udfff"}',
    '{"image": "quote.jpg", "q": "\\"\\u0007\u2028"}',
    '{"image": "twice.jpg", "image": "g.jpg", "caption": "x", "caption": "y"}',
    "", "   ", '{"image": "h.jpg"} {}', "not json", "[1]", "7", '{"image": 7}', '{"image": ""}',
    '{"caption": "none"}',
    '  {"image": "i.jpg", "caption": "leading"}  ', '{"image": "nul\\u0000.jpg", "caption": "k"}',
    '{"image": "https://example.org/1.jpg", "caption": "far"}', '{"image": " s3://b/k.jpg", "caption": 5}',
    '{"image": "package://skimage/data/coffee.png", "caption": "p"}', '{"image": "odd://x/y.jpg"}',
    '{"image": "/abs//there.jpg", "caption": ""}', '{"image": ".", "caption": "."}',
    '{"image": "l/", "caption": "l"}',
    '{"image": "a.jpg", "caption": "again", "n": 8}', '{"image": "a.jpg", "caption": "a"}',
    '{"image": "b2.jpg", "caption": "\u00e9"}', '{"image": "b2.jpg", "caption": ["\u00e9", "two"]}',
]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"captions": {"template": "all the same"}},
        {"captions": {"column": "q"}},
        {"image_column": "caption"},
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=repr)
def test_a_long_list_says_what_a_short_one_says(
    settings: dict[str, Any], ending: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "l.jsonl").write_bytes(ending.join(HOSTILE).encode())
    source = ListSource(kind="list", path=str(tmp_path / "l.jsonl"), **settings)
    short = sources.listing([source], Image())
    request.getfixturevalue("long")
    long = sources.listing([source], Image(), spool=tmp_path / "ws" / "spool")
    assert same(short, long) and len(short) == len(long) == len({raw.uri for raw in long})
    assert long == short and not (tmp_path / "ws").exists()
    hashed = [np.concatenate([*each.hashes()]) for each in (short, long)]
    assert (hashed[0] == hashed[1]).all()


def test_a_long_list_ends_with_the_errors_of_a_short_one(long: None, tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    rows = [json.dumps({"image": f"{number}.jpg"}).encode() for number in range(40)]
    path.write_bytes(b"\n".join([*rows, b'{"image": "caf\xe9.jpg"}']))
    with pytest.raises(MillError, match=r"is not UTF-8 .*: save it as UTF-8"):
        sources.listing([ListSource(kind="list", path=str(path))], Image())
    path.write_bytes(b"\n".join(rows))
    with pytest.raises(MillError, match=r"no row has 'picture': set `source.image_column` .*'image'"):
        sources.listing([ListSource(kind="list", path=str(path), image_column="picture")], Image())


def test_a_block_whose_process_died_is_read_here(
    long: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text("".join(json.dumps({"image": f"{number}.jpg"}) + "\n" for number in range(40)))
    monkeypatch.setattr(blocks.sys, "executable", "/bin/false")
    found = sources.listing([ListSource(kind="list", path=str(path))], Image())
    assert [raw.uri for raw in found] == [str(tmp_path / f"{number}.jpg") for number in range(40)]


def test_a_listing_in_a_file_is_read_as_often_and_from_wherever_one_likes(long: None, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"x")
        (tmp_path / f"{number:02d}.txt").write_text(f"caption {number}")
    ws = tmp_path / "ws"
    ws.mkdir()
    found = sources.listing(
        [FolderSource(kind="folder", path=str(tmp_path))], Image(), without=ws, spool=ws / "spool"
    )
    names = [f"{number:02d}.jpg" for number in range(20)]
    assert [Path(raw.uri).name for raw in found] == [Path(raw.uri).name for raw in found] == names
    assert [Path(raw.uri).name for raw in found.take(np.array([3, 4, 17, 2, 2]))] == [
        f"{number:02d}.jpg" for number in (3, 4, 17, 2, 2)
    ]
    assert Path(found[-1].uri).name == "19.jpg" and found[5:7] == [found[5], found[6]]
    assert sources.read_captions(found[7]).texts == ("caption 7",)
    assert not list((ws / "spool").iterdir()), "the file has no name, so that nothing is left of it"
    found.close()


def test_addresses_that_stand_there_twice_are_one_in_the_first_place(long: None) -> None:
    rows = [("a", "1"), ("b", "2"), ("c", None), ("a", "3"), ("d", ""), ("c", "4"), ("a", "1"), ("d", "5")]
    found = listed.Listing()
    for uri, caption in rows:
        found.add(RawImage(uri, caption))
    found.finish()
    assert [(raw.uri, raw.caption, raw.more_captions) for raw in found] == [
        ("a", "1", ("3",)),
        ("b", "2", ()),
        ("c", None, ()),
        ("d", "5", ()),
    ]
    assert len(found) == 4 and sum(map(len, found.hashes())) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"b": 'q"\\\n\x00\x7f\u2028', "a": 1},
        {"x": 1e-7, "y": 1e16, "z": -0.0, "w": 10**30},
        {"t": True, "n": None},
        {"l": [1, {"b": 2, "a": 1.5}]},
        {"\U0001f600": "\uffff", "\uffff": 0},
    ],
    ids=str,
)
def test_fields_are_written_as_their_identity_has_them(fields: dict[str, Any]) -> None:
    assert fields_text(fields) == canonical_json(fields)
    place: TarPlace = {"tar": "t", "image": (1, 2), "members": {}}
    raw = RawImage("a", None, fields, "no", "tar", place, {"c": {"d": None}}, ("m",), "s", "cs", {"c": "x"})
    (back,) = raw_images_of(batch_of([raw]))
    assert same([raw], [back]) and os.fspath(back.uri) == "a"
