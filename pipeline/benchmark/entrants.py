"""Who enters a benchmark: the manifest's runs that have finished, checkpoints of others, pictures of others;
and what each run started from and kept on its way.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import MillError
from pipeline.benchmark import submissions
from pipeline.catalog import Catalog
from pipeline.experiment.pairs import PlannedRun
from pipeline.experiment.warm_starts import warm_folder, warm_starts
from pipeline.manifest import Submitted
from pipeline.plan import Plan
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, fingerprint


@dataclass(frozen=True)
class Entrant:
    """A ControlNet that is compared on one condition."""

    model: str  # a run's name, or the manifest's for an external checkpoint
    condition: str
    checkpoint: str  # below the workspace, or the absolute path of an external one
    weights: str  # identity
    title: str | None = None  # what the manifest calls the run


def trained(complete: Iterable[tuple[str, list[str], str]], runs: list[PlannedRun]) -> Iterator[Entrant]:
    """Runs that are complete; one of an earlier manifest is left out: its conditions were made otherwise."""
    titles = {run.name: run.run.name for run in runs}
    for run, conditions, checkpoint in complete:
        if run in titles:
            weights = fingerprint([run, checkpoint])
            for name in conditions:
                yield Entrant(run, name, f"{checkpoint}/{name}", weights, titles[run])


def kept_checkpoints(plan: Plan, entrants: list[Entrant]) -> dict[str, list[tuple[str, int]]]:
    """Run -> the checkpoints that it kept, and how many images each had seen."""
    from train import checkpoint

    runs = {entrant.model for entrant in entrants if not Path(entrant.checkpoint).is_absolute()}
    return {
        run: [
            (plan.workspace.relative(it.path), it.images) for it in checkpoint.kept(plan.workspace.run(run))
        ]
        for run in runs
    }


def starts(
    plan: Plan, catalog: Catalog, runs: list[PlannedRun], entrants: list[Entrant]
) -> dict[tuple[str, str], tuple[str, str]]:
    """Run and condition -> the ControlNet that it started from, and its weights; a run that began with the
    base alone has none.
    """
    from train import checkpoint, integrity, pretrained

    models = {entrant.model for entrant in entrants}
    hashed = functools.cache(pretrained.weights_hash)  # several conditions may share a start
    out = {}
    for number, it in enumerate(runs):
        done = checkpoint.newest(plan.workspace.run(it.name)) if it.name in models and it.run.starts else None
        for condition, (place, _) in warm_starts(plan, catalog, runs, number).items() if done else ():
            try:
                folder = warm_folder(place, it.run.starts[condition])
            except integrity.Damaged as error:
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


def externals(plan: Plan) -> Iterator[Entrant]:
    from train import integrity, pretrained

    assert plan.manifest.evaluate is not None
    for number, it in enumerate(plan.manifest.evaluate.external):
        try:
            folder = pretrained.locate(it.checkpoint)
            weights = pretrained.weights_hash(integrity.folder_to_sample(folder))
        except (OSError, ValueError) as error:
            place = plan.manifest.at("evaluate", "external", number, "checkpoint")
            raise MillError(f"{place}: {it.name}: {error}") from error
        yield Entrant(it.name, it.condition, str(Path(folder).resolve()), weights)


def submitted(plan: Plan) -> list[tuple[Submitted, submissions.Submission]]:
    """What the manifest says of each, and its pictures. MillError where one of them can't be read."""
    found = []
    for number, it in enumerate(plan.manifest.evaluate.submissions if plan.manifest.evaluate else []):
        folders = [Path(place).expanduser() if place else None for place in (it.shuffled, it.plain)]
        try:
            found.append((it, submissions.read(Path(it.images).expanduser(), *folders)))
        except (MillError, OSError) as error:
            place = plan.manifest.at("evaluate", "submissions", number)
            raise MillError(f"{place}: {it.name}: {error}") from error
    return found
