"""Plain functions on Ray: bounded in flight, retried, bisected to the one row that kills its worker, failures named at the end.

A job's function has the signature `function(args, rows, deadly, probe)`:
    rows: which rows of its part to do;  deadly: {row: reason} of rows known to kill a worker, to be recorded as failed;
    probe: True means do the work and write nothing (used only to find deadly rows).
It catches what a single bad image raises; what it does raise is a failure of the whole job.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline import MillError
from pipeline.progress import Progress
from pipeline.workspace import stopping

DEATH = "killed its worker every time it was tried ({})"
DEATHS_RETRIED = 2  # Ray tries a job whose worker died this often again, before it is split


@dataclass(frozen=True)
class Job:
    name: str
    args: dict[str, Any]
    rows: tuple[int, ...]
    deadly: dict[int, str] = field(default_factory=dict)
    deaths: int = 0  # how often the whole job lost its worker and no single row was to blame


class JobsFailed(MillError):
    """Some jobs raised; the rest was done and committed."""


class Cluster:
    """Started when the first job needs it, so a run with nothing to do never waits for Ray."""

    def __init__(self, *, workers: int | None = None, address: str | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1
        self.address = address
        self._ray: Any = None

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
        if self._ray is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            import logging
            import signal

            import ray

            where: dict[str, Any] = {"address": self.address} if self.address else {
                "address": "local", "num_cpus": self.workers, "object_store_memory": 128 * 2**20, "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
            on_terminate = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(**where, logging_level=logging.ERROR, log_to_driver=False, configure_logging=True)
            except ConnectionError as error:
                raise MillError(f"No Ray cluster answers at {self.address}: check --address, or leave it out to start one here.") from error
            signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place, which ends without a word
            self._ray = ray
        return self._ray

    def close(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Job],
        done: Callable[[Job, Any], None],  # called in the driver as each job ends, in any order
        *,
        label: str,
        total: int,  # rows in all jobs, for the progress line
        cpus: int = 1,
        gpus: float = 0,
        watch: Callable[[], int] | None = None,  # rows done so far, asked every second: for jobs that take long
    ) -> None:
        """Raises JobsFailed at the end, naming each job that raised and why; MillError at once where going on is pointless."""
        waiting, flying = iter(jobs), {}  # type: ignore[var-annotated]
        failures: list[str] = []
        with self._ray_errors(), Progress(label, total) as progress:
            while True:
                while len(flying) < 2 * max(1, self.workers // cpus) and (job := next(waiting, None)):
                    flying[self._submit(function, job, cpus, gpus)] = job
                if not flying:
                    break
                ready, _ = self.ray.wait(list(flying), num_returns=1, timeout=1.0)
                if watch:
                    progress.add(watch() - progress.count)
                for reference in ready:
                    job = flying.pop(reference)
                    try:
                        done(job, self.ray.get(reference))
                        progress.add(0 if watch else len(job.rows))
                    except self.ray.exceptions.RayTaskError as error:
                        cause = error.cause if isinstance(error.cause, Exception) else error
                        _stop_if_hopeless(cause)
                        failures.append(f"{job.name}: {type(cause).__name__}: {cause}")
                    except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError) as error:
                        job = self._without_deadly_rows(function, job, cpus, gpus, type(error).__name__)
                        flying[self._submit(function, job, cpus, gpus)] = job
        if failures:
            raise JobsFailed(
                f"{len(failures)} of the {label} jobs failed; run the same command again to retry them:\n  " + "\n  ".join(failures)
            )

    @contextmanager
    def _ray_errors(self) -> Iterator[None]:
        """What no retry mends: Ray's own processes are gone, and the person can only start again."""
        try:
            yield
        except Exception as error:
            if self._ray is None or not isinstance(error, self._ray.exceptions.RayError):
                raise
            raise MillError(f"Ray itself failed ({type(error).__name__}: {error}); run the same command again.") from error

    def _submit(self, function: Callable[..., Any], job: Job, cpus: int, gpus: float, *, probe: bool = False) -> Any:
        task = self.ray.remote(_call).options(num_cpus=cpus, num_gpus=gpus, max_retries=DEATHS_RETRIED, name=job.name)
        return task.remote(function, job.args, job.rows, job.deadly, probe, cpus)

    def _without_deadly_rows(self, function: Callable[..., Any], job: Job, cpus: int, gpus: float, death: str) -> Job:
        """Halves the rows until the ones that kill a worker stand alone; each was tried DEATHS_RETRIED + 1 times."""
        deadly: dict[int, str] = {}
        suspects = [tuple(row for row in job.rows if row not in job.deadly)]
        while suspects:
            rows = suspects.pop()
            try:
                self.ray.get(self._submit(function, replace(job, rows=rows, deadly={}), cpus, gpus, probe=True))
            except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError):
                if len(rows) == 1:
                    deadly[rows[0]] = DEATH.format(death)
                else:
                    suspects += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            except self.ray.exceptions.RayTaskError:
                pass  # it lived; what it raised is told when the whole job runs
        if not deadly and job.deaths:
            raise MillError(
                f"{job.name} keeps losing its worker ({death}) although no single row does: give it more memory or fewer --workers."
            )
        return replace(job, deadly=job.deadly | deadly, deaths=job.deaths + (not deadly))


@contextmanager
def cluster(*, workers: int | None = None, address: str | None = None) -> Iterator[Cluster]:
    made = Cluster(workers=workers, address=address)
    try:
        yield made
    finally:
        made.close()


def _call(
    function: Callable[..., Any], args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool, threads: int
) -> Any:
    """In the worker: as many threads as the job was given cores, and no more."""
    import cv2

    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:  # a worker that is used again; a fresh one reads the variable
        sys.modules["torch"].set_num_threads(threads)
    return function(args, rows, deadly, probe)


def _stop_if_hopeless(error: Exception) -> None:
    sentence = stopping(error)
    if sentence:
        raise sentence from error
    if isinstance(error, MillError):
        raise error
