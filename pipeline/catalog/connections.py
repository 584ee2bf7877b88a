"""The catalog's file: opened for one query or one commit, and closed again.

DuckDB lets nobody read while another process has the file open for writing, and the reverse. So nothing keeps
it open: the driver opens it for one commit, readers for one query, and both wait for each other's lock. The
driver waits as long as it takes and says who holds the file, since hours of work may hang on a notebook that
somebody left open; readers give up.
"""

import functools
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import duckdb

from pipeline import MillError
from pipeline.catalog.schema import is_current
from pipeline.cluster.progress import duration
from pipeline.storage.stores import shown
from pipeline.storage.workspace import TEMPORARY, stopping

LOCK_PATIENCE = 60.0  # seconds that a reader waits for the lock
# seconds after which a driver that waits says who holds the catalog, and says it again
FIRST_WORD, NEXT_WORD = 5.0, 60.0
# seconds for a query or a commit of the driver; what a person asks with `controlmill sql` may take any time
QUERY_LIMIT = 600.0
MEMORY = "512MiB"  # of DuckDB, for a query or a commit; what needs more lies on the disk meanwhile
Rows = TypeVar("Rows")


class CatalogHeld(MillError):
    """Another process has the catalog open."""


class CatalogFile:
    """Who may open the file and how long that may take; DuckDB's errors as sentences."""

    def __init__(
        self,
        path: Path,
        place: str,  # of the workspace, for the command that makes the file again
        # of a driver: it waits for the lock without end, and says who holds it
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.place = path, place
        self._say = say
        self._held: duckdb.DuckDBPyConnection | None = None  # while `reading`
        self._hurry: float | None = None  # while `at_most`

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps the file open for many queries of this thread, since opening it costs more than most of them;
        others can't write until then.
        """
        with self.open(read_only=True) as connection:
            before, self._held = self._held, connection
            try:
                yield
            finally:
                self._held = before

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """Within it nothing waits longer for another process: CatalogHeld instead."""
        before, self._hurry = self._hurry, seconds
        try:
            yield
        finally:
            self._hurry = before

    @contextmanager
    def open(self, *, read_only: bool, most_memory: str | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for the length of the block; while `reading`, readers share the one that is open.

        MillError where the file is missing or damaged, or the disk is full or can't be written; CatalogHeld
        where another process has it open for too long.
        """
        if read_only and self._held is not None:
            yield self._held
            return
        if not self.path.exists():
            raise MillError(
                f"There is no catalog at {shown(self.path)}: `controlmill run MANIFEST` makes it,"
                " `controlmill catalog rebuild` remakes it."
            )
        # closing writes too: DuckDB's checkpoint
        with self.sentences(), self._connect(read_only, most_memory) as connection:
            yield connection

    def _connect(self, read_only: bool, most_memory: str | None = None) -> duckdb.DuckDBPyConnection:
        """Waits for the lock of another process: a reader for a minute, who writes and every query of a
        driver without end.
        """
        patience = (
            self._hurry
            if self._hurry is not None
            else LOCK_PATIENCE
            if read_only and self._say is None
            else None
        )
        bounds = self._room() | ({"memory_limit": most_memory} if most_memory else {})
        began = time.monotonic()
        word = began + FIRST_WORD
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only, config=config() | bounds)
            except (duckdb.Error, UnicodeDecodeError) as error:
                if "could not set lock" not in str(error).lower():
                    raise stopping(error, str(self.path)) or self._damage(error) from error
                now, holder = time.monotonic(), _holder(error)
                if patience is not None and now - began >= patience:
                    raise CatalogHeld(
                        f"The catalog {shown(self.path)} is open in {holder}: close it there, then run the"
                        " same command again."
                    ) from error
                if now >= word:
                    say = self._say or (lambda line: print(line, file=sys.stderr, flush=True))
                    say(
                        f"The catalog is held by {holder}: waiting, this goes on when it is closed there"
                        f" ({shown(self.path)})."
                    )
                    word = now + NEXT_WORD
                time.sleep(0.02 if now - began < FIRST_WORD else 0.2)

    def _room(self) -> dict[str, str]:
        """Where a query's memory ends, and where it goes on: a folder beside the catalog, which DuckDB makes
        when it is needed and removes at the end. On a disk that can't be written nothing is limited.
        """
        if not os.access(self.path.parent, os.W_OK):
            return {}
        folder = f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{self.path.name}"
        return {"memory_limit": MEMORY, "temp_directory": str(self.path.with_name(folder))}

    @contextmanager
    def sentences(self) -> Iterator[None]:
        """DuckDB's words for a full or read-only disk and for a damaged file, as sentences that name the
        remedy.
        """
        try:
            yield
        except duckdb.Error as error:
            if sentence := stopping(error, str(self.path)):
                raise sentence from error
            if is_damage(error):
                raise self._damage(error) from error
            raise

    def is_current(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """MillError where the file is another program's database."""
        try:
            return is_current(connection)
        except duckdb.CatalogException as error:
            raise self._damage(error) from error

    def _damage(self, error: Exception) -> MillError:
        return MillError(
            f"The catalog {shown(self.path)} is damaged or can't be read ({str(error).splitlines()[0]}): "
            f"`controlmill catalog rebuild {self.place}` makes it again from the shards."
        )

    @contextmanager
    def limited(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Stops what takes too long; a driver that waits for ever, without a line, is worse than one that
        ends.
        """
        began, limit = time.monotonic(), QUERY_LIMIT
        timer = threading.Timer(limit, connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        except duckdb.InterruptException as error:
            if time.monotonic() - began < limit:
                raise
            raise self._too_long(limit) from error
        finally:
            timer.cancel()

    def ask(
        self, connection: duckdb.DuckDBPyConnection, ask: Callable[[], Rows], limit: float | None = None
    ) -> Rows:
        """In a thread of its own, so that Ctrl-C and a time limit in seconds reach it: DuckDB itself does not
        look for them in every query.
        """
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            try:
                return asked.result(limit)
            except (TimeoutError, KeyboardInterrupt) as error:
                while not asked.done():  # the connection can't be closed before
                    with suppress(KeyboardInterrupt):  # a second one
                        connection.interrupt()
                        wait([asked], 0.1)
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise self._too_long(limit or 0.0) from error

    def _too_long(self, limit: float) -> MillError:
        return MillError(
            f"A query of the catalog {shown(self.path)} did not end within {duration(limit)} and was stopped;"
            " everything committed is kept. Simplify `where` and `order_by` in the manifest where they hold"
            " heavy SQL, then run the same command again."
        )


@functools.cache
def config() -> dict[str, str | bool | int | float | list[str]]:
    """Of every connection: no file but the catalog can be reached."""
    with duckdb.connect() as connection:
        known = {name for (name,) in connection.execute("SELECT * FROM duckdb_optimizers()").fetchall()}
    # DuckDB 2.0 waits for ever in this one where a UNION's branch has a LIMIT and another has none (seen from
    # 500,000 images on); versions before it do not know its name, and would refuse it.
    off = {"disabled_optimizers": "common_subplan"} if "common_subplan" in known else {}
    return {"enable_external_access": "false", "lock_configuration": "true", "threads": "2", **off}


def _holder(error: Exception) -> str:
    """Who has the lock, from DuckDB's message: `process 1234 (python3.12)`."""
    found = re.search(r"held in (.+?) \(PID (\d+)\)", str(error))
    return f"process {found[2]} ({Path(found[1]).name})" if found else "another process"


def is_damage(error: Exception) -> bool:
    """Whether it is the file's fault and not that of the SQL; a checksum that is wrong raises
    the base class.
    """
    return type(error) is duckdb.Error or isinstance(
        error, duckdb.IOException | duckdb.FatalException | duckdb.SerializationException
    )
