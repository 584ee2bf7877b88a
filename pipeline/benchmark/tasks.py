"""What a system is asked for: held-out images with their hints, each with every seed; and who else may be
compared with it: whoever was asked for the same.
"""

import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from annotate.maps import RawMap
from pipeline.benchmark.systems import Item, System, held_out
from pipeline.catalog import Catalog
from pipeline.dataset.maps import read_maps
from pipeline.manifest import Benchmark
from pipeline.plan import Plan
from pipeline.storage.workspace import canonical_json, fingerprint

PART = 16  # samples of a shard: what a killed run loses at most
Task = tuple[Item, Item, int]  # what is asked for, whose condition is given, the seed
VERSION = 1  # of what a task's identity is made of


def tasks_of(system: System, frozen: Benchmark) -> list[Task]:
    """What a system is asked for, in the order of its shards."""
    seeds = frozen.seeds if system.seeded else frozen.seeds[:1]
    return [
        (item, system.hint_of(number), seed) for number, item in enumerate(system.items) for seed in seeds
    ]


@dataclass(frozen=True)
class Asked:
    """One held-out image, as everybody may know it."""

    image_id: str
    caption: str
    width: int
    height: int
    map: str  # sha256 of the condition map, `map_hash`


@dataclass(frozen=True)
class FrozenTask:
    """What is asked of every model on one condition, whatever its base and sampler. Scores of two models are
    compared only where their tasks have one identity.
    """

    condition: str
    split: str
    maker: str  # detector and fingerprint of what made the maps
    seeds: tuple[int, ...]
    items: tuple[Asked, ...]

    @property
    def identity(self) -> str:
        return fingerprint(asdict(self) | {"version": VERSION})

    def samples(self) -> Iterator["AskedSample"]:
        """In the order of images and seeds."""
        for number, item in enumerate(self.items):
            for seed in self.seeds:
                yield AskedSample(item, self.items[(number + 1) % len(self.items)], seed)


@dataclass(frozen=True)
class AskedSample:
    """One picture that is asked for."""

    item: Asked
    other: Asked  # whose hint is given where the condition is shuffled
    seed: int

    @property
    def file(self) -> str:
        return file_of(self.item.image_id, self.seed)


def name_of(image_id: str) -> str:
    """A held-out image in the names of files."""
    return image_id[:16]


def file_of(image_id: str, seed: int) -> str:
    """Of the picture that is asked for."""
    return f"{name_of(image_id)}-{seed}.png"


def frozen_task(plan: Plan, catalog: Catalog, condition: str) -> FrozenTask:
    """Of a workspace; reads every map of it. MillError where there are too few held-out pairs."""
    assert plan.manifest.evaluate is not None
    frozen, maker = plan.manifest.evaluate.benchmark, plan.conditions[condition]
    items = held_out(plan, catalog, condition)
    by_shard: dict[str, list[Item]] = {}
    for item in items:
        by_shard.setdefault(item.map_shard, []).append(item)

    def hashed(shard: str) -> list[tuple[str, str]]:
        made = read_maps(plan.workspace, shard, [item.row for item in by_shard[shard]], condition)
        return [(item.image_id, map_hash(made[item.row])) for item in by_shard[shard]]

    with ThreadPoolExecutor() as pool:  # decoding runs outside Python's lock
        hashes = dict(itertools.chain.from_iterable(pool.map(hashed, by_shard)))
    return FrozenTask(
        condition=condition,
        split=frozen.split,
        maker=f"{maker.step.detector} {maker.fingerprint}"
        + (f" drawing {maker.drawing}" if maker.drawing > 1 else ""),
        seeds=tuple(frozen.seeds),
        items=tuple(
            Asked(item.image_id, item.caption, item.width, item.height, hashes[item.image_id])
            for item in items
        ),
    )


def map_hash(raw: RawMap) -> str:
    """sha256 of what a map says, however its bytes are packed."""
    head = {"kind": raw.kind, "dtype": raw.array.dtype.name, "shape": raw.array.shape, "meta": raw.meta}
    digest = hashlib.sha256(canonical_json(head).encode())
    digest.update(np.ascontiguousarray(raw.array).tobytes())
    return digest.hexdigest()


def protocol(frozen: Benchmark, base: str) -> dict[str, Any]:
    """How our own systems make their pictures: what models of one base have to share to be compared as
    closely as ours are.
    """
    return {
        "base": base,
        "sampler": frozen.sampler,
        **frozen.stored("steps", "guidance", "scale", "negative", "guide_hint"),
        **frozen.younger,
    }
