"""One raw image of a source: where it is, and what is known of it before it is read."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 2**30  # of one raw file


@dataclass(frozen=True)
class RawImage:
    """`uri` means the same in every process and later run; a caption of None means: look for a sidecar beside
    the file.
    """

    uri: str
    caption: str | None = None
    # further facts that the source tells; kept in the catalog
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # why there is nothing to read, where the listing knows already
    reader: str = "file"  # a key of pipeline.sources.READERS
    place: dict[str, Any] = field(default_factory=dict)  # what the reader needs beside the uri; JSON-able
    # condition -> where its map is and how it reads (pipeline/dataset/provided.py)
    provided: dict[str, dict[str, Any]] = field(default_factory=dict)


def image_id(data: bytes) -> str:
    """sha256 of the raw file: the identity of an image."""
    return hashlib.sha256(data).hexdigest()


def clean(text: str) -> str:
    """Text that any file can hold: lone surrogates, which UTF-8 has no bytes for, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Unreadable(Exception):
    """Why a raw file gives no image; `width`, `height` and `format` as far as its header told."""

    def __init__(
        self, reason: str, width: int | None = None, height: int | None = None, format: str | None = None
    ) -> None:
        super().__init__(reason)
        self.width, self.height, self.format = width, height, format
