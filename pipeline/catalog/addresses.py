"""What addresses look like, as numbers: those of a listing and those of the catalog, so that millions are
compared without an object for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from pipeline.catalog import Catalog

# Of one address: 64-bit hashes of the address, of all that is known of it, and of that without its captions;
# and marks. The hashes are DuckDB's, equal within one process only.
HASHES = np.dtype([("address", "<u8"), ("look", "<u8"), ("untold", "<u8"), ("marks", "u1")])
ASK_MEMORY = "192MB"  # while it looks for a few of them
SCAN_MEMORY = "64MB"  # of DuckDB while it reads all addresses: it would keep the whole file
# marks of the catalog
GONE, NO_CAPTIONS, CAPTIONED, AGAIN = 1, 2, 4, 8

# Two addresses of one hash differ in the others: these begin with another hash of the address.
_UNTOLD = "hash('=' || uri, {stamp}, {caption_stamp}, fields)"
_OF_LISTING = f"""
    SELECT hash(uri) AS address, {_UNTOLD.format(stamp="stamp", caption_stamp="caption_stamp")} AS untold,
           hash(untold, CASE WHEN more_captions IS NULL AND caption = '' THEN []::VARCHAR[]
                             WHEN more_captions IS NULL THEN [caption]
                             ELSE list_filter(list_prepend(caption, more_captions), lambda text: text <> '')
                        END) AS look,
           marks
    FROM listed"""
_STAMPS = {"stamp": "coalesce(stamp, '')", "caption_stamp": "coalesce(caption_stamp, '')"}
_OF_IMAGES = """shard_rows.kind = 'images'
      AND shard_rows.key = (SELECT value FROM settings WHERE name = 'image_key')"""
_OF_CATALOG = f"""
    SELECT hash(uri) AS address, {_UNTOLD.format(**_STAMPS)} AS untold, hash(untold, captions) AS look,
           ((gone IS NOT NULL)::UTINYINT * {GONE} + (captions IS NULL)::UTINYINT * {NO_CAPTIONS}
            + coalesce(len(captions) > 0, false)::UTINYINT * {CAPTIONED})::UTINYINT AS marks
    FROM source_rows JOIN shard_rows USING (shard_number)
    WHERE {_OF_IMAGES}"""
_COUNT = f"SELECT count(*) FROM source_rows JOIN shard_rows USING (shard_number) WHERE {_OF_IMAGES}"
_LAST = f"""
    SELECT address, look, untold, marks
    FROM ({_OF_CATALOG} AND hash(uri) IN (SELECT unnest($addresses::UBIGINT[]))
          QUALIFY row_number() OVER (PARTITION BY uri
                                     ORDER BY gone IS NULL DESC, part DESC, source_rows.row DESC) = 1)"""
_AGAIN = f"""
    SELECT hash(uri) AS address FROM source_rows JOIN shard_rows USING (shard_number)
    WHERE {_OF_IMAGES} AND gone IS NULL
      AND image IN (SELECT image FROM image_rows
                    WHERE status = 'failed' AND gone IS NULL AND (transient OR $all))"""


def hashes(batches: list[pa.RecordBatch]) -> NDArray[np.void]:
    """HASHES of rows of `pipeline.sources.batches.SCHEMA`; their marks are those of the rows."""
    with duckdb.connect(config={"threads": "2"}) as connection:
        connection.register("listed", pa.Table.from_batches(batches))
        columns = connection.execute(_OF_LISTING).fetchnumpy()
    hashed = np.empty(len(columns["address"]), HASHES)
    for name in HASHES.names or ():
        hashed[name] = columns[name]
    return hashed


@dataclass(frozen=True)
class KnownAddresses:
    """What the catalog knows of its addresses, in any order."""

    look: NDArray[np.uint64]
    untold: NDArray[np.uint64]
    marks: NDArray[np.uint8]
    address: NDArray[np.uint64]  # sorted
    order: NDArray[np.uint32]  # where the others have what belongs to each sorted address

    def find(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where each stands in look, untold and marks; -1 of those that are not known."""
        if not len(self.address):
            return np.full(len(addresses), -1)
        order = addresses.argsort()  # sorted queries stay in the cache
        ranks = np.empty(len(addresses), np.int64)
        ranks[order] = self.address.searchsorted(addresses[order]).clip(max=len(self.address) - 1)
        return np.where(self.address[ranks] == addresses, self.order[ranks].astype(np.int64), -1)

    def living(self, without: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """The addresses that are not gone, but those of the given places."""
        return self.address[~(without | (self.marks & GONE > 0))[self.order]]


def nothing() -> KnownAddresses:
    none = np.empty(0, np.uint64)
    return KnownAddresses(none, none, np.empty(0, np.uint8), none, np.empty(0, np.uint32))


def known(catalog: Catalog, *, retry_failed: bool = False) -> KnownAddresses:
    """Of an address that showed several images, what it shows, or showed last. Marks with AGAIN what is to be
    tried again: all that failed, or what failed for a while.
    """
    columns = _columns(catalog, _COUNT, _OF_CATALOG, {name: HASHES[name] for name in HASHES.names or ()})
    order = columns["address"].argsort().astype(np.uint32)
    columns["address"] = columns["address"][order]
    found = KnownAddresses(**columns, order=order)
    later = np.flatnonzero(found.address[1:] == found.address[:-1]) + 1
    found.marks[order[later]] |= GONE  # `find` never gives these
    several = np.unique(found.address[later]).tolist()
    for address, *last in (
        catalog.query(_LAST, {"addresses": several}, most_memory=ASK_MEMORY) if several else ()
    ):
        (place,) = found.find(np.array([address], np.uint64))
        found.look[place], found.untold[place], found.marks[place] = last
    again = [address for (address,) in catalog.query(_AGAIN, {"all": retry_failed}, most_memory=ASK_MEMORY)]
    places = found.find(np.array(again, np.uint64))
    found.marks[places[places >= 0]] |= AGAIN
    return found


def _columns(catalog: Catalog, count: str, sql: str, kinds: Mapping[str, DTypeLike]) -> dict[str, Any]:
    """Name -> array of an answer whose number of rows `count` tells."""
    (rows,) = catalog.row(count)
    columns = {name: np.empty(rows, kind) for name, kind in kinds.items()}

    def fill(reader: pa.RecordBatchReader) -> None:
        start = 0
        for batch in reader:
            for name, column in columns.items():
                column[start : start + batch.num_rows] = batch.column(name).to_numpy()
            start += batch.num_rows

    catalog.read_batches(sql, fill, SCAN_MEMORY)
    return columns


def of_hashes(catalog: Catalog, hashes: NDArray[np.uint64]) -> list[str]:
    """The addresses that the catalog has of these hashes."""
    return [uri for (uri,) in catalog.query(_OF_HASHES, {"hashes": hashes.tolist()})]


_OF_HASHES = f"""
    SELECT DISTINCT uri FROM source_rows JOIN shard_rows USING (shard_number)
    WHERE {_OF_IMAGES} AND hash(uri) IN (SELECT unnest($hashes::UBIGINT[]))"""


def first_addresses(catalog: Catalog) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """For each readable image that is not gone: the hash of the first address that shows it, and where the
    image lies, as part << 31 | row.
    """
    kinds = dict.fromkeys(("address", "place", "rank"), np.uint64)
    columns = _columns(catalog, f"SELECT count(*) FROM ({_FIRST})", _FIRST, kinds)
    order = np.lexsort((columns["rank"], columns["place"]))
    places = columns["place"][order]
    first = np.append(True, places[1:] != places[:-1])[: len(places)]
    return columns["address"][order[first]], places[first]


_FIRST = """
    SELECT hash(uri) AS address, (of_image.part::UBIGINT << 31) + image_rows.row::UBIGINT AS place,
           (of_source.part::UBIGINT << 31) + source_rows.row::UBIGINT AS rank
    FROM source_rows JOIN image_rows USING (image)
    JOIN shard_rows of_image ON of_image.shard_number = image_rows.shard_number
    JOIN shard_rows of_source ON of_source.shard_number = source_rows.shard_number
    WHERE of_image.kind = 'images'
      AND of_image.key = (SELECT value FROM settings WHERE name = 'image_key')
      AND status = 'ok' AND source_rows.gone IS NULL AND image_rows.gone IS NULL"""
