"""The catalog and a few pictures -> report/index.html.

Written whenever a stage ends, so it fills as the job goes on.
"""

import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from annotate.annotator import lacks
from annotate.conditions import CONDITIONS
from evaluate import fidelity
from evaluate.replicates import difference
from pipeline import MillError, __version__, manifest
from pipeline.benchmark import evidence
from pipeline.benchmark.estimates import replicated
from pipeline.benchmark.evidence import Sample, thumbnail
from pipeline.benchmark.systems import (
    ALONE,
    BEFORE,
    CONTROL,
    EARLIER,
    REAL,
    ROUND_TRIP,
    System,
    readable,
)
from pipeline.benchmark.tasks import tasks_of
from pipeline.catalog import Catalog
from pipeline.dataset.maps import read_annotation
from pipeline.experiment.logs import follows, held_out_rows, read_log
from pipeline.experiment.pairs import called
from pipeline.plan import Plan
from pipeline.report import contents, leaderboard_scores
from pipeline.report.counts import WorkspaceCounts, workspace_counts
from pipeline.report.site import render
from pipeline.report.summary import learning_curves, summary, thousandths
from pipeline.stages.stage import StageContext, StageResult
from pipeline.storage import codec, shards

ROWS, PAIRS = 24, 6  # of the contact sheet and the evidence
CAPTION = 400  # characters of a caption that the page shows


def report(context: StageContext) -> StageResult:
    """MillError where the manifest's benchmark can't be held; the page alone can be written all the same."""
    plan, catalog, board = context.plan, context.catalog, None
    if plan.manifest.evaluate:
        folder = plan.workspace.report / "leaderboard"
        board = leaderboard_scores.write(plan, catalog, context.systems, folder)
    pages = [path for path in (write_page(context), board) if path]
    return StageResult(" and ".join(map(str, pages)), done=len(pages))


def write_page(context: StageContext) -> Path:
    """Returns the page's path; its pictures lie beside it."""
    plan, catalog = context.plan, context.catalog
    counts = workspace_counts(catalog)
    made = _systems(context)
    runs = tuple(_runs(plan, catalog, made))
    # those are shown as the learning curve of their run
    compared = [system for system in made if system.variant != EARLIER]
    data = contents.ReportData(
        name=plan.manifest.name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=f"controlmill {__version__}",
        manifest=manifest.dump(plan.manifest),
        machine=_machine(),
        notes=tuple(_notes(plan, runs)),
        stages=tuple(_stages(plan, counts, runs, made)),
        ingest=_ingest(catalog, counts) if counts.images else None,
        conditions=tuple(_conditions(plan, catalog, counts)),
        contact=tuple(_contact(plan, catalog)),
        runs=runs,
        scores=tuple(_scores(plan, catalog, compared)),
        summary=tuple(summary(plan, catalog, compared)),
        evidence=tuple(_evidence(plan, catalog, compared)),
        leaderboard=counts.scores > 0,
    )
    return render(data, plan.workspace.report)


def _systems(context: StageContext) -> list[System]:
    try:
        return context.systems
    except MillError:
        return []  # a report under way: what the stages before still lack, they say themselves


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _notes(plan: Plan, runs: tuple[contents.RunRow, ...]) -> Iterator[str]:
    if any(run.random_weights for run in runs):
        yield (
            "The base model has random weights: it was never trained. What is generated and scored here shows"
            " that every step of the job runs, not what a ControlNet can do. Set train.base to a trained"
            " model for results that mean something."
        )
    unread = {
        name
        for run in runs
        for name in run.conditions
        if name in plan.conditions and not readable(plan, name)
    }
    if unread and plan.manifest.evaluate:
        yield (
            f"No detector reads {', '.join(sorted(unread))} again from what was generated, since their maps"
            " came with the images: name one in evaluate.readers."
        )


