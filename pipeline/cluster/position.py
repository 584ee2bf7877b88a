"""Where a job's process is among its rows, in a file of its node that outlives it; and its time limit."""

import faulthandler
import fcntl
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from annotate import memory
from pipeline.storage import faults

TOLD_EVERY = 0.5  # seconds between two notes to the driver of how far a job is
LEFT = 300.0  # seconds after which nobody will ask any more where an attempt was that has ended
HEX = "[0-9a-f]"
SOON = 60.0  # seconds that a batch of many rows may take where each row alone may take less


@dataclass(frozen=True)
class Limit:
    """Seconds that one row may take, and the manifest's key that says so."""

    seconds: float
    key: str


@dataclass(frozen=True)
class Trial:
    """What the driver says of one attempt at a job."""

    token: str  # of this attempt alone; the file is named so
    counts: str = ""  # name of the actor that is told how far the job is
    singly: bool = False  # one row at a time, so that a death tells which
    # row, what it is passed through -> why it is not tried there
    kills: Mapping[tuple[int, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Position:
    """What was under way when a process was gone."""

    rows: tuple[int, ...] = ()  # () = none: it was about to begin, or its function does not tell
    what: str = ""  # what the rows were passed through, such as a condition; '' = the whole of the work
    over: str = ""  # the sentence where it took longer than its limit


class RanOut(Exception):
    """Memory ran out in a job, whose process lives."""

    def __init__(self, reason: str, at: Position) -> None:
        super().__init__(reason, at)
        self.reason, self.at = reason, at


class _Attempt:
    """The attempt that this process is at."""

    def __init__(self, trial: Trial, tell: Callable[[int, str], object]) -> None:
        self.trial, self._tell = trial, tell
        self.done, self._told = 0, time.monotonic()
        self._file = os.open(path(trial.token), os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
        # a time-out writes where it was
        self._trace = os.open(_trace(trial.token), os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
        for file in (self._file, self._trace):
            fcntl.flock(file, fcntl.LOCK_EX)  # as long as this process lives
        self._length = 0
        self.at = Position()
        self.write((), "", None)

    def write(self, rows: Sequence[int], what: str, limit: Limit | None) -> None:
        self.at = Position(tuple(rows), what)
        over = f"took longer than {limit.seconds:g} s ({limit.key})" if limit else ""
        told = json.dumps([list(rows), what, over]).encode()
        os.pwrite(self._file, told.ljust(self._length), 0)
        self._length = max(self._length, len(told))
        if time.monotonic() - self._told > TOLD_EVERY:
            self._told = time.monotonic()
            self._tell(self.done, what)

    def arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._trace)

    def leave(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        for file in (self._file, self._trace):
            os.close(file)
        forget(self.trial.token)


_attempt: _Attempt | None = None  # one at a time in a process; None = no job of the cluster


@contextmanager
def attempt(trial: Trial, tell: Callable[[int, str], object] = lambda done, what: None) -> Iterator[None]:
    """Around a job in its process. `tell` gets how many rows are done and what is under way, now and then.
    Raises RanOut where memory ran out.
    """
    global _attempt
    sweep()
    _attempt = _Attempt(trial, tell)
    try:
        yield
    except Exception as error:
        if not memory.ran_out(error):
            raise
        raise RanOut(" ".join(f"{type(error).__name__}: {error}".split())[:300], _attempt.at) from None
    finally:
        _attempt.leave()
        _attempt = None


def begin(rows: Sequence[int], what: str = "", limit: Limit | None = None, *, loading: float = 0.0) -> None:
    """These rows are under way from now on, until the next call. Where they take longer than `limit` the
    process ends, even in a library that never returns; `loading` = seconds that come on top.

    Nothing happens outside a job of the cluster.
    """
    if _attempt is None:
        return
    _attempt.write(rows, what, limit)
    faults.reached("rows begin")
    if limit is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        _attempt.arm(allowance(len(rows), limit.seconds) + loading)


def end(done: int = 0) -> None:
    """Nothing is under way; so many rows more are done."""
    if _attempt is not None:
        _attempt.done += done
        begin(())


def allowance(rows: int, seconds: float) -> float:
    """Of a batch, in seconds: that of all its rows where it is short, else that of one, for a batch lasts
    seconds by far. Where that was too short its rows are tried one by one.
    """
    return min(max(1, rows) * seconds, max(seconds, SOON))


def at_a_time(count: int) -> int:
    """How many rows to take together: `count`, or one where the row is sought that ends the process."""
    return 1 if _attempt is not None and _attempt.trial.singly else count


def kills(what: str) -> dict[int, str]:
    """Row -> why it is not tried, of rows that end the process in `what` alone."""
    every = _attempt.trial.kills if _attempt is not None else {}
    return {row: reason for (row, place), reason in every.items() if place == what}


def read(token: str) -> Position | None:
    """On the node where the attempt was; None where it never was here."""
    try:
        rows, what, over = json.loads(path(token).read_bytes() or b"null")
        late = _trace(token).stat().st_size > 0
    except (OSError, ValueError, TypeError):
        return None
    forget(token)
    return Position(tuple(rows), what, over if late else "")


def forget(token: str) -> None:
    for file in (path(token), _trace(token)):
        file.unlink(missing_ok=True)


def path(token: str) -> Path:
    return Path(tempfile.gettempdir()) / f"controlmill-{token}"


@functools.cache
def sweep() -> None:
    """Once a process: removes what attempts left on this machine whose driver was killed with them."""
    for file in Path(tempfile.gettempdir()).glob(f"controlmill-{HEX * 12}-{HEX * 12}*"):
        with suppress(OSError):  # held by its process, or somebody else's
            if time.time() - file.stat().st_mtime > LEFT:
                with file.open() as opened:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()


def of_run(token: str) -> list[Path]:
    """The files that attempts of a run left on this machine; their tokens begin with the run's."""
    return list(Path(tempfile.gettempdir()).glob(f"controlmill-{token}-*"))


def _trace(token: str) -> Path:
    return Path(tempfile.gettempdir()) / f"controlmill-{token}-trace"
