"""How right the maps are: detectors on rendered scenes against what the renderer knows, one table with n and
intervals.

Edges are compared with the true outlines: precision is the share of a map's edge pixels that lie within 2
pixels of an outline, recall the share of the outlines' pixels that lie within 2 pixels of an edge. Soft edges
count from half strength on, thinned to one pixel. Texture is no outline, so a good edge detector has a
precision below 1 here; "seams too" counts the joints of floor and wall, which the renderer knows, as true,
but no shadow and no grain. A true line counts as found where its pixels lie within 2 pixels and 5 degrees of
a detected one. Keypoints are drawn as the fields of OpenPose and OpenPifPaf and decoded again: what is
measured is the decoder. Scenes of this seed were used for nothing else.

    python benchmarks/truth.py --scenes 1000 --out truth.json
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

SEED = 20_000
NEAR = 2.0  # pixels
ANGLE = 5.0  # degrees
PCK = 0.1  # of the diagonal of a person's box
EDGES = ("canny", "hed", "sketch", "cartoon")
# rows beside those of the defaults: name of the row -> condition, detector, its parameters
ALSO = {
    "sketch, preset published": ("sketch", "sketch-hed", {"preset": "published"}),
    "sketch, pen none": ("sketch", "sketch-hed", {"width": [1, 7], "pen": "none"}),
    "normal_extended, preset demo": ("normal_extended", "normal-from-depth", {"preset": "demo"}),
}


def main() -> None:
    """Measure in parallel processes, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="side of the scenes, pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    from evaluate.replicates import bootstrap_weights, of_means
    from pipeline import scenes

    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(options.workers) as pool:
        for number, row in enumerate(
            pool.map(partial(measure, size=options.size), range(options.scenes), chunksize=4), 1
        ):
            for name, value in row.items():
                found.setdefault(name, []).append(value)
            if number % 100 == 0:
                print(f"{number} scenes", file=sys.stderr)
    rows = {}
    for name in sorted(found):
        values = np.array(found[name], np.float64)
        defined = values[np.isfinite(values)]
        if not len(defined):
            continue
        told = of_means(defined, np.arange(len(defined)), bootstrap_weights(len(defined)))
        low, high = told.interval or (0.0, 0.0)
        rows[name] = {
            "mean": round(told.value, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "n": len(defined),
            "undefined": len(values) - len(defined),
        }
    print(
        f"{options.scenes} scenes of seed {SEED} at {options.size} pixels; mean over scenes and 95 %"
        " interval\n"
    )
    print(f"{'':<44}{'mean':>9}{'from':>9}{'to':>9}{'n':>7}")
    for name, it in rows.items():
        print(f"{name:<44}{it['mean']:>9.3f}{it['low']:>9.3f}{it['high']:>9.3f}{it['n']:>7}")
    speed = render_speed()
    print(f"\nscenes rendered at 128 pixels, all of their truth included: {speed:.1f} images/s of one core")
    if options.out:
        settings = {
            "scenes_per_core_second_at_128": round(speed, 1),
            "scenes": options.scenes,
            "seed": SEED,
            "size": options.size,
            "renderer": scenes.VERSION,
            "detectors": identities(),
        }
        options.out.write_text(json.dumps({**settings, "rows": rows}, indent=2) + "\n")


def render_speed() -> float:
    """Scenes at 128 pixels per second of processor time, median of twelve runs of 40."""
    from pipeline import scenes

    runs = []
    for run in range(12):
        start = time.process_time()
        for index in range(40):
            scenes.render(SEED + 1, 40 * run + index, 128)
        runs.append(40 / (time.process_time() - start))
    return float(np.median(runs))


def steps() -> list:
    """The conditions that are measured, each by the detector that needs no hub."""
    from annotate.annotator import PROVIDED, Step, resolve

    chosen = {
        "canny": "opencv-canny",
        "hough": "opencv-lsd",
        "hed": "hed-bsds500",
        "sketch": "sketch-hed",
        "cartoon": "xdog",
    }
    depth = Step("depth_large", PROVIDED, {})
    return [
        *(resolve(name, detector) for name, detector in chosen.items()),
        depth,
        resolve("normal_extended", "normal-from-depth"),
    ]


def also() -> dict:
    """What is measured beside the defaults: name of the row -> step."""
    from annotate.annotator import resolve

    return {
        name: resolve(condition, detector, params) for name, (condition, detector, params) in ALSO.items()
    }


def identities() -> dict:
    from annotate.annotator import identity

    return {name: identity(step) for name, step in ({it.condition: it for it in steps()} | also()).items()}


def measure(index: int, size: int) -> dict[str, float]:
    """The figures of one scene; NaN where one is not defined, such as the precision of an empty map."""
    import torch

    from annotate.annotator import annotate
    from pipeline import scenes

    torch.set_num_threads(1)
    scene = scenes.render(SEED, index, size)
    provided = {"depth_large": [scene.maps["depth_large"]]}
    names = [f"scene {SEED}/{index}"]
    given = annotate([scene.image], names, steps(), provided=provided)
    made = {name: it[0] for name, it in given.items()}
    for name, step in also().items():
        (made[name],) = annotate([scene.image], names, [step], given=given)[step.condition]
    row: dict[str, float] = {}
    seams = drawn(scene.lines, size)
    for name in (*EDGES, *(name for name, (condition, *_) in ALSO.items() if condition in EDGES)):
        map_ = made[name].map
        if map_ is not None and name.startswith("sketch"):
            row[f"{name}: width of strokes at 512, pixels"] = stroke_width(map_.array) * 512 / size
        edges = thin(map_.array) if map_ is not None else np.zeros((size, size), bool)
        precision, recall = agreement(edges, scene.outlines > 0)
        with_seams, _ = agreement(edges, (scene.outlines > 0) | seams)
        row |= {
            f"{name}: precision at 2 px": precision,
            f"{name}: recall at 2 px": recall,
            f"{name}: precision, seams too": with_seams,
        }
    lines = made["hough"].map
    detected = np.zeros((0, 5)) if lines is None else lines.array
    row["hough: share of true line pixels found"] = line_recall(scene.lines, detected)
    row["hough: share of found line pixels true"] = line_recall(detected[:, :4], scene.lines)
    for name in ("normal_extended", "normal_extended, preset demo"):
        row |= normals(name, made[name].map, scene)
    row |= keypoints(scene, size)
    return row


def drawn(lines: np.ndarray, size: int) -> np.ndarray:
    """The renderer's straight lines, seams of floor and wall among them, bool."""
    from annotate.maps import RawMap, render

    scored = np.concatenate([lines[:, :4], np.ones((len(lines), 1))], axis=1).astype(np.float32)
    return render(RawMap("lines", scored, {"size": [size, size]}))[..., 0] > 0


def thin(array: np.ndarray) -> np.ndarray:
    """Edges of one pixel's width, bool."""
    from skimage.morphology import skeletonize

    return skeletonize(array >= 128)


def agreement(edges: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Precision and recall of edge pixels within NEAR pixels."""
    from scipy.ndimage import distance_transform_edt

    to_truth = distance_transform_edt(~truth) if truth.any() else np.full(truth.shape, np.inf)
    to_edges = distance_transform_edt(~edges) if edges.any() else np.full(edges.shape, np.inf)
    precision = float((to_truth[edges] <= NEAR).mean()) if edges.any() else float("nan")
    return precision, float((to_edges[truth] <= NEAR).mean()) if truth.any() else float("nan")


def line_recall(wanted: np.ndarray, found: np.ndarray) -> float:
    """Share of the pixels of the segments `wanted` [N, 4] that lie within NEAR pixels and ANGLE degrees of
    one of `found`.
    """
    if not len(wanted):
        return float("nan")
    hits = total = 0
    for x0, y0, x1, y1 in wanted[:, :4]:
        count = max(2, round(float(np.hypot(x1 - x0, y1 - y0))))
        points = np.stack([np.linspace(x0, x1, count), np.linspace(y0, y1, count)], 1)
        total += count
        if len(found):
            hits += int((distance(points, found, np.arctan2(y1 - y0, x1 - x0)) <= NEAR).sum())
    return hits / total


def distance(points: np.ndarray, segments: np.ndarray, angle: float) -> np.ndarray:
    """[P] from each point to the nearest segment of about that direction."""
    start, along = segments[:, :2], segments[:, 2:4] - segments[:, :2]
    turned = np.abs((np.arctan2(along[:, 1], along[:, 0]) - angle + np.pi / 2) % np.pi - np.pi / 2)
    start, along = start[turned <= np.radians(ANGLE)], along[turned <= np.radians(ANGLE)]
    if not len(start):
        return np.full(len(points), np.inf)
    t = ((points[:, None] - start) * along).sum(2) / np.maximum((along**2).sum(1), 1e-9)
    nearest = start + t.clip(0, 1)[..., None] * along
    return np.hypot(*np.moveaxis(points[:, None] - nearest, 2, 0)).min(1)


def stroke_width(strokes: np.ndarray) -> float:
    """Of most strokes, pixels: twice the distance from their middle to black; NaN where there are none."""
    from scipy.ndimage import distance_transform_edt

    inside = distance_transform_edt(np.pad(strokes > 0, 1))[1:-1, 1:-1][thin(strokes)]
    return float(np.median(2 * inside - 1)) if len(inside) else float("nan")


def normals(name: str, made, scene) -> dict[str, float]:
    """Mean angle in degrees: everywhere, and away from borders where no recipe over a 3x3 window can be
    right.
    """
    from scipy.ndimage import binary_dilation

    truth = scene.maps["normal"].array
    valid = made.array.any(axis=2) & truth.any(axis=2)
    angle = np.degrees(np.arccos((made.array * truth).sum(2).clip(-1, 1)))
    inner = valid & ~binary_dilation(scene.outlines > 0, iterations=2)
    facing = np.degrees(np.arccos(truth[..., 2].clip(-1, 1)))
    found = {
        f"{name}: mean angle, degrees": float(angle[valid].mean()),
        f"{name}: mean angle off the borders": float(angle[inner].mean()),
    }
    if "," not in name:
        found[f"{name}: a map that only faces the viewer"] = float(facing[valid].mean())
    return found


def keypoints(scene, size: int) -> dict[str, float]:
    """Share of the true keypoints found within PCK, and the error of the number of people."""
    from annotate import openpose
    from annotate.detectors import DETECTORS
    from annotate.parameters import fill
    from benchmarks.fields import fields_of

    truth = scene.maps["pose_openpose"].array
    if not len(truth):
        return {}
    heat, affinity, network = fields_of(truth, (size, size))
    params = fill(DETECTORS["openpose"].parameters, {}, "openpose")
    found = openpose.decode(heat, affinity, (size, size), network, params)
    return {
        "keypoints through OpenPose's fields: PCK@0.1": pck(found, truth),
        "keypoints through OpenPose's fields: people too many or too few": float(
            abs(len(found) - len(truth))
        ),
    }


def pck(found: np.ndarray, truth: np.ndarray) -> float:
    """Of the one true person's keypoints, by the found person that has most of them."""
    seen = truth[0, :, 2] > 0
    box = truth[0, seen, :2]
    reach = PCK * float(np.hypot(*(box.max(0) - box.min(0))))
    hits = [
        ((np.hypot(*(person[:, :2] - truth[0, :, :2]).T) <= reach) & (person[:, 2] > 0))[seen].mean()
        for person in found
    ]
    return float(max(hits, default=0.0))


if __name__ == "__main__":
    # this file's folder would hide the package `annotate` behind annotate.py, and tests/ lies beside it
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