def _stages(
    plan: Plan, counts: WorkspaceCounts, runs: tuple[contents.RunRow, ...], made_by: list[System]
) -> Iterator[contents.Stage]:
    def state(asked: object, had: int, wanted: int) -> Any:
        return "off" if not asked else "done" if had and had >= wanted else "running" if had else "waiting"

    readable = counts.readable
    made = sum(one.rows for one in counts.conditions.values())
    seen, asked_for = (
        sum(run.images_seen for run in runs),
        sum(run.images for run in plan.manifest.train.runs) if plan.manifest.train else 0,
    )
    samples = sum(counts.samples.values())
    drawn = {(it.sample_set, it.key): it for it in made_by}.values()
    asked = (
        sum(len(tasks_of(it, plan.manifest.evaluate.benchmark)) for it in drawn)
        if plan.manifest.evaluate
        else 0
    )
    yield contents.Stage(name="ingest", state=state(True, readable, 1), detail=f"{readable} images")
    yield contents.Stage(
        name="annotate", state=state(True, made, readable * len(plan.conditions)), detail=f"{made} maps"
    )
    yield contents.Stage(
        name="encode",
        state=state(plan.manifest.train, counts.latents, readable),
        detail=f"{counts.latents} images",
    )
    yield contents.Stage(
        name="train",
        state=state(plan.manifest.train, seen, asked_for),
        detail=f"{seen:,} of {asked_for:,} images seen",
    )
    yield contents.Stage(
        name="generate",
        state=state(plan.manifest.evaluate, samples, max(1, asked)),
        detail=f"{samples} samples",
    )
    yield contents.Stage(
        name="score",
        state=state(plan.manifest.evaluate, counts.scores, 1),
        detail=f"{counts.scores} scores",
    )


def _ingest(catalog: Catalog, counts: WorkspaceCounts) -> contents.Ingest:
    sizes = catalog.query(
        "SELECT width || '×' || height, count(*) FROM images WHERE status = 'ok' GROUP BY ALL ORDER BY"
        " count(*) DESC, 1 LIMIT 12"
    )
    reasons = catalog.query(
        """SELECT i.reason, count(DISTINCT image_id), list(DISTINCT uri ORDER BY uri)[:3] FROM images i JOIN
           sources USING (image_id)
           WHERE i.status = 'failed' GROUP BY ALL ORDER BY 2 DESC, 1"""
    )
    return contents.Ingest(
        by_status=counts.images,
        by_split=counts.splits,
        by_size=dict(sizes),
        n_sources=counts.sources,
        n_duplicates=counts.sources - sum(counts.images.values()),
        reasons=tuple(
            contents.Reason(text=text, count=count, examples=tuple(uris)) for text, count, uris in reasons
        ),
    )


def _conditions(plan: Plan, catalog: Catalog, counts: WorkspaceCounts) -> Iterator[contents.ConditionRow]:
    reasons: dict[str, list[contents.Reason]] = {}
    sql = """SELECT condition, a.status, reason, count(*), list(uri ORDER BY uri)[:3] FROM annotations a JOIN
             sources USING (image_id)
             WHERE a.status <> 'ok' GROUP BY ALL ORDER BY count(*) DESC, reason, a.status, condition"""
    for name, state, text, count, uris in catalog.query(sql):
        reasons.setdefault(name, []).append(
            contents.Reason(text=text, count=count, status=state, examples=tuple(uris))
        )
    seconds = dict(
        catalog.query(
            "SELECT condition, avg(seconds) FROM annotations WHERE status <> 'failed' GROUP BY condition"
        )
    )
    measures: dict[str, dict[str, float]] = {}
    entries = "SELECT condition, unnest(map_entries(measures)) AS e FROM annotations WHERE status = 'ok'"
    for name, measure, value in catalog.query(
        f"SELECT condition, e.key, avg(e.value) FROM ({entries}) GROUP BY ALL ORDER BY ALL"
    ):
        measures.setdefault(name, {})[measure] = value
    for name, row in CONDITIONS.items():
        facts = {"name": name, "title": row.title, "kind": row.kind}
        planned, rows = plan.conditions.get(name), counts.conditions.get(name)
        if planned is None or rows is None:
            lack = lacks(name)
            yield contents.ConditionRow(**facts, state="lacking" if lack else "not asked", lacks=lack or "")  # type: ignore[arg-type]
            continue
        yield contents.ConditionRow(
            **facts,
            state="made",
            detector=planned.step.detector,
            version=str(planned.identity["version"]),  # type: ignore[arg-type]
            licence=planned.record()["licence"],
            fingerprint=planned.fingerprint,
            ok=rows.ok,
            skipped=rows.skipped,
            failed=rows.failed,
            todo=rows.todo,
            seconds=seconds.get(name),
            measures=measures.get(name, {}),
            reasons=tuple(reasons.get(name, ())),
        )


