"""Images in a folder and in all below it, with the captions and maps that lie beside them."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline import MillError
from pipeline.manifest import FolderSource, Image
from pipeline.sources.far.addresses import reader_of
from pipeline.sources.files import ABSENT, resolve, stamp_of
from pipeline.sources.imagefolder import NAMES, ImageRow, Metadata
from pipeline.sources.maps import MapPlaces
from pipeline.sources.names import MAGIC_BYTES, PICTURES, Globs, split, starts_as_picture
from pipeline.sources.raw import FilePlace, ListingContext, RawImage
from pipeline.sources.sidecars import EXTENSIONS, Sidecars
from pipeline.sources.tree import Folder, shown, some, walk

MOST_KINDS = 12  # of files that were left out, by their suffix, that are told


def list_folder(source: FolderSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each image in the order of their paths; then a row for whatever can't be opened or
    read on the way.

    MillError where the path is no folder that can be read, or captions are asked of metadata files and there
    is none.
    """
    if reader_of(source.path) == "object":
        from pipeline.sources.far.folders import list_object_folder

        yield from list_object_folder(source, context)
        return
    root = folder_of(source)
    lister = _FolderLister(source, str(root))
    tree = walk(root, lister.exclude, context.without)
    if tree.closed and not tree.folders:
        raise MillError(f"source.path: {root}: {tree.closed[0].problem}: give yourself the right to read it.")
    for folder in tree.folders:
        lister.read_metadata(folder)
    lister.check_metadata()
    raws = [raw for folder in tree.folders for raw in lister.images(folder)]
    raws = [raw for raw in raws if raw.uri not in lister.maps.named]
    raws += lister.missing(raws)
    raws.sort(key=lambda raw: raw.uri.replace("/", "\0"))  # a folder's content before what its name begins
    context.notes.extend(f"{root}: {note}" for note in (*lister.notes(), *tree.notes()))
    yield from raws
    yield from lister.metadata.problems
    for closed in tree.closed:
        yield replace(closed, problem=f"{closed.problem}: open it, or name it in `exclude`")


def folder_of(source: FolderSource) -> Path:
    """Absolute, since an address must mean the same in a worker's folder and in a later run's; MillError
    where it is no folder.
    """
    root = resolve(source.path)
    if root.is_dir():
        return root
    reason = f"{root} is a file" if root.exists() else f"the folder {root} does not exist"
    raise MillError(f"source.path: {reason}: set it to a folder of images.")


