"""The DuckDB catalog: facts about shards, asked here and committed here, many shards in one transaction."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline import MillError
from pipeline.catalog import connections, indexing
from pipeline.catalog import selections as selecting
from pipeline.catalog.connections import CatalogFile, CatalogHeld, Rows, is_damage
from pipeline.catalog.image_rows import Memory
from pipeline.catalog.indexing import DetectorRecord
from pipeline.catalog.schema import migrate
from pipeline.catalog.selection_checks import check_selections, try_all
from pipeline.catalog.selections import FIRST_PARTS, Selection
from pipeline.storage import faults
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import TEMPORARY, Workspace

CHECKPOINT = "CHECKPOINT"
LEFT = "SELECT count(*), max(shard_number) FROM shard_rows WHERE kind = 'images'"
STRANDED = "stranded"  # a setting: files may be left of images that were taken out
COMMIT_MEMORY = "256MiB"  # of DuckDB: a driver has what is known in memory beside it
BATCH_ROWS = 2**17  # of an answer that is read as it comes

__all__ = ["Catalog", "CatalogHeld", "Selection", "check_selections"]


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
        self._file = CatalogFile(self.path, workspace.address, say)
        self.reading, self.at_most = self._file.reading, self._file.at_most
        # called with a shard that is to be taken out
        self.before_removal: Callable[[str], None] = lambda shard: None
        self._current = False  # until a question found it so
        self._memory = Memory()  # of the images, between commits
        self._left: list[tuple[Any, ...]] = []  # the shards of images when this process last committed
        self._measures: Collection[str] = ()
        self._selections: dict[str, Selection] = {}  # that `pairs` is made of, where this process made it

    def create(self) -> None:
        """Makes the file if it is missing, whole or not at all, and brings an older one up to date."""
        path = self.path
        if not path.exists():
            temporary = path.with_name(f"{TEMPORARY}{path.name}")
            temporary.unlink(missing_ok=True)
            with self._file.sentences(), duckdb.connect(str(temporary)) as connection:
                migrate(connection)
                connection.execute(CHECKPOINT)
            temporary.replace(path)
        else:
            with self._file.open(read_only=False) as connection:
                # refuses another program's database before anything is written to it
                self._file.is_current(connection)
                migrate(connection, lambda: indexing.link_all_scores(connection, self.workspace))

    def close(self) -> None:
        """Lets go of what a driver keeps between its commits; the next commit reads it again."""
        self._memory.forget()

    def checkpoint(self) -> None:
        """Puts all of it into the one file, which can then be renamed; closing on a full disk leaves some in
        the log and says nothing.
        """
        with self._file.open(read_only=False) as connection:
            connection.execute(CHECKPOINT)

    @contextmanager
    def transaction(self, *, limited: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """All of it or nothing of it."""
        with (
            self._file.open(read_only=False, most_memory=COMMIT_MEMORY) as connection,
            self._file.limited(connection) if limited else nullcontext(),
        ):
            connection.begin()
            try:
                yield connection
            except BaseException:
                with suppress(duckdb.Error):  # what went wrong before matters more
                    connection.rollback()
                raise
            faults.reached("commit begins")
            connection.commit()
            faults.reached("commit ends")

    # -- questions -------------------------------------------------------------------------------------------

    def query(
        self,
        sql: str,
        parameters: Iterable[Any] | Mapping[str, Any] = (),
        *,
        most_memory: str | None = None,  # that DuckDB holds, unless the catalog is held open
    ) -> list[tuple[Any, ...]]:
        """Rows of one read-only query; it can reach no file but the catalog.

        MillError where the catalog is missing, damaged, of another version or held by another process, where
        the query takes longer than QUERY_LIMIT, or where it asks for pairs and a `where` or `select:` of the
        manifest fails on the data.
        """
        given = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
        ask = lambda connection: connection.execute(sql, given).fetchall()
        rows: list[tuple[Any, ...]] = self._asked(sql, ask, most_memory)
        return rows

    def _asked(
        self, sql: str, ask: Callable[[duckdb.DuckDBPyConnection], Rows], most_memory: str | None = None
    ) -> Rows:
        with self._file.open(read_only=True, most_memory=most_memory) as connection:
            self._must_be_current(connection)
            try:
                return self._file.ask(connection, lambda: ask(connection), connections.QUERY_LIMIT)
            except (
                duckdb.ConversionException,
                duckdb.InvalidInputException,
                duckdb.OutOfRangeException,
            ) as error:
                if "pair" not in sql:
                    raise
                # names the key whose SQL some row of the data does not agree with
                try_all(connection, self._selections, self._measures)
                raise MillError(
                    f"A `where` or `select:` of the manifest fails on the data: {str(error).splitlines()[0]}"
                ) from error

    def arrow(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """The rows of one read-only query as an Arrow table, with the errors of `query`."""

        def ask(connection: duckdb.DuckDBPyConnection) -> pa.Table:
            relation = connection.sql(sql, params=dict(parameters))
            # its name in DuckDB 1
            return (getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table)()

        return self._asked(sql, ask)

    def read_batches(
        self, sql: str, use: Callable[[pa.RecordBatchReader], None], most_memory: str | None = None
    ) -> None:
        """Hands the rows of one read-only query to `use` as Arrow batches, as they come. `most_memory` bounds
        what DuckDB holds, "128MB", unless the catalog is held open.
        """
        with self._file.open(read_only=True, most_memory=most_memory) as connection:
            self._must_be_current(connection)
            with connection.cursor() as cursor:  # nothing else is under way in it

                def ask() -> None:
                    rows = cursor.sql(sql)
                    # DuckDB 1 has it under another name
                    reader = getattr(rows, "to_arrow_reader", None) or rows.fetch_arrow_reader
                    use(reader(BATCH_ROWS))

                self._file.ask(cursor, ask, connections.QUERY_LIMIT)

    def table(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of what a person asked; MillError where the SQL is wrong."""
        with self._file.open(read_only=True) as connection:

            def ask() -> tuple[list[str], list[tuple[Any, ...]]]:
                result = connection.execute(sql)
                return (
                    ([column[0] for column in result.description or []], result.fetchall())
                    if result
                    else ([], [])
                )

            self._must_be_current(connection)
            try:
                return self._file.ask(connection, ask)
            except duckdb.Error as error:
                if is_damage(error):
                    raise
                raise MillError(f"The query failed: {error}") from error

    def row(self, sql: str, parameters: Iterable[Any] = ()) -> tuple[Any, ...]:
        return self.query(sql, parameters)[0]

    def _must_be_current(self, connection: duckdb.DuckDBPyConnection) -> None:
        """The same names meant other things in earlier schemas."""
        if not self._current and not self._file.is_current(connection):
            raise MillError(
                f"The catalog {self.path} was made by an earlier version: `controlmill run MANIFEST` or"
                f" `controlmill catalog rebuild {self.workspace.address}` brings it up to date."
            )
        self._current = True

    # -- what is in force ----------------------------------------------------------------------------------

    def activate(self, settings: Mapping[str, str], detectors: Iterable[DetectorRecord]) -> None:
        """Records which image key, captions and detectors the views show: those of the manifest
        now in force.
        """
        with self.transaction() as connection:
            connection.execute("DELETE FROM settings WHERE name <> ?", [STRANDED])
            for name, value in settings.items():
                connection.execute("INSERT INTO settings VALUES (?, ?)", [name, value])
            connection.execute("UPDATE detectors SET current = false")
            for detector in detectors:
                indexing.record_detector(connection, detector, current=True)

    def define_pairs(self, selections: dict[str, Selection], measures: Collection[str]) -> None:
        """Makes the view `pairs`: for each condition its `ok` rows that the manifest's where, order_by and
        limit select. What those say is tried on the first parts; where later rows do not agree with it, the
        query that asks for pairs tells.
        """
        check_selections(selections, measures)
        with self._file.open(read_only=False) as connection, self._file.limited(connection):
            connection.execute(selecting.candidates(measures))
            try_all(connection, selections, measures, FIRST_PARTS)
            connection.execute(selecting.pairs(selections, measures))
        self._selections, self._measures = selections, measures

    def has_pairs(self, condition: str) -> bool:
        """Whether the selection leaves any; most often there is one in the first parts."""
        it = self._selections.get(condition)
        if it is not None:
            first = selecting.first_rows(condition, replace(it, limit=None), self._measures)
            if self.query(f"SELECT 1 FROM {first} pair LIMIT 1"):
                return True
        return bool(self.query("SELECT 1 FROM pair_rows WHERE condition = ? LIMIT 1", [condition]))

    def failing(
        self, selections: dict[str, Selection], measures: Collection[str], image_key: str
    ) -> list[str]:
        """A line for each `where` and `order_by` that fails on the rows that there are; writes nothing."""
        with self._file.open(read_only=True) as connection, self._file.limited(connection):
            if not self._file.is_current(connection):
                return []
            shown = connection.execute("SELECT value FROM settings WHERE name = 'image_key'").fetchone()
            if shown != (image_key,):  # other rows than those that will be chosen from
                return []
            connection.execute(selecting.candidates(measures, "TEMPORARY VIEW"))
            try:
                try_all(connection, selections, measures, FIRST_PARTS)
            except MillError as error:
                return str(error).splitlines()
        return []

    # -- commits: shards, in one transaction -----------------------------------------------------------------

    def commit(self, *shards: Shard) -> None:
        """Puts the facts of these shards into the catalog, in their order. MillError, and nothing is put in,
        where a shard of captions, maps or latents has not one row for each readable image of its part.
        """
        with self._indexing() as connection:
            misfits = indexing.index_shards(connection, self.workspace, shards, self._memory)
            if misfits:
                raise MillError(
                    f"The shard {misfits[0].path} does not fit its images: run the same command again."
                )

    def commit_fitting(self, shards: Sequence[Shard]) -> int:
        """Of a rebuild: leaves out what does not fit its images; returns how many shards went in."""
        with self._indexing() as connection:
            return len(shards) - len(indexing.index_shards(connection, self.workspace, shards, self._memory))

    @contextmanager
    def _indexing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A transaction that puts shards in or takes them out. What is kept in memory of the images is
        forgotten where it fails, or where another has written since the last one.
        """
        try:
            with self.transaction() as connection:
                if connection.execute(LEFT).fetchall() != self._left:
                    self._memory.forget()
                yield connection
                left = connection.execute(LEFT).fetchall()
        except BaseException:
            self._memory.forget()
            raise
        self._left = left

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

    def remove_shard(self, path: str) -> None:
        """Takes a shard and all its rows out; what was made from it is taken out with its images."""
        self.before_removal(path)
        with self._indexing() as connection:
            indexing.remove_shards(connection, [path], self._memory)

    def note_stranded(self, *, there: bool = True) -> None:
        """Whether there may be files that no run can adopt, beside those of images that are lost."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM settings WHERE name = ?", [STRANDED])
            if there:
                connection.execute("INSERT INTO settings VALUES (?, '')", [STRANDED])

    def may_be_stranded(self) -> bool:
        """Whether anything was taken out, so that it is worth to look at all files."""
        lost = "SELECT 1 FROM lost_rows UNION ALL SELECT 1 FROM settings WHERE name = ? LIMIT 1"
        return bool(self.query(lost, [STRANDED]))

    def record_run(self, **row: Any) -> None:
        """In place of what was known of the run; its name stays where the row says none."""
        with self.transaction() as connection:
            known = connection.execute("SELECT name FROM runs WHERE run = ?", [row["run"]]).fetchone()
            connection.execute("DELETE FROM runs WHERE run = ?", [row["run"]])
            indexing.insert(connection, "runs", {"name": known[0] if known else None} | row)

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
