"""What a workspace holds by stage and condition, for the report and `controlmill status`."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from annotate.conditions import CONDITIONS
from pipeline import plan as plans
from pipeline.catalog import Catalog, totals
from pipeline.experiment.logs import follows, notes, read_log
from pipeline.storage import lease
from pipeline.storage.workspace import LEASE, LOCK, Workspace


@dataclass(frozen=True, kw_only=True)
class ConditionCounts:
    """Rows of the detector in force."""

    detector: str
    fingerprint: str
    ok: int
    skipped: int
    failed: int
    todo: int  # readable images without a row

    @property
    def rows(self) -> int:
        return self.ok + self.skipped + self.failed


@dataclass(frozen=True, kw_only=True)
class ReasonCount:
    what: str  # "image", "caption", or a condition
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run of the catalog; how far one under way is is in its log, which tells more and sooner."""

    run: str
    name: str  # as the manifest calls it, '' where it doesn't
    conditions: list[str]
    status: str
    images: int
    of: int  # images that it will see
    steps: int
    loss: dict[str, float] | None  # this and the next two: of a run under way, as last logged
    images_per_second: float | None
    seconds_left: float | None
    convergence_step: dict[str, int]  # condition -> images seen when it began to follow its hints
    reason: str
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class WorkspaceCounts:
    workspace: str
    images: dict[str, int]  # by status
    transient: int = 0  # of those that failed, how many the next run tries again
    sources: int
    splits: dict[str, int]  # readable images only
    conditions: dict[str, ConditionCounts]
    reasons: list[ReasonCount]  # why rows are not ok, and what is doubtful about maps that are
    latents: int
    runs_wanted: int  # that the manifest asks for
    runs: list[RunState]
    samples: dict[str, int]  # by system
    scores: int

    @property
    def readable(self) -> int:
        return self.images.get("ok", 0)

    def as_json(self) -> dict[str, Any]:
        """What `controlmill status --json` prints."""
        printed = asdict(self)
        for condition in printed["conditions"].values():
            condition["to do"] = condition.pop("todo")
        return {{"runs_wanted": "runs asked for"}.get(key, key): value for key, value in printed.items()}


def workspace_counts(catalog: Catalog) -> WorkspaceCounts:
    saved = plans.saved(catalog.workspace)
    images, maps = totals.images(catalog), totals.maps(catalog)
    return WorkspaceCounts(
        workspace=catalog.workspace.address,
        images=images,
        transient=totals.transient(catalog),
        sources=totals.addresses(catalog)[0],
        splits=totals.splits(catalog),
        conditions=_conditions(maps, images.get("ok", 0)),
        reasons=_reasons(catalog, maps),
        latents=catalog.row(LATENTS)[0],
        runs_wanted=len(saved.train.runs) if saved.train else 0,
        runs=_runs(catalog),
        samples=dict(catalog.query("SELECT sample_set, count(*) FROM samples GROUP BY ALL ORDER BY ALL")),
        scores=catalog.row("SELECT count(*) FROM scores")[0],
    )


LATENTS = """
    SELECT count(DISTINCT image) FROM latent_rows
    WHERE status = 'ok' AND shard_number IN (
        SELECT shard_number FROM shard_rows
        WHERE kind = 'latents' AND image_key = (SELECT value FROM settings WHERE name = 'image_key'))"""
REASONS = """
    SELECT 'image' AS what, coalesce(gone, reason), count(*) FROM image_rows
        JOIN shard_rows USING (shard_number)
        WHERE status = 'failed' AND gone IS NULL
          AND key = (SELECT value FROM settings WHERE name = 'image_key') GROUP BY ALL
    UNION ALL SELECT 'caption', reason, count(*) FROM caption_rows WHERE status = 'failed' GROUP BY ALL"""


def _reasons(catalog: Catalog, maps: list[totals.MapTotals]) -> list[ReasonCount]:
    """By what they are of, the most frequent first."""
    rows = [(what, reason or "", count) for what, reason, count in catalog.query(REASONS)]
    for one in maps:
        counts = Counter[str]()
        for (_, reason), count in one.told.items():
            counts[reason] += count
        rows += [(one.condition, reason, count) for reason, count in counts.items()]
    rows.sort(key=lambda row: (row[0], -row[2], row[1]))
    return [ReasonCount(what=what, reason=reason, count=count) for what, reason, count in rows]


def _conditions(maps: list[totals.MapTotals], readable: int) -> dict[str, ConditionCounts]:
    return {
        one.condition: ConditionCounts(
            detector=one.detector,
            fingerprint=one.fingerprint,
            ok=one.of_status("ok"),
            skipped=one.of_status("skipped"),
            failed=one.of_status("failed"),
            todo=readable - one.rows,
        )
        for one in sorted(maps, key=lambda one: list(CONDITIONS).index(one.condition))
    }


def _runs(catalog: Catalog) -> list[RunState]:
    sql = "SELECT run, name, conditions, status, images, steps, options, reason FROM runs ORDER BY run"
    alive, states = _driver_lives(catalog.workspace), []
    for name, title, conditions, status, images, steps, options, reason in catalog.query(sql):
        log = read_log(catalog.workspace.run(name)) if status != "queued" else []
        if status in ("queued", "running") and not alive:
            status = "incomplete"  # its driver was killed
        last = log[-1] if log and status == "running" else {}
        states.append(
            RunState(
                run=name,
                name=title,
                conditions=conditions,
                status=status,
                images=last.get("images", images),
                of=json.loads(options).get("images", images),
                steps=last.get("step", steps),
                loss=last.get("loss"),
                images_per_second=last.get("images_per_second"),
                seconds_left=last.get("seconds_left"),
                convergence_step=follows(log),
                reason=reason,
                notes=notes(log),
            )
        )
    return states


def _driver_lives(workspace: Workspace) -> bool:
    """Whether the process that holds the workspace is there; asking for its lock could keep another from
    getting it.
    """
    if workspace.is_remote:
        return workspace.is_locked_here() or bool(lease.holder(workspace.root / LEASE))
    try:
        os.kill(int((workspace.root / LOCK).read_text()), 0)
    except PermissionError:
        return True  # another person's
    except (OSError, ValueError):
        return False
    return True
