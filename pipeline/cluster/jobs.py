"""What is asked of the cluster: jobs, what each of their processes needs, and the order that they go in."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from pipeline import MillError


@dataclass(frozen=True)
class Job:
    name: str
    args: Any  # a frozen dataclass, which the function takes first
    # () = it can't be split, so that losing its worker every time is a failure of it alone
    rows: tuple[int, ...]
    poison_rows: dict[int, str] = field(default_factory=dict)
    deaths: int = 0  # how often the whole job lost its worker and no single row was to blame
    # more than one: ranks of torch.distributed, each with the job's cores and GPUs; they have no rows
    processes: int = 1
    # of a job with several processes: a folder that all machines see; None = this machine's
    scratch: str | None = None
    after: tuple[str, ...] = ()  # names of jobs that must be done before; if one fails, so does this


Result = TypeVar("Result")
Ended: TypeAlias = list[tuple[Job, Result]]  # jobs that are done, with what their function returned


class Gathered:
    """Jobs that are done, until `done` takes many of them at once: commits cost less so."""

    def __init__(self, done: Callable[[Ended[Any]], object]) -> None:
        self._done = done
        self._waiting: Ended[Any] = []
        self._since = 0.0  # when the first of those that wait ended

    def add(self, job: Job, result: Any) -> None:
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append((job, result))

    def give(self, after: float = 0.0) -> None:
        """Hands over what waits, where the first waits for so many seconds."""
        if self._waiting and time.monotonic() - self._since >= after:
            waiting, self._waiting = self._waiting, []
            self._done(waiting)


@dataclass(frozen=True)
class Resources:
    """Of one process of a job."""

    cpus: int = 1
    gpus: float = 0


ONE_CORE = Resources()


class JobsFailed(MillError):
    """Some jobs raised; the rest was done and committed."""


class Queue:
    """Jobs in their order; one that waits for others is held back until they are done, or fails with them."""

    def __init__(self, jobs: Iterable[Job], failed: Callable[[Job, str], None] | None) -> None:
        self._fresh, self._failed = iter(jobs), failed
        self._blocked: list[Job] = []
        self._again: list[Job] = []
        self._done: dict[str, bool] = {}  # by name, of those that have ended; False = failed
        self.failures: list[str] = []

    def next(self) -> Job | None:
        """The next job that waits for no other; None = there is none now."""
        if self._again:
            return self._again.pop()
        while True:
            for job in self._blocked:
                states = [self._done.get(name) for name in job.after]
                if all(states):
                    self._blocked.remove(job)
                    return job
                if False in states:
                    self._blocked.remove(job)
                    self.fail(job, f"it waits for {job.after[states.index(False)]}, which failed")
                    break
            else:
                fresh = next(self._fresh, None)
                if fresh is None:
                    return None
                self._blocked.append(fresh)

    def retry(self, job: Job) -> None:
        self._again.append(job)

    def succeed(self, job: Job) -> None:
        self._done[job.name] = True

    def fail(self, job: Job, reason: str) -> None:
        self._done[job.name] = False
        self.failures.append(f"{job.name}: {reason}")
        if self._failed:
            self._failed(job, reason)

    def end(self, label: str) -> None:
        """When nothing is under way any more: JobsFailed, naming each job that failed and why."""
        assert not self._blocked, f"{self._blocked[0].name} waits for a job that is not there"
        if self.failures:
            raise JobsFailed(
                f"{len(self.failures)} of the {label} jobs failed; run the same command again to retry"
                " them:\n  " + "\n  ".join(self.failures)
            )
