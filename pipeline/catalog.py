"""The DuckDB catalog, opened and asked: facts about shards, each shard in one transaction.

DuckDB lets nobody read while another process has the file open for writing, and the reverse. So nothing keeps it open:
the driver opens it for one commit, readers for one query, and both wait for each other's lock.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline import MillError, commits
from pipeline.schema import is_current, migrate
from pipeline.shards import Shard
from pipeline.workspace import TEMPORARY, Workspace, stopping

LOCK_PATIENCE = 60.0  # seconds
CHECKPOINT = "CHECKPOINT"


@dataclass(frozen=True)
class Selection:
    """The rows of a condition that become pairs: all these conditions hold; each is named by its key in the manifest."""

    wheres: tuple[tuple[str, str], ...]
    order_by: str | None = None
    limit: int | None = None


class Catalog:
    def __init__(self, workspace: Workspace, path: Path | None = None) -> None:
        self.workspace = workspace
        self.path = path or workspace.catalog
        self._held: duckdb.DuckDBPyConnection | None = None  # while `reading`

    # -- opening ---------------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Makes the file if it is missing, whole or not at all, and brings an older one up to date."""
        path = self.path
        if not path.exists():
            temporary = path.with_name(f"{TEMPORARY}{path.name}")
            temporary.unlink(missing_ok=True)
            with _disk_errors(path), duckdb.connect(str(temporary)) as connection:
                migrate(connection)
                connection.execute(CHECKPOINT)
            temporary.replace(path)
        else:
            with self._open(read_only=False) as connection:
                migrate(connection)

    def gather(self) -> None:
        """Puts all of it into the one file, which can then be renamed; closing on a full disk leaves some in the log and says nothing."""
        with self._open(read_only=False) as connection:
            connection.execute(CHECKPOINT)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps the file open for many queries of this thread, since opening it costs more than most of them; others can't write until then."""
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
                f"There is no catalog at {path}: `controlmill run MANIFEST` makes it, `controlmill catalog rebuild` remakes it."
            )
        with _disk_errors(path), self._connect(read_only) as connection:  # closing writes too: DuckDB's checkpoint
            yield connection

    def _connect(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        """Waits for the lock of another process."""
        config: dict[str, Any] = {"enable_external_access": "false", "lock_configuration": "true", "threads": "2"}
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only, config=config)
            except (duckdb.Error, UnicodeDecodeError) as error:
                if stopping(error):
                    raise
                if "could not set lock" not in str(error).lower():
                    raise MillError(
                        f"The catalog {self.path} can't be opened ({str(error).splitlines()[0]}): "
                        "`controlmill catalog rebuild` makes it again from the shards."
                    ) from error
                if time.monotonic() > deadline:
                    raise MillError(
                        f"The catalog {self.path} stayed locked for {LOCK_PATIENCE:.0f} s by another process: close what has it open "
                        "for writing, then run the same command again."
                    ) from error
                time.sleep(0.02)

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """All of it or nothing of it."""
        with self._open(read_only=False) as connection:
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
        with self._open(read_only=True) as connection:
            try:
                return connection.execute(sql, dict(parameters) if isinstance(parameters, Mapping) else list(parameters)).fetchall()
            except duckdb.ConversionException as error:  # a `select:` that some row of the data does not agree with
                raise MillError(f"A `select:` of the manifest fails on the data: {str(error).splitlines()[0]}") from error
            except duckdb.CatalogException as error:
                if is_current(connection):
                    raise
                raise MillError(
                    f"The catalog {self.path} was made by an earlier version: `controlmill run MANIFEST` or `controlmill catalog rebuild` "
                    "brings it up to date."
                ) from error

    def table(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of what a person asked; MillError where the SQL is wrong."""
        with self._open(read_only=True) as connection:
            try:
                result = connection.execute(sql)
                return ([column[0] for column in result.description or []], result.fetchall()) if result else ([], [])
            except duckdb.Error as error:
                raise MillError(f"The query failed: {error}") from error

    def row(self, sql: str, parameters: Iterable[Any] = ()) -> tuple[Any, ...]:
        return self.query(sql, parameters)[0]

    # -- settings and plans ----------------------------------------------------------------------------------------------

    def settle(self, settings: dict[str, str], detectors: list[dict[str, Any]]) -> None:
        """Records which image key, captions and detectors the views show: those of the manifest now in force."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM settings")
            for name, value in settings.items():
                connection.execute("INSERT INTO settings VALUES (?, ?)", [name, value])
            connection.execute("UPDATE detectors SET current = false")
            for detector in detectors:
                commits.record_detector(connection, detector, current=True)

    def define_pairs(self, selections: dict[str, Selection], measures: Iterable[str]) -> None:
        """Makes the view `pairs`: for each condition its `ok` rows that the manifest's where, order_by and limit select."""
        columns = "".join(f", measures['{name}'] AS {name}" for name in measures)
        candidates = f"""
            CREATE OR REPLACE VIEW candidates AS
            SELECT condition, fingerprint, a.image, a.image_id, caption, source_caption, model_caption, fields, split, group_id, first_of_group,
                   width, height, raw_width, raw_height, raw_format, raw_bytes, aspect, sharpness, contrast, colour, grey,
                   a.shard AS map_shard, i.shard AS image_shard, i.row, part{columns}
            FROM annotations a JOIN images i USING (image) LEFT JOIN captions c USING (image)
            WHERE a.status = 'ok' AND i.status = 'ok'"""
        choices: dict[tuple[str, ...], list[str]] = {}  # what they ask for -> conditions: views are planned anew for each query
        with self._open(read_only=False) as connection:
            connection.execute(candidates)
            for condition, it in selections.items():
                own = f"(SELECT * FROM candidates WHERE condition = '{condition}')"
                probes = [(key, f"SELECT 1 WHERE (\n{where}\n)", f"SELECT * FROM {own} WHERE (\n{where}\n)") for key, where in it.wheres]
                key = ""
                try:
                    for key, *statements in (*probes, (it.wheres[-1][0], _choice([condition], it))):
                        for statement in statements:
                            parsed = duckdb.extract_statements(statement)
                            if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
                                raise MillError(f"{key} must be one condition for a WHERE, not several statements.")
                        connection.execute(f"SELECT count(*) FROM ({statements[-1]})").fetchall()
                except duckdb.Error as error:
                    raise MillError(
                        f"{key} does not work: {str(error).splitlines()[0]} "
                        '(`controlmill sql WORKSPACE "DESCRIBE candidates"` lists the columns)'
                    ) from error
                alone = condition if it.limit else ""  # the first so many are those of one condition
                choices.setdefault((alone, *(where for _, where in it.wheres)), []).append(condition)
            union = " UNION ALL ".join(_choice(alike, selections[alike[0]]) for alike in choices.values())
            connection.execute(f"CREATE OR REPLACE VIEW pairs AS {union}")

    # -- commits: one shard, one transaction ------------------------------------------------------------------------------

    def commit(self, shard: Shard) -> None:
        with self.transaction() as connection:
            if not commits.put(connection, self.workspace, shard):
                raise MillError(f"The shard {shard.path} does not fit its images: run the same command again.")

    def committed(self, kind: str, key: str, name: str | None = None) -> set[int]:
        """Part numbers of the shards that are in."""
        rows = self.query("SELECT part FROM shards WHERE kind = ? AND key = ? AND name IS NOT DISTINCT FROM ?", [kind, key, name])
        return {part for (part,) in rows}

    def lost(self, key: str) -> dict[int, list[str]]:
        """Part number -> addresses, in their order, of the images that were taken out and are not made again yet."""
        return dict(self.query("SELECT part, list(uri ORDER BY row) FROM lost_rows WHERE key = ? GROUP BY part ORDER BY part", [key]))

    def forget(self, path: str) -> None:
        """Takes a shard and all its rows out; what was made from it is taken out with its images."""
        with self.transaction() as connection:
            commits.remove(connection, path)

    def record_run(self, **row: Any) -> None:
        with self.transaction() as connection:
            connection.execute("DELETE FROM runs WHERE run = ?", [row["run"]])
            commits.insert(connection, "runs", row)

    def record_scores(self, rows: list[dict[str, Any]], systems: list[str]) -> None:
        """The scores of the systems in force; those that `rows` say nothing of keep theirs, and others lose them."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM scores WHERE system NOT IN (SELECT unnest(?)) OR system IN (SELECT unnest(?))",
                               [systems, sorted({row["system"] for row in rows})])  # fmt: skip
            if rows:
                connection.register("incoming", pa.Table.from_pylist(rows))
                connection.execute("INSERT INTO scores BY NAME SELECT * FROM incoming")
                connection.unregister("incoming")


def _choice(conditions: list[str], it: Selection) -> str:
    """The person's words stand alone inside their brackets, on lines of their own: neither a bracket nor a comment gets out."""
    names = ", ".join(f"'{name}'" for name in conditions)
    tail = (f" ORDER BY {it.order_by}\n" if it.order_by else "") + (f" LIMIT {it.limit}" if it.limit else "")
    wheres = " AND ".join(f"(\n{where}\n)" for _, where in it.wheres)
    return f"(SELECT * FROM (SELECT * FROM candidates WHERE condition IN ({names})) WHERE {wheres}{tail})"


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """DuckDB's words for a full or read-only disk, as the sentence that every other part of a run uses."""
    try:
        yield
    except duckdb.Error as error:
        sentence = stopping(error, str(path))
        if sentence is None:
            raise
        raise sentence from error
