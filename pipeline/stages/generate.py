"""Held-out pairs -> samples: the frozen benchmark through each trained ControlNet and each baseline, with the same noise."""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotate import maps
from pipeline import MillError, canonical, shards
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.plan import Plan
from pipeline.stages.annotate import read_annotation
from pipeline.stages.encode import base_spec, device, load_base
from pipeline.stages.parts import make_missing, told
from pipeline.stages.train import planned_runs
from pipeline.workspace import Workspace, fingerprint

BATCH = 4  # samples at a time, and a shard's rows: what a killed run loses at most
CONTROL, NO_CONTROL, SHUFFLED = "control", "no_control", "shuffled_condition"


@dataclass(frozen=True)
class Item:
    """One held-out image: what is asked of a model, and how to check it."""

    image_id: str
    caption: str
    height: int
    width: int
    map_shard: str
    row: int


@dataclass(frozen=True)
class Arm:
    """One system on one condition's benchmark: a run's ControlNet, or a baseline of it."""

    run: str
    condition: str
    arm: str  # control | no_control | shuffled_condition
    checkpoint: str  # folder of the ControlNet, relative to the workspace; '' = the base alone
    benchmark: str  # fingerprint of everything but the weights
    items: tuple[Item, ...]

    @property
    def samples(self) -> str:
        """Where its samples lie: a base without control gives one image a prompt, whatever the condition."""
        return f"no_control/{self.condition}" if self.arm == NO_CONTROL else f"{self.run}/{self.condition}/{self.arm}"

    @property
    def system(self) -> str:
        return f"{self.run}/{self.condition}/{self.arm}"

    def hint_of(self, number: int) -> Item:
        """The condition that item `number` is generated from: its own, or for the shuffled baseline the next one's."""
        return self.items[(number + (self.arm == SHUFFLED)) % len(self.items)]


def arms(plan: Plan, catalog: Catalog) -> list[Arm]:
    """Every system to sample and score: the manifest's runs that have finished, and their baselines."""
    runs = catalog.query("SELECT run, conditions, checkpoint, base_fingerprint FROM runs WHERE status = 'complete' ORDER BY run")
    if plan.manifest.evaluate is None or not runs:
        return []
    frozen, out = plan.manifest.evaluate.benchmark, []
    named = {planned.name for planned in planned_runs(plan, catalog)}
    for run, conditions, checkpoint, mark in runs:
        if run not in named:
            continue  # of an earlier manifest: its conditions were made otherwise
        for condition in conditions:
            rows = catalog.query(
                "SELECT image_id, coalesce(caption, ''), height, width, map_shard, row FROM pairs WHERE condition = ? AND split = ?",
                [condition, frozen.split],
            )  # fmt: skip
            items = tuple(sorted((Item(*row) for row in rows), key=lambda item: item.image_id)[: frozen.samples])
            if len(items) < 2:
                raise MillError(
                    f"evaluate: {condition} has {len(items)} pairs in the {frozen.split} split and a benchmark needs 2: "
                    "add images, or use another evaluate.benchmark.split."
                )
            identity = {
                "base": mark, "items": [(item.image_id, item.caption) for item in items], "settings": frozen.model_dump(exclude={"samples"}),
                "detector": plan.conditions[condition].fingerprint, "sampler": "ddim", "version": 1,
            }  # fmt: skip
            for arm in (CONTROL, *plan.manifest.evaluate.baselines):
                folder = "" if arm == NO_CONTROL else f"{checkpoint}/{condition}"
                out.append(Arm(run, condition, arm, folder, fingerprint(identity), items))
    return out


def generate(plan: Plan, catalog: Catalog, cluster: Cluster) -> str:
    workspace, evaluation = plan.workspace, plan.manifest.evaluate
    if evaluation is None:
        return "nothing asked for"
    frozen = evaluation.benchmark
    todo: dict[Path, Job] = {}
    for arm in arms(plan, catalog):
        tasks = [(number, seed) for number in range(len(arm.items)) for seed in frozen.seeds]
        committed = catalog.committed("samples", arm.benchmark, arm.samples)
        for part, start in enumerate(range(0, len(tasks), BATCH)):
            if part in committed:
                continue
            path = workspace.samples(arm.samples, arm.benchmark, part)
            chunk = [(arm.items[number], arm.hint_of(number), seed) for number, seed in tasks[start : start + BATCH]]
            args = {
                "root": str(workspace.root), "path": str(path), "base": base_spec(plan), "checkpoint": arm.checkpoint, "condition": arm.condition,
                "chunk": chunk, "steps": frozen.steps, "guidance": frozen.guidance, "scale": frozen.scale,
                "facts": {"kind": "samples", "key": arm.benchmark, "name": arm.samples, "part": part,
                          "made_from": shards.made_from(arm.benchmark, arm.checkpoint, part)},
            }  # fmt: skip
            todo[path] = Job(f"generate {arm.samples} part {part}", args, tuple(range(len(chunk))))

    rows = make_missing(catalog, cluster, generate_part, todo, label="generate", gpus=1)
    (count,) = catalog.row("SELECT count(*) FROM samples")
    return f"{told(rows, 'samples')}; {count} samples"


@functools.cache
def load_trained(folder: str, base: str) -> Any:
    """The base and the ControlNet, once a process: a run that unlocked the base has its own."""
    from train import sample

    return sample.load_trained(Path(folder), load_base(base, ("unet", "vae", "text_encoder"), device()))


def generate_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: a few samples of one system, those of one size together. Noise belongs to (seed, image id) alone."""
    from train import base as bases
    from train import sample

    loaded = load_base(args["base"], ("unet", "vae", "text_encoder"), device())
    workspace = Workspace(Path(args["root"]))
    net = None
    if args["checkpoint"]:
        loaded, net = load_trained(str(workspace.root / args["checkpoint"]), args["base"])
    chunk: list[tuple[Item, Item, int]] = args["chunk"]
    table: list[dict[str, Any]] = [
        {
            "image_id": item.image_id,
            "hint_image_id": hint.image_id if net else "",
            "seed": seed,
            "status": "failed",
            "reason": deadly.get(row, ""),
        }
        for row, (item, hint, seed) in enumerate(chunk)
    ]
    by_size: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        if row not in deadly:
            by_size.setdefault((chunk[row][0].height, chunk[row][0].width), []).append(row)
    for (height, width), members in by_size.items():
        start = time.perf_counter()
        items = [chunk[row][0] for row in members]
        hints = np.stack([_hint(workspace, chunk[row][1], args["condition"], height, width) for row in members]) if net else None
        images = sample.generate(
            loaded, net, hints=hints, text=bases.encode_text(loaded, [item.caption for item in items]),
            empty_text=bases.encode_text(loaded, [""])[0], seeds=[chunk[row][2] for row in members], noise_keys=[item.image_id for item in items],
            height=height, width=width, steps=args["steps"], guidance=args["guidance"], scale=args["scale"],
        )  # fmt: skip
        each = (time.perf_counter() - start) / len(members)
        for row, image in zip(members, images, strict=True):
            table[row] |= {"status": "ok", "seconds": each, "image": canonical.encode(image, "png")}
    if not probe:
        shards.write(Path(args["path"]), table, shards.SAMPLES, args["facts"])
    return args["path"]


def _hint(workspace: Workspace, item: Item, condition: str, height: int, width: int) -> np.ndarray:
    made = read_annotation(workspace, item.map_shard, item.row, condition).map
    assert made is not None  # pairs hold `ok` rows only
    return maps.render(made, size=(height, width))
