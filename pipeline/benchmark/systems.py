"""Who is compared: each condition's frozen benchmark, and everything that makes an image of each of its
held-out pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from annotate.annotator import PROVIDED
from annotate.conditions import CONDITIONS
from evaluate import fidelity
from pipeline import MillError
from pipeline.benchmark import entrants, networks, submissions
from pipeline.catalog import Catalog
from pipeline.dataset.changes import Renewed, renewed
from pipeline.experiment.base import base_fingerprint, base_spec
from pipeline.experiment.pairs import called, planned_runs
from pipeline.manifest import Evaluate
from pipeline.plan import Plan
from pipeline.storage.workspace import fingerprint

LEAST = 2  # pairs of a benchmark

CONTROL, NO_CONTROL, SHUFFLED, ROUND_TRIP, REAL = (
    "control",
    "no_control",
    "shuffled_condition",
    "vae_round_trip",
    "real_image",
)
BEFORE = "warm_start"  # what a run started from, asked for the same: what its training changed
EARLIER = "earlier"  # a checkpoint on the way, which the run kept: a point of its learning curve
PLAIN = "plain"  # a submitted model without the condition: no control of its own base
ALONE = (NO_CONTROL, ROUND_TRIP, REAL)  # belong to the benchmark, not to a model; they know no condition


@dataclass(frozen=True)
class Item:
    """One held-out image: what is asked of a model, and how to check it."""

    image_id: str
    caption: str
    height: int
    width: int
    map_shard: str
    row: int


@dataclass(frozen=True)
class System:
    """One maker of images on one condition's benchmark: a ControlNet, or a baseline."""

    model: str  # a run, an external checkpoint, or the baseline's own name
    condition: str
    # control | warm_start | earlier | shuffled_condition: its ControlNet, another image's hint | no_control |
    # plain: a submitted model without a hint | vae_round_trip | real_image
    variant: str
    # of the ControlNet: below the workspace, or the absolute path of an external one; '' = none
    checkpoint: str
    weights: str  # identity of the checkpoint, or of submitted pictures; '' = none
    benchmark: str  # fingerprint of everything but the weights
    items: tuple[Item, ...]
    hintless_key: str = ""  # fingerprint of what is asked for without a condition; '' = the benchmark
    seen: int | None = None  # images that an earlier checkpoint had seen
    title: str | None = None  # what the manifest calls the run; no part of any identity
    pictures: str = ""  # submitted ones: their absolute folder
    asked_of_all: str = ""  # fingerprint of what they were made from, whatever protocol ours have

    @property
    def shown(self) -> str:
        """What pages call the model."""
        return called(self.model, self.title)

    @property
    def name(self) -> str:
        """Unique; also where its scores lie."""
        if self.variant in ALONE:
            return f"{self.variant}/{self.condition}"
        return f"{self.model}/{self.condition}/{self.variant}" + (
            "" if self.seen is None else f"-{self.seen}"
        )

    @property
    def sample_set(self) -> str:
        """Where its samples lie.

        Those that can't differ are drawn once: without a ControlNet of all conditions that ask for the same
        images.
        """
        return (
            self.variant
            if self.variant in ALONE
            else f"{self.variant}/{self.condition}"
            if self.variant == BEFORE
            else self.name
        )

    @property
    def key(self) -> str:
        """Of its samples: what is asked for, with the weights where there are some."""
        return (
            fingerprint([self.asked_of_all or self.benchmark, self.weights])
            if self.weights
            else self.hintless_key or self.benchmark
        )

    @property
    def follows(self) -> bool:
        """Whether it is given a condition."""
        return bool(self.checkpoint or self.pictures) and self.variant != PLAIN

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another image."""
        return self.variant not in (ROUND_TRIP, REAL)

    def hint_of(self, number: int) -> Item:
        """The condition that item `number` is generated from: its own, or for the shuffled baseline the next
        one's.
        """
        return self.items[(number + (self.variant == SHUFFLED)) % len(self.items)]


def systems(plan: Plan, catalog: Catalog) -> list[System]:
    """The manifest's runs that have finished, its external checkpoints, submitted pictures, and the
    baselines; these alone where the manifest names nobody.
    """
    if plan.manifest.evaluate is None:
        return []
    with catalog.reading():
        return _systems(plan, catalog, plan.manifest.evaluate)


def _systems(plan: Plan, catalog: Catalog, evaluation: Evaluate) -> list[System]:
    complete = catalog.query(
        "SELECT run, conditions, checkpoint FROM runs WHERE status = 'complete' ORDER BY run"
    )
    runs = planned_runs(plan, catalog) if complete else []
    compete = [*entrants.trained(complete, runs), *entrants.externals(plan)]
    submitted = entrants.submitted(plan)
    nobody = not compete and not submitted  # yet, or by intent: then the baselines stand alone
    if nobody and plan.manifest.train:
        return []
    base = base_fingerprint(base_spec(plan)) if plan.manifest.base else ""
    kept = entrants.kept_checkpoints(plan, compete) if EARLIER in evaluation.baselines else {}
    starts = entrants.starts(plan, catalog, runs, compete) if BEFORE in evaluation.baselines else {}
    changes = renewed(catalog)
    compared: list[System] = []
    for condition in plan.conditions:
        of_condition = [entrant for entrant in compete if entrant.condition == condition]
        of_others = [(it, pictures) for it, pictures in submitted if it.condition == condition]
        if not of_condition and not of_others and not nobody:
            continue
        items, benchmark, asked, of_all = _benchmark(plan, catalog, condition, base, changes)
        alone = [variant for variant in evaluation.baselines if variant in ALONE]
        compared += [System(name, condition, name, "", "", benchmark, items, asked) for name in alone]
        for entrant in of_condition:
            control = System(
                entrant.model,
                condition,
                CONTROL,
                entrant.checkpoint,
                entrant.weights,
                benchmark,
                items,
                title=entrant.title,
            )
            compared.append(control)
            if SHUFFLED in evaluation.baselines:
                compared.append(replace(control, variant=SHUFFLED))
            if start := starts.get((entrant.model, condition)):
                compared.append(replace(control, variant=BEFORE, checkpoint=start[0], weights=start[1]))
            compared += _earlier(control, kept.get(entrant.model, []))
        for it, pictures in of_others:
            for folder, place in pictures.folders.items():
                compared.append(
                    System(
                        it.name,
                        condition,
                        ARM_OF[folder],
                        "",
                        pictures.fingerprint(folder),
                        benchmark,
                        items,
                        pictures=str(place.resolve()),
                        asked_of_all=of_all,
                    )
                )
    return compared


ARM_OF = {submissions.OWN: CONTROL, submissions.SHUFFLED: SHUFFLED, submissions.PLAIN: PLAIN}


def _earlier(control: System, kept: list[tuple[str, int]]) -> Iterator[System]:
    """The checkpoints on the way of a run, but for the last, which is the run itself."""
    for step, seen in kept:
        place = f"{step}/{control.condition}"
        if place != control.checkpoint:
            weights = fingerprint([control.model, step])
            yield replace(control, variant=EARLIER, checkpoint=place, weights=weights, seen=seen)


def held_out(plan: Plan, catalog: Catalog, condition: str) -> tuple[Item, ...]:
    """The items of a condition's benchmark, by image id. MillError where there are too few."""
    assert plan.manifest.evaluate is not None
    frozen = plan.manifest.evaluate.benchmark
    rows = catalog.query(
        "SELECT image_id, coalesce(caption, ''), height, width, map_shard, row FROM pairs WHERE condition = ?"
        " AND split = ?",
        [condition, frozen.split],
    )
    items = tuple(sorted((Item(*row) for row in rows), key=lambda item: item.image_id)[: frozen.samples])
    if len(items) < LEAST:
        raise MillError(few(plan, condition, len(items)))
    return items


