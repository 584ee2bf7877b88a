"""Pictures of the leaderboard: each model's best, median and worst sample, and some that all models share."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from annotate import maps
from annotate.conditions import CONDITIONS
from pipeline.benchmark import evidence
from pipeline.benchmark.evidence import Place, Sample, thumbnail
from pipeline.benchmark.systems import System
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.report.leaderboard_data import EvidenceSample
from pipeline.storage import codec
from pipeline.storage.workspace import Workspace

SAME = 3  # images that every model is shown on
CAPTION = 400  # characters of a prompt that a page shows


@dataclass(frozen=True, eq=False)
class Hint:
    """A condition as it was given, small; not the map itself, which is large."""

    pixels: np.ndarray  # uint8 HW3
    encoded: bytes
    size: tuple[int, int]  # of the map


def evidence_samples(
    plan: Plan, catalog: Catalog, controls: list[System], pool: ThreadPoolExecutor
) -> Iterator[EvidenceSample]:
    """Of each model its best, median and worst sample, and some that all models share; all are begun before
    the first is asked for.

    A shard is opened once for all that is shown of it: opening it takes as long as decoding a picture.
    """
    chosen = evidence.extremes(plan, catalog, controls, SAME)
    captions: dict[str, dict[str, str]] = {}  # by condition
    truths: dict[tuple[str, str], Place] = {}  # by condition and image
    asked = {system.condition: {item.image_id: item for item in system.items} for system in controls}
    for _, sample in chosen:
        condition, image_id = sample.system.condition, sample.image_id
        item = asked[condition][image_id]
        captions.setdefault(condition, {})[image_id] = item.caption[:CAPTION]
        truths[condition, image_id] = item.map_shard, item.row
    photographs = evidence.photographs(catalog, sorted({sample.image_id for _, sample in chosen}))
    hints = _begun(pool, _hints, plan.workspace, truths)
    sources = _begun(pool, _sources, plan.workspace, photographs)
    shown = [
        pool.submit(_shown, plan.workspace, list(of_system), captions, hints, sources)
        for _, of_system in groupby(chosen, key=lambda each: each[1].system.name)
    ]
    return (sample for future in shown for sample in future.result())


def _begun(pool: ThreadPoolExecutor, read: Any, workspace: Workspace, places: Mapping[Any, Place]) -> Any:
    """Of each key the future that will hold it: one for each shard."""
    by_shard: dict[str, dict[Any, Place]] = {}
    for key, place in places.items():
        by_shard.setdefault(place[0], {})[key] = place
    begun: dict[Any, Future[Any]] = {}
    for of_shard in by_shard.values():
        begun |= dict.fromkeys(of_shard, pool.submit(read, workspace, of_shard))
    return begun


def _hints(workspace: Workspace, places: Mapping[tuple[str, str], Place]) -> dict[tuple[str, str], Hint]:
    found, made = evidence.rows(workspace, places.values(), evidence.MAP), {}
    for (condition, image_id), place in places.items():
        stored = found[place]  # pairs hold `ok` rows only, so there is a map
        truth = maps.decode(CONDITIONS[condition].kind, stored["map"], json.loads(stored["meta"]))
        pixels = evidence.drawn_small(truth)
        made[condition, image_id] = Hint(pixels, thumbnail(pixels), maps.resolution(truth))
    return made


def _sources(workspace: Workspace, places: Mapping[str, Place]) -> dict[str, bytes]:
    found = evidence.rows(workspace, places.values(), ["image"])
    return {
        image_id: thumbnail(codec.decode(found[place]["image"]), "jpeg") for image_id, place in places.items()
    }


def _shown(
    workspace: Workspace,
    chosen: Iterable[tuple[Any, Sample]],  # of one system
    captions: Mapping[str, Mapping[str, str]],  # by condition and image
    hints: Mapping[tuple[str, str], Future[dict[tuple[str, str], Hint]]],
    sources: Mapping[str, Future[dict[str, bytes]]],
) -> list[EvidenceSample]:
    import cv2

    samples = [sample for _, sample in chosen]
    pictures = evidence.rows(workspace, {sample.picture for sample in samples}, ["image"])
    scored = evidence.rows(workspace, {sample.scores for sample in samples if sample.scores}, evidence.MAP)
    drawn: dict[tuple[str, int], dict[str, Any]] = {}  # a sample may be shown twice
    out = []
    for which, sample in chosen:
        condition, image_id = key = sample.system.condition, sample.image_id
        hint = hints[key].result()[key]
        if (image_id, sample.seed) not in drawn:
            reread = evidence.reread_of(sample, scored)
            again = reread if isinstance(reread, str) else evidence.drawn_small(reread, hint.size)
            drawn[image_id, sample.seed] = {
                "generated": thumbnail(codec.decode(pictures[sample.picture]["image"]), "jpeg"),
                "reread": again if isinstance(again, str) else thumbnail(again),
                "difference": None if isinstance(again, str) else thumbnail(cv2.absdiff(hint.pixels, again)),
            }
        ((metric, value),) = sample.values.items()
        out.append(
            EvidenceSample(
                condition=condition,
                model=sample.system.shown,
                metric=metric,
                which=which,
                image_id=image_id,
                prompt=captions[condition][image_id],
                seed=sample.seed,
                score=value,
                hint=hint.encoded,
                source=sources[image_id].result()[image_id],
                **drawn[image_id, sample.seed],
            )
        )
    return out
