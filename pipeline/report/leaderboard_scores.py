"""The catalog's scores -> the leaderboard: ranks with their ties, normalized scores, evidence, and the
provenance of every number.
"""

import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from annotate.conditions import CONDITIONS
from evaluate import fidelity, measures, replicates, sizes
from evaluate.comparison import Metric
from pipeline import __version__
from pipeline.benchmark import entrants, networks
from pipeline.benchmark.estimates import replicated
from pipeline.benchmark.systems import (
    ALONE,
    CONTROL,
    EARLIER,
    NO_CONTROL,
    PLAIN,
    SHUFFLED,
    System,
    readable,
)
from pipeline.catalog import Catalog
from pipeline.experiment.base import ON_RANDOM_WEIGHTS, RANDOM_BASE
from pipeline.manifest import AnySource, Manifest
from pipeline.manifest import published as own_published
from pipeline.manifest.evaluation import GUIDE_HINT
from pipeline.plan import Plan
from pipeline.report import leaderboard
from pipeline.report.leaderboard_data import (
    EvidenceSample,
    FrozenBenchmark,
    Leaderboard,
    LeaderboardModel,
    Measure,
    Published,
    Speed,
    guided,
    published,
)
from pipeline.report.leaderboard_evidence import evidence_samples
from pipeline.report.origins import with_origins
from pipeline.report.placing import CatalogScore, placed
from train.samplers import TITLES

# what every sample was drawn and read with; a measure's own libraries stand beside them
SAMPLING = ("torch", "diffusers", "transformers", "safetensors", "numpy", "opencv-python-headless")

COLUMNS = (
    "system", "model", "variant", "condition", "metric", "metric_version", "value", "low", "high", "n",
    "n_failed", "prompts", "method", "replicates",
    "higher_is_better", "benchmark", "reader", "checkpoint", "score_key", "caveats",
)  # fmt: skip


def write(plan: Plan, catalog: Catalog, systems: list[System], folder: Path) -> Path | None:
    """Returns the page; None = nothing is scored yet."""
    with catalog.reading():
        scored = _leaderboard(plan, catalog, systems)
        if scored:
            scored = with_origins(scored, plan, catalog, systems)
    return leaderboard.render(scored, folder) if scored else None


def _leaderboard(plan: Plan, catalog: Catalog, systems: list[System]) -> Leaderboard | None:
    # the report has the learning curve of a run
    compared = {system.name: system for system in systems if system.variant != EARLIER}
    controls = [system for system in compared.values() if system.variant == CONTROL]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # begun first: pictures are read and drawn while ranks are counted
        evidence = evidence_samples(plan, catalog, controls, pool)
        scores = [score for score in catalog_scores(catalog) if score.system in compared]
        return build(plan, catalog, compared, scores, evidence) if scores else None


def catalog_scores(catalog: Catalog) -> Iterator[CatalogScore]:
    for values in catalog.query(f"SELECT {', '.join(COLUMNS)} FROM scores ORDER BY ALL"):
        row = dict(zip(COLUMNS, values, strict=True))
        if fidelity.retired(row["metric"]):
            continue
        score = replicated(row)
        del row["replicates"]
        yield CatalogScore(**row | {"caveats": tuple(json.loads(row["caveats"])), "score": score})


def build(
    plan: Plan,
    catalog: Catalog,
    compared: Mapping[str, System],
    scores: Sequence[CatalogScore],
    evidence: Iterable[EvidenceSample],
) -> Leaderboard:
    conditions = [name for name in CONDITIONS if any(score.condition == name for score in scores)]
    metrics = sorted({score.metric for score in scores}, key=measures.place)
    return Leaderboard(
        name=plan.manifest.name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=f"controlmill {__version__}",
        notes=tuple(_notes(plan, conditions)),
        machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        metrics=tuple(_measure(measures.metric(name)) for name in metrics),
        benchmarks=tuple(_benchmark(plan, compared, name, scores) for name in conditions),
        models=tuple(_models(plan, compared)),
        scores=tuple(
            placed(
                scores,
                is_floor=functools.partial(_is_floor, compared),
                shown=lambda of: compared[of.system].shown,
                provenance=lambda of: _provenance(plan, of, compared[of.system]),
                protocol=lambda of: "" if compared[of.system].pictures else of.benchmark,
            )
        ),
        speeds=tuple(_speeds(catalog, compared)),
        evidence=tuple(evidence),
        published=(*published(conditions), *_own_published(plan.manifest, conditions)),
    )


