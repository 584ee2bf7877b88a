"""Pairs a second that training reads on one core, by condition: whole batches of `train.batches` over
`ShardPairs`, in shuffled order. Maps are read from their Parquet shards and drawn, latents and texts
unpacked, noise and timesteps drawn, all of it stacked.

The pictures are rendered scenes. Where the renderer knows no map, the detectors that need no download make
it; normal_extended is made from the scene's depth. Scenes have flat walls, so that there are also smooth maps
made of photographs, of benchmarks/map_codecs.py. All maps are written twice, as they are stored now and with
PNG for depth and normals as before, and the rounds alternate between the two. What counts is this process's
processor time; the files are in the page cache. With `--processes 1 2` the same is then read by so many
reader processes, and what counts is the wall's time: do this where nothing else runs.

    python benchmarks/loader.py --pairs 64 --rounds 9 --processes 1 2 --out loader.json
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from annotate import maps
from annotate.annotator import Annotation, annotate, resolve
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from pipeline import scenes
from pipeline.dataset.maps import OF_MAP
from pipeline.experiment.addresses import PairAddress, PairAddresses
from pipeline.experiment.packing import pack, unpack
from pipeline.experiment.reading import ShardPairs
from pipeline.storage import shards
from pipeline.storage.workspace import Workspace

BATCH = 16
PART = 256  # rows of a shard, as by default
TEXT = (77, 768)  # tokens and width of Stable Diffusion 1.5's text encoder
WANTED = 120  # pairs a second


@dataclass(frozen=True)
class Shards:
    """What training reads, relative to the workspace: a part each."""

    latents: list[str]
    encoder: str  # key of the texts, of which each pair has its own
    maps: dict[str, list[str]]  # by label of the maps; once more by "label as PNG"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="*", default=[], help="reader processes, such as 1 2")
    parser.add_argument("--images", type=int, default=1024, help="to read for each number of processes")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    import torch

    from benchmarks.annotate import machine
    from benchmarks.map_codecs import make_maps

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.create()
        made = maps_of_scenes(options.pairs, options.size)
        smooth = make_maps(options.pairs, options.size)
        made["depth_large of photographs"] = smooth["depth of photographs"]
        made["normal of photographs"] = smooth["normals of photographs"]
        stored = write(workspace, made, options.size)
        rows = measure(workspace, stored, options)
        for row in rows:
            pairs = pairs_of(workspace, stored, row["maps"], options)
            row["processes"] = {
                str(count): in_processes(pairs, condition_of(row["maps"]), count, options.images)
                for count in options.processes
            }
    show(rows)
    told = {"machine": machine("cpu"), "pairs": options.pairs, "size": options.size, "rounds": options.rounds}
    if options.out:
        options.out.write_text(json.dumps(told | {"rows": rows}, indent=2) + "\n")


def condition_of(label: str) -> str:
    return label.partition(" ")[0]


def maps_of_scenes(count: int, size: int) -> dict[str, list[RawMap]]:
    """A map of each condition for each scene.

    A condition without a detector here is left out with a line, and so are those that are made from it.
    """
    made: dict[str, list[RawMap]] = {name: [] for name in CONDITIONS}
    for index in range(count):
        scene = scenes.render(0, index, size)
        given = {name: [Annotation("ok", map=raw)] for name, raw in scene.maps.items()}
        steps = []
        for name in CONDITIONS:
            if name in scene.maps:
                made[name].append(scene.maps[name])
                continue
            try:
                step = resolve(name)
            except ValueError as error:
                if not index:
                    print(f"{name} is left out: {error}")
                continue
            if step.parent is None or step.parent in given or step.parent in {it.condition for it in steps}:
                steps.append(step)
        for name, (one,) in annotate([scene.image], [str(index)], steps, given=given).items():
            if one.map is None:
                raise RuntimeError(f"{name}: {one.reason}")
            made[name].append(one.map)
    return {name: raws for name, raws in made.items() if raws}


def write(workspace: Workspace, made: Mapping[str, Sequence[RawMap]], size: int) -> Shards:
    """The shards of the maps, and those of latents, as the stages write them."""
    draw = np.random.default_rng(0)
    (count,) = {len(raws) for raws in made.values()}
    about = {"key": "benchmark", "made_from": "scenes"}
    found = Shards([], "benchmark", {})
    for part, start in enumerate(range(0, count, PART)):
        rows = range(start, min(start + PART, count))
        latents = [latent_row(draw, size) | {"image_id": str(row)} for row in rows]
        path = workspace.latents("benchmark", part)
        shards.write(path, latents, shards.LATENTS, about | {"kind": "latents", "part": part})
        found.latents.append(workspace.relative(path))
        texts = [text_row(draw, row) for row in rows]
        about_texts = about | {"kind": "texts", "part": part}
        shards.write(workspace.texts(found.encoder, part), texts, shards.TEXTS, about_texts)
        for name, raws in made.items():
            for kind, label in (("now", name), ("png", f"{name} as PNG")):
                path = workspace.maps(name.replace(" ", "-"), kind, part)
                of_part = [map_row(raws[row], str(row), kind == "png") for row in rows]
                shards.write(path, of_part, shards.MAPS, about | {"kind": "maps", "part": part})
                found.maps.setdefault(label, []).append(workspace.relative(path))
    return found


def latent_row(draw: np.random.Generator, size: int) -> dict[str, object]:
    latent = (4, size // 8, size // 8)
    row = {name: pack(draw.normal(size=latent)) for name in ("mean", "std")}
    return {"status": "ok", "reason": "", **row}


def text_row(draw: np.random.Generator, number: int) -> dict[str, object]:
    text = {"text_id": f"{number:064x}", "caption": str(number), "may_flip": True, "turned": f"{number:064x}"}
    return {"status": "ok", "reason": "", "text": pack(draw.normal(size=TEXT)), **text}


def map_row(raw: RawMap, image_id: str, as_png: bool) -> dict[str, object]:
    data = maps.encode(raw)
    measures = list(maps.measures(raw).items())
    return {
        "image_id": image_id, "status": "ok", "reason": "", "seconds": 0.0, "measures": measures,
        "meta": json.dumps(raw.meta), "draws": "{}", "map": maps.portable(data) if as_png else data,
    }  # fmt: skip


def measure(workspace: Workspace, stored: Shards, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a condition: pairs a second now and with PNG, and where a pair's milliseconds go now."""
    passes: dict[str, list[float]] = {label: [] for label in stored.maps}
    for turn in range(options.rounds):
        for label in list(stored.maps)[:: 1 if turn % 2 else -1]:
            pairs = pairs_of(workspace, stored, label, options)
            pairs[0]  # opens the files
            start = time.process_time()
            for _ in batches_of(
                pairs, condition_of(label), range(turn * len(pairs), (turn + 1) * len(pairs))
            ):
                pass
            passes[label].append(1000 * (time.process_time() - start) / len(pairs))
    rows = []
    for name in sorted(
        (label for label in stored.maps if not label.endswith(" as PNG")),
        key=lambda label: (" " in label, list(CONDITIONS).index(condition_of(label))),
    ):
        now, png = (statistics.median(passes[label]) for label in (name, f"{name} as PNG"))
        pairs = pairs_of(workspace, stored, name, options)
        rows.append({
            "maps": name, "pairs_per_second": round(1000 / now, 1),
            "pairs_per_second_png": round(1000 / png, 1),
            "kib": round(size_of(workspace, stored.maps[name]) / options.pairs / 1024, 1),
            "kib_png": round(size_of(workspace, stored.maps[f"{name} as PNG"]) / options.pairs / 1024, 1),
            "profile_ms": profile(pairs, condition_of(name)),
            "runs_ms": [round(run, 3) for run in passes[name]],
            "runs_ms_png": [round(run, 3) for run in passes[f"{name} as PNG"]],
        })  # fmt: skip
    return rows


