"""A made-up leaderboard of many models: how long it takes to write, and to open in headless Chromium.

Scores are drawn at random; pictures are crops of a photograph with noise, so that each is a file of its own.

    python benchmarks/leaderboard.py --models 20 --conditions 13 --out leaderboard.json
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(it for it in sys.path if Path(it).resolve() != Path(__file__).resolve().parent),
]

from annotate.conditions import CONDITIONS
from benchmarks.chromium import PROGRAM, chromium
from pipeline.report.leaderboard import render
from pipeline.report.leaderboard_data import (
    EvidenceSample,
    FrozenBenchmark,
    Leaderboard,
    LeaderboardModel,
    Measure,
    Score,
    Speed,
    published,
)

METRICS = (  # name, title, unit, higher is better, column, level, best, worst
    (
        "edge_f1_tolerant",
        "Edge F1 within 0.75 % of the diagonal",
        "",
        True,
        "corrected",
        "sample",
        0.92,
        0.18,
    ),
    ("edge_f1", "Edge F1, exact pixels", "", True, "paper", "sample", 0.42, 0.05),
    ("chamfer", "Chamfer distance", "px", False, "diagnostic", "sample", 1.2, 24.0),
    ("fd (inception)", "Fréchet distance (Inception)", "", False, "corrected", "set", 12.0, 80.0),
    ("kd (inception)", "Kernel distance (Inception)", "", False, "corrected", "set", 0.004, 0.09),
    (
        "clip_score (clip-vit-base-patch16)",
        "CLIP score (ViT-B/16)",
        "",
        True,
        "corrected",
        "sample",
        32.5,
        24.0,
    ),
    ("coverage (inception)", "Coverage (Inception)", "", True, "diagnostic", "set", 0.9, 0.2),
    ("pixel_accuracy", "Agreement of pixels", "%", True, "corrected", "sample", 95.0, 40.0),
)

PROVENANCE = {
    "benchmark": "4f5e6d7c8b9a0011", "condition made by": "opencv-canny 1 (00ff00ff)",
    "read again by": "opencv-canny 1 (00ff00ff)",
    "interval": "95 %, bootstrap over 500 prompts",
    "sampling": "DDIM, 20 steps, guidance 7.5, scale 1, seeds 0, 1, negative prompt ''",
    "software": "controlmill 0.1.0, torch 2.12.1, diffusers 0.35, numpy 2.3",
}  # fmt: skip


def board(models: int, conditions: int, metrics: int, pictures: int, seed: int = 0) -> Leaderboard:
    """`pictures` samples of each model and condition are shown: best, median and worst, then some that all
    share.
    """
    rng = np.random.default_rng(seed)
    names = [f"{'run' if number % 3 else 'external'}-{number:02d}" for number in range(models)]
    listed = list(CONDITIONS)[:conditions]
    columns = [
        Measure(
            name=name,
            title=title,
            definition=f"{title}, between the condition and what was read again from the image.",
            unit=unit,
            higher_is_better=better,
            column=column,
            level=level,
            version="1",
            primary=number == 0,  # type: ignore[arg-type]
            quirks="no tolerance, as the published code has it" if column == "paper" else "",
        )
        for number, (name, title, unit, better, column, level, *_) in enumerate(METRICS[:metrics])
    ]
    return Leaderboard(
        name="synthetic",
        made_at="2026-11-23 10:00 UTC",
        version="controlmill 0.1.0",
        machine=platform.machine(),
        notes=("All numbers on this page are drawn at random: it measures the page, not models.",),
        metrics=tuple(columns),
        benchmarks=tuple(_benchmark(name) for name in listed),
        models=tuple(_models(names)),
        scores=tuple(
            score
            for name in listed
            for number in range(len(columns))
            for score in _scores(rng, names, name, number)
        ),
        speeds=tuple(
            Speed(model=name, condition=condition, seconds_per_image=float(rng.uniform(0.4, 4)))
            for name in names
            for condition in listed
        ),
        evidence=tuple(_evidence(rng, names, listed, pictures)),
        published=published(listed),
    )


def _benchmark(condition: str) -> FrozenBenchmark:
    row = CONDITIONS[condition]
    return FrozenBenchmark(
        condition=condition,
        title=row.title,
        kind=row.kind,
        fingerprint="4f5e6d7c8b9a0011",
        split="test",
        images=500,
        samples=1000,
        seeds=(0, 1),
        sampler="DDIM, eta 0",
        steps=20,
        guidance=7.5,
        scale=1.0,
        negative="",
        base="stable-diffusion-v1-5",
        detector=f"{row.detectors[0]} 00ff00ff",
        reader=f"{row.detectors[-1]} {'00ff00ff' if len(row.detectors) == 1 else '11aa22bb'}",
    )


def _models(names: list[str]) -> Iterator[LeaderboardModel]:
    for name in names:
        yield LeaderboardModel(
            name=name,
            kind="run" if name.startswith("run") else "external",
            base="stable-diffusion-v1-5",
            checkpoint=f"checkpoints/{name}/step-00004000",
        )
    for arm in ("no_control", "vae_round_trip", "real_image"):
        yield LeaderboardModel(name=arm, kind="baseline", base="stable-diffusion-v1-5")


def _scores(rng: np.random.Generator, names: list[str], condition: str, number: int) -> Iterator[Score]:
    """Models lie between the floor and the ceiling; neighbours tie where their intervals meet."""
    metric, *_, best, worst = METRICS[number]
    scale = best - worst

    def score(model: str, arm: Any, share: float, **more: Any) -> Score:
        low, high = sorted((worst + (share - 0.03) * scale, worst + (share + 0.03) * scale))
        identity = f"{rng.integers(2**63):016x}"
        provenance = PROVENANCE | {
            "system": f"{model}/{condition}/{arm}",
            "checkpoint": f"checkpoints/{model}",
            "scores": identity,
        }
        return Score(
            model=model,
            arm=arm,
            condition=condition,
            metric=metric,
            value=worst + share * scale,
            low=low,
            high=high,
            n=1000,
            provenance=provenance,
            n_failed=int(rng.integers(0, 9)) if share < 0.5 else 0,
            share=share,
            share_low=share - 0.03,
            share_high=share + 0.03,
            **more,
        )

    yield score("real_image", "real_image", 1.0)
    yield score("vae_round_trip", "vae_round_trip", 0.93)
    yield score("no_control", "no_control", 0.0)
    shares = np.sort(rng.uniform(0.1, 0.95, len(names)))[::-1]
    marks = ("biased: n = 1,000 < 10 × 2,048 dimensions; rank by kd",) if metric.startswith("fd") else ()
    for name, share in zip(rng.permutation(names), shares, strict=True):
        rank = (1 + int((shares > share + 0.04).sum()), int((shares >= share - 0.04).sum()))
        yield score(str(name), "control", float(share), rank=None if marks else rank, marks=marks)
        yield score(str(name), "shuffled_condition", float(rng.uniform(-0.1, 0.0)))


def _evidence(
    rng: np.random.Generator, names: list[str], conditions: list[str], pictures: int
) -> Iterator[EvidenceSample]:
    from skimage import data

    photographs = [
        cv2.resize(it(), (512, 512), interpolation=cv2.INTER_AREA)
        for it in (data.astronaut, data.coffee, data.chelsea, data.rocket)
    ]
    for condition in conditions:
        for number in range(pictures):
            which: Any = ("best", "median", "worst", "same")[min(number, 3)]
            for place, model in enumerate(names):
                # what is the same is so for all models
                draw = rng if which != "same" else np.random.default_rng([number, 7])
                photograph, (y, x) = photographs[int(draw.integers(4))], draw.integers(0, 256, 2)
                source = np.ascontiguousarray(photograph[y : y + 256, x : x + 256])
                noisy = np.clip(source + rng.normal(0, 4 + 2 * place, source.shape), 0, 255).astype(np.uint8)
                score = (0.9, 0.6, 0.2, float(rng.uniform(0.2, 0.9)))[min(number, 3)]
                hint, read = (cv2.Canny(it, 100, 200)[:, :, None].repeat(3, 2) for it in (source, noisy))
                yield EvidenceSample(
                    condition=condition,
                    model=model,
                    metric="edge_f1_tolerant",
                    which=which,
                    image_id=f"{int(x):02x}{int(y):02x}" * 16,
                    prompt="a photograph of the same scene, in soft light",
                    seed=0,
                    score=score,
                    hint=_png(hint),
                    source=_encode(source, ".jpg"),
                    generated=_encode(noisy, ".jpg"),
                    reread=_png(read),
                    difference=_png(cv2.absdiff(hint, read)),
                )


def _png(pixels: np.ndarray) -> bytes:
    return _encode(pixels, ".png")


def _encode(pixels: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, pixels[:, :, ::-1])[1].tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--conditions", type=int, default=13)
    parser.add_argument("--metrics", type=int, default=len(METRICS))
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="write the pages here, and leave them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    made = board(args.models, args.conditions, args.metrics, args.pictures)
    runs: dict[str, list[float]] = {"first": [], "cpu": [], "again": [], "page": [], "evidence": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.repeats):
            folder = args.keep if args.keep and number == 0 else Path(scratch, str(number))
            for name, shown in (("first", made), ("again", replace(made, made_at="later"))):
                start, used = time.perf_counter(), time.process_time()
                page = render(shown, folder)
                runs[name].append(time.perf_counter() - start)
                if name == "first":
                    runs["cpu"].append(time.process_time() - used)
        if PROGRAM:
            evidence = next(iter(sorted(page.parent.glob("evidence-*.html"))), page)
            for _ in range(args.repeats):  # a new browser each time: no cache
                for name, file in (("page", page), ("evidence", evidence)):
                    with chromium() as tab:
                        runs[name].append(tab.open(file))
        sizes = {
            file.name: file.stat().st_size
            for file in page.parent.iterdir()
            if file.is_file() and file.name.startswith("leaderboard")
        }
        pictures = sum(1 for _ in (page.parent / "pictures").glob("*"))
    medians = {name: statistics.median(values) for name, values in runs.items() if values}
    titles = {
        "first": "render, empty folder",
        "cpu": "  of it computing",
        "again": "render again",
        "page": "open leaderboard.html",
        "evidence": "open an evidence page",
    }
    print(
        f"{args.models} models × {args.conditions} conditions × {args.metrics} measures: {len(made.scores):,}"
        f" scores, {pictures:,} pictures"
    )
    for name, value in medians.items():
        print(f"  {titles[name]:24} {value:6.2f} s")
    print("  " + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items()))
    print(f"  load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if args.out:
        args.out.write_text(
            json.dumps(
                {
                    "models": args.models,
                    "conditions": args.conditions,
                    "metrics": args.metrics,
                    "scores": len(made.scores),
                    "pictures": pictures,
                    "machine": platform.processor() or platform.machine(),
                    "cores": os.cpu_count(),
                    "load": os.getloadavg()[0],
                    "median_seconds": medians,
                    "bytes": sizes,
                    "runs": runs,
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
