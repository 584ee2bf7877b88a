"""Sampling with a shipped ControlNet on the mini base, as the demo does it: four images at a time in float32,
as it was, against more at a time, and against the networks in bf16.

A second is one of the processor, of one thread, which a busy machine changes little. Contestants alternate,
and the median of the rounds counts. `off` tells how far the images are from those of the first row, in levels
of 255: the mean, the most, and the share of values that are off by more than eight.

    python benchmarks/sampling.py --out benchmarks/results/sampling.json
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(it for it in sys.path if Path(it).resolve() != Path(__file__).resolve().parent),
]

SIDE, FAR = 128, 8
BEFORE = "fp32, 4 at a time"
ROWS = {  # name -> precision, images at a time
    BEFORE: ("fp32", 4),
    "fp32, 16 at a time": ("fp32", 16),
    "bf16, 4 at a time": ("bf16", 4),
    "bf16, 16 at a time": ("bf16", 16),
}


def main() -> None:
    """Draw in rounds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=32, help="images of a round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all rows")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()
    import torch

    from benchmarks.annotate import machine
    from train.precision import settled

    torch.set_num_threads(1)
    drawers = {name: _drawer(*row, options.count, options.steps) for name, row in ROWS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    images = {name: draw() for name, draw in drawers.items()}  # kernels are chosen here
    for _ in range(options.repeats):
        for name, draw in drawers.items():
            start = time.process_time()
            draw()
            seconds[name].append((time.process_time() - start) / options.count)
    report = {
        "machine": machine("cpu"),
        "images": options.count,
        "steps": options.steps,
        "auto": settled("auto", "cpu"),
        "rows": [_row(name, seconds, images) for name in ROWS],
    }
    print(f"{report['machine']}; `precision: auto` is {report['auto']} here")
    for row in report["rows"]:  # type: ignore[attr-defined]
        print(
            f"{row['name']:20} {row['seconds']:.3f} s an image, {row['times']:.2f} times as fast; off by"
            f" {row['off_mean']:.2f}, {100 * row['off_far']:.2f} % by more than {FAR}"
        )
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _drawer(precision: str, together: int, count: int, steps: int) -> Callable[[], np.ndarray]:
    """What draws all images of a round; the networks are loaded by then, and texts encoded."""
    import cv2

    from pipeline import scenes
    from train import base as bases
    from train import encoders, sample
    from train.precision import for_sampling
    from train.pretrained import locate

    base, net = sample.load_trained(locate("mini/canny"), for_sampling(bases.load("mini"), precision))
    drawn = [scenes.render(912, number, SIDE) for number in range(count)]
    hints = np.stack([np.repeat(cv2.Canny(one.image, 75, 150)[..., None], 3, axis=2) for one in drawn])
    texts = encoders.encode_text(base, [one.caption for one in drawn])
    (empty,) = encoders.encode_text(base, [""])
    settings = sample.SamplingSettings(
        height=SIDE, width=SIDE, num_inference_steps=steps, guidance_scale=3.0, cfg_hint="conditional"
    )

    def part(rows: slice) -> np.ndarray:
        return sample.generate(
            base,
            net,
            hints=hints[rows],
            prompt_embeds=texts[rows],
            negative_prompt_embeds=empty,
            seeds=list(range(count))[rows],
            settings=settings,
        )

    return lambda: np.concatenate(
        [part(slice(start, start + together)) for start in range(0, count, together)]
    )


def _row(name: str, seconds: dict[str, list[float]], images: dict[str, np.ndarray]) -> dict[str, Any]:
    before, now = (statistics.median(seconds[which]) for which in (BEFORE, name))
    off = np.abs(images[name].astype(int) - images[BEFORE])
    return {
        "name": name,
        "seconds": round(now, 4),
        "times": round(before / now, 3),
        "off_mean": round(float(off.mean()), 3),
        "off_far": round(float((off > FAR).mean()), 5),
        "off_most": int(off.max()),
    }


if __name__ == "__main__":
    main()