def batches_of(pairs: ShardPairs, condition: str, images: range) -> Iterator[Any]:
    from train.batches import batches
    from train.options import Options

    options = Options(images=BATCH, batch=BATCH, workers=0)
    counters = range(images.start, images.stop, BATCH)
    return batches(pairs, [condition], counters, options, scaling_factor=0.18215)


def in_processes(pairs: ShardPairs, condition: str, count: int, images: int) -> float:
    """Pairs a second by the wall, once all readers have given their first batches."""
    from train import readers
    from train.batches import Reading
    from train.options import Options

    make = Reading(pairs, (condition,), Options(images=BATCH, batch=BATCH), 0.18215, slice(None))
    start, before = 0.0, readers.AHEAD * count
    for number, _ in enumerate(readers.in_processes(make, range(0, images, BATCH), count)):
        if number == before:
            start = time.perf_counter()
    return round((images - BATCH * (before + 1)) / (time.perf_counter() - start), 1)


def size_of(workspace: Workspace, paths: Sequence[str]) -> int:
    return sum((workspace.root / path).stat().st_size for path in paths)


def pairs_of(workspace: Workspace, stored: Shards, label: str, options: Any) -> ShardPairs:
    side, condition = options.size // 8, condition_of(label)
    addresses = [
        PairAddress(
            str(index),
            index % PART,
            stored.latents[index // PART],
            {condition: stored.maps[label][index // PART]},
            (side, side),
            (index // PART << 32 | index % PART,),
        )
        for index in range(options.pairs)
    ]
    pairs = PairAddresses.of(addresses, [condition], stored.encoder)
    return ShardPairs(workspace, pairs, np.zeros(TEXT, np.float32))


def by_the_clock(pairs: ShardPairs, workers: int, batch: int) -> float:  # pairs a second
    """One epoch of batches as training reads them: in one thread beside the loop, or in so many processes."""
    from train.batches import batches
    from train.options import Options

    images = len(pairs) // batch * batch
    options = Options(images=images, batch=batch, workers=workers)
    begun = time.perf_counter()
    for _ in batches(
        pairs, pairs.addresses.conditions, range(0, images, batch), options, scaling_factor=0.18215
    ):
        pass
    return images / (time.perf_counter() - begun)


def profile(pairs: ShardPairs, condition: str) -> dict[str, float]:
    """Milliseconds of a pair's parts, each the median over the pairs: reading the rows, one by one, decoding
    the map, drawing it, unpacking latents and text.
    """
    found: dict[str, list[float]] = {
        "read latents": [],
        "read text": [],
        "read map": [],
        "decode": [],
        "draw": [],
        "unpack": [],
    }
    for index in np.random.default_rng(1).permutation(len(pairs)).tolist():
        address, root = pairs.addresses[index], pairs.workspace.root
        times = [time.process_time()]
        latents = shards.read_row(root / address.latents, address.row, ["mean", "std"])
        times.append(time.process_time())
        texts = pairs.workspace.texts(pairs.addresses.encoder, address.texts[0] >> 32)
        text = shards.read_row(texts, address.row, ["text"])
        times.append(time.process_time())
        row = shards.read_row(root / address.maps[condition], address.row, [*OF_MAP])
        times.append(time.process_time())
        raw = maps.decode(CONDITIONS[condition].kind, row["map"], json.loads(row["meta"]))
        times.append(time.process_time())
        maps.render(raw)
        times.append(time.process_time())
        for data in (latents["mean"], latents["std"], text["text"]):
            unpack(data)
        times.append(time.process_time())
        for part, spent in zip(found, np.diff(times), strict=True):
            found[part].append(1000 * float(spent))
    return {part: round(statistics.median(spent), 2) for part, spent in found.items()}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    parts = list(rows[0]["profile_ms"])
    print(f"| Maps | Pairs/s a core | with PNG | times | KiB | with PNG | {' | '.join(parts)} (ms) |")
    for row in rows:
        now, png = row["pairs_per_second"], row["pairs_per_second_png"]
        cells = [row["maps"], f"{now:.0f}", f"{png:.0f}", f"{now / png:.1f}"]
        cells += [f"{row['kib']:.0f}", f"{row['kib_png']:.0f}"]
        cells += [f"{row['profile_ms'][part]:.2f}" for part in parts]
        print(f"| {' | '.join(cells)} |")
        if row["processes"]:
            told = ", ".join(f"{count}: {speed:.0f}" for count, speed in row["processes"].items())
            print(f"  pairs/s by reader processes: {told}")
    slow = [row["maps"] for row in rows if row["pairs_per_second"] < WANTED]
    print(f"under {WANTED} pairs/s: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
