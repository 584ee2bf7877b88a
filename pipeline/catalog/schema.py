"""The catalog's tables and views, as migrations; docs/catalog.md describes what people may query."""

from collections.abc import Callable
from datetime import UTC, datetime

import duckdb

from pipeline import MillError

# Columns of `source_rows`, by image: those of its first address, of one that is there if any is. Most images
# have one address; only the others are grouped.
OWN_CAPTIONS = """
    SELECT image, caption, captions, fields, coalesce(first_caption, caption) AS first_caption
    FROM source_rows WHERE image NOT IN (SELECT image FROM source_rows WHERE later)
    UNION ALL
    SELECT image, arg_min(caption, (gone IS NOT NULL, shard_number, row)),
           arg_min(captions, (gone IS NOT NULL, shard_number, row)),
           arg_min(fields, (gone IS NOT NULL, shard_number, row)),
           arg_min(coalesce(first_caption, caption), (shard_number, row))
    FROM source_rows WHERE image IN (SELECT image FROM source_rows WHERE later) GROUP BY image"""
# What the view `images` shows, and the part.
IMAGE_FACTS = """
    SELECT image, image_id, CASE WHEN gone IS NULL THEN status ELSE 'gone' END AS status,
           coalesce(gone, reason) AS reason, width, height, raw_width, raw_height, raw_format, raw_bytes,
           coalesce(upright_width, raw_width) / coalesce(upright_height, raw_height) AS aspect,
           frames, colour_space, damage, orientation, upright_width, upright_height,
           crop_left, crop_top, crop_width, crop_height,
           1 - crop_width::BIGINT * crop_height / (upright_width::BIGINT * upright_height) AS cropped,
           sharpness, contrast, colour, grey, phash, group_id,
           gone IS NULL AND (leader IS NULL OR image IN (
               SELECT image FROM image_rows JOIN shard_rows USING (shard_number)
               WHERE gone IS NULL
                 AND (leader < 0 OR leader IN (SELECT image FROM image_rows WHERE gone IS NOT NULL))
               QUALIFY row_number() OVER (PARTITION BY leader ORDER BY part, row) = 1
           )) AS first_of_group,
           split, http_status, transient, shard, row, part
    FROM image_rows JOIN shard_rows USING (shard_number)
    WHERE key = (SELECT value FROM settings WHERE name = 'image_key')"""
# The caption of an image, of its `own` ones and what a network `made`.
CAPTION = """
    CASE WHEN made.caption IS NULL
           OR (own.caption <> ''
               AND (SELECT value FROM settings WHERE name = 'caption_when') = 'missing')
         THEN own.caption ELSE made.caption END"""
MADE_CAPTIONS = """
    SELECT image, caption_rows.caption FROM caption_rows JOIN shard_rows USING (shard_number)
    WHERE key = (SELECT value FROM settings WHERE name = 'caption_key')"""

