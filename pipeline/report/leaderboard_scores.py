"""The catalog's scores -> the leaderboard: ranks with their ties, normalized scores, evidence, and a passport
for every number.
"""

import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from evaluate import fidelity, measures, replicates
from evaluate.replicates import Replicated
from pipeline import __version__
from pipeline.benchmark import evidence
from pipeline.benchmark.estimates import replicated
from pipeline.benchmark.evidence import Sample, thumbnail
from pipeline.benchmark.systems import (
    ALONE,
    CONTROL,
    EARLIER,
    NO_CONTROL,
    REAL,
    SHUFFLED,
    System,
    readable,
)
from pipeline.catalog import Catalog
from pipeline.manifest import AnySource, Manifest
from pipeline.plan import Plan
from pipeline.report import leaderboard, leaderboard_data

SAME = 3  # images that every model is shown on
CAPTION = 400  # characters of a prompt that a page shows
LIBRARIES = ("torch", "diffusers", "numpy", "opencv-python-headless", "torchmetrics", "clean-fid")

Row = Mapping[str, Any]  # of the table `scores`
COLUMNS = (
    "system", "model", "variant", "condition", "metric", "metric_version", "value", "low", "high", "n",
    "n_failed", "prompts", "method", "replicates",
    "higher_is_better", "benchmark", "reader", "checkpoint", "score_key", "caveats",
)  # fmt: skip


def write(plan: Plan, catalog: Catalog, systems: list[System], folder: Path) -> Path | None:
    """Returns the page; None = nothing is scored yet."""
    with catalog.reading():
        found = _board(plan, catalog, systems)
    return leaderboard.render(found, folder) if found else None


def _board(plan: Plan, catalog: Catalog, systems: list[System]) -> leaderboard_data.Board | None:
    # the report has the course of a run
    made = {system.name: system for system in systems if system.arm != EARLIER}
    rows = [
        dict(zip(COLUMNS, row, strict=True))
        for row in catalog.query(f"SELECT {', '.join(COLUMNS)} FROM scores ORDER BY ALL")
    ]
    rows = [row for row in rows if row["system"] in made and not fidelity.retired(row["metric"])]
    return build(plan, catalog, made, rows) if rows else None


def build(
    plan: Plan, catalog: Catalog, made: Mapping[str, System], rows: list[dict[str, Any]]
) -> leaderboard_data.Board:
    conditions = [name for name in CONDITIONS if any(row["condition"] == name for row in rows)]
    names = list(dict.fromkeys(row["metric"] for row in rows))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # begun first: pictures are read and drawn while ranks are counted
        shown = _evidence(plan, catalog, made, pool)
        return leaderboard_data.Board(
            name=plan.manifest.name,
            made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=f"controlmill {__version__}",
            notes=tuple(_notes(plan, conditions)),
            machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
            metrics=tuple(_metric(measures.metric(name)) for name in names),
            benchmarks=tuple(_benchmark(plan, made, name, rows) for name in conditions),
            models=tuple(_models(plan, made)),
            scores=tuple(_scores(plan, made, rows)),
            speeds=tuple(_speeds(catalog, made)),
            evidence=tuple(shown),
            published=leaderboard_data.published(conditions),
        )


def _notes(plan: Plan, conditions: list[str]) -> Iterator[str]:
    unread = [name for name in conditions if not readable(plan, name)]
    if unread:
        yield (
            f"No detector reads {', '.join(unread)} again from what was generated: name one in"
            " evaluate.readers."
        )
    if plan.manifest.base == "random":
        yield (
            "The base model has random weights: these numbers show that every step runs, not what a"
            " ControlNet can do."
        )


def _metric(it: Any) -> leaderboard_data.Metric:
    return leaderboard_data.Metric(
        name=it.name,
        title=it.title,
        definition=it.definition,
        unit=it.unit,
        higher_is_better=it.higher_is_better,
        column=it.column,
        level=it.level,
        version=it.version,
        quirks=it.quirks,
        primary=it.primary,
    )


