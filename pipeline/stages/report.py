"""The catalog and a few pictures -> report/index.html. Written whenever a stage ends, so it fills as the job goes on."""

import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from annotate import maps
from annotate.annotator import lacks
from annotate.conditions import CONDITIONS
from evaluate import fidelity, statistics
from pipeline import MillError, __version__, canonical, manifest, shards, status
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.report import contents
from pipeline.report.site import render
from pipeline.stages.annotate import read_annotation
from pipeline.stages.generate import CONTROL, Arm, arms
from pipeline.stages.score import score_key, scored
from pipeline.stages.train import read_log

ROWS, PAIRS, SIDE = 24, 6, 256  # of the contact sheet and the evidence; thumbnails' long side in pixels
CAPTION = 400  # characters of a caption that the page shows


def report(plan: Plan, catalog: Catalog) -> Path:
    """Returns the page's path; its pictures lie beside it."""
    told = status.facts(catalog)
    runs, systems = tuple(_runs(plan, catalog)), _systems(plan, catalog)
    data = contents.ReportData(
        name=plan.manifest.name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=f"controlmill {__version__}",
        manifest=manifest.dump(plan.manifest),
        machine=_machine(),
        notes=tuple(_notes(plan, runs)),
        stages=tuple(_stages(plan, told, runs, systems)),
        ingest=_ingest(catalog, told) if told["images"] else None,
        conditions=tuple(_conditions(plan, catalog, told)),
        contact=tuple(_contact(plan, catalog)),
        runs=runs,
        scores=tuple(_scores(plan, catalog, systems)),
        evidence=tuple(_evidence(plan, catalog, systems)),
    )
    return render(data, plan.workspace.report)


def _systems(plan: Plan, catalog: Catalog) -> list[Arm]:
    try:
        return arms(plan, catalog)
    except MillError:
        return []  # a report under way: what the stages before still lack, they say themselves


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cores": str(os.cpu_count()), "memory": f"{memory:.0f} GiB", "system": platform.system(), "python": platform.python_version()}


def _notes(plan: Plan, runs: tuple[contents.Run, ...]) -> Iterator[str]:
    if any(run.random_weights for run in runs):
        yield (
            "The base model has random weights: it was never trained. What is generated and scored here shows that every step of the job runs, "
            "not what a ControlNet can do. Set train.base to a trained model for results that mean something."
        )
    unscored = {name for run in runs for name in run.conditions if not scored(plan, name)}
    if unscored:
        yield f"No fidelity measure yet for {', '.join(sorted(unscored))}: these runs have samples and no scores."


def _stages(plan: Plan, told: dict[str, Any], runs: tuple[contents.Run, ...], systems: list[Arm]) -> Iterator[contents.Stage]:
    def state(asked: object, had: int, wanted: int) -> Any:
        return "off" if not asked else "done" if had and had >= wanted else "running" if had else "waiting"

    readable = told["images"].get("ok", 0)
    made = sum(it["ok"] + it["skipped"] + it["failed"] for it in told["conditions"].values())
    seen, asked_for = (
        sum(run.images_seen for run in runs),
        sum(run.images for run in plan.manifest.train.runs) if plan.manifest.train else 0,
    )
    samples = sum(told["samples"].values())
    distinct = {arm.samples: len(arm.items) for arm in systems}
    wanted = sum(distinct.values()) * len(plan.manifest.evaluate.benchmark.seeds) if plan.manifest.evaluate else 0
    yield contents.Stage(name="ingest", state=state(True, readable, 1), detail=f"{readable} images")
    yield contents.Stage(name="annotate", state=state(True, made, readable * len(plan.conditions)), detail=f"{made} maps")
    yield contents.Stage(name="encode", state=state(plan.manifest.train, told["latents"], readable), detail=f"{told['latents']} images")
    yield contents.Stage(name="train", state=state(plan.manifest.train, seen, asked_for), detail=f"{seen:,} of {asked_for:,} images seen")
    yield contents.Stage(name="generate", state=state(plan.manifest.evaluate, samples, max(1, wanted)), detail=f"{samples} samples")
    yield contents.Stage(name="score", state=state(plan.manifest.evaluate, told["scores"], 1), detail=f"{told['scores']} scores")