# For millions of images: whom an image follows and which addresses came later are written down when they are
# committed, so that no question has to compare all images with each other.
MANY = f"""
    -- whose group an image joined, negative where that was taken out; NULL = its own
    ALTER TABLE image_rows ADD COLUMN leader INTEGER;
    UPDATE image_rows SET leader = led.leader
    FROM (
        WITH keyed AS (
            SELECT image, image_id, group_id, key FROM image_rows JOIN shard_rows USING (shard_number)
        )
        SELECT other.image,
               coalesce(first.image, -min(other.image) OVER (PARTITION BY other.key, other.group_id))
                   AS leader
        FROM keyed other LEFT JOIN keyed first ON first.image_id = other.group_id AND first.key = other.key
        WHERE other.group_id <> other.image_id
    ) led
    WHERE image_rows.image = led.image;
    ALTER TABLE source_rows ADD COLUMN later BOOLEAN;  -- whether its image had an address before
    UPDATE source_rows SET later = true
    FROM (SELECT rowid AS place, row_number() OVER (PARTITION BY image ORDER BY shard_number, row) AS turn
          FROM source_rows) turns
    WHERE source_rows.rowid = place AND turn > 1;

    CREATE OR REPLACE VIEW images AS SELECT * EXCLUDE (part) FROM ({IMAGE_FACTS});

    CREATE OR REPLACE VIEW sources AS
        SELECT image_id, uri, source_rows.caption, captions, caption_problem, fields, stamp, caption_stamp,
               source_rows.gone, part, source_rows.row AS position
        FROM source_rows
        JOIN image_rows USING (image)
        JOIN shard_rows ON shard_rows.shard_number = source_rows.shard_number
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');

    CREATE OR REPLACE VIEW captions AS
        WITH own AS ({OWN_CAPTIONS}), made AS ({MADE_CAPTIONS})
        SELECT image, image_id, {CAPTION} AS caption, own.caption AS source_caption,
               own.captions AS source_captions, own.caption IS DISTINCT FROM first_caption AS caption_changed,
               made.caption AS model_caption, own.fields
        FROM own JOIN image_rows USING (image) JOIN shard_rows USING (shard_number)
             LEFT JOIN made USING (image)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');

    CREATE OR REPLACE VIEW all_annotations AS
        SELECT image, image_id, condition, fingerprint, current, annotation_rows.status,
               annotation_rows.reason, seconds, measures, source_stamp, source_hash,
               shard_rows.shard, annotation_rows.row, part
        FROM annotation_rows
        JOIN shard_rows USING (shard_number)
        JOIN detectors ON detectors.maps = shard_rows.name AND detectors.fingerprint = shard_rows.key
        JOIN image_rows USING (image)
        WHERE shard_rows.image_key = (SELECT value FROM settings WHERE name = 'image_key');
"""

