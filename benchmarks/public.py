"""The public task: its identities on this machine, and what its baselines score.

    python benchmarks/public.py --out benchmarks/results/public.json

About half an hour on two cores. `--workspace` keeps the workspace, and goes on in one that is there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

# Python puts this file's folder first, where annotate.py would hide the package of that name
HERE = Path(__file__).resolve().parent.parent
sys.path[:] = [str(HERE), *(place for place in sys.path if Path(place).resolve() != HERE / "benchmarks")]

from annotate.conditions import CONDITIONS
from benchmarks.annotate import machine
from evaluate import fidelity

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]
ARMS = ("no_control", "vae_round_trip", "real_image")


def main() -> None:
    """Export, score the baselines, print, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=None)
    parser.add_argument("--workers", default="2")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="public-") as scratch:
        folder = Path(scratch)
        given = yaml.safe_load((HERE / "manifests" / "public.yaml").read_text())
        given["workspace"] = str((options.workspace or folder / "workspace").resolve())
        manifest = folder / "public.yaml"
        manifest.write_text(yaml.safe_dump(given, sort_keys=False))
        start = time.perf_counter()
        run("run", str(manifest), "--workers", options.workers)
        seconds = time.perf_counter() - start
        run("benchmark", "export", given["workspace"], str(folder / "exported"))
        tasks = {
            name: json.loads((folder / "exported" / name / "benchmark.json").read_text())
            for name in CONDITIONS
        }
        size = sum(path.stat().st_size for path in (folder / "exported").rglob("*") if path.is_file())
        report = Path(given["workspace"]) / "report" / "leaderboard" / "leaderboard.json"
        scores = json.loads(report.read_text())["scores"]
    found: dict[str, Any] = {
        "machine": machine("cpu"),
        "seconds": round(seconds),
        "exported_mb": round(size / 1e6),
    }
    found["conditions"] = {
        name: {
            "task": told["task"],
            "maker": told["maker"],
            "reader": told["reader"],
            "measure": CONDITIONS[name].fidelity,
            **{
                it["arm"]: {"value": it["value"], "low": it["low"], "high": it["high"]}
                for it in scores
                if (it["condition"], it["metric"]) == (name, CONDITIONS[name].fidelity) and it["arm"] in ARMS
            },
        }
        for name, told in tasks.items()
    }
    print(*rows(found), sep="\n")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def rows(found: Mapping[str, Any]) -> Iterator[str]:
    """Of the table in docs/benchmark.md."""
    for name, told in found["conditions"].items():
        measure = fidelity.METRICS[told["measure"]]
        values = [f"{told[arm]['value']:.3f}" if arm in told else "" for arm in ARMS]
        better = "↑" if measure.higher_is_better else "↓"
        yield f"| {name} | `{told['task']}` | {measure.title} {better} | {' | '.join(values)} |"


def run(*words: str) -> None:
    done = subprocess.run([*COMMAND, *words], cwd=HERE, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