def _contact(plan: Plan, catalog: Catalog) -> Iterator[contents.ContactRow]:
    """The images with the most maps first, then in the order of the source."""
    chosen = catalog.query(
        """SELECT i.image, i.image_id, arg_min(uri, (sources.part, position)), arg_min(caption,
           (sources.part, position)), i.split, i.shard, i.row
           FROM images i JOIN sources USING (image_id) LEFT JOIN annotations a ON a.image = i.image AND
           a.status = 'ok'
           WHERE i.status = 'ok' GROUP BY ALL ORDER BY count(DISTINCT a.condition) DESC, i.image LIMIT ?""",
        [ROWS],
    )
    sql = (
        "SELECT image, condition, status, reason, shard, row FROM annotations WHERE image IN (SELECT"
        " unnest(?))"
    )
    made_of: dict[int, list[Any]] = {}
    for image, *annotation in catalog.query(sql, [[image for image, *_ in chosen]]):
        made_of.setdefault(image, []).append(annotation)
    for image, image_id, uri, caption, split, shard, row in chosen:
        drawn: dict[str, bytes | str] = {}
        for condition, state, reason, map_shard, map_row in sorted(
            made_of.get(image, []), key=lambda it: list(CONDITIONS).index(it[0])
        ):
            made = (
                read_annotation(plan.workspace, map_shard, map_row, condition).map if state == "ok" else None
            )
            drawn[condition] = thumbnail(evidence.drawn_small(made)) if made else f"{state}: {reason}"
        picture = codec.decode(shards.read_row(plan.workspace.root / shard, row, ["image"])["image"])
        yield contents.ContactRow(
            image_id=image_id,
            uri=uri,
            caption=_short(caption or ""),
            split=split,
            image=thumbnail(picture, "jpeg"),
            maps=drawn,
        )


def _gains(log: list[dict[str, Any]], condition: str) -> tuple[tuple[float, float, float | None], ...]:
    measured = [row for row in held_out_rows(log, condition) if row[1]["gap"] is not None]
    shuffled = [numbers.get("shuffled_gap") for _, numbers in measured]
    return tuple(
        (float(images), thousandths(numbers["gap"]), None if other is None else thousandths(other))
        for (images, numbers), other in zip(measured, shuffled, strict=True)
    )


def _runs(plan: Plan, catalog: Catalog, made: list[System]) -> Iterator[contents.RunRow]:
    curves = learning_curves(catalog, made)
    sql = (
        "SELECT run, name, conditions, base, random_weights, images, steps, seconds, checkpoint, options"
        " FROM runs ORDER BY run"
    )
    for row in catalog.query(sql):
        name, title, conditions, base, random_weights, images, steps, seconds, checkpoint, options = row
        log = read_log(plan.workspace.run(name))
        curve = tuple(
            (float(row["images"]), float(np.mean(list(row["loss"].values())))) for row in log if "loss" in row
        )
        yield contents.RunRow(
            name=called(name, title),
            conditions=tuple(conditions),
            base=base,
            random_weights=random_weights,
            images_seen=images,
            steps=steps,
            seconds=seconds,
            images_per_second=images / seconds if seconds else None,
            loss=curve,
            convergence_step=follows(log),
            gains={condition: _gains(log, condition) for condition in conditions},
            learning_curves={
                condition: curves[name, condition] for condition in conditions if (name, condition) in curves
            },
            checkpoint=checkpoint or None,
            options={key: str(value) for key, value in json.loads(options).items()},
        )


