"""Ends a wait for a Ray that is gone: a call that its head does not answer never comes back, and a minute
later Ray ends the process without a sentence.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

from pipeline import NOT_COMPLETE

PATIENCE = 45.0  # seconds in which the driver itself finds out that Ray is gone, as it does between two calls
LOOKS = 0.3  # seconds between two looks
AGAIN = "CONTROLMILL_BEGUN_AGAIN"  # variable: how often the command was
MOST = 5  # times


class Watchdog:
    """A thread of the driver. `fault` tells what of Ray is gone, '' = nothing; `lost` is called, and does not
    come back, where that is so for longer than PATIENCE.
    """

    def __init__(self, fault: Callable[[], str], lost: Callable[[str], object]) -> None:
        self._fault, self._lost = fault, lost
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        since: float | None = None
        while not self._ended.wait(LOOKS):
            fault = self._fault()
            since = (since or time.monotonic()) if fault else None
            if since and time.monotonic() - since > PATIENCE:
                self._lost(fault)
                return

    def end(self) -> None:
        self._ended.set()


def begin_again(why: str) -> None:
    """In place of this process the same command, which goes on from what is committed; so many times."""
    count = int(os.environ.get(AGAIN, "0")) + 1
    if count > MOST:
        give_up(why)
    os.environ[AGAIN] = str(count)
    print(f"Ray itself was lost ({why}), and does not answer any more: the command begins again.", flush=True)
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_up(why: str) -> None:
    """Ends this process, whose main thread waits for ever."""
    print(
        f"controlmill: Ray itself was lost ({why}), and does not answer any more: run the same command again;"
        " it goes on from what is committed.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(NOT_COMPLETE)
