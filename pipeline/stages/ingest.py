"""Raw images -> canonical images: each file once, each address recorded, each failure a row
with its reason.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import sources
from pipeline.catalog import Catalog
from pipeline.catalog.commits import ROW_ALIGNED
from pipeline.cluster import Cluster, Job
from pipeline.dataset import canonical, quality
from pipeline.manifest import Image, Split
from pipeline.plan import Plan
from pipeline.sources import RawImage
from pipeline.sources.raw import Unreadable
from pipeline.storage import shards
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import Workspace, canonical_json


def ingest(
    plan: Plan, catalog: Catalog, cluster: Cluster, *, limit: int | None = None, retry_failed: bool = False
) -> int:
    """Returns how many addresses were new."""
    found = plan.raw_images()[:limit]
    settled = "SELECT uri FROM sources JOIN images USING (image_id)" + (
        " WHERE status <> 'failed'" if retry_failed else ""
    )
    known = {uri for (uri,) in catalog.query(settled)}
    new = [raw for raw in found if raw.uri not in known]
    if not new:
        return 0
    workspace, key = plan.workspace, plan.image_key
    parts = _parts(new, catalog, key, plan.manifest.shard_images)
    waiting: dict[int, Shard] = {}
    turns = list(parts)

    def jobs() -> Iterator[Job]:
        for part, members in parts.items():
            raws = [asdict(raw) for raw in members]
            inputs = shards.made_from(key, raws)
            args = {
                "root": str(workspace.root),
                "key": key,
                "part": part,
                "raws": raws,
                "image": plan.manifest.image.model_dump(),
                "split": plan.manifest.split.model_dump(),
                "made_from": inputs,
                "retry": retry_failed,
                "near": plan.manifest.split.near,
            }
            adopted = shards.adopt(workspace.images(key, part), inputs)
            if adopted:
                commit_in_turn(part, adopted)
            else:
                yield Job(f"ingest part {part}", args, tuple(range(len(raws))))

    def commit_in_turn(part: int, shard: Shard) -> None:
        # In the order of the source, so that of two equal files the earlier address gives the caption,
        # whoever finished first.
        waiting[part] = shard
        while turns and turns[0] in waiting:
            catalog.commit(waiting.pop(turns.pop(0)))

    cluster.run(
        ingest_part,
        jobs(),
        lambda job, path: commit_in_turn(job.args["part"], shards.verify(Path(path), job.args["made_from"])),
        label="ingest",
        total=len(new),
    )
    return len(new)


def remove_stranded(catalog: Catalog, key: str) -> int:
    """Removes maps, captions and latents that no run can adopt: the images of their part were taken out, and
    since the source lost some of them the others came back in another part. Returns how many files.
    """
    workspace = catalog.workspace
    known = {path for (path,) in catalog.query("SELECT path FROM shards")}
    unknown = [path for path in workspace.all_shards() if workspace.relative(path) not in known]
    if not unknown:
        return 0
    sql = (
        "SELECT part FROM lost_rows WHERE key = ? GROUP BY part HAVING count(*) FILTER (uri IN (SELECT uri"
        " FROM sources)) = 0"
    )
    living = catalog.committed("images", key) | {part for (part,) in catalog.query(sql, [key])}
    stranded = [path for path in unknown if _is_stranded(path, key, living)]
    for path in stranded:
        path.unlink()
    return len(stranded)


def _is_stranded(path: Path, key: str, living: set[int]) -> bool:
    try:
        facts = shards.verify(path).facts
    except shards.BROKEN:
        return False  # `controlmill verify` tells it
    return facts["kind"] in ROW_ALIGNED and facts["image_key"] == key and facts["part"] not in living


def _parts(new: list[RawImage], catalog: Catalog, key: str, size: int) -> dict[int, list[RawImage]]:
    """Part number -> its addresses: what was taken out goes back into its place, for a near-duplicate follows
    the earliest part's image.
    """
    waiting, lost = {raw.uri: raw for raw in new}, catalog.lost(key)
    whole = {part: uris for part, uris in lost.items() if all(uri in waiting for uri in uris)}
    parts = {part: [waiting.pop(uri) for uri in uris] for part, uris in whole.items()}
    first, rest = max({*catalog.committed("images", key), *lost}, default=-1) + 1, list(waiting.values())
    return parts | {
        first + number: rest[start : start + size] for number, start in enumerate(range(0, len(rest), size))
    }


def ingest_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: reads, hashes, decodes, scales and stores one part of the source."""
    image, split = Image(**args["image"]), Split(**args["split"])
    seen: set[str] = set()
    table = [_row(RawImage(**args["raws"][row]), image, split, seen, deadly.get(row)) for row in rows]
    path = Workspace(Path(args["root"])).images(args["key"], args["part"])
    if not probe:
        facts = {"kind": "images", "image_key": args["key"]} | {
            name: args[name] for name in ("key", "part", "made_from", "retry", "near")
        }
        shards.write(path, table, shards.IMAGES, facts)
    return str(path)


def _row(raw: RawImage, image: Image, split: Split, seen: set[str], deadly: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "uri": raw.uri,
        "caption": raw.caption or "",
        "fields": canonical_json(raw.fields),
        "status": "failed",
    }
    data = None
    try:
        data, row["caption"] = sources.read(raw)
        row |= {"image_id": sources.image_id(data), "raw_bytes": len(data)}
        if deadly:
            raise Unreadable(deadly)
        if row["image_id"] in seen:
            row |= {"status": "duplicate", "reason": ""}
        else:
            made = canonical.canonical(data, image)
            row |= quality.measure(made.pixels)
            row |= {
                "status": "ok",
                "reason": "",
                "image": made.encoded,
                "width": made.width,
                "height": made.height,
            }
            row |= {"raw_width": made.raw_width, "raw_height": made.raw_height, "raw_format": made.raw_format}
    except Unreadable as error:
        row |= {
            "reason": str(error),
            "raw_width": error.width,
            "raw_height": error.height,
            "raw_format": error.format,
        }
    except Exception as error:  # whatever one file does, it is that file's row and never the run's end
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}", "image": None}
    if data is None:  # nothing to hash: the address stands for the file
        row["image_id"] = hashlib.sha256(f"unreadable {raw.uri}".encode()).hexdigest()
    seen.add(row["image_id"])
    row |= {"group_id": row["image_id"], "split": split_of(row["image_id"], split)}
    return row


def split_of(group_id: str, split: Split) -> str:
    """train, validation or test: a function of the salt and the group alone, so it never changes as data is
    added.
    """
    point = int.from_bytes(hashlib.sha256(f"{split.salt}:{group_id}".encode()).digest()[:8]) / 2**64
    return (
        "test" if point < split.test else "validation" if point < split.test + split.validation else "train"
    )
