"""The whole flow on one page: sources -> images -> maps -> latents -> checkpoints -> samples -> scores ->
report.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline import COMPLETE, COMPLETE_WITH_FAILURES, NOT_COMPLETE, MillError
from pipeline import plan as plans
from pipeline.benchmark.estimates import estimate
from pipeline.catalog import Catalog, recovery
from pipeline.cluster import Cluster, cluster
from pipeline.commands import preflight
from pipeline.manifest import Manifest
from pipeline.plan import MEASURES, Plan
from pipeline.report import summary
from pipeline.report.text import tally

# seconds of work after which the report is brought up to date when a stage ends, so it fills as the job goes
# on
WORTH_A_REPORT = 15.0
RENEWED = 30.0  # seconds between two reports within a stage
SPENT = 0.05  # of the time, on such reports at most
HURRY = 2.0  # seconds that such a report waits for the catalog; the next one may find it free
STAGES = ("ingest", "caption", "annotate", "encode", "train", "generate", "score", "report")


@dataclass(frozen=True)
class Options:
    stages: tuple[str, ...] = STAGES
    limit: int | None = None  # take only the first N addresses of the source
    workers: int | None = None  # None: every core
    address: str | None = None  # of a running Ray cluster; None: one is started here
    retry_failed: bool = False


def run(given: Manifest, options: Options, say: Callable[[str], None]) -> int:
    """Does what the manifest asks for and the workspace lacks; returns the exit status."""
    plan = plans.make(given, here=False)
    doubts = preflight.check(plan, options.stages, options.limit)
    if absent := preflight.missing(plan, options.stages):  # all of it, before any work
        raise MillError("\n".join(line if line.endswith(".") else f"{line}." for line in absent))
    workspace, catalog = plan.workspace, Catalog(plan.workspace, say=say)
    workspace.create()
    with workspace.lock():
        began = workspace.manifest.is_file()
        workspace.sweep()
        if not workspace.catalog.exists() and workspace.all_shards():
            say("The catalog is missing; making it again from the shards.")
            rebuild(plan, say)
        catalog.create()
        settle(plan, catalog)
        plans.save(plan)
        say(f"{plan.manifest.name}: {'going on in' if began else 'starting in'} {workspace.root}")
        for line in (*plans.lines(plan), *doubts):
            say(line)
        first = next((stage for stage in options.stages if stage in preflight.USERS), None)
        with cluster(workers=options.workers, address=options.address) as workers:
            page = Filling(plan, catalog, say)
            workers.say = say
            workers.meanwhile = page.renew if "report" in options.stages else lambda: None
            for stage, following in zip(options.stages, (*options.stages[1:], None), strict=True):
                start = time.monotonic()
                if stage == first:
                    preflight.check_pairs(plan, catalog, options.stages)
                told = STAGE[stage](plan, catalog, workers, options)
                say(f"{stage:<9} {told}  ({time.monotonic() - start:.1f} s)")
                if "report" in options.stages and following not in (None, "report"):
                    page.renew(WORTH_A_REPORT)
        if "report" in options.stages and plan.manifest.evaluate:
            for line in summary.lines(plan, catalog, plan.workspace.report / "index.html"):
                say(line)
        for line in preflight.without_caption(plan, catalog) if "train" in options.stages else ():
            say(line)
    return exit_status(plan, catalog, options)


class Filling:
    """The report while a job is under way: written again now and then, in the driver, which waits for workers
    most of the time.

    Whatever it can't do never stops the work: it is said, and the stage `report` at the end tells it again.
    """

    def __init__(self, plan: Plan, catalog: Catalog, say: Callable[[str], None]) -> None:
        self.plan, self.catalog, self.say, self.said = plan, catalog, say, ""
        self.written, self.took = time.monotonic(), 0.0

    def renew(self, after: float = RENEWED) -> None:
        """Not before so many seconds, and later where writing takes long."""
        if time.monotonic() - self.written < max(after, self.took / SPENT):
            return
        start = time.monotonic()
        try:
            with self.catalog.at_most(HURRY):
                self._write()
        except Exception as error:
            if (told := f"report    not renewed: {type(error).__name__}: {error}") != self.said:
                self.say(told)
                self.said = told
        self.written = time.monotonic()
        self.took = self.written - start

    def _write(self) -> None:
        try:
            if self.plan.manifest.evaluate:
                estimate(self.plan, self.catalog)
            write_report(self.plan, self.catalog)
        except MillError:  # there is not enough to compare yet; the page shows what there is
            from pipeline.stages.report import report

            report(self.plan, self.catalog)


def settle(plan: Plan, catalog: Catalog) -> None:
    """What of the catalog follows from the manifest: the image key and detectors in force, and the view
    `pairs`.
    """
    catalog.settle(plan.settings(), [it.record() for it in plan.conditions.values()])
    catalog.define_pairs(plan.selections(), MEASURES)


def rebuild(plan: Plan, say: Callable[[str], None]) -> bool:
    """Makes the catalog again from the shards; False where some are broken."""

    def finish(fresh: Catalog) -> None:
        from pipeline.stages import train

        settle(plan, fresh)
        train.record_all(plan, fresh)
        try:
            estimate(plan, fresh)
        except MillError as error:  # nothing to train on yet, or the base model is not on this machine
            say(f"The scores are left to the next run: {error}")

    count, broken = recovery.rebuild(plan.workspace, finish)
    say(f"{count} shards are in the catalog.")
    for line in broken:
        say(f"broken, left out: {line}")
    return not broken


# -- the stages: each does what is missing and tells what there is now ---------------------------------------


def _ingest(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    from pipeline.stages.ingest import ingest, remove_stranded

    new = ingest(plan, catalog, workers, limit=options.limit, retry_failed=options.retry_failed)
    remove_stranded(catalog, plan.image_key)
    counts = dict(catalog.query("SELECT status, count(*) FROM images GROUP BY status"))
    splits = dict(catalog.query("SELECT split, count(*) FROM images WHERE status = 'ok' GROUP BY split"))
    (addresses,) = catalog.row("SELECT count(*) FROM sources")
    needed = {plan.manifest.evaluate.benchmark.split} if plan.manifest.evaluate else set()
    needed |= {"train"} if plan.manifest.train else set()
    for name in sorted(needed - splits.keys()):
        raise MillError(
            f"{plan.manifest.at('split')}: no image fell into {name!r} ({tally(splits)}): add images, or"
            f" raise split.{name} or change split.salt in a new workspace."
        )
    doubles = addresses - sum(counts.values())
    return f"{new} new addresses; images: {tally(counts)}; {doubles} exact duplicates; {tally(splits)}"


def _caption(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    from pipeline.stages.caption import caption

    return caption(plan, catalog, workers, retry_failed=options.retry_failed)


def _annotate(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    from pipeline.stages.annotate import annotate

    made = annotate(plan, catalog, workers, retry_failed=options.retry_failed)
    counts = dict(catalog.query("SELECT status, count(*) FROM annotations GROUP BY status"))
    bare = [name for (name,) in catalog.query(WITHOUT_PAIRS)]
    empty = f"; `where` and `select` leave no pair of {', '.join(bare)}" if bare else ""
    bare_captions = "".join(f"; {line}" for line in preflight.without_caption(plan, catalog))
    did = f"{made} images to do" if made else "nothing to do"
    return f"{did}; maps: {tally(counts)} in {len(plan.conditions)} conditions{empty}{bare_captions}"


WITHOUT_PAIRS = """SELECT DISTINCT condition FROM annotations WHERE status = 'ok' AND condition NOT IN
                   (SELECT condition FROM pairs)
                   ORDER BY condition"""


def _encode(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    from pipeline.stages.encode import encode

    return encode(plan, catalog, workers)


def _train(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    from pipeline.stages.train import train

    return "; ".join(filter(None, (train(plan, catalog, workers), *preflight.without_caption(plan, catalog))))


def _generate(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    from pipeline.stages.generate import generate

    return generate(plan, catalog, workers)


def _score(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    from pipeline.stages.score import score

    return score(plan, catalog, workers)


def _report(plan: Plan, catalog: Catalog, workers: Cluster, options: Options) -> str:
    return write_report(plan, catalog)


def write_report(plan: Plan, catalog: Catalog) -> str:
    from pipeline.report import leaderboard_scores
    from pipeline.stages.report import report

    board = (
        leaderboard_scores.write(plan, catalog, plan.workspace.report / "leaderboard")
        if plan.manifest.evaluate
        else None
    )
    return " and ".join(map(str, filter(None, (report(plan, catalog), board))))


STAGE: dict[str, Callable[[Plan, Catalog, Cluster, Options], str]] = {
    "ingest": _ingest, "caption": _caption, "annotate": _annotate, "encode": _encode, "train": _train,
    "generate": _generate,
    "score": _score, "report": _report,
}  # fmt: skip


def exit_status(plan: Plan, catalog: Catalog, options: Options) -> int:
    readable, failed = catalog.row(
        "SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'failed') FROM images"
    )
    rows, failed_rows = catalog.row("SELECT count(*), count(*) FILTER (status = 'failed') FROM annotations")
    if "annotate" in options.stages and rows != readable * len(plan.conditions):
        return NOT_COMPLETE
    (bare,) = catalog.row(WITHOUT_CAPTION)
    return COMPLETE_WITH_FAILURES if failed or failed_rows or bare else COMPLETE


WITHOUT_CAPTION = """SELECT count(*) FROM caption_rows JOIN shards USING (shard)
                     WHERE status = 'failed' AND key = (SELECT value FROM settings WHERE name =
                     'caption_key')"""
