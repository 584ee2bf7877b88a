"""What people have of a workspace: rows, the pictures and numbers behind them, weights; not where they lie
and how long they took.
"""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.catalog import Catalog
from pipeline.storage import shards
from pipeline.storage.workspace import Workspace

ROWS = {
    "images": "SELECT image_id, status, reason, group_id, split, phash FROM images WHERE status <> 'gone'",
    "sources": "SELECT image_id, uri, caption FROM sources WHERE gone IS NULL",
    "captions": "SELECT image_id, caption, model_caption FROM captions",
    "annotations": "SELECT image_id, condition, fingerprint, status, reason, measures FROM annotations",
    "samples": "SELECT * EXCLUDE (shard, row, seconds) FROM samples",
    "scores": "SELECT * EXCLUDE (shard, row) FROM sample_scores",
    "estimates": "SELECT * FROM scores",
    "runs": "SELECT run, name, conditions, images, steps, checkpoint, status FROM runs",
    "pairs": "SELECT image_id, condition, caption FROM pairs",
}


def kept(root: Path) -> dict[str, Any]:
    """Of images that are gone from the source, and of texts that no image has, nothing."""
    workspace = Workspace(root)
    catalog = Catalog(workspace)
    found: dict[str, Any] = {name: sorted(map(repr, catalog.query(sql))) for name, sql in ROWS.items()}
    here = {image for (image,) in catalog.query("SELECT image_id FROM images WHERE status <> 'gone'")}
    here |= {text for (text,) in catalog.query("SELECT sha256(coalesce(caption, '')) FROM captions")}
    for path in workspace.all_shards():
        footer = shards.metadata(path)
        for row in pq.read_table(path).to_pylist() if footer["kind"] != "changes" else ():
            of = row.get("image_id") or row["text_id"]
            for column in shards.PAYLOADS & row.keys() if of in here else ():
                name = (footer["kind"], footer.get("name"), footer["key"], of, row.get("seed"))
                found[f"{name} {column}"] = hashlib.sha256(repr(row[column]).encode()).hexdigest()
    newest = (sorted(run.glob("step-*"))[-1] for run in (root / "checkpoints").glob("*/"))
    # a run goes on without an earlier one that was taken out
    for path in (path for folder in newest for path in folder.rglob("*.safetensors")):
        found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    return [name for name in before.keys() | found.keys() if found.get(name) != before.get(name)]
