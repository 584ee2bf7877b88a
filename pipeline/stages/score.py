"""Samples -> scores: each is annotated again by the detector that made its condition, with the same draws, and compared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from annotate import annotator, maps
from annotate.annotator import Step
from annotate.conditions import CONDITIONS
from evaluate import fidelity
from pipeline import canonical, shards
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.plan import Plan
from pipeline.stages.annotate import read_annotation
from pipeline.stages.generate import Arm, arms
from pipeline.stages.parts import make_missing, told
from pipeline.workspace import Workspace, fingerprint


def scored(plan: Plan, condition: str) -> bool:
    """Whether its kind of map has a measure and a detector can read the condition again from a sample: `provided` maps can't be."""
    return CONDITIONS[condition].kind in fidelity.FIDELITY and plan.conditions[condition].step.detector != annotator.PROVIDED


def score(plan: Plan, catalog: Catalog, cluster: Cluster) -> str:
    workspace = plan.workspace
    todo: dict[Path, Job] = {}
    systems = [arm for arm in arms(plan, catalog) if scored(plan, arm.condition)]
    for arm in systems:
        key = score_key(plan, arm)
        committed = catalog.committed("scores", key, arm.system)
        sampled = catalog.query(
            "SELECT part, path, rows FROM shards WHERE kind = 'samples' AND key = ? AND name = ? ORDER BY part",
            [arm.benchmark, arm.samples],
        )
        for part, samples, rows in sampled:
            if part in committed:
                continue
            path = workspace.scores(arm.system, key, part)
            args = {
                "root": str(workspace.root), "path": str(path), "samples": samples, "condition": arm.condition, "device": cluster.device,
                "steps": [asdict(step) for step in chain(plan, arm.condition)], "truth": {item.image_id: item for item in arm.items},
                "facts": {"kind": "scores", "key": key, "name": arm.system, "part": part, "made_from": shards.made_from(key, samples)},
            }  # fmt: skip
            todo[path] = Job(f"score {arm.system} part {part}", args, tuple(range(rows)))

    made = make_missing(catalog, cluster, score_part, todo, label="score", gpus=cluster.share if todo else 0)
    return f"{told(made, 'samples')}; {summarise(plan, catalog)} scores"


def score_key(plan: Plan, arm: Arm) -> str:
    kind = CONDITIONS[arm.condition].kind
    versions = {name: fidelity.METRICS[name].version for name in fidelity.NAMES[kind]}
    return fingerprint({"benchmark": arm.benchmark, "reader": plan.conditions[arm.condition].fingerprint, "metrics": versions})


def chain(plan: Plan, condition: str) -> list[Step]:
    """The condition's step after those of its parents."""
    step = plan.conditions[condition].step
    return [*(chain(plan, step.parent) if step.parent else []), step]


def score_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: one shard of samples. A sample that gives no map scores worst and is counted, never dropped."""
    workspace, condition = Workspace(Path(args["root"])), args["condition"]
    kind = CONDITIONS[condition].kind
    steps = [Step(**step) for step in args["steps"]]
    table = []
    for row, sample in enumerate(shards.read(workspace.root / args["samples"]).to_pylist()):
        item = args["truth"][sample["image_id"]]
        truth = read_annotation(workspace, item.map_shard, item.row, condition)
        assert truth.map is not None
        record: dict[str, Any] = {"image_id": sample["image_id"], "seed": sample["seed"], "status": "failed", "reason": sample["reason"]}
        made = None
        if row in deadly:
            record["reason"] = deadly[row]
        elif sample["status"] == "ok":
            # The annotator draws by image id; the stored draws of the condition are used, so both maps are read the same way.
            reread = annotator.annotate(
                [canonical.decode(sample["image"])], [sample["image_id"]], steps, draws={condition: [truth.draws]}, device=args["device"]
            )
            made = reread[condition][0].map
            record |= {"status": "ok" if made else "failed", "reason": reread[condition][0].reason}
        values = fidelity.sample_fidelity(kind, truth.map.array, made.array if made else None)
        record |= {
            "values": list(values.items()),
            "meta": json.dumps(made.meta if made else {}),
            "map": maps.encode(made) if made else None,
        }
        table.append(record)
    if not probe:
        shards.write(Path(args["path"]), table, shards.SCORES, args["facts"])
    return args["path"]


def summarise(plan: Plan, catalog: Catalog) -> int:
    """The table `scores` from the samples' scores: mean, interval clustered on the image, n, failures, and what it is of."""
    rows = []
    for arm in arms(plan, catalog):
        kind = CONDITIONS[arm.condition].kind
        if not scored(plan, arm.condition):
            continue
        key = score_key(plan, arm)
        for metric in fidelity.NAMES[kind]:
            found = catalog.query(
                "SELECT image_id, CASE WHEN status = 'ok' THEN value END, seed FROM sample_scores "
                "WHERE system = ? AND benchmark = ? AND metric = ? ORDER BY image_id, seed",
                [arm.system, key, metric],
            )  # fmt: skip
            if not found:
                continue
            total = fidelity.summarise(
                metric, [value for _, value, _ in found], [image for image, *_ in found], system=arm.arm, condition=arm.condition, benchmark=key,
                checkpoint=arm.checkpoint or None, detector=plan.conditions[arm.condition].fingerprint,
                seeds=tuple(sorted({seed for *_, seed in found})),
            )  # fmt: skip
            rows.append(asdict(total) | {"run": arm.run, "seeds": json.dumps(total.seeds)})
    catalog.record_scores(rows)
    return len(rows)
