"""What a system is asked for: held-out images with their hints, each with every seed."""

from pipeline.benchmark.systems import Item, System
from pipeline.manifest import Benchmark

PART = 16  # samples of a shard: what a killed run loses at most
Task = tuple[Item, Item, int]  # what is asked for, whose condition is given, the seed


def tasks_of(system: System, frozen: Benchmark) -> list[Task]:
    """What a system is asked for, in the order of its shards."""
    seeds = frozen.seeds if system.seeded else frozen.seeds[:1]
    return [
        (item, system.hint_of(number), seed) for number, item in enumerate(system.items) for seed in seeds
    ]
