"""What a shard's facts are in the catalog's tables: put in, taken out.

Called inside a transaction of `pipeline/catalog/__init__.py`.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import NotRequired, TypedDict, cast

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotate.weights import Identity
from pipeline.catalog import changes, duplicates, hash_index
from pipeline.storage import shards
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import Workspace

OF_ADDRESS = {"uri", "caption", "captions", "caption_problem", "fields", "stamp", "caption_stamp"}
OF_IMAGE = ", ".join(
    name for name in shards.IMAGES.names if name not in OF_ADDRESS and name not in shards.PAYLOADS
)


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


def index_shard(connection: duckdb.DuckDBPyConnection, workspace: Workspace, shard: Shard) -> bool:
    """Puts a shard's facts in, in place of an earlier version of the same shard; False, and nothing in, where
    it does not fit its images.
    """
    metadata, path = cast(Metadata, shard.metadata), workspace.relative(shard.path)
    remove_shard(connection, path)
    connection.register("incoming", shard.light)
    if metadata["kind"] in ROW_ALIGNED and not _fits(connection, metadata):
        connection.unregister("incoming")
        return False
    (number,) = connection.execute("SELECT coalesce(max(shard_number), 0) + 1 FROM shard_rows").fetchall()[0]
    insert(
        connection,
        "shard_rows",
        {
            "shard_number": number,
            "shard": path,
            "kind": metadata["kind"],
            "key": metadata["key"],
            "name": metadata.get("name"),
            "image_key": metadata.get("image_key"),
            "part": metadata["part"],
            "rows": shard.rows,
            "bytes": shard.bytes,
            "sha256": shard.sha256,
            "committed": datetime.now(UTC).replace(tzinfo=None),
        },
    )
    if metadata["kind"] == "scores":
        _link_scores(connection, number, metadata)
    if "detector" in metadata:
        record_detector(connection, metadata["detector"], current=False)
    INSERTS[metadata["kind"]](connection, number, metadata)
    if (near := metadata.get("near")) is not None:
        _group(connection, number, metadata["key"], near)
    connection.unregister("incoming")
    return True


def _insert_images(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    """Each image once, at the first address that showed it; each address once; a retry takes the place of
    what failed before.
    """
    same_key = "SELECT shard_number FROM shard_rows WHERE kind = 'images' AND key = $key"
    key = {"key": metadata["key"]}
    connection.execute(
        "DELETE FROM lost_rows WHERE key = ? AND part = ?", [metadata["key"], metadata["part"]]
    )
    if metadata.get("retry"):
        failed = f"""
            SELECT image FROM image_rows
            WHERE status = 'failed' AND shard_number IN ({same_key})
              AND (image_id IN (SELECT image_id FROM incoming)
                   OR image IN (SELECT image FROM source_rows WHERE uri IN (SELECT uri FROM incoming)))"""
        connection.execute(f"CREATE TEMP TABLE gone AS {failed}", key)
        connection.execute("DELETE FROM source_rows WHERE image IN (SELECT image FROM gone)")
        connection.execute("DELETE FROM image_rows WHERE image IN (SELECT image FROM gone)")
        connection.execute("DROP TABLE gone")
    connection.execute(
        f"""
        INSERT INTO image_rows BY NAME
        SELECT (SELECT coalesce(max(image), 0) FROM image_rows) + row_number() OVER (ORDER BY row) AS image,
               {number} AS shard_number,
               row, {OF_IMAGE}
        FROM incoming
        WHERE image_id NOT IN (SELECT image_id FROM image_rows WHERE shard_number IN ({same_key}))
        QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY row) = 1""",
        key,
    )
    connection.execute(
        f"""
        INSERT INTO source_rows BY NAME
        SELECT image_rows.image, {number} AS shard_number, incoming.row, uri, caption, captions,
               caption_problem, fields, stamp, caption_stamp
        FROM incoming JOIN image_rows USING (image_id)
        WHERE image_rows.shard_number IN ({same_key})
          AND uri NOT IN (SELECT uri FROM source_rows WHERE gone IS NULL AND shard_number IN ({same_key}))
        QUALIFY row_number() OVER (PARTITION BY uri ORDER BY incoming.row) = 1""",
        key,
    )
    changes.mark_gone(connection, metadata["key"])


def _group(connection: duckdb.DuckDBPyConnection, number: int, key: str, near: int) -> None:
    """Near-duplicates take the group and the split of the earliest image they resemble; images of a part come
    in the source's order, and numbers rise from part to part.
    """
    sql = """
        SELECT image, phash, min(image) OVER (PARTITION BY group_id) AS first, shard_number = $number AS own
        FROM image_rows JOIN shard_rows USING (shard_number)
        WHERE phash IS NOT NULL AND kind = 'images' AND key = $key
        ORDER BY own, image"""
    rows = connection.execute(sql, {"number": number, "key": key}).fetchnumpy()
    images, hashes = rows["image"], rows["phash"].astype("uint64")
    known = len(images) - int(rows["own"].sum())
    led = images[:known].searchsorted(rows["first"][:known])
    fetch = partial(_thumbnails, connection, images)
    leaders = hash_index.leaders(hashes[:known], hashes[known:], near, led, fetch)
    follows = leaders >= 0
    followers = pa.table({"image": images[known:][follows], "leader": images[leaders[follows]]})
    connection.register("followers", followers)
    connection.execute("""
        UPDATE image_rows SET group_id = l.group_id, split = l.split
        FROM followers JOIN image_rows l ON l.image = followers.leader
        WHERE image_rows.image = followers.image""")
    connection.unregister("followers")


def _thumbnails(
    connection: duckdb.DuckDBPyConnection, images: NDArray[np.int64], numbers: duplicates.Numbers
) -> tuple[NDArray[np.bool_], duplicates.Thumbnails]:
    """Of the images at these places; those of before there were thumbnails have none."""
    asked = images[numbers]
    connection.register("asked", pa.table({"image": asked}))
    sql = """
        SELECT image, thumbnail FROM image_rows JOIN asked USING (image)
        WHERE octet_length(thumbnail) = $bytes ORDER BY image"""
    rows = connection.execute(sql, {"bytes": duplicates.BYTES}).fetchnumpy()
    connection.unregister("asked")
    thumbnails = np.frombuffer(b"".join(rows["thumbnail"]), np.uint8)
    return np.isin(asked, rows["image"]), thumbnails.reshape(-1, duplicates.BYTES)


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
    """Of a catalog that was made before scores named their samples; a file that can't be read is passed over,
    and `controlmill verify` names it.
    """
    rows = connection.execute("SELECT shard_number, shard FROM shard_rows WHERE kind = 'scores'").fetchall()
    for number, path in rows:
        with suppress(*shards.BROKEN):
            _link_scores(connection, number, cast(Metadata, shards.metadata(workspace.root / path)))


def _image_of(metadata: Metadata) -> str:
    """The integer key of a row that is aligned with the images shard of the same part."""
    return f"""
        JOIN image_rows ON image_rows.row = incoming.row AND image_rows.image_id = incoming.image_id
         AND image_rows.shard_number = (
             SELECT shard_number FROM shard_rows
             WHERE kind = 'images' AND key = '{metadata["image_key"]}' AND part = {metadata["part"]})
        WHERE incoming.status IS NOT NULL"""


def _fits(connection: duckdb.DuckDBPyConnection, metadata: Metadata) -> bool:
    """Whether the shard has exactly one row for each readable image of its part: an orphan of another state
    of the source has not.
    """
    counts = connection.execute(
        f"""
        SELECT (SELECT count(*) FROM incoming WHERE status IS NOT NULL),
               (SELECT count(*) FROM incoming {_image_of(metadata)}),
               (SELECT count(*) FROM image_rows JOIN shard_rows USING (shard_number)
                WHERE kind = 'images' AND key = $key AND part = $part AND image_rows.status = 'ok')""",
        {"key": metadata["image_key"], "part": metadata["part"]},
    ).fetchall()
    rows, matched, readable = counts[0]
    return bool(rows == matched == readable)


def _insert_maps(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    connection.execute(f"""
        INSERT INTO annotation_rows BY NAME
        SELECT image, {number} AS shard_number, incoming.row, incoming.status, incoming.reason, seconds,
               measures, source_stamp, source_hash
        FROM incoming {_image_of(metadata)}""")
    changes.touch_maps(connection)


def _insert_latents(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    connection.execute(f"""
        INSERT INTO latent_rows BY NAME
        SELECT image, {number} AS shard_number, incoming.row, incoming.status, incoming.reason, caption
        FROM incoming {_image_of(metadata)}""")


def _insert_captions(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    connection.execute(f"""
        INSERT INTO caption_rows
        SELECT image, {number}, incoming.row, incoming.status, incoming.reason, caption
        FROM incoming {_image_of(metadata)}""")


def _insert_changes(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    changes.insert(connection, number, metadata["key"], datetime.fromisoformat(metadata["noticed"]))


def _insert_samples(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    connection.execute(f"""
        INSERT INTO sample_rows
        SELECT {number}, row, image_id, hint_image_id, seed, status, reason, seconds FROM incoming""")


def _insert_scores(connection: duckdb.DuckDBPyConnection, number: int, metadata: Metadata) -> None:
    connection.execute(f"""
        INSERT INTO score_rows
        SELECT {number}, row, image_id, seed, status, reason, entry.key, entry.value
        FROM (SELECT *, unnest(map_entries("values")) AS entry FROM incoming)""")


INSERTS = {
    "images": _insert_images, "changes": _insert_changes, "captions": _insert_captions,
    "maps": _insert_maps, "latents": _insert_latents,
    "samples": _insert_samples,
    "scores": _insert_scores,
}  # fmt: skip
ROW_ALIGNED = {"captions", "maps", "latents"}  # with the images shard of the same part
ROWS_OF = {
    "images": "image_rows", "changes": "change_rows", "captions": "caption_rows",
    "maps": "annotation_rows", "latents": "latent_rows",
    "samples": "sample_rows",
    "scores": "score_rows",
}  # fmt: skip


def remove_shard(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    """Takes a shard's rows out, and those of what was made from it; the addresses of its images are
    remembered as lost.
    """
    rows = connection.execute(
        "SELECT shard_number, kind, key, part FROM shard_rows WHERE shard = ?", [path]
    ).fetchall()
    if not rows:
        return
    number, kind, key, part = rows[0]
    if kind == "changes":
        changes.remove(connection, number, key)
    if kind == "images":
        children = "SELECT shard FROM shard_rows WHERE kind <> 'images' AND image_key = ? AND part = ?"
        for (child,) in connection.execute(children, [key, part]).fetchall():
            remove_shard(connection, child)
        connection.execute(
            """
            INSERT INTO lost_rows
            SELECT ?, ?, row, uri FROM source_rows WHERE gone IS NULL AND shard_number = ?""",
            [key, part, number],
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
        connection.execute(f"UPDATE detectors SET current = current OR ? WHERE {where}", [current, *key])
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
