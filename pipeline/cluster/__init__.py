"""Plain functions on Ray: bounded in flight, retried, bisected to the row that kills its worker.

A job's function has the signature `function(args, rows, poison_rows, dry_run)`:
    args: one frozen dataclass, all that the function needs to know;
    rows: which rows of its part to do;
    poison_rows: {row: reason} of rows known to kill a worker, to be recorded as failed;
    dry_run: True means do the work and write nothing (used only to find poison rows).
It catches what a single bad image raises; what it does raise is a failure of the whole job, named at the end.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from pipeline import MillError
from pipeline.cluster.jobs import ONE_CORE, Ended, Gathered, Job, Queue, Resources
from pipeline.cluster.progress import Progress
from pipeline.cluster.worker import DEATH, DEATHS_RETRIED, SLEEP, call, call_ranks
from pipeline.storage.workspace import stopping

GATHERED = 1.0  # seconds that a job which is done waits for others, so that many are committed at once


class Cluster:
    """Started when the first job needs it, so a run with nothing to do never waits for Ray."""

    def __init__(self, *, workers: int | None = None, address: str | None = None) -> None:
        self.address = address
        self.say: Callable[[str], None] = print  # for what a person should know before a stage has ended
        # called in the driver about every second while jobs are under way
        self.meanwhile: Callable[[], None] = lambda: None
        self._given = workers
        self._ray: Any = None

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
    def gpus(self) -> int:
        return int(self.ray.cluster_resources().get("GPU", 0))

    @property
    def share(self) -> float:
        """Of a GPU, for each of the workers that detect at the same time."""
        return min(1.0, self.gpus / self.workers)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def ray(self) -> Any:
        """The module `ray`, started or connected when first asked for. MillError where no cluster answers at
        `address`.
        """
        if self._ray is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            os.environ.setdefault(*SLEEP)
            import logging
            import signal

            import ray

            where: dict[str, Any] = (
                {"address": self.address}
                if self.address
                else {
                    "address": "local",
                    "num_cpus": self.workers,
                    "object_store_memory": 128 * 2**20,
                    "include_dashboard": False,
                    "_node_ip_address": "127.0.0.1",
                }
            )
            on_terminate = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(**where, logging_level=logging.ERROR, log_to_driver=False, configure_logging=True)
            except ConnectionError as error:
                raise MillError(
                    f"No Ray cluster answers at {self.address}: check --address, or leave it out to start one"
                    " here."
                ) from error
            # Ray puts its own in place, which ends without a word
            signal.signal(signal.SIGTERM, on_terminate)
            self._ray = ray
        return self._ray

    def close(self) -> None:
        """Ends all processes of the run, also those that are idle; the next job starts others."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Job],
        # called in the driver with jobs that have ended, in any order: many at a time, each within a second
        done: Callable[[Ended[Any]], object],
        *,
        label: str,
        total: int,  # rows in all jobs, for the progress line
        each: Resources = ONE_CORE,
        # rows done so far, asked every second: for jobs that take long
        watch: Callable[[], int] | None = None,
        # called in the driver as a job fails, with the reason
        failed: Callable[[Job, str], None] | None = None,
    ) -> None:
        """Raises JobsFailed at the end, naming each job that raised and why; MillError at once where going on
        is pointless.
        """
        queue = Queue(jobs, failed)
        places = 2 * max(1, self.workers // each.cpus, int(self.gpus // each.gpus) if each.gpus else 0)
        gathered = Gathered(done)
        with self._ray_errors(), Progress(label, total) as progress, ExitStack() as at_last:
            at_last.callback(gathered.give)  # also when stopped: what is done is kept

            def every_second() -> None:
                gathered.give(GATHERED)
                self.meanwhile()
                if watch:
                    progress.add(watch() - progress.count)

            submit = functools.partial(self._submit, function, each=each)
            for job, result in self._ended(queue, submit, places, every_second):
                try:
                    gathered.add(job, self.ray.get(result))
                except self.ray.exceptions.RayTaskError as error:
                    queue.fail(job, _reason(error, alone=failed is not None))
                except self._deaths as error:
                    if job.rows:
                        queue.retry(self._without_poison_rows(submit, job, type(error).__name__))
                    else:
                        queue.fail(job, DEATH.format(type(error).__name__))
                else:
                    queue.succeed(job)
                    progress.add(0 if watch else len(job.rows))
        queue.end(label)

    def _ended(
        self,
        queue: Queue,
        submit: Callable[[Job], Any],
        places: int,  # jobs under way at a time
        every_second: Callable[[], None],
    ) -> Iterator[tuple[Job, Any]]:
        """Each job with the reference of its result, as it ends."""
        flying: dict[Any, Job] = {}
        while True:
            while len(flying) < places and (job := queue.next()):
                flying[submit(job)] = job
            if not flying:
                return
            ready, _ = self.ray.wait(list(flying), num_returns=1, timeout=1.0)
            every_second()
            for result in ready:
                yield flying.pop(result), result

    @property
    def _deaths(self) -> tuple[type[Exception], ...]:
        """What Ray raises of a job whose worker died."""
        return self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError

    @contextmanager
    def _ray_errors(self) -> Iterator[None]:
        """What no retry mends: Ray's own processes are gone, and the person can only start again."""
        try:
            yield
        except Exception as error:
            if self._ray is None or not isinstance(error, self._ray.exceptions.RayError):
                raise
            raise MillError(
                f"Ray itself failed ({type(error).__name__}: {error}); run the same command again."
            ) from error

    def _submit(
        self, function: Callable[..., Any], job: Job, each: Resources, *, dry_run: bool = False
    ) -> Any:
        if job.processes > 1:
            cores = min(each.cpus, self.workers / job.processes)  # more processes than cores share them
            launch = self.ray.remote(num_cpus=0, max_calls=1)(call_ranks).options(
                max_retries=DEATHS_RETRIED, name=job.name
            )
            return launch.remote(function, job.args, job.processes, cores, each.gpus, job.scratch)
        # a long job's process ends with it and gives its GPU's memory back; 0 = no limit
        calls = 1 if each.gpus and not job.rows else 0
        task = self.ray.remote(max_calls=calls)(call).options(
            num_cpus=each.cpus, num_gpus=each.gpus, max_retries=DEATHS_RETRIED, name=job.name
        )
        return task.remote(function, job.args, job.rows, job.poison_rows, dry_run, each.cpus)

    def _without_poison_rows(self, submit: Callable[..., Any], job: Job, death: str) -> Job:
        """Halves the rows until the ones that kill a worker stand alone; each was tried DEATHS_RETRIED + 1
        times.
        """
        poison_rows: dict[int, str] = {}
        suspects = [tuple(row for row in job.rows if row not in job.poison_rows)]
        while suspects:
            rows = suspects.pop()
            try:
                half = replace(job, rows=rows, poison_rows={})
                self.ray.get(submit(half, dry_run=True))
            except self._deaths:
                if len(rows) == 1:
                    poison_rows[rows[0]] = DEATH.format(death)
                else:
                    suspects += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            except self.ray.exceptions.RayTaskError:
                pass  # it lived; what it raised is told when the whole job runs
        if not poison_rows and job.deaths:
            raise MillError(
                f"{job.name} keeps losing its worker ({death}) although no single row does: give it more"
                " memory or fewer --workers."
            )
        return replace(job, poison_rows=job.poison_rows | poison_rows, deaths=job.deaths + (not poison_rows))


@contextmanager
def cluster(*, workers: int | None = None, address: str | None = None) -> Iterator[Cluster]:
    started = Cluster(workers=workers, address=address)
    try:
        yield started
    finally:
        started.close()


def _reason(error: Any, *, alone: bool) -> str:
    """Why a job failed. MillError at once where the others would fail too: of a full disk; and of what a
    person must mend first, unless each job stands `alone`.
    """
    cause = error.cause if isinstance(error.cause, Exception) else error
    sentence = stopping(cause)
    if sentence:
        raise sentence from cause
    if isinstance(cause, MillError) and not alone:
        raise cause
    return str(cause) if isinstance(cause, MillError) else f"{type(cause).__name__}: {cause}"
