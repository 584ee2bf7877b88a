"""Canonical images -> raw maps: one task a part decodes each image once and makes every condition that the
part still lacks.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from annotate import annotator, inference, maps
from annotate.annotator import DETECTORS, PROVIDED, Annotation, Step, Watch
from pipeline.catalog import Catalog, totals
from pipeline.catalog.indexing import DetectorRecord
from pipeline.cluster import attempts, position
from pipeline.cluster.jobs import Ended, Job, Resources
from pipeline.cluster.position import Limit
from pipeline.dataset import origins, provided
from pipeline.dataset.changes import changed_maps, map_stamp
from pipeline.dataset.maps import annotation
from pipeline.dataset.origins import Origins
from pipeline.dataset.provided import ProvidedMap
from pipeline.manifest import Image
from pipeline.plan import Planned
from pipeline.plan.parts import gpu_memory_of, seconds_of
from pipeline.report.text import tally
from pipeline.sources import RawImage
from pipeline.stages.stage import (
    GONE,
    ReadableImages,
    StageContext,
    StageResult,
    readable_images,
    readable_parts,
    result,
)
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row, Shard

# images that a CPU works on while it decodes as many: bounds a worker's memory whatever the size of a part
BATCH = 8
BATCH_SECONDS = 10.0  # of work on them, so that progress shows, and one that hangs is soon found
LOADING = 60.0  # seconds on top of the limit where a network may have to be loaded first

OF_STATUS = """SELECT condition, part, row
               FROM annotation_rows JOIN shard_rows USING (shard_number)
                    JOIN detectors ON detectors.maps = name AND fingerprint = key
               WHERE current AND status = $status AND starts_with(reason, $reason)
                 AND image NOT IN (SELECT image FROM image_rows WHERE gone IS NOT NULL)"""


@dataclass(frozen=True)
class MapShard:
    """One shard of maps that a part lacks, for a worker."""

    path: Path
    step: Step
    name: str  # of the condition whose maps these are
    fingerprint: str
    detector: DetectorRecord  # which the shard's footer repeats
    again: frozenset[int] | None  # rows to make again, the others stay; None = there is no such shard yet
    limit: Limit | None = None  # of one image

    def wants(self, row: int) -> bool:
        return self.again is None or row in self.again


@dataclass(frozen=True)
class AnnotatePart:
    """One part of the images, for a worker."""

    images: Path
    part: int
    image_key: str
    missing: tuple[MapShard, ...]
    parents: dict[str, Path]  # by condition: stored maps that others are made from
    image: Image
    raw_images: dict[int, RawImage]  # by row: where maps that came with the images are looked for
    gone: frozenset[int]  # rows whose images the source no longer has: nothing is made of them
    device: str
    made_from: str


def annotate(context: StageContext) -> StageResult:
    to_do = _make_maps(context)
    plan, catalog = context.plan, context.catalog
    maps = totals.maps(catalog)
    counts = {status: sum(one.of_status(status) for one in maps) for status in ("failed", "ok", "skipped")}
    counts = {status: count for status, count in counts.items() if count}
    made = sorted(one.condition for one in maps if one.of_status("ok"))
    without = ", ".join(name for name in made if not catalog.has_pairs(name))
    what = f"{to_do} images to do" if to_do else "nothing to do"
    doubtful = sum(one.doubtful for one in maps)
    sentence = f"{what}; maps: {tally(counts)} in {len(plan.conditions)} conditions"
    if doubtful:
        sentence += f"; {doubtful} of them are doubtful (`controlmill status` says why)"
    if without:
        sentence += f"; `where` and `select` leave no pair of {without}"
    return result(sentence, to_do, counts)


def _make_maps(context: StageContext) -> int:
    """Returns how many images lacked some map."""
    catalog, cluster, conditions = context.catalog, context.cluster, context.plan.conditions
    committed = {it.name: catalog.committed("maps", it.fingerprint, it.maps) for it in conditions.values()}
    came_from = _origins(context)
    again = _again(context, came_from)
    lacking = [
        part
        for part in readable_parts(catalog)
        if any(part not in committed[name] or (name, part) in again for name in conditions)
    ]
    parts = readable_images(catalog, lacking) if lacking else {}
    to_do = sum(len(images.members) - len(images.gone) for images in parts.values())
    jobs = _jobs(context, parts, committed, again, came_from)

    def done(ended: Ended[list[Shard]]) -> None:
        catalog.commit(*(shard for _, of_part in ended for shard in of_part))

    first = next(jobs, None)
    if first:
        each = Resources(gpus=cluster.share_for(gpu_memory_of([it.step for it in conditions.values()])))
        cluster.run(annotate_part, chain([first], jobs), done, label="annotate", total=to_do, each=each)
    return to_do


def _again(context: StageContext, came_from: Origins) -> dict[tuple[str, int], set[int]]:
    """Condition, part -> rows to make again: what failed and is to be tried again, images that were gone and
    are there again, maps that came with the images and are others now, and what was made of those.
    """
    catalog, conditions = context.catalog, context.plan.conditions
    again: dict[tuple[str, int], set[int]] = {}
    rows = catalog.query(OF_STATUS, {"status": "skipped", "reason": GONE})
    which = "" if context.retry_failed else attempts.RAN_OUT  # memory is no property of an image
    rows += catalog.query(OF_STATUS, {"status": "failed", "reason": which})
    for condition, part, row in rows:
        again.setdefault((condition, part), set()).add(row)
    for condition, part, row in changed_maps(context.plan, catalog, came_from):
        for it in conditions.values():
            if condition in context.plan.ancestry(it.name):
                again.setdefault((it.name, part), set()).add(row)
    return again


def _jobs(
    context: StageContext,
    parts: dict[int, ReadableImages],
    committed: dict[str, set[int]],  # condition -> parts
    again: dict[tuple[str, int], set[int]],  # condition, part -> rows
    came_from: Origins,
) -> Iterator[Job]:
    plan = context.plan
    # Of conditions that share maps the one that gave its name comes first: others may be made from it.
    conditions = sorted(plan.conditions.values(), key=lambda it: it.maps != it.name)
    for part, images in parts.items():
        made_from = shards.made_from(plan.image_key, images.members)
        missing: dict[Path, MapShard] = {}
        for it in conditions:
            rows = again.get((it.name, part))
            path = plan.workspace.maps(it.maps, it.fingerprint, part)
            if path in missing or (part in committed[it.name] and not rows):
                continue  # another condition's maps are these, or they are there
            if part not in committed[it.name] and _adopt(context.catalog, path, made_from):
                continue
            missing[path] = _map_shard(context.catalog, it, path, rows)
        if missing:
            args = AnnotatePart(
                images=plan.workspace.images(plan.image_key, part),
                part=part,
                image_key=plan.image_key,
                missing=tuple(missing.values()),
                parents={name: plan.maps_of(name, part) for name in _parents(missing.values())},
                image=plan.manifest.image,
                raw_images=came_from.of_part(part),
                gone=frozenset(images.gone),
                device=context.cluster.device,
                made_from=made_from,
            )
            yield Job(f"annotate part {part}", args, images.rows)


def _adopt(catalog: Catalog, path: Path, made_from: str) -> bool:
    adopted = shards.adopt(path, made_from)
    if adopted:
        catalog.commit(adopted)
    return adopted is not None


def _map_shard(catalog: Catalog, it: Planned, path: Path, again: set[int] | None) -> MapShard:
    if (
        again
    ):  # from here on the shard counts as uncommitted: a kill can't leave the catalog with a changed file
        catalog.remove_shard(catalog.workspace.relative(path))
    rows = frozenset(again) if again else None
    return MapShard(path, it.step, it.maps, it.fingerprint, it.record(), rows, it.limit)


def _origins(context: StageContext) -> Origins:
    """Where images came from, for maps that came with them; nothing where no condition wants such, since
    then nothing need be listed.
    """
    if not any(it.step.detector == PROVIDED for it in context.plan.conditions.values()):
        return origins.none()
    return origins.origins(context.catalog, context.raw_images)


def _parents(missing: Iterable[MapShard]) -> set[str]:
    """Parents whose maps are stored already and only have to be read."""
    steps = [it.step for it in missing]
    return {step.parent for step in steps if step.parent} - {step.condition for step in steps}


def annotate_part(
    args: AnnotatePart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> list[Shard]:
    """In a worker: the shards that a part lacks; each has one row for each row of the images shard."""
    pictures = shards.read(args.images, ["image_id", "image"])
    ids = pictures.column("image_id").to_pylist()
    parents = {name: shards.read(path) for name, path in args.parents.items()}
    tables = {it.step.condition: _begin(it, pictures.num_rows) for it in args.missing}
    left_out = args.gone | poison_rows.keys()
    wanted = [row for row in rows if any(it.wants(row) for it in args.missing) and row not in left_out]
    each = seconds_of([it.step for it in args.missing], args.image, args.device)
    most = inference.MOST if args.device.startswith("cuda") else BATCH
    together = position.at_a_time(max(1, min(most, int(BATCH_SECONDS / each))))
    stored = (pictures["image"][row].as_py() for row in wanted)
    # one batch ahead; but where a row that kills is sought, nothing happens beside what is told
    with closing(codec.decode_ahead(stored, ahead=together if together > 1 else 0)) as decoded:
        for start in range(0, len(wanted), together):
            batch = wanted[start : start + together]
            position.begin(batch, limit=Limit(args.image.time_limit, "image.time_limit"))
            images = list(islice(decoded, len(batch)))
            made = _annotated(args, batch, images, [ids[row] for row in batch], parents)
            for name, rows_made in made.items():
                for row, values in rows_made.items():
                    tables[name][row] |= values
            position.end(len(batch))
    skipped = dict.fromkeys(args.gone, Annotation(status="skipped", reason=GONE))
    failed = {row: Annotation(status="failed", reason=reason) for row, reason in poison_rows.items()}
    for it in args.missing:
        for row, one in (skipped | failed).items():
            if it.wants(row):
                tables[it.step.condition][row] |= _row(one)
    if dry_run:
        return []
    return [_write(args, it, tables[it.step.condition], ids) for it in args.missing]


def _annotated(
    args: AnnotatePart,
    batch: list[int],
    images: list[np.ndarray],
    ids: list[str],
    parents: dict[str, pa.Table],
) -> dict[str, dict[int, Row]]:
    """Condition -> row of the part -> what is stored of it."""
    came = _provided(args, batch)
    annotations = annotator.annotate(
        images,
        ids,
        [it.step for it in args.missing],
        given={
            name: [annotation(table.slice(row, 1).to_pylist()[0], name) for row in batch]
            for name, table in parents.items()
        },
        provided={name: [each.map for each in of_images] for name, of_images in came.items()},
        device=args.device,
        watch=Watch(functools.partial(_begin_pass, args, batch), functools.partial(_not_tried, batch)),
    )
    return {
        name: {
            row: _row(annotations[name][place])
            | (_came_from(args, name, row, came[name][place]) if name in came else {})
            for place, row in enumerate(batch)
            if it.wants(row)
        }
        for it in args.missing
        for name in (it.step.condition,)
    }


def _begin_pass(args: AnnotatePart, batch: list[int], step: Step, chosen: list[int]) -> None:
    """Tells that a detector is at these images of the batch, and how long it may be."""
    limit = next(it.limit for it in args.missing if it.step.condition == step.condition)
    loading = LOADING if DETECTORS[step.detector].weights else 0.0
    position.begin([batch[number] for number in chosen], step.condition, limit, loading=loading)


def _not_tried(batch: list[int], condition: str) -> dict[int, str]:
    """Image of the batch -> why, of those that kill the detector of this condition."""
    reasons = position.kills(condition)
    return {number: reasons[row] for number, row in enumerate(batch) if row in reasons}


def _write(args: AnnotatePart, it: MapShard, table: list[Row], ids: list[str]) -> Shard:
    metadata = {
        "kind": "maps",
        "key": it.fingerprint,
        "name": it.name,
        "detector": it.detector,
        "image_key": args.image_key,
        "part": args.part,
        "made_from": args.made_from,
    }
    rows = [row | {"image_id": image_id} for row, image_id in zip(table, ids, strict=True)]
    return shards.write(it.path, rows, shards.MAPS, metadata, replace=it.again is not None)


def _provided(args: AnnotatePart, batch: list[int]) -> dict[str, list[ProvidedMap]]:
    """Condition -> the maps that came with these images, each image's source opened once."""
    names = [it.step.condition for it in args.missing if it.step.detector == PROVIDED]
    gone = ProvidedMap(LookupError("its address is no longer in the source"))
    of_images = [
        provided.read(args.raw_images[row], names, args.image)
        if row in args.raw_images
        else dict.fromkeys(names, gone)
        for row in (batch if names else [])
    ]
    return {name: [of_image[name] for of_image in of_images] for name in names}


def _came_from(args: AnnotatePart, condition: str, row: int, made: ProvidedMap) -> Row:
    """What the file looked like that a provided map came from, so that another one is noticed."""
    stamp = map_stamp(args.raw_images[row], condition) if row in args.raw_images else ""
    return {"source_stamp": stamp, "source_hash": made.source_hash} if stamp else {}


def _begin(it: MapShard, rows: int) -> list[Row]:
    """Empty rows, or on a retry the rows as they are, of which only the failed ones are made again."""
    return shards.read(it.path).to_pylist() if it.again else [{} for _ in range(rows)]


def _row(made: Annotation) -> Row:
    return {
        "status": made.status,
        "reason": made.reason,
        "seconds": made.seconds,
        "measures": list(made.measures.items()),
        "meta": json.dumps(made.map.meta if made.map else {}),
        "draws": json.dumps(made.random_params),
        "map": maps.encode(made.map) if made.map else None,
    }
