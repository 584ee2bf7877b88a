"""The folders below a folder and what lies in them: links are followed, and nothing is met twice."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sources.names import Globs
from pipeline.sources.raw import RawImage

Identity = tuple[int, int]  # of a folder: its device and inode, whatever it is called


@dataclass
class Folder:
    """One folder: where it is, and its files by name, hidden ones left out."""

    path: str
    below: str  # the root, with / between the parts; "." for the root
    files: dict[str, os.DirEntry[str]] = field(default_factory=dict)


@dataclass
class Tree:
    """All folders below a root."""

    folders: list[Folder] = field(default_factory=list)
    closed: list[RawImage] = field(default_factory=list)  # rows for folders that can't be opened
    twice: list[str] = field(default_factory=list)  # links to folders that were met before

    def notes(self) -> list[str]:
        if not self.twice:
            return []
        return [f"folders that are listed under another name, left out: {some(self.twice)}"]


def walk(root: Path, exclude: Globs, without: Path | None) -> Tree:
    """The folders below a root: real ones first, so that what a link leads to as well keeps its address."""
    tree = Tree()
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
            folder = Folder(path, below)
            inner = _read_folder(folder)
        except OSError as error:
            reason = f"the folder can't be opened: {error.strerror}"
            tree.closed.append(RawImage(shown(path), "", problem=reason))
            continue
        tree.folders.append(folder)
        for entry in inner:
            name = entry.name if below == "." else f"{below}/{entry.name}"
            if not exclude.match(name):
                (links if entry.is_symlink() else waiting).append((entry.path, name))
        links.sort()
    return tree


def _read_folder(folder: Folder) -> list[os.DirEntry[str]]:
    """Notes the files of a folder; returns the folders in it."""
    inner = []
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                inner.append(entry)
            else:
                folder.files[entry.name] = entry
    return inner


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is closed
        return False


def _identity(state: os.stat_result) -> Identity:
    return state.st_dev, state.st_ino


def shown(path: str) -> str:
    """A path in UTF-8; bytes that are none are spelled out, so that two paths stay two."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def some(paths: list[str], most: int = 3) -> str:
    """The first few of many paths."""
    names = ", ".join(map(shown, sorted(paths)[:most]))
    return names + (f" and {len(paths) - most} more" if len(paths) > most else "")
