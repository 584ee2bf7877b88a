"""The whole flow: sources -> images -> maps -> latents -> checkpoints -> samples -> scores -> report."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace

from pipeline import COMPLETE, COMPLETE_WITH_FAILURES, NOT_COMPLETE, MillError, __version__
from pipeline import plan as plans
from pipeline.benchmark.estimates import estimate
from pipeline.benchmark.systems import systems
from pipeline.catalog import Catalog, recovery, snapshots, totals
from pipeline.cluster import Cluster, Drained, cluster
from pipeline.cluster.progress import Rate, stage_progress
from pipeline.cluster.watchdog import give_up
from pipeline.commands import preflight, requirements
from pipeline.experiment.runs import name_all, record_all
from pipeline.manifest import Manifest
from pipeline.plan import MEASURES, Plan
from pipeline.report import summary
from pipeline.stages.annotate import annotate
from pipeline.stages.caption import caption
from pipeline.stages.encode import encode
from pipeline.stages.generate import generate
from pipeline.stages.ingest import ingest
from pipeline.stages.report import report, write_page
from pipeline.stages.score import score
from pipeline.stages.stage import StageContext, StageResult
from pipeline.stages.train import train
from pipeline.storage import copies, events, faults, folders, requests

WORTH_A_REPORT = 15.0  # seconds of work after which the report is renewed when a stage ends
WORTH_A_SNAPSHOT = 5.0  # seconds since the last snapshot of the catalog, likewise
RENEWED = 30.0  # seconds between two reports within a stage
TOLD_EVERY = 2.0  # seconds between two records of how far a stage is
SPENT = 0.05  # of the time, on such reports at most
HURRY = 2.0  # seconds that such a report waits for the catalog; the next one may find it free

# each does what is missing, and tells what there is now
STAGES: dict[str, Callable[[StageContext], StageResult]] = {
    "ingest": ingest,
    "caption": caption,
    "annotate": annotate,
    "encode": encode,
    "train": train,
    "generate": generate,
    "score": score,
    "report": report,
}
AFTER_TRAINING = ("generate", "score", "report")  # the benchmark's systems no longer change
USE_CHECKPOINTS = {"train", *AFTER_TRAINING}
MAKE_PAIRS = ("annotate", "train")  # these tell how many pairs have no caption


@dataclass(frozen=True)
class RunOptions:
    stages: tuple[str, ...] = tuple(STAGES)
    limit: int | None = None  # take only the first N addresses of the source
    workers: int | None = None  # None: every core
    address: str | None = None  # of a running Ray cluster; None: one is started here
    retry_failed: bool = False
    keep_gone: bool = False  # what the sources no longer have stays among the pairs
    # called from a thread where Ray is gone and does not let go of this process
    lost: Callable[[str], object] = give_up


def run(given: Manifest, options: RunOptions, say: Callable[[str], None]) -> int:
    """Does what the manifest asks for and the workspace lacks; returns the exit status.

    MillError before any work where the manifest can't be carried out, something that the stages need is
    missing here, or another run is working in the workspace; later where a stage can't go on or a job failed.
    """
    plan = plans.make(given, here=False)
    doubts = preflight.check(plan, options.stages, options.limit)
    if absent := requirements.missing(plan, options.stages):  # all of it, before any work
        raise MillError("\n".join(line if line.endswith(".") else f"{line}." for line in absent))
    workspace, catalog = plan.workspace, Catalog(plan.workspace, say=say)
    workspace.create()
    with (
        closing(catalog),
        workspace.lock(say) as is_held,
        snapshots.kept(catalog, is_held) as save_snapshot,
    ):
        began = copies.has_copy(workspace.manifest)
        workspace.sweep()
        if not workspace.catalog.exists() and workspace.all_shards():
            say("The catalog is missing; making it again from the shards.")
            rebuild(plan, say)
        catalog.create()
        activate(plan, catalog)
        plans.save(plan)
        say(f"{plan.manifest.name}: {'going on in' if began else 'starting in'} {workspace.address}")
        for line in (*plans.lines(plan), *doubts):
            say(line)
        if plan.manifest.train and USE_CHECKPOINTS & set(options.stages):
            folders.bring_each(workspace.root / "checkpoints")
        with cluster(workers=options.workers, address=options.address) as workers, ExitStack() as at_last:
            workers.say, workers.lost = say, options.lost
            at_last.enter_context(telling(plan, workers, options))
            context = StageContext(
                plan, catalog, workers, options.limit, options.retry_failed, options.keep_gone
            )
            try:
                do_stages(context, options.stages, say, save_snapshot)
            except Drained as stopped:
                workers.event("drained")
                say(f"{stopped} The same command goes on from there.")
                return NOT_COMPLETE
        if not workspace.is_remote:  # a bucket's snapshot may be under way
            workspace.sweep()  # what a worker of a killed driver still wrote while this run began
        if "report" in options.stages and plan.manifest.evaluate:
            for line in summary.lines(plan, catalog, context.systems, workspace.report / "index.html"):
                say(line)
        for line in preflight.without_caption(plan, catalog) if "train" in options.stages else ():
            say(line)
    return exit_status(plan, catalog, options)


@contextmanager
def telling(plan: Plan, workers: Cluster, options: RunOptions) -> Iterator[None]:
    """While the block lasts the run writes its events and its progress into the workspace, sees requests to
    stop there, and asks each node of another cluster whether it sees the same files.
    """
    workspace, root = plan.workspace, plan.workspace.root
    told = 0.0

    def follow(rate: Rate, rows: Mapping[str, int]) -> None:
        nonlocal told
        if time.monotonic() - told >= TOLD_EVERY:
            told = time.monotonic()
            events.write_progress(root, stage_progress(rate, rows))

    requests.forget(workspace)  # of a run that was killed before it saw it
    events.bring(root)
    workers.event = functools.partial(events.say, root, run=workers.token)
    workers.stopping = requests.asks_to_stop(workspace)
    workers.follow = follow
    start = time.monotonic()
    workers.event("run begins", name=plan.manifest.name, stages=options.stages, version=__version__)
    with workspace.probe() if options.address else nullcontext() as probe:
        if probe is not None:
            workers.needs = requirements.of_nodes(plan, probe, options.stages)
        try:
            yield
        finally:
            error = sys.exception()
            why = f"{type(error).__name__}: {error}" if error else ""
            workers.event("run ends", seconds=round(time.monotonic() - start, 3), error=why)
            events.clear_progress(root)
            events.save(root)
            requests.forget(workspace)


def do_stages(
    context: StageContext,
    stages: tuple[str, ...],
    say: Callable[[str], None],
    # of the catalog, where the workspace lies in a bucket: not before so many seconds since the last
    save_snapshot: Callable[[float | None], None] = lambda after: None,
) -> None:
    """One after the other, with a line for each; report and snapshot are renewed meanwhile."""
    plan, catalog = context.plan, context.catalog
    page = Filling(context, say)
    first_user = next((stage for stage in stages if stage in preflight.USERS), None)

    def meanwhile() -> None:
        if "report" in stages:
            page.renew()
        save_snapshot(None)

    context.cluster.meanwhile = meanwhile
    for stage, following in zip(stages, (*stages[1:], None), strict=True):
        if context.cluster.stopping():
            raise Drained(f"Stopped before {stage}, as asked: what was done is committed.")
        start = time.monotonic()
        context.cluster.event("stage begins", stage=stage)
        faults.reached("stage begins")
        if stage == first_user:
            preflight.check_pairs(plan, catalog, stages)
        page.settled = stage in AFTER_TRAINING
        outcome = STAGES[stage](context)
        seconds = round(time.monotonic() - start, 3)
        context.cluster.event("stage ends", stage=stage, seconds=seconds, **vars(outcome))
        sentences = [outcome.sentence]
        if stage in MAKE_PAIRS:
            sentences += preflight.without_caption(plan, catalog)
        say(f"{stage:<9} {'; '.join(filter(None, sentences))}  ({time.monotonic() - start:.1f} s)")
        while context.notes:
            say(f"          {context.notes.pop(0)}")
        if "report" in stages and following not in (None, "report"):
            page.renew(WORTH_A_REPORT)
        save_snapshot(WORTH_A_SNAPSHOT)


class Filling:
    """The report while a job is under way, written again now and then in the driver, which mostly waits.

    Whatever it can't do never stops the work: it is said, and the stage `report` at the end tells it again.
    """

    def __init__(self, context: StageContext, say: Callable[[str], None]) -> None:
        self.context, self.say, self.said = context, say, ""
        self.settled = False  # whether everything is trained: the systems need not be derived again
        self.written, self.took = time.monotonic(), 0.0

    def renew(self, after: float = RENEWED) -> None:
        """Not before so many seconds, and later where writing takes long."""
        if time.monotonic() - self.written < max(after, self.took / SPENT):
            return
        start = time.monotonic()
        try:
            with self.context.catalog.at_most(HURRY):
                self._write(self.context if self.settled else replace(self.context))
        except Exception as error:
            sentence = f"report    not renewed: {type(error).__name__}: {error}"
            if sentence != self.said:
                self.say(sentence)
                self.said = sentence
        self.written = time.monotonic()
        self.took = self.written - start

    def _write(self, context: StageContext) -> None:
        try:
            if context.plan.manifest.evaluate:
                estimate(context.plan, context.catalog, context.systems)
            report(context)
        except MillError:  # there is not enough to compare yet; the page shows what there is
            write_page(context)


def activate(plan: Plan, catalog: Catalog) -> None:
    """What of the catalog follows from the manifest: image key, detectors in force, the view `pairs`."""
    catalog.activate(plan.settings(), [it.record() for it in plan.conditions.values()])
    catalog.define_pairs(plan.selections(), MEASURES)


def rebuild(plan: Plan, say: Callable[[str], None]) -> bool:
    """Makes the catalog again from the shards; False where some are broken."""

    def finish(fresh: Catalog) -> None:
        activate(plan, fresh)
        record_all(plan, fresh)
        try:
            name_all(plan, fresh)
            estimate(plan, fresh, systems(plan, fresh))
        except MillError as error:  # nothing to train on yet, or the base model is not on this machine
            say(f"The scores are left to the next run: {error}")

    count, broken = recovery.rebuild(plan.workspace, finish)
    say(f"{count} shards are in the catalog.")
    for line in broken:
        say(f"broken, left out: {line}")
    return not broken


def exit_status(plan: Plan, catalog: Catalog, options: RunOptions) -> int:
    images, maps = totals.images(catalog), totals.maps(catalog)
    missing = any(one.rows != images.get("ok", 0) for one in maps) or len(maps) != len(plan.conditions)
    if "annotate" in options.stages and missing:
        return NOT_COMPLETE
    failed = images.get("failed", 0) + sum(one.of_status("failed") for one in maps)
    (without,) = catalog.row(WITHOUT_CAPTION)
    return COMPLETE_WITH_FAILURES if failed or without else COMPLETE


WITHOUT_CAPTION = """SELECT count(*) FROM caption_rows JOIN shard_rows USING (shard_number)
                     WHERE status = 'failed'
                       AND key = (SELECT value FROM settings WHERE name = 'caption_key')"""
