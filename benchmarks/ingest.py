"""A folder of JPEGs to canny at 512 through `controlmill run`, beside Ray Data and `datasets.map`.

Random crops of the photographs that installed packages ship, 1024×768, quality 90. Each system is a command
of its own, timed from start to end, and they take turns; the slope between the two sizes tells the cost of an
image, what is left that of starting and stopping. `--before` names a tree of an earlier version to compare
with, `--large` times as many photographs of 4000×3000 with both, `--again` the second run over that many
small files, unchanged and with ten of them changed. Resident memory of the processes is sampled meanwhile.

    python benchmarks/ingest.py --before ../controlmill-before --large 500 --again 100000 --out ingest.json
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from pipeline import manifest, sources
from pipeline.manifest import ListSource
from pipeline.sources import RawImage

HERE = Path(__file__).resolve().parent.parent
MANIFEST = """
name: benchmark
workspace: {workspace}
source: {{kind: folder, path: {photos}}}
image: {{resolution: {resolution}, fit: crop}}
split: {{near: null}}
conditions: {{canny: {{}}}}
"""
# what both rivals do with one file: decode, centre crop, scale, canny, encode; no hash, no row for a failure
WORK = """
import cv2, numpy as np
cv2.setNumThreads(1)
def work(data):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    side = min(pixels.shape[:2]); top, left = ((full - side) // 2 for full in pixels.shape[:2])
    pixels = cv2.resize(pixels[top:top + side, left:left + side], (512, 512), interpolation=cv2.INTER_AREA)
    full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    edges = cv2.Canny(pixels, 100, 200)
    png = cv2.imencode(".png", edges, [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_BILEVEL, 1])[1]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes(), png.tobytes()
"""
RAY_DATA = (
    WORK
    + """
import sys, ray
photos, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
def batch(rows):
    made = [work(data) for data in rows["bytes"]]
    return {"path": rows["path"], "image": [each[0] for each in made], "map": [each[1] for each in made]}
ray.data.read_binary_files(photos, include_paths=True).map_batches(batch, batch_size=32).write_parquet(out)
"""
)
DATASETS = (
    WORK
    + """
import sys, pathlib, datasets
photos, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
datasets.disable_progress_bars()
def each(row):
    image, edges = work(pathlib.Path(row["path"]).read_bytes())
    return {"image": image, "map": edges}
paths = sorted(str(path) for path in pathlib.Path(photos).iterdir())
datasets.Dataset.from_dict({"path": paths}).map(each, num_proc=workers).to_parquet(out + ".parquet")
"""
)


def originals() -> list[Image.Image]:
    listed = sources.listing(
        [ListSource(kind="list", path=str(HERE / "manifests" / "photos.jsonl"))], manifest.Image()
    )
    return [_photograph(raw) for raw in listed]


def _photograph(raw: RawImage) -> Image.Image:
    with tempfile.TemporaryFile() as file:
        file.write(sources.read(raw))
        picture = Image.open(file).convert("RGB")
    scale = max(1200 / picture.width, 900 / picture.height, 1)
    return picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )


def make_photographs(folder: Path, count: int, size: tuple[int, int] = (1024, 768)) -> Path:
    """Crops of 1024×768, enlarged to `size`, each with noise of its own so that no two are
    near-duplicates.
    """
    folder.mkdir()
    pictures, draw = originals(), np.random.default_rng(0)
    for number in range(count):
        picture = pictures[number % len(pictures)]
        left, top = draw.integers(0, picture.width - 1023), draw.integers(0, picture.height - 767)
        crop = picture.crop((int(left), int(top), int(left) + 1024, int(top) + 768))
        crop.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=90)
    return folder


def make_small_files(folder: Path, count: int) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number:06d}.jpg", quality=80)
    return folder


def timed(command: list[str], tree: Path = HERE) -> tuple[float, list[int]]:
    """Seconds of the whole command, and the resident MiB of its process tree each second."""
    start, memory = time.perf_counter(), []
    environment = os.environ | {"PYTHONPATH": str(tree), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=tree
    ) as process:
        while process.returncode is None:
            memory.append(_resident(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
        took = time.perf_counter() - start
        errors = process.stderr.read().decode() if process.stderr else ""
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with status {process.returncode}: {errors[-2000:]}")
    return took, memory


def _resident(pid: int) -> int:
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            memory = process.memory_info()
            total += memory.rss - memory.shared  # cheap to read, so that measuring costs the run nothing
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total // 2**20


def ours(
    photos: Path,
    workspace: Path,
    workers: int,
    *,
    tree: Path = HERE,
    resolution: int = 512,
    fresh: bool = True,
) -> tuple[float, list[int]]:
    if fresh:
        shutil.rmtree(workspace, ignore_errors=True)
    path = workspace.with_suffix(".yaml")
    path.write_text(MANIFEST.format(workspace=workspace, photos=photos, resolution=resolution))
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "run", str(path)]
    return timed([*command, "--stages", "ingest,annotate", "--workers", str(workers)], tree)


def rival(code: str, photos: Path, out: Path, workers: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    return timed([sys.executable, "-c", code, str(photos), str(out), str(workers)])[0]


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each system at both sizes, in turns; medians, and the slope between the sizes."""
    seconds: dict[str, dict[int, list[float]]] = {}
    peaks: list[int] = []
    photos = {size: make_photographs(folder / f"photos-{size}", size) for size in args.images}
    for _ in range(args.repeats):
        for size, place in photos.items():
            took, memory = ours(place, folder / "ours", args.workers)
            peaks.append(max(memory))
            row = {"controlmill": took}
            if args.before:
                row["before"] = ours(place, folder / "before", args.workers, tree=args.before)[0]
            row["ray_data"] = rival(RAY_DATA, place, folder / "ray-data", args.workers)
            row["datasets_map"] = rival(DATASETS, place, folder / "datasets", args.workers)
            for name, each in row.items():
                seconds.setdefault(name, {}).setdefault(size, []).append(each)
            print(size, {name: round(each, 1) for name, each in row.items()}, flush=True)
    small, large = args.images
    systems = {}
    for name, by_size in seconds.items():
        whole = {size: float(np.median(each)) for size, each in by_size.items()}
        slope = (whole[large] - whole[small]) / (large - small)
        systems[name] = {
            "seconds": by_size,
            "median_seconds": whole,
            "milliseconds_an_image": 1000 * slope,
            "start_and_stop_seconds": whole[small] - small * slope,
        }
        print(
            f"{name:<13} {small}: {whole[small]:6.1f} s   {large}: {whole[large]:6.1f} s  "
            f" {1000 * slope:6.2f} ms an image, {whole[small] - small * slope:5.1f} s to start and stop"
        )
    return {"systems": systems, "peak_mib": max(peaks)}


def large_photographs(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    place = make_photographs(folder / "large", args.large, (4000, 3000))
    took: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        took.setdefault("controlmill", []).append(ours(place, folder / "ours", args.workers)[0])
        if args.before:
            before = ours(place, folder / "before", args.workers, tree=args.before)[0]
            took.setdefault("before", []).append(before)
    for name, seconds in took.items():
        print(f"{args.large} of 4000×3000, {name}: {np.median(seconds):.1f} s")
    return {"images": args.large, "seconds": took}


def again(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The second run over many files: unchanged, then with ten that changed."""
    place = make_small_files(folder / "small", args.again)
    first, memory = ours(place, folder / "again", args.workers, resolution=64)
    unchanged = [
        ours(place, folder / "again", args.workers, resolution=64, fresh=False)[0]
        for _ in range(args.repeats)
    ]
    changed = []
    for turn in range(args.repeats):
        for number in range(10):
            shade = (20 * number, 50 + turn, 99)
            Image.new("RGB", (64, 64), shade).save(place / f"{number * 7:06d}.jpg")
        changed.append(ours(place, folder / "again", args.workers, resolution=64, fresh=False)[0])
    print(
        f"{args.again} files: first run {first:.1f} s, unchanged {np.median(unchanged):.2f} s,"
        f" ten changed {np.median(changed):.2f} s"
    )
    return {
        "files": args.again,
        "first_seconds": first,
        "first_peak_mib": max(memory),
        "unchanged_seconds": unchanged,
        "ten_changed_seconds": changed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs=2, default=[500, 2000], metavar=("SMALL", "LARGE"))
    parser.add_argument("--large", type=int, default=0, help="photographs of 4000×3000; 0: leave them out")
    parser.add_argument("--again", type=int, default=0, help="files of the second run; 0: leave it out")
    parser.add_argument("--before", type=Path, help="tree of an earlier version")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "workers": args.workers,
            "cores": os.cpu_count(),
            "machine": platform.processor() or platform.machine(),
        }
        if args.images[1]:
            result["canny_at_512"] = compare(folder, args)
        if args.large:
            result["large_photographs"] = large_photographs(folder, args)
        if args.again:
            result["second_run"] = again(folder, args)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