def _ingest(catalog: Catalog, told: dict[str, Any]) -> contents.Ingest:
    sizes = catalog.query(
        "SELECT width || '×' || height, count(*) FROM images WHERE status = 'ok' GROUP BY ALL ORDER BY count(*) DESC, 1 LIMIT 12"
    )
    reasons = catalog.query(
        """SELECT i.reason, count(DISTINCT image_id), list(DISTINCT uri ORDER BY uri)[:3] FROM images i JOIN sources USING (image_id)
           WHERE i.status = 'failed' GROUP BY ALL ORDER BY 2 DESC, 1"""
    )
    return contents.Ingest(
        by_status=told["images"], by_split=told["splits"], by_size=dict(sizes), n_sources=told["sources"],
        n_duplicates=told["sources"] - sum(told["images"].values()),
        reasons=tuple(contents.Reason(text=text, count=count, examples=tuple(uris)) for text, count, uris in reasons),
    )  # fmt: skip


def _conditions(plan: Plan, catalog: Catalog, told: dict[str, Any]) -> Iterator[contents.Condition]:
    reasons: dict[str, list[contents.Reason]] = {}
    sql = """SELECT condition, a.status, reason, count(*), list(uri ORDER BY uri)[:3] FROM annotations a JOIN sources USING (image_id)
             WHERE a.status <> 'ok' GROUP BY ALL ORDER BY count(*) DESC, reason"""
    for name, state, text, count, uris in catalog.query(sql):
        reasons.setdefault(name, []).append(contents.Reason(text=text, count=count, status=state, examples=tuple(uris)))
    seconds = dict(catalog.query("SELECT condition, avg(seconds) FROM annotations WHERE status <> 'failed' GROUP BY condition"))
    measures: dict[str, dict[str, float]] = {}
    entries = "SELECT condition, unnest(map_entries(measures)) AS e FROM annotations WHERE status = 'ok'"
    for name, measure, value in catalog.query(f"SELECT condition, e.key, avg(e.value) FROM ({entries}) GROUP BY ALL ORDER BY ALL"):
        measures.setdefault(name, {})[measure] = value
    for name, row in CONDITIONS.items():
        facts = {"name": name, "title": row.title, "kind": row.kind}
        planned, counts = plan.conditions.get(name), told["conditions"].get(name)
        if planned is None or counts is None:
            lack = lacks(name)
            yield contents.Condition(**facts, state="lacking" if lack else "not asked", lacks=lack or "")  # type: ignore[arg-type]
            continue
        yield contents.Condition(
            **facts, state="made", detector=planned.step.detector, version=str(planned.identity["version"]), # type: ignore[arg-type]
            licence=planned.record()["licence"], fingerprint=planned.fingerprint, ok=counts["ok"], skipped=counts["skipped"],
            failed=counts["failed"], todo=counts["to do"], seconds=seconds.get(name), measures=measures.get(name, {}),
            reasons=tuple(reasons.get(name, ())),
        )  # fmt: skip


