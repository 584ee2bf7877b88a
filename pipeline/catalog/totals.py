"""How many rows there are, by status and reason: counted in the tables below the views, which would join all
images to say the same.
"""

from dataclasses import dataclass, field

from pipeline.catalog import Catalog

_KEY = "key = (SELECT value FROM settings WHERE name = 'image_key')"
ANY_GONE = "SELECT count(*) FROM image_rows WHERE gone IS NOT NULL"
NOT_GONE = "image NOT IN (SELECT image FROM image_rows WHERE gone IS NOT NULL)"
IMAGES = f"""
    SELECT CASE WHEN gone IS NULL THEN status ELSE 'gone' END AS shown, count(*)
    FROM image_rows JOIN shard_rows USING (shard_number) WHERE {_KEY} GROUP BY shown"""
TRANSIENT = f"""
    SELECT count(*) FROM image_rows JOIN shard_rows USING (shard_number)
    WHERE {_KEY} AND status = 'failed' AND gone IS NULL AND transient"""
SPLITS = f"""
    SELECT split, count(*) FROM image_rows JOIN shard_rows USING (shard_number)
    WHERE {_KEY} AND status = 'ok' AND gone IS NULL GROUP BY split ORDER BY split"""
ADDRESSES = f"""
    SELECT count(*), count(caption_problem) FROM source_rows JOIN shard_rows USING (shard_number)
    WHERE {_KEY} AND gone IS NULL"""
# A shard of maps has one row for each readable image of its part: only the rows that are not ok are counted
# one by one.
MAPS = f"""
    WITH readable AS (
        SELECT part, count(*) AS n FROM image_rows JOIN shard_rows USING (shard_number)
        WHERE kind = 'images' AND {_KEY} AND status = 'ok' AND gone IS NULL GROUP BY part
    )
    SELECT condition, detector, fingerprint, coalesce(sum(n), 0)::BIGINT
    FROM detectors
         LEFT JOIN shard_rows ON kind = 'maps' AND name = maps AND key = fingerprint
         LEFT JOIN readable USING (part)
    WHERE current GROUP BY ALL"""
TOLD = """
    WITH told AS (
        SELECT shard_number, status, reason, count(*) AS n FROM annotation_rows
        WHERE (status <> 'ok' OR reason <> '') AND {present} GROUP BY ALL
    )
    SELECT condition, status, reason, sum(n)::BIGINT
    FROM told
         JOIN shard_rows USING (shard_number)
         JOIN detectors ON detectors.maps = name AND fingerprint = key
    WHERE current GROUP BY ALL"""


@dataclass(frozen=True)
class MapTotals:
    """The maps of the detector in force of a condition; those of images that are gone are not counted."""

    condition: str
    detector: str
    fingerprint: str
    rows: int
    told: dict[tuple[str, str], int] = field(default_factory=dict)  # status, reason -> rows that give one

    def of_status(self, status: str) -> int:
        others = dict.fromkeys(("skipped", "failed"), 0)
        for (name, _), count in self.told.items():
            others[name] = others.get(name, 0) + count
        return self.rows - others["skipped"] - others["failed"] if status == "ok" else others[status]

    @property
    def doubtful(self) -> int:
        """Of those that are ok."""
        return sum(count for (status, _), count in self.told.items() if status == "ok")


def images(catalog: Catalog) -> dict[str, int]:
    """By status; `gone` is one."""
    return dict(catalog.query(IMAGES))


def transient(catalog: Catalog) -> int:
    """Images that could not be read for a while, and are tried again."""
    return int(catalog.row(TRANSIENT)[0])


def splits(catalog: Catalog) -> dict[str, int]:
    """Readable images that are there, by split."""
    return dict(catalog.query(SPLITS))


def addresses(catalog: Catalog) -> tuple[int, int]:
    """How many are there, and of how many the caption could not be read."""
    count, unread = catalog.row(ADDRESSES)
    return count, unread


def maps(catalog: Catalog) -> list[MapTotals]:
    """Of each condition that has a detector in force."""
    told: dict[str, dict[tuple[str, str], int]] = {}
    present = NOT_GONE if catalog.row(ANY_GONE)[0] else "true"
    for condition, status, reason, count in catalog.query(TOLD.format(present=present)):
        told.setdefault(condition, {})[status, reason] = count
    return [
        MapTotals(condition, detector, mark, rows, told.get(condition, {}))
        for condition, detector, mark, rows in catalog.query(MAPS)
    ]
