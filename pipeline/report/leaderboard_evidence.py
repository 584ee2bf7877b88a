"""Pictures of the leaderboard: each model's best, median and worst sample, and some that all models share."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from annotate.maps import RawMap
from pipeline.benchmark import evidence
from pipeline.benchmark.evidence import Sample, thumbnail
from pipeline.benchmark.systems import System
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.report.leaderboard_data import EvidenceSample

SAME = 3  # images that every model is shown on
CAPTION = 400  # characters of a prompt that a page shows


def evidence_samples(
    plan: Plan, catalog: Catalog, controls: list[System], pool: ThreadPoolExecutor
) -> Iterator[EvidenceSample]:
    """Of each model its best, median and worst sample, and some that all models share; all are begun before
    the first is asked for.
    """
    import cv2

    chosen = evidence.extremes(plan, catalog, controls, SAME)
    photographs = evidence.photographs(catalog, sorted({sample.image_id for _, sample in chosen}))
    items = {system.name: {item.image_id: item for item in system.items} for system in controls}

    @functools.cache
    def hint(condition: str, image_id: str) -> tuple[RawMap, np.ndarray, bytes]:
        system = next(each for each in controls if each.condition == condition)
        truth = evidence.truth(plan.workspace, system, items[system.name][image_id])
        pixels = evidence.drawn_small(truth)
        return truth, pixels, thumbnail(pixels)

    @functools.cache
    def source(image_id: str) -> bytes:
        return thumbnail(evidence.photograph(plan.workspace, photographs[image_id]), "jpeg")

    def shown(which: Any, sample: Sample) -> EvidenceSample:
        condition = sample.system.condition
        truth, own, small = hint(condition, sample.image_id)
        reread = evidence.reread(plan.workspace, sample)
        again = reread if isinstance(reread, str) else evidence.drawn_small(reread, truth)
        ((metric, value),) = sample.values.items()
        return EvidenceSample(
            condition=condition,
            model=sample.system.shown,
            metric=metric,
            which=which,
            image_id=sample.image_id,
            prompt=items[sample.system.name][sample.image_id].caption[:CAPTION],
            seed=sample.seed,
            score=value,
            hint=small,
            source=source(sample.image_id),
            generated=thumbnail(evidence.drawn(plan.workspace, sample), "jpeg"),
            reread=again if isinstance(again, str) else thumbnail(again),
            difference=None if isinstance(again, str) else thumbnail(cv2.absdiff(own, again)),
        )

    return pool.map(lambda each: shown(*each), chosen)
