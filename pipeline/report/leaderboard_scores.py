"""The catalog's scores -> the leaderboard: ranks with their ties, normalized scores, evidence, and the
provenance of every number.
"""

import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from annotate.conditions import CONDITIONS
from evaluate import fidelity, measures, replicates
from evaluate.comparison import Metric
from evaluate.replicates import Replicated
from pipeline import __version__
from pipeline.benchmark import networks
from pipeline.benchmark.estimates import replicated
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
from pipeline.experiment.base import ON_RANDOM_WEIGHTS, RANDOM_BASE
from pipeline.manifest import AnySource, Manifest
from pipeline.plan import Plan
from pipeline.report import leaderboard
from pipeline.report.leaderboard_data import (
    FrozenBenchmark,
    Leaderboard,
    LeaderboardModel,
    Measure,
    Score,
    Speed,
    published,
)
from pipeline.report.leaderboard_evidence import evidence_samples
from pipeline.report.origins import with_origins

# what every sample was drawn and read with; a measure's own libraries stand beside them
SAMPLING = ("torch", "diffusers", "transformers", "safetensors", "numpy", "opencv-python-headless")

COLUMNS = (
    "system", "model", "variant", "condition", "metric", "metric_version", "value", "low", "high", "n",
    "n_failed", "prompts", "method", "replicates",
    "higher_is_better", "benchmark", "reader", "checkpoint", "score_key", "caveats",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogScore:
    """A row of the table `scores`."""

    system: str
    model: str
    variant: Any  # leaderboard_data.Arm
    condition: str
    metric: str
    metric_version: str
    value: float
    low: float | None
    high: float | None
    n: int
    n_failed: int
    prompts: int
    method: str
    higher_is_better: bool
    benchmark: str
    reader: str
    checkpoint: str | None
    score_key: str
    caveats: tuple[str, ...]
    score: Replicated


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
    scores = [
        score
        for score in _catalog_scores(catalog)
        if score.system in compared and not fidelity.retired(score.metric)
    ]
    return build(plan, catalog, compared, scores) if scores else None


def _catalog_scores(catalog: Catalog) -> Iterator[CatalogScore]:
    for values in catalog.query(f"SELECT {', '.join(COLUMNS)} FROM scores ORDER BY ALL"):
        row = dict(zip(COLUMNS, values, strict=True))
        score = replicated(row)
        del row["replicates"]
        yield CatalogScore(**row | {"caveats": tuple(json.loads(row["caveats"])), "score": score})


def build(
    plan: Plan, catalog: Catalog, compared: Mapping[str, System], scores: Sequence[CatalogScore]
) -> Leaderboard:
    conditions = [name for name in CONDITIONS if any(score.condition == name for score in scores)]
    metrics = sorted({score.metric for score in scores}, key=measures.place)
    controls = [system for system in compared.values() if system.variant == CONTROL]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # begun first: pictures are read and drawn while ranks are counted
        evidence = evidence_samples(plan, catalog, controls, pool)
        return Leaderboard(
            name=plan.manifest.name,
            made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=f"controlmill {__version__}",
            notes=tuple(_notes(plan, conditions)),
            machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
            metrics=tuple(_measure(measures.metric(name)) for name in metrics),
            benchmarks=tuple(_benchmark(plan, compared, name, scores) for name in conditions),
            models=tuple(_models(plan, compared)),
            scores=tuple(_scores(plan, compared, scores)),
            speeds=tuple(_speeds(catalog, compared)),
            evidence=tuple(evidence),
            published=published(conditions),
        )


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
        reader=f"{reader.step.detector} {reader.fingerprint}" if readable(plan, condition) else "",
        detectable=replicates.detectable(first),
    )


