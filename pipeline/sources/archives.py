"""Images in tars, one sample to a key, as WebDataset lays them out.

The listing reads headers and JSON members, never a picture.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Literal, cast

from pipeline import MillError
from pipeline.manifest import Image, Member, WebDatasetSource
from pipeline.sources.columns import MAX_TEXT, captions_under, json_columns
from pipeline.sources.files import ABSENT, matching, nowhere, stamp, stamp_of
from pipeline.sources.names import PICTURES
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
from pipeline.sources.sidecars import read_text
from pipeline.sources.tars import Broken, TarMember, members_of

Sample = dict[str, TarMember]  # its members, by extension
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
    tars = matching(source.path, ".tar", notes=context.notes)
    if not tars:
        raise nowhere(source.path, ".tar")
    yield from list_samples(tars, TarMembers.of(source))


@dataclass(frozen=True)
class TarMembers:
    """What a manifest takes of each sample."""

    captions: Member
    provided: dict[str, ProvidedJson] = field(default_factory=dict)
    image: str | None = None  # the extension of the member that is the image, where the manifest says it
    key_dot: Literal["first", "last"] = "first"  # of a name, where its key ends
    encoding: str = "utf-8"

    @classmethod
    def of(cls, source: WebDatasetSource) -> "TarMembers":
        provided = {name: given.model_dump() for name, given in source.provided.items()}
        image = _extension(source.image_member) if source.image_member else None
        return cls(source.captions, provided, image, source.key_dot, source.encoding)

    @cached_property
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

    @cached_property
    def dotted(self) -> list[str]:
        """Extensions of these that hold dots themselves, the longest first."""
        named = self.all | ({self.image} if self.image else set())
        return sorted((name for name in named if "." in name), key=len, reverse=True)

    def images(self, members: Sample) -> list[str]:
        """The extensions of the members that may be the image, sorted."""
        if self.image:
            return [self.image] if self.image in members else []
        return sorted(
            name for name in members if name.rpartition(".")[2] in PICTURES and name not in self.maps
        )


def list_samples(tars: list[Path], wanted: TarMembers) -> Iterator[RawImage]:
    """The samples of these tars; a member that is asked for and that no sample has is a MillError."""
    lacking, any_read = wanted.all, False
    for tar in tars:
        samples, problems = _samples(tar)
        try:
            with tar.open("rb") as file:
                version = stamp_of(os.fstat(file.fileno()))
                for key, members in _split_keys(samples, wanted):
                    lacking -= members.keys()
                    raw = _stamped(_sample(file, tar, key, members, wanted), version)
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


def _split_keys(samples: dict[str, Sample], wanted: TarMembers) -> Iterator[tuple[str, Sample]]:
    """Samples whose keys end at the first dot, as WebDataset has it; at the last where the manifest says so,
    or where every part then has one image and its own caption, which leaves no doubt.
    """
    caption = wanted.caption or (
        "json" if isinstance(wanted.captions, dict) and "json" in wanted.captions else None
    )
    for key, members in samples.items():
        whole = len(wanted.images(members)) == 1 and (caption is None or caption in members)
        if whole and wanted.key_dot == "first":
            yield key, members
            continue
        parts = _by_last_dot(key, members, wanted.dotted)
        certain = caption is not None and all(
            len(wanted.images(part)) == 1 and caption in part for part in parts.values()
        )
        yield from parts.items() if certain or wanted.key_dot == "last" else [(key, members)]


def _by_last_dot(key: str, members: Sample, dotted: list[str]) -> dict[str, Sample]:
    """The members of a key apart, where keys end at the last dot, or before one of these extensions."""
    parts: dict[str, Sample] = {}
    for name, member in members.items():
        known = next((end for end in dotted if name == end or name.endswith(f".{end}")), None)
        kind = known or name.rpartition(".")[2]
        middle = member.name[len(key) + 1 :][: len(name) - len(kind)].rstrip(".")
        parts.setdefault(f"{key}.{middle}" if middle else key, {})[kind] = member
    return parts


def _sample(file: IO[bytes], tar: Path, key: str, members: Sample, wanted: TarMembers) -> RawImage:
    images = wanted.images(members)
    if len(images) != 1:
        return RawImage(f"{tar}::{key}", "", problem=_without_image(images, members, wanted))
    fields: Columns = {}
    if "json" in members:
        offset, size, _ = members["json"]
        file.seek(offset)
        fields = json_columns(file.read(size)) if size <= MAX_TEXT else {"json": f"left out: {size} bytes"}
    place: TarPlace = {
        "tar": str(tar),
        "image": members[images[0]][:2],
        "members": {name: members[name][:2] for name in sorted(wanted.all & members.keys())},
    }
    captions: tuple[str, ...] | None = ()
    if isinstance(wanted.captions, dict):
        if wanted.caption and wanted.caption in members:
            captions, place["caption"] = None, wanted.caption  # read with the image
            if wanted.encoding != "utf-8":
                place["encoding"] = wanted.encoding
        elif "template" in wanted.captions:
            captions = (wanted.captions["template"],)
        else:
            captions = captions_under(fields, wanted.captions.get("json", ""))
    return RawImage(
        f"{tar}::{members[images[0]].name}",
        None if captions is None else next(iter(captions), ""),
        fields,
        reader="tar",
        place=place,
        provided=dict(wanted.provided),
        more_captions=(captions or ())[1:],
    )


def _without_image(images: list[str], members: Sample, wanted: TarMembers) -> str:
    """Why a sample gives no image."""
    there = ", ".join(sorted(members))
    if wanted.image:
        return f"the sample has no member .{wanted.image}, which `image_member` names, only: {there}"
    if not images:
        return f"the sample has no image, only: {there}"
    return (
        f"the sample has {len(images)} images ({', '.join(images)}): set `source.image_member` to the one"
        " that is meant, or `source.key_dot: last` where keys hold dots"
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


def _samples(tar: Path) -> tuple[dict[str, Sample], list[RawImage]]:
    """Key -> extension -> where it lies, wherever in the tar the members of a key stand; and a row for
    whatever is wrong with the tar.
    """
    samples: dict[str, Sample] = {}
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
            samples[key][extension] = TarMember(offset, size, name)
            last = key
    except Broken as error:
        left_out = "" if error.whole else _drop_unfinished(samples, last)
        problems.append(RawImage(str(tar), "", problem=f"{error}{left_out}"))
    except OSError as error:
        problems.append(RawImage(str(tar), "", problem=f"can't be read: {error.strerror}"))
    return samples, problems


def _drop_unfinished(samples: dict[str, Sample], last: str | None) -> str:
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
    name = place["caption"]
    span = place["members"][name]
    if span[1] > MAX_TEXT:
        return ReadCaptions((), f"caption file: too large: {span[1]} bytes")
    data = _bytes(place["tar"], span, "caption")
    return read_text(data, name.rpartition(".")[2] == "json", place.get("encoding", "utf-8"))


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
