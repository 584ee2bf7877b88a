"""Canonical images -> VAE moments and text embeddings of the locked base, once for all conditions."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.cluster.jobs import Job
from pipeline.experiment.base import base_fingerprint, base_spec, device, flips, latent_key, load_base, pack
from pipeline.stages.stage import StageContext, StageResult, make_missing, of_one_size, result, work
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row

BATCH = {"cpu": 4, "cuda": 8}  # images of one size that pass the VAE together
# of a GPU: while one job decodes and writes, three others keep it busy; a VAE in bf16 leaves room for that
LEAST_SHARE = 0.25

CAPTIONED = """SELECT part, row, image_id, coalesce(caption, '')
               FROM images JOIN shards USING (shard) LEFT JOIN captions USING (image, image_id)
               WHERE status = 'ok' ORDER BY ALL"""
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
    made_from: str


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
    parts: dict[int, list[tuple[int, str, str]]] = {}
    for part, row, image_id, caption in catalog.query(CAPTIONED):
        parts.setdefault(part, []).append((row, image_id, caption))
    committed = catalog.committed("latents", key)
    for part, members in parts.items():
        if part in committed:
            continue
        args = EncodePart(
            path=plan.workspace.latents(key, part),
            images=plan.workspace.images(plan.image_key, part),
            part=part,
            key=key,
            image_key=plan.image_key,
            base=base,
            flips=flips(plan),
            captions={row: caption for row, _, caption in members},
            made_from=shards.made_from(key, members),
        )
        yield Job(f"encode part {part}", args, tuple(row for row, *_ in members))


def encode_part(args: EncodePart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> Path:
    """In a worker: posterior mean and standard deviation (unscaled) and text embeddings, as float16; with
    flips the mirror image's too.
    """
    pictures = shards.read(args.images, ["image_id", "uri", "width", "height", "image"])
    table: list[Row] = [{"image_id": image_id} for image_id in pictures.column("image_id").to_pylist()]
    heights, widths = (pictures.column(name).to_pylist() for name in ("height", "width"))
    todo = [row for row in rows if row not in poison_rows]
    for batch in of_one_size(todo, lambda row: (heights[row], widths[row]), BATCH[device()]):
        taken = pictures.take(batch).to_pylist()
        captions = [args.captions[row] for row in batch]
        encoded = _encoded(args.base, taken, captions, mirror=args.flips)
        for row, caption, arrays in zip(batch, captions, encoded, strict=True):
            table[row] |= {"status": "ok", "reason": "", "caption": caption}
            table[row] |= {name: pack(array) for name, array in arrays.items()}
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
        shards.write(args.path, table, schema, metadata)
    return args.path


def _encoded(
    base: str, taken: list[Row], captions: list[str], *, mirror: bool
) -> list[dict[str, np.ndarray]]:
    """The arrays of each row; those of a mirror image are left out where the caption would be wrong of it."""
    from train import encoders

    loaded = load_encoders(base, device())
    images = np.stack([codec.decode(one["image"]) for one in taken])
    texts = [
        sources.mirrored_caption(one["uri"], caption) if mirror else None
        for one, caption in zip(taken, captions, strict=True)
    ]
    turned = [number for number, text in enumerate(texts) if text is not None]
    other = [number for number in turned if texts[number] != captions[number]]
    made: list[dict[str, np.ndarray]] = [{} for _ in taken]
    for number, mean, std, text in zip(
        range(len(taken)),
        *encoders.encode_images(loaded, images),
        encoders.encode_text(loaded, captions),
        strict=True,
    ):
        made[number] |= {"mean": mean, "std": std, "text": text}
    if turned:
        for number, mean, std in zip(
            turned, *encoders.encode_images(loaded, images[turned, :, ::-1]), strict=True
        ):
            made[number] |= {"mean_mirrored": mean, "std_mirrored": std}
    if other:  # a scene's caption that names sides
        for number, text in zip(
            other, encoders.encode_text(loaded, [str(texts[number]) for number in other]), strict=True
        ):
            made[number]["text_mirrored"] = text
    return made
