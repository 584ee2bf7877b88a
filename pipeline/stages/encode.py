"""Canonical images -> VAE moments and text embeddings of the locked base, once for all conditions."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotate.flips import may_flip
from pipeline.cluster import position
from pipeline.cluster.jobs import Job
from pipeline.cluster.position import Limit
from pipeline.experiment.base import (
    base_fingerprint,
    base_spec,
    device,
    flips,
    latent_key,
    load_base,
    text_keys,
)
from pipeline.experiment.packing import pack
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
from pipeline.stages.texts import make_texts
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row, Shard

# Images of one size that pass the VAE together; halved where memory runs out. On a CPU several are no faster
# than one, and what an image gives would depend on its neighbours.
BATCH = {"cpu": 1, "cuda": 8}
# of a GPU: while one job decodes and writes, three others keep it busy; a VAE in bf16 leaves room for that
LEAST_SHARE = 0.25
LOADING = 120.0  # seconds on top of the limit, where the base may have to be loaded first

# rows that were left out while their image was gone
STALE = """SELECT part, latent_rows.row
           FROM latent_rows JOIN shard_rows USING (shard_number) JOIN images USING (image)
           WHERE key = ? AND images.status = 'ok' AND latent_rows.status = 'skipped'"""
# Rows of earlier shards, which hold no mirror image where the caption of then names a side: those whose
# caption is another now, or one of several.
UNMIRRORED = """SELECT part, latent_rows.row, latent_rows.caption
                FROM latent_rows JOIN shard_rows USING (shard_number) JOIN captions USING (image)
                     JOIN images USING (image)
                WHERE key = $key AND images.status = 'ok' AND latent_rows.status = 'ok'
                  AND regexp_matches(latent_rows.caption, '(?i)left|right')
                  AND ($drawn OR latent_rows.caption <> coalesce(captions.caption, ''))"""
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
    gone: frozenset[int]  # rows whose images the source no longer has: they are left out
    again: frozenset[int] | None  # rows that are to be made again; None = there is no such shard yet
    made_from: str
    time_limit: float = 600.0  # seconds that one image may take


@functools.cache
def load_vae(spec: str, device: str) -> Any:
    """On a GPU in bf16; what comes out is stored as float16."""
    import torch

    loaded = load_base(spec, ("vae",), device)
    if device == "cpu":
        return loaded
    vae = loaded.vae.to(torch.bfloat16, memory_format=torch.channels_last)
    return dataclasses.replace(loaded, vae=vae, dtype=torch.bfloat16)


def encode(context: StageContext) -> StageResult:
    plan = context.plan
    base = base_spec(plan)
    key = latent_key(plan, base_fingerprint(base))
    texts = make_texts(context, base, text_keys(plan, base))
    jobs = list(_jobs(context, base, key))
    share = max(context.cluster.share, LEAST_SHARE) if jobs else 0
    to_do = make_missing(context, encode_part, jobs, label="encode", gpus=share)
    sentence = work(to_do, "images") + (f"; {texts} texts to do" if texts else "")
    return result(sentence, to_do, dict(context.catalog.query(COUNTS, [key])))


def _jobs(context: StageContext, base: str, key: str) -> Iterator[Job]:
    plan, catalog = context.plan, context.catalog
    stale = rows_by_part(catalog.query(STALE, [key]))
    if flips(plan):
        asked = {"key": key, "drawn": plan.manifest.draws_captions}
        for part, row, caption in catalog.query(UNMIRRORED, asked):
            if not may_flip(caption):
                stale.setdefault(part, set()).add(row)
    committed = catalog.committed("latents", key)
    lacking = [part for part in readable_parts(catalog) if part not in committed or part in stale]
    for part, images in readable_images(catalog, lacking).items():
        args = EncodePart(
            path=plan.workspace.latents(key, part),
            images=plan.workspace.images(plan.image_key, part),
            part=part,
            key=key,
            image_key=plan.image_key,
            base=base,
            flips=flips(plan),
            gone=frozenset(images.gone),
            again=frozenset(stale[part]) if part in committed else None,
            made_from=shards.made_from(key, images.members),
            time_limit=plan.manifest.train.time_limit if plan.manifest.train else 600.0,
        )
        yield Job(f"encode part {part}", args, images.rows, alike=True)


def encode_part(
    args: EncodePart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Shard | None:
    """In a worker: posterior mean and standard deviation (unscaled) as float16; with flips the mirror
    image's too.
    """
    from train.out_of_memory import in_parts

    pictures = shards.read(args.images, ["image_id", "width", "height", "image"])
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
        taken = dict(zip(batch, pictures.take(batch).to_pylist(), strict=True))

        def encoded(some: list[int], taken: dict[int, Row] = taken) -> list[dict[str, bytes | None]]:
            stored = [table[row] for row in some]
            return _encoded(args.base, [taken[row] for row in some], stored, mirror=args.flips)

        for row, columns in zip(batch, in_parts(encoded, list(batch)), strict=True):
            table[row] = {"image_id": table[row]["image_id"], "status": "ok", "reason": ""} | columns
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
    stored: list[Row],  # moments that are there stay
    *,
    mirror: bool,
) -> list[dict[str, bytes | None]]:
    """The moments of each row, and those of its mirror image, whatever its captions say of sides."""
    from train import encoders

    loaded = load_vae(base, device())
    wanted = [("mean", "std", 1), *([("mean_mirrored", "std_mirrored", -1)] if mirror else [])]
    columns: list[dict[str, bytes | None]] = [
        {name: one.get(name) for mean, std, _ in wanted for name in (mean, std)} for one in stored
    ]
    for mean, std, step in wanted:
        missing = [number for number, one in enumerate(columns) if one[mean] is None]
        if not missing:
            continue
        images = np.stack([codec.decode(taken[number]["image"])[:, ::step] for number in missing])
        for number, *moments in zip(missing, *encoders.encode_images(loaded, images), strict=True):
            columns[number][mean], columns[number][std] = map(pack, moments)
    return columns
