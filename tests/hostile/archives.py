"""Hostile archives, tables and lists, each a source of its own."""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.bombs import hostile_pickle
from tests.hostile.bytes_of import blank_png
from tests.hostile.folders import captions, json_captions
from tests.hostile.mutations import mutated
from tests.hostile.pictures import originals

ESCAPES = (
    "/tmp/escaped.jpg",
    "../escaped.jpg",
    "../../../../tmp/escaped.jpg",
    "a/../../escaped.jpg",
    "//x/e.jpg",
)
PLAIN = originals()[0][1]


@dataclass(frozen=True)
class Hostile:
    """A source: the file, and `source:` of a manifest as YAML."""

    path: Path
    source: str


def make(folder: Path, seed: int, count: int) -> list[Hostile]:
    """So many: each kind as it is, then broken."""
    folder.mkdir(parents=True)
    whole = [*_tars(), *_tables(), *_lists()]
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number, 2])
        extension, kind, data = whole[number % len(whole)]
        if number >= len(whole):
            data = mutated(data, rng)
        path = folder / f"{number:04d}.{extension}"
        path.write_bytes(data)
        made.append(Hostile(path, f"{{kind: {kind}, path: {path}}}"))
    return made


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _member(name: str, data: bytes = PLAIN, **changed: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in changed.items():
        setattr(member, key, value)
    return member, data


def _tars() -> Iterator[tuple[str, str, bytes]]:
    made: list[bytes] = [
        _tar([_member(f"{number}.jpg"), _member(f"{number}.txt", text), _member(f"{number}.json", told)])
        for number, (text, told) in enumerate(zip(captions(), json_captions() * 2, strict=False))
    ][:6]
    made.append(_tar([_member(name) for name in ESCAPES]))
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    )
    for kind in kinds:
        link = _member("link.jpg", b"", type=kind, linkname="/etc/passwd", devmajor=1, devminor=5)
        made.append(_tar([link, _member("plain.jpg"), _member("plain.txt", b"plain")]))
    plain = _tar([_member("a.jpg"), _member("a.txt", b"one"), _member("b.jpg"), _member("b.txt", b"two")])
    made += [
        plain, plain[:-700], plain[: len(plain) // 2], plain + plain, plain[512:], b"", bytes(10_240),
        _tar([_member("a.jpg")] * 50), _tar([_member("inner.tar", plain), _member("inner.txt", b"x")]),
        _tar([_member("a.jpg", hostile_pickle()), _member("a.pkl", hostile_pickle()), _member("a.txt",
        b"x")]),
        _tar([_member(f"{number}.txt", b"") for number in range(100_000)], tarfile.USTAR_FORMAT),
        _tar([_member("x" * 5000 + ".jpg"), _member("new\nline.jpg"), _member("\udcff.jpg")]),
        _tar([_member("large.png", blank_png(30_000, 30_000, 1, 0)), _member("large.txt", b"x" * 2**21)]),
        _tar([_member("a.jpg", pax_headers={"size": "99999999999999", "path": "../x.jpg"})]),
        _tar([_member("a.jpg", pax_headers={"GNU.sparse.map": "0,1,9e99", "GNU.sparse.size": "-1"})]),
        _tar([_member("a.jpg", pax_headers={"comment": "x" * 4_000_000})]),
    ]  # fmt: skip
    size = plain[:124] + b"\x80" + b"\xff" * 11 + plain[136:]  # of a member, as a number of 11 bytes
    made += [size, plain[:148] + b"0000000\0" + plain[156:], plain[:124] + b"77777777777\0" + plain[136:]]
    for data in made:
        yield "tar", "webdataset", data
    import gzip

    yield "tar", "webdataset", gzip.compress(bytes(50 * 2**20))
    yield "tar.gz", "webdataset", gzip.compress(plain)


def _parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def _tables() -> Iterator[tuple[str, str, bytes]]:
    texts = ["a", "b", "c", "d"]
    cells: list[Any] = [
        [PLAIN] * 4, [1, 2, 3, 4], [None] * 4, ["/etc/passwd", "../x.jpg", "file:///etc/passwd", "\0"],
        [{"bytes": PLAIN, "path": "../../x"}] * 4, [{"bytes": None, "path": "/etc/passwd"}] * 4,
        [[PLAIN]] * 4,
        [[[1.0]]] * 4, [b""] * 4, [hostile_pickle()] * 4, [True] * 4, [{"bytes": 1}] * 4,
        [{"a": {"b": [1]}}] * 4,
        ["package://os/../../etc/passwd", "http://127.0.0.1:9/x", "s3://x/y", "ftp://x"], ["x" * 10**6] * 4,
        [blank_png(30_000, 30_000, 1, 0), b"<html>", b"\x89PNG", PLAIN[:100]],
    ]  # fmt: skip
    for column in cells:
        yield "parquet", "parquet", _parquet({"image": column, "text": texts})
    captioned: list[Any] = [
        [1, 2, 3, 4], [None, "", "x" * 10**6, "y" * (3 * 10**6)], [["a", "b"]] * 4, [{"a": 1}] * 4,
        [b"\xff"] * 4,
        ["<script>", "'; DROP TABLE x", "\0", "\u202e"], [float("nan")] * 4,
    ]  # fmt: skip
    for column in captioned:
        yield "parquet", "parquet", _parquet({"image": [PLAIN] * 4, "text": column})
    yield "parquet", "parquet", _parquet({"picture": [PLAIN], "text": ["a"]})
    yield (
        "parquet",
        "parquet",
        _parquet({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}),
    )
    many = {f"column{number}": [number] for number in range(5000)}
    yield "parquet", "parquet", _parquet({"image": [PLAIN], "text": ["a"], **many})
    blank = pa.array([bytes(2 * 10**6)] * 300)  # 600 MB that a few bytes stand for
    yield "parquet", "parquet", _parquet({"image": blank, "text": ["a"] * 300}, compression="zstd")
    whole = _parquet({"image": [PLAIN] * 4, "text": texts})
    for data in (whole[:-8], whole[:4] + whole[-8:], whole[:-8] + b"\xff\xff\xff\x7fPAR1", b"PAR1PAR1", b""):
        yield "parquet", "parquet", data


def _lists() -> Iterator[tuple[str, str, bytes]]:
    for rows in (
        [{"image": "/etc/passwd"}, {"image": "../../x.jpg", "caption": "<b>"}, {"image": "/dev/zero"}],
        [{"image": 1}, {"image": None}, {"image": ["a"]}, {"image": {"a": 1}}, {"caption": "x"}],
        [{"image": "http://169.254.169.254/x"}, {"image": "file:///etc/passwd"},
        {"image": "package://a/../b"}],
        [{"image": "a\0b"}, {"image": "a\nb"}, {"image": "\ud800"}, {"image": "x" * 100_000}, {"image": ""}],
        [{"image": "a.jpg", "caption": "x" * 10**6}, {"image": "b.jpg", "caption": ["x"] * 10_000}],
    ):  # fmt: skip
        yield "jsonl", "list", "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    for data in (
        b"[" * 10**6, b'{"image": ' + b"[" * 10**5, b"\xff\xfe\xfd", b"\0" * 1000, b"{" * 10,
        b"null\n1\n[]\n",
        b'{"image": "a", "image": "b"}', b'{"image": NaN, "caption": ' + b"9" * 10_000 + b"}", b'"' * 10**6,
        b'{"image": "a.jpg", "caption": "' + b"x" * (20 * 10**6) + b'"}\n', b"x" * (20 * 10**6),
    ):  # fmt: skip
        yield "jsonl", "list", data
    for rows in (
        [["image", "caption"], ["/etc/passwd", "=cmd|' /C calc'!A0"], ["a", "b", "c", "d"]],
        [["image", "image"], ["a", "b"]], [["x"], ["y"]], [["image"] + [""] * 5000, ["a"] * 5001], [[]],
    ):  # fmt: skip
        file = io.StringIO()
        csv.writer(file).writerows(rows)
        yield "csv", "list", file.getvalue().encode()
    for data in (
        b'image,caption\n"' + b"x" * 10**6,
        b"image\n" + b"a" * 10**6,
        b"sep=\n",
        b"sep=\0\nimage\n",
        b"\r\r\r",
    ):
        yield "csv", "list", data
