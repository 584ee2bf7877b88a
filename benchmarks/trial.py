"""One piece of work in a process of its own: how it ended, what it said, its time and its memory."""

import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# a file that code from hostile data would make
MARKER = Path(tempfile.gettempdir()) / "controlmill-code-was-run"
HUNG, KEPT = "hung", 20_000  # characters of what it said


@dataclass(frozen=True)
class Verdict:
    status: int | str  # of the process; the signal's name where one ended it, HUNG past the limit
    said: str
    seconds: float
    peak: int  # bytes
    before: int  # bytes of the process that it was forked from, which its peak has in it

    @property
    def grown(self) -> int:
        """Bytes that the work took."""
        return self.peak - self.before

    @property
    def crashed(self) -> bool:
        return (isinstance(self.status, str) and self.status != HUNG) or "Traceback (most recent" in self.said


def judged(work: Callable[[], int], limit: float) -> Verdict:
    """Forked, so that what is imported already need not be imported again; `work` gives the exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    with tempfile.TemporaryFile() as said:
        ended, tells = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ended)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            # whatever stood in their place, such as what a test catches
            sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
            _work(work)
        os.close(tells)
        hung = not select.select([ended], [], [], limit)[0]
        if hung:
            os.kill(child, signal.SIGKILL)
        os.close(ended)
        _, status, used = os.wait4(child, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    ended_by = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    seconds, before = time.monotonic() - began, pages * os.sysconf("SC_PAGE_SIZE")
    return Verdict(HUNG if hung else ended_by, text[-KEPT:], seconds, used.ru_maxrss * 1024, before)


def _work(work: Callable[[], int]) -> None:
    status = 70
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
