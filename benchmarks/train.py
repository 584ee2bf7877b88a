"""Training throughput: this project's loop against diffusers' own, on the same weights, pictures, batch and
precision, in one run.

`ours` is `train.fit.fit` as users run it, on pairs in memory; its checkpoints lie beyond the end. `live` is
the loop of diffusers' `train_controlnet.py`, `cached` the same with latents and text encoded before, `tuned`
that one with torch.compile and channels_last (benchmarks/diffusers_loop.py), which has a row where ours
compiles. Weights are random: the arithmetic of a layer does not depend on its numbers. A rate is the median
over readings of the clock, each some steps apart and made when the device is done; the first ones, in which
kernels are compiled and chosen, are left out, and `start` says how long it took to the first. One image of K
conditions counts K times in `trained/s`, which is what ratios compare: K runs train as much one after the
other. `share` is the FLOPs of what is trained (2 x multiply-adds; for `live` with its encoders; nothing that
is computed twice) as a share of a matrix product's rate measured here.

Rows come in the order of their importance. One that fails says why and stops nothing; one that the budget has
no room for says so. No Ray, no catalog, no network: torch, torchvision, transformers and diffusers are
enough. On a machine that lacks diffusers, bring its wheel and `pip install --no-deps` it.

    python benchmarks/train.py --shape sd15 --device cuda --out train-h100.json
    python benchmarks/train.py --shape mini --budget 330 --out train-cpu.json
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30
BASELINES = {
    "live": "diffusers, live",
    "cached": "diffusers, cached",
    "tuned": "diffusers, cached, compiled, channels_last",
}
ONE, MIDDLE, FULL = "ours, K = 1", "ours, middle only", "ours, small scale but full connection"
SMALL = "ours, small scale (middle, checkpointing, 8-bit)"


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant in one setting."""

    name: str
    loop: str  # ours | tuned | cached | live
    batch: int
    conditions: int = 1
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of train.options.Options


class Measured(Exception):
    """Ends a run of `fit` that has been timed, before it would write gigabytes of checkpoint."""


