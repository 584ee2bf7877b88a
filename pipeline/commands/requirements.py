"""What the stages need: sources, weights, optimizers, the base model. Told before any work."""

import functools
import glob
from collections.abc import Collection, Iterator
from pathlib import Path

from annotate import annotator
from annotate.annotator import Step
from pipeline import MillError, sources
from pipeline.benchmark import entrants, networks
from pipeline.cluster.nodes import Needs, code_version
from pipeline.experiment.base import RANDOM_BASE
from pipeline.manifest import Manifest
from pipeline.plan import Plan
from pipeline.sources.far.addresses import local_path, scheme_of
from pipeline.storage.workspace import Probe


def missing(plan: Plan, stages: Collection[str] | None = None) -> list[str]:  # None = all stages
    """A sentence for each thing that the stages need and this machine does not have."""
    at, given = plan.manifest.at, plan.manifest

    def wanted(*names: str) -> bool:
        return stages is None or any(name in stages for name in names)

    lacks = []
    if wanted("annotate") or (given.evaluate and wanted("score")):
        # whoever only scores needs the makers of those that no other detector reads
        makers = [
            maker
            for maker in plan.conditions.values()
            if wanted("annotate") or maker.name not in plan.readers
        ]
        lacks += [f"{at('conditions', maker.name)}: {maker.lack}" for maker in makers if maker.lack]
    if plan.captions and plan.captions.lack and wanted("caption"):
        lacks.append(f"{at('captions')}: {plan.captions.lack}")
    for number, source in enumerate(given.source if wanted("ingest") else []):
        if lack := sources.lack(source, given.image):
            lacks.append(f"{at('source', number, 'path')}: {lack}")
    if wanted("train"):
        lacks += [*_warm_starts(plan), *_optimizers(plan)]
    if wanted("score"):
        lacks += [
            f"{at('evaluate', 'readers', reader.name)}: {reader.lack}"
            for reader in plan.readers.values()
            if reader.lack
        ]
    if wanted("generate"):
        lacks += _externals(given)
        lacks += _submissions(plan)
    if wanted("score"):
        lacks += networks.lacking(given)
    if given.base and wanted("encode", "train", "generate"):
        absent = [] if given.base == RANDOM_BASE else list(_base(given))
        lacks += absent or (_steps(given) if wanted("generate") else [])
    return lacks


def of_nodes(plan: Plan, probe: Probe, stages: Collection[str]) -> Needs:
    """What each node of a cluster must have for the stages."""
    steps = [maker.step for maker in plan.conditions.values()] if "annotate" in stages else []
    roots = _roots(plan.manifest) if "ingest" in stages or "annotate" in stages else ()
    return Needs(probe, roots, code_version(), functools.partial(_lacks_of, tuple(steps)))


def _lacks_of(steps: tuple[Step, ...]) -> list[str]:
    """What this machine lacks for these detectors."""
    return [lack for step in steps if (lack := annotator.lack(step))]


def _roots(given: Manifest) -> tuple[str, ...]:
    """Files and folders here from which the sources are read: of a pattern and of a list their folder."""
    roots = []
    for source in given.source:
        path = local_path(str(getattr(source, "path", "")))
        if source.kind == "scenes" or not path or scheme_of(path):
            continue
        place = Path(path).expanduser().absolute()
        if source.kind == "list" or not place.exists():
            place = place.parent
        while glob.has_magic(str(place)):
            place = place.parent
        if place.exists():  # else it is a name on the hub
            roots.append(str(place))
    return tuple(dict.fromkeys(roots))


def _warm_starts(plan: Plan) -> Iterator[str]:
    for number, run in enumerate(plan.manifest.train.runs if plan.manifest.train else []):
        for start in dict.fromkeys(run.starts.values()):
            if start not in plan.conditions and (why := _absent(start)):
                what = "is neither a condition of this manifest nor a ControlNet's folder or file"
                place = plan.manifest.at("train", "runs", number, "warm_start")
                yield f"{place}: {start} {what} ({why})"


def _optimizers(plan: Plan) -> Iterator[str]:
    from train.optimizer import lacking

    for number, run in enumerate(plan.manifest.train.runs if plan.manifest.train else []):
        if lack := lacking(run.optimizer):
            yield f"{plan.manifest.at('train', 'runs', number)}.{lack}"


def _externals(given: Manifest) -> Iterator[str]:
    for number, external in enumerate(given.evaluate.external if given.evaluate else []):
        if why := _absent(external.checkpoint):
            yield f"{given.at('evaluate', 'external', number, 'checkpoint')}: {external.name}: {why}"


def _submissions(plan: Plan) -> Iterator[str]:
    try:
        entrants.submitted(plan)
    except MillError as error:
        yield str(error)


def _absent(controlnet: str) -> str:  # '' = it is here
    from train import pretrained

    try:
        pretrained.locate(controlnet, download=False)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _base(given: Manifest) -> Iterator[str]:
    from train import base

    try:
        base.check(str(given.base))
    except (ValueError, OSError) as error:
        yield f"{given.at('train' if given.train else 'evaluate', 'base')}: {error}"


def _steps(given: Manifest) -> Iterator[str]:
    from train import base, random_base, samplers

    if given.evaluate is None:
        return
    frozen = given.evaluate.benchmark
    asked = (frozen.sampler, frozen.num_inference_steps)
    try:
        if given.base == RANDOM_BASE:
            samplers.scheduler(random_base.SCHEDULER, *asked)
        else:
            base.check_sampling(str(given.base), *asked)
    except ValueError as error:
        yield f"{given.at('evaluate', 'benchmark', 'num_inference_steps')}: {error}"
