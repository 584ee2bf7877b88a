"""Where the members of a tar lie, from its headers alone, and where a tar breaks."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import MillError

MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
BLOCK = tarfile.BLOCKSIZE
TAIL = 2**20  # bytes after the end mark in which a second tar is looked for


class TarMember(NamedTuple):
    """Where the bytes of a member lie."""

    offset: int
    size: int
    name: str


class Broken(Exception):
    """Where and why a tar can't be read any further; `whole` where no sample can have been torn."""

    def __init__(self, reason: str, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole


def members_of(tar: Path) -> Iterator[TarMember]:
    """Each regular member; raises Broken after the last that is whole."""
    with tar.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        start = file.read(8)
        packed = next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)
        if packed:
            raise MillError(
                f"source.path: {tar} is compressed ({packed}), and nothing can be read from its middle:"
                " unpack it to a plain .tar."
            )
        file.seek(0)
        end = 0
        archive: Any = None
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it owns nothing
            while (member := archive.next()) is not None:
                where, plain = member.offset_data, member.isreg() and not member.issparse()
                # a link tells the size of what it names, a sparse member that of its holes too
                size = member.size if plain else 0
                if size < 0 or where < end + BLOCK or where + size > length:
                    raise Broken(
                        _break(member.offset, length, f"the member {_shown(member.name)} is not whole")
                    )
                end = where + size
                if plain:
                    yield TarMember(where, member.size, _shown(member.name))
                archive.members = []  # a tar of a million members is not kept in memory
        except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
            raise Broken(
                _break(archive.offset if archive else 0, length, str(error) or type(error).__name__)
            ) from error
        file.seek(archive.offset)
        tail = file.read(TAIL)
        if tail[:BLOCK].strip(b"\0"):
            raise Broken(_break(archive.offset, length, "what stands there is no header"))
        if len(tail) < BLOCK:
            raise Broken(_break(archive.offset, length, "it has no end mark"))
        if tail.strip(b"\0"):
            raise Broken(
                f"more data follows the end mark at byte {archive.offset}: two tars were joined; keep them"
                " apart",
                True,
            )


def _break(at: int, length: int, why: str) -> str:
    return f"the tar breaks at byte {at} of {length}: {why}; what lies behind is lost: copy or make it again"


def _shown(name: str) -> str:
    """A member's name in UTF-8; bytes that are none are spelled out, so that two names stay two."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
