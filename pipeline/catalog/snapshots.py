"""The catalog of a workspace in a bucket: a file of the driver's machine, of which the bucket has snapshots.

Shards are the truth: what was committed after the last snapshot is adopted from them. What the catalog was
told to take out is noted in the bucket at once, since the shard of that name is then made again and is
another.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copyfile

from pipeline import MillError
from pipeline.catalog import Catalog
from pipeline.storage import copies, faults, stores
from pipeline.storage.workspace import TEMPORARY, Workspace, fingerprint

EVERY = 120.0  # seconds between two snapshots while work goes on
SPENT = 0.05  # of the time, on snapshots at most
REMOVED = "removed"  # folder of notes: each a shard that was taken out since the last snapshot


def fetch(workspace: Workspace) -> None:
    """For those who only read: the newest snapshot, unless a driver works on this machine, whose catalog is
    newer. Nothing is done for a plain workspace.
    """
    if workspace.is_remote and not workspace.is_locked_here():
        _bring(workspace)


def _bring(workspace: Workspace) -> None:
    """Replaces the local catalog where it came from another snapshot than the bucket has."""
    catalog = workspace.catalog
    before = copies.etag_of_copy(catalog)
    facts = stores.head(catalog)
    if facts and (facts.etag != before or not catalog.exists()):
        _log(catalog).unlink(missing_ok=True)
        copies.copy_of(catalog, trusted=0.0)
    elif facts is None and before:  # there was one, and somebody took it away
        copies.forget(catalog)
        _log(catalog).unlink(missing_ok=True)


def _log(catalog: Path) -> Path:
    """DuckDB's own, of what is not in the file yet."""
    return catalog.with_name(f"{catalog.name}.wal")


class Snapshots:
    """Of a driver that holds the workspace."""

    def __init__(self, catalog: Catalog, is_held: Callable[[], bool]) -> None:
        self.catalog, self.is_held = catalog, is_held
        self._notes: list[Path] = []  # of what was taken out since the last snapshot
        self._saved, self._took = time.monotonic(), 0.0
        self._upload: threading.Thread | None = None
        self._failed: MillError | None = None

    def take_out_removed(self) -> None:
        """What was taken out after the snapshot was saved that the catalog came from; where it was made again
        and committed here since, it is adopted. The notes stay until the next snapshot.
        """
        folder = self.catalog.workspace.root / REMOVED
        self._notes = [each.path for each in stores.below(folder)]
        for note in self._notes.copy():
            shard = self._noted(note)
            if self.catalog.query("SELECT 1 FROM shards WHERE shard = ?", [shard]):
                self.catalog.remove_shard(shard)

    def _noted(self, note: Path) -> str:
        """The shard of a note: what it says, and where it is damaged the one that it is named after."""
        shard = bytes(stores.read(note)).decode(errors="replace")
        if fingerprint(shard) == note.name:
            return shard
        known = (shard for (shard,) in self.catalog.query("SELECT shard FROM shards"))
        return next((shard for shard in known if fingerprint(shard) == note.name), "")

    def note(self, shard: str) -> None:
        """Before a shard is taken out of the catalog: a snapshot that still has it must not be believed."""
        path = self.catalog.workspace.root / REMOVED / fingerprint(shard)
        stores.put(path, shard.encode())
        self._notes.append(path)

    def renew(self, after: float | None = None) -> None:
        """Saves a snapshot in a thread of its own, not before so many seconds and later where saving takes
        long.
        """
        due = EVERY if after is None else after
        busy = self._upload is not None and self._upload.is_alive()
        least = self._took / SPENT if after is None else 0.0
        if not busy and time.monotonic() - self._saved >= max(due, least):
            self.save(wait=False)

    def save(self, *, wait: bool = True) -> None:
        """StoreError where the store refuses, told when it is known."""
        self._join()
        if not self.is_held() or not self.catalog.path.exists():
            return
        self.catalog.checkpoint()
        file = self.catalog.path.with_name(f"{TEMPORARY}snapshot-{self.catalog.path.name}")
        copyfile(self.catalog.path, file)
        notes, self._notes = self._notes, []
        self._upload = threading.Thread(target=self._send, args=(file, notes))
        self._saved = time.monotonic()
        self._upload.start()
        if wait:
            self._join()

    def _send(self, file: Path, notes: list[Path]) -> None:
        began = time.monotonic()
        try:
            faults.reached("snapshot begins")
            copies.saved(self.catalog.path, stores.put(self.catalog.path, file))
            faults.reached("snapshot ends")
            stores.delete_all(notes)
        except (MillError, OSError) as error:
            self._failed = error if isinstance(error, MillError) else MillError(str(error))
        finally:
            file.unlink(missing_ok=True)
        self._took = time.monotonic() - began

    def _join(self) -> None:
        if self._upload:
            self._upload.join()
            self._upload = None
        if self._failed:
            failed, self._failed = self._failed, None
            raise failed


def nothing(after: float | None) -> None:
    """What is done for a plain workspace."""


@contextmanager
def kept(catalog: Catalog, is_held: Callable[[], bool]) -> Iterator[Callable[[float | None], None]]:
    """While a driver works: the catalog is first that of the newest snapshot, and snapshots are saved at the
    end and when the function that this gives is called. For a plain workspace nothing is done.
    """
    if not catalog.workspace.is_remote:
        yield nothing
        return
    _bring(catalog.workspace)
    snapshots = Snapshots(catalog, is_held)
    catalog.before_removal = snapshots.note
    if catalog.path.exists():
        catalog.create()  # one of an earlier version is brought up to date
        snapshots.take_out_removed()
    try:
        yield snapshots.renew
    except stores.StoreError:  # it would fail again
        raise
    except BaseException:
        with suppress(MillError):
            snapshots.save()
        raise
    snapshots.save()


def save(catalog: Catalog, is_held: Callable[[], bool]) -> None:
    """A snapshot of a catalog that was made again or mended. Nothing is done for a plain workspace."""
    if catalog.workspace.is_remote:
        Snapshots(catalog, is_held).save()
