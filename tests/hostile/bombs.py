"""Small files that stand for much: memory, time, or another kind of file."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.trial import MARKER
from tests.hostile.bytes_of import (
    blank_png,
    icon,
    jpeg_segment,
    png_chunk,
    png_file,
    tiff_file,
    zeros,
)
from tests.hostile.pictures import SIZE, photograph

SIDE = 10_000  # its square is image.max_pixels: the largest picture that is not refused by its header


class Runs:
    """What makes the marker when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (MARKER,)


def hostile_pickle() -> bytes:
    return pickle.dumps({"state_dict": Runs()})


def bombs() -> Iterator[tuple[str, bytes]]:
    """(file name, bytes)."""
    for make in (_pngs, _jpegs, _tiffs, _others, _foreign):
        yield from make()


def _pngs() -> Iterator[tuple[str, bytes]]:
    for bits, kind in ((1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (8, 6), (16, 4), (16, 6)):
        yield f"large-{bits}-{kind}.png", blank_png(SIDE, SIDE, bits, kind)
    yield "large-interlaced.png", blank_png(SIDE, SIDE, 16, 6, interlaced=True)
    yield "wide.png", blank_png(SIDE**2 // 32, 32, 16, 6)
    yield "over.png", blank_png(30_000, 30_000, 1, 0)
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 1)
    yield "endless.png", png_file(head, zeros(1000))
    yield "65535.png", png_file(struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0), zeros(1000))
    head = struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * SIZE[0]) for _ in range(SIZE[1])))
    much = zeros(200 * 2**20)
    yield "icc.png", png_file(head, rows, png_chunk(b"iCCP", b"p\0\0" + much))
    yield "text.png", png_file(head, rows, png_chunk(b"zTXt", b"t\0\0" + much) * 3)
    yield "itxt.png", png_file(head, rows, png_chunk(b"iTXt", b"t\0\1\0\0\0" + much))
    yield "texts.png", png_file(head, rows, png_chunk(b"tEXt", b"t\0x") * 100_000)
    yield "exif.png", png_file(head, rows, png_chunk(b"eXIf", bytes(8 * 2**20)))
    yield "inflates.png", png_file(head, much)
    turned = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    yield "two-heads.png", png_file(head, rows, png_chunk(b"IHDR", turned))
    yield "frames.png", png_file(head, rows, png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))


def _jpegs() -> Iterator[tuple[str, bytes]]:
    file = io.BytesIO()
    photograph(20).save(file, "JPEG")
    whole = file.getvalue()
    sized = whole.index(b"\xff\xc0") + 5
    for name, side in (("65535", 65535), ("empty", SIDE)):
        yield f"{name}.jpg", whole[:sized] + struct.pack(">HH", side, side) + whole[sized + 4 :]
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, "JPEG", progressive=True)
    large = file.getvalue()
    yield "progressive.jpg", large
    last = large.rindex(b"\xff\xda")
    yield "scans.jpg", large[:-2] + large[last:-2] * 3000 + large[-2:]
    yield "comments.jpg", whole[:2] + jpeg_segment(0xFE, bytes(65_000)) * 200 + whole[2:]
    profile = b"".join(
        jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes((number, 255)) + bytes(65_000))
        for number in range(1, 256)
    )
    yield "icc.jpg", whole[:2] + profile + whole[2:]
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    yield "exif-loop.jpg", whole[:2] + jpeg_segment(0xE1, b"Exif\0\0" + loop) + whole[2:]
    many = b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + struct.pack("<HHII", 0x112, 3, 2**30, 8) * 5000
    yield "exif-tags.jpg", whole[:2] + jpeg_segment(0xE1, b"Exif\0\0" + many) + whole[2:]
    yield "fill.jpg", whole[:2] + b"\xff" * 8_000_000 + whole[2:]
    yield "markers.jpg", whole[:2] + b"\xff\xe0\0\2" * 2_000_000 + whole[2:]
    yield "starts.jpg", b"\xff\xd8" * 4_000_000 + whole


def _tags(width: int, height: int, **changed: int) -> list[tuple[int, int, int, int]]:
    told = {"bits": 8, "packing": 1, "rows": height, "offset": 400, "bytes": width * height} | changed
    return [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, told["bits"]), (259, 3, 1, told["packing"]),
        (262, 3, 1, 1), (273, 4, 1, told["offset"]), (277, 3, 1, told.get("samples", 1)),
        (278, 4, 1, told["rows"]), (279, 4, 1, told["bytes"]),
    ]  # fmt: skip


