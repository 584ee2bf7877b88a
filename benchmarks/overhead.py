"""What the pipeline around detectors costs, and what a second worker gives: the annotate stage of
`controlmill run` with HED, or with ten detectors of one manifest.

Crops of photographs are ingested once for each number of workers; then the annotate stage runs alone, start
of Ray included. Its rows say how long the detectors themselves took, their loading included: what is left of
the workers' time is decoding, Ray, encoding and commits. Of the ten detectors three networks have random
weights, since theirs are out of reach.

    python benchmarks/overhead.py --images 300 --out overhead.json
    python benchmarks/overhead.py --images 300 --manifest ten --workers 2 --out overhead-ten.json
"""

import argparse
import importlib.util
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
# condition -> its detector; ten of them, each with a pass of its own
TEN = {
    "canny": "opencv-canny", "hough": "mlsd", "hed": "hed-bsds500", "sketch": "sketch-hed",
    "pose_openpifpaf": "mediapipe-pose", "pose_openpose": "openpose", "seg_ade20k": "mini",
    "depth_large": "depth-anything-v2", "normal_extended": "normal-from-depth", "cartoon": "xdog",
}  # fmt: skip
MANIFESTS = {"hed": {"hed": "auto"}, "ten": TEN}
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
    parser.add_argument("--manifest", default="hed", choices=MANIFESTS, help="which detectors")
    parser.add_argument("--tiny", action="store_true", help="networks as small as their library makes them")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    from benchmarks.annotate import machine

    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        conditions = settings(MANIFESTS[options.manifest], root, options.tiny)
        for number, picture in enumerate(crops(pictures(), options.images, options.size)):
            cv2.imwrite(
                str(root / "photos" / f"{number:05d}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]
            )
        for workers in options.workers.split(","):
            runs = [
                measure(root, f"{workers}-{turn}", int(workers), options.size, conditions)
                for turn in range(options.repeats)
            ]
            rows[workers] = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    first = next(iter(rows.values()))
    detectors = sorted(set(MANIFESTS[options.manifest].values()))
    print(f"{options.manifest}, {options.images} pictures of side {options.size}\n")
    print("workers   images/s   times one   beside the detector")
    for workers, row in rows.items():
        row["times_first"] = round(row["images_per_s"] / first["images_per_s"], 3)
        print(f"{workers:>7}{row['images_per_s']:>11.2f}{row['times_first']:>12.2f}{row['overhead']:>21.1%}")
    if options.out:
        told = {
            "images": options.images,
            "size": options.size,
            "condition": options.manifest,
            "detectors": detectors,
            "repeats": options.repeats,
        }
        options.out.write_text(
            json.dumps({**told, "machine": machine("cpu"), "workers": rows}, indent=2) + "\n"
        )


def pictures() -> list[np.ndarray]:
    """Photographs uint8 HW3 RGB that installed packages ship, at least 1024 pixels on each side."""
    from benchmarks.annotate import photographs

    found = photographs(6, 1024)
    spec = importlib.util.find_spec("ultralytics")
    for path in sorted(Path(*spec.submodule_search_locations, "assets").glob("*.jpg")) if spec else ():  # type: ignore[misc]
        picture = cv2.imread(str(path))[..., ::-1]
        scale = 1024 / min(picture.shape[:2])
        found.append(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LANCZOS4))
    return found


def settings(detectors: dict[str, str], root: Path, tiny: bool) -> dict[str, dict[str, str]]:
    """`conditions:` of a manifest; weights that are not here are written into `root` at random."""
    from annotate.annotator import missing
    from benchmarks.library_loops import ROWS

    found = {}
    for condition, detector in detectors.items():
        found[condition] = {"detector": detector}
        row = ROWS.get(detector)
        if row and row.write and missing(detector):
            folder = root / detector
            folder.mkdir()
            row.write(folder, tiny)
            found[condition]["weights"] = str(folder)
    return found


def crops(pictures: list[np.ndarray], count: int, size: int) -> list[np.ndarray]:
    """Different crops uint8 [size, size, 3] RGB, their places a function of their number."""
    found = []
    for number in range(count):
        picture, draw = pictures[number % len(pictures)], np.random.default_rng(number)
        y, x = (int(draw.integers(0, side - size + 1)) for side in picture.shape[:2])
        found.append(picture[y : y + size, x : x + size])
    return found


def measure(
    root: Path, name: str, workers: int, size: int, conditions: dict[str, dict[str, str]]
) -> dict[str, float]:
    """Images per second of the stage, and the time of the workers that was not the detectors', as a share of
    theirs.
    """
    from pipeline.catalog import Catalog
    from pipeline.storage.workspace import Workspace

    path = root / f"{name}.yaml"
    path.write_text(
        f"name: b{name}\nworkspace: {root / name}\nsource: {{kind: folder, path: {root / 'photos'}, captions:"
        f" none}}\nimage: {{resolution: {size}}}\nsplit: {{near: null}}\nshard_images: 8\nconditions:"
        f" {json.dumps(conditions)}\n"
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
        "SELECT sum(seconds), count(DISTINCT image_id) FROM annotations"
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
