"""Held-out pairs and what was made of them, as the pages show them: where it lies, what it scores, its pictures."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from annotate import maps
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from evaluate import measures
from pipeline import canonical, shards
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.stages.annotate import read_annotation
from pipeline.systems import Item, System, score_key
from pipeline.workspace import Workspace

SIDE = 256  # pixels of a thumbnail's long side

Place = tuple[str, int]  # shard below the workspace, row


@dataclass(frozen=True)
class Sample:
    """One sample that was made."""

    system: System
    image_id: str
    seed: int
    picture: Place
    scores: Place | None = None  # None = not scored
    reason: str = "not scored"  # where there is no map of it
    values: dict[str, float] = field(default_factory=dict)  # its telling measure


def samples(
    plan: Plan,
    catalog: Catalog,
    systems: Iterable[System],
    images: list[str] | None = None,  # None = all of them
) -> dict[str, list[Sample]]:  # by system, in the order of images and seeds
    """Two queries for any number of systems. What failed to be made is left out."""
    by_name = {system.name: system for system in systems}
    keys = {name: (system.key, score_key(plan, system)) for name, system in by_name.items()}
    telling = sorted({measures.telling(CONDITIONS[system.condition].kind).name for system in by_name.values()})
    some = "AND image_id IN (SELECT unnest($images))" if images is not None else ""
    given = {"images": images} if images is not None else {}
    sql = f"""SELECT system, benchmark, image_id, seed, metric, value, reason, shard, row FROM sample_scores
              WHERE metric IN (SELECT unnest($telling)) {some}"""
    scored = {
        (system, image_id, seed): (metric, value, reason, (shard, row))
        for system, key, image_id, seed, metric, value, reason, shard, row in catalog.query(sql, given | {"telling": telling})
        if system in keys and keys[system][1] == key
    }
    out: dict[str, list[Sample]] = {name: [] for name in by_name}
    sql = f"SELECT system, benchmark, image_id, seed, shard, row FROM samples WHERE status = 'ok' {some} ORDER BY image_id, seed"
    for system, key, image_id, seed, shard, row in catalog.query(sql, given):
        if system in keys and keys[system][0] == key:
            found = scored.get((system, image_id, seed))
            facts = {"scores": found[3], "reason": found[2], "values": {found[0]: found[1]}} if found else {}
            out[system].append(Sample(by_name[system], image_id, seed, (shard, row), **facts))
    return out


def drawn(workspace: Workspace, sample: Sample) -> np.ndarray:  # uint8 HW3
    return canonical.decode(shards.read_row(workspace.root / sample.picture[0], sample.picture[1], ["image"])["image"])


def reread(workspace: Workspace, sample: Sample) -> RawMap | str:
    """The map that the reader found, or why there is none."""
    if sample.scores is None:
        return sample.reason
    stored = shards.read_row(workspace.root / sample.scores[0], sample.scores[1], ["map", "meta"])
    if stored["map"] is None:
        return sample.reason or "nothing found"
    return maps.decode(CONDITIONS[sample.system.condition].kind, stored["map"], json.loads(stored["meta"]))


def photographs(catalog: Catalog, images: list[str]) -> dict[str, Place]:
    """Where held-out images lie."""
    found = catalog.query("SELECT image_id, shard, row FROM images WHERE image_id IN (SELECT unnest(?))", [images])
    return {image_id: (shard, row) for image_id, shard, row in found}


def photograph(workspace: Workspace, place: Place) -> np.ndarray:  # uint8 HW3
    return canonical.decode(shards.read_row(workspace.root / place[0], place[1], ["image"])["image"])


def truth(workspace: Workspace, system: System, item: Item) -> RawMap:
    made = read_annotation(workspace, item.map_shard, item.row, system.condition).map
    assert made is not None  # pairs hold `ok` rows only
    return made


def thumbnail(pixels: np.ndarray, store: str = "png") -> bytes:
    """uint8 HWC RGB, scaled down to SIDE at its long side."""
    import cv2

    scale = SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return canonical.encode(pixels, store)