def _benchmark(
    plan: Plan, made: Mapping[str, System], condition: str, rows: list[dict[str, Any]]
) -> leaderboard_data.Benchmark:
    assert plan.manifest.evaluate is not None
    frozen = plan.manifest.evaluate.benchmark
    system = next(it for it in made.values() if it.condition == condition)
    maker, reader = plan.conditions[condition], plan.reader(condition)
    of = (condition, CONDITIONS[condition].fidelity, CONTROL)
    first = [replicated(row) for row in rows if (row["condition"], row["metric"], row["variant"]) == of]
    return leaderboard_data.Benchmark(
        condition=condition,
        title=CONDITIONS[condition].title,
        kind=CONDITIONS[condition].kind,
        fingerprint=system.benchmark,
        split=frozen.split,
        images=len(system.items),
        samples=len(system.items) * len(frozen.seeds),
        seeds=tuple(frozen.seeds),
        sampler="DDIM, eta 0",
        steps=frozen.num_inference_steps,
        guidance=frozen.guidance_scale,
        scale=frozen.controlnet_conditioning_scale,
        guide_hint=frozen.cfg_hint == "conditional",
        negative=frozen.negative_prompt,
        base=str(plan.manifest.base),
        resolution=plan.manifest.image.resolution,
        data=data(plan.manifest, len(system.items)),
        detector=f"{maker.step.detector} {maker.fingerprint}",
        reader=f"{reader.step.detector} {reader.fingerprint}",
        detectable=replicates.detectable(first),
    )


def data(of: Manifest, images: int) -> str:
    """Which images a benchmark asks for, in words; of a path only its end, since pages are
    shown to others.
    """
    assert of.evaluate is not None
    named = " and ".join(map(_source, of.source))
    return f"{named}: {images:,} images of the {of.evaluate.benchmark.split} split"


def _source(it: AnySource) -> str:
    if it.kind == "scenes":
        return f"rendered scenes (seed {it.seed})"
    parts = it.path.rstrip("/").split("/")
    if it.kind == "huggingface":
        return " ".join(filter(None, ("/".join(parts[-2:]), it.name, it.split)))
    return f"{it.kind} {parts[-1]}"


def _models(plan: Plan, made: Mapping[str, System]) -> Iterator[leaderboard_data.Model]:
    assert plan.manifest.evaluate is not None
    external = {it.name for it in plan.manifest.evaluate.external}
    seen: dict[str, System] = {}
    for system in made.values():
        seen.setdefault(system.model, system)
    for name, system in seen.items():
        kind: Any = "baseline" if system.arm in ALONE else "external" if name in external else "run"
        yield leaderboard_data.Model(
            name=system.shown, kind=kind, base=str(plan.manifest.base), checkpoint=system.checkpoint, note=""
        )


