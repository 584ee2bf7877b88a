"""The DuckDB catalog: facts about shards, each shard in one transaction. It can be rebuilt from the files at any time.

DuckDB lets nobody read while another process has the file open for writing, and the reverse. So nothing keeps it open:
the driver opens it for one commit, readers for one query, and both wait for each other's lock.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline import MillError, shards
from pipeline.schema import is_current, migrate
from pipeline.shards import Shard
from pipeline.workspace import TEMPORARY, Workspace, stopping

LOCK_PATIENCE = 60.0  # seconds
# Before a file is renamed all of it must be in the file: closing on a full disk leaves it in the log beside it, and says nothing.
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

    @contextmanager
    def _open(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        path = self.path
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

    def query(self, sql: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of one read-only query; it can reach no file but the catalog."""
        with self._open(read_only=True) as connection:
            try:
                return connection.execute(sql, list(parameters)).fetchall()
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
                _record_detector(connection, detector, current=True)

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
        choices = []
        with self._open(read_only=False) as connection:
            connection.execute(candidates)
            for condition, it in selections.items():
                # The person's words stand alone inside their brackets, on lines of their own: neither a bracket nor a comment gets out.
                own = f"(SELECT * FROM candidates WHERE condition = '{condition}')"
                tail = (f" ORDER BY {it.order_by}\n" if it.order_by else "") + (f" LIMIT {it.limit}" if it.limit else "")
                choice = f"(SELECT * FROM {own} WHERE {' AND '.join(f'({chr(10)}{where}{chr(10)})' for _, where in it.wheres)}{tail})"
                probes = [(key, f"SELECT 1 WHERE (\n{where}\n)", f"SELECT * FROM {own} WHERE (\n{where}\n)") for key, where in it.wheres]
                key = ""
                try:
                    for key, *statements in (*probes, (it.wheres[-1][0], choice)):
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
                choices.append(choice)
            connection.execute(f"CREATE OR REPLACE VIEW pairs AS {' UNION ALL '.join(choices)}")

    # -- commits: one shard, one transaction ------------------------------------------------------------------------------

    def commit(self, shard: Shard) -> None:
        with self.transaction() as connection:
            if not commit_shard(connection, self.workspace, shard):
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
            _remove(connection, path)

    def record_run(self, **row: Any) -> None:
        with self.transaction() as connection:
            insert_run(connection, row)

    def record_scores(self, rows: list[dict[str, Any]]) -> None:
        """All scores of the manifest in force, in place of the former ones."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM scores")
            for row in rows:
                _insert(connection, "scores", row)


def rebuild(workspace: Workspace, finish: Any) -> tuple[int, list[str]]:
    """Makes the catalog again from the files; returns how many shards went in and which files are broken.

    `finish(catalog)` settles what the manifest decides, on the new catalog, before it takes the old one's place.
    """
    found, broken = [], []
    for path in workspace.all_shards():
        try:
            found.append(shards.verify(path))
        except shards.BROKEN as error:
            broken.append(f"{workspace.relative(path)}: {error}")
    found.sort(key=lambda shard: (list(shards.SCHEMAS).index(shard.facts["kind"]), shard.facts["part"], shard.path))
    temporary = workspace.root / f"{TEMPORARY}rebuild"
    shutil.rmtree(temporary, ignore_errors=True)  # of a rebuild that was killed
    temporary.mkdir()
    fresh = Catalog(workspace, temporary / "catalog.duckdb")
    fresh.create()
    with fresh.transaction() as connection:
        fitting = [shard for shard in found if commit_shard(connection, workspace, shard)]
    finish(fresh)
    with fresh._open(read_only=False) as connection:
        connection.execute(CHECKPOINT)
    workspace.catalog.with_suffix(".duckdb.wal").unlink(missing_ok=True)
    fresh.path.replace(workspace.catalog)
    temporary.rmdir()
    return len(fitting), broken


def commit_shard(connection: duckdb.DuckDBPyConnection, workspace: Workspace, shard: Shard) -> bool:
    """Puts a shard's facts in, in place of an earlier version of the same shard; False, and nothing in, where it does not fit its images."""
    facts, path = shard.facts, workspace.relative(shard.path)
    _remove(connection, path)
    connection.register("incoming", shards.read_light(shard.path))
    if facts["kind"] in ROW_ALIGNED and not _fits(connection, facts):
        connection.unregister("incoming")
        return False
    (number,) = connection.execute("SELECT coalesce(max(shard), 0) + 1 FROM shards").fetchall()[0]
    connection.execute(
        "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            number,
            facts["kind"],
            facts["key"],
            facts.get("name"),
            facts.get("image_key"),
            facts["part"],
            path,
            shard.rows,
            shard.bytes,
            shard.sha256,
            _now(),
        ],
    )
    if "detector" in facts:
        _record_detector(connection, facts["detector"], current=False)
    INSERTS[facts["kind"]](connection, number, facts)
    if facts.get("near") is not None:
        _group(connection, number, facts)
    connection.unregister("incoming")
    return True


