"""Lists and maps that lie on the web or in an object store: read one at a time."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from pipeline import MillError
from pipeline.manifest import Download, ListSource
from pipeline.sources.far.addresses import far, local_path, reader_of, scheme_of
from pipeline.sources.raw import MAX_BYTES, FilePlace, Place, RawImage, Unreadable


@dataclass(frozen=True)
class Copy:
    """Of a list that lies far away."""

    path: str  # here
    name: str  # the list's address, without what is secret in it
    folder: str  # at which relative addresses begin


@contextmanager
def near(source: ListSource) -> Iterator[Copy | None]:
    """A copy, which stays while the context does; None of a list that lies here. MillError where it can't
    be had.
    """
    address = local_path(source.path)
    if not scheme_of(address):
        yield None
        return
    raw = far(RawImage(""), address, source.download.model_copy(update={"max_bytes": MAX_BYTES}))
    if reader_of(address) is None:
        raise MillError(
            f"source.path: {scheme_of(address)}:// is no kind of address that a list is read from."
        )
    name = re.split(r"[?#]", raw.uri)[0] if raw.reader == "url" else raw.uri
    try:
        data = _read(raw)
    except Unreadable as error:
        raise MillError(f"source.path: the list {name} can't be read: {error}.") from error
    with tempfile.TemporaryDirectory(prefix="controlmill-list-") as folder:
        copy = Path(folder, f"list{PurePosixPath(name).suffix}")
        copy.write_bytes(data)
        yield Copy(str(copy), name, name.rpartition("/")[0])


def read_far(address: str, place: Place) -> bytes:
    """The bytes of a map that a cell names; `place` is that of its image. Raises Unreadable."""
    return _read(
        far(RawImage(""), address, Download.model_validate(cast(FilePlace, place).get("download", {})))
    )


def _read(raw: RawImage) -> bytes:
    """Loads what reads it: a list that lies here needs neither library."""
    if raw.reader == "url":
        from pipeline.sources.far.urls import read_text

        return read_text(raw)
    from pipeline.sources.far.objects import read_object

    return read_object(raw)
