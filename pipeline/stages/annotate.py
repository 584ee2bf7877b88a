"""Canonical images -> raw maps: one task a part decodes each image once and makes every condition that the
part still lacks.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from annotate import annotator, maps
from annotate.annotator import PROVIDED, Annotation, Step
from annotate.maps import RawMap
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.dataset import provided
from pipeline.dataset.maps import annotation
from pipeline.manifest import Image
from pipeline.plan import Plan
from pipeline.sources import RawImage
from pipeline.storage import codec, shards

BATCH = 16  # images decoded at a time: bounds a worker's memory whatever the size of a part


def annotate(plan: Plan, catalog: Catalog, cluster: Cluster, *, retry_failed: bool = False) -> int:
    """Returns how many maps were to be made."""
    workspace = plan.workspace
    parts: dict[int, list[tuple[int, str]]] = {}
    for part, row, image_id in catalog.query(READABLE):
        parts.setdefault(part, []).append((row, image_id))
    committed = {
        it.name: catalog.committed("maps", it.fingerprint, it.maps) for it in plan.conditions.values()
    }
    failed: dict[tuple[str, int], list[int]] = {}
    if retry_failed:
        for condition, part, row in catalog.query(
            "SELECT condition, part, row FROM annotations WHERE status = 'failed'"
        ):
            failed.setdefault((condition, part), []).append(row)
    own = _addresses(plan, catalog)
    # Of conditions that share maps the one that gave its name comes first: others may be made from it.
    steps = sorted(plan.conditions.values(), key=lambda it: it.maps != it.name)

    def jobs() -> Iterator[Job]:
        for part, members in parts.items():
            todo: list[dict[str, Any]] = []
            inputs = shards.made_from(plan.image_key, members)
            for it in steps:
                again = failed.get((it.name, part))
                if part in committed[it.name] and not again:
                    continue
                path = workspace.maps(it.maps, it.fingerprint, part)
                if any(other["path"] == str(path) for other in todo):
                    continue  # another condition's maps are these
                adopted = None if part in committed[it.name] else shards.adopt(path, inputs)
                if adopted:
                    catalog.commit(adopted)
                else:
                    # from here on the shard counts as uncommitted, so a kill can't leave the catalog with a
                    # file that changed
                    if again:
                        catalog.forget(workspace.relative(path))
                    todo.append(
                        {
                            "record": it.record(),
                            "step": asdict(it.step),
                            "name": it.maps,
                            "path": str(path),
                            "again": again,
                        }
                    )
            if todo:
                rows = tuple(row for row, _ in members)
                needed = {name: str(plan.maps_of(name, part)) for name in _parents(todo)}
                args = {
                    "images": str(workspace.images(plan.image_key, part)),
                    "image_key": plan.image_key,
                    "part": part,
                    "todo": todo,
                    "parents": needed,
                    "made_from": inputs,
                    "device": cluster.device,
                    "image": plan.manifest.image.model_dump(),
                    "raws": own.get(part, {}),
                }
                yield Job(f"annotate part {part}", args, rows)

    def done(job: Job, paths: list[str]) -> None:
        for path in paths:
            catalog.commit(shards.verify(Path(path), job.args["made_from"]))

    total = sum(
        len(members)
        for part, members in parts.items()
        if any(part not in committed[name] or (name, part) in failed for name in plan.conditions)
    )
    if total:
        cluster.run(annotate_part, jobs(), done, label="annotate", total=total, gpus=cluster.share)
    return total


def _addresses(plan: Plan, catalog: Catalog) -> dict[int, dict[int, dict[str, Any]]]:
    """Part -> row -> where the image came from, for maps that came with it; nothing where no condition wants
    such.
    """
    if not any(it.step.detector == PROVIDED for it in plan.conditions.values()):
        return {}
    listed = {raw.uri: raw for raw in plan.raw_images()}
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for part, row, uri in catalog.query(FIRST_ADDRESS):
        if uri in listed:
            found.setdefault(part, {})[row] = asdict(listed[uri])
    return found


FIRST_ADDRESS = """SELECT shards.part, images.row, arg_min(uri, (sources.part, position)) FROM images JOIN
                   shards ON shards.path = images.shard
                   JOIN sources USING (image_id) WHERE status = 'ok' GROUP BY ALL"""
READABLE = (
    "SELECT shards.part, images.row, image_id FROM images JOIN shards ON shards.path = images.shard WHERE"
    " status = 'ok' ORDER BY ALL"
)


def _parents(todo: list[dict[str, Any]]) -> set[str]:
    """Parents whose maps are stored already and only have to be read."""
    made = {it["step"]["condition"] for it in todo}
    return {it["step"]["parent"] for it in todo if it["step"]["parent"]} - made


def annotate_part(
    args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool
) -> list[str]:
    """In a worker: the conditions in `todo` for one part; a shard has one row for each row of the images
    shard.
    """
    steps = [Step(**it["step"]) for it in args["todo"]]
    pictures = shards.read(Path(args["images"]), ["image_id", "image"])
    parents = {name: shards.read(Path(path)) for name, path in args["parents"].items()}
    tables = {it["step"]["condition"]: _begin(it, pictures.num_rows) for it in args["todo"]}
    wanted = [row for row in rows if any(_wants(it, row) for it in args["todo"])]
    for start in range(0, len(wanted), BATCH):
        batch = [row for row in wanted[start : start + BATCH] if row not in deadly]
        taken = pictures.take(batch).to_pylist()
        images = [codec.decode(picture["image"]) for picture in taken]
        given = {
            name: [annotation(table.slice(row, 1).to_pylist()[0], name) for row in batch]
            for name, table in parents.items()
        }
        made = annotator.annotate(
            images,
            [picture["image_id"] for picture in taken],
            steps,
            given=given,
            provided=_provided(args, steps, batch),
            device=args["device"],
        )
        for it in args["todo"]:
            name = it["step"]["condition"]
            for row, one in zip(batch, made[name], strict=True):
                if _wants(it, row):
                    tables[name][row] |= _row(one)
    for it in args["todo"]:
        for row, reason in deadly.items():
            if _wants(it, row):
                tables[it["step"]["condition"]][row] |= _row(Annotation(status="failed", reason=reason))
    if probe:
        return []
    ids = pictures.column("image_id").to_pylist()
    for it in args["todo"]:
        table = [
            row | {"image_id": image_id}
            for row, image_id in zip(tables[it["step"]["condition"]], ids, strict=True)
        ]
        facts = {
            "kind": "maps",
            "key": it["record"]["fingerprint"],
            "name": it["name"],
            "detector": it["record"],
        }
        facts |= {name: args[name] for name in ("image_key", "part", "made_from")}
        shards.write(Path(it["path"]), table, shards.MAPS, facts, replace=it["again"] is not None)
    return [it["path"] for it in args["todo"]]


def _provided(
    args: dict[str, Any], steps: list[Step], batch: list[int]
) -> dict[str, list[RawMap | Exception]]:
    """Condition -> the maps that came with these images, each image's source opened once."""
    names = [step.condition for step in steps if step.detector == PROVIDED]
    gone = LookupError("its address is no longer in the source")
    found = [
        (
            provided.read(RawImage(**args["raws"][row]), names, Image(**args["image"]))
            if row in args["raws"]
            else dict.fromkeys(names, gone)
        )
        for row in (batch if names else [])
    ]
    return {name: [maps_of_one[name] for maps_of_one in found] for name in names}


def _begin(it: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Empty rows, or on a retry the rows as they are, of which only the failed ones are made again."""
    return shards.read(Path(it["path"])).to_pylist() if it["again"] else [{} for _ in range(rows)]


def _wants(it: dict[str, Any], row: int) -> bool:
    return it["again"] is None or row in it["again"]


def _row(made: Annotation) -> dict[str, Any]:
    return {
        "status": made.status,
        "reason": made.reason,
        "seconds": made.seconds,
        "measures": list(made.measures.items()),
        "meta": json.dumps(made.map.meta if made.map else {}),
        "draws": json.dumps(made.draws),
        "map": maps.encode(made.map) if made.map else None,
    }
