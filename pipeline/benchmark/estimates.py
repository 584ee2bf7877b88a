"""Samples' scores -> each system's: value, interval, replicates, n and failures.

What has not changed is not computed again.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.conditions import CONDITIONS
from evaluate import alignment, caveats, fidelity, measures
from evaluate.comparison import PROMPT, Metric
from evaluate.replicates import Replicated, bootstrap_weights, least_left, of_distance, of_means
from pipeline.benchmark.systems import REAL, System, readable, score_key
from pipeline.benchmark.tasks import tasks_of
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.storage import shards
from pipeline.storage.workspace import fingerprint

VERSION = 3  # of how estimates are made

Estimated = tuple[Metric, Replicated, list[str]]  # the last: what a reader must know of it


@dataclass(frozen=True)
class Scored:
    """The samples of one system, in the order of their shards; what is heavy is read when it is asked for."""

    root: Path
    system: System
    key: str
    paths: tuple[str, ...]
    content: str  # identity of the shards

    @cached_property
    def rows(self) -> list[dict[str, Any]]:  # image_id, status, values
        return [
            row
            for path in self.paths
            for row in shards.read(self.root / path, ["image_id", "status", "values"]).to_pylist()
        ]

    @cached_property
    def cluster(self) -> NDArray[np.int64]:  # [n]: number of each sample's prompt in the benchmark
        numbers = {item.image_id: number for number, item in enumerate(self.system.items)}
        return np.array([numbers[row["image_id"]] for row in self.rows])

    @cached_property
    def seed(self) -> NDArray[np.int64]:  # [n]: number of each sample's seed
        """Shards hold a prompt's samples in the order of the benchmark's seeds."""
        seen = np.zeros(len(self.system.items), np.int64)
        numbers = np.empty(len(self.cluster), np.int64)
        for row, prompt in enumerate(self.cluster):
            numbers[row] = seen[prompt]
            seen[prompt] += 1
        return numbers

    @property
    def failed(self) -> int:
        return sum(row["status"] != "ok" for row in self.rows)

    def values(self, metric: Metric) -> NDArray[np.float64]:  # [n]; the worst where there is none
        return np.array(
            [dict(row["values"] or ()).get(metric.name, metric.worst) for row in self.rows], np.float64
        )

    @cached_property
    def counts(self) -> list[dict[str, NDArray[Any]]]:  # of each sample
        from safetensors.numpy import load

        return [
            load(data)
            for path in self.paths
            for data in shards.read(self.root / path, ["counts"]).column("counts").to_pylist()
        ]

    # [m, d], [m]: of the samples that have an image
    def features(self, network: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = [
            row
            for path in self.paths
            for row in shards.read(self.root / path, ["features"]).column("features").to_pylist()
        ]
        there = [number for number, row in enumerate(found) if row]
        rows = [np.frombuffer(dict(found[number])[network], np.float32) for number in there]
        return np.array(rows) if rows else np.empty((0, 0), np.float32), np.array(there, np.int64)


def scored(plan: Plan, catalog: Catalog, systems: Iterable[System]) -> list[Scored]:
    """The systems whose samples are all scored: a part of them is another benchmark."""
    if plan.manifest.evaluate is None:
        return []
    found: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    for name, key, path, sha256, count in catalog.query(
        "SELECT name, key, shard, sha256, rows FROM shards WHERE kind = 'scores' ORDER BY part"
    ):
        found.setdefault((name, key), []).append((path, sha256, count))
    out = []
    for system in systems:
        key = score_key(plan, system)
        own = found.get((system.name, key), [])
        if sum(rows for *_, rows in own) == len(tasks_of(system, plan.manifest.evaluate.benchmark)):
            content = fingerprint([(path, sha256) for path, sha256, _ in own])
            out.append(Scored(catalog.workspace.root, system, key, tuple(path for path, *_ in own), content))
    return out


def scores_identity(catalog: Catalog) -> str:
    """Of all that the table `scores` was estimated from; what is said of other scores has another."""
    return fingerprint(catalog.query("SELECT DISTINCT system, input_hash FROM scores ORDER BY ALL"))


def estimate(plan: Plan, catalog: Catalog, systems: Iterable[System]) -> int:
    """Brings the table `scores` up to date; returns its rows."""
    found = scored(plan, catalog, systems)
    known = dict(catalog.query("SELECT DISTINCT system, input_hash FROM scores"))
    reference = {it.system.condition: it for it in found if it.system.variant == REAL}
    rows: list[dict[str, Any]] = []
    drawn: dict[int, NDArray[np.float32]] = {}
    for it in found:
        real = reference.get(it.system.condition)
        mark = fingerprint([VERSION, it.system.benchmark, it.key, it.content, real.content if real else ""])
        if known.get(it.system.name) == mark:
            continue
        size = len(it.system.items)
        weights = drawn.setdefault(size, bootstrap_weights(size))
        for metric, score, said in _scores(plan, it, real, weights):
            interval = dataclasses.replace(score, possible=metric.possible).interval
            rows.append(
                {
                    "system": it.system.name,
                    "model": it.system.model,
                    "variant": it.system.variant,
                    "condition": it.system.condition,
                    "metric": metric.name,
                    "metric_version": metric.version,
                    "value": score.value,
                    "low": interval and interval[0],
                    "high": interval and interval[1],
                    "n": len(it.rows),
                    "n_failed": it.failed,
                    "prompts": size,
                    "method": score.method,
                    "replicates": score.replicates.tobytes(),
                    "higher_is_better": metric.higher_is_better,
                    "benchmark": it.system.benchmark,
                    "reader": plan.reader(it.system.condition).fingerprint,
                    "checkpoint": it.system.checkpoint,
                    "score_key": it.key,
                    "input_hash": mark,
                    "caveats": json.dumps(said),
                }
            )
    catalog.record_scores(rows, [it.system.name for it in found])
    return int(catalog.row("SELECT count(*) FROM scores")[0])


def _scores(plan: Plan, it: Scored, real: Scored | None, drawn: NDArray[np.float32]) -> Iterator[Estimated]:
    evaluation = plan.manifest.evaluate
    assert evaluation is not None
    if readable(plan, it.system.condition):
        for name in fidelity.NAMES[CONDITIONS[it.system.condition].compared_as]:
            metric = fidelity.METRICS[name]
            if metric.level == "sample":
                yield metric, of_means(it.values(metric), it.cluster, drawn), []
            else:
                _, once = np.unique(it.cluster, return_index=True)  # a sample of each prompt
                few = caveats.of_precision(metric, [it.counts[number] for number in once])
                yield metric, _of_set(it, metric, drawn), few
    if evaluation.clip:
        metric = measures.clip(evaluation.clip)
        yield metric, of_means(it.values(metric), it.cluster, drawn), []
        if real is not None and it is not real:
            yield _likeness(it, real, measures.clip_image(evaluation.clip), drawn)
    if real is not None and it is not real:
        for wanted in evaluation.features:
            yield from _distances(it, real, wanted.extractor)


def _likeness(it: Scored, real: Scored, metric: Metric, drawn: NDArray[np.float32]) -> Estimated:
    """Of each sample with the held-out image of its prompt."""
    own, rows = it.features(metric.name)
    theirs, others = real.features(metric.name)
    originals = np.zeros((len(it.system.items), theirs.shape[1]), np.float32)
    originals[real.cluster[others]] = theirs
    values = np.full(len(it.rows), metric.worst)
    if len(rows):
        values[rows] = alignment.similarity(own, originals[it.cluster[rows]])
    return metric, of_means(values, it.cluster, drawn), []


def _of_set(it: Scored, metric: Metric, drawn: NDArray[np.float32]) -> Replicated:
    """A score of the whole set, of each draw of prompts."""
    of_prompts = [
        counts | {PROMPT: np.array([prompt])} for counts, prompt in zip(it.counts, it.cluster, strict=True)
    ]
    statistic = fidelity.prepared(metric.name, of_prompts)
    n = len(it.rows)
    found = [statistic(row[it.cluster].astype(np.float64)) for row in drawn] if drawn.shape[1] > 1 else []
    return Replicated(statistic(np.ones(n)), np.array(found, np.float32), "bootstrap", drawn.shape[1])


def _distances(it: Scored, real: Scored, extractor: str) -> Iterator[Estimated]:
    """Against the held-out images themselves; none where too few images were made."""
    features, rows = it.features(extractor)
    reference, others = real.features(extractor)
    prompt, of_real, size = it.cluster[rows], real.cluster[others], len(it.system.items)
    if min(least_left(prompt, size), least_left(of_real, size)) < 2:
        return
    made = len(np.unique(prompt))
    for metric, distance in measures.distances(extractor, reference, of_real, made, it.seed[rows]):
        said = caveats.of_distance(metric, made=len(features), real=len(reference), asked=len(it.rows))
        yield metric, of_distance(distance, features, prompt, size), said


def replicated(row: Mapping[str, Any]) -> Replicated:
    """A row of the table `scores` as it was estimated."""
    return Replicated(
        row["value"],
        np.frombuffer(row["replicates"], np.float32),
        row["method"],
        row["prompts"],
        measures.metric(row["metric"]).possible,
    )
