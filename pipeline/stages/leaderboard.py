"""The catalog's scores -> the leaderboard: ranks with their ties, shares of the ruler, evidence, and a passport for every number."""

import functools
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from annotate import maps
from annotate.conditions import CONDITIONS
from evaluate import measures, replicates
from evaluate.replicates import Replicated
from pipeline import __version__, evidence
from pipeline.catalog import Catalog
from pipeline.estimates import replicated
from pipeline.evidence import thumbnail
from pipeline.plan import Plan
from pipeline.report import board, leaderboard
from pipeline.systems import ALONE, CONTROL, NO_CONTROL, REAL, SHUFFLED, System, readable, systems

SAME = 3  # images that every model is shown on
CAPTION = 400  # characters of a prompt that a page shows
LIBRARIES = ("torch", "diffusers", "numpy", "opencv-python-headless", "torchmetrics", "clean-fid")

Row = Mapping[str, Any]  # of the table `scores`
COLUMNS = (
    "system", "model", "arm", "condition", "metric", "metric_version", "value", "low", "high", "n", "n_failed", "prompts", "method", "replicates",
    "higher_is_better", "benchmark", "reader", "checkpoint", "identity", "marks",
)  # fmt: skip


def write(plan: Plan, catalog: Catalog, folder: Path) -> Path | None:
    """Returns the page; None = nothing is scored yet."""
    made = {system.name: system for system in systems(plan, catalog)}
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in catalog.query(f"SELECT {', '.join(COLUMNS)} FROM scores ORDER BY ALL")]
    rows = [row for row in rows if row["system"] in made]
    if not rows:
        return None
    return leaderboard.render(build(plan, catalog, made, rows), folder)


def build(plan: Plan, catalog: Catalog, made: Mapping[str, System], rows: list[dict[str, Any]]) -> board.Board:
    conditions = [name for name in CONDITIONS if any(row["condition"] == name for row in rows)]
    names = list(dict.fromkeys(row["metric"] for row in rows))
    return board.Board(
        name=plan.manifest.name, made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), version=f"controlmill {__version__}",
        notes=tuple(_notes(plan, conditions)), machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        metrics=tuple(_metric(measures.metric(name)) for name in names), benchmarks=tuple(_benchmark(plan, made, name) for name in conditions),
        models=tuple(_models(plan, made)), scores=tuple(_scores(plan, rows)), speeds=tuple(_speeds(catalog, made)),
        evidence=tuple(_evidence(plan, catalog, made)), published=board.published(conditions),
    )  # fmt: skip


def _notes(plan: Plan, conditions: list[str]) -> Iterator[str]:
    unread = [name for name in conditions if not readable(plan, name)]
    if unread:
        yield f"No detector reads {', '.join(unread)} again from what was generated: name one in evaluate.readers."
    if plan.manifest.base == "random":
        yield "The base model has random weights: these numbers show that every step runs, not what a ControlNet can do."


def _metric(it: Any) -> board.Metric:
    return board.Metric(
        name=it.name, title=it.title, definition=it.definition, unit=it.unit, higher_is_better=it.higher_is_better, column=it.column, level=it.level,
        version=it.version, quirks=it.quirks, primary=it.primary,
    )  # fmt: skip


def _benchmark(plan: Plan, made: Mapping[str, System], condition: str) -> board.Benchmark:
    assert plan.manifest.evaluate is not None
    frozen = plan.manifest.evaluate.benchmark
    system = next(it for it in made.values() if it.condition == condition)
    maker, reader = plan.conditions[condition], plan.reader(condition)
    return board.Benchmark(
        condition=condition, title=CONDITIONS[condition].title, kind=CONDITIONS[condition].kind, fingerprint=system.benchmark, split=frozen.split,
        images=len(system.items), samples=len(system.items) * len(frozen.seeds), seeds=tuple(frozen.seeds), sampler="DDIM, eta 0",
        steps=frozen.steps, guidance=frozen.guidance, scale=frozen.scale, negative=frozen.negative, base=str(plan.manifest.base),
        detector=f"{maker.step.detector} {maker.fingerprint}", reader=f"{reader.step.detector} {reader.fingerprint}",
    )  # fmt: skip


def _models(plan: Plan, made: Mapping[str, System]) -> Iterator[board.Model]:
    assert plan.manifest.evaluate is not None
    external = {it.name for it in plan.manifest.evaluate.external}
    seen: dict[str, System] = {}
    for system in made.values():
        seen.setdefault(system.model, system)
    for name, system in seen.items():
        kind: Any = "baseline" if system.arm in ALONE else "external" if name in external else "run"
        yield board.Model(name=name, kind=kind, base=str(plan.manifest.base), checkpoint=system.checkpoint, note="")


