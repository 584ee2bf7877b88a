"""What the driver takes beside one, three and ten million images, in one run, beside its targets.

Each part is a benchmark of its own, run in processes of its own, one after the other: commits and questions
(`catalog_growth.py`), listing and noticing (`listing_growth.py`), near-duplicates (`near_growth.py`), two
nodes beside one (`nodes.py`), a bucket beside a folder (`bucket.py`). `--check` takes under five minutes and
fails where commits, or listing and noticing, or all of the driver's time for an image take over a quarter
longer beside 200,000 images than beside 50,000.

    python benchmarks/scale.py --out scale.json
    python benchmarks/scale.py --check
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from benchmarks.annotate import machine

HERE = Path(__file__).resolve().parent
GROWTH = ("catalog_growth", "listing_growth", "near_growth")  # with `--check` too
PARTS = (*GROWTH, "nodes", "bucket")
FLAT = 1.25  # times as long for each image, at most, beside four times as many
MOST = 10_000_000  # images of the targets
PLANNING = ("activate", "plan annotate", "pairs left of every condition", "exit status")
Results = dict[str, dict[str, Any]]  # by part


@dataclass(frozen=True)
class Target:
    what: str
    unit: str
    target: str
    measured: float
    reached: bool


def main() -> None:
    """Measure, print the targets, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="beside 50,000 and 200,000 images; fails if not flat"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which of the parts to run")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; what other parts had there stays")
    options = parser.parse_args()
    if options.check:
        check(run(GROWTH, ["--check"]))
        return
    results: Results = {}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text())["parts"]
    results |= run(options.parts.split(","), [])
    reached = targets(results)
    for each in reached:
        missed = "" if each.reached else "NOT REACHED"
        print(f"{each.what:58}{each.measured:>12,} {each.unit:10} {each.target:22}{missed}")
    if options.out:
        told = {"machine": machine("cpu"), "targets": [asdict(each) for each in reached], "parts": results}
        options.out.write_text(json.dumps(told, indent=1) + "\n")


def run(parts: tuple[str, ...] | list[str], words: list[str]) -> Results:
    """Each benchmark in a process of its own; what it writes, and how long it took."""
    results: Results = {}
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            out, start = Path(folder, "out.json"), time.monotonic()
            print(f"--- {part}", flush=True)
            subprocess.run([sys.executable, str(HERE / f"{part}.py"), *words, "--out", str(out)], check=True)
            results[part] = json.loads(out.read_text()) | {
                "minutes": round((time.monotonic() - start) / 60, 1)
            }
    return results


def targets(results: Results) -> list[Target]:
    """What was to be reached, as far as it was measured."""
    found: list[Target] = []

    def least(what: str, unit: str, measured: float, target: float) -> None:
        found.append(Target(what, unit, f"at least {target:,}", measured, measured >= target))

    def most(what: str, unit: str, measured: float, target: float) -> None:
        found.append(Target(what, unit, f"under {target:,}", measured, measured < target))

    if catalog := results.get("catalog_growth"):
        rates = [row["rows_per_s"] for row in catalog["commits"]]
        asked = {row["asked"]: row["seconds"] for row in catalog["questions"] if row["images"] == MOST}
        least("commit beside 10 M images x 3 conditions", "rows/s", min(rates), 100_000)
        most(
            "slowest of its rates, times slower than the fastest",
            "times",
            round(max(rates) / min(rates), 2),
            1.2,
        )
        most("status, 10 M x 13", "s", asked["status"], 2)
        plan = round(sum(asked[name] for name in PLANNING), 2)
        most("start with nothing to do, without the listing, 10 M x 13", "s", plan, 30)
        for name in ("canny", "hough", "hed"):
            most(f"select of {name}, 10 M x 13", "s", asked[f"select of {name}"], 5)
    for hashes in ("uniform", "skewed") if "near_growth" in results else ():
        rows = results["near_growth"]["rows"]
        (last,) = (row for row in rows if row["hashes"] == hashes and row["known"] == MOST)
        least(f"near-duplicates beside 10 M, {hashes} hashes", "images/s", last["with_thumbnails"], 5_000)
    if listing := results.get("listing_growth"):
        (last,) = (row for row in listing["rows"] if row["addresses"] == MOST)
        most("listing 10 M addresses", "s", last["listing"], 60)
        most("the driver's memory meanwhile", "MB", last["driver_mb"], 1000)
    if nodes := results.get("nodes"):
        least("two nodes beside one, the same cores", "times", nodes["ratio"], 0.95)
    if bucket := results.get("bucket"):
        least("a bucket on loopback beside a folder", "times", bucket["ratio"], 0.8)
    return found


def check(results: Results) -> None:
    """Exits with a sentence where the driver's time for an image grows with the images that there are."""
    commit = {row["images"]: 4e6 / row["rows_per_s"] for row in results["catalog_growth"]["commits"]}
    listing = {row["addresses"]: row["microseconds"] for row in results["listing_growth"]["rows"]}
    near = {row["known"]: 1e6 / row["with_thumbnails"] for row in results["near_growth"]["rows"]}
    few, many = min(commit), max(commit)
    together = {n: commit[n] + listing[n] + near[n] for n in (few, many)}
    wrong = []
    for what, one in (("commits", commit), ("listing and noticing", listing), ("all of it", together)):
        print(f"{what}: {one[few]:.0f} us an image beside {few:,}, {one[many]:.0f} beside {many:,}")
        wrong += [what] if one[many] > FLAT * one[few] else []
    if wrong:
        sys.exit(f"not flat within {FLAT - 1:.0%}: {', '.join(wrong)} ({os.cpu_count()} cores)")


if __name__ == "__main__":
    main()
