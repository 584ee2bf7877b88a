"""What a workspace holds by stage and condition, for the report and `controlmill status`."""

import json
import os
from typing import Any

from annotate.conditions import CONDITIONS
from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.experiment.logs import follows, notes, read_log
from pipeline.storage.workspace import Workspace


def facts(catalog: Catalog) -> dict[str, Any]:
    """Counts by stage and condition; `to do` counts readable images without a row."""
    saved = plans.saved(catalog.workspace)
    images: dict[str, int] = dict(catalog.query("SELECT status, count(*) FROM images GROUP BY status"))
    readable = images.get("ok", 0)
    sql = """SELECT condition, detector, fingerprint, count(*) FILTER (a.status = 'ok'), count(*) FILTER
                    (a.status = 'skipped'),
                    count(*) FILTER (a.status = 'failed')
             FROM detectors LEFT JOIN annotations a USING (condition, fingerprint) WHERE current GROUP BY
             ALL"""
    rows = sorted(catalog.query(sql), key=lambda row: list(CONDITIONS).index(row[0]))
    conditions = {
        name: {
            "detector": detector,
            "fingerprint": mark,
            "ok": ok,
            "skipped": skipped,
            "failed": failed,
            "to do": readable - ok - skipped - failed,
        }
        for name, detector, mark, ok, skipped, failed in rows
    }
    return {
        "workspace": str(catalog.workspace.root),
        "images": images,
        "sources": catalog.row("SELECT count(*) FROM sources")[0],
        "splits": dict(
            catalog.query(
                "SELECT split, count(*) FROM images WHERE status = 'ok' GROUP BY split ORDER BY split"
            )
        ),
        "conditions": conditions,
        "reasons": [
            {"what": what, "reason": reason, "count": count}
            for what, reason, count in catalog.query(
                """SELECT 'image' AS what, reason, count(*) AS n FROM images WHERE status = 'failed' GROUP BY
                   ALL
                   UNION ALL SELECT 'caption', reason, count(*) FROM caption_rows WHERE status = 'failed'
                   GROUP BY ALL
                   UNION ALL SELECT condition, reason, count(*) FROM annotations WHERE status <> 'ok' GROUP
                   BY ALL ORDER BY what, n DESC, reason"""
            )
        ],
        "latents": catalog.row(
            "SELECT count(DISTINCT image) FROM latent_rows JOIN images USING (image) WHERE latent_rows.status"
            " = 'ok'"
        )[0],
        "runs asked for": len(saved.train.runs) if saved.train else 0,
        "runs": _runs(catalog),
        "samples": dict(catalog.query("SELECT sample_set, count(*) FROM samples GROUP BY ALL ORDER BY ALL")),
        "scores": catalog.row("SELECT count(*) FROM scores")[0],
    }


def _runs(catalog: Catalog) -> list[dict[str, Any]]:
    """The catalog's runs; how far the running ones are is in their logs, which tell more and sooner."""
    sql = "SELECT run, name, conditions, status, images, steps, options, reason FROM runs ORDER BY run"
    alive, told = _driver_lives(catalog.workspace), []
    for name, title, conditions, status, images, steps, options, reason in catalog.query(sql):
        log = read_log(catalog.workspace.run(name)) if status != "queued" else []
        if status in ("queued", "running") and not alive:
            status = "incomplete"  # its driver was killed
        last = log[-1] if log and status == "running" else {}
        told.append(
            {
                "run": name,
                "name": title,
                "conditions": conditions,
                "status": status,
                "images": last.get("images", images),
                "of": json.loads(options).get("images", images),
                "steps": last.get("step", steps),
                "loss": last.get("loss"),
                "images_per_second": last.get("images_per_second"),
                "seconds_left": last.get("seconds_left"),
                "alarm": follows(log),
                "reason": reason,
                "notes": notes(log),
            }
        )
    return told


def _driver_lives(workspace: Workspace) -> bool:
    """Whether the process that holds the workspace is there; asking for its lock could keep another from
    getting it.
    """
    try:
        os.kill(int((workspace.root / ".lock").read_text()), 0)
    except PermissionError:
        return True  # another person's
    except (OSError, ValueError):
        return False
    return True
