"""Runs in a workspace: their options here, how far each is in the catalog, what a longer one goes on from."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.catalog import Catalog
from pipeline.experiment.base import RANDOM_BASE
from pipeline.experiment.logs import read_log
from pipeline.experiment.pairs import DRAWN, PlannedRun, planned_runs
from pipeline.manifest import Run
from pipeline.plan import Plan
from pipeline.storage import folders, stores
from pipeline.storage.workspace import TEMPORARY, Workspace

READERS = 4  # threads that read pairs ahead for a GPU


def options_of(
    run: Run,
    where: str,  # the device
    began: Mapping[str, Any],  # the options of the checkpoint that it goes on from; empty = it begins
) -> Any:  # train.options.Options
    """`auto` is settled by the device where the run begins, and stays as it was wherever it goes on."""
    from train.options import Options

    gpu = where.startswith("cuda")
    precision: Literal["fp32", "bf16"] = (
        began.get("precision", "fp32") if began else "bf16" if gpu else "fp32"
    )
    compiled = began.get("compile", False) if began else gpu
    return Options(
        images=run.images,
        batch=run.batch,
        micro_batch=run.micro_batch,
        lr=run.lr,
        prompt_drop=run.prompt_drop,
        seed=run.seed,
        checkpoint_every=run.checkpoint_every or max(run.batch, run.images // 4),
        log_every=max(run.batch, run.images // 100),
        connect=run.connect,
        unlock=run.unlock,
        unlock_lr=run.unlock_lr,
        min_snr=run.min_snr,
        ema=run.ema,
        gradient_checkpointing=run.gradient_checkpointing,
        workers=READERS if gpu else 1,
        optimizer=run.optimizer,
        flip=run.flip,
        join=run.join,
        precision=precision if run.precision == "auto" else run.precision,
        compile=compiled if run.compile == "auto" else run.compile,
        deterministic=run.deterministic,
        held_out=run.held_out,
        watch_every=run.watch_every,
        keep_every=run.keep_every,
        grids=run.grids if run.grids is not None else DRAWN if gpu else 0,
    )


def record(
    plan: Plan,
    catalog: Catalog,
    name: str,
    # queued | running | complete | failed | incomplete; None = what its newest checkpoint says
    status: str | None = None,
    reason: str = "",
    *,
    planned: PlannedRun | None = None,  # what is known of a run that has no checkpoint yet
    where: str = "cpu",
) -> None:
    """How far the run is, in the catalog: by its log while it goes on or where it failed, else by its newest
    checkpoint.
    """
    from train import checkpoint

    newest = checkpoint.newest(plan.workspace.run(name))
    meta = dict(newest.meta) if newest else {}
    if planned and not newest:
        spec = Path(planned.base)
        meta = {
            "conditions": planned.run.conditions,
            "base": planned.base_fingerprint,
            "base_name": spec.name if spec.exists() else planned.base,
            "random_weights": bool(plan.manifest.train and plan.manifest.train.base == RANDOM_BASE),
            "options": dataclasses.asdict(options_of(planned.run, where, {})),
        }
    log = read_log(plan.workspace.run(name))
    last = log[-1] if log and status in ("running", "failed") else {}
    images = newest.images if newest else 0
    whole = newest is not None and images >= meta.get("options", {}).get("images", 0)
    timed = [row["seconds"] for row in log if "seconds" in row]
    catalog.record_run(
        run=name,
        **({"name": planned.run.name} if planned else {}),
        conditions=meta.get("conditions", []),
        base=meta.get("base_name", ""),
        base_fingerprint=meta.get("base", ""),
        random_weights=bool(meta.get("random_weights")),
        images=last.get("images", images),
        steps=last.get("step", newest.step if newest else 0),
        seconds=timed[-1] if timed else 0.0,
        checkpoint=plan.workspace.relative(newest.path) if newest else "",
        options=json.dumps(meta.get("options", {})),
        status=status or ("complete" if whole else "incomplete"),
        reason=reason,
    )


def record_all(plan: Plan, catalog: Catalog) -> None:
    folders.bring_each(plan.workspace.root / "checkpoints")
    for folder in sorted((plan.workspace.root / "checkpoints").glob("*/")):
        # one that failed at its start left nothing
        if not folder.name.startswith(TEMPORARY) and any(folder.iterdir()):
            record(plan, catalog, folder.name)


def controlnet_here(place: Path) -> Path:
    """The folder of a ControlNet on this machine, its checkpoint brought where it lies in a bucket."""
    if stores.address_of(place) is None:
        return place
    from train.integrity import OPTIMIZER

    here = stores.located(place)
    if "checkpoints" in here.parts[:-2]:
        above = len(here.parts) - 1 - here.parts[::-1].index("checkpoints")
        run, step = Path(*here.parts[: above + 2]), here.parts[above + 2]
        folders.bring(run, lambda name: name.startswith(f"{step}/") and not name.endswith(f"/{OPTIMIZER}"))
    else:
        folders.bring(here)
    return here


def name_all(plan: Plan, catalog: Catalog) -> None:
    """Runs are called as the manifest says; it is planned only where it says something."""
    train = plan.manifest.train
    if train and any(run.name for run in train.runs):
        catalog.name_runs({it.name: it.run.name for it in planned_runs(plan, catalog)})


def take_shorter(
    workspace: Workspace, it: PlannedRun, say: Callable[[str], None] = print
) -> Path | None:  # the folder of the run that it goes on from
    """The same run with fewer images is the beginning of this one, on a CPU bit for bit: where one is there,
    its checkpoints and its log are taken over.
    """
    from train import checkpoint

    out = workspace.run(it.name)
    if checkpoint.newest(out):
        return None
    others = (
        checkpoint.newest(folder)
        for folder in (workspace.root / "checkpoints").glob(f"{'+'.join(it.run.conditions)}-*")
    )
    shorter = [
        done.path.parent
        for done in others
        if done
        and done.images <= it.run.images
        and it.was(
            done.path.parent.name,
            done.meta.get("options", {}).get("images", 0),
            checkpoint.began_with(done.meta),
        )
    ]
    found = [checkpoint.newest_whole(folder) for folder in shorter]
    begun = max((done for done, _ in found if done), key=lambda done: done.images, default=None)
    for sentence in (sentence for _, damaged in found for sentence in damaged.values()):
        say(
            f"{sentence}: {it.name} goes on from"
            f" {f'{begun.path.parent.name}, {begun.path.name}' if begun else 'the first image'} instead."
        )
    if begun is None:
        return None
    source = checkpoint.take_over(begun, out)
    folders.save(out)
    return source
