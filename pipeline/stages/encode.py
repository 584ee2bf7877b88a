"""Canonical images -> VAE moments and text embeddings of the locked base, once for all conditions."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.cluster import position
from pipeline.cluster.jobs import Job
from pipeline.cluster.position import Limit
from pipeline.experiment.base import base_fingerprint, base_spec, device, flips, latent_key, load_base, pack
from pipeline.stages.stage import (
    GONE,
    StageContext,
    StageResult,
    make_missing,
    of_one_size,
    readable_images,
    readable_parts,
    result,
    rows_by_part,
    work,
)
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row, Shard

BATCH = {"cpu": 4, "cuda": 8}  # images of one size that pass the VAE together
# of a GPU: while one job decodes and writes, three others keep it busy; a VAE in bf16 leaves room for that
LEAST_SHARE = 0.25
LOADING = 120.0  # seconds on top of the limit, where the base may have to be loaded first

CAPTIONED = """SELECT part, image_rows.row, coalesce(caption, '')
               FROM image_rows JOIN shard_rows USING (shard_number) LEFT JOIN captions USING (image)
               WHERE image_rows.status = 'ok'
                 AND key = (SELECT value FROM settings WHERE name = 'image_key')
                 AND part IN (SELECT unnest(?))"""
# rows whose caption is another now, and rows that were left out while their image was gone
STALE = """SELECT part, latent_rows.row
           FROM latent_rows JOIN shard_rows USING (shard_number) JOIN captions USING (image)
                JOIN images USING (image)
           WHERE key = $key AND images.status = 'ok'
             AND (latent_rows.status = 'ok' AND latent_rows.caption <> coalesce(captions.caption, '')
                  OR latent_rows.status = 'skipped')"""
COUNTS = """SELECT status, count(*) FROM latent_rows JOIN shard_rows USING (shard_number)
            WHERE key = ? GROUP BY ALL"""


@dataclass(frozen=True)
class EncodePart:
    """One part of the images, for a worker."""

    path: Path  # of the shard to write
    images: Path
    part: int
    key: str  # of the latents
    image_key: str
    base: str
    flips: bool  # encode the mirror images too
    captions: dict[int, str]  # by row
    gone: frozenset[int]  # rows whose images the source no longer has: they are left out
    again: frozenset[int] | None  # rows whose text is to be made again; None = there is no such shard yet
    made_from: str
    time_limit: float = 600.0  # seconds that one image may take


@functools.cache
def load_encoders(spec: str, device: str) -> Any:
    """On a GPU the VAE, which is nine tenths of the work and more, in bf16; what comes out is stored as
    float16. Texts in float32.
    """
    import torch

    loaded = load_base(spec, ("vae", "text_encoder"), device)
    if device == "cpu":
        return loaded
    vae = loaded.vae.to(torch.bfloat16, memory_format=torch.channels_last)
    # a text encoder computes as its own weights are
    return dataclasses.replace(loaded, vae=vae, dtype=torch.bfloat16)


def encode(context: StageContext) -> StageResult:
    plan = context.plan
    base = base_spec(plan)
    key = latent_key(plan, base_fingerprint(base))
    jobs = list(_jobs(context, base, key))
    share = max(context.cluster.share, LEAST_SHARE) if jobs else 0
    to_do = make_missing(context, encode_part, jobs, label="encode", gpus=share)
    return result(work(to_do, "images"), to_do, dict(context.catalog.query(COUNTS, [key])))


def _jobs(context: StageContext, base: str, key: str) -> Iterator[Job]:
    plan, catalog = context.plan, context.catalog
    stale = rows_by_part(catalog.query(STALE, {"key": key}))
    committed = catalog.committed("latents", key)
    lacking = [part for part in readable_parts(catalog) if part not in committed or part in stale]
    captions: dict[int, dict[int, str]] = {}
    for part, row, caption in catalog.query(CAPTIONED, [lacking]):
        captions.setdefault(part, {})[row] = caption
    for part, images in readable_images(catalog, lacking).items():
        told = [(row, image_id, captions[part][row]) for row, image_id in images.members]
        args = EncodePart(
            path=plan.workspace.latents(key, part),
            images=plan.workspace.images(plan.image_key, part),
            part=part,
            key=key,
            image_key=plan.image_key,
            base=base,
            flips=flips(plan),
            captions=captions[part],
            gone=frozenset(images.gone),
            again=frozenset(stale[part]) if part in committed else None,
            made_from=shards.made_from(key, told),
            time_limit=plan.manifest.train.time_limit if plan.manifest.train else 600.0,
        )
        yield Job(f"encode part {part}", args, images.rows, alike=True)


def encode_part(
    args: EncodePart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Shard | None:
    """In a worker: posterior mean and standard deviation (unscaled) and text embeddings, as float16; with
    flips the mirror image's too.
    """
    pictures = shards.read(args.images, ["image_id", "uri", "width", "height", "image"])
    table: list[Row] = [{"image_id": image_id} for image_id in pictures.column("image_id").to_pylist()]
    if args.again is not None:
        table = shards.read(args.path).to_pylist()
    heights, widths = (pictures.column(name).to_pylist() for name in ("height", "width"))
    for row in args.gone if args.again is None else ():
        table[row] |= {"status": "skipped", "reason": GONE}
    wanted = set(rows if args.again is None else args.again) - args.gone - poison_rows.keys()
    together = position.at_a_time(BATCH[device()])
    for batch in of_one_size(sorted(wanted), lambda row: (heights[row], widths[row]), together):
        position.begin(batch, "", Limit(args.time_limit, "train.time_limit"), loading=LOADING)
        taken = pictures.take(batch).to_pylist()
        captions = [args.captions[row] for row in batch]
        stored = [table[row] for row in batch]
        encoded = _encoded(args.base, taken, captions, stored, mirror=args.flips)
        for row, caption, columns in zip(batch, captions, encoded, strict=True):
            table[row] |= {"status": "ok", "reason": "", "caption": caption} | columns
        position.end(len(batch))
    for row, reason in poison_rows.items():
        table[row] |= {"status": "failed", "reason": reason}
    if not dry_run:
        metadata = {
            "kind": "latents",
            "key": args.key,
            "image_key": args.image_key,
            "part": args.part,
            "made_from": args.made_from,
        }
        schema = shards.FLIPPED_LATENTS if args.flips else shards.LATENTS
        return shards.write(args.path, table, schema, metadata, replace=args.again is not None)
    return None


def _encoded(
    base: str,
    taken: list[Row],
    captions: list[str],
    stored: list[Row],  # moments that are there stay: with another caption only the text is another
    *,
    mirror: bool,
) -> list[dict[str, bytes | None]]:
    """The columns of each row; those of a mirror image are None where the caption would be wrong of it."""
    from train import encoders

    loaded = load_encoders(base, device())
    texts = [
        sources.mirrored_caption(one["uri"], caption) if mirror else None
        for one, caption in zip(taken, captions, strict=True)
    ]
    turned = [number for number, text in enumerate(texts) if text is not None]
    other = [number for number in turned if texts[number] != captions[number]]
    columns: list[dict[str, bytes | None]] = [
        {"mean": one.get("mean"), "std": one.get("std")} | dict.fromkeys(shards.MIRRORED if mirror else ())
        for one in stored
    ]
    for number in turned:
        columns[number] |= {name: stored[number].get(name) for name in ("mean_mirrored", "std_mirrored")}

    def encode_missing(numbers: Iterable[int], mean: str, std: str, step: int) -> None:
        missing = [number for number in numbers if columns[number][mean] is None]
        if not missing:
            return
        images = np.stack([codec.decode(taken[number]["image"])[:, ::step] for number in missing])
        for number, *moments in zip(missing, *encoders.encode_images(loaded, images), strict=True):
            columns[number][mean], columns[number][std] = map(pack, moments)

    encode_missing(range(len(taken)), "mean", "std", 1)
    encode_missing(turned, "mean_mirrored", "std_mirrored", -1)
    for number, text in enumerate(encoders.encode_text(loaded, captions)):
        columns[number]["text"] = pack(text)
    if other:  # a scene's caption that names sides
        for number, text in zip(
            other, encoders.encode_text(loaded, [str(texts[number]) for number in other]), strict=True
        ):
            columns[number]["text_mirrored"] = pack(text)
    return columns
