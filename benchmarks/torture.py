"""Rounds of random faults: a run is disturbed, started again until it is through, and compared with one that
was not.

A round draws faults from its seed: errors of the disk and signals at points that are named in the code
(`pipeline/storage/faults.py`), signals to driver, workers and Ray at random moments, nodes that are lost, a
catalog that is deleted, another machine that goes on, a store that fails, is slow or gives old listings. It
counts what is lost, doubled, different or made again, what is left behind, tracebacks, and tries that hang.

    python benchmarks/torture.py --seed 0 --rounds 100 --out benchmarks/results/torture.json
    python benchmarks/torture.py --seed 0 --set-ups bucket --round 17          # one round once more
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Python puts this file's folder first, where annotate.py would hide the package of that name
HERE = Path(__file__).resolve().parent.parent
sys.path[:] = [str(HERE), *(place for place in sys.path if Path(place).resolve() != HERE / "benchmarks")]

from benchmarks.torture_results import added, known, put, results, summary
from benchmarks.torture_setups import NAMES, SIGNALS, SetUp, set_up
from benchmarks.workspace_contents import read_contents
from pipeline import MillError
from pipeline.storage import faults
from pipeline.storage.faults import ERRORS, POINTS, WRITES, Fault

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]
MANIFEST = """
name: torture
workspace: {workspace}
source: {{kind: folder, path: {photos}}}
image: {{resolution: 64}}
split: {{validation: 0.1, test: 0.3, salt: 0}}
shard_images: 4
conditions: {{canny: {{}}, hough: {{}}, cartoon: {{}}}}
train:
  base: random
  runs: [{{conditions: [canny], images: 24, batch: 4, checkpoint_every: 8, lr: 1.0e-3}}]
evaluate:
  benchmark: {{split: test, samples: 4, seeds: [0], num_inference_steps: 2}}
  baselines: [no_control]
"""
IMAGES = 24
STAGES = {"maps": "ingest,annotate", "all": "ingest,annotate,encode,train,generate,score,report"}
ALL_STAGES = 0.1  # share of the rounds that do all stages
COMPLETE = 3  # with failed rows: one picture is broken
TRIES = 8  # of a round under faults, before it is left alone
HANGS = 240.0  # seconds after which a try hangs
SAID = 15.0  # seconds in which a try that ended has told why


@dataclass(frozen=True)
class Moment:
    """A disturbance from outside, so many seconds after a try began."""

    after: float
    what: str  # of the set-up's disturbances
    how: str  # a signal


@dataclass(frozen=True)
class Schedule:
    """What a round does, all of it from its seed."""

    stages: str  # of STAGES
    faults: tuple[Fault, ...]
    moments: tuple[tuple[Moment, ...], ...]  # of each try


@dataclass
class Outcome:
    """What became of a round. Each list names what should not be there."""

    round: int
    stages: str
    tries: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    made_again: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # hangs, tracebacks, an end that is none, what verify says
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        return [
            f"{kind}: {one}"
            for kind in ("lost", "doubled", "different", "made_again", "left_behind", "wrong")
            for one in getattr(self, kind)
        ]


def main() -> None:
    """Play the rounds, print each that failed, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set-ups", default=",".join(NAMES), help="which of them, in their order")
    parser.add_argument("--rounds", type=int, default=100, help="of each set-up")
    parser.add_argument("--round", type=int, default=None, help="only this one")
    parser.add_argument(
        "--first", type=int, default=0, help="begin here, and add to what FILE has of this seed"
    )
    parser.add_argument("--minutes", type=float, default=None, help="of all set-ups; the rounds that fit in")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; its other keys stay")
    options = parser.parse_args()
    # what a shell starts in the background ignores it, and would hand that on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = options.set_ups.split(",")
    bad = 0
    for name in names:
        limit = None if options.minutes is None else 60 * options.minutes / len(names)
        numbers = range(options.first, options.rounds) if options.round is None else [options.round]
        outcomes: list[Outcome] = []
        before = known(options.out, name, options.seed) if options.first else {}
        for outcome in play(name, options.seed, numbers, limit):
            outcomes.append(outcome)
            told = "; ".join(outcome.faults)[:1500] or "as if nothing had happened"
            tried = f"{outcome.stages}, {outcome.tries} tries, {outcome.seconds:.0f} s"
            print(f"{name}, round {outcome.round} ({tried}, {dict(outcome.happened)}): {told}", flush=True)
            if options.out:  # after each, for a run that is stopped
                with results(options.out) as every:
                    put(every, name, added(before, summary(options.seed, outcomes)))
        bad += sum(bool(outcome.faults) for outcome in outcomes)
    sys.exit(bad > 0)


