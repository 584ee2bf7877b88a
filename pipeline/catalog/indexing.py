"""What shards' facts are in the catalog's tables: put in, many shards of a kind in one go, and taken out.

Called inside a transaction of `pipeline/catalog/__init__.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotate.weights import Identity
from pipeline.catalog import changes, image_rows
from pipeline.catalog.image_rows import Memory, insert_rows
from pipeline.storage import shards
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import Workspace


class DetectorRecord(TypedDict):
    """What made, or makes, a condition's maps; also in the footer of their shards."""

    condition: str
    fingerprint: str
    licence: str
    identity: Identity
    maps: NotRequired[str]  # the condition whose maps it shares, else its own


class Metadata(TypedDict):
    """The footer of a shard."""

    kind: str
    key: str
    part: int
    made_from: str
    name: NotRequired[str]
    image_key: NotRequired[str]  # of what is made from images
    detector: NotRequired[DetectorRecord]  # of maps
    near: NotRequired[int | None]  # of images: bits of the perceptual hash
    retry: NotRequired[bool]  # of images: they failed before
    after_part: NotRequired[int]  # of changes: the last part of the images that there was
    noticed: NotRequired[str]  # of changes: UTC, ISO 8601


@dataclass(frozen=True)
class Batch:
    """Shards of one kind that go in together."""

    shards: Sequence[Shard]
    numbers: NDArray[np.int64]  # of the shards in the catalog, rising
    rows: pa.Table  # their light columns with `shard_number`; of what is aligned with images also `image`

    @property
    def metadata(self) -> list[Metadata]:
        return [cast(Metadata, shard.metadata) for shard in self.shards]

    def one_by_one(self) -> Iterator["Batch"]:
        start = 0
        for number, shard in zip(self.numbers, self.shards, strict=True):
            yield Batch([shard], np.array([number]), self.rows.slice(start, shard.light.num_rows))
            start += shard.light.num_rows


def index_shards(
    connection: duckdb.DuckDBPyConnection, workspace: Workspace, given: Sequence[Shard], memory: Memory
) -> list[Shard]:
    """Puts the facts of shards in, in their order, each in place of an earlier version of the same shard.

    Those that do not fit their images are left out and returned.
    """
    misfits: list[Shard] = []
    for members in _alike(given):
        paths = [workspace.relative(shard.path) for shard in members]
        remove_shards(connection, paths, memory)
        (last,) = connection.execute("SELECT coalesce(max(shard_number), 0) FROM shard_rows").fetchall()[0]
        numbers = last + 1 + np.arange(len(members))
        rows = pa.concat_tables([shard.light for shard in members])
        of_row = np.repeat(numbers.astype(np.int32), [shard.light.num_rows for shard in members])
        batch = Batch(members, numbers, rows.append_column("shard_number", pa.array(of_row)))
        if batch.metadata[0]["kind"] in ROW_ALIGNED:
            batch = _aligned(connection, batch)
            fitting = {shard.path for shard in batch.shards}
            misfits += [shard for shard in members if shard.path not in fitting]
        if batch.shards:
            _insert(connection, workspace, batch, memory)
    return misfits