class _FolderLister:
    """What a manifest says of a folder's images, and what was left out."""

    def __init__(self, source: FolderSource, root: str) -> None:
        self.source, self.root = source, root
        self.include, self.exclude = Globs(source.include), Globs(source.exclude)
        self.maps = MapPlaces(root, source.provided)
        self.metadata = Metadata()
        self.caption = source.captions.get("template", "") if isinstance(source.captions, dict) else ""
        self.left_out: Counter[str] = Counter()
        self.place: FilePlace = {"root": root}

    def read_metadata(self, folder: Folder) -> None:
        """Takes in what Hugging Face's imagefolder knows of images, and takes it off the other files."""
        for name in NAMES:
            path = f"{folder.path}/{name}"
            if name in folder.files and shown(path) == path and self.metadata.read(path):
                del folder.files[name]

    def check_metadata(self) -> None:
        if self.source.captions == "metadata" and not self.metadata.files:
            raise MillError(
                f"source.captions: there is no {', '.join(NAMES)} with a column file_name below {self.root}:"
                " set it to sidecar, {template: …} or none."
            )

    def images(self, folder: Folder) -> Iterator[RawImage]:
        """The images of one folder, as its files come."""
        prefix = "" if folder.below == "." else f"{folder.below}/"
        files = folder.files
        if self.maps.templates or self.metadata.others:
            files = {name: entry for name, entry in files.items() if not self._is_map(prefix + name, entry)}
        parts = {name: split(name) for name in files}
        sidecars = Sidecars(parts) if self.source.captions == "sidecar" else None
        captioned: set[str] = set()
        rest = []
        for name, entry in files.items():
            base, kind = parts[name]
            if kind not in PICTURES and (kind or not _starts_as_picture(entry)):
                rest.append((base, kind))
            elif self._is_meant(prefix + name):
                captioned.update((name, base))
                yield self._image(folder, entry, sidecars.of(name, base) if sidecars else None)
        self.left_out.update(kind for base, kind in rest if kind not in EXTENSIONS or base not in captioned)

    def _is_map(self, below: str, entry: os.DirEntry[str]) -> bool:
        return self.maps.lead_to(below) or entry.path in self.metadata.others

    def _is_meant(self, below: str) -> bool:
        """By `include` and `exclude`."""
        if self.source.include and not self.include.match(below):
            return False
        return not self.source.exclude or not self.exclude.match(below)

    def _image(self, folder: Folder, entry: os.DirEntry[str], sidecar: str | None) -> RawImage:
        name = shown(entry.path)
        problem, stamp = "", ABSENT
        try:
            state = entry.stat()
            stamp = stamp_of(state)
            if not stat.S_ISREG(state.st_mode):
                problem = "not a file: a pipe, a socket or a device is never opened"
        except OSError:
            pass  # a link that leads nowhere: reading it says so
        if name != entry.path:
            problem = "its name is not UTF-8: rename the file"
        row = self.metadata.images.get(entry.path)
        if row:
            place, caption, more = self._of_row(row)
        else:
            place, caption, more = self.place, self.caption, ()
        caption_stamp = ""
        if sidecar and not problem:
            place, more = place | {"sidecar": f"{folder.path}/{sidecar}"}, ()
            if self.source.encoding != "utf-8":
                place["encoding"] = self.source.encoding
            try:
                caption_stamp = stamp_of(folder.files[sidecar].stat())
            except OSError:
                caption_stamp = ABSENT
        return RawImage(
            name,
            None if "sidecar" in place else caption,
            row.fields if row else {},
            problem=problem,
            place=place,
            provided=self.maps.provided,
            more_captions=more,
            stamp=stamp,
            caption_stamp=caption_stamp,
            map_stamps=(
                self.maps.stamps(folder.below, entry.name, row.fields if row else {})
                if self.maps.provided
                else {}
            ),
        )

    def _of_row(self, row: ImageRow) -> tuple[FilePlace, str, tuple[str, ...]]:
        """Place and captions of an image that a metadata file knows."""
        place = self.place
        if self.maps.columns:
            place = place | {"cells": {name: row.fields.get(name) for name in self.maps.columns}}
        if self.source.captions not in ("sidecar", "metadata"):
            return place, self.caption, ()
        return place, next(iter(row.captions), ""), row.captions[1:]

    def missing(self, raws: list[RawImage]) -> list[RawImage]:
        """Rows for images that metadata files name and that are not there."""
        there = {raw.uri for raw in raws} if self.metadata.images else set()
        return [
            RawImage(
                shown(path), "", row.fields, stamp=ABSENT, problem="a metadata file names it; no such file"
            )
            for path, row in self.metadata.images.items()
            if path not in there and not os.path.lexists(path)
        ]

    def notes(self) -> list[str]:
        """What was left out, where captions come from, and patterns that meant nothing."""
        sentences = []
        if self.left_out:
            ranked = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
            kinds = [f"{count} {f'.{shown(kind)}' if kind else 'without a suffix'}" for kind, count in ranked]
            rest = [f"{sum(count for _, count in ranked[MOST_KINDS:])} others"] if ranked[MOST_KINDS:] else []
            sentences.append(f"files that are no images, left out: {', '.join([*kinds[:MOST_KINDS], *rest])}")
        if orphans := self.maps.orphans():
            sentences.append(f"files that `provided` names as maps of images that are not there: {orphans}")
        if self.metadata.files:
            sentences.append(
                f"{len(self.metadata.images)} images are described by {some(self.metadata.files)}"
            )
        if unused := sorted(self.include.unused | self.exclude.unused):
            sentences.append(f"`include` and `exclude`: nothing is named by {', '.join(map(repr, unused))}")
        return sentences


def _starts_as_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a file without a suffix, as caches have them, is one by its first bytes."""
    try:
        if not entry.is_file():
            return not entry.is_symlink()  # a pipe or a device has a row; a link to nowhere is no image
        with open(entry.path, "rb", buffering=0) as file:  # noqa: PTH123 - for each of many files
            return starts_as_picture(file.read(MAGIC_BYTES))
    except OSError:
        return True  # the row says why it can't be read
