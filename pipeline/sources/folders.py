"""Images in a folder and in all below it, with the captions and maps that lie beside them."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import MillError
from pipeline.manifest import FolderSource, Image
from pipeline.sources.files import ABSENT, resolve, stamp_of, stamp_or_absent
from pipeline.sources.names import (
    MAGIC_BYTES,
    PICTURES,
    Globs,
    MapTemplate,
    split,
    starts_as_picture,
)
from pipeline.sources.raw import FilePlace, ListingContext, ProvidedJson, RawImage
from pipeline.sources.sidecars import EXTENSIONS, Sidecars

Identity = tuple[int, int]  # of a folder: its device and inode, whatever it is called


def list_folder(source: FolderSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each image in the order of their paths; then a row for each folder that can't be
    opened.
    """
    root = folder_of(source)
    tree = _walk(root, Globs(source.exclude), context.without)
    lister = _FolderLister(source, str(root))
    raws = [raw for folder in tree.folders for raw in lister.images(folder)]
    raws = lister.without_maps(raws)
    raws.sort(key=lambda raw: raw.uri.replace("/", "\0"))  # a folder's content before what its name begins
    context.notes.extend(lister.notes() + tree.notes(root))
    yield from raws
    yield from tree.closed


def folder_of(source: FolderSource) -> Path:
    """Absolute, since an address must mean the same in a worker's folder and in a later run's; MillError
    where it is no folder.
    """
    root = resolve(source.path)
    if root.is_dir():
        return root
    reason = f"{root} is a file" if root.exists() else f"the folder {root} does not exist"
    raise MillError(f"source.path: {reason}: set it to a folder of images.")


@dataclass
class _Folder:
    """One folder: where it is, and its files by name, hidden ones left out."""

    path: str
    below: str  # the root, with / between the parts; "." for the root
    files: dict[str, os.DirEntry[str]] = field(default_factory=dict)


@dataclass
class _Tree:
    """All folders below a root."""

    folders: list[_Folder] = field(default_factory=list)
    closed: list[RawImage] = field(default_factory=list)  # rows for folders that can't be opened
    twice: list[str] = field(default_factory=list)  # links to folders that were met before

    def notes(self, root: Path) -> list[str]:
        if not self.twice:
            return []
        return [
            f"{root}: {len(self.twice)} links lead to folders that are listed already and were not followed:"
            f" {_some(self.twice)}"
        ]


def _walk(root: Path, exclude: Globs, without: Path | None) -> _Tree:
    """Real folders first, so that what a link leads to as well keeps its own address."""
    tree = _Tree()
    seen: set[Identity] = set()
    if without is not None and without.is_dir():
        seen.add(_identity(os.stat(without)))  # noqa: PTH116
    waiting, links = [(str(root), ".")], list[tuple[str, str]]()
    while waiting or links:
        if waiting:
            path, below = waiting.pop()
        else:
            path, below = links.pop(0)
        try:
            identity = _identity(os.stat(path))  # noqa: PTH116
            if identity in seen:
                if path != str(without):
                    tree.twice.append(below)
                continue
            seen.add(identity)
            folder = _Folder(path, below)
            inner = _read_folder(folder)
        except OSError as error:
            reason = f"the folder can't be opened: {error.strerror}"
            tree.closed.append(RawImage(_shown(path), "", problem=reason))
            continue
        tree.folders.append(folder)
        for entry in inner:
            name = entry.name if below == "." else f"{below}/{entry.name}"
            if not exclude.match(name):
                (links if entry.is_symlink() else waiting).append((entry.path, name))
        links.sort()
    return tree


def _read_folder(folder: _Folder) -> list[os.DirEntry[str]]:
    """Notes the files of a folder; returns the folders in it."""
    inner = []
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                inner.append(entry)
            else:
                folder.files[entry.name] = entry
    return inner


def _identity(state: os.stat_result) -> Identity:
    return state.st_dev, state.st_ino


