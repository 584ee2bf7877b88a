"""The rows of images and of their addresses, of many shards at once: each image once, each address once.

Called inside a transaction of `pipeline/catalog/__init__.py`. What is known is looked for in memory
(`known.py`), so that the time follows the new rows, not those that there are.
"""

from dataclasses import dataclass, field

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog import changes, groups, known
from pipeline.catalog.groups import Groups
from pipeline.catalog.known import KnownImages
from pipeline.storage import shards

OF_ADDRESS = ("uri", "caption", "captions", "caption_problem", "fields", "stamp", "caption_stamp")
OF_IMAGE = tuple(
    name for name in shards.IMAGES.names if name not in OF_ADDRESS and name not in shards.PAYLOADS
)
Numbers = NDArray[np.int64]


@dataclass
class Memory:
    """What a driver keeps of the images between its commits; it is read again where the catalog is not as
    this driver left it.
    """

    images: dict[str, KnownImages] = field(default_factory=dict)  # by image key
    groups: dict[tuple[str, int], Groups] = field(default_factory=dict)  # by image key and distance in bits

    def forget(self) -> None:
        self.images.clear()
        for of_key in self.groups.values():
            of_key.thumbnails.close()
        self.groups.clear()

    def known(self, connection: duckdb.DuckDBPyConnection, key: str) -> KnownImages:
        if key not in self.images:
            self.images[key] = known.load(connection, key)
        return self.images[key]

    def near(self, connection: duckdb.DuckDBPyConnection, key: str, distance: int) -> Groups:
        if (key, distance) not in self.groups:
            self.groups[key, distance] = groups.load(connection, key, distance)
        return self.groups[key, distance]


def retries_meet(rows: pa.Table) -> bool:
    """Whether an image or address that failed in one of these shards is in a later one too: such shards go in
    one by one, since a retry takes the place of what failed before.
    """
    number, failed = (
        rows["shard_number"].to_numpy(),
        pc.equal(rows["status"], "failed").fill_null(False).to_numpy(),
    )
    for text in ("image_id", "uri"):
        codes, first = _codes(rows[text])
        if np.any(failed[first[codes]] & (number != number[first[codes]])):
            return True
    return False


def insert(
    connection: duckdb.DuckDBPyConnection,
    rows: pa.Table,  # of shards of one image key, in their order, with their `shard_number`
    memory: Memory,
    key: str,
    *,
    retry: bool,
    again: bool,  # whether these shards were taken out before: those that followed their images do so again
    near: int | None,  # bits of the perceptual hash
) -> None:
    """Each image once, at the first address that showed it; each address once; a retry takes the place of
    what failed before.
    """
    index = memory.known(connection, key)
    connection.register("incoming", rows.select(["image_id", "uri"]).append_column("place", _places(rows)))
    hashed = connection.execute(
        "SELECT hash(image_id) AS ids, hash(uri) AS uris FROM incoming ORDER BY place"
    ).fetchnumpy()
    ids, uris = np.asarray(hashed["ids"]), np.asarray(hashed["uris"])
    seen = _confirmed(connection, *index.ids.find(ids), SAME_IMAGE)
    shown = _confirmed(connection, *index.addresses.find(uris), SAME_ADDRESS)
    connection.unregister("incoming")
    # before anything is taken out: a key in memory never comes to stand for another image
    (last,) = connection.execute("SELECT coalesce(max(image), 0) FROM image_rows").fetchall()[0]
    if retry:
        seen, shown = _without_failed(connection, seen, shown)

    codes, first = _codes(rows["image_id"])
    owners = np.zeros(len(first), np.int64)  # by code: the image's integer key
    owners[codes[seen.places]] = seen.images
    new = np.flatnonzero(owners == 0)
    new = new[np.argsort(first[new])]
    owners[new] = last + 1 + np.arange(len(new))

    fresh = rows.take(pa.array(first[new])).select(["shard_number", "row", *OF_IMAGE])
    fresh = fresh.append_column("image", pa.array(owners[new]))
    if near is None:
        fresh = fresh.drop_columns("thumbnail")  # only groups need it
    else:
        fresh = _grouped(connection, fresh, memory, key, near)
    insert_rows(connection, "image_rows", fresh)
    if again and near is not None:
        connection.execute(FOLLOW_AGAIN, {"last": last, "key": key})

    address, place = _codes(rows["uri"])
    there = np.zeros(len(place), bool)
    there[address[shown.places[~shown.gone]]] = True
    place = np.sort(place[~there])
    shown_there = owners[codes[place]]
    addresses = rows.take(pa.array(place)).select(["shard_number", "row", *OF_ADDRESS])
    addresses = addresses.append_column("image", pa.array(shown_there))
    later = np.ones(len(place), bool)
    later[np.unique(shown_there, return_index=True)[1]] = False
    later |= shown_there <= last
    insert_rows(connection, "source_rows", addresses.append_column("later", pa.array(later)))
    changes.show_again(connection, np.intersect1d(shown_there, seen.images[seen.gone]))
    index.ids.add(ids[first[new]], owners[new])
    index.addresses.add(uris[place], shown_there)