def _insert_images(connection: duckdb.DuckDBPyConnection, shard: int, facts: dict[str, Any]) -> None:
    """Each image once, at the first address that showed it; each address once; a retry takes the place of what failed before."""
    same_key = "SELECT shard FROM shards WHERE kind = 'images' AND key = $key"
    key = {"key": facts["key"]}
    connection.execute("DELETE FROM lost_rows WHERE key = ? AND part = ?", [facts["key"], facts["part"]])
    if facts.get("retry"):
        failed = f"""SELECT image FROM image_rows WHERE status = 'failed' AND shard IN ({same_key}) AND (
            image_id IN (SELECT image_id FROM incoming)
            OR image IN (SELECT image FROM source_rows WHERE uri IN (SELECT uri FROM incoming)))"""
        connection.execute(f"CREATE TEMP TABLE gone AS {failed}", key)
        connection.execute("DELETE FROM source_rows WHERE image IN (SELECT image FROM gone)")
        connection.execute("DELETE FROM image_rows WHERE image IN (SELECT image FROM gone)")
        connection.execute("DROP TABLE gone")
    connection.execute(
        f"""INSERT INTO image_rows
            SELECT (SELECT coalesce(max(image), 0) FROM image_rows) + row_number() OVER (ORDER BY row), image_id, {shard}, row, status,
                   reason, width, height, raw_width, raw_height, raw_format, raw_bytes, group_id, split,
                   sharpness, contrast, colour, grey, phash
            FROM incoming
            WHERE image_id NOT IN (SELECT image_id FROM image_rows WHERE shard IN ({same_key}))
            QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY row) = 1""",
        key,
    )
    connection.execute(
        f"""INSERT INTO source_rows
            SELECT image_rows.image, {shard}, incoming.row, uri, caption, fields
            FROM incoming JOIN image_rows USING (image_id)
            WHERE image_rows.shard IN ({same_key}) AND uri NOT IN (SELECT uri FROM source_rows WHERE shard IN ({same_key}))
            QUALIFY row_number() OVER (PARTITION BY uri ORDER BY incoming.row) = 1""",
        key,
    )


def _group(connection: duckdb.DuckDBPyConnection, shard: int, facts: dict[str, Any]) -> None:
    """Near-duplicates take the group and the split of the earliest image they resemble; images of a part come in the source's order."""
    from pipeline import looks

    sql = """SELECT image, phash, min(image) OVER (PARTITION BY group_id) AS first, shard = $shard AS own FROM image_rows
             WHERE phash IS NOT NULL AND shard IN (SELECT shard FROM shards WHERE kind = 'images' AND key = $key) ORDER BY own, image"""
    found = connection.execute(sql, {"shard": shard, "key": facts["key"]}).fetchnumpy()
    images, hashes = found["image"], found["phash"].astype("uint64")
    own = len(images) - int(found["own"].sum())
    led = images[:own].searchsorted(found["first"][:own])
    leaders = looks.leaders(hashes[:own], hashes[own:], facts["near"], led)
    follows = leaders >= 0
    followers = pa.table({"image": images[own:][follows], "leader": images[leaders[follows]]})
    connection.register("followers", followers)
    connection.execute(
        """UPDATE image_rows SET group_id = l.group_id, split = l.split
           FROM followers JOIN image_rows l ON l.image = followers.leader WHERE image_rows.image = followers.image"""
    )
    connection.unregister("followers")


def _image_of(facts: dict[str, Any]) -> str:
    """The integer key of a row that is aligned with the images shard of the same part."""
    return f"""JOIN image_rows ON image_rows.row = incoming.row AND image_rows.image_id = incoming.image_id AND image_rows.shard =
        (SELECT shard FROM shards WHERE kind = 'images' AND key = '{facts["image_key"]}' AND part = {facts["part"]})
        WHERE incoming.status IS NOT NULL"""


