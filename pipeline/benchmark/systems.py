"""Who is compared: each condition's frozen benchmark, and everything that makes an image of each of its
held-out pairs.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from annotate.annotator import PROVIDED
from annotate.conditions import CONDITIONS
from evaluate import fidelity
from pipeline import MillError
from pipeline.benchmark import networks
from pipeline.catalog import Catalog
from pipeline.experiment.base import base_fingerprint, base_spec
from pipeline.experiment.pairs import planned_runs
from pipeline.experiment.warm_starts import warm_folder, warm_starts
from pipeline.plan import Plan
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, fingerprint

LEAST = 2  # pairs of a benchmark

CONTROL, NO_CONTROL, SHUFFLED, ROUND_TRIP, REAL = (
    "control",
    "no_control",
    "shuffled_condition",
    "vae_round_trip",
    "real_image",
)
BEFORE = "warm_start"  # what a run started from, asked for the same: what its training changed
EARLIER = "earlier"  # a checkpoint on the way, which the run kept: the course of its training
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
    # control | warm_start | earlier | shuffled_condition: its ControlNet, another's hint | no_control |
    # vae_round_trip | real_image
    arm: str
    # of the ControlNet: below the workspace, or the absolute path of an external one; '' = none
    checkpoint: str
    weights: str  # identity of the checkpoint; '' = none
    benchmark: str  # fingerprint of everything but the weights
    items: tuple[Item, ...]
    asked: str = ""  # fingerprint of what is asked for without a condition; '' = the benchmark
    seen: int | None = None  # images that an earlier checkpoint had seen

    @property
    def name(self) -> str:
        """Unique; also where its scores lie."""
        if self.arm in ALONE:
            return f"{self.arm}/{self.condition}"
        return f"{self.model}/{self.condition}/{self.arm}" + ("" if self.seen is None else f"-{self.seen}")

    @property
    def drawn_as(self) -> str:
        """Where its samples lie.

        Those that can't differ are drawn once: without a ControlNet of all conditions that ask for the same
        images.
        """
        return (
            self.arm
            if self.arm in ALONE
            else f"{self.arm}/{self.condition}"
            if self.arm == BEFORE
            else self.name
        )

    @property
    def key(self) -> str:
        """Of its samples: what is asked for, with the weights where there are some."""
        return fingerprint([self.benchmark, self.weights]) if self.weights else self.asked or self.benchmark

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another image."""
        return self.arm not in (ROUND_TRIP, REAL)

    def hint_of(self, number: int) -> Item:
        """The condition that item `number` is generated from: its own, or for the shuffled baseline the next
        one's.
        """
        return self.items[(number + (self.arm == SHUFFLED)) % len(self.items)]


def systems(plan: Plan, catalog: Catalog) -> list[System]:
    """The manifest's runs that have finished, its external checkpoints, and their baselines."""
    evaluation = plan.manifest.evaluate
    if evaluation is None:
        return []
    made = [*_runs(plan, catalog), *_externals(plan)]
    wanted = [name for name in plan.conditions if any(condition == name for _, condition, *_ in made)]
    if not made:
        return []
    mark = base_fingerprint(base_spec(plan))
    own = {model for model, _, checkpoint, _ in made if not Path(checkpoint).is_absolute()}
    course = _courses(plan, own) if EARLIER in evaluation.baselines else {}
    before = _befores(plan, catalog, [model for model, *_ in made]) if BEFORE in evaluation.baselines else {}
    out: list[System] = []
    for condition in wanted:
        items, benchmark, asked = _benchmark(plan, catalog, condition, mark)
        for arm in evaluation.baselines:
            if arm in ALONE:
                out.append(System(arm, condition, arm, "", "", benchmark, items, asked))
        for model, follows, checkpoint, weights in made:
            if follows == condition:
                arms = (CONTROL, SHUFFLED) if SHUFFLED in evaluation.baselines else (CONTROL,)
                out += [System(model, condition, arm, checkpoint, weights, benchmark, items) for arm in arms]
                if (model, condition) in before:
                    out.append(System(model, condition, BEFORE, *before[model, condition], benchmark, items))
                for step, seen in course.get(model, []):
                    if (place := f"{step}/{condition}") != checkpoint:
                        out.append(
                            System(
                                model,
                                condition,
                                EARLIER,
                                place,
                                fingerprint([model, step]),
                                benchmark,
                                items,
                                seen=seen,
                            )
                        )
    return out