def _own_published(given: Manifest, conditions: Collection[str]) -> Iterator[Published]:
    """Those of the user's own file."""
    if given.evaluate and given.evaluate.published:
        for row in own_published.read(given.evaluate.published, given.at("evaluate", "published")):
            if row.condition in conditions:
                yield Published(**row.model_dump())


def _notes(plan: Plan, conditions: list[str]) -> Iterator[str]:
    unread = [name for name in conditions if not readable(plan, name)]
    if unread:
        yield (
            f"No detector reads {', '.join(unread)} again from what was generated: name one in"
            " evaluate.readers."
        )
    if plan.manifest.base == RANDOM_BASE:
        yield ON_RANDOM_WEIGHTS


def _measure(metric: Metric) -> Measure:
    return Measure(
        name=metric.name,
        title=metric.title,
        definition=metric.definition,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        column=metric.column,
        level=metric.level,
        version=metric.version,
        quirks=metric.quirks,
        primary=metric.primary,
    )


def _benchmark(
    plan: Plan, compared: Mapping[str, System], condition: str, scores: Sequence[CatalogScore]
) -> FrozenBenchmark:
    assert plan.manifest.evaluate is not None
    frozen = plan.manifest.evaluate.benchmark
    system = next(system for system in compared.values() if system.condition == condition)
    maker, reader = plan.conditions[condition], plan.reader(condition)
    of = (condition, CONDITIONS[condition].fidelity, CONTROL)
    names = {each.metric for each in scores if each.condition == condition}
    shapes = {(item.height, item.width) for item in system.items}
    first = [each.score for each in scores if (each.condition, each.metric, each.variant) == of]
    return FrozenBenchmark(
        condition=condition,
        title=CONDITIONS[condition].title,
        kind=CONDITIONS[condition].kind,
        fingerprint=system.benchmark,
        split=frozen.split,
        images=len(system.items),
        samples=len(system.items) * len(frozen.seeds),
        seeds=tuple(frozen.seeds),
        sampler=TITLES[frozen.sampler],
        steps=frozen.num_inference_steps,
        guidance=frozen.guidance_scale,
        scale=frozen.controlnet_conditioning_scale,
        guide_hint=GUIDE_HINT[frozen.cfg_hint],  # type: ignore[arg-type]
        negative=frozen.negative_prompt,
        base=plan.manifest.base or "none",
        resolution=plan.manifest.image.resolution,
        data=data(plan.manifest, len(system.items)),
        detector=f"{maker.step.detector} {maker.fingerprint}",
        reader=f"{reader.step.detector} {reader.fingerprint}" if readable(plan, condition) else "",
        detectable=replicates.detectable(first),
        repeats=tuple(sizes.repeats(names, shapes)),
        notes=tuple(sizes.remarks(names, shapes)),
    )


def data(of: Manifest, images: int) -> str:
    """Which images a benchmark asks for, in words; of a path only its end, since pages are
    shown to others.
    """
    assert of.evaluate is not None
    named, frozen = " and ".join(map(_source, of.source)), of.evaluate.benchmark
    squashed = ", squashed" if of.image.fit == "squash" else ""
    each = f", {len(frozen.seeds)} samples of each" if len(frozen.seeds) > 1 else ""
    return f"{named}{squashed}: {images:,} images of the {frozen.split} split{each}"


def _source(source: AnySource) -> str:
    if source.kind == "scenes":
        return f"rendered scenes (seed {source.seed})"
    parts = source.path.rstrip("/").split("/")
    if source.kind == "huggingface":
        return " ".join(filter(None, ("/".join(parts[-2:]), source.name, source.split)))
    return f"{source.kind} {parts[-1]}"


