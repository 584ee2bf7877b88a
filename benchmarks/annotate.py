"""Detectors' images per second against controlnet_aux called in a loop, from decoded array to raw map.

The hub's HED weights are not needed: the baseline runs the same network (ControlNetHED_Apache2) with random weights, and the
arithmetic of a convolution does not depend on its numbers. Runs of all contestants alternate, so that a busy machine slows
all of them; the table shows medians. Pictures are the photographs that scikit-image and scikit-learn ship.

    python benchmarks/annotate.py --images 8 --threads 2 --out annotate.json
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

Contestant = Callable[[list[np.ndarray]], list[np.ndarray]]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="pictures per run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each contestant")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures, pixels")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    import cv2
    import torch

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    images = photographs(options.images, options.size)
    tables = {
        "hed": (hed_contestants(), "controlnet_aux.HEDdetector in a loop (random weights)"),
        "canny": (canny_contestants(), "controlnet_aux.CannyDetector in a loop"),
    }
    report: dict[str, object] = {"images": len(images), "size": options.size, "threads": options.threads, "repeats": options.repeats}
    print(f"{len(images)} pictures of side {options.size}, {options.threads} threads, median of {options.repeats} alternating runs\n")
    for title, (contestants, baseline) in tables.items():
        report[title] = rows = measure(contestants, images, options.repeats)
        print(f"{title}: {'':<48}images/s   times")
        for name, row in rows.items():
            row["times_baseline"] = round(row["images_per_s"] / rows[baseline]["images_per_s"], 2)
            print(f"  {name:<52}{row['images_per_s']:>8.2f}{row['times_baseline']:>8.2f}")
        print()
    report["hed_difference_of_255"] = differences = hed_differences(images)
    for name, row in differences.items():
        print(f"hed {name} against fp32: mean {row['mean']:.3f}, worst picture {row['worst']:.3f} of 255")
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def photographs(count: int, size: int) -> list[np.ndarray]:
    """`count` crops uint8 [size, size, 3] RGB; a second round over the pictures is mirrored."""
    import cv2
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), *load_sample_images().images]
    crops = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        scale = size / min(picture.shape[:2])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation)
        y, x = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
        crop = picture[y : y + size, x : x + size]
        crops.append(np.ascontiguousarray(crop[:, :: -1 if i // len(pictures) % 2 else 1]))
    return crops


def ours(condition: str, **params: object) -> Contestant:
    """One of our detectors on a whole batch."""
    from annotate.annotator import DETECTORS, resolve

    step = resolve(condition, params=params)
    return lambda images: [raw.array for raw in DETECTORS[step.detector].detect(images, step.params, [{} for _ in images], [], "cpu")]


def hed_precisions() -> list[str]:
    """Those that this CPU runs."""
    from annotate.annotator import resolve

    ready = []
    for precision in ("fp32", "bf16", "int8"):
        try:
            resolve("hed", params={"precision": precision})
            ready.append(precision)
        except ValueError as error:
            print(error)
    return ready


def hed_contestants() -> dict[str, Contestant]:
    """The baseline and every precision; the one that `auto` means here is marked."""
    import torch

    from annotate.annotator import resolve

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from controlnet_aux.hed import ControlNetHED_Apache2, HEDdetector

    torch.manual_seed(0)
    detector = HEDdetector(ControlNetHED_Apache2().float().eval())
    auto = resolve("hed").params["precision"]
    found: dict[str, Contestant] = {
        "controlnet_aux.HEDdetector in a loop (random weights)": lambda images: [detector(image, output_type="np") for image in images]
    }
    for precision in hed_precisions():
        found[f"hed-bsds500 {precision}" + (" (auto here)" if precision == auto else "")] = ours("hed", precision=precision)
    return found


def canny_contestants() -> dict[str, Contestant]:
    """OpenCV on both sides: what differs is what is done around it."""
    from controlnet_aux import CannyDetector

    detector = CannyDetector()
    return {
        "controlnet_aux.CannyDetector in a loop": lambda images: [detector(image, output_type="np") for image in images],
        "opencv-canny": ours("canny"),
    }


def measure(contestants: dict[str, Contestant], images: list[np.ndarray], repeats: int) -> dict[str, dict[str, float]]:
    """Contestant -> images per second: median, and all runs."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run(images[:1])  # load and warm up
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(images)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "images_per_s": round(len(images) / statistics.median(runs), 3),
            "slowest": round(len(images) / max(runs), 3),
            "fastest": round(len(images) / min(runs), 3),
        }
        for name, runs in seconds.items()
    }


def hed_differences(images: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Precision -> mean absolute difference from fp32 over all pictures and of the worst one, in steps of 255."""
    exact = ours("hed", precision="fp32")(images)
    found = {}
    for precision in hed_precisions():
        if precision != "fp32":
            maps = ours("hed", precision=precision)(images)
            each = [float(np.abs(a.astype(int) - b).mean()) for a, b in zip(exact, maps, strict=True)]
            found[precision] = {"mean": round(statistics.mean(each), 4), "worst": round(max(each), 4)}
    return found


if __name__ == "__main__":
    # Python puts this file's folder first, where this file would hide the package of the same name
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    main()
