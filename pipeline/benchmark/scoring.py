"""A shard of samples -> what each of them scores: its condition read again and compared, its alignment, its
features.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotate import annotator, maps
from annotate.annotator import Step
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from evaluate import alignment, fidelity, measures
from pipeline import MillError
from pipeline.benchmark import networks
from pipeline.benchmark.systems import Item, System, readable, score_key
from pipeline.catalog import Catalog
from pipeline.cluster import position
from pipeline.cluster.jobs import Job
from pipeline.cluster.position import Limit
from pipeline.dataset.maps import read_annotation
from pipeline.experiment.base import device_name
from pipeline.plan import Plan
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row, Shard
from pipeline.storage.workspace import Workspace

SAMPLED = """SELECT sample_set, sample_key, part, shard, list(image_id ORDER BY row)
             FROM samples JOIN shards USING (shard) GROUP BY ALL ORDER BY part"""

LIMIT_KEY = "evaluate.time_limit"
LOADING = 120.0  # seconds on top of the limit, where networks may have to be loaded first


@dataclass(frozen=True)
class ScorePart:
    """The scores of one shard of samples, for a worker."""

    root: Path  # of the workspace
    path: Path  # of the shard to write
    samples: str  # shard, relative to the workspace
    part: int
    key: str
    system: str
    condition: str
    items: dict[str, Item]  # image id -> what was asked for
    steps: tuple[Step, ...]  # what reads the condition again; () = nothing can
    networks: networks.WantedNetworks
    device: str
    made_from: str
    time_limit: float = 3600.0  # seconds that one sample may take


def jobs(plan: Plan, catalog: Catalog, systems: Iterable[System], device: str) -> Iterator[tuple[Job, bool]]:
    """Of each shard of samples: what scores it, and whether its scores are committed."""
    evaluation = plan.manifest.evaluate
    assert evaluation is not None
    sampled: dict[tuple[str, str], list[tuple[int, str, list[str]]]] = {}
    for name, key, part, path, image_ids in catalog.query(SAMPLED):
        sampled.setdefault((name, key), []).append((part, path, image_ids))
    committed = set(catalog.query("SELECT name, key, part FROM shards WHERE kind = 'scores'"))
    for system in systems:
        key, items = score_key(plan, system), {item.image_id: item for item in system.items}
        steps = reader_steps(plan, system.condition) if readable(plan, system.condition) else []
        for part, samples, image_ids in sampled.get((system.sample_set, system.key), ()):
            args = ScorePart(
                root=plan.workspace.root,
                path=plan.workspace.scores(system.name, key, part),
                samples=samples,
                part=part,
                key=key,
                system=system.name,
                condition=system.condition,
                items={image_id: items[image_id] for image_id in image_ids},
                steps=tuple(steps),
                networks=networks.wanted(evaluation),
                device=device,
                made_from=shards.made_from(key, samples),
                time_limit=evaluation.time_limit,
            )
            rows = tuple(range(len(image_ids)))
            job = Job(f"score {system.name} part {part}", args, rows, alike=True)
            yield job, (system.name, key, part) in committed


def reader_steps(plan: Plan, condition: str) -> list[Step]:
    """What reads the condition again from a sample: the reader's step after those of its parents."""
    return annotator.chain(condition, lambda name: plan.reader(name).step)


def score_part(
    args: ScorePart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Shard | None:
    """In a worker: one shard of samples.

    A sample that gives no map scores worst and is counted, never dropped.
    """
    samples = shards.read(args.root / args.samples).to_pylist()
    pictures = {
        row: codec.decode(samples[row]["image"])
        for row in rows
        if samples[row]["status"] == "ok" and row not in poison_rows
    }
    features, values = _seen(args, pictures, samples)
    places = {row: number for number, row in enumerate(pictures)}  # among the features and values
    table = []
    for row in rows:
        sample = samples[row]
        position.begin((row,), "", Limit(args.time_limit, LIMIT_KEY), loading=LOADING)
        record: Row = {
            "image_id": sample["image_id"],
            "seed": sample["seed"],
            "status": "failed",
            "reason": poison_rows.get(row, sample["reason"]),
            "meta": "{}",
            "values": [],
        }
        if args.steps:
            record |= _reread(args, sample["image_id"], pictures.get(row))
        elif row in pictures:
            record |= {"status": "ok", "reason": ""}
        if row in pictures:
            record["values"] += [(name, float(of[places[row]])) for name, of in values.items()]
            record["features"] = [
                (name, of[places[row]].astype(np.float32).tobytes()) for name, of in features.items()
            ]
        table.append(record)
        position.end(1)
    if not dry_run:
        metadata = {
            "kind": "scores",
            "key": args.key,
            "name": args.system,
            "part": args.part,
            "made_from": args.made_from,
            "device": device_name(args.device),
        }
        return shards.write(args.path, table, shards.SCORES, metadata)
    return None


def _reread(args: ScorePart, image_id: str, picture: np.ndarray | None) -> Row:
    """The stored draws of the condition are used, so that both maps are read the same way."""
    from safetensors.numpy import save

    condition, item = args.condition, args.items[image_id]
    truth = read_annotation(Workspace(args.root), item.map_shard, item.row, condition)
    if truth.map is None:
        raise MillError(
            f"{item.map_shard}, row {item.row}: {condition} is {truth.status}: run the same command again."
        )
    row: Row = {}
    reread: RawMap | None = None
    if picture is not None:
        made = annotator.annotate(
            [picture],
            [image_id],
            list(args.steps),
            random_params={condition: [truth.random_params]},
            device=args.device,
        )
        (found,) = made[condition]
        reread = found.map
        row |= {"status": "ok" if reread else "failed", "reason": found.reason}
    kind = CONDITIONS[condition].compared_as
    try:
        compared = fidelity.compare(kind, as_map(truth.map), as_map(reread) if reread else None)
    except ValueError as error:  # another size, another space of labels
        row |= {"status": "failed", "reason": f"can't be compared: {error}"}
        compared = fidelity.compare(kind, as_map(truth.map), None)
    return row | {
        "values": list(compared.values.items()),
        "counts": save({name: np.ascontiguousarray(array) for name, array in compared.counts.items()}),
        "meta": json.dumps(reread.meta if reread else {}),
        "map": maps.encode(reread) if reread else None,
    }


def as_map(raw: RawMap) -> fidelity.Map:
    return fidelity.Map(raw.array, raw.meta)


def _seen(
    args: ScorePart, pictures: dict[int, np.ndarray], samples: list[Row]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the networks make of a shard's pictures: features by network, values by metric, a row each."""
    wanted, images = args.networks, list(pictures.values())
    if not images:
        return {}, {}
    if position.at_a_time(2) == 1 and len(pictures) > 1:  # the one that kills is sought
        for row, picture in pictures.items():
            _seen(args, {row: picture}, samples)
    captions = [args.items[samples[row]["image_id"]].caption for row in pictures]
    position.begin(list(pictures), "", Limit(args.time_limit, LIMIT_KEY), loading=LOADING)
    features = {
        name: networks.extractor(name, weights, args.device)(images) for name, weights in wanted.features
    }
    values = {}
    if wanted.clip:
        encoder = networks.dual_encoder(wanted.clip, args.device)
        seen, read = encoder.images(images), encoder.texts(captions)
        values[measures.clip(wanted.clip).name] = alignment.similarity(seen, read).clip(0)
        features[measures.clip_image(wanted.clip).name] = seen
    return features, values
