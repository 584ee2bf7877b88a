"""Raw images -> canonical images: each file once, each address recorded, each failure a row with a reason."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from annotate import memory
from pipeline import MillError, sources
from pipeline.catalog import Catalog, totals
from pipeline.catalog.indexing import ROW_ALIGNED
from pipeline.cluster import attempts, position
from pipeline.cluster.jobs import Ended, Job
from pipeline.cluster.position import Limit
from pipeline.dataset import images, quality
from pipeline.manifest import Image, Split
from pipeline.plan import Plan
from pipeline.plan.parts import images_of_part
from pipeline.report.text import tally
from pipeline.sources import RawImage
from pipeline.sources.files import may_pass
from pipeline.sources.listed import Positions
from pipeline.sources.raw import Fetched, Unreadable
from pipeline.stages.changes import Noticed, notice
from pipeline.stages.stage import StageContext, StageResult
from pipeline.storage import copies, shards
from pipeline.storage.shards import Row, Shard
from pipeline.storage.workspace import canonical_json

READING, DECODING = "reading", "decoding"  # what a row is at


@dataclass(frozen=True)
class IngestPart:
    """One part of the source, for a worker."""

    path: Path  # of the shard to write
    part: int
    image_key: str
    raw_images: tuple[RawImage, ...]
    image: Image
    split: Split
    retry: bool  # whether addresses that failed before are among them
    made_from: str


def ingest(context: StageContext) -> StageResult:
    """MillError where a split that the manifest needs is empty."""
    plan, catalog = context.plan, context.catalog
    noticed = notice(context)
    if len(noticed.fresh):
        _read_images(context, noticed)
    remove_stranded(catalog, plan.image_key)
    counts, splits = totals.images(catalog), totals.splits(catalog)
    addresses, unread = totals.addresses(catalog)
    _check_splits(plan, splits)
    duplicates = addresses - sum(counts.values()) + counts.get("gone", 0)
    sentence = f"{noticed.sentence}; images: {tally(counts)}; {duplicates} exact duplicates; {tally(splits)}"
    if unread:
        sentence += f"; {unread} captions could not be read (`caption_problem` of `sources` says why)"
    return StageResult(sentence, len(noticed.fresh), counts.get("ok", 0), counts.get("failed", 0), duplicates)


def _check_splits(plan: Plan, splits: dict[str, int]) -> None:
    needed = {plan.manifest.evaluate.benchmark.split} if plan.manifest.evaluate else set()
    needed |= {"train"} if plan.manifest.train else set()
    for name in sorted(needed - splits.keys()):
        raise MillError(
            f"{plan.manifest.at('split')}: no image fell into {name!r} ({tally(splits)}): add images, or"
            f" raise split.{name} or change split.salt in a new workspace."
        )


def _read_images(context: StageContext, noticed: Noticed) -> None:
    """Commits in the order of the source, so that of two equal files the earlier address gives the caption,
    whoever finished first.
    """
    plan, catalog = context.plan, context.catalog
    parts = _parts(context, noticed.fresh)
    order, finished = [part for part, _ in reversed(parts)], dict[int, Shard]()

    def commit_in_order(ended: dict[int, Shard]) -> None:
        finished.update(ended)
        ready = []
        while order and order[-1] in finished:
            ready.append(finished.pop(order.pop()))
        if ready:
            catalog.commit(*ready)

    def jobs() -> Iterator[Job]:
        for part, positions in parts:
            members = tuple(context.raw_images.take(positions))
            args = IngestPart(
                path=plan.workspace.images(plan.image_key, part),
                part=part,
                image_key=plan.image_key,
                raw_images=members,
                image=plan.manifest.image,
                split=plan.manifest.split,
                retry=context.retry_failed or bool(np.isin(positions, noticed.again).any()),
                made_from=shards.made_from(plan.image_key, [asdict(raw) for raw in members]),
            )
            adopted = shards.adopt(args.path, args.made_from)
            if adopted:
                commit_in_order({part: adopted})
            else:
                yield Job(f"ingest part {part}", args, tuple(range(len(members))))

    def done(ended: Ended[Shard]) -> None:
        commit_in_order({job.args.part: shard for job, shard in ended})

    context.cluster.run(ingest_part, jobs(), done, label="ingest", total=len(noticed.fresh))


def remove_stranded(catalog: Catalog, key: str) -> int:
    """Removes maps, captions and latents that no run can adopt: the images of their part were taken out, and
    since the source lost some of them the others came back in another part. Returns how many files.
    """
    if not catalog.may_be_stranded():
        return 0
    workspace = catalog.workspace
    known = {path for (path,) in catalog.query("SELECT shard FROM shards")}
    unknown = [path for path in workspace.all_shards() if workspace.relative(path) not in known]
    sql = (
        "SELECT part FROM lost_rows WHERE key = ? GROUP BY part HAVING count(*) FILTER (uri IN (SELECT uri"
        " FROM sources)) = 0"
    )
    living = catalog.committed("images", key) | {part for (part,) in catalog.query(sql, [key])}
    stranded = [path for path in unknown if _is_stranded(path, key, living)]
    for path in stranded:
        copies.remove(path)
    catalog.note_stranded(there=False)
    return len(stranded)


def _is_stranded(path: Path, key: str, living: set[int]) -> bool:
    try:
        metadata = shards.verify(path).metadata
    except shards.BROKEN:
        return False  # `controlmill verify` tells it
    return metadata["kind"] in ROW_ALIGNED and metadata["image_key"] == key and metadata["part"] not in living


def _parts(context: StageContext, fresh: Positions) -> list[tuple[int, Positions]]:
    """Part number and the positions of its addresses in the listing: what was taken out goes back into its
    place, for a near-duplicate follows the earliest part's image.
    """
    key = context.plan.image_key
    lost, parts = context.catalog.lost(key), list[tuple[int, Positions]]()
    if lost:
        uris = {uri for members in lost.values() for uri in members}
        listed = zip(context.raw_images.take(fresh), fresh.tolist(), strict=True)
        places = {raw.uri: position for raw, position in listed if raw.uri in uris}
        whole = {part: members for part, members in lost.items() if places.keys() >= set(members)}
        parts = [(part, np.array([places[uri] for uri in members])) for part, members in whole.items()]
        fresh = np.setdiff1d(fresh, np.concatenate([[], *(positions for _, positions in parts)]))
    first = max({*context.catalog.committed("images", key), *lost}, default=-1) + 1
    size = images_of_part(context.plan, context.cluster.device, len(fresh)) if len(fresh) else 1
    rest = [fresh[start : start + size] for start in range(0, len(fresh), size)]
    return parts + list(enumerate(rest, first))


def ingest_part(
    args: IngestPart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Shard | None:
    """In a worker: reads, hashes, decodes, scales and stores one part of the source."""
    seen: set[str] = set()
    # one that kills as it is read is never read again
    unread = position.kills(READING) | poison_rows
    answers = sources.read_all([args.raw_images[row] for row in rows if row not in unread])
    limit = Limit(args.image.time_limit, "image.time_limit")
    undecoded = position.kills(DECODING)
    table = []
    for row in rows:
        # those far away have limits of their own, and wait for one another
        position.begin((row,), READING, None if args.raw_images[row].reader in sources.FAR else limit)
        answer = Unreadable(unread[row]) if row in unread else next(answers)
        position.begin((row,), DECODING, limit)
        table.append(_row(args, row, answer, seen, undecoded | poison_rows))
        position.end(1)
    if not dry_run:
        metadata = {
            "kind": "images",
            "key": args.image_key,
            "image_key": args.image_key,
            "part": args.part,
            "made_from": args.made_from,
            "retry": args.retry,
            "near": args.split.near,
        }
        return shards.write(args.path, table, shards.IMAGES, metadata)
    return None


def _row(
    args: IngestPart,
    number: int,
    answer: Fetched | Exception,
    seen: set[str],
    undecoded: dict[int, str],  # row -> why it is not decoded
) -> Row:
    raw = args.raw_images[number]
    row: Row = {
        "uri": raw.uri,
        "caption": raw.caption or "",
        "fields": canonical_json(raw.fields),
        "stamp": raw.stamp,
        "caption_stamp": raw.caption_stamp,
        "status": "failed",
    }
    data = None
    try:
        row |= _captions(raw)
        if isinstance(answer, Exception):
            raise answer
        data = answer.data
        row |= {"stamp": answer.stamp, "image_id": sources.image_id(data), "raw_bytes": len(data)}
        if number in undecoded:
            raise Unreadable(undecoded[number])
        row |= {"status": "duplicate", "reason": ""} if row["image_id"] in seen else _canonical(data, args)
    except Unreadable as error:
        memory.let_through(error)
        row |= {
            "reason": str(error),
            "raw_width": error.width,
            "raw_height": error.height,
            "raw_format": error.format,
            "http_status": error.http_status,
            "transient": may_pass(raw, error) or str(error).startswith(attempts.RAN_OUT),
        }
    except Exception as error:  # whatever one file does, it is that file's row and never the run's end
        memory.let_through(error)
        reason = f"{type(error).__name__}: {error}"
        row |= {"status": "failed", "reason": reason, "image": None, "transient": may_pass(raw, error)}
    if data is None:  # nothing to hash: the address stands for the file
        row["image_id"] = hashlib.sha256(f"unreadable {raw.uri}".encode()).hexdigest()
    seen.add(row["image_id"])
    row |= {"group_id": row["image_id"], "split": split_of(row["image_id"], args.split)}
    return row


def _captions(raw: RawImage) -> Row:
    captions = sources.read_captions(raw)
    return {
        "caption": captions.first,
        "captions": captions.texts,
        "caption_problem": captions.problem or None,
        # without a stamp it looks otherwise to the next run, which reads it again
        "caption_stamp": "" if captions.may_pass else raw.caption_stamp,
    }


def _canonical(data: bytes, args: IngestPart) -> Row:
    image = images.canonical(data, args.image)
    crop, (upright_height, upright_width) = image.placement, image.header.upright
    return quality.measure(image.pixels) | {
        "status": "ok",
        "reason": "",
        "image": image.encoded,
        "width": image.width,
        "height": image.height,
        "raw_width": image.raw_width,
        "raw_height": image.raw_height,
        "raw_format": image.raw_format,
        "frames": image.header.frames,
        "colour_space": image.colour_space,
        "damage": image.damage or None,
        "orientation": image.header.orientation,
        "upright_width": upright_width,
        "upright_height": upright_height,
        "crop_left": crop.left,
        "crop_top": crop.top,
        "crop_width": crop.width,
        "crop_height": crop.height,
    }


def split_of(group_id: str, split: Split) -> str:
    """train, validation or test: a function of the salt and the group alone, so it never changes as data is
    added.
    """
    point = int.from_bytes(hashlib.sha256(f"{split.salt}:{group_id}".encode()).digest()[:8]) / 2**64
    return (
        "test" if point < split.test else "validation" if point < split.test + split.validation else "train"
    )
