"""A shard of samples -> what each of them scores: its condition read again and compared, its alignment, its
features.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from annotate import annotator, maps
from annotate.annotator import Step
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from evaluate import alignment, fidelity, measures
from pipeline import MillError
from pipeline.benchmark import networks
from pipeline.benchmark.systems import readable, score_key, systems
from pipeline.benchmark.tasks import PART, tasks_of
from pipeline.catalog import Catalog
from pipeline.cluster import Job
from pipeline.dataset.maps import read_annotation
from pipeline.plan import Plan
from pipeline.storage import codec, shards
from pipeline.storage.workspace import Workspace


def jobs(plan: Plan, catalog: Catalog, device: str) -> Iterator[tuple[Path, Job, bool]]:
    """Of each shard of samples: the shard of its scores, what makes it, and whether it is there."""
    evaluation = plan.manifest.evaluate
    assert evaluation is not None
    sampled: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
    for name, key, *row in catalog.query(
        "SELECT name, key, part, path, rows FROM shards WHERE kind = 'samples' ORDER BY part"
    ):
        sampled.setdefault((name, key), []).append((row[0], row[1], row[2]))
    committed = set(catalog.query("SELECT name, key, part FROM shards WHERE kind = 'scores'"))
    for system in systems(plan, catalog):
        key, tasks = score_key(plan, system), tasks_of(system, evaluation.benchmark)
        common = {
            "root": str(plan.workspace.root),
            "condition": system.condition,
            "device": device,
            "networks": networks.wanted(evaluation),
            "steps": (
                [asdict(step) for step in reader_steps(plan, system.condition)]
                if readable(plan, system.condition)
                else []
            ),
        }
        for part, samples, rows in sampled.get((system.drawn_as, system.key), ()):
            path = plan.workspace.scores(system.name, key, part)
            args = common | {
                "path": str(path),
                "samples": samples,
                "truth": {item.image_id: item for item, *_ in tasks[part * PART : (part + 1) * PART]},
                "facts": {
                    "kind": "scores",
                    "key": key,
                    "name": system.name,
                    "part": part,
                    "made_from": shards.made_from(key, samples),
                },
            }
            yield (
                path,
                Job(f"score {system.name} part {part}", args, tuple(range(rows))),
                (system.name, key, part) in committed,
            )


def reader_steps(plan: Plan, condition: str) -> list[Step]:
    """What reads the condition again from a sample: the reader's step after those of its parents."""
    return annotator.chain(condition, lambda name: plan.reader(name).step)


def score_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: one shard of samples.

    A sample that gives no map scores worst and is counted, never dropped.
    """
    workspace = Workspace(Path(args["root"]))
    samples = shards.read(workspace.root / args["samples"]).to_pylist()
    pictures = {
        row: codec.decode(sample["image"])
        for row, sample in enumerate(samples)
        if sample["status"] == "ok" and row not in deadly
    }
    seen = _seen(
        args,
        [pictures[row] for row in pictures],
        [args["truth"][samples[row]["image_id"]].caption for row in pictures],
    )
    table = []
    for row, sample in enumerate(samples):
        record: dict[str, Any] = {
            "image_id": sample["image_id"],
            "seed": sample["seed"],
            "status": "failed",
            "meta": "{}",
            "values": [],
        }
        record["reason"] = deadly.get(row, sample["reason"])
        if args["steps"]:
            record |= _reread(args, workspace, sample, pictures.get(row))
        elif row in pictures:
            record |= {"status": "ok", "reason": ""}
        if row in pictures:
            position = list(pictures).index(row)
            record["values"] += [(name, float(values[position])) for name, values in seen["values"].items()]
            record["features"] = [
                (name, found[position].astype(np.float32).tobytes())
                for name, found in seen["features"].items()
            ]
        table.append(record)
    if not probe:
        shards.write(Path(args["path"]), table, shards.SCORES, args["facts"])
    return args["path"]


def _reread(
    args: dict[str, Any], workspace: Workspace, sample: Mapping[str, Any], picture: np.ndarray | None
) -> dict[str, Any]:
    """The stored draws of the condition are used, so that both maps are read the same way."""
    from safetensors.numpy import save

    condition = args["condition"]
    item = args["truth"][sample["image_id"]]
    truth = read_annotation(workspace, item.map_shard, item.row, condition)
    if truth.map is None:
        raise MillError(
            f"{item.map_shard}, row {item.row}: {condition} is {truth.status}: run the same command again."
        )
    found: dict[str, Any] = {}
    made = None
    if picture is not None:
        reread = annotator.annotate(
            [picture],
            [sample["image_id"]],
            [Step(**step) for step in args["steps"]],
            draws={condition: [truth.draws]},
            device=args["device"],
        )[condition][0]
        made = reread.map
        found |= {"status": "ok" if made else "failed", "reason": reread.reason}
    try:
        compared = fidelity.compare(
            CONDITIONS[condition].kind, as_map(truth.map), as_map(made) if made else None
        )
    except ValueError as error:  # another size, another space of labels
        found |= {"status": "failed", "reason": f"can't be compared: {error}"}
        compared = fidelity.compare(CONDITIONS[condition].kind, as_map(truth.map), None)
    return found | {
        "values": list(compared.values.items()),
        "counts": save({name: np.ascontiguousarray(array) for name, array in compared.counts.items()}),
        "meta": json.dumps(made.meta if made else {}),
        "map": maps.encode(made) if made else None,
    }


def as_map(raw: RawMap) -> fidelity.Map:
    return fidelity.Map(raw.array, raw.meta)


def _seen(args: dict[str, Any], images: list[np.ndarray], captions: list[str]) -> dict[str, dict[str, Any]]:
    """What the networks make of a shard's pictures: features by network, values by metric."""
    wanted = args["networks"]
    if not images:
        return {"features": {}, "values": {}}
    features = {
        name: networks.extractor(name, weights, args["device"])(images)
        for name, weights in wanted["features"]
    }
    values = {}
    if wanted["clip"]:
        encoder = networks.dual_encoder(wanted["clip"], args["device"])
        seen, read = encoder.images(images), encoder.texts(captions)
        values[measures.clip(wanted["clip"]).name] = alignment.similarity(seen, read).clip(0)
        features[measures.clip_image(wanted["clip"]).name] = seen
    return {"features": features, "values": values}
