"""What a workspace holds, all but seconds, for comparison: what is named by what is there -> its hash."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ROWS = {
    "images": "SELECT image_id, status, reason, split, group_id FROM images",
    "sources": "SELECT uri, image_id, caption FROM sources",
    "annotations": "SELECT image_id, condition, fingerprint, status, reason FROM annotations",
    "pairs": "SELECT image_id, condition FROM pairs",
}


def read_contents(place: str) -> dict[str, str]:
    from pipeline.catalog import Catalog, snapshots
    from pipeline.storage import folders, shards
    from pipeline.storage.workspace import workspace_at
    from train import checkpoint

    workspace = workspace_at(place)
    snapshots.fetch(workspace)
    catalog = Catalog(workspace)
    rows: dict[str, list[Any]] = defaultdict(list)
    for (shard,) in catalog.query("SELECT shard FROM shards"):
        for row in shards.read(workspace.root / shard).to_pylist():
            row.pop("seconds", None)
            # parts are numbered anew where a catalog is made again before all images are there
            of = row.get("uri") or row.get("image_id") or row["text_id"]
            what = f"{of} {row.get('seed', '')}"
            rows[f"{Path(shard).parent}: {what}"].append(row)
    found = {key: digest(of_key) for key, of_key in rows.items()}
    for name, sql in ROWS.items():
        for row, count in Counter(catalog.query(f"{sql} ORDER BY ALL")).items():
            found[f"{name}: {row[:2]}"] = digest([row, count])
    for (run,) in catalog.query("SELECT run FROM runs"):
        folders.bring(workspace.run(run))
        newest = checkpoint.newest(workspace.run(run))
        for file, facts in newest.meta["files"].items() if newest else ():
            found[f"checkpoints/{run}/{newest.path.name}/{file}" if newest else ""] = facts["sha256"]
    return found


def digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
