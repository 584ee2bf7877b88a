"""What TIFF files say beside their pixels: how many pages they hold, and which strip or tile is broken."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from pipeline.dataset import jpeg

MOST_STRIPS = 2**18  # of one picture, which Pillow lists one by one
SUBFILE, BITS, COMPRESSION, ROWS, JPEG_TABLES = 254, 258, 259, 278, 347  # tags
OFFSETS, COUNTS, TILE_OFFSETS, TILE_COUNTS, TILE_WIDTH, TILE_LENGTH = 273, 279, 324, 325, 322, 323
DEFLATE, JPEG_IN_TIFF = (8, 32946), 7
SLACK = 1024  # bytes that a strip may inflate to beyond what it holds before it is left alone
STEP = 2**16  # bytes of a strip that are inflated at a time
Entry = tuple[int, int]  # how many values a tag has, and its value where there is one


def directories(data: bytes) -> Iterator[dict[int, Entry]]:
    """The tags of each page, as far as the chain of pages leads, and none twice; struct.error where it leads
    out of the file.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    number, tag, start = ("Q", "HHQQ", 8) if big else ("I", "HHII", 4)
    seen: set[int] = set()
    (at,) = struct.unpack_from(order + number, data, start)
    while at and at not in seen:
        seen.add(at)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        at += 8 if big else 2
        each = struct.Struct(order + tag)
        entries = data[at : at + count * each.size]
        if len(entries) < count * each.size:
            raise struct.error("a directory that goes beyond the file")
        yield {
            name: (many, value >> 16 if order == ">" and kind == 3 and many == 1 and not big else value)
            for name, kind, many, value in each.iter_unpack(entries)
        }
        at += count * each.size
        (at,) = struct.unpack_from(order + number, data, at)


def too_many_strips(data: bytes) -> bool:
    """Whether the first page has more strips or tiles than are listed in reasonable time."""
    try:
        first = next(directories(data), {})
    except struct.error:
        return False  # Pillow will tell
    return any(first.get(tag, (0, 0))[0] > MOST_STRIPS for tag in (OFFSETS, TILE_OFFSETS))


def pages(data: bytes) -> int:
    """How many pictures the file holds: smaller copies of a page are none; 1 where the chain breaks off."""
    try:
        return max(sum(not page.get(SUBFILE, (1, 0))[1] & 1 for page in directories(data)), 1)
    except struct.error:
        return 1


def broken_strip(tags: Any, size: tuple[int, int], data: bytes) -> str:
    """What is broken in a strip or tile whose compression has checks that libtiff leaves out; `tags` are
    Pillow's, `size` the stored (width, height).
    """
    tiled = TILE_OFFSETS in tags
    offsets = tags.get(TILE_OFFSETS if tiled else OFFSETS) or ()
    counts = tags.get(TILE_COUNTS if tiled else COUNTS) or ()
    kind, tables = tags.get(COMPRESSION), tags.get(JPEG_TABLES, b"")
    if kind not in (*DEFLATE, JPEG_IN_TIFF):
        return ""
    rows = min(int(tags.get(ROWS, size[1])), size[1])
    wide, high = (int(tags[TILE_WIDTH]), int(tags[TILE_LENGTH])) if tiled else (size[0], rows)
    most = wide * high  # pixels
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=False)):
        strip = data[offset : offset + count]
        if kind == JPEG_IN_TIFF:
            problem = jpeg.problem(tables[:-2] + strip[2:] if tables else strip, most)
        else:
            problem = _inflates(strip, most * sum(-(-bits // 8) for bits in tags.get(BITS, (1,))))
        if problem:
            return f"strip {number}: {problem}"
    return ""


def _inflates(strip: bytes, most: int) -> str:
    """What is broken in it, up to where it has given so many bytes: what follows is not read."""
    inflate, given = zlib.decompressobj(), 0
    try:
        for at in range(0, len(strip), STEP):
            left = strip[at : at + STEP]
            while left and not inflate.eof:
                given += len(inflate.decompress(left, STEP))
                left = inflate.unconsumed_tail
                if given > most + SLACK:
                    return ""
    except zlib.error as error:
        return str(error)
    return "" if inflate.eof else "it ends too early"
