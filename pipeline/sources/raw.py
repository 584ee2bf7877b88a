"""One raw image of a source: where it is, and what is known of it before it is read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

MAX_BYTES = 2**29  # of one raw file
LONGEST_SIDE = 2**31 - 1  # pixels that a row can tell

Columns = dict[str, Any]  # what a source says of an image beside its caption, under the source's own names
ProvidedJson = dict[str, str | None]  # a manifest's Provided
DownloadJson = dict[str, Any]  # a manifest's Download, without what stands at its default
Span = Sequence[int]  # offset and size of bytes in a file


class FilePlace(TypedDict):
    """Of an image file: the source's folder, the file that holds its captions, and the cells of a list's row
    that hold maps or name them.
    """

    root: str
    sidecar: NotRequired[str]
    encoding: NotRequired[str]  # of the sidecar, where it is not UTF-8
    cells: NotRequired[Columns]
    download: NotRequired[DownloadJson]  # of an address of the web or of an object store
    login: NotRequired[str]  # user:password, which the address does not show


class TarPlace(TypedDict):
    """Of a tar's sample: where its image and the members that are wanted lie, by extension."""

    tar: str
    image: Span
    members: dict[str, Span]
    caption: NotRequired[str]  # the member that holds it
    encoding: NotRequired[str]  # of the caption, where it is not UTF-8


class TablePlace(TypedDict):
    """Of a table's row: where paths in its cells start, and where it is in its row group, or in the file."""

    file: str
    column: str
    folder: str
    row: int
    group: NotRequired[int]
    download: NotRequired[DownloadJson]  # as in FilePlace
    login: NotRequired[str]


class LimitsJson(TypedDict):
    """Limits of pipeline/scenes."""

    most_objects: int
    least_box: float
    least_visible: float


class ScenePlace(TypedDict):
    """Of a rendered scene."""

    seed: int
    index: int
    size: int
    limits: NotRequired[LimitsJson]


class NoPlace(TypedDict):
    """Of what needs nothing beside its address."""


# JSON, since parts are known by the hash of what they are made from
Place = FilePlace | TarPlace | TablePlace | ScenePlace | NoPlace


@dataclass(frozen=True)
class RawImage:
    """`uri` means the same in every process and later run; a caption of None is read with the image, from a
    sidecar file or a member.

    A stamp is what its address looks like from outside (size and time of a file, ETag of a URL): equal stamps
    mean equal bytes, and what is not known has none.
    """

    uri: str
    caption: str | None = None
    fields: Columns = field(default_factory=dict)  # kept in the catalog
    problem: str = ""  # why there is nothing to read, where the listing knows already
    reader: str = "file"  # a key of pipeline.sources.READERS
    place: Place = field(default_factory=NoPlace)  # what the reader needs beside the uri
    # condition -> where its map is and how it reads (pipeline/dataset/provided.py)
    provided: dict[str, ProvidedJson] = field(default_factory=dict)
    more_captions: tuple[str, ...] = ()  # where the source gives several, those after the first
    stamp: str = ""
    caption_stamp: str = ""  # of the sidecar; "" also where the caption is in the listing
    map_stamps: dict[str, str] = field(default_factory=dict)  # by condition, of the map and its mask


@dataclass(frozen=True)
class ListingContext:
    """What a listing is told beside its source, and where it notes what a person should know of it."""

    without: Path | None = None  # the workspace, which is no source
    spool: Path | None = (
        None  # the folder in which a source that can be read only once keeps what it has read
    )
    notes: list[str] = field(default_factory=list)  # sentences


def image_id(data: bytes) -> str:
    """sha256 of the raw file: the identity of an image."""
    return hashlib.sha256(data).hexdigest()


def clean(text: str) -> str:
    """Text that any file can hold: lone surrogates, which UTF-8 has no bytes for, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class ReadCaptions:
    """What was read beside an image."""

    texts: tuple[str, ...]  # the first is the caption; none where there is no caption
    problem: str = ""  # why a caption that is there could not be read
    may_pass: bool = False  # whether that may be otherwise soon

    @property
    def first(self) -> str:
        return self.texts[0] if self.texts else ""


@dataclass(frozen=True)
class Fetched:
    """What an address holds now."""

    data: bytes
    stamp: str  # as RawImage's


@dataclass(frozen=True)
class Gone:
    """Nothing is at an address any more."""

    reason: str
    http_status: int | None = None


class Unreadable(Exception):
    """Why a raw file gives no image; `width`, `height` and `format` as far as its header told, and the status
    with which a server refused it.
    """

    def __init__(
        self,
        reason: str,
        width: int | None = None,
        height: int | None = None,
        format: str | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(reason)
        # a header may say what no catalog holds; the sentence tells it all the same
        sized = width is not None and height is not None and max(width, height) <= LONGEST_SIDE
        self.width, self.height = (width, height) if sized else (None, None)
        self.format = format
        self.http_status = http_status
