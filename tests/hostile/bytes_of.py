"""Files put together byte by byte: what no writer of pictures would write."""

import struct
import zlib
from collections.abc import Iterable, Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_file(head: bytes, packed: bytes, before: bytes = b"") -> bytes:
    """Of an IHDR and its compressed rows."""
    return b"".join(
        (SIGNATURE, png_chunk(b"IHDR", head), before, png_chunk(b"IDAT", packed), png_chunk(b"IEND", b""))
    )


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each, as far as they follow one another."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


# of an interlaced PNG: first row and column of each pass, and the steps between rows and columns
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def zeros(count: int) -> bytes:
    """So many zero bytes, compressed without holding them."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(count // len(block))]
    return b"".join([*parts, packer.compress(bytes(count % len(block))), packer.flush()])


def blank_png(width: int, height: int, bits: int, kind: int, interlaced: bool = False) -> bytes:
    """Black, of any size: `kind` is PNG's colour type."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]

    def taken(wide: int, high: int) -> int:
        return high * (1 + -(-wide * bits * channels // 8)) if wide and high else 0

    count = (
        sum(taken(len(range(x, width, right)), len(range(y, height, down))) for y, x, down, right in ADAM7)
        if interlaced
        else taken(width, height)
    )
    palette = png_chunk(b"PLTE", bytes(768)) + png_chunk(b"tRNS", b"\x80" * 256) if kind == 3 else b""
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    return png_file(head, zeros(count), before=palette)


def tiff_file(tags: Iterable[tuple[int, int, int, int]], tail: bytes = b"", following: int = 0) -> bytes:
    """Little-endian, of one directory at byte 8 and what lies behind it; each tag is (number, type, count,
    value or offset).
    """
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return (
        b"II*\0" + struct.pack("<IH", 8, len(entries) // 12) + entries + struct.pack("<I", following) + tail
    )


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def icon(data: bytes, side: int = 64) -> bytes:
    """An ICO of one picture, which says of itself what it likes."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(data), 22) + data