def rows_of(batch: int, joined_batch: int, compiled: bool) -> list[Row]:
    """Most important first. At a batch of one, compiling would take longer than it could save."""
    lean = {"connect": "middle", "gradient_checkpointing": True, "optimizer": "adamw8bit", "compile": False}
    rows = [
        Row(ONE, "ours", batch),
        Row(BASELINES["cached"], "cached", batch),
        *([Row(BASELINES["tuned"], "tuned", batch)] if compiled else []),
        Row(BASELINES["live"], "live", batch),
        Row("ours, K = 4", "ours", batch, 4),
        Row(SMALL, "ours", 1, 1, lean),
        Row(MIDDLE, "ours", batch, 1, {"connect": "middle"}),
        Row("ours, K = 4 joined", "ours", joined_batch, 4, {"join": True}),
        Row("ours, K = 8", "ours", max(1, batch // 2), 8),
        Row("ours, small scale with plain AdamW", "ours", 1, 1, lean | {"optimizer": "adamw"}),
        Row(FULL, "ours", 1, 1, lean | {"connect": "full"}),
    ]
    return rows + ([Row(f"{ONE}, not compiled", "ours", batch, 1, {"compile": False})] if compiled else [])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON after each row."""
    given = parse(arguments)

    def keep(report: dict[str, Any]) -> None:
        if given.out:
            given.out.write_text(json.dumps(report, indent=2) + "\n")

    print(table(measured(given, keep)))


def measured(given: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The report, which `keep` gets after each row and at the end."""
    import diffusers
    import torch
    import transformers

    from benchmarks.annotate import machine
    from benchmarks.shapes import SHAPES, RandomPairs, flops_per_image, random_base
    from train import throughput

    # it warns of what is not there whenever a network changes its type
    diffusers.utils.logging.set_verbosity_error()
    began, shape = time.monotonic(), SHAPES[given.shape]
    device, cuda = given.device, given.device.startswith("cuda")
    threads = given.threads or (torch.get_num_threads() if cuda else shape.threads)
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.precision]
    rows = rows_of(given.batch or shape.batch, given.joined_batch or shape.joined_batch, given.compile)
    rows = [row for row in rows if not given.only or any(word in row.name for word in given.only.split(","))]
    most = max((row.conditions for row in rows), default=1)
    pairs = RandomPairs(shape, [f"condition-{k}" for k in range(most)], 2 * max(row.batch for row in rows))
    base = random_base(given.shape, shape, device)
    rate = throughput.matmul_rate(device, dtype)
    if rate is None:
        raise SystemExit(f"{device} has no memory for a matrix product: end what else runs there")
    report: dict[str, Any] = {
        "machine": machine(device),
        "threads": threads,
        "versions": {each.__name__: each.__version__ for each in (torch, diffusers, transformers)},
        "shape": {"name": given.shape, **dataclasses.asdict(shape)},
        "options": {name: value for name, value in vars(given).items() if name != "out"},
        "tf32": cuda,
        "matmul_tflops": round(rate / 1e12, 4),
        "rows": [],
    }
    print(
        f"{report['machine']}, {given.shape} at {shape.pixels} pixels, {given.precision}, a matrix product:"
        f" {rate / 1e12:.3g} TFLOP/s"
    )
    for row in rows:
        flops = flops_per_image(
            base, shape, row.conditions, connect=row.settings.get("connect", "full"), live=row.loop == "live"
        )
        counted = {"gigaflops_per_image": round(flops / 1e9, 3), "runs": [], "failed": None, "not_run": None}
        report["rows"].append(dataclasses.asdict(row) | counted)
    for turn in range(given.repeats):  # contestants alternate, so that a busy machine slows all of them
        for row, told in zip(rows, report["rows"], strict=True):
            left = max(0.0, given.budget - (time.monotonic() - began))
            needs = expected_seconds(told, report["rows"])
            if told["failed"] or left < needs:
                if not told["failed"] and not told["runs"]:
                    told["not_run"] = f"{left:.0f} s of the budget were left, and it might take {needs:.0f} s"
                continue
            begun = time.monotonic()
            try:
                run = timed_run(row, base, pairs, shape, given, dtype, deadline=began + given.budget)
                told["runs"].append(run | {"seconds": round(time.monotonic() - begun, 2)})
            except Exception as error:
                told["failed"] = (
                    f"{type(error).__name__}: {(str(error).splitlines() or ['no word'])[0][:300]}"
                )
            base.unet.to("cpu")  # fit takes it to the device
            summarise(report, rate)
            print(f"  [{time.monotonic() - began:4.0f} s] round {turn + 1}: {line(told)}", flush=True)
            keep(report)
    report["seconds"] = round(time.monotonic() - began, 1)
    keep(report)
    return report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Defaults that belong to a shape or a device are filled in here, so that the JSON tells all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("sd15", "mini", "tiny"), default="mini")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default=None, help="default: bf16 on CUDA, fp32 on a CPU"
    )
    parser.add_argument(
        "--compile", choices=("on", "off"), default=None, help="torch.compile in ours; default: on for CUDA"
    )
    parser.add_argument(
        "--batch", type=int, default=None, help="default: the shape's, 32 for sd15; K = 8 takes half of it"
    )
    parser.add_argument("--joined-batch", type=int, default=None, help="default: the shape's, 8 for sd15")
    parser.add_argument(
        "--threads", type=int, default=None, help="of torch; default: one on a CPU (sd15: 16)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        help="threads of ours that read ahead; default: 4 for CUDA, none on a CPU",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help="between two readings of the clock; default: 5 for CUDA, 2 on a CPU",
    )
    parser.add_argument("--readings", type=int, default=3, help="that count, of each run")
    parser.add_argument(
        "--warm-up", type=int, default=None, help="readings that don't count; default: 2 for CUDA, 1 on a CPU"
    )
    parser.add_argument(
        "--repeats", type=int, default=None, help="rounds over all rows; default: 1 for CUDA, 3 on a CPU"
    )
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument(
        "--only", default=None, help="words of row names, by commas: the rows that have one of them"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    given = parser.parse_args(arguments)
    cuda = given.device.startswith("cuda")
    usual = {
        "precision": ("bf16", "fp32"),
        "compile": ("on", "off"),
        "workers": (4, 0),
        "steps": (5, 2),
        "warm_up": (2, 1),
        "repeats": (1, 3),
    }
    for name, (on_cuda, on_cpu) in usual.items():
        if getattr(given, name) is None:
            setattr(given, name, on_cuda if cuda else on_cpu)
    if given.warm_up < 1 or given.readings < 1 or given.steps < 1:
        parser.error("--steps, --readings and --warm-up are at least 1: the first reading starts the clock")
    given.compile = given.compile == "on"
    return given


def expected_seconds(told: dict[str, Any], all_told: list[dict[str, Any]]) -> float:
    """What it took before, else what the last row of its kind took: compiled loops are slow to start,
    diffusers' slow to go on.
    """

    def kind(one: dict[str, Any]) -> tuple[str, Any]:
        return {"live": "cached"}.get(one["loop"], one["loop"]), one["settings"].get("compile")

    alike = [one for one in all_told if kind(one) == kind(told)]
    known = [run["seconds"] for one in alike for run in one["runs"]]
    return (max((run["seconds"] for run in told["runs"]), default=0.0) or (known or [0.0])[-1]) + 1


def timed_run(
    row: Row, base: Any, pairs: Any, shape: Any, given: argparse.Namespace, dtype: Any, *, deadline: float
) -> dict[str, Any]:  # images_per_s, seconds between readings, start, peak
    """From nothing to the last reading, and everything freed after it."""
    import torch

    from benchmarks import diffusers_loop
    from train import throughput

    if given.compile:
        torch.compiler.reset()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = False  # what one contestant switches on must not serve the next
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    throughput.reset_peak(given.device)
    marks: list[float] = []
    start = time.perf_counter()

    def enough() -> bool:
        marks.append(time.perf_counter())
        counted = len(marks) - given.warm_up
        return counted >= given.readings or (counted >= 1 and time.monotonic() > deadline)

    if row.loop == "ours":
        facts = run_ours(row, base, pairs, given, enough)
    else:
        facts = diffusers_loop.run(
            base,
            pairs,
            shape,
            enough,
            batch=row.batch,
            loop=row.loop,
            device=given.device,
            dtype=dtype,
            steps=given.steps,
        )
    spans = [
        after - before
        for before, after in zip(marks[given.warm_up - 1 :], marks[given.warm_up :], strict=False)
    ]
    found = {
        "images_per_s": round(facts["batch"] * given.steps / statistics.median(spans), 4),
        "readings": [round(span, 4) for span in spans],
        "start": round(marks[0] - start, 2),
        "peak": throughput.peak_memory(given.device),
        **facts,
    }
    gc.collect()
    return found


def run_ours(
    row: Row, base: Any, pairs: Any, given: argparse.Namespace, enough: Callable[[], bool]
) -> dict[str, Any]:
    """Log rows are the readings: the loop itself waits for the device there and nowhere else."""
    from train.fit import Calls, Options, fit

    settings = {"compile": given.compile, "precision": given.precision} | row.settings
    options = Options(
        images=10_000 * row.batch,
        batch=row.batch,
        checkpoint_every=10_000 * row.batch,
        log_every=given.steps * row.batch,
        workers=given.workers,
        held_out=0,
        **settings,
    )
    last: dict[str, Any] = {}

    def log(told: dict[str, Any]) -> None:
        last.update(told)
        if enough():
            raise Measured

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Measured):
        fit(
            dataclasses.replace(base, device=given.device),
            pairs,
            list(pairs.conditions[: row.conditions]),
            options,
            Path(folder) / "run",
            calls=Calls(log=log),
        )
    return {"batch": row.batch, "micro_batch": last.get("micro_batch")}


