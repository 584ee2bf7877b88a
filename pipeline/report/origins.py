"""Where every number of the leaderboard comes from: the weights that were sampled, those that read the
samples, when, and on what.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from annotate import annotator
from pipeline.benchmark.systems import BEFORE, System, readable, score_key
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.plan.records import Planned
from pipeline.report.leaderboard_data import Leaderboard
from pipeline.storage import stores
from pipeline.storage.workspace import Workspace

UNKNOWN = "not recorded"
MADE = """SELECT kind, name, key, string_agg(DISTINCT device, ' and ' ORDER BY device), max(committed)
          FROM shards WHERE kind IN ('samples', 'scores') GROUP BY ALL"""


def with_origins(board: Leaderboard, plan: Plan, catalog: Catalog, systems: Iterable[System]) -> Leaderboard:
    """The provenance of each score says that too."""
    told = dict(_origins(plan, catalog, systems))
    scores = (
        replace(score, provenance={**score.provenance, **told.get(score.provenance.get("system", ""), {})})
        for score in board.scores
    )
    return replace(board, scores=tuple(scores))


def _origins(plan: Plan, catalog: Catalog, systems: Iterable[System]) -> Iterator[tuple[str, dict[str, str]]]:
    made = {(kind, name, key): (device, when) for kind, name, key, device, when in catalog.query(MADE)}
    recorded = functools.cache(functools.partial(_recorded, plan.workspace))
    readers = {system.condition: _reader(plan, system.condition) for system in systems}
    for system in systems:
        samples = made.get(("samples", system.sample_set, system.key), (None, None))
        scores = made.get(("scores", system.name, score_key(plan, system)), (None, None))
        both = [("samples", *samples), ("scores", *scores)]
        yield (
            system.name,
            {
                "weights": _weights(system, recorded),
                "reader": readers[system.condition],
                "device": ", ".join(f"{what}: {device or UNKNOWN}" for what, device, _ in both),
                "date": ", ".join(f"{what} committed {when:%Y-%m-%d}" for what, _, when in both if when)
                or UNKNOWN,
            },
        )


def _weights(system: System, recorded: Callable[[str], Mapping[str, str]]) -> str:
    """As the checkpoint's own record has it: hashing what may be gigabytes takes too long for a page."""
    from train.integrity import AVERAGE
    from train.weights_file import WEIGHTS

    if not system.checkpoint:
        return "none"
    if system.variant == BEFORE or Path(system.checkpoint).is_absolute():
        return f"sha256 {system.weights}…"  # its identity is that of the file
    step, _, condition = system.checkpoint.rpartition("/")
    names = (f"{condition}/{AVERAGE}/{WEIGHTS}", f"{condition}/{WEIGHTS}")  # the average is what is sampled
    files = recorded(step)
    return next((f"sha256 {files[name]}" for name in names if name in files), UNKNOWN)


def _recorded(workspace: Workspace, step: str) -> dict[str, str]:
    """File -> sha256 of a checkpoint below the workspace; empty where its record can't be read."""
    from train.integrity import META

    record = workspace.root / step / META
    try:
        told = bytes(stores.read(record)) if stores.address_of(record) else record.read_bytes()
        return {name: file["sha256"] for name, file in json.loads(told)["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _reader(plan: Plan, condition: str) -> str:
    """What reads the condition again, after what it reads from: weights, precision, library."""
    if not readable(plan, condition):
        return "none"
    steps = annotator.chain(condition, lambda name: plan.reader(name).step)
    return "; ".join(_detector(plan.reader(step.condition)) for step in steps)


def _detector(made: Planned) -> str:
    identity = made.identity
    weights = f"sha256 {identity['weights']}" if identity.get("weights") else "no weights"
    parts = (
        f"{made.step.detector} {weights}",
        identity.get("precision"),
        " ".join(identity["library"] or ()),
    )
    return ", ".join(filter(None, parts))