def _shown(path: str) -> str:
    """A path in UTF-8; bytes that are none are spelled out, so that two paths stay two."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def _some(paths: list[str], most: int = 3) -> str:
    shown = ", ".join(map(_shown, sorted(paths)[:most]))
    return shown + (f" and {len(paths) - most} more" if len(paths) > most else "")


class _FolderLister:
    """What a manifest says of a folder's images, and what was left out."""

    def __init__(self, source: FolderSource, root: str) -> None:
        self.source, self.root = source, root
        self.include, self.exclude = Globs(source.include), Globs(source.exclude)
        self.provided: dict[str, ProvidedJson] = {
            name: given.model_dump() for name, given in source.provided.items()
        }
        self.templates: dict[str, list[MapTemplate]] = {
            name: [MapTemplate(root, given[at]) for at in ("path", "mask") if given[at]]
            for name, given in self.provided.items()
        }
        template = source.captions.get("template") if isinstance(source.captions, dict) else None
        self.with_sidecars = source.captions == "sidecar"
        self.caption = template or ""
        self.left_out: Counter[str] = Counter()
        self.stamps: dict[str, str] = {}  # of maps that all images share
        self.maps: dict[str, str] = {}  # the map of an image -> that image, where they are two files
        self.place: FilePlace = {"root": root}

    def images(self, folder: _Folder) -> Iterator[RawImage]:
        """The images of one folder, as its files come."""
        sidecars = Sidecars(folder.files) if self.with_sidecars else None
        captioned: set[str] = set()
        rest = []
        prefix = "" if folder.below == "." else f"{folder.below}/"
        for name, entry in folder.files.items():
            base, kind = split(name)
            if self.templates and self._is_map(prefix + name):
                continue
            if kind not in PICTURES and (kind or not _starts_as_picture(entry)):
                rest.append((base, kind))
            elif self._is_meant(prefix + name):
                captioned.update((name, base))
                yield self._image(folder, entry, sidecars.of(name) if sidecars else None)
        self.left_out.update(kind for base, kind in rest if kind not in EXTENSIONS or base not in captioned)

    def _is_map(self, below: str) -> bool:
        return any(template.names(below) for pair in self.templates.values() for template in pair)

    def _is_meant(self, below: str) -> bool:
        """By `include` and `exclude`."""
        if self.source.include and not self.include.match(below):
            return False
        return not self.source.exclude or not self.exclude.match(below)

    def _image(self, folder: _Folder, entry: os.DirEntry[str], sidecar: str | None) -> RawImage:
        name = _shown(entry.path)
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
        place, caption, caption_stamp = self.place, self.caption, ""
        if sidecar and not problem:
            place = {"root": self.root, "sidecar": f"{folder.path}/{sidecar}"}
            if self.source.encoding != "utf-8":
                place["encoding"] = self.source.encoding
            try:
                caption_stamp = stamp_of(folder.files[sidecar].stat())
            except OSError:
                caption_stamp = ABSENT
        return RawImage(
            name,
            None if "sidecar" in place else caption,
            problem=problem,
            place=place,
            provided=self.provided,
            stamp=stamp,
            caption_stamp=caption_stamp,
            map_stamps={
                condition: " ".join(self._map_stamp(template, folder.below, entry) for template in pair)
                for condition, pair in self.templates.items()
            },
        )

    def _map_stamp(self, template: MapTemplate, below: str, entry: os.DirEntry[str]) -> str:
        path = template.beside(below, entry.name)
        if path != entry.path:
            self.maps[path] = entry.path
        if not template.fixed:
            return stamp_or_absent(path)
        if path not in self.stamps:
            self.stamps[path] = stamp_or_absent(path)
        return self.stamps[path]

    def without_maps(self, raws: list[RawImage]) -> list[RawImage]:
        """Those that are no map of another image: a template may lead to one in ways that only the images
        tell.
        """
        return [raw for raw in raws if raw.uri not in self.maps] if self.maps else raws

    def notes(self) -> list[str]:
        """What was left out, and patterns that meant nothing."""
        sentences = []
        if self.left_out:
            kinds = ", ".join(
                f"{count} {f'.{kind}' if kind else 'without a suffix'}"
                for kind, count in sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
            )
            sentences.append(
                f"{self.root}: {self.left_out.total()} files are no images and were left out: {kinds}"
            )
        unused = sorted(self.include.unused | self.exclude.unused)
        if unused:
            sentences.append(f"{self.root}: nothing is named by the patterns {', '.join(map(repr, unused))}")
        return sentences


def _starts_as_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a file without a suffix, as caches have them, is one by its first bytes."""
    try:
        if not entry.is_file():
            return entry.is_symlink() is False  # a pipe or a device has a row; a link to nowhere is no image
        with open(entry.path, "rb", buffering=0) as file:  # noqa: PTH123 - for each of many files
            return starts_as_picture(file.read(MAGIC_BYTES))
    except OSError:
        return True  # the row says why it can't be read