# items, fingerprint, System.asked
def _benchmark(plan: Plan, catalog: Catalog, condition: str, base: str) -> tuple[tuple[Item, ...], str, str]:
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
    common = {
        "base": base,
        "items": [(item.image_id, item.caption) for item in items],
        "sampler": "ddim",
        "version": 2,
    }
    # a setting that came later: without it benchmarks stay as they were
    unsaid = {"samples"} if frozen.guide_hint else {"samples", "guide_hint"}
    identity = {
        "settings": frozen.model_dump(exclude=unsaid),
        "detector": plan.conditions[condition].fingerprint,
    }
    asked = {
        "settings": frozen.model_dump(exclude={"samples", "split", "scale", "guide_hint"}),
        "images": plan.image_key,
    }
    return items, fingerprint(common | identity), fingerprint(common | asked)


# model, condition, checkpoint, weights
def _runs(plan: Plan, catalog: Catalog) -> list[tuple[str, str, str, str]]:
    done = catalog.query(
        "SELECT run, conditions, checkpoint FROM runs WHERE status = 'complete' ORDER BY run"
    )
    named = {planned.name for planned in planned_runs(plan, catalog)} if done else set()
    # a run of an earlier manifest is left out: its conditions were made otherwise
    return [
        (run, condition, f"{checkpoint}/{condition}", fingerprint([run, checkpoint]))
        for run, conditions, checkpoint in done
        for condition in conditions
        if run in named
    ]


def _courses(plan: Plan, models: Collection[str]) -> dict[str, list[tuple[str, int]]]:
    """Run -> the checkpoints that it kept, and how many images each had seen."""
    from train import checkpoint

    kept = {model: checkpoint.kept(plan.workspace.run(model)) for model in models}
    return {
        model: [(plan.workspace.relative(it.path), it.images) for it in found]
        for model, found in kept.items()
    }


def _befores(plan: Plan, catalog: Catalog, models: list[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """Run and condition -> the ControlNet that it started from, and its weights; a run that began with the
    base alone has none.
    """
    from train import checkpoint

    out = {}
    # several conditions may share a start
    runs, hashed = planned_runs(plan, catalog), functools.cache(checkpoint.weights_hash)
    for number, it in enumerate(runs):
        done = checkpoint.newest(plan.workspace.run(it.name)) if it.name in models and it.run.starts else None
        for condition, (place, _) in warm_starts(plan, catalog, runs, number).items() if done else ():
            try:
                folder = warm_folder(place, it.run.starts[condition])
            except checkpoint.Damaged as error:
                raise MillError(f"evaluate.baselines: warm_start: {error}: {DAMAGED_CHECKPOINT}.") from error
            weights = hashed(folder)
            if done and done.meta.get("warm_start", {}).get(condition) != weights:
                raise MillError(
                    f"evaluate.baselines: warm_start: {folder} has other weights than those that {it.name}"
                    f" started from: put them back, delete {done.path.parent} to train it again, or take"
                    " warm_start out."
                )
            below = folder.is_relative_to(plan.workspace.root)
            out[it.name, condition] = (plan.workspace.relative(folder) if below else str(folder), weights)
    return out


def _externals(plan: Plan) -> list[tuple[str, str, str, str]]:
    from train import average, checkpoint

    assert plan.manifest.evaluate is not None
    out = []
    for number, it in enumerate(plan.manifest.evaluate.external):
        try:
            folder = checkpoint.locate(it.checkpoint)
            weights = checkpoint.weights_hash(average.folder_to_sample(folder))
        except (OSError, ValueError) as error:
            place = plan.manifest.at("evaluate", "external", number, "checkpoint")
            raise MillError(f"{place}: {it.name}: {error}") from error
        out.append((it.name, it.condition, str(Path(folder).resolve()), weights))
    return out


def readable(plan: Plan, condition: str) -> bool:
    """Whether a detector can read the condition from a sample; maps that come with the images can't be,
    unless evaluate.readers names one.
    """
    step = plan.reader(condition).step
    return step.detector != PROVIDED and (step.parent is None or readable(plan, step.parent))


def score_key(plan: Plan, system: System) -> str:
    evaluation = plan.manifest.evaluate
    assert evaluation is not None
    kind = CONDITIONS[system.condition].kind
    own = {name: fidelity.METRICS[name].version for name in fidelity.NAMES[kind]} | fidelity.RETIRED.get(
        kind, {}
    )
    versions = own if readable(plan, system.condition) else {}
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
