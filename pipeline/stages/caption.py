"""Canonical images -> captions by a network, for the images whose source gave none, or for all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotate import captions, memory
from annotate.weights import PINNED
from pipeline.cluster import attempts, position
from pipeline.cluster.jobs import Job
from pipeline.plan import PlannedCaptions
from pipeline.report.text import tally
from pipeline.stages.stage import (
    GONE,
    StageContext,
    StageResult,
    make_missing,
    readable_images,
    readable_parts,
    result,
    rows_by_part,
    work,
)
from pipeline.storage import codec, copies, shards
from pipeline.storage.shards import Row, Shard
from pipeline.storage.workspace import fingerprint

BATCH = 16  # images decoded at a time
LOADING = 60.0  # seconds on top of the limit, where the network may have to be loaded first

WITHOUT = """SELECT part, image_rows.row
             FROM image_rows JOIN shard_rows USING (shard_number) LEFT JOIN captions USING (image)
             WHERE image_rows.status = 'ok' AND coalesce(source_caption, '') = ''
               AND key = (SELECT value FROM settings WHERE name = 'image_key')"""
# rows without a caption of the network whose image is there and, by now, has none of its own
STALE = """SELECT part, caption_rows.row
           FROM caption_rows JOIN shard_rows USING (shard_number) JOIN captions USING (image)
                JOIN images USING (image)
           WHERE key = ? AND images.status = 'ok' AND caption_rows.status = 'skipped'
             AND (coalesce(source_caption, '') = '' OR caption_rows.reason = ?)"""
FAILED = """SELECT DISTINCT shard FROM caption_rows JOIN shard_rows USING (shard_number)
            WHERE status = 'failed' AND key = ? AND starts_with(reason, ?)"""
COUNTS = """SELECT status, count(*) FROM caption_rows JOIN shard_rows USING (shard_number)
            WHERE key = ? GROUP BY ALL"""


@dataclass(frozen=True)
class CaptionPart:
    """One part of the images, for a worker."""

    path: Path  # of the shard to write
    images: Path
    part: int
    image_key: str
    captioner: PlannedCaptions
    wanted: frozenset[int]  # rows that get a caption; the others have one, or are gone
    gone: frozenset[int]  # rows whose images the source no longer has
    again: frozenset[int] | None  # rows to make anew, the others stay; None = there is no such shard yet
    device: str
    made_from: str


def caption(context: StageContext) -> StageResult:
    captioner = context.plan.captions
    if captioner is None:
        return StageResult("not asked for")
    which = "" if context.retry_failed else attempts.RAN_OUT  # memory is no property of an image
    for (path,) in context.catalog.query(FAILED, [captioner.key, which]):
        context.catalog.remove_shard(path)
        copies.remove(context.plan.workspace.root / path)
    jobs = list(_jobs(context, captioner))
    gpus = context.cluster.share if jobs else 0
    to_do = make_missing(context, caption_part, jobs, label="caption", gpus=gpus)
    counts = dict(context.catalog.query(COUNTS, [captioner.key]))
    return result(f"{work(to_do, 'images')}; captions: {tally(counts)}", to_do, counts)


def _jobs(context: StageContext, captioner: PlannedCaptions) -> Iterator[Job]:
    plan, catalog = context.plan, context.catalog
    bare = rows_by_part(catalog.query(WITHOUT))
    stale = rows_by_part(catalog.query(STALE, [captioner.key, GONE]))
    committed = catalog.committed("captions", captioner.key)
    lacking = [part for part in readable_parts(catalog) if part not in committed or part in stale]
    for part, images in readable_images(catalog, lacking).items():
        wanted = {
            row
            for row in images.rows
            if row not in images.gone and (captioner.when == "always" or row in bare.get(part, ()))
        }
        args = CaptionPart(
            path=plan.workspace.captions(captioner.key, part),
            images=plan.workspace.images(plan.image_key, part),
            part=part,
            image_key=plan.image_key,
            captioner=captioner,
            wanted=frozenset(wanted),
            gone=frozenset(images.gone),
            again=frozenset(stale[part]) if part in committed else None,
            device=context.cluster.device,
            made_from=fingerprint(
                [captioner.key, [(row, image_id, row in wanted) for row, image_id in images.members]]
            ),
        )
        yield Job(f"caption part {part}", args, images.rows)


def caption_part(
    args: CaptionPart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Shard | None:
    """In a worker: one row for each image; those that have a caption already are `skipped`."""
    pictures = shards.read(args.images, ["image_id", "image"])
    table: list[Row] = [{"image_id": image_id} for image_id in pictures.column("image_id").to_pylist()]
    if args.again is not None:
        table = shards.read(args.path).to_pylist()
    for row in rows if args.again is None else args.again:
        table[row] |= {"status": "skipped", "reason": GONE if row in args.gone else "its source gave one"}
    for row, reason in poison_rows.items():
        table[row] |= {"status": "failed", "reason": reason}
    wanted = args.wanted if args.again is None else args.wanted & args.again
    todo = [row for row in rows if row in wanted and row not in poison_rows]
    together = position.at_a_time(BATCH)
    for start in range(0, len(todo), together):
        batch = todo[start : start + together]
        position.begin(batch, "", args.captioner.limit, loading=LOADING)
        images = [codec.decode(one["image"]) for one in pictures.take(batch).to_pylist()]
        for row, text in zip(batch, _isolated(images, args), strict=True):
            failed = isinstance(text, Exception)
            table[row] |= {
                "status": "failed" if failed else "ok",
                "reason": str(text) if failed else "",
                "caption": None if failed else text,
            }
        position.end(len(batch))
    if not dry_run:
        metadata = {
            "kind": "captions",
            "key": args.captioner.key,
            "image_key": args.image_key,
            "part": args.part,
            "made_from": args.made_from,
        }
        return shards.write(args.path, table, shards.CAPTIONS, metadata, replace=args.again is not None)
    return None


def _isolated(images: list[np.ndarray], args: CaptionPart) -> list[str | Exception]:
    """Whole batch first; if that raises, image by image, so that only the bad one fails."""
    options = {"weights": PINNED, **args.captioner.params, "device": args.device}
    try:
        return list(captions.caption(images, **options))
    except Exception as error:
        if len(images) == 1:
            memory.let_through(error)
            return [error]
        return [text for image in images for text in _isolated([image], args)]
