"""Pictures of others in a benchmark: how long they take, and whether copies of photographs are known and
nothing else is.

With `--demo` a workspace that `make demo` made: none of its own samples may count as a copy, every copy of
its photographs must, and a foreign folder for each of its thirteen conditions is taken in, scored and put on
the board by the real command. With `--images` pictures are submitted to rendered scenes, and taken in and
scored in one thread beside as many samples of our own.

    python benchmarks/submissions.py --demo runs/demo --images 64 --out benchmarks/results/submissions.json
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

# Python puts this file's folder first, where annotate.py would hide the package of that name
HERE = Path(__file__).resolve().parent.parent
sys.path[:] = [str(HERE), *(place for place in sys.path if Path(place).resolve() != HERE / "benchmarks")]

from annotate.conditions import CONDITIONS
from benchmarks.annotate import machine
from pipeline import plan as plans
from pipeline import scenes
from pipeline.benchmark import networks, resemblance, scoring
from pipeline.benchmark.admission import admit, taken
from pipeline.benchmark.evidence import photograph, photographs
from pipeline.benchmark.resemblance import Code, Codes
from pipeline.benchmark.systems import CONTROL, REAL, System, readable, systems
from pipeline.benchmark.tasks import PART, tasks_of
from pipeline.catalog import Catalog
from pipeline.manifest import load
from pipeline.plan import Plan
from pipeline.stages.generate import GeneratePart, generate_part
from pipeline.storage import codec, shards
from pipeline.storage.workspace import Workspace, workspace_at

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]
COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda it: it,
    "JPEG of quality 30": lambda it: np.asarray(
        cv2.imdecode(cv2.imencode(".jpg", it, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
    ),
    "noise of 8 levels": lambda it: noisy(it, 8),
    "blurred": lambda it: cv2.GaussianBlur(it, (0, 0), it.shape[0] / 64),
    "brighter by a tenth": lambda it: np.clip(it * 1.1, 0, 255).astype(np.uint8),
    "mirrored": lambda it: np.ascontiguousarray(it[:, ::-1]),
    "shifted by an eighth": lambda it: np.roll(it, (it.shape[0] // 16, it.shape[1] // 8), (0, 1)),
    "shifted by a quarter": lambda it: np.roll(it, it.shape[1] // 4, 1),
    "cropped by a twentieth": lambda it: cropped(it, 0.05),
    "cropped by a tenth": lambda it: cropped(it, 0.1),
}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=None, help="workspace of `make demo`; it stays as it is")
    parser.add_argument("--images", type=int, default=64, help="scenes that are submitted to")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; its other keys stay")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine("cpu")}
    if options.out and options.out.exists():
        found |= json.loads(options.out.read_text())
    with tempfile.TemporaryDirectory(prefix="submissions-") as folder:
        if options.demo:
            found["copies"] = copies(workspace_at(options.demo))
            found["foreign"] = foreign(options.demo.resolve(), Path(folder))
        if options.images:
            found["throughput"] = throughput(Path(folder), options.images, options.side)
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


# -- copies --------------------------------------------------------------------------------------------------


def copies(workspace: Workspace) -> dict[str, Any]:
    """Of the demo's own samples how many would be refused; of each kind of copy how many are known."""
    catalog = Catalog(workspace)
    plan = plans.load_saved(workspace)
    compared = [it for it in systems(plan, catalog) if it.variant == REAL]
    ids = sorted({item.image_id for it in compared for item in it.items})
    pictures = {
        image_id: photograph(workspace, place) for image_id, place in photographs(catalog, ids).items()
    }
    codes = Codes({image_id: Code.read(resemblance.code(it).stored()) for image_id, it in pictures.items()})
    made = catalog.query(
        "SELECT shard, row, image_id, hint_image_id FROM samples WHERE status = 'ok' AND variant NOT IN"
        " ('real_image', 'vae_round_trip') ORDER BY ALL"
    )
    refused, start = 0, time.perf_counter()
    tables: dict[str, list[bytes]] = {}
    for shard, row, image_id, hint in made:
        if shard not in tables:
            tables[shard] = shards.read(workspace.root / shard, ["image"]).column("image").to_pylist()
        refused += codes.copied(codec.decode(tables[shard][row]), hint or image_id) is not None
    seconds = time.perf_counter() - start
    known = {
        name: sum(codes.copied(change(it), image_id) == image_id for image_id, it in pictures.items())
        for name, change in COPIES.items()
    }
    return {
        "own_samples": len(made),
        "own_refused": refused,
        "photographs": len(pictures),
        "known_of_each_kind": known,
        "ms_a_picture": round(1000 * seconds / len(made), 2),
    }


