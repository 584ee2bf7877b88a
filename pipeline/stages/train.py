"""Pairs -> ControlNets: all runs of the manifest are queued at once, and each is resumed where it was cut
off.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import MillError
from pipeline.cluster import Drained
from pipeline.cluster.jobs import Job, JobsFailed, Resources
from pipeline.cluster.queue import longest_first
from pipeline.cluster.sharing import GpuShares
from pipeline.experiment.addresses import PairAddresses
from pipeline.experiment.base import device, load_base
from pipeline.experiment.pairs import PlannedRun, planned_runs
from pipeline.experiment.reading import ShardPairs
from pipeline.experiment.runs import options_of, take_shorter
from pipeline.experiment.under_way import RunsUnderWay, is_log, mark_of
from pipeline.experiment.warm_starts import warm_folder, warm_starts
from pipeline.manifest import Run
from pipeline.plan import Plan
from pipeline.stages.stage import StageContext, StageResult
from pipeline.storage import copies, faults, folders, requests, stores
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, TEMPORARY, Workspace

SAVE_EVERY = 10.0  # seconds between two times that a run's log goes to its bucket


@dataclass(frozen=True)
class TrainRun:
    """One run, for a worker or for each of several that share it."""

    root: Path  # of the workspace
    name: str
    base: str
    run: Run
    pairs: Path  # the file of `PairAddresses.save`: millions of them reach a worker as a path
    held_out: PairAddresses
    warm_start: dict[str, str]  # by condition: a run's folder of checkpoints or a ControlNet's place


def train(context: StageContext) -> StageResult:
    """MillError at the end where a run failed; the others are done all the same."""
    plan, catalog, say = context.plan, context.catalog, context.cluster.say
    runs = planned_runs(plan, catalog)
    complete = dict(catalog.query("SELECT run, checkpoint FROM runs WHERE status = 'complete'"))
    trained = {
        name
        for name in dict.fromkeys(it.name for it in runs)
        if name in complete and _is_whole(plan, complete[name], say)
    }
    catalog.name_runs({it.name: it.run.name for it in runs})
    todo = {it.name: it for it in runs if it.name not in trained}
    sentences = [f"{name} is trained" for name in sorted(trained)]
    if todo:
        shorter = {name: take_shorter(plan.workspace, it, say) for name, it in todo.items()}
        _train_all(context, runs, todo)
        if context.cluster.stopping():
            raise Drained("Stopped in train, as asked: each run kept what it has learned.")
        for name, it in todo.items():
            source = shorter[name]
            sentences.append(_sentence(it) + (f", going on from {source.name}" if source else ""))
    return StageResult("; ".join(sentences), to_do=len(todo), done=len(trained) + len(todo))


def _is_whole(plan: Plan, place: str, say: Callable[[str], None]) -> bool:
    """Whether the ControlNets of a complete run are what was written; what they were learned with does not
    matter any more.
    """
    from train import integrity

    folder = plan.workspace.root / place
    try:
        integrity.whole(folder, resume=False)
    except integrity.Damaged as error:
        if folder.exists():
            say(f"{error}: its run makes it again.")
        return False
    return True


def _sentence(it: PlannedRun) -> str:
    watched = min(it.run.held_out, len(it.held_out))
    why = (
        "; no conditioning gain: the validation split has no pairs" if it.run.held_out and not watched else ""
    )
    return f"{it.name}: {it.run.images} images of {len(it.pairs)} pairs{why}"


def _train_all(context: StageContext, runs: list[PlannedRun], todo: dict[str, PlannedRun]) -> None:
    """Every run goes to the cluster at once and begins when its GPUs are free; one that fails does not stop
    the others.
    """
    plan, cluster, gpus = context.plan, context.cluster, context.cluster.gpus
    jobs = [_job(context, runs, number, todo) for number, it in enumerate(runs) if todo.get(it.name) is it]
    _check_gpus(context, runs)
    under_way = RunsUnderWay(plan, context.catalog, cluster, todo)
    left = {f"train {it.name}": under_way.left(it) for it in todo.values()}
    under_way.begin()
    if gpus:
        cluster.close()  # processes of earlier stages keep their networks, and with them memory of the GPUs
    # Threads follow from the manifest alone: a run that goes on while fewer are left must compute with as
    # many as it began with.
    share = cluster.workers // min(cluster.workers, sum(it.run.gpus for it in runs))
    threads = 1 if gpus else min(share, cluster.cores_of_a_node)
    try:
        cluster.run(
            train_run,
            longest_first(jobs, left),
            under_way.end,
            label="train",
            total=sum(it.run.images for it in todo.values()) - sum(under_way.before.values()),
            each=GpuShares(threads, lambda: cluster.gpus, under_way.measured) if gpus else Resources(threads),
            watch=under_way.images,
            failed=lambda job, reason: under_way.finish(job.args.name, "failed", reason),
        )
    except JobsFailed as error:
        raise MillError(str(error)) from error
    finally:
        under_way.stop()
        for name in todo:
            copies.remove(_pairs_of(plan.workspace, name))


def _check_gpus(context: StageContext, runs: list[PlannedRun]) -> None:
    gpus = context.cluster.gpus
    for number, it in enumerate(runs):
        if gpus and it.run.gpus > gpus:
            raise MillError(
                f"{context.plan.manifest.at('train', 'runs', number, 'gpus')}: {it.run.gpus} are asked for,"
                f" and the cluster has {gpus}: lower it, or join a larger one with --address."
            )


def _job(context: StageContext, runs: list[PlannedRun], number: int, todo: dict[str, PlannedRun]) -> Job:
    workspace, it = context.plan.workspace, runs[number]
    starts = warm_starts(context.plan, context.catalog, runs, number)
    it.pairs.save(_pairs_of(workspace, it.name))
    args = TrainRun(
        root=workspace.root,
        name=it.name,
        base=it.base,
        run=it.run,
        pairs=_pairs_of(workspace, it.name),
        held_out=it.held_out,
        warm_start={name: place for name, (place, _) in starts.items()},
    )
    after = tuple(dict.fromkeys(f"train {source}" for _, source in starts.values() if source in todo))
    scratch = None if workspace.is_remote else str(workspace.root / "checkpoints")
    return Job(f"train {it.name}", args, (), processes=it.run.gpus, scratch=scratch, after=after)


def _pairs_of(workspace: Workspace, name: str) -> Path:
    """Is there while its run is queued or under way."""
    return workspace.root / "checkpoints" / f"{TEMPORARY}{name}-pairs.arrow"


def train_run(
    args: TrainRun, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Path | None:
    """In a worker, or in each of several that share the run: fits it, going on from its newest checkpoint.
    None = it was asked to stop before it began. MillError where the checkpoint of a warm start is damaged.
    """
    from train import checkpoint, encoders, integrity
    from train.distributed import Ranks
    from train.fit import Calls, fit

    workspace, run, ranks = Workspace(args.root), args.run, Ranks.here()
    if any(ranks.all_of(requests.asked_to_stop(workspace))):
        return None
    out, where = workspace.run(args.name), _device_of(ranks.count)
    folders.bring(out)
    if ranks.writes:
        out.mkdir(parents=True, exist_ok=True)
        mark_of(workspace, args.name).touch()
    # by its name: what it goes on from is told by the files' hashes, in fit
    newest = ranks.all_of(checkpoint.newest(out))[0]
    options = options_of(run, where, newest.meta.get("options", {}) if newest else {})
    drawn = ("vae",) if options.grids and args.held_out and ranks.writes else ()
    # the network moves what it computes with
    loaded = load_base(args.base, ("unet", "text_encoder", *drawn), "cpu")
    empty = np.asarray(encoders.encode_text(loaded, [""])[0])
    # a vae stays where it is, and takes the GPU's memory only while it draws
    loaded = dataclasses.replace(loaded, device=where)
    held_out = ShardPairs(workspace, args.held_out, empty)
    try:
        starts = {
            name: warm_folder(_here(place), run.starts[name]) for name, place in args.warm_start.items()
        }
        with saving(out) if ranks.writes else nullcontext():
            last = fit(
                loaded,
                ShardPairs(workspace, PairAddresses.open(args.pairs), empty),
                run.conditions,
                options,
                out,
                held_out=held_out if len(held_out) else None,
                warm_start=starts,
                calls=Calls(should_stop=_should_stop(workspace)),
            )
    except integrity.Damaged as error:  # of a warm start
        raise MillError(f"warm_start: {error}: {DAMAGED_CHECKPOINT}.") from error
    return last.path


def _should_stop(workspace: Workspace) -> Callable[[], bool]:
    """What training asks behind each step."""
    asked = requests.asks_to_stop(workspace)

    def stop() -> bool:
        faults.reached("step ends")
        return asked()

    return stop


def _here(place: str) -> str:
    """A warm start on this machine: a run that another machine trained is brought."""
    if stores.address_of(place) is None:
        return place
    folders.bring(Path(place))
    return str(stores.located(Path(place)))


@contextmanager
def saving(out: Path) -> Iterator[None]:
    """Saves a run's folder in its bucket while it trains: each checkpoint when it is there, the log every few
    seconds. Nothing is done for a plain folder.
    """
    if stores.address_of(out) is None:
        yield
        return
    ended = threading.Event()

    def save() -> None:
        from train import checkpoint

        known: list[Path] = []
        while not ended.wait(SAVE_EVERY):
            with suppress(MillError):  # it is tried again, and at the end a refusal is told
                steps = checkpoint.folders(out)
                folders.save(out, is_log if steps == known else folders.everything)
                known = steps

    watching = threading.Thread(target=save, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
        folders.save(out)


def _device_of(ranks: int) -> str:
    """Ranks on one machine see all its GPUs, and each has its own as the current one."""
    import torch

    where = device()
    return f"{where}:{torch.cuda.current_device()}" if where == "cuda" and ranks > 1 else where
