"""Pairs -> ControlNets: all runs of the manifest are queued at once, and each is resumed where it was cut
off.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import MillError
from pipeline.catalog import Catalog, CatalogHeld
from pipeline.cluster import Cluster, Job, JobsFailed
from pipeline.experiment.base import RANDOM_BASE, device, load_base
from pipeline.experiment.logs import notes, read_log
from pipeline.experiment.pairs import DRAWN, PlannedRun, ShardPairs, planned_runs
from pipeline.experiment.warm_starts import warm_folder, warm_starts
from pipeline.manifest import Run
from pipeline.plan import Plan
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, TEMPORARY, Workspace

READERS = 4  # threads that read pairs ahead for a GPU
EVERY = 10.0  # seconds between two notes in the catalog of how far a run is
PARTING = 5.0  # seconds that a run that was stopped waits for the catalog, to say so there


def train(plan: Plan, catalog: Catalog, cluster: Cluster) -> str:
    runs = planned_runs(plan, catalog)
    done = dict(catalog.query("SELECT run, checkpoint FROM runs WHERE status = 'complete'"))
    trained = {
        name
        for name in dict.fromkeys(it.name for it in runs)
        if name in done and _is_whole(plan, done[name], cluster.say)
    }
    todo = {it.name: it for it in runs if it.name not in trained}
    told = [f"{name} is trained" for name in sorted(trained)]
    if todo:
        begun = {name: take_shorter(plan.workspace, it, cluster.say) for name, it in todo.items()}
        _train_all(plan, catalog, cluster, runs, todo)
        told += [
            _told(it) + (f", going on from {source.name}" if (source := begun[it.name]) else "")
            for it in todo.values()
        ]
    return "; ".join(told)


def _is_whole(plan: Plan, place: str, say: Callable[[str], None]) -> bool:
    """Whether the ControlNets of a complete run are what was written; what they were learned with does not
    matter any more.
    """
    from train import checkpoint

    folder = plan.workspace.root / place
    try:
        checkpoint.whole(folder, resume=False)
    except checkpoint.Damaged as error:
        if folder.exists():
            say(f"{error}: its run makes it again.")
        return False
    return True


def _told(it: PlannedRun) -> str:
    watched = min(it.run.held_out, len(it.held_out))
    why = "; no loss gap: the validation split has no pairs" if it.run.held_out and not watched else ""
    return f"{it.name}: {it.run.images} images of {len(it.pairs)} pairs{why}"


def _train_all(
    plan: Plan, catalog: Catalog, cluster: Cluster, runs: list[PlannedRun], todo: dict[str, PlannedRun]
) -> None:
    """Every run goes to the cluster at once and begins when its GPUs are free; one that fails does not stop
    the others.
    """
    gpus, where = cluster.gpus, cluster.device
    jobs = [
        _job(plan, catalog, runs, number, todo) for number, it in enumerate(runs) if todo.get(it.name) is it
    ]
    for number, it in enumerate(runs):
        if gpus and it.run.gpus > gpus:
            raise MillError(
                f"{plan.manifest.at('train', 'runs', number, 'gpus')}: {it.run.gpus} are asked for, and the"
                f" cluster has {gpus}: lower it, or join a larger one with --address."
            )
    states = dict.fromkeys(todo, "queued")
    before = {name: _images_kept(plan, name) for name in todo}
    seen = dict(before)
    spoke = dict.fromkeys(todo, time.monotonic())
    heard = {(name, sentence) for name in todo for sentence in notes(read_log(plan.workspace.run(name)))}

    def tell_notes(name: str, log: list[dict[str, Any]]) -> None:
        for sentence in notes(log):
            if (name, sentence) not in heard:
                heard.add((name, sentence))
                cluster.say(f"{name}: {sentence}.")

    def note(name: str, state: str, reason: str = "") -> None:
        states[name] = state
        # another process may hold the catalog: such a note is left out, and the next one says it
        under_way = state in ("queued", "running")
        with suppress(CatalogHeld), catalog.at_most(0.0) if under_way else nullcontext():
            record(plan, catalog, name, state, reason, planned=todo[name], where=where)
            spoke[name] = time.monotonic()

    def watch() -> int:
        for name, state in list(states.items()):
            if state == "queued" and _mark(plan, name).exists():
                note(name, "running")
            if state == "running":
                log = read_log(plan.workspace.run(name))
                tell_notes(name, log)
                images = int(log[-1]["images"]) if log else 0
                if images != seen[name] and time.monotonic() - spoke[name] > EVERY:
                    note(name, "running")
                seen[name] = images
        return sum(seen.values()) - sum(before.values())

    def finish(name: str, state: str, reason: str = "") -> None:
        _mark(plan, name).unlink(missing_ok=True)
        if state == "complete":
            seen[name] = todo[name].run.images
        tell_notes(name, read_log(plan.workspace.run(name)))
        note(name, state, reason)

    (plan.workspace.root / "checkpoints").mkdir(exist_ok=True)
    for name in todo:
        _mark(plan, name).unlink(missing_ok=True)
        note(name, "queued")
    if gpus:
        cluster.close()  # processes of earlier stages keep their networks, and with them memory of the GPUs
    # Threads follow from the manifest alone: a run that goes on while fewer are left must compute with as
    # many as it began with.
    threads = 1 if gpus else cluster.workers // min(cluster.workers, sum(it.run.gpus for it in runs))
    total = sum(it.run.images for it in todo.values()) - sum(before.values())
    try:
        cluster.run(
            train_run,
            jobs,
            lambda job, _: finish(job.args["name"], "complete"),
            label="train",
            total=total,
            cpus=threads,
            gpus=min(1, gpus),
            watch=watch,
            failed=lambda job, reason: finish(job.args["name"], "failed", reason),
        )
    except JobsFailed as error:
        raise MillError(str(error)) from error
    finally:
        for name, state in states.items():
            if state in ("queued", "running"):  # stopped
                with suppress(Exception), catalog.at_most(PARTING):  # what stopped it matters more
                    finish(name, "incomplete")


def take_shorter(
    workspace: Workspace, it: PlannedRun, say: Callable[[str], None] = print
) -> Path | None:  # the folder of the run that it goes on from
    """The same run with fewer images is the beginning of this one, bit for bit: where one is there, its
    checkpoints and its log are taken over.
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
    return checkpoint.take_over(begun, out) if begun else None