def _fits(connection: duckdb.DuckDBPyConnection, facts: dict[str, Any]) -> bool:
    """Whether the shard has exactly one row for each readable image of its part: an orphan of another state of the source has not."""
    found = connection.execute(
        f"""SELECT (SELECT count(*) FROM incoming WHERE status IS NOT NULL), (SELECT count(*) FROM incoming {_image_of(facts)}),
                   (SELECT count(*) FROM image_rows JOIN shards USING (shard)
                    WHERE kind = 'images' AND key = $key AND part = $part AND image_rows.status = 'ok')""",
        {"key": facts["image_key"], "part": facts["part"]},
    ).fetchall()
    rows, matched, readable = found[0]
    return bool(rows == matched == readable)


def _insert_maps(connection: duckdb.DuckDBPyConnection, shard: int, facts: dict[str, Any]) -> None:
    connection.execute(
        f"""INSERT INTO annotation_rows SELECT image, {shard}, incoming.row, incoming.status, incoming.reason, seconds, measures
            FROM incoming {_image_of(facts)}"""
    )


def _insert_latents(connection: duckdb.DuckDBPyConnection, shard: int, facts: dict[str, Any]) -> None:
    connection.execute(
        f"INSERT INTO latent_rows SELECT image, {shard}, incoming.row, incoming.status, incoming.reason FROM incoming {_image_of(facts)}"
    )


def _insert_captions(connection: duckdb.DuckDBPyConnection, shard: int, facts: dict[str, Any]) -> None:
    connection.execute(
        f"INSERT INTO caption_rows SELECT image, {shard}, incoming.row, incoming.status, incoming.reason, caption FROM incoming {_image_of(facts)}"
    )


def _insert_samples(connection: duckdb.DuckDBPyConnection, shard: int, facts: dict[str, Any]) -> None:
    connection.execute(f"INSERT INTO sample_rows SELECT {shard}, row, image_id, hint_image_id, seed, status, reason, seconds FROM incoming")


def _insert_scores(connection: duckdb.DuckDBPyConnection, shard: int, facts: dict[str, Any]) -> None:
    connection.execute(
        f"""INSERT INTO score_rows SELECT {shard}, row, image_id, seed, status, reason, entry.key, entry.value
            FROM (SELECT *, unnest(map_entries("values")) AS entry FROM incoming)"""
    )


INSERTS = {
    "images": _insert_images, "captions": _insert_captions, "maps": _insert_maps, "latents": _insert_latents, "samples": _insert_samples,
    "scores": _insert_scores,
}  # fmt: skip
ROW_ALIGNED = {"captions", "maps", "latents"}  # with the images shard of the same part
ROWS_OF = {
    "images": "image_rows", "captions": "caption_rows", "maps": "annotation_rows", "latents": "latent_rows", "samples": "sample_rows",
    "scores": "score_rows",
}  # fmt: skip


def _remove(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    found = connection.execute("SELECT shard, kind, key, part FROM shards WHERE path = ?", [path]).fetchall()
    if not found:
        return
    shard, kind, key, part = found[0]
    if kind == "images":
        children = "SELECT path FROM shards WHERE kind <> 'images' AND image_key = ? AND part = ?"
        for (child,) in connection.execute(children, [key, part]).fetchall():
            _remove(connection, child)
        connection.execute("INSERT INTO lost_rows SELECT ?, ?, row, uri FROM source_rows WHERE shard = ?", [key, part, shard])
        connection.execute(
            "DELETE FROM source_rows WHERE shard = ? OR image IN (SELECT image FROM image_rows WHERE shard = ?)", [shard, shard]
        )
    connection.execute(f"DELETE FROM {ROWS_OF[kind]} WHERE shard = ?", [shard])
    connection.execute("DELETE FROM shards WHERE shard = ?", [shard])


def _record_detector(connection: duckdb.DuckDBPyConnection, row: dict[str, Any], *, current: bool) -> None:
    identity = row["identity"]
    where = "condition = ? AND fingerprint = ?"
    key = [row["condition"], row["fingerprint"]]
    if connection.execute(f"SELECT 1 FROM detectors WHERE {where}", key).fetchall():
        connection.execute(f"UPDATE detectors SET current = current OR ? WHERE {where}", [current, *key])
        return
    connection.execute(
        "INSERT INTO detectors VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [*key, identity["detector"], str(identity["version"]), identity["weights"], json.dumps(identity["params"]), row["licence"],
         json.dumps(identity, sort_keys=True), current, row.get("maps", row["condition"])],  # a shard of an earlier version does not tell
    )  # fmt: skip


def insert_run(connection: duckdb.DuckDBPyConnection, row: dict[str, Any]) -> None:
    connection.execute("DELETE FROM runs WHERE run = ?", [row["run"]])
    _insert(connection, "runs", row)


def _insert(connection: duckdb.DuckDBPyConnection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' for _ in row)})", list(row.values()))


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


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
