"""The texts that training may see: which each image has, which are not encoded yet, where the others lie."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog import Catalog
from pipeline.scenes.description import mirrored

# Images of earlier shards: their text lies beside their moments, and is their caption still.
BESIDE = """
    SELECT image FROM latent_rows JOIN shard_rows USING (shard_number) JOIN captions USING (image)
    WHERE key = $latents AND NOT $drawn AND latent_rows.status = 'ok'
      AND latent_rows.caption = coalesce(captions.caption, '')"""
# Of each other readable image: all of its captions where training draws one, else the first.
SAID = f"""
    SELECT image, unnest(texts) AS caption, generate_subscripts(texts, 1) AS turn
    FROM (SELECT image, CASE WHEN $drawn AND source_caption = caption AND len(source_captions) > 1
                             THEN source_captions ELSE [coalesce(caption, '')] END AS texts
          FROM captions WHERE image IN (SELECT image FROM image_rows WHERE status = 'ok'))
    WHERE image NOT IN ({BESIDE})"""
SCENES = "SELECT image FROM source_rows WHERE starts_with(uri, 'scene://')"
STORED = """
    SELECT text, min(part::BIGINT << 32 | row) AS place, any_value(may_flip) AS may_flip,
           any_value(turned) AS turned
    FROM text_rows JOIN shard_rows USING (shard_number)
    WHERE key = $encoder AND status = 'ok' GROUP BY text"""
KNOWN = "SELECT text FROM text_rows JOIN shard_rows USING (shard_number) WHERE key = $encoder"
MISSING = f"""
    WITH said AS ({SAID})
    SELECT caption FROM (SELECT caption, min((image, turn)) AS first FROM said GROUP BY caption)
    WHERE unhex(sha256(caption)) NOT IN ({KNOWN}) ORDER BY first"""
# of scenes, whose mirror images have captions of their own
SIDED = f"""
    WITH said AS ({SAID})
    SELECT DISTINCT caption FROM said
    WHERE image IN ({SCENES}) AND regexp_matches(caption, '\\b(left|right)\\b') ORDER BY ALL"""
UNKNOWN = f"""
    SELECT caption FROM (SELECT unnest($captions) AS caption)
    WHERE unhex(sha256(caption)) NOT IN ({KNOWN})"""
# of each image and text its place, and that of the text of the mirrored image; NULL where that has none
PLACES = f"""
    WITH said AS ({SAID}), stored AS ({STORED}), scenes AS ({SCENES})
    SELECT image, turn, caption, stored.place,
           CASE WHEN image IN (FROM scenes) THEN other.place
                WHEN stored.may_flip THEN stored.place END AS twin
    FROM said JOIN stored ON stored.text = unhex(sha256(caption))
         LEFT JOIN stored other ON other.text = stored.turned"""
# `told`: 64 bits of what an image's texts are
SEVERAL = f"""
    SELECT image, list(place ORDER BY turn) AS texts, list(twin ORDER BY turn) AS mirrored_texts,
           md5_number_lower(string_agg(caption, chr(31) ORDER BY turn)) AS told
    FROM ({PLACES}) GROUP BY image ORDER BY image"""
ONE = f"""
    SELECT image, [place] AS texts, [twin] AS mirrored_texts FROM ({PLACES}) ORDER BY image"""


@dataclass(frozen=True)
class TextKeys:
    """What decides which texts there are, and where."""

    encoder: str  # key of the shards of texts
    latents: str  # key of the shards of latents
    drawn: bool  # whether training draws one of an image's captions
    flips: bool  # whether some run sees mirrored images

    @property
    def of_images(self) -> dict[str, str | bool]:
        return {"latents": self.latents, "drawn": self.drawn}


def missing_texts(catalog: Catalog, keys: TextKeys, at_once: int) -> Iterator[pa.RecordBatch]:
    """The distinct texts that are not encoded yet, in the order of their images; a column `caption`."""
    found = catalog.arrow(MISSING, keys.of_images | {"encoder": keys.encoder}).cast(CAPTION)
    if keys.flips:
        sided = catalog.query(SIDED, keys.of_images)
        turned = {"captions": [mirrored(caption) for (caption,) in sided], "encoder": keys.encoder}
        known = set(found["caption"].to_pylist()) if sided else set()
        more = (
            [caption for (caption,) in catalog.query(UNKNOWN, turned) if caption not in known]
            if sided
            else []
        )
        found = pa.concat_tables([found, pa.table({"caption": list(dict.fromkeys(more))}, CAPTION)])
    yield from found.combine_chunks().to_batches(at_once)


CAPTION = pa.schema([("caption", pa.string())])


@dataclass(frozen=True)
class TextPlaces:
    """Where the texts of images lie: `part << 32 | row` of their shards."""

    images: NDArray[np.int64]  # rising
    table: pa.Table  # texts, mirrored_texts, and where training draws one of several `told`

    def of(self, images: NDArray[np.integer]) -> pa.Table:
        """A row for each; null where it has none."""
        place = np.searchsorted(self.images, images)
        there = place < len(self.images)
        there[there] = self.images[place[there]] == images[there]
        return self.table.take(pa.array(place, mask=~there))


def text_places(catalog: Catalog, keys: TextKeys) -> TextPlaces:
    """Of all images whose text is not beside their moments."""
    asked = keys.of_images | {"encoder": keys.encoder}
    found = catalog.arrow(SEVERAL if keys.drawn else ONE, asked).combine_chunks()
    return TextPlaces(found["image"].to_numpy().astype(np.int64), found.drop_columns(["image"]))


def first_of_each(places: pa.Table) -> pa.Table:
    """Rows of `TextPlaces.of` with no text but the first."""
    cut = lambda column: pc.list_slice(column, 0, 1)
    lists = {name: cut(places[name]) for name in ("texts", "mirrored_texts")}
    return pa.table(lists | {name: places[name] for name in places.column_names if name not in lists})
