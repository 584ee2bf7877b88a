"""`controlmill verify --rescore N --libraries`: stored values beside those of torchmetrics, clean-fid and
pycocotools.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from annotate import maps
from annotate.conditions import CONDITIONS
from evaluate import fidelity, libraries, measures
from evaluate.comparison import Map
from evaluate.libraries import LibraryValue, NoLibrary
from pipeline.benchmark import networks
from pipeline.benchmark.estimates import Scored, scored, scores_identity
from pipeline.benchmark.scoring import as_map
from pipeline.benchmark.systems import REAL, Item, System, systems
from pipeline.catalog import Catalog
from pipeline.dataset.maps import read_map
from pipeline.plan import Plan
from pipeline.report.text import table
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row
from pipeline.storage.workspace import write_text

SET_DISTANCES = ("fd", "kd")  # of those between sets of features, the ones that a library has


@dataclass
class Agreement:
    """One measure: how many of its values were computed again, and by how much the two differ at most."""

    library: str = ""
    values: int = 0
    difference: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)  # why a value has no library's beside it, how often

    def add(self, stored: float, compute: Callable[[], LibraryValue]) -> None:
        try:
            theirs = compute()
        except NoLibrary as error:
            self.reasons[str(error)] = self.reasons.get(str(error), 0) + 1
            return
        self.library, self.values = theirs.library, self.values + 1
        self.difference = max(self.difference, abs(stored - theirs.value))


def compared(plan: Plan, catalog: Catalog, samples: int, *, seed: int | None = None) -> dict[str, Agreement]:
    """By measure, in the order in which they are met.

    The values of `samples` samples or somewhat more, chosen at random by whole shards, and every value of a
    set of which all samples were read.
    """
    agreements: dict[str, Agreement] = {}
    with catalog.reading():
        every = [_Readable(plan, catalog, it) for it in scored(plan, catalog, systems(plan, catalog))]
        stored = {(name, metric): value for name, metric, value in catalog.query(VALUES)}
    drawn = [(it, path) for it in every for path in it.scored.paths]
    random.Random(seed).shuffle(drawn)
    count = 0
    for it, path in drawn:
        if count >= samples:
            break
        count += _compare_samples(it, path, agreements)
    real = {it.system.condition: it.scored for it in every if it.system.variant == REAL}
    for it in every:
        values = {name: value for (system, name), value in stored.items() if system == it.system.name}
        _compare_set(it, values, agreements)
        if it.system.condition in real and it.system.variant != REAL:
            _compare_distances(plan, it.scored, real[it.system.condition], values, agreements)
    return agreements


VALUES = "SELECT system, metric, value FROM scores"


def save(catalog: Catalog, agreements: Mapping[str, Agreement]) -> None:
    """For the report, which shows it from its next writing on, while the scores are these."""
    rows = [
        {"measure": name, "library": it.library, "values": it.values, "difference": it.difference}
        for name, it in agreements.items()
        if it.values
    ]
    found = {"scores": scores_identity(catalog), "measures": rows}
    write_text(catalog.workspace.libraries, json.dumps(found, indent=1) + "\n")


def lines(agreements: Mapping[str, Agreement]) -> list[str]:
    """A table of the measures that a library has; then why it has not the others."""
    rows = [
        (name, it.library, it.values, f"{it.difference:.2g}") for name, it in agreements.items() if it.values
    ]
    without: dict[str, list[str]] = {}
    for name, it in agreements.items():
        for reason, count in it.reasons.items():
            without.setdefault(reason, []).append(f"{name} ({count} values)" if it.values else name)
    head = table(("measure", "library", "values", "largest difference"), rows).splitlines()
    return [*head, *(f"{reason}: {', '.join(names)}" for reason, names in without.items())]


@dataclass(frozen=True)
class _Readable:
    """A system's samples with their maps."""

    plan: Plan
    catalog: Catalog
    scored: Scored

    @property
    def system(self) -> System:
        return self.scored.system

    @cached_property
    def samples(self) -> dict[tuple[str, int], tuple[str, int]]:
        """Image id and seed -> shard and row of the sample."""
        rows = self.catalog.query(SAMPLES, [self.system.sample_set, self.system.key])
        return {(image_id, number): (shard, row) for image_id, number, shard, row in rows}

    @cached_property
    def items(self) -> dict[str, Item]:
        return {item.image_id: item for item in self.system.items}

    def truth(self, image_id: str) -> Map:
        item = self.items[image_id]
        stored = read_map(self.plan.workspace, item.map_shard, item.row, self.system.condition)
        return as_map(stored)

    def reread(self, row: Row) -> Map:
        kind = CONDITIONS[self.system.condition].kind
        return as_map(maps.decode(kind, row["map"], json.loads(row["meta"])))

    def as_matched(self, metric: str, given: Map) -> Map:
        return fidelity.as_matched(CONDITIONS[self.system.condition].compared_as, metric, given)

    def image(self, row: Row) -> np.ndarray:
        shard, number = self.samples[row["image_id"], row["seed"]]
        stored = shards.read_row(self.plan.workspace.root / shard, number, ["image"])
        return codec.decode(stored["image"])


