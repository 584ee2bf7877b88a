"""Plain functions on Ray: bounded in flight, retried, bisected to the one row that kills its worker, failures
named at the end.

A job's function has the signature `function(args, rows, deadly, probe)`:
    rows: which rows of its part to do;
    deadly: {row: reason} of rows known to kill a worker, to be recorded as failed;
    probe: True means do the work and write nothing (used only to find deadly rows).
It catches what a single bad image raises; what it does raise is a failure of the whole job.
"""

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline import MillError
from pipeline.cluster.progress import Progress
from pipeline.storage.workspace import TEMPORARY, stopping

DEATH = "killed its worker every time it was tried ({})"
DEATHS_RETRIED = 2  # Ray tries a job whose worker died this often again, before it is split
# threads that spin where cores are short slow each other down twentyfold (measured)
SLEEP = ("OMP_WAIT_POLICY", "PASSIVE")
# what ranks say of one that is gone
LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL", "/gloo/")


@dataclass(frozen=True)
class Job:
    name: str
    args: dict[str, Any]
    # () = it can't be split, so that losing its worker every time is a failure of it alone
    rows: tuple[int, ...]
    deadly: dict[int, str] = field(default_factory=dict)
    deaths: int = 0  # how often the whole job lost its worker and no single row was to blame
    # more than one: ranks of torch.distributed, each with the job's cores and GPUs; their function has no
    # rows
    processes: int = 1
    # of a job with several processes: a folder that all machines see; None = this machine's
    scratch: str | None = None
    after: tuple[str, ...] = ()  # names of jobs that must be done before; if one fails, so does this


class JobsFailed(MillError):
    """Some jobs raised; the rest was done and committed."""


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
        done: Callable[[Job, Any], None],  # called in the driver as each job ends, in any order
        *,
        label: str,
        total: int,  # rows in all jobs, for the progress line
        cpus: int = 1,  # of one process, as are gpus
        gpus: float = 0,
        # rows done so far, asked every second: for jobs that take long
        watch: Callable[[], int] | None = None,
        # called in the driver as a job fails, with the reason
        failed: Callable[[Job, str], None] | None = None,
    ) -> None:
        """Raises JobsFailed at the end, naming each job that raised and why; MillError at once where going on
        is pointless.
        """
        waiting, flying = iter(jobs), {}  # type: ignore[var-annotated]
        blocked: list[Job] = []
        ended: dict[str, bool] = {}  # by name: whether it was done
        failures: list[str] = []

        def fail(job: Job, reason: str) -> None:
            failures.append(f"{job.name}: {reason}")
            ended[job.name] = False
            if failed:
                failed(job, reason)

        def following() -> Job | None:
            """The next job that waits for no other."""
            while True:
                for job in blocked:
                    states = [ended.get(name) for name in job.after]
                    if all(states) or False in states:
                        blocked.remove(job)
                        if all(states):
                            return job
                        fail(job, f"it waits for {job.after[states.index(False)]}, which failed")
                        break
                else:
                    fresh = list(itertools.islice(waiting, 1))
                    if not fresh:
                        return None
                    blocked.extend(fresh)

        room = 2 * max(1, self.workers // cpus, int(self.gpus // gpus) if gpus else 0)
        with self._ray_errors(), Progress(label, total) as progress:
            while True:
                while len(flying) < room and (job := following()):
                    flying[self._submit(function, job, cpus, gpus)] = job
                if not flying:
                    assert not blocked, f"{blocked[0].name} waits for a job that is not there"
                    break
                ready, _ = self.ray.wait(list(flying), num_returns=1, timeout=1.0)
                self.meanwhile()
                if watch:
                    progress.add(watch() - progress.count)
                for reference in ready:
                    job = flying.pop(reference)
                    try:
                        done(job, self.ray.get(reference))
                        progress.add(0 if watch else len(job.rows))
                        ended[job.name] = True
                    except self.ray.exceptions.RayTaskError as error:
                        cause = error.cause if isinstance(error.cause, Exception) else error
                        _stop_if_hopeless(cause, alone=failed is not None)
                        fail(
                            job,
                            (
                                str(cause)
                                if isinstance(cause, MillError)
                                else f"{type(cause).__name__}: {cause}"
                            ),
                        )
                    except (
                        self.ray.exceptions.WorkerCrashedError,
                        self.ray.exceptions.OutOfMemoryError,
                    ) as error:
                        if not job.rows:
                            fail(job, DEATH.format(type(error).__name__))
                            continue
                        job = self._without_deadly_rows(function, job, cpus, gpus, type(error).__name__)
                        flying[self._submit(function, job, cpus, gpus)] = job
        if failures:
            raise JobsFailed(
                f"{len(failures)} of the {label} jobs failed; run the same command again to retry them:\n  "
                + "\n  ".join(failures)
            )

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
        self, function: Callable[..., Any], job: Job, cpus: int, gpus: float, *, probe: bool = False
    ) -> Any:
        if job.processes > 1:
            cores = min(cpus, self.workers / job.processes)  # more processes than cores share them
            launch = self.ray.remote(num_cpus=0, max_calls=1)(_call_ranks).options(
                max_retries=DEATHS_RETRIED, name=job.name
            )
            return launch.remote(function, job.args, job.processes, cores, gpus, job.scratch)
        # a long job's process ends with it and gives its GPU's memory back; 0 = no limit
        calls = 1 if gpus and not job.rows else 0
        task = self.ray.remote(max_calls=calls)(_call).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=DEATHS_RETRIED, name=job.name
        )
        return task.remote(function, job.args, job.rows, job.deadly, probe, cpus)

    def _without_deadly_rows(
        self, function: Callable[..., Any], job: Job, cpus: int, gpus: float, death: str
    ) -> Job:
        """Halves the rows until the ones that kill a worker stand alone; each was tried DEATHS_RETRIED + 1
        times.
        """
        deadly: dict[int, str] = {}
        suspects = [tuple(row for row in job.rows if row not in job.deadly)]
        while suspects:
            rows = suspects.pop()
            try:
                self.ray.get(
                    self._submit(function, replace(job, rows=rows, deadly={}), cpus, gpus, probe=True)
                )
            except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError):
                if len(rows) == 1:
                    deadly[rows[0]] = DEATH.format(death)
                else:
                    suspects += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            except self.ray.exceptions.RayTaskError:
                pass  # it lived; what it raised is told when the whole job runs
        if not deadly and job.deaths:
            raise MillError(
                f"{job.name} keeps losing its worker ({death}) although no single row does: give it more"
                " memory or fewer --workers."
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
    function: Callable[..., Any],
    args: dict[str, Any],
    rows: tuple[int, ...],
    deadly: dict[int, str],
    probe: bool,
    threads: int,
) -> Any:
    """In the worker: as many threads as the job was given cores, and no more."""
    import cv2

    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault(*SLEEP)
    if "torch" in sys.modules:  # a worker that is used again; a fresh one reads the variable
        sys.modules["torch"].set_num_threads(threads)
    return function(args, rows, deadly, probe)