def _contact(plan: Plan, catalog: Catalog) -> Iterator[contents.ContactRow]:
    """The images with the most maps first, then in the order of the source."""
    chosen = catalog.query(
        """SELECT i.image, i.image_id, any_value(uri), any_value(caption), any_value(i.split), any_value(i.shard), any_value(i.row)
           FROM images i JOIN sources USING (image_id) LEFT JOIN annotations a ON a.image = i.image AND a.status = 'ok'
           WHERE i.status = 'ok' GROUP BY i.image, i.image_id ORDER BY count(DISTINCT a.condition) DESC, i.image LIMIT ?""",
        [ROWS],
    )
    sql = "SELECT image, condition, status, reason, shard, row FROM annotations WHERE image IN (SELECT unnest(?))"
    made_of: dict[int, list[Any]] = {}
    for image, *annotation in catalog.query(sql, [[image for image, *_ in chosen]]):
        made_of.setdefault(image, []).append(annotation)
    for image, image_id, uri, caption, split, shard, row in chosen:
        drawn: dict[str, bytes | str] = {}
        for condition, state, reason, map_shard, map_row in sorted(made_of.get(image, []), key=lambda it: list(CONDITIONS).index(it[0])):
            made = read_annotation(plan.workspace, map_shard, map_row, condition).map if state == "ok" else None
            drawn[condition] = _thumbnail(maps.render(made)) if made else f"{state}: {reason}"
        picture = canonical.decode(shards.read_row(plan.workspace.root / shard, row, ["image"])["image"])
        yield contents.ContactRow(
            image_id=image_id, uri=uri, caption=_short(caption or ""), split=split, image=_thumbnail(picture, "jpeg"), maps=drawn
        )  # fmt: skip


def _gaps(log: list[dict[str, Any]]) -> dict[str, tuple[tuple[float, float, float | None], ...]]:
    """The held-out measures of each condition, as train/held_out.py wrote them."""
    curves: dict[str, list[tuple[float, float, float | None]]] = {}
    for row in log:
        for condition, told in row.get("held_out", {}).items():
            if told["gap"] is not None:
                curves.setdefault(condition, []).append((float(row["images"]), told["gap"], told["shuffled_gap"]))
    return {condition: tuple(points) for condition, points in curves.items()}


def _follows(log: list[dict[str, Any]]) -> dict[str, int]:
    return next((row["alarm"] for row in reversed(log) if "alarm" in row), {})


def _runs(plan: Plan, catalog: Catalog) -> Iterator[contents.Run]:
    sql = "SELECT run, conditions, base, random_weights, images, steps, seconds, checkpoint, options FROM runs ORDER BY run"
    for name, conditions, base, random_weights, images, steps, seconds, checkpoint, options in catalog.query(sql):
        log = read_log(plan.workspace.run(name))
        curve = tuple((float(row["images"]), float(np.mean(list(row["loss"].values())))) for row in log)
        yield contents.Run(
            name=name, conditions=tuple(conditions), base=base, random_weights=random_weights, images_seen=images, steps=steps, seconds=seconds,
            images_per_second=images / seconds if seconds else None, loss=curve, gaps=_gaps(log), follows=_follows(log),
            checkpoint=checkpoint or None, options={key: str(value) for key, value in json.loads(options).items()},
        )  # fmt: skip


def _samples(catalog: Catalog, system: str, key: str, metric: str) -> dict[tuple[str, int], float]:
    rows = catalog.query(
        "SELECT image_id, seed, value FROM sample_scores WHERE system = ? AND benchmark = ? AND metric = ?", [system, key, metric]
    )
    return {(image_id, seed): value for image_id, seed, value in rows}


def _scores(plan: Plan, catalog: Catalog, systems: list[Arm]) -> Iterator[contents.ScoreRow]:
    sql = """SELECT metric, value, low, high, n, n_failed, higher_is_better, checkpoint, seeds FROM scores
             WHERE run = ? AND condition = ? AND system = ?"""
    for arm in systems:
        for metric, value, low, high, n, n_failed, better, checkpoint, seeds in catalog.query(sql, [arm.run, arm.condition, arm.arm]):
            baselines = [it for it in _siblings(arm, systems) if it.arm != CONTROL] if arm.arm == CONTROL else []
            yield contents.ScoreRow(
                system=_name(arm), baseline=arm.arm != CONTROL, condition=arm.condition, metric=metric, value=value, low=low, high=high, n=n,
                n_failed=n_failed, higher_is_better=better, definition=fidelity.METRICS[metric].definition,
                detector=plan.conditions[arm.condition].fingerprint, checkpoint=checkpoint, seeds=tuple(json.loads(seeds)),
                comparisons=tuple(found for it in baselines if (found := _comparison(plan, catalog, arm, it, metric))),
            )  # fmt: skip