def play(name: str, seed: int, numbers: Iterable[int], limit: float | None = None) -> Iterator[Outcome]:
    """Rounds of one set-up, until so many seconds are over."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, set_up(name, Path(folder) / "s") as here:
        draw_photos(Path(folder, "photos"))
        undisturbed: dict[str, Reference] = {}
        for number in numbers:
            if limit is not None and time.monotonic() - began > limit:
                return
            rng = random.Random(f"{seed} {name} {number}")
            stages = "all" if rng.random() < ALL_STAGES else "maps"
            if stages not in undisturbed:
                undisturbed[stages] = reference(here, Path(folder), stages)
            schedule = drawn(rng, here, stages, undisturbed[stages])
            yield play_round(here, Path(folder), number, rng, schedule, undisturbed[stages])


def draw_photos(folder: Path) -> None:
    """Textures with captions; one file is broken, and one is another's double."""
    folder.mkdir()
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        picture = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).resize((160, 120), Image.Resampling.NEAREST).save(
            folder / f"{number:03d}.png"
        )
        (folder / f"{number:03d}.txt").write_text(f"picture {number}")
    shutil.copy(folder / "003.png", folder / "100.png")
    (folder / "101.png").write_bytes((folder / "005.png").read_bytes()[:200])


@dataclass(frozen=True)
class Reference:
    """A run that was not disturbed."""

    contents: dict[str, str]
    visits: Counter[str]
    seconds: float


def reference(here: SetUp, folder: Path, stages: str) -> Reference:
    """Made twice: what differs between two that were not disturbed tells nothing of faults."""
    found: list[Reference] = []
    for number in range(2):
        faults.write_schedule(here.schedule, [])
        name, start = f"reference-{stages}-{number}", time.monotonic()
        status, told = try_once(here, folder, name, stages)
        if status != COMPLETE:
            raise RuntimeError(f"a run that was not disturbed ended with {status}: {told}")
        seconds = time.monotonic() - start
        found.append(Reference(contents(here, name), faults.visits(here.schedule), seconds))
        here.end_round(here.workspace(name))
    unsteady = [key for key, value in found[0].contents.items() if found[1].contents.get(key) != value]
    if unsteady:
        raise RuntimeError(f"two runs that were not disturbed differ in {unsteady}")
    return found[0]


def drawn(rng: random.Random, here: SetUp, stages: str, undisturbed: Reference) -> Schedule:
    """Up to three faults at points that such a run reaches, and one from outside in each of two tries."""
    points = [point for point in POINTS if undisturbed.visits[point]]
    chosen = []
    for _ in range(rng.randint(1, 3)):
        point = rng.choice(points)
        visit = rng.randint(1, undisturbed.visits[point])
        if point in WRITES and rng.random() < 0.4:
            chosen.append(Fault(point, visit, rng.choice(list(ERRORS))))
        else:
            after = rng.choice([0.0, round(rng.uniform(0, 0.3), 3)])
            chosen.append(Fault(point, visit, rng.choices(SIGNALS, (4, 2, 1, 1))[0], after))
    moments = tuple(
        tuple(
            Moment(
                round(rng.uniform(0.2, 0.9) * undisturbed.seconds, 2),
                rng.choice(here.disturbances),
                rng.choices(SIGNALS, (4, 2, 1, 1))[0],
            )
            for _ in range(rng.randint(0, 1))
        )
        for _ in range(2)
    )
    return Schedule(stages, tuple(chosen), moments)


def play_round(
    here: SetUp,
    folder: Path,
    number: int,
    rng: random.Random,
    schedule: Schedule,
    undisturbed: Reference,
) -> Outcome:
    outcome, name = Outcome(number, schedule.stages), f"round-{number}"
    start, place = time.monotonic(), here.workspace(f"round-{number}")
    here.begin_round(rng)
    faults.write_schedule(here.schedule, schedule.faults)
    kept: dict[str, Any] = {}
    while outcome.tries < TRIES:
        moments = schedule.moments[outcome.tries] if outcome.tries < len(schedule.moments) else ()
        outcome.tries += 1
        status, told = try_once(here, folder, name, schedule.stages, moments, rng, outcome)
        judge(outcome, status, told)
        outcome.left_behind += here.left_alive()
        kept = compare_kept(outcome, kept, files_of(place))
        if status == COMPLETE:
            break
        if between := here.between(rng, place, schedule.stages):
            outcome.happened[between] += 1
    outcome.happened.update(f"{each.what} at '{each.point}'" for each in faults.happened(here.schedule))
    faults.write_schedule(here.schedule, [])
    if status != COMPLETE:  # once more, left alone
        outcome.tries += 1
        status, told = try_once(here, folder, name, schedule.stages)
        compare_kept(outcome, kept, files_of(place))
    if status != COMPLETE:
        outcome.wrong.append(f"it ended with {status} when it was left alone: {told[-800:]}")
    outcome.left_behind += here.left_alive() + here.left_files() + unfinished(place)
    compare(outcome, undisturbed.contents, contents(here, name))
    outcome.wrong += [f"verify: {sentence}" for sentence in verified(here, name)]
    here.end_round(place)
    outcome.seconds = time.monotonic() - start
    return outcome