@dataclass(frozen=True)
class _Seen:
    """Rows of the catalog that incoming rows show again."""

    places: Numbers  # among the incoming rows
    images: Numbers
    failed: NDArray[np.bool_]
    gone: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_]) -> "_Seen":
        return _Seen(self.places[chosen], self.images[chosen], self.failed[chosen], self.gone[chosen])


SAME_IMAGE = """
    SELECT place, image, status = 'failed' AS failed, gone IS NOT NULL AS gone
    FROM hits JOIN incoming USING (place) JOIN image_rows USING (image)
    WHERE image_rows.image_id = incoming.image_id AND image BETWEEN $low AND $high"""
SAME_ADDRESS = """
    SELECT place, image, status = 'failed' AS failed, source_rows.gone IS NOT NULL AS gone
    FROM hits JOIN incoming USING (place) JOIN source_rows USING (image) JOIN image_rows USING (image)
    WHERE source_rows.uri = incoming.uri AND image BETWEEN $low AND $high"""


def _confirmed(connection: duckdb.DuckDBPyConnection, places: Numbers, images: Numbers, sql: str) -> _Seen:
    """Of places whose hash is that of an image, those whose text is equal too."""
    if not len(places):
        return _Seen(places, images, np.zeros(0, bool), np.zeros(0, bool))
    connection.register("hits", pa.table({"place": places, "image": images.astype(np.int32)}))
    within = {"low": int(images.min()), "high": int(images.max())}
    rows = {name: np.asarray(it) for name, it in connection.execute(sql, within).fetchnumpy().items()}
    connection.unregister("hits")
    return _Seen(
        rows["place"].astype(np.int64),
        rows["image"].astype(np.int64),
        rows["failed"].astype(bool),
        rows["gone"].astype(bool),
    )


def _without_failed(connection: duckdb.DuckDBPyConnection, seen: _Seen, shown: _Seen) -> tuple[_Seen, _Seen]:
    """Takes out the images that failed before and are tried again, with all their addresses."""
    failed = np.unique(np.concatenate([seen.images[seen.failed], shown.images[shown.failed]]))
    if len(failed):
        connection.register("failed", pa.table({"image": failed.astype(np.int32)}))
        for table in ("source_rows", "image_rows"):
            connection.execute(f"DELETE FROM {table} WHERE image IN (SELECT image FROM failed)")
        connection.unregister("failed")
    return seen.where(~seen.failed), shown.where(~shown.failed)


def _grouped(
    connection: duckdb.DuckDBPyConnection, fresh: pa.Table, memory: Memory, key: str, near: int
) -> pa.Table:
    """New images with the group and the split of the earliest image that they resemble."""
    members = np.flatnonzero(fresh["phash"].is_valid().to_numpy())
    images = fresh["image"].to_numpy()
    chosen = fresh.take(pa.array(members)).select(["phash", "thumbnail"]).combine_chunks()
    hashes = chosen["phash"].to_numpy().astype(np.uint64)
    thumbnails = pa.concat_arrays(chosen["thumbnail"].chunks) if len(members) else pa.array([], pa.binary())
    groups_here = memory.near(connection, key, near)
    leaders = groups_here.join(images[members], hashes, thumbnails)
    follows = np.flatnonzero(leaders >= 0)
    if not len(follows):
        return fresh
    connection.register("leaders", pa.table({"image": np.unique(leaders[follows]).astype(np.int32)}))
    stored = connection.execute(
        "SELECT image, group_id, split, coalesce(leader, image) FROM image_rows JOIN leaders USING (image)"
    ).fetchall()
    connection.unregister("leaders")
    of_leader = {image: of_group for image, *of_group in stored}
    group_ids, splits = fresh["group_id"].to_pylist(), fresh["split"].to_pylist()
    own, followed, first = list(group_ids), [None] * len(group_ids), int(images[0])
    for place, leader in zip(members[follows].tolist(), leaders[follows].tolist(), strict=True):
        # new images have consecutive keys
        of_group = of_leader.get(leader) or (group_ids[leader - first], splits[leader - first], leader)
        group_ids[place], splits[place], followed[place] = of_group
        if group_ids[place] == own[place]:  # it led this group before it was taken out
            followed[place] = None
    for name, values in (("group_id", group_ids), ("split", splits)):
        fresh = fresh.set_column(fresh.column_names.index(name), name, pa.array(values, pa.string()))
    return fresh.append_column("leader", pa.array(followed, pa.int32()))


FOLLOW_AGAIN = """
    UPDATE image_rows SET leader = first.image
    FROM image_rows first
    WHERE image_rows.leader IS NOT NULL AND first.image > $last AND first.image_id = image_rows.group_id
      AND image_rows.shard_number IN (
          SELECT shard_number FROM shard_rows WHERE kind = 'images' AND key = $key)"""


def insert_rows(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """By the names of their columns."""
    if rows.num_rows:
        connection.register("fresh", rows)
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM fresh")
        connection.unregister("fresh")


def _places(rows: pa.Table) -> pa.Array:
    return pa.array(np.arange(rows.num_rows))


def _codes(texts: pa.ChunkedArray) -> tuple[Numbers, Numbers]:
    """A number for each text, equal for equal texts, and where each number comes first."""
    encoded = pc.dictionary_encode(texts.combine_chunks(), null_encoding="encode")
    codes = encoded.indices.to_numpy().astype(np.int64)
    first = np.full(len(encoded.dictionary), len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    return codes, first
