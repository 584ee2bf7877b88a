"""The catalog made again from the shards, at any time; the old one stays until the new one is whole."""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline.catalog import Catalog
from pipeline.storage import shards
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import TEMPORARY, Workspace, set_aside

TOGETHER = 256  # shards in one transaction
Read = TypeVar("Read")


def rebuild(workspace: Workspace, finish: Callable[[Catalog], None]) -> tuple[int, list[str]]:
    """Makes the catalog again from the files; returns how many shards went in and which files are broken.

    `finish(catalog)` settles what the manifest decides, on the new catalog, before it takes the old one's
    place.
    """
    broken: list[str] = []

    def read(function: Callable[[Path], Read], paths: Sequence[Path]) -> list[Read]:
        """In threads; what is broken is told and left out."""
        found = []
        for path, answer in zip(paths, pool.map(_attempt(function), paths), strict=True):
            if isinstance(answer, Exception):
                broken.append(f"{workspace.relative(path)}: {answer}")
            else:
                found.append(answer)
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [path for _, path in sorted(read(_place, workspace.all_shards()))]
        count = _index(workspace, paths, partial(read, shards.verify), finish)
    return count, sorted(broken)


def _index(
    workspace: Workspace,
    paths: Sequence[Path],
    verified: Callable[[Sequence[Path]], list[Shard]],
    finish: Callable[[Catalog], None],
) -> int:
    """How many shards went in."""
    temporary = workspace.root / f"{TEMPORARY}rebuild"
    shutil.rmtree(temporary, ignore_errors=True)  # of a rebuild that was killed
    temporary.mkdir()
    fresh = Catalog(workspace, temporary / "catalog.duckdb")
    fresh.create()
    count = left_out = 0
    for start in range(0, len(paths), TOGETHER):  # never more in memory
        members = verified(paths[start : start + TOGETHER])
        fitting = fresh.commit_fitting(members)
        count, left_out = count + fitting, left_out + len(members) - fitting
    if left_out:
        fresh.note_stranded()
    finish(fresh)
    fresh.checkpoint()
    for path in (workspace.catalog.with_suffix(".duckdb.wal"), workspace.catalog):
        if path.is_dir():
            set_aside(path)
    workspace.catalog.with_suffix(".duckdb.wal").unlink(missing_ok=True)
    fresh.path.replace(workspace.catalog)
    temporary.rmdir()
    return count


def _attempt(function: Callable[[Path], Read]) -> Callable[[Path], Read | Exception]:
    def attempt(path: Path) -> Read | Exception:
        try:
            return function(path)
        except shards.BROKEN as error:
            return error

    return attempt


def _place(path: Path) -> tuple[tuple[int, int, int], Path]:
    """Its place among all: what others are made from first; changes after the images that were there when
    they were noticed.
    """
    metadata, kinds = shards.metadata(path), list(shards.SCHEMAS)
    kind, part = metadata["kind"], metadata["part"]
    if kind == "changes":
        return (kinds.index("images"), metadata["after_part"], 1 + part), path
    return (kinds.index(kind), part, 0), path
