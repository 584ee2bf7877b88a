"""Attempts under way: submitted, awaited, and tried again where their worker or their node is gone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline import MillError
from pipeline.cluster import attempts, position
from pipeline.cluster.attempts import Attempt
from pipeline.cluster.jobs import Job
from pipeline.cluster.nodes import Unfit, alive
from pipeline.cluster.position import Position, RanOut
from pipeline.cluster.queue import Queue
from pipeline.storage.workspace import stopping

PATIENCE = 20.0  # seconds in which the nodes tell where an attempt was
SUBMITTED = Callable[[Attempt], tuple[Any, str]]  # -> reference of the result, token


@dataclass
class _Search:
    """Where was it? Every node is asked, since nobody knows on which it was."""

    attempt: Attempt
    token: str
    death: str
    answers: list[Any]  # references
    began: float = field(default_factory=time.monotonic)


class UnderWay:
    """The attempts of one stage."""

    def __init__(
        self,
        ray: Callable[[], Any],  # starts it where it was not yet
        queue: Queue,
        submit: SUBMITTED,
        full: Callable[[list[Job]], bool],  # whether those under way are enough
        *,
        event: Callable[..., object],
        unfit: Callable[[Unfit], None],
        alone: bool,  # whether a job that a person must mend stops only itself
    ) -> None:
        self._started, self._queue, self._submit, self._full = ray, queue, submit, full
        self._event, self._unfit, self._alone = event, unfit, alone
        self._flying: dict[Any, tuple[Attempt, str]] = {}
        self._searches: list[_Search] = []

    @property
    def _ray(self) -> Any:
        return self._started()

    @property
    def count(self) -> int:
        return len(self._flying)

    @property
    def tokens(self) -> list[str]:
        """Of the attempts whose rows count."""
        return [token for attempt, token in self._flying.values() if not attempt.dry_run]

    def take_back(self) -> None:
        """All that is under way is to be tried anew, with Ray itself started again."""
        tries = [*self._flying.values(), *((search.attempt, search.token) for search in self._searches)]
        self._flying, self._searches = {}, []
        for attempt, token in reversed(tries):
            position.forget(token)
            self._queue.retry(attempt)

    def ended(self, every_second: Callable[[], None]) -> Iterator[tuple[Job, Any]]:
        """Each job that is done, with its result, until there is none left."""
        while True:
            while not self._is_full() and (attempt := self._queue.next()):
                try:
                    result, token = self._submit(attempt)
                except BaseException:
                    self._queue.retry(attempt)  # it was not begun
                    raise
                self._flying[result] = attempt, token
            if not self._flying and not self._searches:
                return
            if self._flying:
                ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=1.0)
            else:
                ready = []
                time.sleep(0.1)
            every_second()
            for search in [one for one in self._searches if self._is_over(one)]:
                self._judge(search)
                self._searches.remove(search)
            for result in ready:
                yield from self._take(result)

    def _is_full(self) -> bool:
        return self._full([attempt.job for attempt, _ in self._flying.values()])

    def _take(self, result: Any) -> Iterator[tuple[Job, Any]]:
        attempt, token = self._flying[result]  # until what follows is known, for Ray itself may be lost
        exceptions = self._ray.exceptions
        try:
            value = self._ray.get(result)
        except exceptions.RayTaskError as error:
            self._raised(attempt, error)
        except (
            exceptions.WorkerCrashedError,
            exceptions.OutOfMemoryError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,  # its node is gone, and the result with it
        ) as error:
            self._died(attempt, token, type(error).__name__)
        else:
            if attempt.dry_run:
                self._go_on(attempt, attempts.after_life(attempt, "it died with its whole part"))
            else:
                del self._flying[result]
                yield attempt.job, value
        self._flying.pop(result, None)

    def _raised(self, attempt: Attempt, error: Any) -> None:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, Unfit):
            self._unfit(cause)
            self._queue.retry(attempt)
        elif isinstance(cause, RanOut) and attempt.job.rows:
            self._event(
                "memory ran out",
                job=attempt.job.name,
                rows=list(cause.at.rows),
                what=cause.at.what,
                reason=cause.reason,
            )
            self._go_on(attempt, attempts.after_death(attempt, cause.at, cause.reason, memory=True))
        elif attempt.dry_run:  # it lived; what it raised is told when the whole job runs
            self._go_on(attempt, attempts.after_life(attempt, "it raised when it was tried in parts"))
        else:
            reason = _reason(cause, alone=self._alone)
            self._event("job failed", job=attempt.job.name, reason=reason)
            self._queue.fail(attempt.job, reason)

    def _died(self, attempt: Attempt, token: str, death: str) -> None:
        where = position.read(token)  # where there is one machine this is all
        search = _Search(attempt, token, death, [])
        if where is not None:
            self._judge(search, where)
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self._ray.remote(num_cpus=0, max_retries=0)(position.read)
        for node in alive(self._ray):
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            search.answers.append(task.options(scheduling_strategy=there).remote(token))
        self._searches.append(search)

    def _is_over(self, search: _Search) -> bool:
        if not search.answers or time.monotonic() - search.began > PATIENCE:
            return True
        count = len(search.answers)
        ready, _ = self._ray.wait(search.answers, num_returns=count, timeout=0)
        return len(ready) == count

    def _judge(self, search: _Search, where: Position | None = None) -> None:
        """What follows from where it was; nowhere: its node is gone."""
        attempt, death = search.attempt, search.death
        for answer in search.answers:
            try:
                where = where or self._ray.get(answer, timeout=0)
            except self._ray.exceptions.RayError:
                continue  # that node is gone too, or does not answer
        self._event(
            "worker lost",
            job=attempt.job.name,
            death=death,
            rows=list(where.rows) if where else None,
            what=where.what if where else "",
            reason=where.over if where else "its node is gone",
        )
        if where is None:
            self._go_on(attempt, attempts.after_node(attempt, death))
        else:
            memory = death == "OutOfMemoryError"  # Ray ended it, before the system ends something else
            self._go_on(attempt, attempts.after_death(attempt, where, death, memory=memory))

    def _go_on(self, attempt: Attempt, following: Attempt | str) -> None:
        if isinstance(following, str):
            self._event("job failed", job=attempt.job.name, reason=following)
            self._queue.fail(attempt.job, following)
            return
        for (row, what), reason in following.job.blamed.items():
            if (row, what) not in attempt.job.blamed:
                self._event("row found", job=attempt.job.name, row=row, what=what, reason=reason)
        self._queue.retry(following)


def _reason(cause: Exception, *, alone: bool) -> str:
    """Why a job failed. MillError at once where the others would fail too: of a full disk; and of what a
    person must mend first, unless each job stands `alone`.
    """
    sentence = stopping(cause)
    if sentence:
        raise sentence from cause
    if isinstance(cause, MillError) and not alone:
        raise cause
    if isinstance(cause, RanOut):
        return cause.reason
    return str(cause) if isinstance(cause, MillError) else f"{type(cause).__name__}: {cause}"
