"""What a workspace holds by stage and condition, for the report and `controlmill status`."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from annotate.conditions import CONDITIONS
from pipeline import plan as plans
from pipeline.catalog import Catalog
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
    images: dict[str, int] = dict(catalog.query("SELECT status, count(*) FROM images GROUP BY status"))
    return WorkspaceCounts(
        workspace=catalog.workspace.address,
        images=images,
        transient=catalog.row("SELECT count(*) FROM images WHERE status = 'failed' AND transient")[0],
        sources=catalog.row("SELECT count(*) FROM sources WHERE gone IS NULL")[0],
        splits=dict(
            catalog.query(
                "SELECT split, count(*) FROM images WHERE status = 'ok' GROUP BY split ORDER BY split"
            )
        ),
        conditions=_conditions(catalog, images.get("ok", 0)),
        reasons=[
            ReasonCount(what=what, reason=reason, count=count)
            for what, reason, count in catalog.query(REASONS)
        ],
        latents=catalog.row(
            "SELECT count(DISTINCT image) FROM latent_rows JOIN images USING (image)"
            " WHERE latent_rows.status = 'ok'"
        )[0],
        runs_wanted=len(saved.train.runs) if saved.train else 0,
        runs=_runs(catalog),
        samples=dict(catalog.query("SELECT sample_set, count(*) FROM samples GROUP BY ALL ORDER BY ALL")),
        scores=catalog.row("SELECT count(*) FROM scores")[0],
    )


REASONS = """
    SELECT 'image' AS what, reason, count(*) AS n FROM images WHERE status = 'failed' GROUP BY ALL
    UNION ALL SELECT 'caption', reason, count(*) FROM caption_rows WHERE status = 'failed' GROUP BY ALL
    UNION ALL SELECT condition, reason, count(*) FROM annotations WHERE status <> 'ok' OR reason <> ''
              GROUP BY ALL
    ORDER BY what, n DESC, reason"""


def _conditions(catalog: Catalog, readable: int) -> dict[str, ConditionCounts]:
    sql = """
        SELECT condition, detector, fingerprint, count(*) FILTER (a.status = 'ok'),
            count(*) FILTER (a.status = 'skipped'), count(*) FILTER (a.status = 'failed')
        FROM detectors LEFT JOIN annotations a USING (condition, fingerprint) WHERE current GROUP BY ALL"""
    rows = sorted(catalog.query(sql), key=lambda row: list(CONDITIONS).index(row[0]))
    return {
        name: ConditionCounts(
            detector=detector,
            fingerprint=fingerprint,
            ok=ok,
            skipped=skipped,
            failed=failed,
            todo=readable - ok - skipped - failed,
        )
        for name, detector, fingerprint, ok, skipped, failed in rows
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
