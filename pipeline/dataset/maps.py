"""Stored raw maps, read back from their shards."""

import json
from collections.abc import Sequence

from annotate import maps
from annotate.annotator import Annotation
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from pipeline import MillError
from pipeline.storage import shards
from pipeline.storage.shards import Row
from pipeline.storage.workspace import Workspace


def annotation(row: Row, condition: str) -> Annotation:
    """A stored row as the annotator made it."""
    stored = (
        None
        if row["map"] is None
        else maps.decode(CONDITIONS[condition].kind, row["map"], json.loads(row["meta"]))
    )
    return Annotation(
        status=row["status"],
        reason=row["reason"],
        map=stored,
        measures=dict(row["measures"]),
        random_params=json.loads(row["draws"]),
        seconds=row["seconds"],
    )


def read_annotation(workspace: Workspace, shard: str, row: int, condition: str) -> Annotation:
    """The row of a shard of maps; `shard` is relative to the workspace."""
    return annotation(
        shards.read_row(workspace.root / shard, row, [field.name for field in shards.MAPS]), condition
    )


def read_map(workspace: Workspace, shard: str, row: int, condition: str) -> RawMap:
    """The map of a row that is `ok`, as those of pairs are; MillError where the row holds none."""
    return read_maps(workspace, shard, [row], condition)[row]


def read_maps(workspace: Workspace, shard: str, rows: Sequence[int], condition: str) -> dict[int, RawMap]:
    """By row, the shard opened once; errors as of `read_map`."""
    found = shards.read_rows(workspace.root / shard, rows, [*OF_MAP])
    return {row: _map_of(found[row], shard, row, condition) for row in rows}


OF_MAP = ("status", "reason", "meta", "map")  # the columns that a map is read from


def _map_of(stored: Row, shard: str, row: int, condition: str) -> RawMap:
    if stored["map"] is None:
        raise MillError(
            f"{shard}, row {row}: {condition} is {stored['status']} and holds no map ({stored['reason']}):"
            " run the same command again."
        )
    return maps.decode(CONDITIONS[condition].kind, stored["map"], json.loads(stored["meta"]))