# Integer keys inside and no index: measured on 7 M annotation rows, 61 MB and 2.2 M rows/s, against 602 MB
# and 448 k rows/s with a hex primary key. Rows find their condition and fingerprint through their shard.
# People query the views.
MIGRATIONS = [
    """
    CREATE TABLE settings (name VARCHAR, value VARCHAR);
    CREATE TABLE shards (
        shard INTEGER, kind VARCHAR, key VARCHAR, name VARCHAR, image_key VARCHAR, part INTEGER, path VARCHAR,
        rows INTEGER, bytes BIGINT, sha256 VARCHAR, committed TIMESTAMP
    );
    CREATE TABLE detectors (
        condition VARCHAR, fingerprint VARCHAR, detector VARCHAR, version VARCHAR, weights VARCHAR,
        params VARCHAR, licence VARCHAR, identity VARCHAR, current BOOLEAN
    );
    CREATE TABLE image_rows (
        image INTEGER, image_id VARCHAR, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR,
        width INTEGER, height INTEGER, raw_width INTEGER, raw_height INTEGER, raw_format VARCHAR,
        raw_bytes BIGINT, group_id VARCHAR, split VARCHAR
    );
    CREATE TABLE source_rows (
        image INTEGER, shard INTEGER, row INTEGER, uri VARCHAR, caption VARCHAR, fields VARCHAR
    );
    CREATE TABLE annotation_rows (
        image INTEGER, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR, seconds FLOAT,
        measures MAP(VARCHAR, DOUBLE)
    );
    CREATE TABLE latent_rows (image INTEGER, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR);
    CREATE TABLE runs (
        run VARCHAR, conditions VARCHAR[], base VARCHAR, base_fingerprint VARCHAR, random_weights BOOLEAN,
        images BIGINT, steps BIGINT, seconds DOUBLE, checkpoint VARCHAR, options VARCHAR, status VARCHAR,
        reason VARCHAR
    );
    CREATE TABLE sample_rows (
        shard INTEGER, row INTEGER, image_id VARCHAR, hint_image_id VARCHAR, seed BIGINT, status VARCHAR,
        reason VARCHAR, seconds FLOAT
    );
    CREATE TABLE score_rows (
        shard INTEGER, row INTEGER, image_id VARCHAR, seed BIGINT, status VARCHAR, reason VARCHAR,
        metric VARCHAR, value DOUBLE
    );
    CREATE TABLE scores (
        system VARCHAR, run VARCHAR, condition VARCHAR, metric VARCHAR, metric_version VARCHAR, value DOUBLE,
        low DOUBLE, high DOUBLE, n INTEGER, n_failed INTEGER, higher_is_better BOOLEAN, benchmark VARCHAR,
        detector VARCHAR, checkpoint VARCHAR, seeds VARCHAR
    );
    """,
    # Conditions that share one shard of maps; the quality of an image; captions by a network.
    """
    ALTER TABLE detectors ADD COLUMN maps VARCHAR;
    UPDATE detectors SET maps = condition;
    ALTER TABLE image_rows ADD COLUMN sharpness DOUBLE;
    ALTER TABLE image_rows ADD COLUMN contrast DOUBLE;
    ALTER TABLE image_rows ADD COLUMN colour DOUBLE;
    ALTER TABLE image_rows ADD COLUMN grey BOOLEAN;
    ALTER TABLE image_rows ADD COLUMN phash UBIGINT;
    CREATE TABLE caption_rows (
        image INTEGER, shard INTEGER, row INTEGER, status VARCHAR, reason VARCHAR, caption VARCHAR
    );
    """,
    # A part of the images that was taken out comes back in its place, so that groups and splits stay.
    """
    CREATE TABLE lost_rows (key VARCHAR, part INTEGER, row INTEGER, uri VARCHAR);
    """,
    # Scores keep their replicates, so that any two systems of a benchmark can be compared without samples.
    """
    DROP TABLE scores;
    CREATE TABLE scores (
        system VARCHAR, model VARCHAR, arm VARCHAR, condition VARCHAR, metric VARCHAR, metric_version VARCHAR,
        value DOUBLE, low DOUBLE, high DOUBLE, n INTEGER, n_failed INTEGER, prompts INTEGER, method VARCHAR,
        replicates BLOB, higher_is_better BOOLEAN, benchmark VARCHAR, reader VARCHAR, checkpoint VARCHAR,
        identity VARCHAR, mark VARCHAR, marks VARCHAR
    );
    """,
    # Views that can be joined: in them a shard is its path, in the tables below them it is a number. A shard
    # of scores names the samples that it is of (pipeline/catalog/indexing.py finds those of earlier shards).
    """
    DROP VIEW IF EXISTS images;
    DROP VIEW IF EXISTS sources;
    DROP VIEW IF EXISTS captions;
    DROP VIEW IF EXISTS annotations;
    DROP VIEW IF EXISTS samples;
    DROP VIEW IF EXISTS sample_scores;
    ALTER TABLE shards RENAME TO shard_rows;
    ALTER TABLE shard_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE shard_rows RENAME COLUMN path TO shard;
    ALTER TABLE shard_rows ADD COLUMN sample_set VARCHAR;
    ALTER TABLE shard_rows ADD COLUMN sample_key VARCHAR;
    ALTER TABLE image_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE source_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE caption_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE annotation_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE latent_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE sample_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE score_rows RENAME COLUMN shard TO shard_number;
    ALTER TABLE scores RENAME TO estimate_rows;
    ALTER TABLE estimate_rows RENAME COLUMN arm TO variant;
    ALTER TABLE estimate_rows RENAME COLUMN identity TO score_key;
    ALTER TABLE estimate_rows RENAME COLUMN mark TO input_hash;
    ALTER TABLE estimate_rows RENAME COLUMN marks TO caveats;
    ALTER TABLE runs ADD COLUMN name VARCHAR;

    CREATE VIEW shards AS
        SELECT shard, kind, name, key, image_key, part, rows, bytes, sha256, committed FROM shard_rows;

    CREATE VIEW images AS
        SELECT image, image_id, status, reason, width, height, raw_width, raw_height, raw_format, raw_bytes,
               raw_width / raw_height AS aspect, sharpness, contrast, colour, grey, phash, group_id,
               row_number() OVER (PARTITION BY group_id ORDER BY part, row) = 1 AS first_of_group, split,
               shard, row
        FROM image_rows JOIN shard_rows USING (shard_number)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');

    CREATE VIEW sources AS
        SELECT image_id, uri, source_rows.caption, fields, part, source_rows.row AS position
        FROM source_rows
        JOIN images USING (image)
        JOIN shard_rows ON shard_rows.shard_number = source_rows.shard_number;

    CREATE VIEW captions AS
        WITH own AS (
            SELECT image, arg_min(caption, (shard_number, row)) AS caption,
                   arg_min(fields, (shard_number, row)) AS fields
            FROM source_rows GROUP BY image
        ), made AS (
            SELECT image, caption_rows.caption
            FROM caption_rows JOIN shard_rows USING (shard_number)
            WHERE key = (SELECT value FROM settings WHERE name = 'caption_key')
        )
        SELECT image, image_id,
               CASE WHEN made.caption IS NULL
                      OR (own.caption <> ''
                          AND (SELECT value FROM settings WHERE name = 'caption_when') = 'missing')
                    THEN own.caption ELSE made.caption END AS caption,
               own.caption AS source_caption, made.caption AS model_caption, own.fields
        FROM own JOIN images USING (image) LEFT JOIN made USING (image);

    CREATE VIEW all_annotations AS
        SELECT image, image_id, condition, fingerprint, current, annotation_rows.status,
               annotation_rows.reason, seconds, measures, shard_rows.shard, annotation_rows.row, part
        FROM annotation_rows
        JOIN shard_rows USING (shard_number)
        JOIN detectors ON detectors.maps = shard_rows.name AND detectors.fingerprint = shard_rows.key
        JOIN images USING (image);

    CREATE VIEW annotations AS
        SELECT image, image_id, condition, fingerprint, status, reason, seconds, measures, shard, row, part
        FROM all_annotations WHERE current;

    CREATE VIEW samples AS
        WITH named AS (SELECT *, string_split(name, '/') AS words FROM shard_rows WHERE kind = 'samples')
        SELECT name AS sample_set, key AS sample_key,
               CASE WHEN words[1] IN (SELECT run FROM runs) THEN words[1] END AS run, words[2] AS condition,
               regexp_replace(coalesce(words[3], words[1]), '-[0-9]+$', '') AS variant,
               image_id, hint_image_id, seed, status, reason, seconds, shard, row
        FROM sample_rows JOIN named USING (shard_number);

    CREATE VIEW sample_scores AS
        WITH named AS (SELECT *, string_split(name, '/') AS words FROM shard_rows WHERE kind = 'scores')
        SELECT name AS system, sample_set, sample_key, score_key,
               CASE WHEN words[1] IN (SELECT run FROM runs) THEN words[1] END AS run, words[2] AS condition,
               regexp_replace(coalesce(words[3], words[1]), '-[0-9]+$', '') AS variant,
               image_id, seed, status, reason, metric, value, shard, row
        FROM score_rows JOIN (SELECT key AS score_key, * FROM named) USING (shard_number);

    CREATE VIEW scores AS
        WITH drawn AS (
            SELECT name AS system, key AS score_key, max(sample_set) AS sample_set,
                   max(sample_key) AS sample_key
            FROM shard_rows WHERE kind = 'scores' GROUP BY ALL
        )
        SELECT system, model, CASE WHEN model IN (SELECT run FROM runs) THEN model END AS run, condition,
               variant, metric, metric_version, value, low, high, n, n_failed, caveats, prompts, method,
               replicates, higher_is_better, benchmark, sample_set, sample_key, score_key, reader, checkpoint,
               input_hash
        FROM estimate_rows LEFT JOIN drawn USING (system, score_key);
    """,
    # Pictures as they are: frames, colours, damage, what was cut off; addresses with what they looked like,
    # so that a change is noticed, and what changed since.
    """
    DROP VIEW images;
    DROP VIEW sources;
    DROP VIEW captions;
    DROP VIEW all_annotations;
    DROP VIEW annotations;
    ALTER TABLE image_rows ADD COLUMN thumbnail BLOB;
    ALTER TABLE image_rows ADD COLUMN frames INTEGER;
    ALTER TABLE image_rows ADD COLUMN colour_space VARCHAR;
    ALTER TABLE image_rows ADD COLUMN damage VARCHAR;
    ALTER TABLE image_rows ADD COLUMN orientation TINYINT;
    ALTER TABLE image_rows ADD COLUMN upright_width INTEGER;
    ALTER TABLE image_rows ADD COLUMN upright_height INTEGER;
    ALTER TABLE image_rows ADD COLUMN crop_left INTEGER;
    ALTER TABLE image_rows ADD COLUMN crop_top INTEGER;
    ALTER TABLE image_rows ADD COLUMN crop_width INTEGER;
    ALTER TABLE image_rows ADD COLUMN crop_height INTEGER;
    ALTER TABLE image_rows ADD COLUMN http_status INTEGER;
    ALTER TABLE image_rows ADD COLUMN gone VARCHAR;
    ALTER TABLE source_rows ADD COLUMN captions VARCHAR[];
    ALTER TABLE source_rows ADD COLUMN caption_problem VARCHAR;
    ALTER TABLE source_rows ADD COLUMN stamp VARCHAR;
    ALTER TABLE source_rows ADD COLUMN caption_stamp VARCHAR;
    ALTER TABLE source_rows ADD COLUMN gone VARCHAR;
    ALTER TABLE annotation_rows ADD COLUMN source_stamp VARCHAR;
    ALTER TABLE annotation_rows ADD COLUMN source_hash VARCHAR;
    ALTER TABLE source_rows ADD COLUMN first_caption VARCHAR;
    ALTER TABLE latent_rows ADD COLUMN caption VARCHAR;
    CREATE TABLE change_rows (
        shard_number INTEGER, row INTEGER, noticed TIMESTAMP, change VARCHAR, uri VARCHAR, image_id VARCHAR,
        condition VARCHAR, source_hash VARCHAR, stamp VARCHAR, reason VARCHAR
    );

    CREATE VIEW images AS
        SELECT image, image_id, CASE WHEN gone IS NULL THEN status ELSE 'gone' END AS status,
               coalesce(gone, reason) AS reason, width, height, raw_width, raw_height, raw_format, raw_bytes,
               coalesce(upright_width, raw_width) / coalesce(upright_height, raw_height) AS aspect,
               frames, colour_space, damage, orientation, upright_width, upright_height,
               crop_left, crop_top, crop_width, crop_height,
               1 - crop_width::BIGINT * crop_height / (upright_width::BIGINT * upright_height) AS cropped,
               sharpness, contrast, colour, grey, phash, group_id,
               row_number() OVER (PARTITION BY group_id ORDER BY gone IS NOT NULL, part, row) = 1
                   AS first_of_group,
               split, http_status, shard, row
        FROM image_rows JOIN shard_rows USING (shard_number)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');

    CREATE VIEW sources AS
        SELECT image_id, uri, source_rows.caption, captions, caption_problem, fields, stamp, caption_stamp,
               gone, part, source_rows.row AS position
        FROM source_rows
        JOIN images USING (image)
        JOIN shard_rows ON shard_rows.shard_number = source_rows.shard_number;

    CREATE VIEW captions AS
        WITH own AS (
            SELECT image, arg_min(caption, (gone IS NOT NULL, shard_number, row)) AS caption,
                   arg_min(captions, (gone IS NOT NULL, shard_number, row)) AS captions,
                   arg_min(fields, (gone IS NOT NULL, shard_number, row)) AS fields,
                   arg_min(coalesce(first_caption, caption), (shard_number, row)) AS first_caption
            FROM source_rows GROUP BY image
        ), made AS (
            SELECT image, caption_rows.caption
            FROM caption_rows JOIN shard_rows USING (shard_number)
            WHERE key = (SELECT value FROM settings WHERE name = 'caption_key')
        )
        SELECT image, image_id,
               CASE WHEN made.caption IS NULL
                      OR (own.caption <> ''
                          AND (SELECT value FROM settings WHERE name = 'caption_when') = 'missing')
                    THEN own.caption ELSE made.caption END AS caption,
               own.caption AS source_caption, own.captions AS source_captions,
               own.caption IS DISTINCT FROM first_caption AS caption_changed,
               made.caption AS model_caption, own.fields
        FROM own JOIN images USING (image) LEFT JOIN made USING (image);

    CREATE VIEW all_annotations AS
        SELECT image, image_id, condition, fingerprint, current, annotation_rows.status,
               annotation_rows.reason, seconds, measures, source_stamp, source_hash,
               shard_rows.shard, annotation_rows.row, part
        FROM annotation_rows
        JOIN shard_rows USING (shard_number)
        JOIN detectors ON detectors.maps = shard_rows.name AND detectors.fingerprint = shard_rows.key
        JOIN images USING (image);

    CREATE VIEW annotations AS
        SELECT image, image_id, condition, fingerprint, status, reason, seconds, measures, shard, row, part
        FROM all_annotations
        WHERE current AND image NOT IN (SELECT image FROM image_rows WHERE gone IS NOT NULL);

    CREATE VIEW changes AS
        SELECT noticed, change, uri, image_id, condition, reason, shard, row
        FROM change_rows JOIN shard_rows USING (shard_number)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');
    """,
    # Images that could not be read for a while, and are tried again.
    """
    ALTER TABLE image_rows ADD COLUMN transient BOOLEAN;
    CREATE OR REPLACE VIEW images AS
        SELECT image, image_id, CASE WHEN gone IS NULL THEN status ELSE 'gone' END AS status,
               coalesce(gone, reason) AS reason, width, height, raw_width, raw_height, raw_format, raw_bytes,
               coalesce(upright_width, raw_width) / coalesce(upright_height, raw_height) AS aspect,
               frames, colour_space, damage, orientation, upright_width, upright_height,
               crop_left, crop_top, crop_width, crop_height,
               1 - crop_width::BIGINT * crop_height / (upright_width::BIGINT * upright_height) AS cropped,
               sharpness, contrast, colour, grey, phash, group_id,
               row_number() OVER (PARTITION BY group_id ORDER BY gone IS NOT NULL, part, row) = 1
                   AS first_of_group,
               split, http_status, transient, shard, row
        FROM image_rows JOIN shard_rows USING (shard_number)
        WHERE key = (SELECT value FROM settings WHERE name = 'image_key');
    """,
    MANY,
    # What computed the samples and their scores.
    """
    ALTER TABLE shard_rows ADD COLUMN device VARCHAR;
    CREATE OR REPLACE VIEW shards AS
        SELECT shard, kind, name, key, image_key, part, rows, bytes, sha256, committed, device
        FROM shard_rows;
    """,
    # Texts of captions, each distinct one once, by its sha256.
    """
    CREATE TABLE text_rows (
        shard_number INTEGER, row INTEGER, text BLOB, status VARCHAR, reason VARCHAR, may_flip BOOLEAN,
        turned BLOB
    );
    CREATE VIEW texts AS
        SELECT lower(hex(text)) AS text_id, key AS encoder, text_rows.status, text_rows.reason, may_flip,
               shard, text_rows.row
        FROM text_rows JOIN shard_rows USING (shard_number);
    """,
]
JOINABLE = 5  # the migration after which a shard of scores names its samples


def migrate(connection: duckdb.DuckDBPyConnection, link: Callable[[], None] = lambda: None) -> None:
    """Applies what is missing; a migration and the record that it was applied are one transaction.

    `link` finds the samples of the scores that are there, which SQL alone can't. MillError where a newer
    version of ControlMill made the catalog.
    """
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
        if number + 1 == JOINABLE:
            link()
        connection.execute(
            "INSERT INTO migrations VALUES (?, ?)", [number + 1, datetime.now(UTC).replace(tzinfo=None)]
        )
        connection.commit()


def is_current(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the catalog has every migration that this version knows."""
    # all rows: a result that is not read to its end bars the connection from giving Arrow tables
    ((count,),) = connection.execute("SELECT count(*) FROM migrations").fetchall()
    return bool(count >= len(MIGRATIONS))