def try_once(
    here: SetUp,
    folder: Path,
    name: str,
    stages: str,
    moments: tuple[Moment, ...] = (),
    rng: random.Random | None = None,
    outcome: Outcome | None = None,
) -> tuple[int | None, str]:
    """One `controlmill run`, disturbed from outside: its status, None = it hung; and what it said."""
    manifest, log = folder / f"{name}.yaml", folder / "log.txt"
    manifest.write_text(MANIFEST.format(workspace=here.workspace(name), photos=folder / "photos"))
    words = [*COMMAND, "run", str(manifest), "--stages", STAGES[stages], "--workers", "2"]
    words += ["--address", here.address] if here.address else []
    began = time.monotonic()
    with (
        log.open("w") as file,
        subprocess.Popen(
            words, cwd=folder, env=here.environment | {"PYTHONPATH": str(HERE)}, stdout=file, stderr=file
        ) as driver,
    ):
        for moment in sorted(moments, key=lambda each: each.after):
            while driver.poll() is None and time.monotonic() - began < moment.after:
                time.sleep(0.02)
            if driver.poll() is None and rng and here.disturb(moment.what, moment.how, driver.pid, rng):
                assert outcome is not None
                told = moment.what if moment.what == "lose node" else f"{moment.how} of {moment.what}"
                outcome.happened[told] += 1
        try:
            status: int | None = driver.wait(HANGS)
        except subprocess.TimeoutExpired:
            driver.kill()
            status = None
    if status not in (0, COMPLETE, None):  # what outlives the driver has its say a moment later
        deadline = time.monotonic() + SAID
        while "controlmill: " not in log.read_text(errors="replace") and time.monotonic() < deadline:
            time.sleep(0.1)
    return status, log.read_text(errors="replace")


def verified(here: SetUp, name: str) -> list[str]:
    """What `controlmill verify` says of the workspace."""
    from pipeline.catalog import Catalog
    from pipeline.commands import verify
    from pipeline.storage.workspace import workspace_at

    os.environ.update(here.in_process())
    try:
        catalog = Catalog(workspace_at(here.workspace(name)))
        return verify.problems(catalog, repair=False, say=lambda line: None)
    except MillError as error:
        return [str(error)]


def judge(outcome: Outcome, status: int | None, told: str) -> None:
    """Of a disturbed try: it may end early, with a sentence, and never hang."""
    if status is None:
        outcome.wrong.append(f"hung: {told[-400:]}")
    if "Traceback" in told:
        outcome.wrong.append(f"traceback: {told[told.index('Traceback') :][-1200:]}")
    if status is not None and status > 0 and status != COMPLETE and "controlmill: " not in told:
        outcome.wrong.append(f"ended with {status} and no sentence: {told[-400:]}")


def files_of(place: str) -> dict[str, Any]:
    """Shard -> what changes when it is written again; of a folder, where a link keeps its time."""
    if "://" in place:
        return {}
    tops = (Path(place, top) for top in ("shards", "samples", "scores"))
    return {str(path): path.stat().st_mtime_ns for top in tops for path in top.rglob("part-*.parquet")}


def compare_kept(outcome: Outcome, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A shard that was whole stays as it is; gives those of now."""
    outcome.made_again += [path for path, when in before.items() if now.get(path) != when]
    return dict(now)


def unfinished(place: str) -> list[str]:
    return [] if "://" in place else [str(path) for path in Path(place).rglob(".tmp-*")]


def compare(outcome: Outcome, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    outcome.lost += sorted(expected.keys() - found.keys())
    outcome.doubled += sorted(found.keys() - expected.keys())
    outcome.different += sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])


def contents(here: SetUp, name: str) -> dict[str, str]:
    """Everything that a workspace holds but seconds: what is named by what is there -> its hash."""
    os.environ.update(here.in_process())
    try:
        return read_contents(here.workspace(name))
    except (MillError, OSError) as error:
        return {f"could not be read: {error}": ""}


if __name__ == "__main__":
    main()
