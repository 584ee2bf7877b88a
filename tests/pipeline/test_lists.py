"""Lists as spreadsheets and scripts write them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import MillError, sources
from pipeline.manifest import Image, ListSource, Provided
from pipeline.sources import RawImage


def listed(path: Path, **settings: Any) -> list[RawImage]:
    return sources.listing([ListSource(kind="list", path=str(path), **settings)], Image())


def captions(path: Path, **settings: Any) -> dict[str, tuple[str, ...]]:
    return {
        Path(raw.uri).name: raw.problem or sources.read_captions(raw).texts
        for raw in listed(path, **settings)
    }


PLAIN = {"1.jpg": ("a cat",), "2.jpg": ("a dog; a cow",)}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.csv", 'image,caption\r\n1.jpg,a cat\r\n2.jpg,"a dog; a cow"\r\n'),
        ("l.csv", "\ufeffimage,caption\n1.jpg,a cat\n2.jpg,a dog; a cow"),
        ("l.csv", 'image;caption\n1.jpg;a cat\n2.jpg;"a dog; a cow"\n'),
        ("l.csv", "image\tcaption\n1.jpg\ta cat\n2.jpg\ta dog; a cow\n"),
        ("l.csv", 'sep=;\nimage;caption\n1.jpg;a cat\n2.jpg;"a dog; a cow"\n'),
        ("L.CSV", " image , caption \n1.jpg,a cat\n\n2.jpg,a dog; a cow,\n"),
        ("l.csv", "caption,image,\na cat,1.jpg,\na dog; a cow,2.jpg,\n"),
        ("l.tsv", "image\tcaption\n1.jpg\ta cat\n2.jpg\ta dog; a cow\n"),
        ("l.tsv", "image\tcaption\r\n1.jpg\ta cat\r\n2.jpg\ta dog; a cow\r\n".encode("utf-16")),
        (
            "l.jsonl",
            '\ufeff{"image": "1.jpg", "caption": " a cat "}\r\n{"image": "2.jpg", "caption": "a dog; a cow"}',
        ),
        (
            "L.JSONL",
            '{"image": "1.jpg", "caption": ["a cat"]}\n{"image": "2.jpg", "caption": "a dog; a cow"}\n',
        ),
    ],
)
def test_each_way_to_write_a_list_gives_the_same(tmp_path: Path, name: str, data: str | bytes) -> None:
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    assert captions(tmp_path / name) == PLAIN


@pytest.mark.parametrize(
    ("data", "bad"),
    [
        (
            "image,caption\n1.jpg,a cat, sitting\n2.jpg,b\n",
            {"l.csv:2": "the row has 3 cells where the header has 2"},
        ),
        (
            'image,caption\n2.jpg,b\n1.jpg,"open\n3.jpg,c\n',
            {"l.csv:4": "a quote opens in this row and never closes"},
        ),
        ("image,caption\n,no image\n2.jpg,b\n", {"l.csv:2": "the row has no 'image'"}),
    ],
)
def test_a_bad_row_of_a_csv_is_a_row_with_the_reason(tmp_path: Path, data: str, bad: dict[str, str]) -> None:
    (tmp_path / "l.csv").write_text(data)
    found = listed(tmp_path / "l.csv")
    told = {Path(raw.uri).name: raw.problem for raw in found if raw.problem}
    assert told.keys() == bad.keys() and all(told[name].startswith(reason) for name, reason in bad.items())
    assert [Path(raw.uri).name for raw in found if not raw.problem] == ["2.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "settings", "sentence"),
    [
        ("l.csv", "image,caption,image\n1.jpg,a,2.jpg\n", {}, r"the header has 'image' twice"),
        (
            "l.csv",
            "file,caption\n1.jpg,a\n",
            {},
            r"no row has 'image': set `source\.image_column` .*; there are 'caption', 'file'",
        ),
        ("l.csv", "", {}, r"no row has 'image': set `source\.image_column`"),
        (
            "l.csv",
            "image\n1.jpg\n",
            {"captions": {"column": "text"}},
            r"no row has 'text'.*set `source\.captions\.column`",
        ),
        (
            "l.csv",
            "image\n1.jpg\n",
            {"provided": {"hed": Provided(column="h")}},
            r"set `source\.provided\.hed\.column`",
        ),
        ("l.csv", b"image\n\xe9.jpg\n", {}, r"is not UTF-8 .*: save it as UTF-8"),
        ("l.txt", "1.jpg\n", {}, r"is neither \.jsonl nor \.csv nor \.tsv"),
    ],
)
def test_a_list_that_cannot_be_right_is_one_sentence(
    tmp_path: Path, name: str, data: str | bytes, settings: Any, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(MillError, match=sentence) as caught:
        listed(tmp_path / name, **settings)
    assert "\n" not in str(caught.value)


def test_captions_of_a_list_are_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text(
        '{"image": "1.jpg", "caption": ["one", "two", null, " "], "year": 1999}\n'
        '{"image": "2.jpg", "caption": "first"}\n'
        '{"image": "2.jpg", "caption": "second"}\n'
        '{"image": "2.jpg", "caption": "first"}\n'
        '{"image": "3.jpg", "caption": {"en": "x"}}\n'
        '{"image": "4.jpg"}\n{"image": "4.jpg", "caption": "late"}\n'
    )
    found = listed(tmp_path / "l.jsonl")
    assert [sources.read_captions(raw).texts for raw in found] == [
        ("one", "two"),
        ("first", "second"),
        (),
        ("late",),
    ]
    assert found[0].fields == {"year": 1999} and found[2].fields == {"caption": {"en": "x"}}
    one, *_ = listed(tmp_path / "l.jsonl", captions={"template": "all the same"})
    assert sources.read_captions(one).texts == ("all the same",)


def test_stamps_of_a_list_are_those_of_the_files_it_names(tmp_path: Path) -> None:
    for name in ("1.jpg", "m.png", "mask.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "l.jsonl").write_text(
        '{"image": "1.jpg", "map": "m.png", "mask": "mask.png", "points": [1, 2]}\n'
        '{"image": "none.jpg", "points": [1, 3]}\n'
        '{"image": "package://skimage/data/coffee.png", "points": [1, 2]}\n'
    )
    provided = {
        "depth_large": Provided(column="map", mask="mask", depth="distance"),
        "pose_openpose": Provided(column="points", keypoints="openpose"),
        "hed": Provided(path="{stem}.png"),
    }
    one, none, package = listed(tmp_path / "l.jsonl", provided=provided)

    def mark(name: str) -> str:
        state = (tmp_path / name).stat()
        return f"{state.st_size}:{state.st_mtime_ns}"

    assert (one.stamp, none.stamp, package.stamp[:7]) == (mark("1.jpg"), "-", "466706:")
    assert one.map_stamps["depth_large"] == f"{mark('m.png')} {mark('mask.png')}"
    assert none.map_stamps["depth_large"] == "- -" and none.map_stamps["hed"] == "-"
    points = [raw.map_stamps["pose_openpose"] for raw in (one, none, package)]
    assert points[0] == points[2] != points[1] and points[0].startswith("#")
    os.utime(tmp_path / "mask.png", (0, 0))
    again = listed(tmp_path / "l.jsonl", provided=provided)
    assert (
        again[0].stamp == one.stamp and again[0].map_stamps != one.map_stamps and again[1:] == [none, package]
    )


def test_odd_names_in_a_list_are_addresses_like_others(tmp_path: Path) -> None:
    photos = tmp_path / "lists"
    photos.mkdir()
    names = ["new\nline.jpg", "a'b\".jpg", "../up.jpg"]
    rows = [json.dumps({"image": name}) for name in (*names, "\ud800.jpg", "a\0b")]
    (photos / "l.jsonl").write_text("\n".join(rows))
    for name in names:
        (photos / name).write_text(name)
    *good, half, nul = listed(photos / "l.jsonl")
    assert [sources.read(raw).decode() for raw in good] == names
    for raw in (half, nul):
        with pytest.raises(sources.Unreadable, match=r"No such file|no path: embedded null"):
            sources.read(raw)
