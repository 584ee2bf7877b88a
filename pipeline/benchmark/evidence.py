"""Held-out pairs and what was made of them, as the pages show them: where it lies, what it scores, its
pictures.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotate import maps
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from evaluate import measures
from pipeline.benchmark.systems import Item, System, score_key
from pipeline.catalog import Catalog
from pipeline.dataset.maps import read_annotation
from pipeline.plan import Plan
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row
from pipeline.storage.workspace import Workspace

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
    values: dict[str, float] = field(default_factory=dict)  # its headline metric


def samples(
    plan: Plan,
    catalog: Catalog,
    systems: Iterable[System],
    images: list[str] | None = None,  # None = all of them
) -> dict[str, list[Sample]]:  # by system, in the order of images and seeds
    """One query for any number of systems. What failed to be made is left out."""
    by_name = {system.name: system for system in systems}
    out: dict[str, list[Sample]] = {name: [] for name in by_name}
    where = "WHERE image_id IN (SELECT unnest($images))" if images is not None else ""
    given = _asked(plan, by_name) | ({"images": images} if images is not None else {})
    for name, *row in catalog.query(
        f"{MADE} SELECT system, {COLUMNS} FROM made {where} ORDER BY image_id, seed", given
    ):
        out[name].append(_sample(by_name[name], row))
    return out


def extremes(
    plan: Plan,
    catalog: Catalog,
    systems: Iterable[System],
    same: int,  # images of the first seed that every system is shown on
    # in the order of the systems: best, median, worst, then same in the order of images
) -> list[tuple[str, Sample]]:
    """Of each system the samples that say most, by its headline metric; of equal ones the first image is best
    and the last is worst.

    The catalog chooses: a benchmark may have a thousand samples for each row that comes back.
    """
    by_name = {system.name: system for system in systems}
    found: dict[str, list[tuple[str, Sample]]] = {name: [] for name in by_name}
    sql = (
        f"{MADE}, {CHOSEN} SELECT system, which, {COLUMNS} FROM chosen WHERE told ORDER BY"
        f" list_position({list(WHICH)}, which), image_id"
    )
    for name, which, *row in catalog.query(sql, _asked(plan, by_name) | {"same": same}):
        found[name].append((which, _sample(by_name[name], row)))
    return [it for chosen in found.values() for it in chosen]


WHICH = ("best", "median", "worst", "same")
COLUMNS = "image_id, seed, picture, picture_row, shard, row, reason, metric, value"  # as `_sample` takes them
MADE = """
    WITH asked AS (SELECT unnest($system) AS system, unnest($sample_set) AS sample_set,
                          unnest($sample_key) AS sample_key, unnest($score_key) AS score_key,
                          unnest($metric) AS metric, unnest($sign) AS sign),
    made AS (SELECT asked.system, sign, p.image_id, p.seed, p.shard AS picture, p.row AS picture_row,
                    s.shard, s.row, s.reason, s.metric, s.value
             FROM asked JOIN samples p USING (sample_set, sample_key)
             LEFT JOIN sample_scores s ON s.system = asked.system AND s.score_key = asked.score_key
                                      AND s.metric = asked.metric
                                      AND s.image_id = p.image_id AND s.seed = p.seed
             WHERE p.status = 'ok')"""
CHOSEN = f"""
    placed AS (SELECT *, row_number() OVER (PARTITION BY system ORDER BY sign * value DESC, image_id, seed)
    AS place,
                      count(*) OVER (PARTITION BY system) AS n, row_number() OVER (PARTITION BY system, seed
                      ORDER BY image_id) AS number,
                      first_value(seed) OVER (PARTITION BY system ORDER BY image_id, seed) AS first_seed
               FROM made WHERE value IS NOT NULL),
    chosen AS (SELECT *, unnest({list(WHICH)}) AS which,
                      unnest([place = 1, place = n // 2 + 1, place = n, seed = first_seed AND number <=
                      $same]) AS told
               FROM placed)"""


def _asked(plan: Plan, by_name: Mapping[str, System]) -> dict[str, list[Any]]:
    """The columns of `asked`: where each system's samples and scores lie, and its headline metric."""
    systems = list(by_name.values())
    metrics = [measures.headline(CONDITIONS[system.condition].kind) for system in systems]
    return {
        "system": list(by_name),
        "sample_set": [system.sample_set for system in systems],
        "sample_key": [system.key for system in systems],
        "score_key": [score_key(plan, system) for system in systems],
        "metric": [metric.name for metric in metrics],
        "sign": [1 if metric.higher_is_better else -1 for metric in metrics],
    }


