"""Held-out pairs -> samples: the frozen benchmark through every system, with the same noise for
all of them.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from annotate import maps
from pipeline import MillError
from pipeline.benchmark.systems import REAL, ROUND_TRIP, Item, System, systems
from pipeline.benchmark.tasks import PART, Task, tasks_of
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.dataset.maps import read_map
from pipeline.experiment.base import base_spec, device, load_base
from pipeline.plan import Plan
from pipeline.stages.parts import make_missing, of_one_size, told
from pipeline.storage import codec, shards
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, Workspace

BATCH = {"cpu": 4, "cuda": 16}  # samples that pass the networks together; halved where memory runs out


def generate(plan: Plan, catalog: Catalog, cluster: Cluster) -> str:
    evaluation = plan.manifest.evaluate
    if evaluation is None:
        return "nothing asked for"
    frozen = evaluation.benchmark
    todo: dict[Path, Job] = {}
    for system in systems(plan, catalog):
        places = _places(catalog, system) if system.arm in (REAL, ROUND_TRIP) else {}
        tasks = tasks_of(system, frozen)
        committed = catalog.committed("samples", system.key, system.drawn_as)
        for part, start in enumerate(range(0, len(tasks), PART)):
            if part in committed:
                continue
            path = plan.workspace.samples(system.drawn_as, system.key, part)
            chunk = tasks[start : start + PART]
            args = {
                "root": str(plan.workspace.root),
                "path": str(path),
                "base": base_spec(plan),
                "checkpoint": system.checkpoint,
                "arm": system.arm,
                "condition": system.condition,
                "chunk": chunk,
                "sources": {item.image_id: places.get(item.image_id) for item, *_ in chunk},
                "settings": frozen.model_dump(include={"steps", "guidance", "scale", "guide_hint"}),
                "negative": frozen.negative,
                "facts": {
                    "kind": "samples",
                    "key": system.key,
                    "name": system.drawn_as,
                    "part": part,
                    "made_from": shards.made_from(system.key, part),
                },
            }
            todo[path] = Job(f"generate {system.drawn_as} part {part}", args, tuple(range(len(chunk))))

    rows = make_missing(catalog, cluster, generate_part, todo, label="generate", gpus=1)
    (count,) = catalog.row("SELECT count(*) FROM samples")
    return f"{told(rows, 'samples')}; {count} samples"


def _places(catalog: Catalog, system: System) -> dict[str, tuple[str, int]]:
    """Image id -> shard and row of its canonical image."""
    ids = [item.image_id for item in system.items]
    found = catalog.query(
        "SELECT image_id, shard, row FROM images WHERE image_id IN (SELECT unnest(?))", [ids]
    )
    return {image_id: (shard, row) for image_id, shard, row in found}


@functools.cache
def load_trained(folder: str, base: str) -> Any:
    """The base and the ControlNet, read once a process and hashed then: a run that unlocked the base has its
    own.
    """
    from train import checkpoint, sample

    try:
        checkpoint.check_controlnet(Path(folder))
    except checkpoint.Damaged as error:
        raise MillError(f"{error}: {DAMAGED_CHECKPOINT}.") from error
    return sample.load_trained(Path(folder), load_base(base, ("unet", "vae", "text_encoder"), device()))


def generate_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: a shard of samples of one system, those of one size together.

    Noise belongs to (seed, image id) alone.
    """
    workspace, chunk = Workspace(Path(args["root"])), args["chunk"]
    controlled = bool(args["checkpoint"])
    table: list[dict[str, Any]] = [
        {
            "image_id": item.image_id,
            "hint_image_id": hint.image_id if controlled else "",
            "seed": seed,
            "status": "failed",
            "reason": deadly.get(row, ""),
        }
        for row, (item, hint, seed) in enumerate(chunk)
    ]
    draw = {REAL: _real, ROUND_TRIP: _returned}.get(args["arm"], _drawn)
    size = lambda row: (chunk[row][0].height, chunk[row][0].width)
    for members in of_one_size([row for row in rows if row not in deadly], size, BATCH[device()]):
        start = time.perf_counter()
        encoded = _in_memory(functools.partial(draw, args, workspace), [chunk[row] for row in members])
        each = (time.perf_counter() - start) / len(members)
        for row, image in zip(members, encoded, strict=True):
            table[row] |= {"status": "ok", "seconds": each, "image": image}
    if not probe:
        shards.write(Path(args["path"]), table, shards.SAMPLES, args["facts"])
    return args["path"]


def _in_memory(draw: Callable[[list[Task]], list[bytes]], tasks: list[Task]) -> list[bytes]:
    """With half as many at a time where memory runs out: an image does not depend on what else is in its
    batch.
    """
    import torch

    try:
        return draw(tasks)
    except torch.OutOfMemoryError:
        if len(tasks) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(tasks) // 2
    return [*_in_memory(draw, tasks[:half]), *_in_memory(draw, tasks[half:])]


def _drawn(args: dict[str, Any], workspace: Workspace, tasks: list[Task]) -> list[bytes]:  # PNG
    from train import base as bases
    from train import sample

    if args["checkpoint"]:
        # an absolute path stays what it is
        loaded, net = load_trained(str(workspace.root / args["checkpoint"]), args["base"])
    else:
        loaded, net = load_base(args["base"], ("unet", "vae", "text_encoder"), device()), None
    items = [item for item, *_ in tasks]
    height, width = items[0].height, items[0].width
    hints = (
        np.stack([_hint(workspace, hint, args["condition"], height, width) for _, hint, _ in tasks])
        if net
        else None
    )
    images = sample.generate(
        loaded,
        net,
        hints=hints,
        text=bases.encode_text(loaded, [item.caption for item in items]),
        empty_text=bases.encode_text(loaded, [args["negative"]])[0],
        seeds=[seed for *_, seed in tasks],
        noise_keys=[item.image_id for item in items],
        height=height,
        width=width,
        **args["settings"],
    )
    return [codec.encode(image, "png") for image in images]


def _real(args: dict[str, Any], workspace: Workspace, tasks: list[Task]) -> list[bytes]:
    """The held-out image itself, as it is stored: what the reader makes of it is the ceiling."""
    found = (args["sources"][item.image_id] for item, *_ in tasks)
    return [shards.read_row(workspace.root / shard, row, ["image"])["image"] for shard, row in found]


def _returned(args: dict[str, Any], workspace: Workspace, tasks: list[Task]) -> list[bytes]:  # PNG
    """There and back through the base's VAE: no sample can be better than this."""
    import torch

    from train import base as bases

    loaded = load_base(args["base"], ("unet", "vae", "text_encoder"), device())
    pixels = np.stack([codec.decode(data) for data in _real(args, workspace, tasks)])
    mean, _ = bases.encode_images(loaded, pixels)
    images = bases.decode_latents(loaded, torch.from_numpy(mean) * loaded.scaling_factor)
    return [codec.encode(image, "png") for image in images]


def _hint(workspace: Workspace, item: Item, condition: str, height: int, width: int) -> np.ndarray:
    return maps.render(read_map(workspace, item.map_shard, item.row, condition), size=(height, width))
