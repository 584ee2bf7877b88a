"""Floors and ceilings of the measures of edges on named photographs, and what a comparison costs.

Each photograph of scikit-image is cut square, brought to `--size` and read again after a known harm: shifted
by pixels, saved as JPEG, with noise, made half as large and back, or another photograph in its place
(shuffled). Edges are OpenCV's Canny (100, 200); soft edges are Sobel's magnitudes in place of HED. The cost
is the processor's time of one comparison of two maps of `--size`, median over the photographs, so that other
work on the machine counts little.

    python benchmarks/fidelity.py --out benchmarks/results/fidelity-floors.json
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from evaluate.fidelity import METRICS, NAMES, Map, compare, prepared

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera")
SHOWN = {
    "edges": ("edge_f1", "edge_f1_1px", "edge_f1_2px", "edge_f1_bsds", "edge_chamfer", "edge_ms_ssim"),
    "soft_edges": ("soft_ssim", "soft_ms_ssim", "soft_f1"),
}


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="side of the photographs, pixels")
    parser.add_argument("--draws", type=int, default=1000, help="of a set score, when it is timed")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    images = [photograph(name, options.size) for name in PHOTOGRAPHS]
    floors = {kind: floors_of(kind, images) for kind in SHOWN}
    for kind, rows in floors.items():
        print(
            f"{'mean of ' + str(len(images)) + ' photographs':<24}"
            + "".join(f"{name:>20}" for name in SHOWN[kind])
        )
        for harm, row in rows.items():
            print(f"{harm:<24}" + "".join(f"{row[name]:>20.4f}" for name in SHOWN[kind]))
        print()
    costs = cost(images)
    print(
        "\n".join(
            f"{kind:<12} {1000 * seconds:8.1f} ms a comparison at {options.size} x {options.size}"
            for kind, seconds in costs.items()
        )
    )
    draws = {name: speed(name, options.draws) for name, metric in METRICS.items() if metric.level == "set"}
    print(
        "\n".join(
            f"{name:<24} {seconds:8.2f} s for {options.draws} draws of 1,000 samples"
            for name, seconds in draws.items()
        )
    )
    if options.out:
        found = {
            "size": options.size,
            "photographs": [f"skimage.data.{name}" for name in PHOTOGRAPHS],
            "edge_pixels": [int((canny(image) > 0).sum()) for image in images],
            "detectors": {"edges": "OpenCV Canny 100 200", "soft_edges": "Sobel"},
            "mean_of_photographs": floors,
            "seconds_a_comparison": costs,
            "seconds_for_draws": {"draws": options.draws, "samples": 1000, **draws},
            "machine": f"{platform.machine()}, one thread, processor time",
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def photograph(name: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3] RGB, the middle square."""
    from skimage import data

    image = getattr(data, name)()
    image = image if image.ndim == 3 else np.dstack([image] * 3)
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.asarray(
        cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    )


def canny(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.Canny(image, 100, 200))


def sobel(image: np.ndarray) -> np.ndarray:
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
    return (
        (np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) * 2)
        .clip(0, 255)
        .astype(np.uint8)
    )


READ: dict[str, Callable[[np.ndarray], np.ndarray]] = {"edges": canny, "soft_edges": sobel}
HARMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda image: image,
    "shifted 1 px": lambda image: np.roll(image, 1, 1),
    "shifted 2 px": lambda image: np.roll(image, 2, 1),
    "JPEG 95": lambda image: jpeg(image, 95),
    "JPEG 75": lambda image: jpeg(image, 75),
    "noise, sigma 5": lambda image: (
        (image + np.random.default_rng(0).normal(0, 5, image.shape)).clip(0, 255).round().astype(np.uint8)
    ),
    "half size and back": lambda image: cv2.resize(
        cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), image.shape[1::-1]
    ),
}


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(
        cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    )


def floors_of(kind: str, images: list[np.ndarray]) -> dict[str, dict[str, float]]:
    read = READ[kind]
    rows = {
        harm: [compare(kind, Map(read(image), {}), Map(read(change(image)), {})).values for image in images]
        for harm, change in HARMS.items()
    }
    others = images[1:] + images[:1]
    rows["shuffled"] = [
        compare(kind, Map(read(a), {}), Map(read(b), {})).values for a, b in zip(images, others, strict=True)
    ]
    rows["black map"] = [
        compare(kind, Map(read(image), {}), Map(np.zeros_like(read(image)), {})).values for image in images
    ]
    return {
        harm: {name: round(float(np.mean([row[name] for row in found])), 4) for name in found[0]}
        for harm, found in rows.items()
    }


def cost(images: list[np.ndarray]) -> dict[str, float]:
    """Processor seconds of one comparison, by kind; of maps that are one pixel off."""
    rng = np.random.default_rng(0)
    found = {}
    for kind in NAMES:
        seconds = []
        for image in images:
            truth, made = made_up(kind, image, rng), made_up(kind, np.roll(image, 1, 1), rng)
            compare(kind, truth, made)
            start = time.process_time()
            compare(kind, truth, made)
            seconds.append(time.process_time() - start)
        found[kind] = round(float(np.median(seconds)), 4)
    return found


def made_up(kind: str, image: np.ndarray, rng: np.random.Generator) -> Map:
    """A map of the kind at the image's size: read where that needs no network, else of the right shape."""
    h, w = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if kind in READ:
        return Map(READ[kind](image), {})
    if kind == "lines":
        return Map(
            np.concatenate([rng.uniform(0, w, (200, 4)), rng.random((200, 1))], axis=1).astype(np.float32),
            {"size": [h, w]},
        )
    if kind == "people":
        people = np.concatenate([rng.uniform(0, w, (3, 17, 2)), rng.random((3, 17, 1))], axis=2)
        return Map(people.astype(np.float32), {"size": [h, w], "layout": "coco_17"})
    if kind == "labels":
        return Map(grey // 8, {"label_space": "grey"})
    if kind == "depth":
        return Map(grey.astype(np.float32), {})
    return Map((image.astype(np.float32) + 1) / 256, {})


def speed(metric: str, draws: int) -> float:
    """Processor seconds of `draws` bootstrap draws of 1,000 samples, whose counts are those of 50 made-up
    ones over and over.
    """
    rng = np.random.default_rng(0)
    kind = METRICS[metric].kind
    some = [rng.integers(0, 255, (64, 64, 3)).astype(np.uint8) for _ in range(50)]
    counts = [
        compare(kind, made_up(kind, image, rng), made_up(kind, image, rng)).counts for image in some
    ] * 20
    statistic = prepared(metric, counts)
    weights = rng.multinomial(1000, np.full(1000, 1 / 1000), size=draws).astype(np.float64)
    start = time.process_time()
    for row in weights:
        statistic(row)
    return round(time.process_time() - start, 3)


if __name__ == "__main__":
    main()