def _call_ranks(
    function: Callable[..., Any],
    args: dict[str, Any],
    processes: int,
    cpus: float,
    gpus: float,
    scratch: str | None,
) -> None:
    """In a task that takes no core of its own: Ray Train starts the ranks when there is room for all, and
    again if one dies.

    What they make is on disk, so its own checkpoints and results are not used; its folder for them is thrown
    away.
    """
    os.environ |= {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1e9",  # waiting for room is no failure
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def rank() -> None:
        _call(function, args, (), {}, False, max(1, int(cpus)))

    each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    for left in reversed(range(DEATHS_RETRIED + 1)):
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=scratch) as folder:
            trainer = TorchTrainer(
                rank,
                torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=processes, use_gpu=gpus > 0, resources_per_worker=each
                ),
                run_config=RunConfig(
                    name="run", storage_path=folder, failure_config=FailureConfig(max_failures=0)
                ),
            )
            try:
                trainer.fit()
                return
            except Exception as error:
                raised = _of_a_rank(error)
                if raised is not None or not left:
                    raise raised or RuntimeError(DEATH.format(type(error).__name__)) from None


def _of_a_rank(error: Exception) -> Exception | None:
    """What a rank's own code raised; None = ranks died, or only tell that they lost one another."""
    from ray.exceptions import RayError

    told: dict[int, Exception] = getattr(error, "worker_failures", {})
    for each in told.values():
        of_ray = isinstance(each, RayError) or type(each).__module__.startswith("ray.")
        if not of_ray and not any(word in str(each) for word in LOST):
            return each
    return None


def _stop_if_hopeless(error: Exception, *, alone: bool) -> None:
    """The disk; and what a person must mend first, unless each job stands `alone`."""
    sentence = stopping(error)
    if sentence:
        raise sentence from error
    if isinstance(error, MillError) and not alone:
        raise error
