"""What is asked of the cluster: jobs, what each of their processes needs, and the order that they go in."""

import time
from collections.abc import Callable
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
    # row, what it is passed through -> why it is not tried there: rows that kill in one place alone
    kills: dict[tuple[int, str], str] = field(default_factory=dict)
    deaths: int = 0  # how often the whole job lost its worker and no single row was to blame
    nodes_lost: int = 0  # how often the machine that it was on was gone
    alike: bool = False  # each row needs as much memory as another: none is to blame where it runs out
    # more than one: ranks of torch.distributed, each with the job's cores and GPUs; they have no rows
    processes: int = 1
    # of a job with several processes: a folder that all machines see; None = this machine's
    scratch: str | None = None
    after: tuple[str, ...] = ()  # names of jobs that must be done before; if one fails, so does this

    @property
    def blamed(self) -> dict[tuple[int, str], str]:
        """Row, what it is passed through ('' = all) -> why it is not tried."""
        return {(row, ""): reason for row, reason in self.poison_rows.items()} | self.kills


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
