"""Is there a sudden convergence? Of each ControlNet of a workspace: its convergence step, how fast its
hint came to matter, and since when its samples show it.

The saving is what an image's own hint takes off the held-out loss more than another's does, in thousandths;
the last three measures' mean is its end. A sample shows the hint when the checkpoint's fidelity is above both
baselines beyond chance, on the same prompts. The workspace needs `watch_every` in its runs for the first,
`keep_every` and the baseline `earlier` for the second.

    python benchmarks/convergence.py runs/showcase --out benchmarks/results/convergence.json
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(it for it in sys.path if Path(it).resolve() != Path(__file__).resolve().parent),
]

from annotate.conditions import CONDITIONS
from evaluate import measures
from evaluate.replicates import Replicated, difference
from pipeline import plan as plans
from pipeline.benchmark.estimates import replicated
from pipeline.benchmark.systems import CONTROL, EARLIER, NO_CONTROL, SHUFFLED, System, systems
from pipeline.catalog import Catalog
from pipeline.experiment.logs import follows, held_out_rows, read_log
from pipeline.storage.workspace import Workspace

LAST = 3  # measures whose mean is the end of a curve


def main() -> None:
    """Ask, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()
    workspace = Workspace(options.workspace.resolve())
    plan, catalog = plans.load_saved(workspace), Catalog(workspace)
    made = systems(plan, catalog)
    scores = {
        (name, metric): row
        for name, metric, *row in catalog.query(
            "SELECT system, metric, value, replicates, method, prompts FROM scores"
        )
    }
    found = {
        it.condition: _saving(read_log(workspace.run(it.model)), it.condition) | _fidelity(it, made, scores)
        for it in made
        if it.variant == CONTROL
    }
    print(
        f"{'condition':16} {'step':>7} {'half':>7} {'largest rise':>13} {'shown':>7}   (images seen; share"
        " of the end, between two measures)"
    )
    for condition in sorted(found, key=list(CONDITIONS).index):
        row = found[condition]
        alarm, half, shown = (
            "–" if row[key] is None else f"{row[key]:,}" for key in ("alarm", "half", "shown")
        )
        rise = "–" if row["largest_rise"] is None else f"{row['largest_rise']:.0%}"
        print(f"{condition:16} {alarm:>7} {half:>7} {rise:>12} {shown:>8}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _saving(log: list[dict[str, Any]], condition: str) -> dict[str, Any]:
    """One that started from the base alone saved nothing before its first image."""
    told = [(images, 1000 * row["control"]) for images, row in held_out_rows(log, condition)]
    if told[0][0]:
        told.insert(0, (0, 0.0))
    end = sum(value for _, value in told[-LAST:]) / LAST
    rises = [after - before for (_, before), (_, after) in itertools.pairwise(told)]
    saves = end > 0  # else there is nothing to take a half or a share of
    return {
        "alarm": follows(log).get(condition),
        "half": next((images for images, value in told if saves and value >= end / 2), None),
        "largest_rise": round(max(rises) / end, 3) if saves else None,
        "saving": [(images, round(value, 1)) for images, value in told],
    }


def _fidelity(
    system: System, made: list[System], scores: Mapping[tuple[str, str], list[Any]]
) -> dict[str, Any]:
    metric = measures.primary(CONDITIONS[system.condition].kind)

    def score(of: System) -> Replicated | None:
        row = scores.get((of.name, metric.name))
        return row and replicated(
            dict(zip(("value", "replicates", "method", "prompts"), row, strict=True))
            | {"metric": metric.name}
        )

    beside = [
        it for it in made if it.condition == system.condition and it.model in (system.model, it.variant)
    ]
    floors = [found for it in beside if it.variant in (NO_CONTROL, SHUFFLED) and (found := score(it))]
    on_the_way = sorted(
        (it.seen, found)
        for it in beside
        if it.variant == EARLIER and it.seen is not None and (found := score(it))
    )
    end = score(system)
    sign = 1 if metric.higher_is_better else -1
    above = [
        images
        for images, found in on_the_way
        if all(_beyond(difference(found, floor), sign) for floor in floors)
    ]
    return {
        "measure": metric.name,
        "floors": [round(it.value, 4) for it in floors],
        "shown": above[0] if above else None,
        "fidelity": [(images, round(found.value, 4)) for images, found in on_the_way],
        "end": round(end.value, 4) if end else None,
    }


def _beyond(found: Any, sign: int) -> bool:  # evaluate.replicates.Difference
    return found.low is not None and (found.low > 0 if sign > 0 else found.high < 0)


if __name__ == "__main__":
    main()
