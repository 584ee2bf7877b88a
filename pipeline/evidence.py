"""Pictures of held-out pairs and of what was made of them, as the pages show them."""

import json
from dataclasses import dataclass, field

import numpy as np

from annotate import maps
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from pipeline import canonical, shards
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.stages.annotate import read_annotation
from pipeline.systems import Item, System, score_key

SIDE = 256  # pixels of a thumbnail's long side


@dataclass(frozen=True)
class Outcome:
    """One sample: its picture, the map read again from it, its scores."""

    image: np.ndarray  # uint8 HW3
    map: RawMap | None
    reason: str  # why there is no map
    values: dict[str, float] = field(default_factory=dict)


def thumbnail(pixels: np.ndarray, store: str = "png") -> bytes:
    """uint8 HWC RGB, scaled down to SIDE at its long side."""
    import cv2

    scale = SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return canonical.encode(pixels, store)


def photograph(catalog: Catalog, image_id: str) -> np.ndarray:  # uint8 HW3
    shard, row = catalog.row("SELECT shard, row FROM images WHERE image_id = ?", [image_id])
    return canonical.decode(shards.read_row(catalog.workspace.root / shard, row, ["image"])["image"])


def truth(plan: Plan, system: System, item: Item) -> RawMap:
    made = read_annotation(plan.workspace, item.map_shard, item.row, system.condition).map
    assert made is not None  # pairs hold `ok` rows only
    return made


def outcome(plan: Plan, catalog: Catalog, system: System, image_id: str, seed: int) -> Outcome | None:
    """None = it was not made, or it failed."""
    found = catalog.query(
        "SELECT shard, row FROM samples WHERE system = ? AND benchmark = ? AND image_id = ? AND seed = ? AND status = 'ok'",
        [system.name, system.key, image_id, seed],
    )
    if not found:
        return None
    image = canonical.decode(shards.read_row(plan.workspace.root / found[0][0], found[0][1], ["image"])["image"])
    rows = catalog.query(
        "SELECT metric, value, reason, shard, row FROM sample_scores WHERE system = ? AND benchmark = ? AND image_id = ? AND seed = ?",
        [system.name, score_key(plan, system), image_id, seed],
    )
    values = {metric: value for metric, value, *_ in rows}
    if not rows:
        return Outcome(image, None, "not scored", values)
    *_, reason, shard, row = rows[0]
    stored = shards.read_row(plan.workspace.root / shard, row, ["map", "meta"])
    if stored["map"] is None:
        return Outcome(image, None, reason or "nothing found", values)
    return Outcome(image, maps.decode(CONDITIONS[system.condition].kind, stored["map"], json.loads(stored["meta"])), "", values)