def _models(plan: Plan, compared: Mapping[str, System]) -> Iterator[LeaderboardModel]:
    assert plan.manifest.evaluate is not None
    external = {other.name for other in plan.manifest.evaluate.external}
    submitted = {it.name: given.facts for it, given in entrants.submitted(plan)}
    seen: dict[str, System] = {}
    for system in compared.values():
        seen.setdefault(system.model, system)
    for name, system in seen.items():
        if told := submitted.get(name):
            asked = ("model", "protocol", "who", "date", "licence", "url")
            words = [f"{key}: {told[key]}" for key in asked if told[key]]
            yield LeaderboardModel(
                name=system.shown,
                kind="submitted",
                base=told["base"],
                note="; ".join(words),
                date=told["date"],
            )
            continue
        kind: Any = "baseline" if system.variant in ALONE else "external" if name in external else "run"
        yield LeaderboardModel(
            name=system.shown,
            kind=kind,
            base=plan.manifest.base or "none",
            checkpoint=system.checkpoint,
            note="",
        )


def _is_floor(compared: Mapping[str, System], of: CatalogScore, other: CatalogScore) -> bool:
    """Our own base is no floor for a submitted model, which has another."""
    if other.variant == NO_CONTROL:
        return not compared[of.system].pictures
    return other.variant in (SHUFFLED, PLAIN) and other.model == of.model


def _provenance(plan: Plan, of: CatalogScore, system: System) -> dict[str, str]:
    """Everything that the number depends on."""
    assert plan.manifest.evaluate is not None
    frozen, reader = plan.manifest.evaluate.benchmark, plan.reader(of.condition)
    maker = plan.conditions[of.condition]
    return {
        "system": of.system,
        "checkpoint": of.checkpoint
        or (f"submitted pictures {system.weights}" if system.pictures else "none"),
        "benchmark": of.benchmark,
        "scores": of.score_key,
        "metric": f"{of.metric} version {of.metric_version}",
        "condition made by": f"{maker.step.detector} {maker.identity['version']} ({maker.fingerprint})",
        "read again by": (
            f"{reader.step.detector} {reader.identity['version']} ({reader.fingerprint})"
            if readable(plan, of.condition)
            else "no detector"
        ),
        "interval": f"95 %, {of.method} over {of.prompts} prompts",
        "sampling": "as the submission says"
        if system.pictures
        else (
            f"{TITLES[frozen.sampler]}, {frozen.num_inference_steps} steps,"
            f" guidance {frozen.guidance_scale:g}"
            f"{guided(GUIDE_HINT[frozen.cfg_hint])},"
            f" scale {frozen.controlnet_conditioning_scale:g}, seeds {', '.join(map(str, frozen.seeds))},"
            f" negative prompt {frozen.negative_prompt!r}"
            f"{''.join(f', {name} {value}' for name, value in frozen.younger.items())}"
        ),
        "network": networks.weights_of(plan.manifest.evaluate, of.metric) or "none",
        "software": _software(of.metric),
    }


@functools.cache
def _software(metric: str) -> str:
    names = dict.fromkeys((*SAMPLING, *measures.software(metric)))
    return ", ".join([f"controlmill {__version__}", *(f"{name} {_version(name)}" for name in names)])


_version = functools.cache(importlib.metadata.version)  # reads all that a package says of itself


def _speeds(catalog: Catalog, compared: Mapping[str, System]) -> Iterator[Speed]:
    sql = "SELECT sample_set, sample_key, avg(seconds) FROM samples WHERE status = 'ok' GROUP BY ALL"
    measured = {(name, key): seconds for name, key, seconds in catalog.query(sql)}
    for system in compared.values():
        drawn_here = system.variant in (CONTROL, NO_CONTROL) and not system.pictures
        if drawn_here and (system.sample_set, system.key) in measured:
            seconds = measured[system.sample_set, system.key]
            yield Speed(model=system.shown, condition=system.condition, seconds_per_image=seconds)
