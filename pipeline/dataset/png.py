"""What PNG files say beside their pixels: checksums, gamma and colours."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Chunk:
    """A chunk with all its bytes."""

    kind: bytes
    whole: memoryview
    intact: bool  # whether its checksum is right

    @property
    def body(self) -> bytes:
        return bytes(self.whole[8:-4])

    @property
    def critical(self) -> bool:
        return not self.kind[0] & 0x20


def chunks(data: bytes) -> Iterator[Chunk]:
    """Up to the end chunk, or to where the file breaks off."""
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        end = at + 12 + length
        if end > len(data):
            return
        kind = data[at + 4 : at + 8]
        checksum = zlib.crc32(view[at + 4 : end - 4])
        yield Chunk(kind, view[at:end], checksum == int.from_bytes(data[end - 4 : end]))
        if kind == b"IEND":
            return
        at = end


def checked(data: bytes) -> tuple[bytes, str]:
    """The file without those chunks that are broken and only describe it, and what is broken in the others,
    "" for nothing.

    A missing end chunk is nothing: the decoder tells whether pixels are missing.
    """
    parts: list[bytes | memoryview] = [SIGNATURE]
    problem, dropped = "", False
    for chunk in chunks(data):
        if not chunk.intact and not chunk.critical:
            dropped = True
            continue
        if not chunk.intact:
            problem = problem or f"wrong checksum in {chunk.kind.decode('latin-1')}"
        parts.append(chunk.whole)
    return (b"".join(parts) if dropped else data), problem