# items, fingerprint, System.hintless_key, System.asked_of_all
def _benchmark(
    plan: Plan, catalog: Catalog, condition: str, base: str, changes: Renewed
) -> tuple[tuple[Item, ...], str, str, str]:
    assert plan.manifest.evaluate is not None
    frozen, items = plan.manifest.evaluate.benchmark, held_out(plan, catalog, condition)
    common = {
        "base": base,
        "items": [(item.image_id, item.caption) for item in items],
        "sampler": frozen.sampler,
        "version": 2,
    }
    settings = frozen.stored("split", "seeds", "steps", "guidance", "negative", "scale") | frozen.younger
    if frozen.cfg_hint != "both":  # it came later: without it benchmarks stay as they were
        settings |= frozen.stored("guide_hint")
    identity: dict[str, Any] = {
        "settings": settings,
        "detector": plan.conditions[condition].fingerprint,
    }
    if (drawn := plan.conditions[condition].drawing) > 1:
        identity["drawing"] = drawn
    maps = replace(changes, captions={})  # captions are told above
    if changed := maps.mark(plan, [condition], [item.image_id for item in items]):
        identity["changed"] = changed
    asked = {
        "settings": frozen.stored("seeds", "steps", "guidance", "negative") | frozen.younger,
        "images": plan.image_key,
    }
    of_all = (
        {
            "items": [(item.image_id, item.caption, item.height, item.width) for item in items],
        }
        | identity
        | {"settings": frozen.stored("split", "seeds")}
    )
    return items, fingerprint(common | identity), fingerprint(common | asked), fingerprint(of_all)


def readable(plan: Plan, condition: str) -> bool:
    """Whether a detector can read the condition from a sample; maps that come with the images can't be,
    unless evaluate.readers names one.
    """
    step = plan.reader(condition).step
    return step.detector != PROVIDED and (step.parent is None or readable(plan, step.parent))


def score_key(plan: Plan, system: System) -> str:
    evaluation = plan.manifest.evaluate
    assert evaluation is not None
    kind = CONDITIONS[system.condition].compared_as
    versions = fidelity.versions(kind) if readable(plan, system.condition) else {}
    return fingerprint(
        {
            "samples": system.key,
            "maker": plan.conditions[system.condition].fingerprint,
            "reader": plan.reader(system.condition).fingerprint,
            "metrics": versions,
            "networks": networks.identity(evaluation),
            "version": 2,
        }
    )


def few(plan: Plan, condition: str, count: int) -> str:
    """The sentence for a benchmark that is too small."""
    assert plan.manifest.evaluate is not None
    place, split = plan.manifest.at("evaluate", "benchmark", "split"), plan.manifest.evaluate.benchmark.split
    return (
        f"{place}: {condition} has {count} pairs in the {split} split and a benchmark needs {LEAST}: add"
        " images, or use another split."
    )