def _job(
    plan: Plan, catalog: Catalog, runs: list[PlannedRun], number: int, todo: dict[str, PlannedRun]
) -> Job:
    it = runs[number]
    starts = warm_starts(plan, catalog, runs, number)
    args = {
        "root": str(plan.workspace.root),
        "name": it.name,
        "base": it.base,
        "run": it.run.model_dump(),
        "pairs": it.pairs,
        "held_out": it.held_out,
        "warm_start": {name: place for name, (place, _) in starts.items()},
    }
    after = tuple(dict.fromkeys(f"train {source}" for _, source in starts.values() if source in todo))
    return Job(
        f"train {it.name}",
        args,
        (),
        processes=it.run.gpus,
        scratch=str(plan.workspace.root / "checkpoints"),
        after=after,
    )


def _mark(plan: Plan, name: str) -> Path:
    """Is there from the moment that a worker begins with the run, so that the driver can tell it from one
    that waits for room.
    """
    return _mark_of(plan.workspace, name)


def _mark_of(workspace: Workspace, name: str) -> Path:
    return workspace.root / "checkpoints" / f"{TEMPORARY}{name}-began"


def _images_kept(plan: Plan, name: str) -> int:
    from train import checkpoint

    newest = checkpoint.newest(plan.workspace.run(name))
    return newest.images if newest else 0


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
    for folder in sorted((plan.workspace.root / "checkpoints").glob("*/")):
        # one that failed at its start left nothing
        if not folder.name.startswith(TEMPORARY) and any(folder.iterdir()):
            record(plan, catalog, folder.name)


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
        held_out=run.held_out,
        watch_every=run.watch_every,
        keep_every=run.keep_every,
        grids=run.grids if run.grids is not None else DRAWN if gpu else 0,
    )


def train_run(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker, or in each of several that share the run: fits it, going on from its newest checkpoint."""
    from train import base as bases
    from train import checkpoint
    from train.fit import fit
    from train.ranks import Ranks

    workspace, run, ranks = Workspace(Path(args["root"])), Run(**args["run"]), Ranks.here()
    out, where = workspace.run(args["name"]), _device_of(ranks.count)
    if ranks.writes:
        out.mkdir(parents=True, exist_ok=True)
        _mark_of(workspace, args["name"]).touch()
    # by its name: what it goes on from is told by the files' hashes, in fit
    newest = ranks.all_of(checkpoint.newest(out))[0]
    options = options_of(run, where, newest.meta.get("options", {}) if newest else {})
    drawn = ("vae",) if options.grids and args["held_out"] and ranks.writes else ()
    # the network moves what it computes with
    loaded = load_base(args["base"], ("unet", "text_encoder", *drawn), "cpu")
    empty = np.asarray(bases.encode_text(loaded, [""])[0])
    # a vae stays where it is, and takes the GPU's memory only while it draws
    loaded = dataclasses.replace(loaded, device=where)
    pairs, held_out = (ShardPairs(workspace, args[name], empty) for name in ("pairs", "held_out"))
    try:
        made = fit(
            loaded,
            pairs,
            run.conditions,
            options,
            out,
            held_out=held_out if len(held_out) else None,
            device=where,
            ranks=ranks,
            warm_start={
                name: warm_folder(place, run.starts[name]) for name, place in args["warm_start"].items()
            },
        )
    except checkpoint.Damaged as error:  # of a warm start
        raise MillError(f"warm_start: {error}: {DAMAGED_CHECKPOINT}.") from error
    return str(made.path)


def _device_of(ranks: int) -> str:
    """Ranks on one machine see all its GPUs, and each has its own as the current one."""
    import torch

    where = device()
    return f"{where}:{torch.cuda.current_device()}" if where == "cuda" and ranks > 1 else where