def _scores(
    plan: Plan, made: Mapping[str, System], rows: list[dict[str, Any]]
) -> Iterator[leaderboard_data.Score]:
    """Ranks among the models; floors and ceilings from the baselines of the same benchmark."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["condition"], row["metric"]), []).append(
            row | {"score": replicated(row), "caveats": json.loads(row["caveats"])}
        )
    for (condition, _), group in groups.items():
        ranked = [row for row in group if row["variant"] == CONTROL and not row["caveats"]]
        places = (
            replicates.ranks([row["score"] for row in ranked], higher_is_better=group[0]["higher_is_better"])
            if len(ranked) > 1
            else []
        )
        rank = {row["system"]: place for row, place in zip(ranked, places, strict=False)}
        for row in group:
            floor, ceiling = _ends(row, group)
            found = replicates.share(row["score"], floor, ceiling, higher_is_better=row["higher_is_better"])
            share, reason = (None, found) if isinstance(found, str) else (found, "")
            yield leaderboard_data.Score(
                model=made[row["system"]].shown,
                arm=row["variant"],
                condition=condition,
                metric=row["metric"],
                n=row["n"],
                n_failed=row["n_failed"],
                value=row["value"],
                low=row["low"],
                high=row["high"],
                share=share and share.value,
                share_low=share and share.low,
                share_high=share and share.high,
                share_reason=reason,
                rank=rank.get(row["system"]),
                marks=tuple(row["caveats"]),
                passport=_passport(plan, row),
            )


def _ends(row: Row, group: list[dict[str, Any]]) -> tuple[Replicated | None, Replicated | None]:
    """The best that can be had without following the condition, and what the image itself scores."""
    floors = (
        it["score"]
        for it in group
        if it["variant"] == NO_CONTROL or (it["variant"] == SHUFFLED and it["model"] == row["model"])
    )
    ceiling = next((it["score"] for it in group if it["variant"] == REAL), None)
    return replicates.best(floors, row["higher_is_better"]), ceiling


def _passport(plan: Plan, row: Row) -> dict[str, str]:
    """Everything that the number depends on."""
    assert plan.manifest.evaluate is not None
    frozen, reader = plan.manifest.evaluate.benchmark, plan.reader(row["condition"])
    maker = plan.conditions[row["condition"]]
    return {
        "system": row["system"],
        "checkpoint": row["checkpoint"] or "none",
        "benchmark": row["benchmark"],
        "scores": row["score_key"],
        "metric": f"{row['metric']} version {row['metric_version']}",
        "condition made by": f"{maker.step.detector} {maker.identity['version']} ({maker.fingerprint})",
        "read again by": f"{reader.step.detector} {reader.identity['version']} ({reader.fingerprint})",
        "interval": f"95 %, {row['method']} over {row['prompts']} prompts",
        "sampling": (
            f"DDIM, {frozen.num_inference_steps} steps, guidance {frozen.guidance_scale:g}"
            f"{' of prompt and hint' * (frozen.cfg_hint == 'conditional')},"
            f" scale {frozen.controlnet_conditioning_scale:g}, seeds {', '.join(map(str, frozen.seeds))},"
            f" negative prompt {frozen.negative_prompt!r}"
        ),
        "software": _software(),
    }


@functools.cache
def _software() -> str:
    return ", ".join(
        [f"controlmill {__version__}", *(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)]
    )


def _speeds(catalog: Catalog, made: Mapping[str, System]) -> Iterator[leaderboard_data.Speed]:
    sql = "SELECT sample_set, sample_key, avg(seconds) FROM samples WHERE status = 'ok' GROUP BY ALL"
    found = {(name, key): seconds for name, key, seconds in catalog.query(sql)}
    for system in made.values():
        if system.arm in (CONTROL, NO_CONTROL) and (system.drawn_as, system.key) in found:
            seconds = found[system.drawn_as, system.key]
            yield leaderboard_data.Speed(
                model=system.shown, condition=system.condition, seconds_per_image=seconds
            )


def _evidence(
    plan: Plan, catalog: Catalog, made: Mapping[str, System], pool: ThreadPoolExecutor
) -> Iterator[leaderboard_data.Evidence]:
    """Of each model its best, median and worst sample, and some that all models share; all are begun before
    the first is asked for.
    """
    import cv2

    controls = [system for system in made.values() if system.arm == CONTROL]
    chosen = evidence.telling(plan, catalog, controls, SAME)
    photographs = evidence.photographs(catalog, sorted({sample.image_id for _, sample in chosen}))
    items = {system.name: {item.image_id: item for item in system.items} for system in controls}

    @functools.cache
    def hint(condition: str, image_id: str) -> tuple[RawMap, np.ndarray, bytes]:
        system = next(it for it in controls if it.condition == condition)
        truth = evidence.truth(plan.workspace, system, items[system.name][image_id])
        pixels = evidence.drawn_small(truth)
        return truth, pixels, thumbnail(pixels)

    @functools.cache
    def source(image_id: str) -> bytes:
        return thumbnail(evidence.photograph(plan.workspace, photographs[image_id]), "jpeg")

    def shown(which: Any, sample: Sample) -> leaderboard_data.Evidence:
        condition = sample.system.condition
        truth, own, small = hint(condition, sample.image_id)
        found = evidence.reread(plan.workspace, sample)
        again = found if isinstance(found, str) else evidence.drawn_small(found, truth)
        ((metric, value),) = sample.values.items()
        return leaderboard_data.Evidence(
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

    return pool.map(lambda it: shown(*it), chosen)