SAMPLES = """SELECT image_id, seed, shard, row FROM samples
             WHERE sample_set = ? AND sample_key = ?"""


def _compare_samples(it: _Readable, path: str, agreements: dict[str, Agreement]) -> int:
    """Returns how many samples the shard has."""
    assert it.plan.manifest.evaluate is not None
    clip = it.plan.manifest.evaluate.clip
    rows = shards.read(it.plan.workspace.root / path).to_pylist()
    for row in rows:
        if row["status"] != "ok":
            continue
        pair = (it.truth(row["image_id"]), it.reread(row)) if row["map"] else None
        for name, value in row["values"] or ():
            comparison = agreements.setdefault(name, Agreement())
            if name in fidelity.METRICS and pair:
                seen = (it.as_matched(name, given) for given in pair)
                comparison.add(value, partial(libraries.of_sample, name, *seen))
            elif clip and name == measures.clip(clip).name:
                encoder = networks.dual_encoder(networks.wanted(it.plan.manifest.evaluate).clip, "cpu")
                image, caption = it.image(row), it.items[row["image_id"]].caption
                comparison.add(value, partial(libraries.clip_score, encoder, image, caption))
    return len(rows)


def _compare_set(it: _Readable, values: Mapping[str, float], agreements: dict[str, Agreement]) -> None:
    """The measures of a whole set of maps; a sample that could not be read scores worst, as no library has
    it.
    """
    names = [name for name in values if name in fidelity.METRICS and fidelity.METRICS[name].level == "set"]
    if not names or it.scored.failed:
        return
    pairs = [
        (it.truth(row["image_id"]), it.reread(row))
        for path in it.scored.paths
        for row in shards.read(it.plan.workspace.root / path, ["image_id", "map", "meta"]).to_pylist()
    ]
    for name in names:
        comparison = agreements.setdefault(name, Agreement())
        seen = [(it.as_matched(name, truth), it.as_matched(name, read)) for truth, read in pairs]
        comparison.add(values[name], partial(libraries.of_set, name, seen))


def _compare_distances(
    plan: Plan, it: Scored, real: Scored, values: Mapping[str, float], agreements: dict[str, Agreement]
) -> None:
    assert plan.manifest.evaluate is not None
    for wanted in plan.manifest.evaluate.features:
        generated, rows = it.features(wanted.extractor)
        reference, others = real.features(wanted.extractor)
        of_generated, of_real = it.cluster[rows], real.cluster[others]
        compute = {
            "fd": partial(libraries.frechet, generated, reference),
            "kd": partial(libraries.kernel, generated, of_generated, reference, of_real),
        }
        for what in SET_DISTANCES:
            name = f"{what} ({wanted.extractor})"
            if name in values:
                agreements.setdefault(name, Agreement()).add(values[name], compute[what])
