"""Images in tars, one sample to a key, as WebDataset lays them out.

The listing reads headers and JSON members, never a picture.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, cast

from pipeline import MillError
from pipeline.manifest import Image, Member, WebDatasetSource
from pipeline.sources.columns import MAX_TEXT, caption_of, json_columns, text
from pipeline.sources.files import ABSENT, matching, nowhere, stamp, stamp_of
from pipeline.sources.raw import (
    MAX_BYTES,
    Columns,
    ListingContext,
    ProvidedJson,
    RawImage,
    ReadCaptions,
    Span,
    TarPlace,
    Unreadable,
)
from pipeline.sources.tars import Broken, TarMember, members_of

IMAGES = {
    "jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "jp2",
    "tga", "ico",
}  # fmt: skip
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


def list_tars(source: WebDatasetSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each sample, tar by tar, in the order in which each tar first names them. MillError
    where a tar is compressed, or there is none.
    """
    for path in matching(source.path, *COMPRESSED):
        raise MillError(
            f"source.path: {path} is compressed, and nothing can be read from its middle: unpack it to a"
            " plain .tar."
        )
    tars = matching(source.path, ".tar")
    if not tars:
        raise nowhere(source.path, ".tar")
    provided = {name: given.model_dump() for name, given in source.provided.items()}
    yield from list_samples(tars, TarMembers(source.captions, provided))


@dataclass(frozen=True)
class TarMembers:
    """What a manifest takes of each sample beside its image."""

    captions: Member
    provided: dict[str, ProvidedJson] = field(default_factory=dict)

    @property
    def caption(self) -> str | None:
        """The extension of the member that holds the caption; None = no member does."""
        name = self.captions.get("member") if isinstance(self.captions, dict) else None
        return _extension(name) if name else None

    @cached_property
    def maps(self) -> set[str]:
        """Extensions."""
        names = (given.get(at) for given in self.provided.values() for at in ("column", "mask"))
        return {_extension(name) for name in names if name}

    @cached_property
    def all(self) -> set[str]:
        return self.maps | ({self.caption} if self.caption else set())


def list_samples(tars: list[Path], wanted: TarMembers) -> Iterator[RawImage]:
    """The samples of these tars; a member that is asked for and that no sample has is a MillError."""
    lacking, any_read = wanted.all, False
    for tar in tars:
        samples, problems = _samples(tar)
        try:
            with tar.open("rb") as file:
                version = stamp_of(os.fstat(file.fileno()))
                for key, members in samples.items():
                    lacking -= members.keys()
                    images = _images(members, wanted.maps)
                    raw = _sample(file, tar, key, members, images, wanted)
                    raw = _stamped(raw, version)
                    problems += _second_images(tar, key, members, images)
                    any_read |= not raw.problem
                    yield raw
        except OSError as error:
            problems.append(RawImage(str(tar), "", problem=f"can't be read: {error.strerror}"))
        yield from problems
    if any_read and lacking:
        raise MillError(
            f"{tars[0]}{f' and {len(tars) - 1} more' if len(tars) > 1 else ''}: no sample has a member"
            f" .{min(lacking)}: set `source.captions` to {{member: …}}, {{json: …}}, {{template: …}} or none,"
            " and `source.provided` to members that are there."
        )


def _second_images(
    tar: Path, key: str, members: Mapping[str, TarMember], images: list[str]
) -> list[RawImage]:
    """photo.v1.jpg, photo.v2.jpg: rather two photographs than one with its map."""
    if not images or "." not in images[0]:
        return []
    reason = (
        f"a second image of the sample {key}, since a key ends at the first dot of a name: rename the member"
    )
    return [RawImage(f"{tar}::{members[image][2]}", "", problem=reason) for image in images[1:]]


def _images(members: Mapping[str, TarMember], maps: set[str]) -> list[str]:
    """The extensions of a sample's images, the one to be read first: those without a dot (jpg before
    seg.png), then in name order.
    """
    return sorted(
        (name for name in members if name.rpartition(".")[2] in IMAGES and name not in maps),
        key=lambda name: ("." in name, name),
    )


