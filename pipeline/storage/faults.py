"""Named places of the code at which a fault can be made to happen, so that what is promised can be tried
there, and a round that failed can be tried again.

Nothing happens unless the variable CONTROLMILL_FAULTS names a folder with a `schedule.json`, a list of Fault
(`benchmarks/torture.py` writes it). Visits of a point are counted over all processes of one machine.
"""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "CONTROLMILL_FAULTS"
POINTS = {
    "stage begins": "a stage, in the driver",
    "job begins": "a job, in its worker",
    "rows begin": "some rows of a job",
    "job ends": "a job, before its result is given back",
    "step ends": "a step of training",
    "file written": "a file under its temporary name, before it is synced and renamed, or sent to a bucket",
    "file named": "the same under its own name",
    "commit begins": "rows in the catalog, before the transaction is committed",
    "commit ends": "the same afterwards",
    "lease renewed": "the lease of a workspace in a bucket",
    "snapshot begins": "a snapshot of the catalog, before it is sent to a bucket",
    "snapshot ends": "the same afterwards",
}
WRITES = ("file written", "commit begins")  # where a disk can fail
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}  # raised
PAUSE = 2.0  # seconds after which a process that was stopped goes on


@dataclass(frozen=True)
class Fault:
    """At one visit of a point: an error of the disk, or a signal to the process that is there."""

    point: str
    visit: int  # counted from 1
    what: str  # of ERRORS, or a signal's name: KILL, TERM, INT, STOP
    after: float = 0.0  # seconds that the signal comes later, so that what follows the point meets it


def write_schedule(folder: Path, faults: Iterable[Fault]) -> None:
    """Begins anew: no visit was made yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    schedule = folder / "schedule.json"
    schedule.with_suffix(".new").write_text(json.dumps([asdict(fault) for fault in faults]))
    schedule.with_suffix(".new").replace(schedule)


def visits(folder: Path) -> Counter[str]:
    """How often each point was reached since the schedule was written."""
    return Counter(
        {point: _count(folder, point).stat().st_size for point in POINTS if _count(folder, point).exists()}
    )


def happened(folder: Path) -> list[Fault]:
    """What was done since the schedule was written."""
    with suppress(FileNotFoundError):
        return [Fault(**json.loads(line)) for line in (folder / "happened").read_text().splitlines()]
    return []


def reached(point: str) -> None:
    """Called where the point is. OSError where a full or read-only disk was asked for here."""
    place = os.environ.get(VARIABLE)
    if place:
        with suppress(FileNotFoundError):  # no schedule now
            _meet(Path(place), point)


def _meet(folder: Path, point: str) -> None:
    schedule = [Fault(**fault) for fault in json.loads((folder / "schedule.json").read_text())]
    visit = _visit(folder, point)
    for fault in schedule:
        if (fault.point, fault.visit) == (point, visit):
            with (folder / "happened").open("a") as file:
                file.write(f"{json.dumps(asdict(fault))}\n")
            _do(fault)


def _visit(folder: Path, point: str) -> int:
    """The number of this visit."""
    with _count(folder, point).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b".")
        file.flush()
        return os.fstat(file.fileno()).st_size


def _count(folder: Path, point: str) -> Path:
    """One byte for each visit."""
    return folder / f"{point}.visits"


def _do(fault: Fault) -> None:
    number = ERRORS.get(fault.what)
    if number is not None:
        raise OSError(number, os.strerror(number), f"at the point '{fault.point}'")
    pid, name = os.getpid(), fault.what
    if fault.after or name == "STOP":  # another process does it, since this one goes on, or does not
        pause = f"time.sleep({PAUSE}); os.kill({pid}, signal.SIGCONT)" if name == "STOP" else ""
        code = (
            f"import os, signal, time; time.sleep({fault.after}); os.kill({pid}, signal.SIG{name}); {pause}"
        )
        subprocess.Popen(
            [sys.executable, "-S", "-c", code], start_new_session=True, stderr=subprocess.DEVNULL
        )
        return
    os.kill(pid, signal.Signals[f"SIG{name}"])
