"""Tars and what img2dataset wrote: every sample is read as it was written, and whatever is
wrong has a row.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import MillError, sources
from pipeline.manifest import Image, Img2DatasetSource, Provided, WebDatasetSource
from pipeline.sources import RawImage
from pipeline.sources.archives import read_member
from pipeline.sources.raw import Unreadable
from tests.contents import contents

SIZE = Image(resolution=64)
Members = Iterable[tuple[str, bytes]]


def tar(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(key: str, **members: str | bytes) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.{name.replace('_', '.')}", data.encode() if isinstance(data, str) else data)
        for name, data in members.items()
    ]


def listed(path: Path | str, **settings: Any) -> list[RawImage]:
    return sources.listing([WebDatasetSource(kind="webdataset", path=str(path), **settings)], SIZE)


def downloaded(path: Path, **settings: Any) -> list[RawImage]:
    return sources.listing([Img2DatasetSource(kind="img2dataset", path=str(path), **settings)], SIZE)


def problems(found: list[RawImage]) -> dict[str, str]:
    return {raw.uri.rpartition("/")[2]: raw.problem for raw in found if raw.problem}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sample_is_read_as_it_was_written_and_listed_the_same_again(tmp_path: Path, form: int) -> None:
    long = "folder/" + "long" * 40 if form != tarfile.USTAR_FORMAT else "folder/short"
    first = sample(
        "000", cls="3", jpg=b"jpg 0", json='{"url": "http://a", "width": 7, "nan": NaN}', txt=" caption 0\n"
    )
    tar(tmp_path / "tars" / "00000.tar", first + sample("001", jpg=b"jpg 1", txt="caption 1"), form)
    tar(tmp_path / "tars" / "more" / "00001.tar", sample(long, PNG=b"png 2", txt="größer".encode()), form)
    found = listed(tmp_path / "tars")
    root = tmp_path / "tars"
    assert [raw.uri for raw in found] == [
        f"{root}/00000.tar::000.jpg",
        f"{root}/00000.tar::001.jpg",
        f"{root}/more/00001.tar::{long}.PNG",
    ]
    assert [contents(raw) for raw in found] == [
        (b"jpg 0", "caption 0"),
        (b"jpg 1", "caption 1"),
        (b"png 2", "größer"),
    ]
    assert [raw.fields for raw in found] == [{"url": "http://a", "width": 7, "nan": None}, {}, {}]
    assert listed(tmp_path / "tars") == found
    assert listed(f"{root}/**/*.tar") == found and listed(root / "00000.tar") == found[:2]
    assert contents(RawImage(**json.loads(json.dumps(found[2].__dict__)))) == (b"png 2", "größer")


def test_the_members_of_a_key_need_not_stand_together(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [
            ("1.jpg", b"one"),
            ("2.jpg", b"two"),
            ("2.seg.png", b"map 2"),
            ("1.txt", b"caption 1"),
            ("1.seg.png", b"map 1"),
            ("2.txt", b"caption 2"),
        ],
    )
    found = listed(path, provided={"seg_coco": Provided(column="seg.png", labels="coco_stuff_171")})
    assert [contents(raw) for raw in found] == [(b"one", "caption 1"), (b"two", "caption 2")]
    assert [read_member(raw, raw.provided["seg_coco"]["column"]) for raw in found] == [b"map 1", b"map 2"]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ({"member": "title.txt"}, "t"),
        ({"json": "text"}, "j"),
        ({"json": "no such key"}, ""),
        ({"template": "a photograph"}, "a photograph"),
        ("none", ""),
    ],
)
def test_captions_come_from_a_member_a_key_or_a_template(
    tmp_path: Path, captions: Any, expected: str
) -> None:
    path = tar(tmp_path / "a.tar", sample("1", jpg=b"x", json='{"text": " j "}', title_txt="t", txt="other"))
    assert [contents(raw) for raw in listed(path, captions=captions)] == [(b"x", expected)]


@pytest.mark.parametrize(
    ("members", "settings", "images", "told"),
    [  # name: bytes -> what is read of it with which caption, and what is refused
        (
            {"img.001.jpg": "1", "img.001.txt": "one", "img.002.jpg": "2", "img.002.txt": "two"},
            {},
            {"img.001.jpg": "one", "img.002.jpg": "two"},
            {},
        ),
        (
            {"f_2.8mm.jpg": "1", "f_2.8mm.txt": "one", "a.jpg": "2", "a.txt": "two"},
            {},
            {"f_2.8mm.jpg": "one", "a.jpg": "two"},
            {},
        ),
        (  # the second has no caption: photographs of their own or not, nobody knows
            {"v.1.jpg": "1", "v.1.txt": "one", "v.2.jpg": "2", "a.jpg": "a", "a.txt": "a"},
            {},
            {"a.jpg": "a"},
            {"v": "2 images (1.jpg, 2.jpg): set `source.image_member`"},
        ),
        (
            {"v.1.jpg": "1", "v.2.jpg": "2"},
            {"key_dot": "last", "captions": "none"},
            {"v.1.jpg": "", "v.2.jpg": ""},
            {},
        ),
        (
            {"k.image.png": "i", "k.hint.png": "h", "k.txt": "c"},
            {"image_member": "image.png"},
            {"k.image.png": "c"},
            {},
        ),
        (
            {"k.image.png": "i", "k.hint.png": "h", "k.txt": "c", "a.jpg": "a"},
            {},
            {"a.jpg": ""},
            {"k": "2 images (hint.png, image.png)"},
        ),
        (
            {"k.jpg": "i", "k.png": "h", "a.jpg": "a"},
            {"captions": "none"},
            {"a.jpg": ""},
            {"k": "2 images (jpg, png)"},
        ),
        ({"k.jpg": "i", "k.png": "h"}, {"image_member": ".PNG", "captions": "none"}, {"k.png": ""}, {}),
        (
            {"k.jpg": "i", "k.png": "h", "a.jpg": "a"},
            {"image_member": "png", "captions": "none"},
            {"k.png": ""},
            {"a": "no member .png, which `image_member` names, only: jpg"},
        ),
        (
            {
                "x.1.seg.png": "m",
                "x.1.jpg": "1",
                "x.1.txt": "one",
                "x.2.jpg": "2",
                "x.2.seg.png": "m",
                "x.2.txt": "two",
            },
            {"provided": {"seg_coco": Provided(column="seg.png", labels="coco_stuff_171")}},
            {"x.1.jpg": "one", "x.2.jpg": "two"},
            {},
        ),
    ],
)
def test_which_member_is_the_image_is_never_guessed(
    tmp_path: Path, members: dict[str, str], settings: Any, images: dict[str, str], told: dict[str, str]
) -> None:
    path = tar(tmp_path / "a.tar", [(name, data.encode()) for name, data in members.items()])
    found = {raw.uri.partition("::")[2]: raw for raw in listed(path, **settings)}
    assert {name: contents(raw) for name, raw in found.items() if not raw.problem} == {
        name: (members[name].encode(), caption) for name, caption in images.items()
    }
    problems = {name: raw.problem for name, raw in found.items() if raw.problem}
    assert problems.keys() == told.keys()
    assert all(part in problems[name] for name, part in told.items())


def test_whatever_is_no_sample_has_a_row_and_a_hostile_name_never_becomes_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("link.jpg", tarfile.SYMTYPE, str(secret)),
            ("hard.jpg", tarfile.LNKTYPE, "1.jpg"),
            ("dir.jpg", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name, data in [
            ("../../secret.jpg", b"inside"),
            (f"{secret.with_suffix('')}2.jpg", b"absolute"),
            ("caf\udce9.jpg", b"e9"),
            ("caf\udce8.jpg", b"e8"),
            ("code.pyd", b"cos\nsystem\n"),
            ("label.cls", b"1"),
            ("empty.jpg", b""),
            (".hidden.jpg", b"x"),
            ("no extension", b"x"),
            ("twice.jpg", b"1"),
            ("twice.jpg", b"2"),
            ("deep.jpg", b"d"),
            ("deep.json", b"[" * 200_000),
            ("list.jpg", b"l"),
            ("list.json", b"[1]"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = {raw.uri.partition("::")[2]: raw for raw in listed(path, captions="none")}
    assert not {
        name for name in found if "link" in name or "hard" in name or "dir" in name or "hidden" in name
    }
    assert sources.read(found["../../secret.jpg"]) == b"inside"
    assert sources.read(found[f"{secret.with_suffix('')}2.jpg"]) == b"absolute"
    assert sources.read(found["caf\\xe9.jpg"]) == b"e9" and sources.read(found["caf\\xe8.jpg"]) == b"e8"
    assert sources.read(found["twice.jpg"]) == b"1"
    assert found["deep.jpg"].fields == {"json": "left out: nested too deeply"} and found[
        "list.jpg"
    ].fields == {"json": [1]}
    bad = {name.partition("@")[0]: raw.problem for name, raw in found.items() if raw.problem}
    assert bad == {
        "code": "the sample has no image, only: pyd",
        "label": "the sample has no image, only: cls",
        "twice.jpg": "this name stands twice in the tar: the first is read",
    }
    with pytest.raises(Unreadable, match="empty file"):
        sources.read(found["empty.jpg"])


THREE = [
    member
    for number in "123"
    for member in sample(number, jpg=number.encode() * 600, txt=f"caption {number}")
]
EACH = 512 + 1024 + 512 + 512  # bytes of one of these samples


@pytest.mark.parametrize(
    ("length", "whole", "told"),
    [
        (2 * EACH + 700, "12", "breaks at byte 5120 of 5820: the member 3.jpg is not whole"),  # in a picture
        (2 * EACH + 2053, "12", "the sample 3 is not whole and left out"),  # in its caption
        # between the two
        (2 * EACH + 1536, "12", "it has no end mark.*the sample 3 is not whole and left out"),
        (2 * EACH + 1800, "12", "breaks at byte 6656"),  # in a header
        (3 * EACH, "123", "breaks at byte 7680 of 7680: it has no end mark"),
        (100, "", "breaks at byte 0 of 100"),
        (0, "", "breaks at byte 0 of 0"),
    ],
)
def test_a_tar_that_is_cut_gives_its_whole_samples_and_one_row_that_says_where(
    tmp_path: Path, length: int, whole: str, told: str
) -> None:
    path = tar(tmp_path / "a.tar", THREE)
    mended = path.read_bytes()
    path.write_bytes(mended[:length])
    *good, bad = listed(path)
    assert [contents(raw) for raw in good] == [
        (number.encode() * 600, f"caption {number}") for number in whole
    ]
    assert bad.uri == str(path)
    with pytest.raises(Unreadable, match=told):
        sources.read(bad)
    path.write_bytes(mended)
    assert [raw.uri[-5:] for raw in listed(path)] == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_damaged_header_and_two_joined_tars_are_told(tmp_path: Path) -> None:
    data = tar(tmp_path / "a.tar", THREE).read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:EACH] + b"?" * 512 + data[EACH + 512 :])
    *good, bad = listed(tmp_path / "a.tar")
    assert (
        len(good) == 1
        and f"breaks at byte {EACH} of {len(data)}: what stands there is no header" in bad.problem
    )
    (tmp_path / "a.tar").write_bytes(data + data)
    *good, bad = listed(tmp_path / "a.tar")
    assert len(good) == 3 and "two tars were joined" in bad.problem
    for kind in (b"0", b"Z"):  # a size that leads backwards, where a naive reader goes round for ever
        back = bytearray(data)
        # to the caption before it
        back[EACH + 124 : EACH + 136] = b"\xff" * 8 + (-1536).to_bytes(4, "big", signed=True)
        back[EACH + 156 : EACH + 157] = kind
        checksum = 256 + sum(back[EACH : EACH + 148]) + sum(back[EACH + 156 : EACH + 512])
        back[EACH + 148 : EACH + 156] = f"{checksum:06o}\0 ".encode()
        (tmp_path / "a.tar").write_bytes(back)
        *good, bad = listed(tmp_path / "a.tar")
        assert len(good) == 1 and "breaks at byte" in bad.problem


def test_linked_folders_of_tars_are_followed_once(tmp_path: Path) -> None:
    tar(tmp_path / "elsewhere" / "1.tar", sample("1", jpg=b"1"))
    tar(tmp_path / "tars" / "0.tar", sample("0", jpg=b"0"))
    (tmp_path / "tars" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tars" / "back").symlink_to(tmp_path / "tars")
    notes: list[str] = []
    source = WebDatasetSource(kind="webdataset", path=str(tmp_path / "tars"), captions="none")
    found = sources.listing([source], SIZE, notes=notes)
    assert [contents(raw)[0] for raw in found] == [b"0", b"1"]
    assert notes == [f"{tmp_path}/tars: folders that are listed under another name, left out: back"]


def test_captions_in_a_tar_are_lists_or_texts_in_any_encoding(tmp_path: Path) -> None:
    members = [
        *sample("1", jpg=b"1", txt="naïve".encode("utf-16")),
        *sample("2", jpg=b"2", txt=b"caf\xe9", json='{"text": ["one", " ", "two"]}'),
    ]
    path = tar(tmp_path / "a.tar", members)
    one, two = [sources.read_captions(raw) for raw in listed(path)]
    assert one.first == "naïve" and two.texts == () and two.problem.startswith("caption file is not UTF-8")
    assert sources.read_captions(listed(path, encoding="latin-1")[1]).texts == ("café",)
    assert sources.read_captions(listed(path, captions={"json": "text"})[1]).texts == ("one", "two")


def test_the_stamps_of_a_sample_stay_while_its_tar_does(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample("1", jpg=b"x", seg_png=b"m", txt="c") + sample("2", jpg=b"y"))
    provided = {"seg_coco": Provided(column="seg.png", labels="coco_stuff_171")}
    one, two = listed(path, provided=provided)
    assert [one, two] == listed(path, provided=provided)
    marks = {one.stamp, one.caption_stamp, one.map_stamps["seg_coco"], two.stamp}
    assert len(marks) == 4 and all(mark.startswith(f"{path.stat().st_size}:") for mark in marks)
    assert (two.caption_stamp, two.map_stamps) == ("", {"seg_coco": "-"})
    os.utime(path, (0, 0))
    assert not marks & {listed(path, provided=provided)[0].stamp}


def test_a_tar_that_changes_after_it_was_listed_is_a_reason(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", THREE)
    found = listed(path)
    assert sources.read_captions(found[2]).first == "caption 3"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Unreadable, match="it has changed since it was listed"):
        sources.read(found[2])
    path.unlink()
    with pytest.raises(Unreadable, match="No such file"):
        sources.read(found[2])


def test_what_no_sample_has_and_what_is_compressed_is_one_sentence(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample("1", jpg=b"x"))
    with pytest.raises(MillError, match=r"no sample has a member \.txt: set `source\.captions`"):
        listed(path)
    with pytest.raises(MillError, match=r"no sample has a member \.seg\.png"):
        listed(
            path, captions="none", provided={"seg_coco": Provided(column="seg.png", labels="coco_stuff_171")}
        )
    with pytest.raises(MillError, match=r"names no \.tar"):
        listed(tmp_path / "nothing*.tar")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    with pytest.raises(MillError, match=r"b\.tar\.gz is compressed"):
        listed(tmp_path)
    (tmp_path / "b.tar.gz").rename(tmp_path / "b.tar")
    with pytest.raises(MillError, match=r"b\.tar is compressed \(gzip\)"):
        listed(tmp_path / "b.tar")


def test_a_map_that_one_sample_lacks_is_that_samples_reason(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample("1", jpg=b"x", seg_png=b"m") + sample("2", jpg=b"y"))
    one, two = listed(
        path, captions="none", provided={"seg_coco": Provided(column=".seg.png", labels="coco_stuff_171")}
    )
    assert read_member(one, ".seg.png") == b"m" and sources.read(two) == b"y"
    with pytest.raises(Unreadable, match=r"the sample has no member \.seg\.png"):
        read_member(two, ".seg.png")


# img2dataset: what its writers write (img2dataset/writer.py), for two images that came and one that did not
META = [
    {
        "url": f"http://x/{number}",
        "caption": f"caption {number}",
        "key": f"00000000{number}",
        "status": status,
        "error_message": error,
    }
    | {"width": 8, "height": 8, "original_width": 80, "original_height": 60, "sha256": "ab"}
    for number, status, error in (
        (0, "success", None),
        (1, "failed_to_download", "HTTP Error 404: Not Found"),
        (2, "success", None),
    )
]
CAME = [meta for meta in META if meta["status"] == "success"]


def write_tars(root: Path) -> None:
    tar(
        root / "00000.tar",
        [
            it
            for meta in CAME
            for it in sample(
                str(meta["key"]), jpg=b"jpg", json=json.dumps(meta, indent=4), txt=str(meta["caption"])
            )
        ],
    )
    write_table(root)


def write_folders(root: Path) -> None:
    (root / "00000").mkdir(parents=True)
    for meta in CAME:
        for extension, text in (
            ("jpg", "jpg"),
            ("txt", str(meta["caption"])),
            ("json", json.dumps(meta, indent=4)),
        ):
            (root / "00000" / f"{meta['key']}.{extension}").write_text(text)
    write_table(root)


def write_parquet(root: Path) -> None:
    write_table(
        root,
        lambda meta: (
            {"jpg": b"jpg", "txt": meta["caption"]}
            if meta["status"] == "success"
            else {"jpg": None, "txt": None}
        ),
    )


def write_table(root: Path, more: Callable[[dict[str, Any]], dict[str, Any]] = lambda meta: {}) -> None:
    root.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([meta | more(meta) for meta in META]), root / "00000.parquet")
    (root / "00000_stats.json").write_text('{"count": 3, "successes": 2}')


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_tars, "00000.tar::{key}.jpg"),
        (write_folders, "00000/{key}.jpg"),
        (write_parquet, "00000.parquet::{row}"),
    ],
)
@pytest.mark.parametrize("captions", [{"member": "txt"}, {"json": "caption"}])
def test_each_format_of_img2dataset_gives_the_same_images_captions_and_facts(
    tmp_path: Path, write: Callable[[Path], None], name: str, captions: dict[str, str]
) -> None:
    write(tmp_path / "out")
    found = downloaded(tmp_path / "out", captions=captions)
    rows = {"000000000": 0, "000000002": 2}
    assert [raw.uri for raw in found] == [
        f"{tmp_path}/out/{name.format(key=key, row=row)}" for key, row in rows.items()
    ]
    assert [contents(raw) for raw in found] == [(b"jpg", "caption 0"), (b"jpg", "caption 2")]
    for raw, meta in zip(found, CAME, strict=True):
        assert {key: raw.fields[key] for key in ("url", "sha256", "original_width")} == {
            key: meta[key] for key in ("url", "sha256", "original_width")
        }
    assert downloaded(tmp_path / "out", captions=captions) == found


def test_what_img2dataset_did_not_write_is_one_sentence(tmp_path: Path) -> None:
    write_table(tmp_path / "out")
    (tmp_path / "out" / "00000.tfrecord").touch()
    with pytest.raises(MillError, match="holds TFRecord, which can't be read here: set it to"):
        downloaded(tmp_path / "out")
    with pytest.raises(MillError, match="holds none of them: set it to"):
        downloaded(tmp_path / "nowhere")