def _scores(plan: Plan, catalog: Catalog, made: list[System]) -> Iterator[contents.ScoreRow]:
    """The primary measure of each condition; the leaderboard has all of them."""
    names = (
        "metric",
        "value",
        "low",
        "high",
        "n",
        "n_failed",
        "higher_is_better",
        "checkpoint",
        "reader",
        "replicates",
        "method",
        "prompts",
    )
    sql = f"SELECT {', '.join(names)} FROM scores WHERE system = ? ORDER BY metric"
    rows = {
        system.name: {row[0]: dict(zip(names, row, strict=True)) for row in catalog.query(sql, [system.name])}
        for system in made
    }
    for system in made:
        for metric, row in rows[system.name].items():
            facts = fidelity.METRICS.get(metric)
            if facts is None or not facts.primary:
                continue
            others = (
                [it for it in _siblings(system, made) if it.variant != CONTROL and metric in rows[it.name]]
                if system.variant == CONTROL
                else []
            )
            yield contents.ScoreRow(
                system=_name(system),
                baseline=system.variant not in (CONTROL, BEFORE),
                ceiling=system.variant in (REAL, ROUND_TRIP),
                condition=system.condition,
                definition=facts.definition,
                detector=row["reader"],
                seeds=tuple(plan.manifest.evaluate.benchmark.seeds if plan.manifest.evaluate else ()),
                comparisons=tuple(_comparison(it, row, rows[it.name][metric]) for it in others),
                **{
                    key: row[key]
                    for key in (
                        "metric",
                        "value",
                        "low",
                        "high",
                        "n",
                        "n_failed",
                        "higher_is_better",
                        "checkpoint",
                    )
                },
            )


def _comparison(baseline: System, own: dict[str, Any], theirs: dict[str, Any]) -> contents.PairedDifference:
    found = difference(replicated(own), replicated(theirs))
    return contents.PairedDifference(
        against=_name(baseline), difference=found.value, low=found.low, high=found.high, p=found.p
    )


def _siblings(system: System, made: list[System]) -> list[System]:
    """What a ControlNet is shown beside: itself, its shuffled self, and the baselines of its condition."""
    return [
        it
        for it in made
        if it.condition == system.condition and (it.variant in ALONE or it.model == system.model)
    ]


def _name(system: System) -> str:
    return {CONTROL: system.shown, BEFORE: f"{system.shown} at its start"}.get(system.variant, system.variant)


def _evidence(plan: Plan, catalog: Catalog, made: list[System]) -> Iterator[contents.EvidenceRow]:
    """The first pairs of each benchmark."""
    if plan.manifest.evaluate is None:
        return
    seed = plan.manifest.evaluate.benchmark.seeds[0]
    images = sorted({item.image_id for system in made for item in system.items[:PAIRS]})
    photographs = evidence.photographs(catalog, images)
    samples = evidence.samples(plan, catalog, made, images)
    at = {(name, it.image_id): it for name, found in samples.items() for it in found if it.seed == seed}
    for control in (system for system in made if system.variant == CONTROL):
        others = [it for it in _siblings(control, made) if it.variant != REAL]
        for item in control.items[:PAIRS]:
            outputs = [
                _generated(plan, found) for it in others if (found := at.get((it.name, item.image_id)))
            ]
            if outputs:
                yield contents.EvidenceRow(
                    condition=control.condition,
                    image_id=item.image_id,
                    prompt=_short(item.caption),
                    seed=seed,
                    hint=thumbnail(evidence.drawn_small(evidence.truth(plan.workspace, control, item))),
                    source=thumbnail(evidence.photograph(plan.workspace, photographs[item.image_id]), "jpeg"),
                    outputs=tuple(outputs),
                )


def _generated(plan: Plan, sample: Sample) -> contents.Generated:
    found = evidence.reread(plan.workspace, sample)
    return contents.Generated(
        system=_name(sample.system),
        baseline=sample.system.variant not in (CONTROL, BEFORE),
        image=thumbnail(evidence.drawn(plan.workspace, sample)),
        reread=found if isinstance(found, str) else thumbnail(evidence.drawn_small(found)),
        values=sample.values,
    )


def _short(text: str) -> str:
    return text if len(text) <= CAPTION else f"{text[:CAPTION]}…"