def _alike(given: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Neighbours that can go in together: of one kind, images also of one key, and no path twice. Each file
    of changes goes in alone.
    """
    members: list[Shard] = []
    paths: set[Path] = set()
    for shard in given:
        before = members[-1].metadata if members else {}
        names = ("kind", "key", "retry", "near") if shard.metadata["kind"] == "images" else ("kind",)
        other = any(shard.metadata.get(name) != before.get(name) for name in names)
        if members and (other or before["kind"] == "changes" or shard.path in paths):
            yield members
            members, paths = [], set()
        members.append(shard)
        paths.add(shard.path)
    if members:
        yield members


def _insert(
    connection: duckdb.DuckDBPyConnection, workspace: Workspace, batch: Batch, memory: Memory
) -> None:
    facts = [
        {
            "shard_number": number,
            "shard": workspace.relative(shard.path),
            "kind": metadata["kind"],
            "key": metadata["key"],
            "name": metadata.get("name"),
            "image_key": metadata.get("image_key"),
            "part": metadata["part"],
            "rows": shard.rows,
            "bytes": shard.bytes,
            "sha256": shard.sha256,
            "committed": datetime.now(UTC).replace(tzinfo=None),
            "device": metadata.get("device"),
        }
        for number, shard, metadata in zip(batch.numbers.tolist(), batch.shards, batch.metadata, strict=True)
    ]
    insert_rows(connection, "shard_rows", pa.Table.from_pylist(facts, SHARD_ROWS))
    detectors = [metadata["detector"] for metadata in batch.metadata if "detector" in metadata]
    for detector in {(each["condition"], each["fingerprint"]): each for each in detectors}.values():
        record_detector(connection, detector, current=False)
    INSERTS[batch.metadata[0]["kind"]](connection, batch, memory)
    if batch.metadata[0]["kind"] == "samples":
        link_all_scores(connection, workspace)


SHARD_ROWS = pa.schema([
    ("shard_number", pa.int32()), ("shard", pa.string()), ("kind", pa.string()), ("key", pa.string()),
    ("name", pa.string()), ("image_key", pa.string()), ("part", pa.int32()), ("rows", pa.int32()),
    ("bytes", pa.int64()), ("sha256", pa.string()), ("committed", pa.timestamp("us")),
    ("device", pa.string()),
])  # fmt: skip


def _insert_images(connection: duckdb.DuckDBPyConnection, batch: Batch, memory: Memory) -> None:
    metadata = batch.metadata[0]
    key, retry = metadata["key"], bool(metadata.get("retry"))
    if retry and len(batch.shards) > 1 and image_rows.retries_meet(batch.rows):
        for one in batch.one_by_one():
            _insert_images(connection, one, memory)
        return
    (again,) = connection.execute(
        "DELETE FROM lost_rows WHERE key = ? AND part IN (SELECT unnest(?))",
        [key, [each["part"] for each in batch.metadata]],
    ).fetchall()[0]
    image_rows.insert(
        connection, batch.rows, memory, key, retry=retry, again=again > 0, near=metadata.get("near")
    )


def _link_scores(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    """Writes down which samples a shard of scores is of: its footer has only a hash of their path.

    A shard of a system's scores has the rows of the shard of samples of the same part, in their order.
    """
    first, *rest = metadata["name"].split("/")  # model/condition/variant, or variant/condition
    sets = [metadata["name"], first, *([f"{rest[-1]}/{rest[0]}"] if rest else [])]
    candidates = connection.execute(
        """
        SELECT shard, name, key FROM shard_rows
        WHERE kind = 'samples' AND part = ? AND list_contains(?, name)""",
        [metadata["part"], sets],
    ).fetchall()
    for path, sample_set, sample_key in candidates:
        if shards.made_from(metadata["key"], path) == metadata["made_from"]:
            connection.execute(
                "UPDATE shard_rows SET sample_set = ?, sample_key = ? WHERE shard_number = ?",
                [sample_set, sample_key, number],
            )


def link_all_scores(connection: duckdb.DuckDBPyConnection, workspace: Workspace) -> None:
    """Of scores whose samples were not there when they came in, or whose catalog was made before they named
    them; a file that can't be read is passed over, and `controlmill verify` names it.
    """
    rows = connection.execute(
        "SELECT shard_number, shard FROM shard_rows WHERE kind = 'scores' AND sample_set IS NULL"
    ).fetchall()
    for number, path in rows:
        with suppress(*shards.BROKEN):
            _link_scores(connection, number, cast(Metadata, shards.metadata(workspace.root / path)))


def _aligned(connection: duckdb.DuckDBPyConnection, batch: Batch) -> Batch:
    """Those of the shards that have exactly one row for each readable image of their part, and these rows
    with the integer keys of their images: an orphan of another state of the source has not.
    """
    parts = pa.table(
        {
            "shard_number": batch.numbers,
            "key": [each.get("image_key") for each in batch.metadata],
            "part": [each["part"] for each in batch.metadata],
        }
    )
    asked = batch.rows.select(["shard_number", "row", "image_id", "status"])
    connection.register("asked", asked.append_column("place", pa.array(np.arange(asked.num_rows))))
    connection.register("parts", parts)
    found = connection.execute(OF_IMAGES).fetchnumpy()
    connection.register("of_images", pa.table({name: np.asarray(it) for name, it in found.items()}))
    within = {"low": int(min(found["images"], default=0)), "high": int(max(found["images"], default=0))}
    matched = connection.execute(MATCHED, within).fetchnumpy()
    places, readable = np.asarray(matched["place"]), connection.execute(READABLE_ROWS, within).fetchnumpy()
    for name in ("asked", "parts", "of_images"):
        connection.unregister(name)

    def counts(numbers: NDArray[np.integer]) -> NDArray[np.int64]:
        return np.bincount(numbers - batch.numbers[0], minlength=len(batch.numbers))

    of_row, there = batch.rows["shard_number"].to_numpy(), batch.rows["status"].is_valid().to_numpy()
    expected = np.zeros(len(batch.numbers), np.int64)
    expected[np.asarray(readable["shard_number"]) - batch.numbers[0]] = np.asarray(readable["count"])
    fits = (counts(of_row[there]) == expected) & (counts(of_row[places]) == expected)
    fitting = fits[of_row[places] - batch.numbers[0]]
    rows = batch.rows.take(pa.array(places[fitting]))
    image = pa.array(np.asarray(matched["image"])[fitting])
    members = [shard for shard, fit in zip(batch.shards, fits, strict=True) if fit]
    return Batch(members, batch.numbers[fits], rows.append_column("image", image))


OF_IMAGES = """SELECT parts.shard_number, shard_rows.shard_number AS images
               FROM parts JOIN shard_rows USING (key, part) WHERE kind = 'images'"""
# rows lie in the order of their commits: outside the range of these shards none is read
MATCHED = """SELECT place, image
             FROM asked JOIN of_images USING (shard_number)
                  JOIN image_rows ON image_rows.shard_number = images AND image_rows.row = asked.row
                                     AND image_rows.image_id = asked.image_id
             WHERE asked.status IS NOT NULL AND image_rows.shard_number BETWEEN $low AND $high
             ORDER BY place"""
READABLE_ROWS = """SELECT of_images.shard_number, count(*) AS count
                   FROM of_images JOIN image_rows ON image_rows.shard_number = images
                   WHERE status = 'ok' AND image_rows.shard_number BETWEEN $low AND $high GROUP BY ALL"""


def _insert_aligned(connection: duckdb.DuckDBPyConnection, batch: Batch, memory: Memory) -> None:
    kind = batch.metadata[0]["kind"]
    insert_rows(connection, ROWS_OF[kind], batch.rows.select(COLUMNS[kind]))
    if kind == "maps":
        changes.touch_maps(connection, batch.numbers.tolist())


def _insert_changes(connection: duckdb.DuckDBPyConnection, batch: Batch, memory: Memory) -> None:
    metadata = batch.metadata[0]
    connection.register("incoming", batch.rows)
    noticed = datetime.fromisoformat(metadata["noticed"])
    changes.insert(connection, int(batch.numbers[0]), metadata["key"], noticed)
    connection.unregister("incoming")


def _insert_samples(connection: duckdb.DuckDBPyConnection, batch: Batch, memory: Memory) -> None:
    insert_rows(connection, "sample_rows", batch.rows.select(COLUMNS["samples"]))


def _insert_texts(connection: duckdb.DuckDBPyConnection, batch: Batch, memory: Memory) -> None:
    connection.register("incoming", batch.rows)
    connection.execute("""
        INSERT INTO text_rows
        SELECT shard_number, row, unhex(text_id), status, reason, may_flip, unhex(turned) FROM incoming""")
    connection.unregister("incoming")


def _insert_scores(connection: duckdb.DuckDBPyConnection, batch: Batch, memory: Memory) -> None:
    for number, metadata in zip(batch.numbers.tolist(), batch.metadata, strict=True):
        _link_scores(connection, number, metadata)
    connection.register("incoming", batch.rows)
    connection.execute("""
        INSERT INTO score_rows
        SELECT shard_number, row, image_id, seed, status, reason, entry.key, entry.value
        FROM (SELECT *, unnest(map_entries("values")) AS entry FROM incoming)""")
    connection.unregister("incoming")


Insert = Callable[[duckdb.DuckDBPyConnection, Batch, Memory], None]
INSERTS: dict[str, Insert] = {
    "images": _insert_images, "changes": _insert_changes, "captions": _insert_aligned,
    "maps": _insert_aligned, "texts": _insert_texts, "latents": _insert_aligned,
    "samples": _insert_samples,
    "scores": _insert_scores,
}  # fmt: skip
# of the tables below, what comes out of the shards as it is there
COLUMNS = {
    "captions": ["image", "shard_number", "row", "status", "reason", "caption"],
    "maps": ["image", "shard_number", "row", "status", "reason", "seconds", "measures", "source_stamp",
             "source_hash"],
    "latents": ["image", "shard_number", "row", "status", "reason", "caption"],
    "samples": ["shard_number", "row", "image_id", "hint_image_id", "seed", "status", "reason", "seconds"],
}  # fmt: skip
ROW_ALIGNED = {"captions", "maps", "latents"}  # with the images shard of the same part
ROWS_OF = {
    "images": "image_rows", "changes": "change_rows", "captions": "caption_rows",
    "maps": "annotation_rows", "texts": "text_rows", "latents": "latent_rows",
    "samples": "sample_rows",
    "scores": "score_rows",
}  # fmt: skip


def remove_shards(connection: duckdb.DuckDBPyConnection, paths: Sequence[str], memory: Memory) -> None:
    """Takes the rows of shards out, and those of what was made from them; the addresses of their images are
    remembered as lost.
    """
    sql = "SELECT shard_number, kind, key, part FROM shard_rows WHERE shard IN (SELECT unnest(?))"
    for number, kind, key, part in connection.execute(sql, [list(paths)]).fetchall():
        if kind == "changes":
            changes.remove(connection, number, key)
        if kind == "images":
            memory.forget()
            children = "SELECT shard FROM shard_rows WHERE kind <> 'images' AND image_key = ? AND part = ?"
            made = [child for (child,) in connection.execute(children, [key, part]).fetchall()]
            remove_shards(connection, made, memory)
            connection.execute(
                """
                INSERT INTO lost_rows
                SELECT ?, ?, row, uri FROM source_rows WHERE gone IS NULL AND shard_number = ?""",
                [key, part, number],
            )
            connection.execute(
                """
                UPDATE image_rows SET leader = -leader
                WHERE leader IN (SELECT image FROM image_rows WHERE shard_number = ?)""",
                [number],
            )
            connection.execute(
                """
                DELETE FROM source_rows
                WHERE shard_number = ? OR image IN (SELECT image FROM image_rows WHERE shard_number = ?)""",
                [number, number],
            )
        connection.execute(f"DELETE FROM {ROWS_OF[kind]} WHERE shard_number = ?", [number])
        connection.execute("DELETE FROM shard_rows WHERE shard_number = ?", [number])


def record_detector(connection: duckdb.DuckDBPyConnection, row: DetectorRecord, *, current: bool) -> None:
    identity = row["identity"]
    where = "condition = ? AND fingerprint = ?"
    key = [row["condition"], row["fingerprint"]]
    if connection.execute(f"SELECT 1 FROM detectors WHERE {where}", key).fetchall():
        if current:
            connection.execute(f"UPDATE detectors SET current = true WHERE {where}", key)
        return
    connection.execute(
        "INSERT INTO detectors VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *key,
            identity["detector"],
            str(identity["version"]),
            identity["weights"],
            json.dumps(identity["params"]),
            row["licence"],
            # a shard of an earlier version does not tell
            json.dumps(identity, sort_keys=True),
            current,
            row.get("maps", row["condition"]),
        ],
    )


def insert(connection: duckdb.DuckDBPyConnection, table: str, row: Mapping[str, object]) -> None:
    names = ", ".join(row)
    connection.execute(
        f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' for _ in row)})", list(row.values())
    )
