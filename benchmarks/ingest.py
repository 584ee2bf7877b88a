"""A folder of JPEGs through `controlmill run`: images a second for the whole command, and memory as it goes.

Makes `--images` JPEGs of 1024×768, quality 90, as random crops of the photographs that installed packages
ship, then runs the command in a fresh workspace and samples the resident memory of all its processes once a
second.

    python benchmarks/ingest.py --images 2000 --out ingest.json
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
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from pipeline import manifest, sources
from pipeline.manifest import ListSource
from pipeline.sources import RawImage

MANIFEST = """
name: benchmark
workspace: {workspace}
source: {{kind: folder, path: {photos}}}
image: {{resolution: 512, fit: crop}}
conditions: {{canny: {{}}}}
"""


def make_photographs(folder: Path, count: int) -> None:
    listed = sources.listing(
        [ListSource(kind="list", path=str(Path(__file__).parent.parent / "manifests" / "photos.jsonl"))],
        manifest.Image(),
    )
    originals = [_photograph(raw) for raw in listed]
    draw = np.random.default_rng(0)
    for number in range(count):
        picture = originals[number % len(originals)]
        left, top = draw.integers(0, picture.width - 1023), draw.integers(0, picture.height - 767)
        crop = picture.crop((int(left), int(top), int(left) + 1024, int(top) + 768))
        crop.save(folder / f"{number:05d}.jpg", quality=90)


def _photograph(raw: RawImage) -> Image.Image:
    data = sources.read(raw)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        picture = Image.open(file).convert("RGB")
    scale = max(1200 / picture.width, 900 / picture.height, 1)
    return picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )


def run(manifest: Path, workers: int) -> tuple[float, list[int]]:
    """Seconds of the whole command, and the resident MiB of its process tree each second."""
    command = [
        sys.executable,
        "-c",
        "from pipeline.cli import main; main()",
        "run",
        str(manifest),
        "--workers",
        str(workers),
    ]
    start, memory = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            memory.append(_resident(process.pid))
            time.sleep(1)
    if process.returncode:
        raise SystemExit(f"the command ended with status {process.returncode}")
    return time.perf_counter() - start, memory


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos, workspace, manifest = (
            Path(folder, "photos"),
            Path(folder, "workspace"),
            Path(folder, "manifest.yaml"),
        )
        photos.mkdir()
        make_photographs(photos, args.images)
        manifest.write_text(MANIFEST.format(workspace=workspace, photos=photos))
        runs = []
        for number in range(args.repeats):
            shutil.rmtree(workspace, ignore_errors=True)
            seconds, memory = run(manifest, args.workers)
            half = len(memory) // 2
            row = {
                "seconds": seconds,
                "images_per_second": args.images / seconds,
                "peak_mib": max(memory),
                "first_half_peak_mib": max(memory[:half]),
            }
            runs.append(row | {"second_half_peak_mib": max(memory[half:]), "memory_mib": memory})
            print(
                f"run {number + 1}: {seconds:.1f} s, {row['images_per_second']:.1f} images/s, peak"
                f" {row['peak_mib']} MiB (first half {row['first_half_peak_mib']}, second half"
                f" {runs[-1]['second_half_peak_mib']})",
                flush=True,
            )
        again, _ = run(manifest, args.workers)
        print(f"the same command again, nothing to do: {again:.1f} s")
    result = {
        "images": args.images,
        "workers": args.workers,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "median_images_per_second": float(np.median([row["images_per_second"] for row in runs])),
        "second_run_seconds": again,
        "runs": runs,
    }
    print(f"median: {result['median_images_per_second']:.1f} images/s for the whole command")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
