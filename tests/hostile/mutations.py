"""How a whole file is broken: each a function of the file and of a random generator, bytes to bytes."""

import struct
from collections.abc import Callable

import numpy as np

from tests.hostile.bytes_of import SIGNATURE, png_chunk, png_chunks

NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER = 256  # bytes in which most of what a decoder believes stands
Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]


def mutated(data: bytes, rng: Rng) -> bytes:
    """Broken once to three times."""
    for _ in range(int(rng.integers(1, 4))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
    return data


def _span(data: bytes, rng: Rng) -> tuple[int, int]:
    first, last = sorted(int(at) for at in rng.integers(0, len(data) + 1, 2))
    return first, min(last, first + 4096)


def flip_bits(data: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(0, max(len(data), 1), int(rng.integers(1, 40))) if data else ():
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_header(data: bytes, rng: Rng) -> bytes:
    return flip_bits(data[:HEADER], rng) + data[HEADER:]


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(0, len(data) + 1))]


def behead(data: bytes, rng: Rng) -> bytes:
    return data[int(rng.integers(0, min(len(data), 64) + 1)) :]


def blank(data: bytes, rng: Rng) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + bytes(last - first) + data[last:]


def noise(data: bytes, rng: Rng) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + rng.bytes(last - first) + data[last:]


def twice(data: bytes, rng: Rng) -> bytes:
    first, last = _span(data, rng)
    return data[:last] + data[first:last] * int(rng.integers(1, 9)) + data[last:]


def swapped(data: bytes, rng: Rng) -> bytes:
    first, middle, last = sorted(int(at) for at in rng.integers(0, len(data) + 1, 3))
    return data[:first] + data[middle:last] + data[first:middle] + data[last:]


def dropped(data: bytes, rng: Rng) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + data[last:]


def number(data: bytes, rng: Rng) -> bytes:
    """One of the numbers that programs trip over, where the header has others."""
    form = ("<H", ">H", "<I", ">I")[int(rng.integers(4))]
    value = NUMBERS[int(rng.integers(len(NUMBERS)))] & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
    at = int(rng.integers(0, min(len(data), HEADER) + 1))
    told = struct.pack(form, value)
    return data[:at] + told + data[at + len(told) :]


def appended(data: bytes, rng: Rng) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 2048)))


def parts(data: bytes, rng: Rng) -> bytes:
    """Chunks of a PNG or segments of a JPEG: dropped, doubled, in another order or changed, with checksums
    that fit, so that a decoder goes on to what they say.
    """
    if data.startswith(SIGNATURE):
        chunks = list(png_chunks(data))
        if len(chunks) > 2:
            at, to = (int(place) for place in rng.integers(0, len(chunks), 2))
            match int(rng.integers(4)):
                case 0:
                    del chunks[at]
                case 1:
                    chunks.insert(to, chunks[at])
                case 2:
                    chunks[at], chunks[to] = chunks[to], chunks[at]
                case _:
                    chunks[at] = chunks[at][0], number(chunks[at][1], rng)
        return SIGNATURE + b"".join(png_chunk(kind, body) for kind, body in chunks)
    if data.startswith(b"\xff\xd8"):
        pieces = data.split(b"\xff")
        at, to = (int(place) for place in rng.integers(1, max(len(pieces), 2), 2))
        pieces.insert(min(to, len(pieces)), pieces[min(at, len(pieces) - 1)])
        return b"\xff".join(pieces)
    return number(data, rng)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_header, cut, behead, blank, noise, twice, swapped, dropped, number, number, appended,
    parts, parts, parts,
)  # fmt: skip
