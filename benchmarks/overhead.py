"""What the pipeline around a detector costs, and what a second worker gives: the annotate stage of
`controlmill run` with HED.

Crops of photographs are ingested once for each number of workers; then the annotate stage runs alone, start
of Ray included. Its rows say how long the detector itself took: what is left of the workers' time is
decoding, Ray, encoding and commits.

    python benchmarks/overhead.py --images 300 --out overhead.json
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]
TOLD = re.compile(r"^annotate .*\((?P<seconds>[0-9.]+) s\)$", re.MULTILINE)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, one after the other")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--condition", default="hed")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    from benchmarks.annotate import machine, photographs

    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        for number, picture in enumerate(crops(photographs(6, 1024), options.images, options.size)):
            cv2.imwrite(
                str(root / "photos" / f"{number:05d}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]
            )
        for workers in options.workers.split(","):
            runs = [
                measure(root, f"{workers}-{turn}", int(workers), options) for turn in range(options.repeats)
            ]
            rows[workers] = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    first = next(iter(rows.values()))
    print(f"{options.condition}, {options.images} pictures of side {options.size}\n")
    print("workers   images/s   times one   beside the detector")
    for workers, row in rows.items():
        row["times_first"] = round(row["images_per_s"] / first["images_per_s"], 3)
        print(f"{workers:>7}{row['images_per_s']:>11.2f}{row['times_first']:>12.2f}{row['overhead']:>21.1%}")
    if options.out:
        told = {
            "images": options.images,
            "size": options.size,
            "condition": options.condition,
            "repeats": options.repeats,
        }
        options.out.write_text(
            json.dumps({**told, "machine": machine("cpu"), "workers": rows}, indent=2) + "\n"
        )


def crops(pictures: list[np.ndarray], count: int, size: int) -> list[np.ndarray]:
    """Different crops uint8 [size, size, 3] RGB, their places a function of their number."""
    found = []
    for number in range(count):
        picture, draw = pictures[number % len(pictures)], np.random.default_rng(number)
        y, x = (int(draw.integers(0, side - size + 1)) for side in picture.shape[:2])
        found.append(picture[y : y + size, x : x + size])
    return found


def measure(root: Path, name: str, workers: int, options: argparse.Namespace) -> dict[str, float]:
    """Images per second of the stage, and the share of the workers' time that was not the detector's."""
    from pipeline.catalog import Catalog
    from pipeline.storage.workspace import Workspace

    path = root / f"{name}.yaml"
    path.write_text(
        f"name: b{name}\nworkspace: {root / name}\nsource: {{kind: folder, path: {root / 'photos'}, captions:"
        f" none}}\nimage: {{resolution: {options.size}}}\nsplit: {{near: null}}\nshard_images: 8\nconditions:"
        f" {{{options.condition}: {{}}}}\n"
    )
    for stage in ("ingest", "annotate"):
        command = [*COMMAND, "run", str(path), "--stages", stage, "--workers", str(workers)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            raise RuntimeError(f"{stage} ended with {done.returncode}: {done.stdout}{done.stderr}")
    told = TOLD.search(done.stdout)
    assert told, done.stdout
    wall = float(told["seconds"])
    (busy, count), *_ = Catalog(Workspace(root / name)).query(
        "SELECT sum(seconds), count(*) FROM annotations"
    )
    return {
        "seconds": wall,
        "images_per_s": count / wall,
        "detector_seconds": busy,
        "overhead": wall * workers / busy - 1,
    }


if __name__ == "__main__":
    # Python puts this file's folder first, where this file would hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
