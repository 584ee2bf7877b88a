"""The catalog and a few pictures -> report/index.html.

Written whenever a stage ends, so it fills as the job goes on.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from annotate import remedies
from pipeline import MillError, __version__, manifest
from pipeline.benchmark.estimates import scores_identity
from pipeline.benchmark.systems import EARLIER, System, readable
from pipeline.benchmark.tasks import tasks_of
from pipeline.catalog import Catalog
from pipeline.experiment.base import ON_RANDOM_WEIGHTS
from pipeline.plan import Plan
from pipeline.report import benchmark_rows, contents, dataset_rows, leaderboard_scores
from pipeline.report.counts import WorkspaceCounts, workspace_counts
from pipeline.report.site import render
from pipeline.report.summary import summary
from pipeline.stages.stage import StageContext, StageResult
from pipeline.storage import copies, folders
from pipeline.storage.stores import shown


def report(context: StageContext) -> StageResult:
    """MillError where the manifest's benchmark can't be held; the page alone can be written all the same."""
    plan, catalog, board = context.plan, context.catalog, None
    if plan.manifest.evaluate:
        with folders.written(plan.workspace.report / "leaderboard") as folder:
            page = leaderboard_scores.write(plan, catalog, context.systems, folder)
        board = plan.workspace.report / "leaderboard" / page.name if page else None
    pages = [path for path in (write_page(context), board) if path]
    return StageResult(" and ".join(map(shown, pages)), done=len(pages))


def write_page(context: StageContext) -> Path:
    """Returns the page's path; its pictures lie beside it."""
    plan, catalog = context.plan, context.catalog
    counts = workspace_counts(catalog)
    made = _systems(context)
    runs = tuple(benchmark_rows.runs(plan, catalog, made))
    # those are shown as the learning curve of their run
    compared = [system for system in made if system.variant != EARLIER]
    conditions = tuple(dataset_rows.conditions(plan, catalog, counts))
    data = contents.ReportData(
        name=plan.manifest.name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=f"controlmill {__version__}",
        manifest=manifest.dump(plan.manifest),
        machine=_machine(),
        notes=tuple(_notes(plan, runs)),
        stages=tuple(_stages(plan, counts, runs, made)),
        ingest=dataset_rows.ingest(catalog, counts) if counts.images else None,
        conditions=conditions,
        contact=tuple(dataset_rows.contact_sheet(plan, catalog)),
        get=remedies.together(row.name for row in conditions if row.state == "lacking"),
        runs=runs,
        scores=tuple(benchmark_rows.scores(plan, catalog, compared)),
        summary=tuple(summary(plan, catalog, compared)),
        evidence=tuple(benchmark_rows.evidence_rows(plan, catalog, compared)),
        leaderboard=counts.scores > 0,
        libraries=tuple(_libraries(catalog)),
    )
    with folders.written(plan.workspace.report) as folder:
        page = render(data, folder)
    return plan.workspace.report / page.name


def _systems(context: StageContext) -> list[System]:
    try:
        return context.systems
    except MillError:
        return []  # a report under way: what the stages before still lack, they say themselves


def _libraries(catalog: Catalog) -> Iterator[contents.LibraryRow]:
    """What was compared last, if it was of these scores; a file that is none is passed over."""
    with suppress(OSError, ValueError, TypeError, LookupError):
        found = json.loads(copies.copy_of(catalog.workspace.libraries, trusted=0.0).read_bytes())
        if found["scores"] == scores_identity(catalog):
            yield from [contents.LibraryRow(**row) for row in found["measures"]]


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _notes(plan: Plan, runs: tuple[contents.RunRow, ...]) -> Iterator[str]:
    if any(run.random_weights for run in runs):
        yield ON_RANDOM_WEIGHTS
    unread = {
        name
        for run in runs
        for name in run.conditions
        if name in plan.conditions and not readable(plan, name)
    }
    if unread and plan.manifest.evaluate:
        yield (
            f"No detector reads {', '.join(sorted(unread))} again from what was generated, since their maps"
            " came with the images: name one in evaluate.readers."
        )


def _stages(
    plan: Plan, counts: WorkspaceCounts, runs: tuple[contents.RunRow, ...], made_by: list[System]
) -> Iterator[contents.Stage]:
    def state(asked: object, had: int, wanted: int) -> Any:
        return "off" if not asked else "done" if had and had >= wanted else "running" if had else "waiting"

    readable = counts.readable
    made = sum(one.rows for one in counts.conditions.values())
    seen, asked_for = (
        sum(run.images_seen for run in runs),
        sum(run.images for run in plan.manifest.train.runs) if plan.manifest.train else 0,
    )
    samples = sum(counts.samples.values())
    drawn = {(it.sample_set, it.key): it for it in made_by}.values()
    asked = (
        sum(len(tasks_of(it, plan.manifest.evaluate.benchmark)) for it in drawn)
        if plan.manifest.evaluate
        else 0
    )
    yield contents.Stage(name="ingest", state=state(True, readable, 1), detail=f"{readable} images")
    yield contents.Stage(
        name="annotate", state=state(True, made, readable * len(plan.conditions)), detail=f"{made} maps"
    )
    yield contents.Stage(
        name="encode",
        state=state(plan.manifest.train, counts.latents, readable),
        detail=f"{counts.latents} images",
    )
    yield contents.Stage(
        name="train",
        state=state(plan.manifest.train, seen, asked_for),
        detail=f"{seen:,} of {asked_for:,} images seen",
    )
    yield contents.Stage(
        name="generate",
        state=state(plan.manifest.evaluate, samples, max(1, asked)),
        detail=f"{samples} samples",
    )
    yield contents.Stage(
        name="score",
        state=state(plan.manifest.evaluate, counts.scores, 1),
        detail=f"{counts.scores} scores",
    )
