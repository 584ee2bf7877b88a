"""What changed at known addresses, in the catalog's tables: put in, taken out.

Called inside a transaction of `pipeline/catalog/__init__.py`, with the rows of the shard as `incoming`. A
change speaks of an address while it shows the image that it names: one that was read anew is left alone.
"""

from collections.abc import Iterable
from datetime import datetime

import duckdb
import numpy as np
from numpy.typing import NDArray

OF_KEY = "(SELECT shard_number FROM shard_rows WHERE kind = 'images' AND key = $key)"
# the rows of addresses that a change of `incoming` speaks of
MATCHING = f"""
    source_rows.uri = incoming.uri AND source_rows.shard_number IN {OF_KEY}
    AND source_rows.image IN (SELECT image FROM image_rows WHERE image_rows.image_id = incoming.image_id)"""


def insert(connection: duckdb.DuckDBPyConnection, number: int, image_key: str, noticed: datetime) -> None:
    """Carries out the changes of one run."""
    connection.execute(
        """
        INSERT INTO change_rows BY NAME
        SELECT $number AS shard_number, row, $noticed AS noticed, change, uri, image_id, condition,
               source_hash, stamp, reason
        FROM incoming""",
        {"number": number, "noticed": noticed},
    )
    key = {"key": image_key}
    connection.execute(
        f"""
        UPDATE source_rows SET gone = incoming.reason FROM incoming
        WHERE {MATCHING} AND change IN ('changed', 'gone') AND gone IS NULL""",
        key,
    )
    connection.execute(
        f"""
        UPDATE source_rows SET gone = NULL FROM incoming
        WHERE {MATCHING} AND change = 'back'
          AND source_rows.shard_number = (
              SELECT max(shard_number) FROM source_rows latest
              WHERE latest.uri = incoming.uri AND latest.shard_number IN {OF_KEY})""",
        key,
    )
    connection.execute(
        f"""
        UPDATE source_rows SET stamp = incoming.stamp, caption_stamp = incoming.caption_stamp FROM incoming
        WHERE {MATCHING} AND gone IS NULL AND condition IS NULL
          AND change IN ('back', 'caption', 'touched')""",
        key,
    )
    connection.execute(
        f"""
        UPDATE source_rows
        SET first_caption = coalesce(source_rows.first_caption, source_rows.caption),
            caption = coalesce(incoming.captions[1], ''), captions = incoming.captions,
            caption_problem = incoming.caption_problem, fields = incoming.fields
        FROM incoming WHERE {MATCHING} AND gone IS NULL AND change = 'caption'""",
        key,
    )
    touch_maps(connection)
    mark_gone(connection, image_key)


def touch_maps(connection: duckdb.DuckDBPyConnection, numbers: Iterable[int] | None = None) -> None:
    """A provided map whose file has another time and the same bytes is known by its new time: of the shards
    of these numbers; None = of all.
    """
    touched = "change = 'touched' AND condition IS NOT NULL"
    if not connection.execute(f"SELECT 1 FROM change_rows WHERE {touched} LIMIT 1").fetchall():
        return
    within = "" if numbers is None else "AND annotation_rows.shard_number IN (SELECT unnest($numbers))"
    connection.execute(
        f"""
        UPDATE annotation_rows SET source_stamp = touched.stamp
        FROM (
            SELECT condition, image_id, source_hash, arg_max(stamp, (shard_number, row)) AS stamp
            FROM change_rows WHERE {touched} GROUP BY ALL
        ) touched, image_rows, shard_rows
        WHERE image_rows.image_id = touched.image_id AND annotation_rows.image = image_rows.image
          AND annotation_rows.shard_number = shard_rows.shard_number AND shard_rows.name = touched.condition
          AND annotation_rows.source_hash IS NOT DISTINCT FROM touched.source_hash {within}""",
        {} if numbers is None else {"numbers": list(numbers)},
    )


def mark_gone(connection: duckdb.DuckDBPyConnection, image_key: str) -> None:
    """An image is gone where no address shows it any more, and is there again where one does."""
    connection.execute(
        f"""
        UPDATE image_rows SET gone = shown.gone
        FROM (
            SELECT image, CASE WHEN count(*) = count(gone) THEN min(gone) END AS gone
            FROM source_rows
            WHERE image IN (SELECT image FROM source_rows WHERE gone IS NOT NULL
                            UNION SELECT image FROM image_rows WHERE gone IS NOT NULL)
              AND shard_number IN {OF_KEY}
            GROUP BY image
        ) shown
        WHERE image_rows.image = shown.image AND image_rows.gone IS DISTINCT FROM shown.gone""",
        {"key": image_key},
    )


def show_again(connection: duckdb.DuckDBPyConnection, images: NDArray[np.int64]) -> None:
    """Images that were gone and have a new address."""
    if len(images):
        connection.execute(
            "UPDATE image_rows SET gone = NULL WHERE image IN (SELECT unnest(?))", [images.tolist()]
        )


def remove(connection: duckdb.DuckDBPyConnection, number: int, image_key: str) -> None:
    """Forgets the changes of a file that is broken: the next run looks at the addresses again."""
    connection.execute(
        """
        UPDATE source_rows SET gone = NULL, stamp = ''
        FROM change_rows
        WHERE change_rows.shard_number = $number AND source_rows.uri = change_rows.uri
          AND source_rows.image IN (SELECT image FROM image_rows WHERE image_id = change_rows.image_id)
          AND NOT EXISTS (
              FROM source_rows later
              WHERE later.uri = source_rows.uri AND later.shard_number > source_rows.shard_number)""",
        {"number": number},
    )
    mark_gone(connection, image_key)
