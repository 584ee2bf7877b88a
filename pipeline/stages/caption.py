"""Canonical images -> captions by a network, for the images whose source gave none, or for all of them."""

from pathlib import Path
from typing import Any

from annotate import captions
from annotate.weights import PINNED
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.plan import Plan
from pipeline.report.text import tally
from pipeline.stages.parts import make_missing, told
from pipeline.storage import codec, shards
from pipeline.storage.workspace import fingerprint

BATCH = 16  # images decoded at a time

WITHOUT = """SELECT shards.part, images.row, image_id, coalesce(source_caption, '') = '' FROM images JOIN
             shards ON shards.path = images.shard
             LEFT JOIN captions USING (image) WHERE status = 'ok' ORDER BY ALL"""


FAILED = (
    "SELECT DISTINCT path FROM caption_rows JOIN shards USING (shard) WHERE caption_rows.status = 'failed'"
    " AND key = ?"
)


def caption(plan: Plan, catalog: Catalog, cluster: Cluster, *, retry_failed: bool = False) -> str:
    it = plan.captions
    if it is None:
        return "not asked for"
    parts: dict[int, list[tuple[int, str, bool]]] = {}
    for part, row, image_id, bare in catalog.query(WITHOUT):
        parts.setdefault(part, []).append((row, image_id, bare or it.when == "always"))
    for (path,) in catalog.query(FAILED, [it.key]) if retry_failed else []:
        catalog.forget(path)
        (plan.workspace.root / path).unlink()
    committed = catalog.committed("captions", it.key)
    jobs: dict[Path, Job] = {}
    for part, members in parts.items():
        if part in committed:
            continue
        path = plan.workspace.captions(it.key, part)
        facts = {
            "kind": "captions",
            "key": it.key,
            "image_key": plan.image_key,
            "part": part,
            "made_from": fingerprint([it.key, members]),
        }
        args = {
            "path": str(path),
            "images": str(plan.workspace.images(plan.image_key, part)),
            "model": it.model,
            "params": it.params,
            "wanted": [row for row, _, wanted in members if wanted],
            "device": cluster.device,
            "facts": facts,
        }
        jobs[path] = Job(f"caption part {part}", args, tuple(row for row, *_ in members))
    made = make_missing(
        catalog, cluster, caption_part, jobs, label="caption", gpus=cluster.share if jobs else 0
    )
    counts = dict(
        catalog.query(
            "SELECT caption_rows.status, count(*) FROM caption_rows JOIN shards USING (shard) WHERE key = ?"
            " GROUP BY ALL",
            [it.key],
        )
    )
    return f"{told(made, 'images')}; captions: {tally(counts)}"


def caption_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: one row for each image; those that have a caption already are `skipped`."""
    pictures = shards.read(Path(args["images"]), ["image_id", "image"])
    table: list[dict[str, Any]] = [
        {"image_id": image_id} for image_id in pictures.column("image_id").to_pylist()
    ]
    for row in rows:
        table[row] |= (
            {"status": "failed", "reason": deadly[row]}
            if row in deadly
            else {"status": "skipped", "reason": "its source gave one"}
        )
    todo = [row for row in rows if row in set(args["wanted"]) and row not in deadly]
    params = {name: value for name, value in args["params"].items() if name != "weights"}
    weights = args["params"].get("weights", PINNED)
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        images = [codec.decode(one["image"]) for one in pictures.take(batch).to_pylist()]
        for row, text in zip(
            batch, _isolated(images, {**params, "weights": weights, "device": args["device"]}), strict=True
        ):
            failed = isinstance(text, Exception)
            table[row] |= {
                "status": "failed" if failed else "ok",
                "reason": str(text) if failed else "",
                "caption": None if failed else text,
            }
    if not probe:
        shards.write(Path(args["path"]), table, shards.CAPTIONS, args["facts"])
    return args["path"]


def _isolated(images: list[Any], options: dict[str, Any]) -> list[str | Exception]:
    """Whole batch first; if that raises, image by image, so that only the bad one fails."""
    try:
        return list(captions.caption(images, **options))
    except Exception as error:
        return (
            [error]
            if len(images) == 1
            else [text for image in images for text in _isolated([image], options)]
        )
