"""The whole job on scenes for about an hour with a fault a minute, beside the same job without faults.

Both run at the same time, each with one worker. Every minute a worker, the driver or one of Ray's processes
is killed, stopped for a while or asked to end; the command is given again whenever it has ended early. Memory
and open files of driver and workers of both are sampled: a slope is fitted to each process within a stage. At
the end rows, bytes, checkpoints and leaderboard are compared, and `verify` checks both workspaces.

    python benchmarks/load.py --seed 0 --scenes 1500 --out benchmarks/results/torture.json
"""

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

# Python puts this file's folder first, where annotate.py would hide the package of that name
HERE = Path(__file__).resolve().parent.parent
sys.path[:] = [str(HERE), *(place for place in sys.path if Path(place).resolve() != HERE / "benchmarks")]

from benchmarks.torture import COMMAND
from benchmarks.torture_results import results
from benchmarks.torture_setups import SetUp, is_kind
from benchmarks.workspace_contents import read_contents
from pipeline.storage import events, faults

MANIFEST = """
name: load
workspace: {workspace}
source: {{kind: scenes, count: {scenes}, seed: 2024, most_objects: 2, least_box: 0.06, least_visible: 0.7}}
image: {{resolution: 128, store: png}}
split: {{validation: 0.1, test: 0.25, near: null}}
shard_images: 25
conditions: {{canny: {{low: [50, 100], high: [120, 200]}}, pose_openpose: {{}}, depth_large: {{}}}}
train:
  base: mini
  runs:
    - conditions: [canny, depth_large]
      warm_start: {{canny: mini/canny, depth_large: mini/depth_large}}
      images: {images}
      batch: 8
      lr: 5.0e-4
      held_out: 8
      checkpoint_every: 64
    - conditions: [pose_openpose]
      warm_start: mini/pose_openpose
      images: {images}
      batch: 8
      lr: 5.0e-4
      held_out: 8
      checkpoint_every: 64
evaluate:
  benchmark: {{split: test, samples: {samples}, seeds: [0], num_inference_steps: 4, guidance_scale: 3.0}}
  baselines: [no_control, shuffled_condition, real_image]
  readers: {{pose_openpose: {{detector: mini}}, depth_large: {{detector: mini}}}}
  features: [{{extractor: mini}}]
  clip: mini
"""
SAMPLED = 5.0  # seconds between two looks at memory and files
WARM = 60.0  # seconds of a process in a stage in which it may still grow
LONG = 120.0  # seconds after those that a slope needs
# what happens in a minute, by how often each is drawn
FAULTS = {
    ("worker", "KILL"): 6, ("worker", "STOP"): 3, ("worker", "TERM"): 2, ("driver", "STOP"): 2,
    ("driver", "KILL"): 1, ("driver", "TERM"): 1, ("raylet", "KILL"): 1, ("gcs_server", "KILL"): 1,
}  # fmt: skip
UNSTEADY = ("seconds", "made", "date", "when", "time", "created", "workspace")  # of a leaderboard.json


@dataclass
class Side:
    """One of the two jobs."""

    here: SetUp
    manifest: Path
    driver: subprocess.Popen[bytes] | None = None
    starts: int = 0
    status: int | None = None  # when it is through
    ended: list[str] = field(default_factory=list)  # what each try said that ended early
    samples: list[tuple[float, str, str, int, float, int]] = field(default_factory=list)
    stage: str = ""

    @property
    def workspace(self) -> Path:
        return self.here.root / "ws"

    @property
    def log(self) -> Path:
        return self.manifest.with_suffix(f".{self.starts}.log")

    def start(self) -> None:
        self.starts += 1
        words = [*COMMAND, "run", str(self.manifest), "--workers", "1"]
        with self.log.open("w") as file:
            environment = self.here.environment | {"PYTHONPATH": str(HERE)}
            self.driver = subprocess.Popen(words, env=environment, stdout=file, stderr=file)

    def look(self) -> None:
        """Start it again where it ended early."""
        assert self.driver is not None
        status = self.driver.poll()
        if status is None or self.status is not None:
            return
        if status == 0:
            self.status = status
            return
        self.ended.append(f"{status}: {self.log.read_text(errors='replace')[-300:]}")
        self.here.left_alive()
        self.start()

    def sample(self, now: float) -> None:
        told = events.read_progress(self.workspace)
        self.stage = told.stage if told else self.stage
        for process in self.here.processes():
            with contextlib.suppress(psutil.Error):
                kind = "driver" if self.driver and process.pid == self.driver.pid else kind_of(process)
                rss = process.memory_info().rss / 2**20
                self.samples.append((now, self.stage, kind, process.pid, rss, process.num_fds()))


def kind_of(process: psutil.Process) -> str:
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return "worker"
    return next((kind for kind in ("raylet", "gcs_server") if is_kind(process, kind, 0)), "other")