def _tiffs() -> Iterator[tuple[str, bytes]]:
    small = bytes(300) + bytes(64 * 64)
    yield "loop.tif", tiff_file(_tags(64, 64), small, following=8)
    yield "sub-loop.tif", tiff_file([*_tags(64, 64), (330, 4, 1, 8), (0x8769, 4, 1, 8)], small)
    much = zeros(400 * 2**20)
    packed = _tags(64, 64, packing=8, bytes=len(much))
    yield "inflates.tif", tiff_file(packed, bytes(400 - 8 - 6 - 12 * 9) + much)
    yield "rows.tif", tiff_file(_tags(64, 64, rows=1), small)
    for name, strips in (("strips", 2**20), ("endless-strips", 2**31 - 1)):
        tags = [tag for tag in _tags(SIDE, SIDE, rows=1) if tag[0] not in (273, 279)]
        yield (
            f"{name}.tif",
            tiff_file([*tags, (273, 4, strips, 400), (279, 4, strips, 400)], bytes(8 * 2**20)),
        )
    tiled = [tag for tag in _tags(64, 64) if tag[0] not in (273, 278, 279)]
    for side in (65_536, 2**20):
        tiles = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 400), (325, 4, 1, 4096)]
        yield f"tile-{side}.tif", tiff_file([*tiled, *tiles], small)
    yield "samples.tif", tiff_file(_tags(64, 64, samples=65_535), small)
    for bits in (32, 64):
        deep = [*_tags(SIDE, SIDE, bits=bits), (339, 3, 1, 3)]
        yield f"float-{bits}.tif", tiff_file(deep, bytes(300))
    tags = tiff_file([(number, 4, 2**28, 400) for number in range(4000)], small)
    yield "tags.tif", tags
    pages, size = [], 2 + 12 * 9 + 4
    entries = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(_tags(64, 64)))
    for number in range(20_000):
        pages.append(entries + struct.pack("<I", 8 + size * (number + 1)))
    yield "pages.tif", b"II*\0" + struct.pack("<I", 8) + b"".join(pages)
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, "TIFF", compression="tiff_deflate")
    yield "large.tif", file.getvalue()
    Image.new("F", (SIDE, SIDE)).save(file := io.BytesIO(), "TIFF", compression="tiff_deflate")
    yield "large-float.tif", file.getvalue()


def _others() -> Iterator[tuple[str, bytes]]:
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    head = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0x80, 0, 0) + bytes((0, 0, 0, 255, 255, 255))
    yield "frames.gif", head + frame * 100_000 + b"\x3b"
    wide = b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0x80, 0, 0) + bytes(6)
    yield "canvas.gif", wide + frame * 20_000 + b"\x3b"
    yield (
        "65535.gif",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + frame + b"\x3b",
    )
    black = Image.new("RGB", (SIDE, SIDE))
    for name, kind, options in (
        ("large.webp", "WEBP", {"lossless": True, "method": 0}),
        ("large.avif", "AVIF", {"speed": 10}),
        ("large.jp2", "JPEG2000", {}),
        ("large.bmp", "BMP", {}),
    ):
        if kind != "BMP":
            black.save(file := io.BytesIO(), kind, **options)
            yield name, file.getvalue()
        else:
            small = io.BytesIO()
            photograph(21).save(small, kind)
            yield name, small.getvalue()[:18] + struct.pack("<ii", SIDE, SIDE) + small.getvalue()[26:]
    Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 9)).save(file := io.BytesIO(), "WEBP", lossless=True, method=0)
    yield "large-alpha.webp", file.getvalue()
    photograph(22).save(file := io.BytesIO(), "JPEG2000")
    boxed = file.getvalue()
    sizes = boxed.index(b"\xff\x51") + 6
    for name, at, value in (("lies", 0, SIDE * 3), ("tiles", 16, 1)):
        told = struct.pack(">II", value, value)
        yield f"{name}.jp2", boxed[: sizes + at] + told + boxed[sizes + at + 8 :]
    yield "65535.tga", struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65535, 65535, 24, 0) + bytes(9)
    yield "large.ppm", b"P6 10000 10000 255\n" + bytes(1000)
    yield "digits.pgm", b"P2 " + b"9" * 4_000_000
    yield "comment.ppm", b"P6\n#" + b"x" * 8_000_000 + b"\n8 8 255\n" + bytes(192)
    yield "inside.ico", icon(blank_png(30_000, 30_000, 1, 0))
    yield "inside-rgba.ico", icon(blank_png(16_000, 16_000, 8, 6))
    bitmap = struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)
    yield "inside-bitmap.ico", icon(bitmap + bytes(64))
    yield (
        "many.ico",
        struct.pack("<HHH", 0, 1, 65535) + (struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, 9, 22) * 65535),
    )


def _foreign() -> Iterator[tuple[str, bytes]]:
    yield from (
        ("empty.jpg", b""),
        ("page.jpg", b"<!doctype html><script>alert(1)</script>"),
        ("program.png", b"\x7fELF" + bytes(400)),
        ("script.jpg", b"#!/bin/sh\ntouch /tmp/x\n"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
        ("pickle.jpg", hostile_pickle()),
        ("pickle.tif", hostile_pickle()),
        ("post.jpg", b"%!PS\n(x) run\n"),
        ("post.eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n"),
        ("list.jpg", b"a,b\n" * 100),
        ("zeros.png", bytes(100_000)),
        ("text.webp", b"RIFF\xff\xff\xff\xffWEBP"),
        ("film.avif", b"\0\0\0\x20ftypisom" + bytes(100)),
        ("brands.heic", b"\xff\xff\xff\xffftypheic" + b"mif1" * 9),
        ("short.jxl", b"\xff\x0a\xff"),
        ("boxes.jxl", b"\0\0\0\x0cJXL " + b"\0\0\0\x08free" * 200_000),
    )
    photograph(23).save(file := io.BytesIO(), "PNG")
    yield "page.png", file.getvalue() + b"<script>alert(1)</script>" * 40
    photograph(24).save(file := io.BytesIO(), "JPEG")
    yield "archive.jpg", file.getvalue() + b"PK\x03\x04" + bytes(100)
    yield "wrong.png", file.getvalue()
