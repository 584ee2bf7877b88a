"""JPEG by libjpeg-turbo: scaled down on the way where the picture is large, and refused where it is damaged.

The decoder stops at the first warning. A warning may be harmless: no end marker, a strange header, zeros
behind the last scan. So the file is then written again from its tables and scans alone; if that decodes
without a warning, nothing of the picture is missing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SOI, EOI, SOS, DRI = 0xD8, 0xD9, 0xDA, 0xDD
APP0, APP14 = 0xE0, 0xEE  # JFIF and Adobe: they tell which colours the channels are
TABLES = (0xC4, 0xDB, 0xCC, DRI, APP14)  # Huffman, quantization, arithmetic coding, restarts, Adobe
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xCA)
END_OF_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # a marker that is neither stuffing nor a restart
FACTORS = (8, 4, 2)
FILL = re.compile(rb"\xff+")
MOST_MARKERS = 100_000  # before the picture: readers go through them one by one
MOST_SCANS = 100  # each is as much work as a picture; no writer makes a quarter of these
CUT = "Premature end of JPEG file"  # of libjpeg's words
ODD_SAMPLING = "subsampling level"  # of TurboJPEG's words
MARGIN = 1.25  # a scaled picture is at least this much larger than what is made of it


class Damaged(Exception):
    """What is broken in a file, in its decoder's words."""


class Unusual(Exception):
    """A file whose channels are sampled as TurboJPEG does not know; libjpeg reads it all the same."""


def check_length(data: bytes) -> None:
    """Damaged where more stands before the picture than any writer puts there, fill bytes included."""
    at = 2
    for _ in range(MOST_MARKERS):
        marker = data[at + 1 : at + 2]
        if data[at : at + 1] != b"\xff" or at + 4 > len(data) or marker[0] in (SOS, EOI):
            return
        if marker[0] in (0, 1, 0xFF) or 0xD0 <= marker[0] <= SOI:
            at += 1 if marker[0] == 0xFF else 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    raise Damaged(f"more than {MOST_MARKERS} markers before the picture")


@dataclass(frozen=True)
class Segment:
    """A marker with what belongs to it."""

    marker: int
    body: bytes  # without marker and length
    end: int  # where it ends in the file; behind a SOS, entropy-coded data with its restart markers follow


def factor(ratio: float) -> int:
    """By how much a JPEG is scaled down while it is decoded, when `ratio` times fewer pixels a side are
    wanted.

    Powers of two alone: libjpeg-turbo has fast transforms for them.
    """
    return next((step for step in FACTORS if ratio >= step * MARGIN), 1)


def decode(data: bytes, colours: str, size: tuple[int, int], step: int, keep: bool) -> tuple[np.ndarray, str]:
    """uint8 [h, w, c] and what is damaged; `size` is the stored (height, width), `step` a factor.

    `colours` is RGB, GRAY or CMYK. Raises Damaged, with `keep` only where nothing can be decoded, and
    Unusual.
    """
    problem, rewritten = _incomplete(data), b""
    if not problem:
        try:
            return _decode(data, colours, size, step, strict=True), ""
        except ValueError as error:
            problem = str(error).replace(CUT, f"image file is truncated ({CUT})")
        if ODD_SAMPLING in problem:
            raise Unusual
        try:
            rewritten = _rewritten(data)
            if not _incomplete(rewritten):
                return _decode(rewritten, colours, size, step, strict=True), ""
        except ValueError:
            pass
    if not keep:
        raise Damaged(problem)
    for file in (data, rewritten):
        try:
            return _decode(file, colours, size, step, strict=False), problem
        except ValueError:
            continue
    raise Damaged(problem)


def problem(data: bytes, most: int) -> str:
    """What is damaged in a JPEG of any colours and at most so many pixels, "" for nothing."""
    import simplejpeg

    try:
        check_length(data)
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > most:
            return f"{width}×{height} is more than its place has"
        decode(data, "CMYK" if colours in ("CMYK", "YCCK") else "RGB", (height, width), 1, keep=False)
    except Unusual:
        return ""
    except (ValueError, Damaged) as error:
        return str(error)
    return ""


def _decode(data: bytes, colours: str, size: tuple[int, int], step: int, strict: bool) -> np.ndarray:
    import simplejpeg

    height, width = (-(-side // step) for side in size)
    pixels = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width, strict=strict)
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"decoded to {pixels.shape[1]}×{pixels.shape[0]}, not to {width}×{height}")
    return pixels


def _segments(data: bytes) -> Iterator[Segment]:
    """The segments up to the end marker, or the end of the data; ValueError where they don't follow one
    another.
    """
    at = 2
    while at < len(data):
        fill = FILL.search(data, at)  # what lies between segments is nothing
        if fill is None or fill.end() + 3 > len(data):
            return
        at = fill.end() - 1
        marker, at = data[at + 1], at + 2
        if marker == EOI:
            return
        if marker in (0, 1) or 0xD0 <= marker <= SOI:  # no length follows these
            continue
        length = int.from_bytes(data[at : at + 2])
        if length < 2 or at + length > len(data):
            raise ValueError("a segment that goes beyond the file")
        body, at = data[at + 2 : at + length], at + length
        yield Segment(marker, body, at)
        if marker == SOS:
            at = _scan_end(data, at)


def _scan_end(data: bytes, start: int) -> int:
    marker = END_OF_SCAN.search(data, start)
    return marker.start() if marker else len(data)


def _rewritten(data: bytes) -> bytes:
    """The same picture without anything that only describes it, and with an end marker; ValueError where
    that can't be.
    """
    parts = [bytes((0xFF, SOI))]
    progressive = False
    for segment in _segments(data):
        marker, body, scan = segment.marker, segment.body, b""
        progressive |= marker in PROGRESSIVE
        if marker == APP0 and body[:5] == b"JFIF\0":
            body = b"JFIF\0\1\1\0\0\1\0\1\0\0"
        elif marker == SOS:
            if not progressive:
                body = body[:-3] + b"\0\x3f\0"  # some cameras write others, which mean nothing here
            scan = data[segment.end : _scan_end(data, segment.end)].rstrip(b"\0")  # zeros behind it
            scan += b"\0" if scan.endswith(b"\xff") else b""
        elif marker not in TABLES and marker not in FRAMES:
            continue
        parts += [bytes((0xFF, marker)), (len(body) + 2).to_bytes(2), body, scan]
    return b"".join([*parts, bytes((0xFF, EOI))])


def _incomplete(data: bytes) -> str:
    """What scans the picture lacks, "" for none: the decoder draws such a picture without a word. Damaged
    where there are more than any writer makes.

    Of a picture in one scan, the usual case, only what stands before it is read.
    """
    progressive, scans = False, 0
    left: dict[int, np.ndarray] = {}  # component -> for each of its 64 coefficients, the bits still to come
    try:
        for segment in _segments(data):
            body = segment.body
            if segment.marker in FRAMES:
                progressive = segment.marker in PROGRESSIVE
                left = {name: np.full(64, 99) for name in body[6::3]}
            elif segment.marker == SOS:
                if not progressive and body[0] == len(left):
                    return ""
                scans += 1
                if scans > MOST_SCANS:
                    raise Damaged(f"more than {MOST_SCANS} scans")
                first, last, bits = body[-3:] if progressive else (0, 63, 0)
                for name in left.keys() & set(body[1 : 1 + 2 * body[0] : 2]):
                    left[name][first : last + 1] = bits & 15
    except (ValueError, IndexError):
        return ""  # the decoder will tell
    if any(bits.any() for bits in left.values()):
        return "scans are missing: the file ends before the picture is complete"
    return ""
