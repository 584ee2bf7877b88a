"""Jobs in their order; one that waits for others is held back until they are done, or fails with them."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.cluster.attempts import Attempt, first
from pipeline.cluster.jobs import Job, JobsFailed


class Queue:
    """What is to be tried next, and what became of the jobs that have ended."""

    def __init__(self, jobs: Iterable[Job], failed: Callable[[Job, str], None] | None) -> None:
        self._fresh, self._failed = iter(jobs), failed
        self._blocked: list[Job] = []
        self._again: list[Attempt] = []
        self.closed = False  # no further attempt begins
        self._done: dict[str, bool] = {}  # by name, of those that have ended; False = failed
        self.failures: list[str] = []

    def next(self) -> Attempt | None:
        """The next job that waits for no other; None = there is none now."""
        if self.closed:
            return None
        if self._again:
            return self._again.pop()
        while True:
            for job in self._blocked:
                states = [self._done.get(name) for name in job.after]
                if all(states):
                    self._blocked.remove(job)
                    return first(job)
                if False in states:
                    self._blocked.remove(job)
                    self.fail(job, f"it waits for {job.after[states.index(False)]}, which failed")
                    break
            else:
                fresh = next(self._fresh, None)
                if fresh is None:
                    return None
                self._blocked.append(fresh)

    def left(self) -> bool:
        """Whether something was not begun because the queue was closed."""
        self.closed = False
        left = self.next()
        self.closed = True
        return left is not None

    def retry(self, attempt: Attempt) -> None:
        self._again.append(attempt)

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


def longest_first(jobs: Sequence[Job], work: Mapping[str, float]) -> list[Job]:
    """The order in which jobs of unlike length keep all machines at work until near the end (Graham 1969):
    each counts with the longest chain of jobs that wait for it, and equal ones stay in their order. `work` is
    by a job's name, in any unit.
    """
    waiting: dict[str, list[str]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.after:
            waiting[name].append(job.name)

    @functools.cache
    def path(name: str) -> float:
        return work[name] + max(map(path, waiting[name]), default=0.0)

    return sorted(jobs, key=lambda job: -path(job.name))
