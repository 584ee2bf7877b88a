"""The DuckDB catalog, opened and asked: facts about shards, each shard in one transaction.

DuckDB lets nobody read while another process has the file open for writing, and the reverse. So nothing keeps
it open: the driver opens it for one commit, readers for one query, and both wait for each other's lock. The
driver waits as long as it takes and says who holds the file, since hours of work may hang on a notebook that
somebody left open; readers give up.
"""

import functools
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from pipeline import MillError
from pipeline.catalog import commits
from pipeline.catalog import selections as selecting
from pipeline.catalog.schema import is_current, migrate
from pipeline.catalog.selections import Selection
from pipeline.cluster.progress import duration
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import TEMPORARY, Workspace, stopping

LOCK_PATIENCE = 60.0  # seconds that a reader waits for the lock
# seconds after which a driver that waits says who holds the catalog, and says it again
FIRST_WORD, NEXT_WORD = 5.0, 60.0
# seconds for a query or a commit of the driver; what a person asks with `controlmill sql` may take any time
QUERY_LIMIT = 600.0
CHECKPOINT = "CHECKPOINT"
Rows = TypeVar("Rows")


class CatalogHeld(MillError):
    """Another process has the catalog open."""


class Catalog:
    def __init__(
        self,
        workspace: Workspace,
        path: Path | None = None,
        # of a driver: it waits for the lock without end, and says who holds it
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.workspace = workspace
        self.path = path or workspace.catalog
        self._say = say
        self._held: duckdb.DuckDBPyConnection | None = None  # while `reading`
        self._hurry: float | None = None  # while `at_most`
        self._selections: dict[str, Selection] = {}  # that `pairs` is made of, where this process made it

    # -- opening ---------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Makes the file if it is missing, whole or not at all, and brings an older one up to date."""
        path = self.path
        if not path.exists():
            temporary = path.with_name(f"{TEMPORARY}{path.name}")
            temporary.unlink(missing_ok=True)
            with self._sentences(), duckdb.connect(str(temporary)) as connection:
                migrate(connection)
                connection.execute(CHECKPOINT)
            temporary.replace(path)
        else:
            with self._open(read_only=False) as connection:
                # refuses another program's database before anything is written to it
                self._is_current(connection)
                migrate(connection, lambda: commits.link_all_scores(connection, self.workspace))

    def gather(self) -> None:
        """Puts all of it into the one file, which can then be renamed; closing on a full disk leaves some in
        the log and says nothing.
        """
        with self._open(read_only=False) as connection:
            connection.execute(CHECKPOINT)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps the file open for many queries of this thread, since opening it costs more than most of them;
        others can't write until then.
        """
        with self._open(read_only=True) as connection:
            self._held = connection
            try:
                yield
            finally:
                self._held = None

    @contextmanager
    def _open(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        path = self.path
        if read_only and self._held is not None:
            yield self._held
            return
        if not path.exists():
            raise MillError(
                f"There is no catalog at {path}: `controlmill run MANIFEST` makes it, `controlmill catalog"
                " rebuild` remakes it."
            )
        # closing writes too: DuckDB's checkpoint
        with self._sentences(), self._connect(read_only) as connection:
            yield connection

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """Within it nothing waits longer for another process: CatalogHeld instead."""
        before, self._hurry = self._hurry, seconds
        try:
            yield
        finally:
            self._hurry = before

    def _connect(self, read_only: bool) -> duckdb.DuckDBPyConnection:
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
        began = time.monotonic()
        word = began + FIRST_WORD
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only, config=_config())
            except (duckdb.Error, UnicodeDecodeError) as error:
                if "could not set lock" not in str(error).lower():
                    raise stopping(error, str(self.path)) or self._damage(error) from error
                now, holder = time.monotonic(), _holder(error)
                if patience is not None and now - began >= patience:
                    raise CatalogHeld(
                        f"The catalog {self.path} is open in {holder}: close it there, then run the same"
                        " command again."
                    ) from error
                if now >= word:
                    say = self._say or (lambda line: print(line, file=sys.stderr, flush=True))
                    say(
                        f"The catalog is held by {holder}: waiting, this goes on when it is closed there"
                        f" ({self.path})."
                    )
                    word = now + NEXT_WORD
                time.sleep(0.02 if now - began < FIRST_WORD else 0.2)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """DuckDB's words for a full or read-only disk and for a damaged file, as sentences that name the
        remedy.
        """
        try:
            yield
        except duckdb.Error as error:
            if sentence := stopping(error, str(self.path)):
                raise sentence from error
            if _damaged(error):
                raise self._damage(error) from error
            raise

    def _is_current(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """MillError where the file is another program's database."""
        try:
            return is_current(connection)
        except duckdb.CatalogException as error:
            raise self._damage(error) from error

    def _damage(self, error: Exception) -> MillError:
        return MillError(
            f"The catalog {self.path} is damaged or can't be read ({str(error).splitlines()[0]}): "
            f"`controlmill catalog rebuild {self.workspace.root}` makes it again from the shards."
        )

    @contextmanager
    def _limited(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
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

    def _too_long(self, limit: float) -> MillError:
        return MillError(
            f"A query of the catalog {self.path} did not end within {duration(limit)} and was stopped;"
            " everything committed is kept. Simplify `where` and `order_by` in the manifest where they hold"
            " heavy SQL, then run the same command again."
        )

    def _ask(
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
                while not asked.done():
                    connection.interrupt()
                    wait([asked], 0.1)
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise self._too_long(limit or 0.0) from error

    @contextmanager
    def transaction(self, *, limited: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """All of it or nothing of it."""
        with (
            self._open(read_only=False) as connection,
            self._limited(connection) if limited else nullcontext(),
        ):
            connection.begin()
            try:
                yield connection
            except BaseException:
                with suppress(duckdb.Error):  # what went wrong before matters more
                    connection.rollback()
                raise
            connection.commit()

    def query(self, sql: str, parameters: Iterable[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of one read-only query; it can reach no file but the catalog."""
        given = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
        with self._open(read_only=True) as connection:
            try:
                return self._ask(connection, lambda: connection.execute(sql, given).fetchall(), QUERY_LIMIT)
            except (
                duckdb.ConversionException,
                duckdb.InvalidInputException,
                duckdb.OutOfRangeException,
            ) as error:
                if "pairs" not in sql:
                    raise
                # names the key whose SQL some row of the data does not agree with
                _try(connection, self._selections)
                raise MillError(
                    f"A `where` or `select:` of the manifest fails on the data: {str(error).splitlines()[0]}"
                ) from error
            except duckdb.CatalogException as error:
                if self._is_current(connection):
                    raise
                raise MillError(
                    f"The catalog {self.path} was made by an earlier version: `controlmill run MANIFEST` or"
                    " `controlmill catalog rebuild` brings it up to date."
                ) from error

    def table(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of what a person asked; MillError where the SQL is wrong."""
        with self._open(read_only=True) as connection:

            def ask() -> tuple[list[str], list[tuple[Any, ...]]]:
                result = connection.execute(sql)
                return (
                    ([column[0] for column in result.description or []], result.fetchall())
                    if result
                    else ([], [])
                )

            try:
                return self._ask(connection, ask)
            except duckdb.Error as error:
                if _damaged(error):
                    raise
                if isinstance(error, duckdb.CatalogException):
                    self._is_current(connection)
                raise MillError(f"The query failed: {error}") from error

    def row(self, sql: str, parameters: Iterable[Any] = ()) -> tuple[Any, ...]:
        return self.query(sql, parameters)[0]

    # -- settings and plans ----------------------------------------------------------------------------------

    def settle(self, settings: dict[str, str], detectors: list[dict[str, Any]]) -> None:
        """Records which image key, captions and detectors the views show: those of the manifest
        now in force.
        """
        with self.transaction() as connection:
            connection.execute("DELETE FROM settings")
            for name, value in settings.items():
                connection.execute("INSERT INTO settings VALUES (?, ?)", [name, value])
            connection.execute("UPDATE detectors SET current = false")
            for detector in detectors:
                commits.record_detector(connection, detector, current=True)

    def define_pairs(self, selections: dict[str, Selection], measures: Iterable[str]) -> None:
        """Makes the view `pairs`: for each condition its `ok` rows that the manifest's where, order_by and
        limit select.
        """
        measures = list(measures)
        check_selections(selections, measures)
        with self._open(read_only=False) as connection, self._limited(connection):
            connection.execute(selecting.candidates(measures))
            _try(connection, selections)
            connection.execute(selecting.pairs(selections))
        self._selections = selections

    def failing(self, selections: dict[str, Selection], measures: Iterable[str], image_key: str) -> list[str]:
        """A line for each `where` and `order_by` that fails on the rows that there are; writes nothing."""
        with self._open(read_only=True) as connection, self._limited(connection):
            if not self._is_current(connection):
                return []
            shown = connection.execute("SELECT value FROM settings WHERE name = 'image_key'").fetchone()
            if shown != (image_key,):  # other rows than those that will be chosen from
                return []
            connection.execute(selecting.candidates(measures, "TEMPORARY VIEW"))
            try:
                _try(connection, selections)
            except MillError as error:
                return str(error).splitlines()
        return []

    # -- commits: one shard, one transaction -----------------------------------------------------------------

    def commit(self, shard: Shard) -> None:
        with self.transaction() as connection:
            if not commits.put(connection, self.workspace, shard):
                raise MillError(
                    f"The shard {shard.path} does not fit its images: run the same command again."
                )

    def committed(self, kind: str, key: str, name: str | None = None) -> set[int]:
        """Part numbers of the shards that are in."""
        rows = self.query(
            "SELECT part FROM shards WHERE kind = ? AND key = ? AND name IS NOT DISTINCT FROM ?",
            [kind, key, name],
        )
        return {part for (part,) in rows}

    def lost(self, key: str) -> dict[int, list[str]]:
        """Part number -> addresses, in their order, of the images that were taken out and are not made again
        yet.
        """
        return dict(
            self.query(
                "SELECT part, list(uri ORDER BY row) FROM lost_rows WHERE key = ? GROUP BY part ORDER BY"
                " part",
                [key],
            )
        )

    def forget(self, path: str) -> None:
        """Takes a shard and all its rows out; what was made from it is taken out with its images."""
        with self.transaction() as connection:
            commits.remove(connection, path)

    def record_run(self, **row: Any) -> None:
        """In place of what was known of the run; its name stays where the row says none."""
        with self.transaction() as connection:
            known = connection.execute("SELECT name FROM runs WHERE run = ?", [row["run"]]).fetchone()
            connection.execute("DELETE FROM runs WHERE run = ?", [row["run"]])
            commits.insert(connection, "runs", {"name": known[0] if known else None} | row)

    def name_runs(self, names: Mapping[str, str | None]) -> None:
        """What pages call the runs; a run that is not among these has no name any more."""
        before = self.query("SELECT run, name FROM runs")
        changed = {run: names.get(run) for run, name in before if name != names.get(run)}
        if changed:
            with self.transaction() as connection:
                for run, name in changed.items():
                    connection.execute("UPDATE runs SET name = ? WHERE run = ?", [name, run])

    def record_scores(self, rows: list[dict[str, Any]], systems: list[str]) -> None:
        """The scores of the systems in force; those that `rows` say nothing of keep theirs, and others lose
        them.
        """
        with self.transaction() as connection:
            connection.execute(
                """
                DELETE FROM estimate_rows
                WHERE system NOT IN (SELECT unnest(?)) OR system IN (SELECT unnest(?))""",
                [systems, sorted({row["system"] for row in rows})],
            )
            if rows:
                connection.register("incoming", pa.Table.from_pylist(rows))
                connection.execute("INSERT INTO estimate_rows BY NAME SELECT * FROM incoming")
                connection.unregister("incoming")


def check_selections(selections: dict[str, Selection], measures: Iterable[str]) -> None:
    """MillError has a line for each `where` and `order_by` that does not work or would choose others each
    time; needs no workspace.
    """
    with duckdb.connect(config=_config()) as connection:
        if found := selecting.mistakes(connection, selections, _unstable()):
            raise MillError("\n".join(found))
        migrate(connection)
        connection.execute(selecting.candidates(measures))
        _try(connection, selections)


def _try(connection: duckdb.DuckDBPyConnection, selections: dict[str, Selection]) -> None:
    """Asks for the rows that each condition selects; MillError names the keys whose SQL does not fit the
    columns or the rows there are.
    """
    found: dict[str, str] = {}
    for name, chosen, key, sql in (
        (one, it, *probe) for one, it in selections.items() for probe in selecting.probes(one, it)
    ):
        # the rows that those leave are not known
        if key == chosen.order_key and any(where in found for where, _ in chosen.wheres):
            sql = dict(selecting.probes(name, replace(chosen, wheres=(("", "false"),))))[key]
        try:
            connection.execute(sql).fetchall()
        except duckdb.Error as error:
            if _damaged(error) or isinstance(error, duckdb.InterruptException):
                raise
            near = [line for line in str(error).splitlines()[1:] if line.startswith("Candidate")]
            found[key] = " ".join([str(error).splitlines()[0], *near])
    if found:
        hint = '(`controlmill sql WORKSPACE "DESCRIBE candidates"` lists the columns)'
        raise MillError("\n".join(f"{key} does not work: {problem} {hint}" for key, problem in found.items()))


@functools.cache
def _unstable() -> set[str]:
    with duckdb.connect() as connection:
        return selecting.unstable(connection)


@functools.cache
def _config() -> dict[str, Any]:
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


def _damaged(error: Exception) -> bool:
    """Whether it is the file's fault and not that of the SQL; a checksum that is wrong raises
    the base class.
    """
    return type(error) is duckdb.Error or isinstance(
        error, duckdb.IOException | duckdb.FatalException | duckdb.SerializationException
    )
