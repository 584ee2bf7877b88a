"""Captions -> text embeddings of the locked base: each distinct text once, however many images have it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from annotate.flips import may_flip
from pipeline.cluster import position
from pipeline.cluster.jobs import Job
from pipeline.cluster.position import Limit
from pipeline.experiment.base import device, load_base
from pipeline.experiment.packing import pack
from pipeline.experiment.texts import TextKeys, missing_texts
from pipeline.scenes.description import mirrored
from pipeline.stages.stage import StageContext, make_missing
from pipeline.storage import shards
from pipeline.storage.shards import Row, Shard

PART = 1024  # texts of a shard: 118 MiB of Stable Diffusion 1.5's
BATCH = {"cpu": 1, "cuda": 16}  # texts that pass the encoder together, as images do
GPU_SHARE = 0.25
LOADING = 120.0  # seconds on top of the limit, where the base may have to be loaded first


@dataclass(frozen=True)
class TextPart:
    """Some texts, for a worker."""

    path: Path  # of the shard to write
    part: int
    key: str  # of the text encoder
    base: str
    captions: pa.RecordBatch  # a column `caption`
    made_from: str
    time_limit: float = 600.0  # seconds that one text may take


def make_texts(context: StageContext, base: str, keys: TextKeys) -> int:
    """Encodes the texts that are not there yet; returns how many."""
    jobs = list(_jobs(context, base, keys))
    return make_missing(context, text_part, jobs, label="texts", gpus=GPU_SHARE)


def _jobs(context: StageContext, base: str, keys: TextKeys) -> Iterator[Job]:
    plan, catalog = context.plan, context.catalog
    first = max(catalog.committed("texts", keys.encoder), default=-1) + 1
    for part, captions in enumerate(missing_texts(catalog, keys, PART), first):
        args = TextPart(
            path=plan.workspace.texts(keys.encoder, part),
            part=part,
            key=keys.encoder,
            base=base,
            captions=captions,
            made_from=shards.made_from(keys.encoder, captions.column(0).to_pylist()),
            time_limit=plan.manifest.train.time_limit if plan.manifest.train else 600.0,
        )
        yield Job(f"texts part {part}", args, tuple(range(len(captions))), alike=True)


def text_part(
    args: TextPart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Shard | None:
    """In a worker: the embedding of each text as float16, and what a mirrored image makes of it."""
    from train import encoders
    from train.out_of_memory import in_parts

    captions = args.captions.column(0).to_pylist()
    table = [_row(caption) for caption in captions]
    wanted = sorted(set(rows) - poison_rows.keys())
    together = position.at_a_time(BATCH[device()])
    for start in range(0, len(wanted), together):
        batch = wanted[start : start + together]
        position.begin(batch, "", Limit(args.time_limit, "train.time_limit"), loading=LOADING)
        loaded = load_base(args.base, ("text_encoder",), device())

        def encoded(some: list[str], loaded: Any = loaded) -> list[Any]:
            return list(encoders.encode_text(loaded, some))

        texts = in_parts(encoded, [captions[row] for row in batch])
        for row, text in zip(batch, texts, strict=True):
            table[row] |= {"status": "ok", "reason": "", "text": pack(text)}
        position.end(len(batch))
    for row, reason in poison_rows.items():
        table[row] |= {"status": "failed", "reason": reason}
    if dry_run:
        return None
    metadata = {"kind": "texts", "key": args.key, "part": args.part, "made_from": args.made_from}
    return shards.write(args.path, table, shards.TEXTS, metadata)


def _row(caption: str) -> Row:
    return {
        "text_id": text_id(caption),
        "caption": caption,
        "may_flip": may_flip(caption),
        "turned": text_id(mirrored(caption)),
    }


def text_id(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()
