"""Follows trainings by what their workers write, and tells the catalog how far each is."""

import json
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from pipeline import MillError
from pipeline.catalog import Catalog, CatalogHeld
from pipeline.cluster import Cluster
from pipeline.cluster.jobs import Ended, Job
from pipeline.cluster.sharing import Measured
from pipeline.experiment.logs import LogRow, measured_on_gpu, notes, read_log
from pipeline.experiment.pairs import PlannedRun
from pipeline.experiment.runs import record
from pipeline.plan import Plan
from pipeline.storage import folders, stores
from pipeline.storage.workspace import TEMPORARY, Workspace

EVERY = 10.0  # seconds between two notes in the catalog of how far a run is
LISTINGS = 6  # of a bucket, until one has the checkpoint that a run ended with
BETWEEN = 2.0  # seconds between two of them
PARTING = 5.0  # seconds that a run that was stopped waits for the catalog, to say so there


class RunsUnderWay:
    """Follows runs by what their workers write, and tells the catalog how far each is."""

    def __init__(self, plan: Plan, catalog: Catalog, cluster: Cluster, todo: dict[str, PlannedRun]) -> None:
        self.plan, self.catalog, self.cluster, self.todo = plan, catalog, cluster, todo
        self.states = dict.fromkeys(todo, "queued")
        self.before = {name: self._images_kept(name) for name in todo}
        self.seen = dict(self.before)
        self._brought = time.monotonic()  # when logs of other machines were
        self._recorded = dict.fromkeys(todo, time.monotonic())  # when the catalog was told last
        self._measured: dict[str, Measured] = {}  # by kind of run
        self._said = {(name, sentence) for name in todo for sentence in notes(self._log(name))}

    def begin(self) -> None:
        (self.plan.workspace.root / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in self.todo:
            self._mark(name).unlink(missing_ok=True)
            self._record(name, "queued")

    def images(self) -> int:
        """Images that were seen since this began; called every second."""
        elsewhere = self._bring_logs()
        for name, state in list(self.states.items()):
            if state == "queued" and (self._mark(name).exists() or name in elsewhere):
                self._record(name, "running")
            if state == "running":
                self._look(name)
        return sum(self.seen.values()) - sum(self.before.values())

    def end(self, ended: Ended[Path | None]) -> None:
        """Their jobs are done: complete, unless they were asked to stop on the way."""
        for job, last in ended:
            name = job.args.name
            self._bring(name, last)
            whole = self._images_kept(name) >= self.todo[name].run.images
            self.finish(name, "complete" if whole else "incomplete")

    def _bring(self, name: str, last: Path | None) -> None:
        """The run's folder with the checkpoint that it ended with. MillError where no listing of the bucket
        has it: they may be old.
        """
        from train import checkpoint

        folder, ended_with = self.plan.workspace.run(name), last.name if last else None
        for listing in range(LISTINGS):
            time.sleep(BETWEEN if listing else 0.0)
            folders.bring(folder)
            newest = checkpoint.newest(folder)
            if ended_with in (None, newest.path.name if newest else None):
                return
        raise MillError(
            f"The training {name} has ended, but its last checkpoint ({ended_with}) can't be seen in"
            f" {stores.shown(folder)} yet: run the same command again; everything committed so far is kept."
        )

    def _bring_logs(self) -> set[str]:
        """Of runs whose workers are on other machines, in a bucket; gives those that began."""
        workspace, began = self.plan.workspace, set()
        if workspace.is_remote and time.monotonic() - self._brought > EVERY:
            self._brought = time.monotonic()
            for name, state in self.states.items():
                if state in ("queued", "running") and not self._mark(name).exists():
                    with suppress(MillError):  # the next time may tell
                        folders.bring(workspace.run(name), is_log)
                    log = self._log(name)
                    began |= {name} if log and int(log[-1]["images"]) > self.before[name] else set()
        return began

    def finish(self, name: str, state: str, reason: str = "") -> None:
        self._mark(name).unlink(missing_ok=True)
        if state == "complete":
            self.seen[name] = self.todo[name].run.images
        self._say_notes(name, self._log(name))
        self._record(name, state, reason)

    def stop(self) -> None:
        """Those that did not end are incomplete; what stopped them matters more than that it is recorded."""
        for name, state in self.states.items():
            if state in ("queued", "running"):
                with suppress(Exception), self.catalog.at_most(PARTING):
                    self.finish(name, "incomplete")

    def left(self, it: PlannedRun) -> float:
        """What a run has before it, in images of one condition on one GPU."""
        return (it.run.images - self.before[it.name]) * len(it.run.conditions) / it.run.gpus

    def measured(self, job: Job) -> Measured | None:
        """What a run of this kind took of a GPU that it had for itself."""
        return self._measured.get(_kind(self.todo[job.args.name]))

    def _look(self, name: str) -> None:
        log = self._log(name)
        kind = _kind(self.todo[name])
        if kind not in self._measured and (row := measured_on_gpu(log)):
            self._measured[kind] = Measured(row["peak_memory"], row["gpu_memory"], row["mfu"])
        self._say_notes(name, log)
        images = int(log[-1]["images"]) if log else 0
        if images != self.seen[name] and time.monotonic() - self._recorded[name] > EVERY:
            self._record(name, "running")
        self.seen[name] = images

    def _say_notes(self, name: str, log: list[LogRow]) -> None:
        for sentence in notes(log):
            if (name, sentence) not in self._said:
                self._said.add((name, sentence))
                self.cluster.say(f"{name}: {sentence}.")

    def _record(self, name: str, state: str, reason: str = "") -> None:
        self.states[name] = state
        # another process may hold the catalog: such a note is left out, and the next one says it
        under_way = state in ("queued", "running")
        with suppress(CatalogHeld), self.catalog.at_most(0.0) if under_way else nullcontext():
            planned, where = self.todo[name], self.cluster.device
            record(self.plan, self.catalog, name, state, reason, planned=planned, where=where)
            self._recorded[name] = time.monotonic()

    def _log(self, name: str) -> list[LogRow]:
        return read_log(self.plan.workspace.run(name))

    def _mark(self, name: str) -> Path:
        return mark_of(self.plan.workspace, name)

    def _images_kept(self, name: str) -> int:
        from train import checkpoint

        newest = checkpoint.newest(self.plan.workspace.run(name))
        return newest.images if newest else 0


def _kind(it: PlannedRun) -> str:
    """Runs of one kind take as much of a GPU: their pairs, seeds, rates and starts may differ."""
    differ = {"name", "conditions", "images", "seed", "lr", "warm_start", "prompt_drop"}
    return json.dumps([it.base, len(it.run.conditions), it.run.model_dump(exclude=differ)], sort_keys=True)


def mark_of(workspace: Workspace, name: str) -> Path:
    """Is there from the moment that a worker begins with the run, so that the driver can tell it from one
    that waits for room.
    """
    return workspace.root / "checkpoints" / f"{TEMPORARY}{name}-began"


def is_log(name: str) -> bool:
    return "/" not in name and name.endswith(".jsonl")
