"""The catalog made again from the shards, at any time; the old one stays until the new one is whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.catalog import Catalog
from pipeline.storage import shards
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import TEMPORARY, Workspace

TOGETHER = 256  # shards in one transaction


def rebuild(workspace: Workspace, finish: Callable[[Catalog], None]) -> tuple[int, list[str]]:
    """Makes the catalog again from the files; returns how many shards went in and which files are broken.

    `finish(catalog)` settles what the manifest decides, on the new catalog, before it takes the old one's
    place.
    """
    found, broken = [], []
    for path in workspace.all_shards():
        try:
            found.append(shards.verify(path))
        except shards.BROKEN as error:
            broken.append(f"{workspace.relative(path)}: {error}")
    found.sort(key=_order)
    temporary = workspace.root / f"{TEMPORARY}rebuild"
    shutil.rmtree(temporary, ignore_errors=True)  # of a rebuild that was killed
    temporary.mkdir()
    fresh = Catalog(workspace, temporary / "catalog.duckdb")
    fresh.create()
    count = 0
    for start in range(0, len(found), TOGETHER):
        count += fresh.commit_fitting(found[start : start + TOGETHER])
    finish(fresh)
    fresh.checkpoint()
    workspace.catalog.with_suffix(".duckdb.wal").unlink(missing_ok=True)
    fresh.path.replace(workspace.catalog)
    temporary.rmdir()
    return count, broken


def _order(shard: Shard) -> tuple[int, int, int, Path]:
    """What others are made from first; changes after the images that were there when they were noticed."""
    kind, part = shard.metadata["kind"], shard.metadata["part"]
    if kind == "changes":
        return list(shards.SCHEMAS).index("images"), shard.metadata["after_part"], 1 + part, shard.path
    return list(shards.SCHEMAS).index(kind), part, 0, shard.path