def _scores(plan: Plan, rows: list[dict[str, Any]]) -> Iterator[board.Score]:
    """Ranks among the models; floors and ceilings from the baselines of the same benchmark."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["condition"], row["metric"]), []).append(row | {"score": replicated(row), "marks": json.loads(row["marks"])})
    for (condition, _), group in groups.items():
        ranked = [row for row in group if row["arm"] == CONTROL and not row["marks"]]
        places = replicates.ranks([row["score"] for row in ranked], higher_is_better=group[0]["higher_is_better"]) if len(ranked) > 1 else []
        rank = {row["system"]: place for row, place in zip(ranked, places, strict=False)}
        for row in group:
            floor, ceiling = _ends(row, group)
            share = replicates.share(row["score"], floor, ceiling) if floor and ceiling else None
            yield board.Score(
                model=row["model"], arm=row["arm"], condition=condition, metric=row["metric"], value=row["value"], low=row["low"], high=row["high"],
                n=row["n"], n_failed=row["n_failed"], share=share and share.value, share_low=share and share.low, share_high=share and share.high,
                rank=rank.get(row["system"]), marks=tuple(row["marks"]), passport=_passport(plan, row),
            )  # fmt: skip


def _ends(row: Row, group: list[dict[str, Any]]) -> tuple[Replicated | None, Replicated | None]:
    """The best that can be had without following the condition, and what the image itself scores."""
    sign = 1 if row["higher_is_better"] else -1
    floors = [it for it in group if it["arm"] == NO_CONTROL or (it["arm"] == SHUFFLED and it["model"] == row["model"])]
    ceiling = next((it["score"] for it in group if it["arm"] == REAL), None)
    return max((it["score"] for it in floors), key=lambda score: sign * score.value, default=None), ceiling


def _passport(plan: Plan, row: Row) -> dict[str, str]:
    """Everything that the number depends on."""
    assert plan.manifest.evaluate is not None
    frozen, reader = plan.manifest.evaluate.benchmark, plan.reader(row["condition"])
    maker = plan.conditions[row["condition"]]
    return {
        "system": row["system"], "checkpoint": row["checkpoint"] or "none", "benchmark": row["benchmark"],
        "scores": row["identity"], "metric": f"{row['metric']} version {row['metric_version']}",
        "condition made by": f"{maker.step.detector} {maker.identity['version']} ({maker.fingerprint})",
        "read again by": f"{reader.step.detector} {reader.identity['version']} ({reader.fingerprint})",
        "interval": f"95 %, {row['method']} over {row['prompts']} prompts",
        "sampling": f"DDIM, {frozen.steps} steps, guidance {frozen.guidance:g}, scale {frozen.scale:g}, seeds {', '.join(map(str, frozen.seeds))}, "
        f"negative prompt {frozen.negative!r}",
        "software": _software(),
    }  # fmt: skip


@functools.cache
def _software() -> str:
    return ", ".join([f"controlmill {__version__}", *(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)])


def _speeds(catalog: Catalog, made: Mapping[str, System]) -> Iterator[board.Speed]:
    found = dict(catalog.query("SELECT system, avg(seconds) FROM samples WHERE status = 'ok' GROUP BY system"))
    for system in made.values():
        if system.arm in (CONTROL, NO_CONTROL) and system.name in found:
            yield board.Speed(model=system.model, condition=system.condition, seconds_per_image=found[system.name])


def _evidence(plan: Plan, catalog: Catalog, made: Mapping[str, System]) -> Iterator[board.Evidence]:
    """Of each model its best, median and worst sample, and some that all models share."""
    for system in made.values():
        if system.arm != CONTROL:
            continue
        metric = measures.telling(CONDITIONS[system.condition].kind)
        found = catalog.query(
            """SELECT image_id, seed, value FROM sample_scores JOIN (SELECT DISTINCT system, identity FROM scores) s
               ON s.system = sample_scores.system AND s.identity = benchmark
               WHERE sample_scores.system = ? AND metric = ? AND status = 'ok' ORDER BY value, image_id, seed""",
            [system.name, metric.name],
        )
        if not found:
            continue
        if not metric.higher_is_better:
            found.reverse()
        chosen: list[tuple[Any, tuple[str, int, float]]] = [("best", found[-1]), ("median", found[len(found) // 2]), ("worst", found[0])]
        scores = {(image_id, seed): value for image_id, seed, value in found}
        assert plan.manifest.evaluate is not None
        seed = plan.manifest.evaluate.benchmark.seeds[0]
        chosen += [("same", (it.image_id, seed, scores[it.image_id, seed])) for it in system.items[:SAME] if (it.image_id, seed) in scores]
        for which, (image_id, sample_seed, value) in chosen:
            item = next(it for it in system.items if it.image_id == image_id)
            shown = evidence.outcome(plan, catalog, system, image_id, sample_seed)
            if shown is not None:
                hint = maps.render(evidence.truth(plan, system, item))
                reread = maps.render(shown.map) if shown.map else None
                yield board.Evidence(
                    condition=system.condition, model=system.model, metric=metric.name, which=which, image_id=image_id,
                    prompt=item.caption[:CAPTION], seed=sample_seed, score=value, hint=thumbnail(hint),
                    source=thumbnail(evidence.photograph(catalog, image_id), "jpeg"), generated=thumbnail(shown.image),
                    reread=thumbnail(reread) if reread is not None else shown.reason,
                    difference=thumbnail(_difference(hint, reread)) if reread is not None else None,
                )  # fmt: skip


def _difference(hint: np.ndarray, reread: np.ndarray) -> np.ndarray:
    return np.abs(hint.astype(np.int16) - reread).astype(np.uint8)