def data(of: Manifest, images: int) -> str:
    """Which images a benchmark asks for, in words; of a path only its end, since pages are
    shown to others.
    """
    assert of.evaluate is not None
    named = " and ".join(map(_source, of.source))
    return f"{named}: {images:,} images of the {of.evaluate.benchmark.split} split"


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
    seen: dict[str, System] = {}
    for system in compared.values():
        seen.setdefault(system.model, system)
    for name, system in seen.items():
        kind: Any = "baseline" if system.variant in ALONE else "external" if name in external else "run"
        yield LeaderboardModel(
            name=system.shown, kind=kind, base=str(plan.manifest.base), checkpoint=system.checkpoint, note=""
        )


def _scores(plan: Plan, compared: Mapping[str, System], scores: Sequence[CatalogScore]) -> Iterator[Score]:
    """Ranks among the models; floors and ceilings from the baselines of the same benchmark."""
    groups: dict[tuple[str, str], list[CatalogScore]] = {}
    for each in scores:
        groups.setdefault((each.condition, each.metric), []).append(each)
    for group in groups.values():
        ranked = [each for each in group if each.variant == CONTROL and not each.caveats]
        places = (
            replicates.ranks([each.score for each in ranked], higher_is_better=group[0].higher_is_better)
            if len(ranked) > 1
            else []
        )
        rank = {each.system: place for each, place in zip(ranked, places, strict=False)}
        for each in group:
            floor, ceiling = _ends(each, group)
            normalized = replicates.normalized_score(
                each.score, floor, ceiling, higher_is_better=each.higher_is_better
            )
            share, reason = (None, normalized) if isinstance(normalized, str) else (normalized, "")
            yield Score(
                model=compared[each.system].shown,
                arm=each.variant,
                condition=each.condition,
                metric=each.metric,
                n=each.n,
                n_failed=each.n_failed,
                value=each.value,
                low=each.low,
                high=each.high,
                share=share and share.value,
                share_low=share and share.low,
                share_high=share and share.high,
                share_reason=reason,
                rank=rank.get(each.system),
                marks=each.caveats,
                provenance=_provenance(plan, each),
            )


def _ends(of: CatalogScore, group: Sequence[CatalogScore]) -> tuple[Replicated | None, Replicated | None]:
    """The best that can be had without following the condition, and what the image itself scores."""
    floors = (
        each.score
        for each in group
        if each.variant == NO_CONTROL or (each.variant == SHUFFLED and each.model == of.model)
    )
    ceiling = next((each.score for each in group if each.variant == REAL), None)
    return replicates.best(floors, of.higher_is_better), ceiling


def _provenance(plan: Plan, of: CatalogScore) -> dict[str, str]:
    """Everything that the number depends on."""
    assert plan.manifest.evaluate is not None
    frozen, reader = plan.manifest.evaluate.benchmark, plan.reader(of.condition)
    maker = plan.conditions[of.condition]
    return {
        "system": of.system,
        "checkpoint": of.checkpoint or "none",
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
        "sampling": (
            f"DDIM, {frozen.num_inference_steps} steps, guidance {frozen.guidance_scale:g}"
            f"{' of prompt and hint' * (frozen.cfg_hint == 'conditional')},"
            f" scale {frozen.controlnet_conditioning_scale:g}, seeds {', '.join(map(str, frozen.seeds))},"
            f" negative prompt {frozen.negative_prompt!r}"
        ),
        "network": networks.weights_of(plan.manifest.evaluate, of.metric) or "none",
        "software": _software(of.metric),
    }


@functools.cache
def _software(metric: str) -> str:
    names = dict.fromkeys((*SAMPLING, *measures.software(metric)))
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([f"controlmill {__version__}", *versions])


def _speeds(catalog: Catalog, compared: Mapping[str, System]) -> Iterator[Speed]:
    sql = "SELECT sample_set, sample_key, avg(seconds) FROM samples WHERE status = 'ok' GROUP BY ALL"
    measured = {(name, key): seconds for name, key, seconds in catalog.query(sql)}
    for system in compared.values():
        if system.variant in (CONTROL, NO_CONTROL) and (system.sample_set, system.key) in measured:
            seconds = measured[system.sample_set, system.key]
            yield Speed(model=system.shown, condition=system.condition, seconds_per_image=seconds)
