"""Depth, normals and ADE20K labels of TIPSv2-DPT: three conditions that share a pass, and three that do not.

The hub is not needed: the true architecture has random weights (the arithmetic of a layer does not depend on
its numbers). Runs alternate, so that a busy machine slows both; the table shows medians.

    python benchmarks/shared_pass.py --images 2 --threads 2 --out shared_pass.json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONDITIONS = ("depth_large", "normal", "seg_ade20k")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="pictures per run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures, pixels")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    import torch

    from annotate.annotator import annotate, resolve
    from benchmarks.annotate import machine, photographs

    torch.set_num_threads(options.threads)
    images = photographs(options.images, options.size)
    ids = [str(i) for i in range(len(images))]
    seconds: dict[str, list[float]] = {"one pass": [], "three passes": []}
    with tempfile.TemporaryDirectory() as folder:
        make_weights(Path(folder))
        given = {"precision": options.precision, "weights": folder}
        steps = [resolve(condition, "tipsv2-dpt", given) for condition in CONDITIONS]
        together, apart = [steps], [[step] for step in steps]
        annotate(images, ids, steps, device=options.device)  # loads the network
        for _ in range(options.repeats):
            for name, groups in (("one pass", together), ("three passes", apart)):
                start = time.perf_counter()
                made = [annotate(images, ids, group, device=options.device) for group in groups]
                seconds[name].append(time.perf_counter() - start)
                assert all(each.map is not None for maps in made for of in maps.values() for each in of)
    report: dict[str, Any] = {
        "images": len(images),
        "size": options.size,
        "threads": options.threads,
        "precision": steps[0].params["precision"],
        "device": options.device,
        "machine": machine(options.device),
        "torch": torch.__version__,
        "seconds": {name: [round(each, 3) for each in runs] for name, runs in seconds.items()},
    }
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    report["times"] = round(medians["three passes"] / medians["one pass"], 2)
    for name, median in medians.items():
        print(f"{name:<16}{len(images) / median:>8.3f} images/s with all three maps")
    print(f"one pass is {report['times']:.2f} times as fast")
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def make_weights(folder: Path) -> None:
    """TIPSv2-DPT B/14 with random weights, as transformers writes it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config: Any = transformers.Tipsv2DptConfig(id2label={i: f"LABEL_{i}" for i in range(150)})
    transformers.Tipsv2DptForDensePrediction(config).save_pretrained(folder)


if __name__ == "__main__":
    # Python puts this file's folder first, where a file would hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