def _comparison(plan: Plan, catalog: Catalog, arm: Arm, baseline: Arm, metric: str) -> contents.Comparison | None:
    """Sample by sample, over those that both have."""
    own, theirs = (_samples(catalog, it.system, score_key(plan, it), metric) for it in (arm, baseline))
    both = sorted(own.keys() & theirs.keys())
    if not both:
        return None
    found = statistics.paired_difference([own[it] for it in both], [theirs[it] for it in both], [image for image, _ in both])
    return contents.Comparison(against=baseline.arm, difference=found.mean, low=found.low, high=found.high, p=found.p)


def _siblings(arm: Arm, systems: list[Arm]) -> list[Arm]:
    return [it for it in systems if (it.run, it.condition) == (arm.run, arm.condition)]


def _name(arm: Arm) -> str:
    return arm.run if arm.arm == CONTROL else arm.arm


def _evidence(plan: Plan, catalog: Catalog, systems: list[Arm]) -> Iterator[contents.Evidence]:
    for control in (arm for arm in systems if arm.arm == CONTROL):
        assert plan.manifest.evaluate is not None
        seed = plan.manifest.evaluate.benchmark.seeds[0]
        for item in control.items[:PAIRS]:
            outputs = [made for arm in _siblings(control, systems) if (made := _generated(plan, catalog, arm, item.image_id, seed))]
            truth = read_annotation(plan.workspace, item.map_shard, item.row, control.condition).map
            if not outputs or truth is None:
                continue
            ((shard, row),) = catalog.query("SELECT shard, row FROM images WHERE image_id = ?", [item.image_id])
            photograph = canonical.decode(shards.read_row(plan.workspace.root / shard, row, ["image"])["image"])
            yield contents.Evidence(
                condition=control.condition, image_id=item.image_id, prompt=_short(item.caption), seed=seed, hint=_thumbnail(maps.render(truth)),
                source=_thumbnail(photograph, "jpeg"), outputs=tuple(outputs),
            )  # fmt: skip


def _generated(plan: Plan, catalog: Catalog, arm: Arm, image_id: str, seed: int) -> contents.Generated | None:
    key = [arm.samples, arm.benchmark, image_id, seed]
    found = catalog.query(
        "SELECT shard, row FROM samples WHERE system = ? AND benchmark = ? AND image_id = ? AND seed = ? AND status = 'ok'", key
    )
    if not found:
        return None
    image = shards.read_row(plan.workspace.root / found[0][0], found[0][1], ["image"])["image"]
    reread: bytes | str = "not scored"
    values = {}
    if scored(plan, arm.condition):
        sql = "SELECT metric, value, reason, shard, row FROM sample_scores WHERE system = ? AND benchmark = ? AND image_id = ? AND seed = ?"
        for metric, value, reason, shard, row in catalog.query(sql, [arm.system, score_key(plan, arm), image_id, seed]):
            values[metric] = value
            stored = shards.read_row(plan.workspace.root / shard, row, ["map", "meta"])
            if stored["map"] is None:
                reread = reason or "nothing found"
            else:
                reread = _thumbnail(maps.render(maps.decode(CONDITIONS[arm.condition].kind, stored["map"], json.loads(stored["meta"]))))
    name = arm.run if arm.arm == CONTROL else arm.arm
    return contents.Generated(
        system=name, baseline=arm.arm != CONTROL, image=_thumbnail(canonical.decode(image)), reread=reread, values=values
    )


def _short(text: str) -> str:
    return text if len(text) <= CAPTION else f"{text[:CAPTION]}…"


def _thumbnail(pixels: np.ndarray, store: str = "png") -> bytes:
    """uint8 HWC RGB, scaled down to SIDE at its long side."""
    import cv2

    scale = SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return canonical.encode(pixels, store)
