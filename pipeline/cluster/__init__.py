"""Plain functions on Ray: bounded in flight, retried, with the row found that kills its worker or hangs.

A job's function has the signature `function(args, rows, poison_rows, dry_run)`:
    args: one frozen dataclass, all that the function needs to know;
    rows: which rows of its part to do;
    poison_rows: {row: reason} of rows known to kill a worker, to be recorded as failed;
    dry_run: True means do the work and write nothing (used only to find poison rows).
It catches what a single bad image raises; what it does raise is a failure of the whole job, named at the end.
It tells by `position.begin` which rows it is at, so that only those are looked at when its worker dies.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

from pipeline import MillError
from pipeline.cluster import nodes
from pipeline.cluster.attempts import Attempt
from pipeline.cluster.committed import Committed
from pipeline.cluster.jobs import ONE_CORE, Ended, Gathered, Job, Resources
from pipeline.cluster.metrics import Metrics
from pipeline.cluster.nodes import Needs
from pipeline.cluster.position import Trial
from pipeline.cluster.progress import PATIENCE, Counts, Progress, Rate, summed
from pipeline.cluster.queue import Queue
from pipeline.cluster.session import Lost, Session, going_on
from pipeline.cluster.sharing import GpuShares
from pipeline.cluster.under_way import UnderWay
from pipeline.cluster.watchdog import give_up
from pipeline.cluster.worker import call, call_ranks

GATHERED = 1.0  # seconds that a job which is done waits for others, so that many are committed at once
SMALL_GPU = 16.0  # GB, where its memory is not known
LOOKED = 2.0  # seconds between two looks at which nodes there are


class Drained(MillError):
    """A run that was asked to stop: what was under way is committed, the rest is left."""


class Cluster:
    """Started when the first job needs it, so a run with nothing to do never waits for Ray."""

    def __init__(self, *, workers: int | None = None, address: str | None = None) -> None:
        self.address = address
        self.say: Callable[[str], None] = print  # for what a person should know before a stage has ended
        # called in the driver about every second while jobs are under way
        self.meanwhile: Callable[[], None] = lambda: None
        # the same, with how far the stage is, and its committed rows by condition or kind
        self.follow: Callable[[Rate, Mapping[str, int]], object] = lambda rate, rows: None
        self.event: Callable[..., object] = lambda kind, **facts: None  # see pipeline/storage/events.py
        self.stopping: Callable[[], bool] = lambda: False  # whether the run was asked to stop
        # called from a thread where a call to a Ray that is gone does not come back; ends the process
        self.lost: Callable[[str], object] = give_up
        self.needs: Needs | None = None  # what each node of `address` must see; None = nothing is asked
        self.token = secrets.token_hex(6)
        self._metrics: Metrics | None = None
        self._given = workers
        self._session: Session | None = None
        self._running = False  # whether jobs are under way
        self._counts: Any = None  # the actor, once a stage takes long
        self._calls: dict[int, Any] = {}  # by how many jobs a process of it does; 0 = any number
        self._nodes: dict[str, str] | None = None  # id -> host; None = they were not asked yet
        self._unfit: set[str] = set()  # ids of nodes that get no jobs
        self._looked = 0.0

    @cached_property
    def workers(self) -> int:
        """As many as were asked for, else every core, of all machines."""
        everywhere = (
            int(self.ray.cluster_resources().get("CPU", 0))
            if self.address and not self._given
            else os.cpu_count()
        )
        return self._given or everywhere or 1

    @property
    def cores_of_a_node(self) -> int:
        """Of the largest: a process that asked for more would wait for ever."""
        if not self.address:
            return self.workers
        return max((int(node["Resources"].get("CPU", 0)) for node in nodes.living(self.ray)), default=1) or 1

    @property
    def gpus(self) -> int:
        return int(self.ray.cluster_resources().get("GPU", 0))

    @property
    def share(self) -> float:
        """Of a GPU, for each of the workers that detect at the same time."""
        return min(1.0, self.gpus / self.workers)

    def share_for(self, gigabytes: float) -> float:
        """Of a GPU, for a job that takes so much of its memory: at least `share`."""
        if not self.gpus:
            return 0.0
        return max(self.share, min(1.0, gigabytes / self._gpu_memory))

    @cached_property
    def _gpu_memory(self) -> float:
        """GB of the smallest GPU of the node that answers; where none can tell, that of a small one."""
        ask = self.ray.remote(num_cpus=0, num_gpus=0.01, max_retries=1)(nodes.gpu_memory)
        try:
            told: float = self.ray.get(ask.remote(), timeout=nodes.PATIENCE)
        except self.ray.exceptions.RayError:
            told = 0.0
        return told or SMALL_GPU

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def ray(self) -> Any:
        """The module `ray`, started or connected when first asked for. MillError where no cluster answers at
        `address`; Lost where Ray is gone while jobs are under way.
        """
        if self._session is None:
            self._session = self._started()
        elif why := self._session.fault():
            if self._running:
                raise Lost(why)
            self._start_again(why)
        return self._session.ray

    def _started(self) -> Session:
        given = (self.token, self._given or os.cpu_count() or 1, self.address, self.lost)
        try:
            return Session(*given)
        except Lost as error:
            self.event("ray lost", reason=str(error))
            self.say(going_on(str(error), 1, self.address))
        try:
            return Session(*given)
        except Lost as error:
            raise MillError(
                f"Ray died twice as it started ({error}): look at memory and at the room in the temporary"
                " folder, then run the same command again."
            ) from error

    def close(self) -> None:
        """Ends all processes of the run, also those that are idle; the next job starts others."""
        if self._session is not None:
            session, self._session = self._session, None
            self._counts = self._nodes = self._metrics = None
            session.close()

    def _start_again(self, why: str, times: int = 1) -> None:
        """After Ray itself was lost, the n-th time in a row."""
        self.event("ray lost", reason=why)
        self.close()
        self.say(going_on(why, times, self.address))
        began = time.monotonic()
        self._session = self._started()
        self.event("ray started again", seconds=round(time.monotonic() - began, 3))

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Job],
        # called in the driver with jobs that have ended, in any order: many at a time, each within a second
        done: Callable[[Ended[Any]], object],
        *,
        label: str,
        total: int,  # rows in all jobs, for the progress line
        each: Resources | GpuShares = ONE_CORE,
        # rows done so far, asked every second: for jobs that take long
        watch: Callable[[], int] | None = None,
        # called in the driver as a job fails, with the reason
        failed: Callable[[Job, str], None] | None = None,
    ) -> None:
        """Raises JobsFailed at the end, naming each job that raised and why; MillError at once where going on
        is pointless; Drained where the run was asked to stop.
        """
        queue = Queue(jobs, failed)
        committed = Committed(label, done, self._tell)
        gathered = Gathered(committed.commit)
        finished = 0  # rows of jobs that have ended
        with Progress(label, total) as progress, ExitStack() as at_last:
            at_last.callback(gathered.give)  # also when stopped: what is done is kept
            under_way = UnderWay(
                lambda: self.ray,
                queue,
                lambda attempt: self._submit(function, attempt, _of(each, attempt.job)),
                each.full if isinstance(each, GpuShares) else lambda jobs: len(jobs) >= self._places(each),
                event=self.event,
                unfit=self._leave_out,
                alone=failed is not None,
            )

            def every_second() -> None:
                gathered.give(GATHERED)
                self.meanwhile()
                self._look_at_nodes()
                queue.closed = queue.closed or self.stopping()
                if watch:
                    progress.add(watch() - progress.count)
                elif time.monotonic() - progress.start > PATIENCE:
                    rows, at = self._told(list(under_way.tokens))
                    progress.reach(finished + rows, at)
                rate = progress.rate()
                self.follow(rate, committed.rows)
                self._measures().follow(rate, under_way.count)

            for job, result in self._survived(under_way, every_second):
                gathered.add(job, result)
                queue.succeed(job)
                finished += len(job.rows)
                if not watch:
                    progress.reach(finished, progress.under_way)
        if queue.closed and queue.left():
            raise Drained(f"Stopped in {label}, as asked: what was under way is committed.")
        queue.end(label)

    def _tell(self, event: str, **facts: Any) -> None:
        """A commit: as an event, and as numbers for Prometheus."""
        self.event(event, **facts)
        if self._session is not None:
            self._measures().committed(facts["stage"], facts["rows"], facts["bytes"])

    def _measures(self) -> Metrics:
        self._metrics = self._metrics or Metrics()
        return self._metrics

    def _places(self, each: Resources) -> int:
        """Jobs under way at a time: twice what runs at once, so that no worker waits for its next."""
        return 2 * max(1, self._cores() // each.cpus, int(self.gpus // each.gpus) if each.gpus else 0)

    def _cores(self) -> int:
        """As they are now: nodes come and go."""
        if self._given or not self.address:
            return self.workers
        return int(self.ray.cluster_resources().get("CPU", 0)) or 1

    def _prove(self) -> None:
        """Before the first job: MillError where a node of the cluster does not see what the run needs."""
        if self._nodes is None:
            self._nodes = nodes.alive(self.ray)
            if self.needs is not None:
                nodes.prove(self.ray, self.needs)

    def _look_at_nodes(self) -> None:
        if not self.address or time.monotonic() - self._looked < LOOKED:
            return
        self._looked = time.monotonic()
        now, before = nodes.alive(self.ray), self._nodes or {}
        for node in now.keys() - before.keys():
            self.event("node joined", node=node, host=now[node])
        for node in before.keys() - now.keys():
            self.event("node lost", node=node, host=before[node])
            self.say(f"The node {before[node]} ({node[:8]}) is gone: its jobs go to the others.")
        self._nodes = now

    def _leave_out(self, error: nodes.Unfit) -> None:
        """A node that joined late and lacks something gets no further jobs."""
        if error.node not in self._unfit:
            self._unfit.add(error.node)
            self.say(f"{error} It is not used.")
            self.event("node unfit", node=error.node, reason=str(error))
        if not nodes.alive(self.ray).keys() - self._unfit:  # a job would wait for ever
            raise MillError(f"No node of the cluster can be used. {error}")

    def _told(self, tokens: list[str]) -> tuple[int, dict[str, int]]:
        """Rows that are done in these attempts, and how many of them are at what; the actor that knows is
        started when it is first asked for.
        """
        ray = self.ray
        try:
            if self._counts is None:
                actor = ray.remote(num_cpus=0, max_restarts=-1)(Counts)
                self._counts = actor.options(name=f"controlmill-{self.token}").remote()
            return summed(ray.get(self._counts.read.remote(tokens), timeout=1.0))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return 0, {}  # it is not there yet, or no longer; progress goes by whole jobs

    def _survived(self, under_way: UnderWay, every_second: Callable[[], None]) -> Iterator[tuple[Job, Any]]:
        """Each job that is done, with its result; where Ray itself is lost it is started again."""
        lost = 0  # times in a row, with no job done between them
        self._running = True
        try:
            while True:
                try:
                    for ended in under_way.ended(every_second):
                        lost = 0
                        yield ended
                    return
                except Exception as error:
                    why = self._session.of_ray(error) if self._session else ""
                    if not why:
                        raise
                    lost += 1
                    under_way.take_back()
                    self._start_again(why, lost)
        finally:
            self._running = False

    def _submit(self, function: Callable[..., Any], attempt: Attempt, each: Resources) -> tuple[Any, str]:
        """The reference of the result, and the token of the attempt."""
        self._prove()
        job, token = attempt.job, f"{self.token}-{secrets.token_hex(6)}"
        # the driver itself tries again what died: it knows which row was at work
        options: dict[str, Any] = {"max_retries": 0, "name": attempt.name}
        if self._unfit:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._unfit))})"}
        if job.processes > 1:
            cores = min(each.cpus, self.workers / job.processes)  # more processes than cores share them
            launch = self.ray.remote(num_cpus=0, max_calls=1)(call_ranks).options(**options)
            ranks = launch.remote(function, job.args, job.processes, cores, each.gpus, job.scratch)
            return ranks, token
        # a long job's process ends with it and gives its GPU's memory back; 0 = no limit
        calls = 1 if each.gpus and not job.rows else 0
        cpus = max(each.cpus, self.cores_of_a_node) if attempt.alone else each.cpus
        trial = Trial(token, f"controlmill-{self.token}", attempt.singly, job.kills)
        if calls not in self._calls:  # made once: making one asks Ray's head
            self._calls[calls] = self.ray.remote(max_calls=calls)(call)
        task = self._calls[calls].options(num_cpus=cpus, num_gpus=each.gpus, **options)
        return task.remote(function, attempt, trial, self.needs, each.cpus), token


def _of(each: Resources | GpuShares, job: Job) -> Resources:
    return each.of(job) if isinstance(each, GpuShares) else each


@contextmanager
def cluster(*, workers: int | None = None, address: str | None = None) -> Iterator[Cluster]:
    started = Cluster(workers=workers, address=address)
    try:
        yield started
    finally:
        started.close()
