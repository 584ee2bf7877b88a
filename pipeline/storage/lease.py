"""The lease of a workspace in a bucket: one driver at a time, on whichever machine.

An object that its holder renews, each time only if it is still its own. No clock is compared with another: a
lease whose ETag has not changed for a while on our own clock is nobody's any more.
"""

import _thread
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline import MillError
from pipeline.storage import faults, stores
from pipeline.storage.stores import Version

BEAT = 10.0  # seconds between two renewals
LIFE = 60.0  # seconds without one after which a lease may be taken over
LOOK = 1.0  # seconds between two looks at another's lease
MINE = ".lease"  # beside the local copy: the token of this machine's last driver


class Lease:
    """Held from the moment that it is made; `lost` once another has it."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.token, self.lost = path, secrets.token_hex(8), False
        self._ended = threading.Event()
        self._version = self._acquire(say)
        _mine(path).write_text(self.token)
        self._beats = threading.Thread(target=self._renew, daemon=True)
        self._beats.start()

    def _acquire(self, say: Callable[[str], None]) -> Version:
        seen: Version | None = None
        since, told = 0.0, False
        dead = _mine(self.path).read_text() if _mine(self.path).exists() else ""
        while True:
            if version := stores.put_new(self.path, self._content()):
                return version
            try:
                content, version = stores.read_version(self.path)
            except FileNotFoundError:
                continue  # it was given back just now
            token, who = _told(content)
            if token == self.token:
                return version  # the answer to the first try was lost
            if seen and version.etag != seen.etag:
                raise MillError(f"Another run ({who}) is working in {self._place}: wait for it, or stop it.")
            now = time.monotonic()
            since = since if seen else now
            seen = version
            # this machine's lock is ours, so its last driver is dead
            if token == dead or now - since >= LIFE:
                if new := stores.put_in_place_of(self.path, self._content(), version):
                    return new
                seen = None
                continue
            if not told and now - since > LOOK:
                say(
                    f"{self._place} is held by another run ({who}): waiting for a sign of life, at most"
                    f" {LIFE:.0f} s."
                )
                told = True
            time.sleep(min(LOOK, LIFE / 10))

    @property
    def _place(self) -> str:
        return stores.shown(self.path.parent)

    def _content(self) -> bytes:
        facts = {
            "who": f"{socket.gethostname()}, process {os.getpid()}",
            "token": self.token,
            "renewed": datetime.now(UTC).isoformat(timespec="seconds"),
            "beat": secrets.token_hex(4),  # so that no two renewals have one ETag
        }
        return json.dumps(facts).encode()

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            # a store that does not answer now may do so at the next beat
            with suppress(stores.StoreError, OSError):
                version = stores.put_in_place_of(self.path, self._content(), self._version, patient=False)
                self._version = version or self._still_mine()
                faults.reached("lease renewed")
            if self.lost:
                _thread.interrupt_main()
                return

    def _still_mine(self) -> Version:
        """The version that it has where an answer was lost; else it is another's now."""
        content, version = b"", self._version
        with suppress(FileNotFoundError):
            content, version = stores.read_version(self.path)
        self.lost = _told(content)[0] != self.token
        return version

    def end(self) -> None:
        self._ended.set()
        self._beats.join()
        with suppress(FileNotFoundError, stores.StoreError):
            if not self.lost and _told(stores.read_version(self.path)[0])[0] == self.token:
                stores.delete(self.path)

    def sentence(self) -> MillError:
        who = "another run"
        with suppress(FileNotFoundError, stores.StoreError):
            who = _told(stores.read_version(self.path)[0])[1]
        return MillError(
            f"{self._place} was taken over by {who}, since this run did not renew its lease for {LIFE:.0f} s:"
            " this one stops; what it committed is kept."
        )


@contextmanager
def held(path: Path, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Holds the lease while the block lasts, and gives what tells whether it still does.

    MillError where another driver holds it, or took it over meanwhile.
    """
    lease = Lease(path, say)
    try:
        with _heard(lambda: lease.lost):
            yield lambda: not lease.lost
    except BaseException:
        if lease.lost:
            raise lease.sentence() from None
        raise
    finally:
        lease.end()


@contextmanager
def _heard(lost: Callable[[], bool]) -> Iterator[None]:
    """A shell starts what it leaves in the background with interrupts ignored, and with them that of a lost
    lease: that one is heard here, those of a keyboard are still ignored.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return

    def hear(*_: object) -> None:
        if lost():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def holder(path: Path) -> str:
    """Who holds it, '' where nobody does."""
    try:
        return _told(stores.read_version(path)[0])[1]
    except FileNotFoundError:
        return ""


def _told(content: bytes) -> tuple[str, str]:
    """Token and holder; a lease that is damaged is somebody's all the same."""
    try:
        facts = json.loads(content)
        return str(facts["token"]), str(facts["who"])
    except (ValueError, LookupError, TypeError):
        return "", "somebody"


def _mine(path: Path) -> Path:
    return path.with_name(MINE)