def _sample(
    file: IO[bytes],
    tar: Path,
    key: str,
    members: Mapping[str, TarMember],
    images: list[str],
    wanted: TarMembers,
) -> RawImage:
    """The first of the images; `fields.images_not_read` names the others."""
    if not images:
        return RawImage(
            f"{tar}::{key}", "", problem=f"the sample has no image, only: {', '.join(sorted(members))}"
        )
    fields: Columns = {}
    if "json" in members:
        offset, size, _ = members["json"]
        file.seek(offset)
        fields = json_columns(file.read(size)) if size <= MAX_TEXT else {"json": f"left out: {size} bytes"}
    if len(images) > 1:
        fields["images_not_read"] = images[1:]
    place: TarPlace = {
        "tar": str(tar),
        "image": members[images[0]][:2],
        "members": {name: members[name][:2] for name in sorted(wanted.all & members.keys())},
    }
    caption: str | None = ""
    if isinstance(wanted.captions, dict):
        caption = wanted.captions.get("template", caption_of(fields, wanted.captions.get("json", "")))
        if wanted.caption and wanted.caption in members:
            caption, place["caption"] = None, wanted.caption  # read with the image
    return RawImage(
        f"{tar}::{members[images[0]][2]}",
        caption,
        fields,
        reader="tar",
        place=place,
        provided=dict(wanted.provided),
    )


def _stamped(raw: RawImage, version: str) -> RawImage:
    """With the stamps of a sample whose tar has this one."""
    place = cast(TarPlace, raw.place)
    if "image" not in place:
        return replace(raw, stamp=version)

    def of(member: str) -> str:
        span = place["members"].get(_extension(member))
        return f"{version}@{span[0]}+{span[1]}" if span else ABSENT

    return replace(
        raw,
        stamp=f"{version}@{place['image'][0]}+{place['image'][1]}",
        caption_stamp=of(place["caption"]) if "caption" in place else "",
        map_stamps={
            condition: " ".join(of(member) for at in ("column", "mask") if (member := given.get(at)))
            for condition, given in raw.provided.items()
        },
    )


def _extension(name: str) -> str:
    return name.lower().lstrip(".")


def _samples(tar: Path) -> tuple[dict[str, dict[str, TarMember]], list[RawImage]]:
    """Key -> extension -> where it lies, wherever in the tar the members of a key stand; and a row for
    whatever is wrong with the tar.
    """
    samples: dict[str, dict[str, TarMember]] = {}
    problems: list[RawImage] = []
    last = None
    try:
        for offset, size, name in members_of(tar):
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
    except Broken as error:
        left_out = "" if error.whole else _drop_unfinished(samples, last)
        problems.append(RawImage(str(tar), "", problem=f"{error}{left_out}"))
    except OSError as error:
        problems.append(RawImage(str(tar), "", problem=f"can't be read: {error.strerror}"))
    return samples, problems


def _drop_unfinished(samples: dict[str, dict[str, TarMember]], last: str | None) -> str:
    """Leaves out the sample at the break unless it has what the one before it has: mended, the tar gives it
    whole.
    """
    before = next((key for key in reversed(samples) if key != last), None)
    if last is None or before is None or samples[last].keys() >= samples[before].keys():
        return ""
    del samples[last]
    return f"; the sample {last} is not whole and left out"


def read_tar(raw: RawImage) -> bytes:
    """The raw bytes of a sample's image; raises Unreadable."""
    place = cast(TarPlace, raw.place)
    data = _bytes(place["tar"], place["image"], "image")
    if not data:
        raise Unreadable("empty file")
    return data


def read_captions(raw: RawImage) -> ReadCaptions:
    """The member that holds the caption; raises Unreadable."""
    place = cast(TarPlace, raw.place)
    span = place["members"][place["caption"]]
    if span[1] > MAX_TEXT:
        raise Unreadable(f"its caption has {span[1]} bytes: too large")
    caption = text(_bytes(place["tar"], span, "caption"))
    return ReadCaptions((caption,) if caption else ())


def read_member(raw: RawImage, column: str) -> bytes:
    """The bytes of another member of the sample, by its extension; raises Unreadable."""
    place = cast(TarPlace, raw.place)
    span = place["members"].get(_extension(column))
    if span is None:
        raise Unreadable(f"the sample has no member .{_extension(column)}")
    return _bytes(place["tar"], span, f".{column}")


def _bytes(tar: str, span: Span, what: str) -> bytes:
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
def _opened(tar: str, version: str) -> IO[bytes]:
    return Path(tar).open("rb")  # closed when the cache lets it go