def summarise(report: dict[str, Any], rate: float) -> None:
    """What follows from all runs so far, into each row and as answers to the questions that the rows were
    chosen for.
    """
    by_name = {told["name"]: told for told in report["rows"]}
    for told in report["rows"]:
        if told["runs"]:
            speed = statistics.median(run["images_per_s"] for run in told["runs"])
            told |= {
                "images_per_s": speed,
                "trained_per_s": speed * told["conditions"],
                "start": told["runs"][0]["start"],
            }
            told |= {"share": speed * told["gigaflops_per_image"] * 1e9 / rate}
            told["peak_gib"] = statistics.median(run["peak"] for run in told["runs"]) / GIB
    for told in report["rows"]:
        for loop, name in BASELINES.items():
            against = by_name.get(name, {})
            if "trained_per_s" in told and "trained_per_s" in against:
                told[f"times_{loop}"] = told["trained_per_s"] / against["trained_per_s"]
    one, answers = by_name.get(ONE, {}), {}
    for told in report["rows"]:
        if told["conditions"] > 1 and "trained_per_s" in told and "trained_per_s" in one:
            answers[
                f"{told['name']}, batch {told['batch']}: time against {told['conditions']} separate runs"
            ] = one["trained_per_s"] / told["trained_per_s"]
    for middle, full in ((MIDDLE, ONE), (SMALL, FULL)):
        if "images_per_s" in by_name.get(middle, {}) and "images_per_s" in by_name.get(full, {}):
            answers[f"{middle}: time of a step against full"] = (
                by_name[full]["images_per_s"] / by_name[middle]["images_per_s"]
            )
            answers[f"{middle}: peak memory against full"] = by_name[middle]["peak_gib"] / max(
                by_name[full]["peak_gib"], 1e-9
            )
    report["answers"] = answers


def line(told: dict[str, Any]) -> str:
    """One row of the table."""
    if not told["runs"]:
        return f"{told['name']:<50}{told['failed'] or told['not_run']}"
    run = told["runs"][0]
    size = (
        f"{run['batch']}"
        if run["micro_batch"] in (None, run["batch"])
        else f"{run['batch']}/{run['micro_batch']}"
    )
    cells = f"{size:>6}{told['images_per_s']:>10.2f}{told['trained_per_s']:>11.2f}"
    for loop in BASELINES:
        cells += f"{told[f'times_{loop}']:>9.2f}" if f"times_{loop}" in told else f"{'-':>9}"
    failed = f"   then failed: {told['failed']}" if told["failed"] else ""
    cells += f"{told['share']:>8.1%}{told['peak_gib']:>10.2f}{told['start']:>8.1f}"
    return f"{told['name']:<50}{cells}{failed}"


def table(report: dict[str, Any]) -> str:
    """Rows and answers as text."""
    head = (
        f"\n{'':<50}{'batch':>6}{'images/s':>10}{'trained/s':>11}{'x live':>9}{'x cached':>9}{'x tuned':>9}"
    )
    head += f"{'share':>8}{'peak GiB':>10}{'start s':>8}"
    answers = [f"{question}: {answer:.3f}" for question, answer in report.get("answers", {}).items()]
    return "\n".join(
        [head, *map(line, report["rows"]), "", *answers, f"all of it took {report['seconds']:.0f} s"]
    )


if __name__ == "__main__":
    # Python puts this file's folder first, where this file would hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
