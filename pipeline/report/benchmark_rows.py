"""What the report says of runs and their scores, with pictures of the first pairs of each benchmark."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from evaluate import fidelity
from evaluate.replicates import difference
from pipeline.benchmark import evidence
from pipeline.benchmark.estimates import replicated
from pipeline.benchmark.evidence import Sample, thumbnail
from pipeline.benchmark.systems import ALONE, BEFORE, CONTROL, REAL, ROUND_TRIP, System
from pipeline.catalog import Catalog
from pipeline.experiment.logs import follows, held_out_rows, read_log
from pipeline.experiment.pairs import called
from pipeline.plan import Plan
from pipeline.report import contents
from pipeline.report.dataset_rows import short
from pipeline.report.learning import followed
from pipeline.report.summary import learning_curves, thousandths

PAIRS = 6  # of the evidence


def _gains(log: list[dict[str, Any]], condition: str) -> tuple[tuple[float, float, float | None], ...]:
    measured = [row for row in held_out_rows(log, condition) if row[1]["gap"] is not None]
    shuffled = [numbers.get("shuffled_gap") for _, numbers in measured]
    return tuple(
        (float(images), thousandths(numbers["gap"]), None if other is None else thousandths(other))
        for (images, numbers), other in zip(measured, shuffled, strict=True)
    )


def runs(plan: Plan, catalog: Catalog, made: list[System]) -> Iterator[contents.RunRow]:
    curves = learning_curves(catalog, made)
    sql = (
        "SELECT run, name, conditions, base, random_weights, images, steps, seconds, checkpoint, options"
        " FROM runs ORDER BY run"
    )
    for row in catalog.query(sql):
        name, title, conditions, base, random_weights, images, steps, seconds, checkpoint, options = row
        log = read_log(plan.workspace.run(name))
        curve = tuple(
            (float(row["images"]), float(np.mean(list(row["loss"].values()))))
            for row in log
            if row.get("loss")
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
            followed={
                name: followed(follows(log).get(name), held_out_rows(log, name)) for name in conditions
            },
            gains={condition: _gains(log, condition) for condition in conditions},
            learning_curves={
                condition: curves[name, condition] for condition in conditions if (name, condition) in curves
            },
            checkpoint=checkpoint or None,
            options={key: str(value) for key, value in json.loads(options).items()},
        )


def scores(plan: Plan, catalog: Catalog, made: list[System]) -> Iterator[contents.ScoreRow]:
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
                vae=system.variant == ROUND_TRIP,
                condition=system.condition,
                definition=facts.definition,
                detector=row["reader"],
                maker=plan.conditions[system.condition].fingerprint,
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


def evidence_rows(plan: Plan, catalog: Catalog, made: list[System]) -> Iterator[contents.EvidenceRow]:
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
                    prompt=short(item.caption),
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