def main() -> None:
    """Run both jobs, compare them, print and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--images", type=int, default=1024, help="that each run trains on")
    parser.add_argument("--samples", type=int, default=48, help="of the benchmark")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; its other keys stay")
    options = parser.parse_args()
    # what a shell starts in the background ignores it, and would hand that on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        told = load(Path(folder), options)
    print(json.dumps(told, indent=1))
    if options.out:
        with results(options.out) as every:
            every["load"] = told
    sys.exit(not told["equal"])


def load(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    sides = {name: side(folder, name, options) for name in ("disturbed", "undisturbed")}
    rng, happened = random.Random(options.seed), Counter[str]()
    start = time.monotonic()
    next_fault, next_sample = start + options.every, start
    try:
        for each in sides.values():
            each.start()
        while any(each.status is None for each in sides.values()):
            time.sleep(0.5)
            for each in sides.values():
                each.look()
            now, disturbed = time.monotonic(), sides["disturbed"]
            if now >= next_sample:
                next_sample = now + SAMPLED
                for each in sides.values():
                    each.sample(now - start)
            if now >= next_fault and disturbed.status is None and disturbed.driver:
                next_fault += options.every
                what, how = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
                if disturbed.here.disturb(what, how, disturbed.driver.pid, rng):
                    happened[f"{how} of {what}"] += 1
                    print(f"{now - start:6.0f} s, {disturbed.stage}: {how} of {what}", file=sys.stderr)
        seconds = time.monotonic() - start
        return outcome(sides, happened, seconds, options)
    finally:
        for each in sides.values():
            each.here.close()


def side(folder: Path, name: str, options: argparse.Namespace) -> Side:
    here = SetUp(folder / name)
    faults.write_schedule(here.schedule, [])
    manifest = folder / f"{name}.yaml"
    asked = {"scenes": options.scenes, "images": options.images, "samples": options.samples}
    manifest.write_text(MANIFEST.format(workspace=here.root / "ws", **asked))
    return Side(here, manifest)


def outcome(
    sides: Mapping[str, Side], happened: Counter[str], seconds: float, options: argparse.Namespace
) -> dict[str, Any]:
    disturbed, undisturbed = sides["disturbed"], sides["undisturbed"]
    found = {name: read_contents(str(each.workspace)) for name, each in sides.items()}
    expected, got = found["undisturbed"], found["disturbed"]
    boards = [leaderboard(each.workspace) for each in (undisturbed, disturbed)]
    verified = {name: verify(each) for name, each in sides.items()}
    left = [each for side in sides.values() for each in (*side.here.left_alive(), *side.here.left_files())]
    differences = {
        "lost": sorted(expected.keys() - got.keys()),
        "doubled": sorted(got.keys() - expected.keys()),
        "different": sorted(key for key in expected.keys() & got.keys() if expected[key] != got[key]),
    }
    apart = {"leaderboard": [key for key in boards[0] if boards[0][key] != boards[1][key]]}
    tracebacks = [told for told in disturbed.ended if "Traceback" in told]
    equal = not any(differences.values()) and boards[0] == boards[1] and not any(verified.values())
    return {
        "seed": options.seed,
        "scenes": options.scenes,
        "images": options.images,
        "minutes": round(seconds / 60, 1),
        "faults": happened.total(),
        "happened": dict(sorted(happened.items())),
        "starts": disturbed.starts,
        "equal": equal and not tracebacks and not left,
        "compared": len(expected),
        **{kind: len(keys) for kind, keys in differences.items()},
        "examples": {kind: keys[:5] for kind, keys in (differences | apart).items() if keys},
        "same_leaderboard": boards[0] == boards[1],
        "verify": verified,
        "left_behind": left,
        "tracebacks": tracebacks,
        "slopes": slopes(disturbed),
        "slopes_undisturbed": slopes(undisturbed),  # whose processes live longer
        "peaks": peaks(disturbed),
    }


def verify(each: Side) -> str:
    """What it finds; '' = nothing."""
    environment = each.here.environment | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [*COMMAND, "verify", str(each.workspace)], env=environment, capture_output=True, text=True
    )
    return (done.stdout + done.stderr)[-600:] if done.returncode else ""


def leaderboard(workspace: Path) -> Any:
    """What it says, without what depends on when and how fast it was made."""

    def steady(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: steady(each) for key, each in value.items() if not any(word in key for word in UNSTEADY)
            }
        return [steady(each) for each in value] if isinstance(value, list) else value

    return steady(json.loads((workspace / "report" / "leaderboard" / "leaderboard.json").read_text()))


def slopes(of: Side) -> dict[str, Any]:
    """Of each kind of process within each stage: MiB and open files an hour, the median and the largest over
    the processes that were there long enough.
    """
    series: dict[tuple[str, str, int], list[tuple[float, float, int]]] = defaultdict(list)
    for now, stage, kind, pid, rss, files in of.samples:
        series[kind, stage, pid].append((now, rss, files))
    fitted: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (kind, stage, _), points in series.items():
        steady = np.array([point for point in points if point[0] - points[0][0] >= WARM])
        if len(steady) > 10 and steady[-1, 0] - steady[0, 0] >= LONG:
            hours = steady[:, 0] / 3600
            slope = [float(np.polyfit(hours, steady[:, column], 1)[0]) for column in (1, 2)]
            fitted[f"{kind} in {stage}"].append((slope[0], slope[1]))
    return {
        name: {
            "processes": len(found),
            "mib_an_hour": {
                "median": round(statistics.median(one[0] for one in found), 1),
                "largest": round(max(one[0] for one in found), 1),
            },
            "files_an_hour": {
                "median": round(statistics.median(one[1] for one in found), 1),
                "largest": round(max(one[1] for one in found), 1),
            },
        }
        for name, found in sorted(fitted.items())
    }


def peaks(disturbed: Side) -> dict[str, dict[str, float]]:
    """MiB and open files of the largest process of each kind."""
    found: dict[str, dict[str, float]] = {}
    for _, _, kind, _, rss, files in disturbed.samples:
        peak = found.setdefault(kind, {"mib": 0.0, "files": 0})
        peak["mib"] = round(max(peak["mib"], rss), 1)
        peak["files"] = max(peak["files"], files)
    return found


if __name__ == "__main__":
    main()
