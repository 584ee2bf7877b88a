"""What a workspace, the thirteen conditions and this machine look like, as facts and as text."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass

from annotate import annotator, remedies
from annotate.conditions import CONDITIONS
from annotate.detectors import BROKEN, named
from pipeline.cluster.progress import duration
from pipeline.report.counts import RunState, WorkspaceCounts
from pipeline.report.text import table, tally
from pipeline.storage.events import StageProgress

PACKAGES = (
    "torch", "torchvision", "ray", "datasets", "controlnet-aux", "opencv-python-headless", "torchmetrics",
    "clean-fid", "safetensors",
    "duckdb", "diffusers", "transformers", "numpy", "pyarrow", "mediapipe",
)  # fmt: skip
RUN_STATES = ("complete", "running", "queued", "incomplete", "failed")


def progress_text(progress: StageProgress) -> list[str]:
    """How far the run is that is under way: `under way annotate, 40 of 240 images, 1.2/s, 3 min left`, and a
    line for each condition.
    """
    parts = [f"{progress.done:,} of {progress.total:,} {progress.unit}"]
    if progress.per_second:
        parts.append(f"{progress.per_second:.3g}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    lines = [f"under way  {progress.stage}, {', '.join(parts)}"]
    for name, rows in progress.rows.items():
        speed = progress.rows_per_second.get(name, 0.0)
        left = max(0, progress.total - rows) if progress.stage == "annotate" else 0
        ahead = f", {duration(left / speed)} left" if left and speed else ""
        at = f", {progress.under_way[name]} jobs at it" if name in progress.under_way else ""
        lines.append(f"  {name:<16} {rows:,} rows committed, {speed:.3g}/s{ahead}{at}")
    return lines


def text(counts: WorkspaceCounts) -> str:
    lines = [counts.workspace]
    lines.append(f"images     {tally(counts.images)}; {counts.sources} addresses; {tally(counts.splits)}")
    if counts.transient:
        lines.append(f"           {counts.transient} that failed are tried again by the next run")
    header = ["condition", "detector", "ok", "skipped", "failed", "to do"]
    rows = [
        [name, one.detector, one.ok, one.skipped, one.failed, one.todo]
        for name, one in counts.conditions.items()
    ]
    lines.append(table(header, rows))
    if counts.runs_wanted:
        states = [run.status for run in counts.runs]
        begun = "".join(
            f", {states.count(state)} {state}"
            for state in RUN_STATES
            if state != "complete" and state in states
        )
        lines.append(f"encode     {counts.latents} ok, {counts.readable - counts.latents} to do")
        lines.append(f"train      {states.count('complete')} of {counts.runs_wanted} runs complete{begun}")
    for run in counts.runs:
        lines += [f"run        {run_text(run)}", *(f"  {note}" for note in run.notes)]
    lines += [f"samples    {system}: {count}" for system, count in counts.samples.items()]
    lines += [f"scores     {counts.scores}"]
    if counts.reasons:
        lines.append("why rows are not ok, or doubtful:")
        lines += [f"  {each.count:>6}  {each.what}: {each.reason}" for each in counts.reasons[:20]]
    return "\n".join(lines)


def run_text(run: RunState) -> str:
    """`canny-1a2b3c4d: running, 12,400 of 200,000 images, 38.2 images/s, about 1 h 22 min left; follows canny
    since 8,000 images`.
    """
    of = f" of {run.of:,}" if run.status != "complete" else ""
    parts = [run.status, f"{run.images:,}{of} images"]
    if run.status == "complete":
        parts.append(f"{run.steps:,} steps")
    if run.images_per_second:
        parts.append(f"{run.images_per_second:.3g} images/s")
    if run.seconds_left is not None:
        parts.append(f"{duration(run.seconds_left)} left")
    follows = ", ".join(
        f"follows {name} since {images:,} images" for name, images in run.convergence_step.items()
    )
    reason = str(run.reason).strip().splitlines()
    return "; ".join(
        filter(None, [f"{run.name or run.run}: {', '.join(parts)}", follows, reason[0] if reason else ""])
    )


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    file: str
    repository: str | None
    revision: str | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class DetectorRow:
    detector: str
    title: str
    licence: str
    weights: list[WeightRow]
    lacks: str | None  # what is missing here
    get: str | None  # the command that gets it, where it is one of ours


@dataclass(frozen=True, kw_only=True)
class ReadyRow:
    """One of the thirteen: the detector that would run here, or what is missing; and every detector."""

    condition: str
    kind: str
    ready: bool
    detector: str | None
    licence: str | None
    made_from: str | None
    lacks: str | None
    detectors: list[DetectorRow]


def conditions() -> list[ReadyRow]:
    rows = []
    for name, condition in CONDITIONS.items():
        lack = annotator.lacks(name)
        detector = None if lack else annotator.resolve(name).detector
        rows.append(
            ReadyRow(
                condition=name,
                kind=condition.kind,
                ready=lack is None,
                detector=detector,
                licence=annotator.licence(detector) if detector else None,
                made_from=condition.parent,
                lacks=lack,
                detectors=[_detector(each) for each in named(name)],
            )
        )
    return rows


def _detector(name: str) -> DetectorRow:
    row = annotator.DETECTORS[name]
    return DetectorRow(
        detector=name,
        title=row.title,
        licence=row.licence,
        weights=[
            WeightRow(
                file=weight.name,
                repository=weight.repo or weight.package,
                revision=weight.revision,
                sha256=weight.sha256,
            )
            for weight in row.weights
        ],
        lacks=annotator.missing(name),
        get=remedies.command(name),
    )


def conditions_text(rows: list[ReadyRow], details: bool = False) -> str:
    """One line a detector, in the order in which `auto` tries them; with details, what is missing, each thing
    once; a verdict.
    """
    shown, lacks = [], {}
    for row in rows:
        for number, each in enumerate(row.detectors):
            first = [row.condition, row.kind] if number == 0 else ["", ""]
            here = "chosen by auto" if each.detector == row.detector else "ready"
            here = here if not each.lacks else f"missing: {each.get}" if each.get else "missing"
            shown.append([*first, each.detector, here, each.licence])
            if each.lacks:
                lacks[each.detector] = each.lacks
    lines = [table(["condition", "kind of map", "detector", "here", "licence"], shown)]
    lines += [f"{name}: {why}" for name, why in BROKEN.items()]
    if lacks and details:
        lines += ["", "missing:", *(f"  {lack}" for lack in lacks.values())]
    elif lacks:
        lines += ["", "`controlmill conditions --details` says of each what is missing and where it may lie."]
    return "\n".join([*lines, "", verdict(rows)])


def verdict(rows: list[ReadyRow]) -> str:
    """How many of the thirteen can be made here, and what to type for the others."""
    absent = [row.condition for row in rows if not row.ready]
    told = [f"{len(rows) - len(absent)} of {len(rows)} conditions are ready on this machine."]
    if command := remedies.together(absent):
        told.append(f"Others lack weights: `{command}`.")
    if programs := [name for name in absent if not remedies.shortest(name)]:
        told.append(f"`controlmill conditions --details` says what lacks for {' and '.join(programs)}.")
    if absent:
        told.append("Maps that come with the data need no detector.")
    return " ".join(told)


def machine(rows: list[ReadyRow]) -> dict[str, str]:
    facts = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    facts["free disk here"] = f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "missing: run `make setup`"
    for name in ("pipeline", "annotate", "train", "evaluate"):
        spec = importlib.util.find_spec(name)
        facts[f"package {name}"] = str(spec.origin) if spec else "missing"
    import torch

    facts["GPU"] = (
        ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        or "none: detectors and training run on the CPU"
    )
    from train import compiler

    missing = compiler.lacking("cuda" if torch.cuda.is_available() else "cpu")
    facts["torch.compile"] = f"needs {missing}: training runs without it" if missing else "ready"
    for row in rows:
        facts[f"condition {row.condition}"] = row.lacks or f"ready: {row.detector}"
    return facts


def machine_text(facts: dict[str, str], rows: list[ReadyRow], details: bool = False) -> str:
    """A line a fact; what conditions lack only with details; a verdict."""
    short = {} if details else {f"condition {row.condition}": "missing" for row in rows if not row.ready}
    lines = [f"{name:<26} {value}" for name, value in (facts | short).items()]
    return "\n".join([*lines, "", verdict(rows)])