def _sample(system: System, row: Sequence[Any]) -> Sample:
    image_id, seed, picture, picture_row, shard, number, reason, metric, value = row
    facts = {} if shard is None else {"scores": (shard, number), "reason": reason, "values": {metric: value}}
    return Sample(system, image_id, seed, (picture, picture_row), **facts)


def drawn(workspace: Workspace, sample: Sample) -> np.ndarray:  # uint8 HW3
    (stored,) = rows(workspace, [sample.picture], ["image"]).values()
    return codec.decode(stored["image"])


def reread(workspace: Workspace, sample: Sample) -> RawMap | str:
    """The map that the reader found, or why there is none."""
    return reread_of(sample, rows(workspace, [sample.scores], MAP) if sample.scores else {})


def rows(workspace: Workspace, places: Iterable[Place], columns: list[str]) -> dict[Place, Row]:
    """Each shard is opened once."""
    wanted: dict[str, list[int]] = {}
    for shard, row in places:
        wanted.setdefault(shard, []).append(row)
    return {
        (shard, row): stored
        for shard, numbers in wanted.items()
        for row, stored in shards.read_rows(workspace.root / shard, numbers, columns).items()
    }


MAP = ["map", "meta"]  # columns that hold a map


def reread_of(sample: Sample, found: Mapping[Place, Row]) -> RawMap | str:
    """The same, of rows that were read."""
    if sample.scores is None:
        return sample.reason
    stored = found[sample.scores]
    if stored["map"] is None:
        return sample.reason or "nothing found"
    return maps.decode(CONDITIONS[sample.system.condition].kind, stored["map"], json.loads(stored["meta"]))


def photographs(catalog: Catalog, images: list[str]) -> dict[str, Place]:
    """Where held-out images lie."""
    found = catalog.query(
        "SELECT image_id, shard, row FROM images WHERE image_id IN (SELECT unnest(?))", [images]
    )
    return {image_id: (shard, row) for image_id, shard, row in found}


def photograph(workspace: Workspace, place: Place) -> np.ndarray:  # uint8 HW3
    return codec.decode(shards.read_row(workspace.root / place[0], place[1], ["image"])["image"])


def truth(workspace: Workspace, system: System, item: Item) -> RawMap:
    made = read_annotation(workspace, item.map_shard, item.row, system.condition).map
    assert made is not None  # pairs hold `ok` rows only
    return made


def drawn_small(raw: RawMap, size: tuple[int, int] | None = None) -> np.ndarray:  # uint8 HW3
    """The hint at the size of a thumbnail, or at that of a map of this height and width: lines stay lines,
    and nothing is drawn larger than it is shown.
    """
    return maps.render(raw, _small(size or maps.resolution(raw)))


def thumbnail(pixels: np.ndarray, store: str = "png") -> bytes:
    """uint8 HWC RGB, scaled down to SIDE at its long side; most maps are grey, and a grey PNG
    costs a third.
    """
    import cv2

    red, green, blue = np.moveaxis(pixels, 2, 0)
    if store == "png" and (red == green).all() and (green == blue).all():
        pixels = np.ascontiguousarray(red)
    height, width = pixels.shape[:2]
    if (small := _small((height, width))) != (height, width):
        pixels = cv2.resize(pixels, small[::-1], interpolation=cv2.INTER_AREA)
    return codec.encode(pixels, store, quick=True)


def _small(size: tuple[int, int]) -> tuple[int, int]:  # height, width
    scale = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
