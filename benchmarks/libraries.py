"""Our own measures beside the libraries' on the same inputs: how far apart they are, and what each costs.

One thread; the sides of a measure take turns, median of the rounds. SSIM is also compared with torchmetrics
in float64, which stands for the truth. A Fréchet or kernel distance of ours comes with its 20 replicates,
which an interval needs and no library gives.

    python benchmarks/libraries.py --out benchmarks/results/libraries.json
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(it for it in sys.path if Path(it).resolve() != Path(__file__).resolve().parent),
]

from benchmarks.annotate import machine
from evaluate import labels, libraries, structure
from evaluate.comparison import Map
from evaluate.distribution import kernel_distance_without
from evaluate.features import Images
from evaluate.frechet import Moments, frechet, frechet_without

Side = Callable[[], float]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000, help="of each side of a distance")
    parser.add_argument("--dimensions", type=int, default=2048, help="of their features")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    measures = {
        "ssim": ssim(rng),
        "miou": miou(rng),
        "kernel distance": kernel(rng, options.images, options.dimensions),
        "frechet distance": distance(rng, options.images, options.dimensions),
    }
    rows = {name: measured(sides, options.rounds) for name, sides in measures.items()}
    for name, row in rows.items():
        for side, it in row.items():
            print(f"{name:<18}{side:<32}{it['seconds']:>10.4f} s{it['value']:>16.9f}", flush=True)
    if options.out:
        report = {
            "machine": machine("cpu"), "threads": 1, "load": list(os.getloadavg()), "rounds": options.rounds,
            "images": options.images, "dimensions": options.dimensions, "rows": rows,
        }  # fmt: skip
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def measured(sides: dict[str, Side], rounds: int) -> dict[str, dict[str, float]]:
    """Name -> its value, and the median of its seconds; the first call, which imports, is not counted."""
    values = {name: side() for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return {name: {"value": values[name], "seconds": statistics.median(seconds[name])} for name in sides}


def ssim(rng: np.random.Generator) -> dict[str, Side]:
    """SSIM plus MS-SSIM of two grey maps of 512x512."""
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as at_scales
    from torchmetrics.functional.image import structural_similarity_index_measure as at_one

    coarse = np.kron(rng.integers(0, 256, (32, 32)), np.ones((16, 16)))
    maps = [(coarse + rng.normal(0, 20, coarse.shape)).clip(0, 255).astype(np.uint8) for _ in range(2)]

    def theirs(kind: Any) -> float:
        a, b = (torch.from_numpy(it.astype(kind) / kind(255))[None, None] for it in maps)
        one: Any = at_one(a, b, data_range=1.0)
        return float(one) + float(at_scales(a, b, data_range=1.0))

    return {
        "own": lambda: sum(structure.both(*maps)),
        "torchmetrics, float32": lambda: theirs(np.float32),
        "torchmetrics, float64": lambda: theirs(np.float64),
    }


def miou(rng: np.random.Generator) -> dict[str, Side]:
    """Of ten pairs of label maps of 512x512 with 150 classes."""
    pairs = []
    for _ in range(10):
        true = np.kron(rng.integers(0, 150, (64, 64)), np.ones((8, 8))).astype(np.uint8)
        read = np.where(rng.random(true.shape) < 0.2, rng.integers(0, 150, true.shape), true)
        pairs.append(tuple(Map(it.astype(np.uint8), {"label_space": "ade20k_150"}) for it in (true, read)))

    def own() -> float:
        counts = [labels.compare(*pair).counts for pair in pairs]
        return labels.STATISTICS["miou"](counts)(np.ones(len(counts)))

    return {"own": own, "torchmetrics, confusion matrix": lambda: libraries.of_set("miou", pairs).value}


def features(rng: np.random.Generator, count: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Like Inception's: not negative, with few strong directions."""
    mix = rng.normal(0, 1, (dimensions, dimensions)) * np.geomspace(1, 1e-2, dimensions)[:, None]
    made, real = (rng.normal(shift, 1, (count, dimensions)) @ mix for shift in (0.05, 0.0))
    return np.abs(made).astype(np.float32), np.abs(real).astype(np.float32)


def kernel(rng: np.random.Generator, count: int, dimensions: int) -> dict[str, Side]:
    made, real = features(rng, count, dimensions)
    scale = np.float32(np.sqrt(np.square(real).mean()))
    made, real, of = made / scale, real / scale, np.arange(count)
    return {
        "own, with 20 replicates": lambda: kernel_distance_without(
            Images(made, of), Images(real, of), of % 20
        )[0],
        "torchmetrics' kernel, without": lambda: libraries.kernel(made, of, real, of).value,
    }


def distance(rng: np.random.Generator, count: int, dimensions: int) -> dict[str, Side]:
    made, real = features(rng, count, dimensions)
    of = np.arange(count)

    def own() -> float:
        frechet_without(Images(made, of), Images(real, of), of % 20)
        return frechet(Moments.of(made), Moments.of(real))

    return {
        "own, with 20 replicates": own,
        "own, without": lambda: frechet(Moments.of(made), Moments.of(real)),
        "clean-fid, without": lambda: libraries.frechet(made, real).value,
    }


if __name__ == "__main__":
    main()
