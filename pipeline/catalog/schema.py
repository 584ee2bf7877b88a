"""The catalog's tables and views, as migrations; what people may query by name."""

from datetime import UTC, datetime
from typing import Any

from pipeline import MillError

# Integer keys inside and no index: measured on 7 M annotation rows, 61 MB and 2.2 M rows/s, against 602 MB
# and 448 k rows/s with a hex primary key. Rows find their condition and fingerprint through their shard.
# People query the views.
MIGRATIONS = [
    """
    CREATE TABLE settings (name VARCHAR, value VARCHAR);
    CREATE TABLE shards (
        shard INTEGER, kind VARCHAR, key VARCHAR, name VARCHAR, image_key VARCHAR, part INTEGER, path VARCHAR,
        rows INTEGER, bytes BIGINT, sha256 VARCHAR, committed TIMESTAMP);
    CREATE TABLE detectors (
        condition VARCHAR, fingerprint VARCHAR, detector VARCHAR, version VARCHAR, weights VARCHAR,
        params VARCHAR, licence VARCHAR, identity VARCHAR, current BOOLEAN);
    CREATE TABLE image_rows (
        image INTEGER, image_id VARCHAR, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR,
        width INTEGER, height INTEGER, raw_width INTEGER, raw_height INTEGER, raw_format VARCHAR, raw_bytes
        BIGINT,
        group_id VARCHAR, split VARCHAR);
    CREATE TABLE source_rows (image INTEGER, shard INTEGER, row INTEGER, uri VARCHAR, caption VARCHAR, fields
    VARCHAR);
    CREATE TABLE annotation_rows (
        image INTEGER, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR, seconds FLOAT,
        measures MAP(VARCHAR, DOUBLE));
    CREATE TABLE latent_rows (image INTEGER, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR);
    CREATE TABLE runs (
        run VARCHAR, conditions VARCHAR[], base VARCHAR, base_fingerprint VARCHAR, random_weights BOOLEAN,
        images BIGINT,
        steps BIGINT, seconds DOUBLE, checkpoint VARCHAR, options VARCHAR, status VARCHAR, reason VARCHAR);
    CREATE TABLE sample_rows (
        shard INTEGER, row INTEGER, image_id VARCHAR, hint_image_id VARCHAR, seed BIGINT, status VARCHAR,
        reason VARCHAR,
        seconds FLOAT);
    CREATE TABLE score_rows (
        shard INTEGER, row INTEGER, image_id VARCHAR, seed BIGINT, status VARCHAR, reason VARCHAR, metric
        VARCHAR, value DOUBLE);

    CREATE VIEW images AS
        SELECT image, image_id, status, reason, width, height, raw_width, raw_height, raw_format, raw_bytes,
        group_id, split,
               path AS shard, row
        FROM image_rows JOIN shards USING (shard)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');
    CREATE VIEW sources AS
        SELECT image_id, uri, caption, fields, part, source_rows.row AS position
        FROM source_rows JOIN images USING (image) JOIN shards ON shards.shard = source_rows.shard;
    CREATE VIEW captions AS
        SELECT image, arg_min(caption, (shard, row)) AS caption FROM source_rows GROUP BY image;
    CREATE VIEW annotations AS
        SELECT annotation_rows.image, image_id, shards.name AS condition, shards.key AS fingerprint,
        annotation_rows.status, annotation_rows.reason,
               seconds, measures, path AS shard, annotation_rows.row, part
        FROM annotation_rows JOIN shards ON shards.shard = annotation_rows.shard
        JOIN detectors ON detectors.condition = shards.name AND detectors.fingerprint = shards.key
        JOIN images ON images.image = annotation_rows.image
        WHERE detectors.current;
    CREATE VIEW samples AS
        SELECT shards.name AS system, key AS benchmark, image_id, hint_image_id, seed, status, reason,
        seconds, path AS shard, row
        FROM sample_rows JOIN shards USING (shard);
    CREATE VIEW sample_scores AS
        SELECT shards.name AS system, key AS benchmark, image_id, seed, status, reason, metric, value, path
        AS shard, row
        FROM score_rows JOIN shards USING (shard);
    CREATE TABLE scores (
        system VARCHAR, run VARCHAR, condition VARCHAR, metric VARCHAR, metric_version VARCHAR, value DOUBLE,
        low DOUBLE, high DOUBLE,
        n INTEGER, n_failed INTEGER, higher_is_better BOOLEAN, benchmark VARCHAR, detector VARCHAR,
        checkpoint VARCHAR, seeds VARCHAR);
    """,
    # Conditions that share one shard of maps; how an image looks; captions by a network.
    """
    ALTER TABLE detectors ADD COLUMN maps VARCHAR;
    UPDATE detectors SET maps = condition;
    CREATE OR REPLACE VIEW annotations AS
        SELECT annotation_rows.image, image_id, detectors.condition, shards.key AS fingerprint,
        annotation_rows.status, annotation_rows.reason,
               seconds, measures, path AS shard, annotation_rows.row, part
        FROM annotation_rows JOIN shards ON shards.shard = annotation_rows.shard
        JOIN detectors ON detectors.maps = shards.name AND detectors.fingerprint = shards.key
        JOIN images ON images.image = annotation_rows.image
        WHERE detectors.current;
    ALTER TABLE image_rows ADD COLUMN sharpness DOUBLE;
    ALTER TABLE image_rows ADD COLUMN contrast DOUBLE;
    ALTER TABLE image_rows ADD COLUMN colour DOUBLE;
    ALTER TABLE image_rows ADD COLUMN grey BOOLEAN;
    ALTER TABLE image_rows ADD COLUMN phash UBIGINT;
    CREATE OR REPLACE VIEW images AS
        SELECT image, image_id, status, reason, width, height, raw_width, raw_height, raw_format, raw_bytes,
        group_id, split,
               path AS shard, row, raw_width / raw_height AS aspect, sharpness, contrast, colour, grey, phash,
               image = min(image) OVER (PARTITION BY group_id) AS first_of_group
        FROM image_rows JOIN shards USING (shard)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');
    CREATE TABLE caption_rows (image INTEGER, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR,
    caption VARCHAR);
    CREATE OR REPLACE VIEW captions AS
        WITH own AS (SELECT image, arg_min(caption, (shard, row)) AS caption, arg_min(fields, (shard, row))
        AS fields
                     FROM source_rows GROUP BY image),
             made AS (SELECT image, caption_rows.caption FROM caption_rows JOIN shards USING (shard)
                      WHERE key = (SELECT value FROM settings WHERE name = 'caption_key'))
        SELECT image, CASE WHEN made.caption IS NULL
                             OR (own.caption <> '' AND (SELECT value FROM settings WHERE name =
                             'caption_when') = 'missing')
                           THEN own.caption ELSE made.caption END AS caption,
               own.caption AS source_caption, made.caption AS model_caption, own.fields
        FROM own LEFT JOIN made USING (image);
    """,
    # A part of the images that was taken out comes back in its place, so that groups and splits stay as they
    # were.
    """
    CREATE TABLE lost_rows (key VARCHAR, part INTEGER, row INTEGER, uri VARCHAR);
    CREATE OR REPLACE VIEW images AS
        SELECT image, image_id, status, reason, width, height, raw_width, raw_height, raw_format, raw_bytes,
        group_id, split,
               path AS shard, row, raw_width / raw_height AS aspect, sharpness, contrast, colour, grey, phash,
               row_number() OVER (PARTITION BY group_id ORDER BY part, row) = 1 AS first_of_group
        FROM image_rows JOIN shards USING (shard)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');
    """,
    # Scores keep their replicates, so that any two systems of a benchmark can be compared without their
    # samples.
    """
    DROP TABLE scores;
    CREATE TABLE scores (
        system VARCHAR, model VARCHAR, arm VARCHAR, condition VARCHAR, metric VARCHAR, metric_version
        VARCHAR, value DOUBLE, low DOUBLE,
        high DOUBLE, n INTEGER, n_failed INTEGER, prompts INTEGER, method VARCHAR, replicates BLOB,
        higher_is_better BOOLEAN,
        benchmark VARCHAR, reader VARCHAR, checkpoint VARCHAR, identity VARCHAR, mark VARCHAR, marks VARCHAR);
    """,
]


def migrate(connection: Any) -> None:
    """Applies what is missing; a migration and the record that it was applied are one transaction."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (version INTEGER, applied TIMESTAMP)")
    newest = connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
    version = newest[0] if newest else 0
    if version > len(MIGRATIONS):
        raise MillError(
            f"The catalog has schema {version}, this ControlMill knows {len(MIGRATIONS)}: use the newer"
            " version that made it."
        )
    for number in range(version, len(MIGRATIONS)):
        connection.begin()
        connection.execute(MIGRATIONS[number])
        connection.execute(
            "INSERT INTO migrations VALUES (?, ?)", [number + 1, datetime.now(UTC).replace(tzinfo=None)]
        )
        connection.commit()


def is_current(connection: Any) -> bool:
    """Whether the catalog has every migration that this version knows."""
    return bool(connection.execute("SELECT count(*) FROM migrations").fetchone()[0] >= len(MIGRATIONS))