def noisy(pixels: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(0, level, pixels.shape)
    return (pixels + draw).clip(0, 255).astype(np.uint8)


def cropped(pixels: np.ndarray, share: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    down, across = int(share * height), int(share * width)
    return cv2.resize(pixels[down : height - down, across : width - across], (width, height))


# -- a foreign folder in the demo ----------------------------------------------------------------------------


def foreign(demo: Path, folder: Path) -> dict[str, Any]:
    """Pictures for all conditions, in a copy of the demo's workspace: seconds of the whole command."""
    workspace = folder / "demo"
    shutil.copytree(demo, workspace)
    run("benchmark", "export", str(workspace), str(folder / "benchmark"), "--with-images")
    names = [name for name in CONDITIONS if (folder / "benchmark" / name).is_dir()]
    for name in names:
        submit(folder / "benchmark" / name, folder / "theirs" / name)
    run("benchmark", "check", str(folder / "benchmark"), str(folder / "theirs"))
    given = yaml.safe_load((HERE / "manifests" / "demo.yaml").read_text())
    given["workspace"] = str(workspace)
    given["evaluate"]["submissions"] = [
        {"name": "theirs", "condition": name, "images": str(folder / "theirs" / name)} for name in names
    ]
    (folder / "demo.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    start = time.perf_counter()
    told = run("run", str(folder / "demo.yaml"), "--stages", "generate,score,report", "--workers", "2")
    seconds = time.perf_counter() - start
    board = json.loads((workspace / "report" / "leaderboard" / "leaderboard.json").read_text())
    placed = [it for it in board["scores"] if it["model"] == "theirs" and it["rank"]]
    assert {it["condition"] for it in placed} == set(names), told
    pictures = sum(1 for _ in (folder / "theirs").rglob("*.png"))
    return {"conditions": len(names), "pictures": pictures, "seconds": round(seconds, 1)}


def submit(benchmark: Path, dest: Path) -> None:
    """The photographs in false colours, which are no copies, under a little noise."""
    dest.mkdir(parents=True)
    with (benchmark / "prompts.csv").open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            (source,) = (benchmark / "images").glob(f"{Path(row['hint']).stem}.*")
            pixels = 255 - codec.decode(source.read_bytes())[..., [1, 2, 0]]
            (dest / row["file"]).write_bytes(codec.encode(noisy(pixels, 3, number), "png"))
    task = json.loads((benchmark / "benchmark.json").read_text())["task"]
    told = ("model", "base", "licence", "protocol", "who", "date")
    facts = {"task": task, "url": "", **dict.fromkeys(told, "a test")}
    (dest / "submission.json").write_text(json.dumps(facts))


def run(*words: str) -> str:
    done = subprocess.run([*COMMAND, *words], cwd=HERE, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


# -- throughput ----------------------------------------------------------------------------------------------


def throughput(folder: Path, images: int, side: int) -> dict[str, Any]:
    """Milliseconds a picture, in one thread: ours scored; submitted ones checked, taken in and scored."""
    given: dict[str, Any] = {
        "name": "submitted",
        "workspace": str(folder / "workspace"),
        "source": {"kind": "scenes", "count": int(images * 2.5), "seed": 3},
        "image": {"resolution": side, "store": "png"},
        "split": {"validation": 0.02, "test": 0.95, "near": None},
        "conditions": {name: {} for name in CONDITIONS},
        "evaluate": {
            "base": "mini",
            "benchmark": {"samples": images},
            "baselines": ["real_image"],
            "readers": {name: {"detector": "mini"} for name in scenes.PROVIDES},
            "features": [{"extractor": "mini"}],
            "clip": "mini",
        },
    }
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    run("run", str(path), "--stages", "ingest,annotate", "--workers", "2")
    run("benchmark", "export", str(folder / "workspace"), str(folder / "exported"), "--with-images")
    for name in CONDITIONS:
        submit(folder / "exported" / name, folder / "submitted" / name)
    given["evaluate"]["submissions"] = [
        {"name": "theirs", "condition": name, "images": str(folder / "submitted" / name)}
        for name in CONDITIONS
    ]
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    cv2.setNumThreads(1)
    plan = plans.make(load(path))
    catalog = Catalog(plan.workspace)
    rows = []
    codes: dict[str, Code] = {}
    for name in CONDITIONS:
        own, theirs = (
            next(it for it in systems(plan, catalog) if it.condition == name and it.variant == variant)
            for variant in (REAL, CONTROL)
        )
        ours = made(plan, catalog, own, codes)
        scored(plan, own, ours[:1])  # loads the networks
        scoring_ours = scored(plan, own, ours)
        start = time.perf_counter()
        paths = made(plan, catalog, theirs, codes)
        taking_in = time.perf_counter() - start
        scoring_theirs = scored(plan, theirs, paths)
        count = len(own.items)
        rows.append(
            {
                "condition": name,
                "pictures": count,
                "own_ms": round(1000 * scoring_ours / count, 2),
                "scored_ms": round(1000 * scoring_theirs / count, 2),
                "taken_in_ms": round(1000 * taking_in / count, 2),
            }
        )
    total = {key: sum(row[key] for row in rows) for key in ("own_ms", "scored_ms", "taken_in_ms")}
    return {
        "side": side,
        "rows": rows,
        "scored_by_own": round(total["own_ms"] / total["scored_ms"], 3),
        "all_by_own": round(total["own_ms"] / (total["scored_ms"] + total["taken_in_ms"]), 3),
    }


def made(plan: Plan, catalog: Catalog, system: System, codes: dict[str, Code]) -> list[Path]:
    """A system's samples as shards, as the stage makes them."""
    assert plan.manifest.evaluate is not None
    frozen = plan.manifest.evaluate.benchmark
    tasks = tasks_of(system, frozen)
    pictures = taken(admit(plan, catalog, system, codes), system, tasks) if system.pictures else ()
    images = photographs(catalog, [item.image_id for item in system.items])
    paths = []
    for part, start in enumerate(range(0, len(tasks), PART)):
        chunk = tuple(tasks[start : start + PART])
        path = plan.workspace.samples(system.sample_set, system.key, part)
        path.unlink(missing_ok=True)
        args = GeneratePart(
            root=plan.workspace.root,
            path=path,
            part=part,
            key=system.key,
            system=replace(system, items=()),
            base="",
            tasks=chunk,
            images=images,
            benchmark=frozen,
            made_from="",
            pictures=pictures[start : start + PART],
        )
        generate_part(args, tuple(range(len(chunk))), {}, False)
        paths.append(path)
    return paths


def scored(plan: Plan, system: System, paths: list[Path]) -> float:
    """Seconds."""
    assert plan.manifest.evaluate is not None
    start = time.perf_counter()
    for part, path in enumerate(paths):
        out = plan.workspace.scores(system.name, "timed", part)
        out.unlink(missing_ok=True)
        count = shards.read(path, ["image_id"]).num_rows
        args = scoring.ScorePart(
            root=plan.workspace.root,
            path=out,
            samples=plan.workspace.relative(path),
            part=part,
            key="timed",
            system=system.name,
            condition=system.condition,
            items={item.image_id: item for item in system.items},
            steps=tuple(scoring.reader_steps(plan, system.condition))
            if readable(plan, system.condition)
            else (),
            networks=networks.wanted(plan.manifest.evaluate),
            device="cpu",
            made_from="",
        )
        scoring.score_part(args, tuple(range(count)), {}, False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
