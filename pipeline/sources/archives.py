"""Images in tars, one sample to a key, as WebDataset lays them out.

The listing reads headers and JSON members, never a picture.
"""

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from pipeline import MillError
from pipeline.manifest import Image, WebDatasetSource
from pipeline.sources.facts import MAX_TEXT, caption_of, json_facts, matching, nowhere, stamp, text
from pipeline.sources.raw import MAX_BYTES, RawImage, Unreadable

IMAGES = {
    "jpg",
    "jpeg",
    "jpe",
    "png",
    "webp",
    "gif",
    "bmp",
    "dib",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "jp2",
    "tga",
    "ico",
}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
BLOCK = tarfile.BLOCKSIZE
TAIL = 2**20  # bytes after the end mark in which a second tar is looked for

Member = tuple[int, int, str]  # offset and size of its bytes, and its name


def list_tars(source: WebDatasetSource, image: Image) -> Iterator[RawImage]:
    """One RawImage for each sample, tar by tar, in the order in which each tar first names them."""
    for path in matching(source.path, *COMPRESSED):
        raise MillError(
            f"source.path: {path} is compressed, and nothing can be read from its middle: unpack it to a"
            " plain .tar."
        )
    tars = matching(source.path, ".tar")
    if not tars:
        raise nowhere(source.path, ".tar")
    yield from list_samples(
        tars, source.captions, {name: it.model_dump() for name, it in source.provided.items()}
    )


def list_samples(
    tars: list[Path], captions: Any, provided: Mapping[str, dict[str, Any]]
) -> Iterator[RawImage]:
    """The samples of these tars; a member that is asked for and that no sample has is a MillError."""
    caption = captions.get("member") if isinstance(captions, dict) else None
    maps = {_extension(it[at]) for it in provided.values() for at in ("column", "mask") if it.get(at)}
    asked = maps | ({_extension(caption)} if caption else set())
    lacking, found = set(asked), False
    for tar in tars:
        samples, problems = _samples(tar)
        try:
            with tar.open("rb") as file:
                for key, members in samples.items():
                    lacking -= members.keys()
                    images = _images(members, maps)
                    raw = _sample(file, tar, key, members, images, captions, asked)
                    # photo.v1.jpg, photo.v2.jpg: rather two photographs than one with its map
                    if len(images) > 1 and "." in images[0]:
                        reason = (
                            f"a second image of the sample {key}, since a key ends at the first dot of a"
                            " name: rename the member"
                        )
                        problems += [
                            RawImage(f"{tar}::{members[it][2]}", "", problem=reason) for it in images[1:]
                        ]
                    found |= not raw.problem
                    yield raw if raw.problem else _with(raw, provided)
        except OSError as error:
            problems.append(RawImage(str(tar), "", problem=f"can't be read: {error.strerror}"))
        yield from problems
    if found and lacking:
        raise MillError(
            f"{tars[0]}{f' and {len(tars) - 1} more' if len(tars) > 1 else ''}: no sample has a member"
            f" .{min(lacking)}: set `source.captions` to {{member: …}}, {{json: …}}, {{template: …}} or none,"
            " and `source.provided` to members that are there."
        )


def _with(raw: RawImage, provided: Mapping[str, dict[str, Any]]) -> RawImage:
    raw.provided.update(provided)
    return raw


def _images(members: Mapping[str, Member], maps: set[str]) -> list[str]:
    """The extensions of a sample's images, the one to be read first: those without a dot (jpg before
    seg.png), then in name order.
    """
    return sorted(
        (it for it in members if it.rpartition(".")[2] in IMAGES and it not in maps),
        key=lambda it: ("." in it, it),
    )


def _sample(
    file: IO[bytes],
    tar: Path,
    key: str,
    members: Mapping[str, Member],
    images: list[str],
    captions: Any,
    asked: set[str],
) -> RawImage:
    """The first of the images; `fields.images_not_read` names the others."""
    if not images:
        return RawImage(
            f"{tar}::{key}", "", problem=f"the sample has no image, only: {', '.join(sorted(members))}"
        )
    fields: dict[str, Any] = {}
    if "json" in members:
        offset, size, _ = members["json"]
        file.seek(offset)
        fields = json_facts(file.read(size)) if size <= MAX_TEXT else {"json": f"left out: {size} bytes"}
    if len(images) > 1:
        fields["images_not_read"] = images[1:]
    place: dict[str, Any] = {"tar": str(tar), "image": members[images[0]][:2]}
    place["members"] = {it: members[it][:2] for it in sorted(asked & members.keys())}
    caption: str | None = ""
    if isinstance(captions, dict):
        caption = captions.get("template", caption_of(fields, captions.get("json", "")))
        if _extension(captions.get("member", "")) in members:
            caption, place["caption"] = None, _extension(captions["member"])  # read with the image
    return RawImage(f"{tar}::{members[images[0]][2]}", caption, fields, reader="tar", place=place)


def _extension(name: str) -> str:
    return name.lower().lstrip(".")


def _samples(tar: Path) -> tuple[dict[str, dict[str, Member]], list[RawImage]]:
    """Key -> extension -> where it lies, wherever in the tar the members of a key stand; and a row for
    whatever is wrong with the tar.
    """
    samples: dict[str, dict[str, Member]] = {}
    problems: list[RawImage] = []
    last = None
    try:
        for offset, size, name in _members(tar):
            folder, _, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            if not stem or not extension:  # hidden, or of no kind
                continue
            key, extension = f"{folder}/{stem}" if "/" in name else stem, extension.lower()
            if extension in samples.setdefault(key, {}):
                reason = "this name stands twice in the tar: the first is read"
                problems.append(RawImage(f"{tar}::{name}@{offset}", "", problem=reason))
                continue
            samples[key][extension] = (offset, size, name)
            last = key
    except _Broken as error:
        left_out = "" if error.whole else _drop_unfinished(samples, last)
        problems.append(RawImage(str(tar), "", problem=f"{error}{left_out}"))
    except OSError as error:
        problems.append(RawImage(str(tar), "", problem=f"can't be read: {error.strerror}"))
    return samples, problems


class _Broken(Exception):
    """Where and why a tar can't be read any further; `whole` where no sample can have been torn."""

    def __init__(self, reason: str, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole


def _drop_unfinished(samples: dict[str, dict[str, Member]], last: str | None) -> str:
    """Leaves out the sample at the break unless it has what the one before it has: mended, the tar gives it
    whole.
    """
    before = next((key for key in reversed(samples) if key != last), None)
    if last is None or before is None or samples[last].keys() >= samples[before].keys():
        return ""
    del samples[last]
    return f"; the sample {last} is not whole and left out"


def _members(tar: Path) -> Iterator[Member]:
    """Each regular member; raises _Broken after the last that is whole."""
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
        end, archive = 0, None  # type: int, Any
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it owns nothing
            while (member := archive.next()) is not None:
                where, plain = member.offset_data, member.isreg() and not member.issparse()
                # a link tells the size of what it names, a sparse member that of its holes too
                size = member.size if plain else 0
                if size < 0 or where < end + BLOCK or where + size > length:
                    raise _Broken(
                        _break(member.offset, length, f"the member {_shown(member.name)} is not whole")
                    )
                end = where + size
                if plain:
                    yield where, member.size, _shown(member.name)
                archive.members = []  # a tar of a million members is not kept in memory
        except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
            raise _Broken(
                _break(archive.offset if archive else 0, length, str(error) or type(error).__name__)
            ) from error
        file.seek(archive.offset)
        tail = file.read(TAIL)
        if tail[:BLOCK].strip(b"\0"):
            raise _Broken(_break(archive.offset, length, "what stands there is no header"))
        if len(tail) < BLOCK:
            raise _Broken(_break(archive.offset, length, "it has no end mark"))
        if tail.strip(b"\0"):
            raise _Broken(
                f"more data follows the end mark at byte {archive.offset}: two tars were joined; keep them"
                " apart",
                True,
            )


def _break(at: int, length: int, why: str) -> str:
    return f"the tar breaks at byte {at} of {length}: {why}; what lies behind is lost: copy or make it again"


def _shown(name: str) -> str:
    """A member's name in UTF-8; bytes that are none are spelled out, so that two names stay two."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_tar(raw: RawImage) -> tuple[bytes, str]:
    """The raw bytes and the caption of a sample; raises Unreadable."""
    data = _bytes(raw.place["tar"], raw.place["image"], "image")
    if not data:
        raise Unreadable("empty file")
    return data, raw.caption if raw.caption is not None else _caption(raw)


def _caption(raw: RawImage) -> str:
    span = raw.place["members"][raw.place["caption"]]
    if span[1] > MAX_TEXT:
        raise Unreadable(f"its caption has {span[1]} bytes: too large")
    return text(_bytes(raw.place["tar"], span, "caption"))


def read_member(raw: RawImage, column: str) -> bytes:
    """The bytes of another member of the sample, by its extension; raises Unreadable."""
    span = raw.place["members"].get(_extension(column))
    if span is None:
        raise Unreadable(f"the sample has no member .{_extension(column)}")
    return _bytes(raw.place["tar"], span, f".{column}")


def _bytes(tar: str, span: Sequence[int], what: str) -> bytes:
    offset, size = span
    if size > MAX_BYTES:
        raise Unreadable(f"too large: {size} bytes")
    try:
        data = os.pread(_opened(tar, stamp(tar)).fileno(), size, offset)
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror}") from error
    if len(data) != size:
        raise Unreadable(f"the tar ends within its {what}: it has changed since it was listed")
    return data


@lru_cache(maxsize=8)
def _opened(tar: str, version: tuple[int, int]) -> IO[bytes]:
    return Path(tar).open("rb")  # closed when the cache lets it go
