"""Hostile input through the real command: 2,000 broken pictures, 200 archives and tables, 1,000 manifests.

The corpus comes from `tests/hostile` and its seed. Pictures are one run with two workers; each archive or
table is a run of its own; each manifest is a dry run. Told are workers that died (crashes), rows over their
time limit and commands over theirs (hangs), the most memory that a worker and a driver ever had, what was
changed outside the workspaces, and the rows by status and reason.

    python benchmarks/hostile.py --seed 0 --out benchmarks/results/torture.json
"""

import argparse
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.torture_results import results
from benchmarks.trial import HUNG, MARKER, judged
from pipeline.catalog import Catalog
from pipeline.storage import events
from pipeline.storage.workspace import Workspace

BESIDE = (".txt", ".json")  # captions and facts of pictures, which are hostile too but no pictures
DEAD = {"returncode": -1, "stderr": "Traceback (most recent call last): the driver died", "stdout": ""}
LIMIT = 180.0  # seconds for a command on one archive or one manifest
MANIFEST = """name: hostile
workspace: {workspace}
source: {source}
image: {{resolution: 64}}
split: {{validation: 0.1, test: 0.1, salt: 0}}
conditions: {{canny: {{}}}}
"""


@dataclass
class Found:
    """What a part of the corpus did."""

    count: int
    seconds: float = 0.0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    peak_worker_mb: int = 0
    peak_driver_mb: int = 0
    exit_statuses: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--archives", type=int, default=200)
    parser.add_argument("--manifests", type=int, default=1000)
    parser.add_argument("--parts", default="files,archives,manifests")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; its other keys stay")
    options = parser.parse_args()
    MARKER.unlink(missing_ok=True)
    told: dict[str, Any] = {"seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        home = Path(folder)
        parts = {
            "files": lambda: files(home / "files", options.seed, options.files),
            "archives": lambda: sources(home / "archives", options.seed, options.archives),
            "manifests": lambda: dry_runs(home / "manifests", options.seed, options.manifests),
        }
        for name in options.parts.split(","):
            began = time.monotonic()
            with untouched(home) as changed:
                found = parts[name]()
            found.seconds = round(time.monotonic() - began, 1)
            told[name] = asdict(found) | {"changed_outside": changed}
            print(name, json.dumps(told[name], indent=1, ensure_ascii=False), flush=True)
    told["code_run"] = MARKER.exists()
    if options.out:
        with results(options.out) as every:
            before = every.get("hostile", {})
            every["hostile"] = (before if before.get("seed") == options.seed else {}) | told


def corpus(home: Path, seed: int, **counts: int) -> None:
    """Made by the tests' script, in a process of its own: its writers of pictures take memory too."""
    every = {"files": 0, "archives": 0, "manifests": 0} | counts
    words = [word for name, count in every.items() for word in (f"--{name}", str(count))]
    command = [sys.executable, "-m", "tests.hostile", str(home), "--seed", str(seed), *words]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def files(home: Path, seed: int, count: int) -> Found:
    corpus(home, seed, files=count)
    there = (path for path in (home / "photos").rglob("*") if not path.is_dir())
    found = Found(sum(path.suffix not in BESIDE for path in there))
    path = home / "manifest.yaml"
    path.write_text(
        MANIFEST.format(workspace=home / "workspace", source=f"{{kind: folder, path: {home / 'photos'}}}")
    )
    with answering() as (ask, peaks):
        look(found, home / "workspace", ask(path), path.name)
    found.peak_driver_mb, found.peak_worker_mb = peaks["driver"] >> 20, peaks["worker"] >> 20
    return found


def sources(home: Path, seed: int, count: int) -> Found:
    corpus(home, seed, archives=count)
    told = sorted((home / "archives").glob("*.source"))
    found = Found(len(told))
    with answering() as (ask, peaks):
        for number, one in enumerate(told):
            path = home / f"{number:04d}.yaml"
            path.write_text(MANIFEST.format(workspace=home / f"{number:04d}", source=one.read_text()))
            look(found, home / f"{number:04d}", ask(path), one.stem)
    found.peak_driver_mb, found.peak_worker_mb = peaks["driver"] >> 20, peaks["worker"] >> 20
    return found


def look(found: Found, workspace: Path, answer: dict[str, Any] | None, name: str) -> None:
    """Adds what one run did."""
    if answer is None:
        found.hangs.append(name)
        return
    add(found.exit_statuses, str(answer["returncode"]))
    if "Traceback (most recent" in answer["stderr"] + answer["stdout"]:
        found.tracebacks.append(f"{name}: {answer['stderr'].strip().splitlines()[-1:]}")
    if answer["returncode"] == 1:
        said = answer["stderr"].splitlines()
        add(
            found.reasons,
            short(next((line for line in said if line.startswith("controlmill: ")), str(said[-3:]))),
        )
    for event in events.read(workspace):
        if event["event"] == "worker lost":
            over = event["reason"] and event["reason"] != "its node is gone"
            (found.hangs if over else found.crashes).append(f"{name} {event['job']} row {event['rows']}")
    if not (workspace / "catalog.duckdb").exists():
        return
    sql = "SELECT 'image', status, reason, count(*) FROM images GROUP BY ALL"
    sql += " UNION ALL SELECT 'annotation', status, reason, count(*) FROM annotations GROUP BY ALL"
    for kind, status, reason, rows in Catalog(Workspace(workspace)).query(sql):
        add(found.rows, f"{kind} {status}", rows)
        if reason:
            add(found.reasons, short(reason), rows)


def add(counts: dict[str, int], key: str, more: int = 1) -> None:
    counts[key] = counts.get(key, 0) + more


def short(reason: str) -> str:
    """A sentence without what differs from file to file."""
    line = " ".join(reason.split())[:300].replace("controlmill: ", "")
    return re.sub(r"/[^\s:,]+", "PATH", re.sub(r"\d[\d ,.]*", "N", line))[:110]


def dry_runs(home: Path, seed: int, count: int) -> Found:
    corpus(home, seed, manifests=count)
    made = sorted((home / "manifests").iterdir())
    found = Found(len(made))
    (home / "here").mkdir(parents=True)
    os.chdir(home / "here")
    from pipeline.catalog import selection_checks
    from pipeline.cli import main as controlmill

    selection_checks._unstable()  # what each process would do first is done once
    reasons: Counter[str] = Counter()
    for path in made:
        verdict = judged(
            lambda path=path: controlmill(["run", str(path), "--dry-run"], prog_name="controlmill"), LIMIT
        )
        add(found.exit_statuses, str(verdict.status))
        found.peak_driver_mb = max(found.peak_driver_mb, verdict.peak >> 20)
        if verdict.status == HUNG:
            found.hangs.append(path.name)
        elif isinstance(verdict.status, str):
            found.crashes.append(f"{path.name}: {verdict.status}")
        elif verdict.crashed:
            found.tracebacks.append(f"{path.name}: {verdict.said.strip().splitlines()[-1:]}")
        elif verdict.status == 1 and verdict.said.startswith("controlmill: "):
            reasons[short(re.sub(r"^\S+ ", "", verdict.said.removeprefix("controlmill: ")))] += 1
    found.reasons = dict(reasons.most_common(60))
    os.chdir(ROOT)
    return found


@contextmanager
def answering() -> Iterator[tuple[Any, dict[str, int]]]:
    """A process that answers `controlmill run` (tests/answers.py) and is started again where it hangs; and
    the most memory, in bytes, that it and its workers have had.
    """
    command = [sys.executable, "-c", "from tests.answers import serve; serve()"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    peaks, ended = {"driver": 0, "worker": 0}, threading.Event()
    process: list[subprocess.Popen[str]] = []

    def started() -> subprocess.Popen[str]:
        if not process or process[0].poll() is not None:
            process[:] = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            ]
        return process[0]

    def ask(path: Path) -> dict[str, Any] | None:
        asked = started()
        assert asked.stdin and asked.stdout
        words = ["run", str(path), "--workers", "2"]
        print(json.dumps({"arguments": words, "folder": str(path.parent)}), file=asked.stdin, flush=True)
        if not select.select([asked.stdout], [], [], 1800 if path.name == "manifest.yaml" else LIMIT)[0]:
            for child in psutil.Process(asked.pid).children(recursive=True):
                child.kill()
            asked.kill()
            asked.wait()
            return None
        answer: dict[str, Any] = json.loads(asked.stdout.readline() or "null") or DEAD
        return answer

    def watch() -> None:
        while not ended.wait(0.2):
            if not process:
                continue
            try:
                below = psutil.Process(process[0].pid).children(recursive=True)
            except psutil.Error:
                continue
            peaks["driver"] = max(peaks["driver"], most_of(process[0].pid))
            for child in below:
                try:
                    if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::"):
                        peaks["worker"] = max(peaks["worker"], most_of(child.pid))
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield ask, peaks
    finally:
        ended.set()
        watcher.join()
        for each in process:
            assert each.stdin
            each.stdin.close()
            each.wait(60)


def most_of(pid: int) -> int:
    """The most memory that a process has ever had, in bytes; 0 where it is gone."""
    try:
        told = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(found[1]) * 1024 if (found := re.search(r"VmHWM:\s+(\d+) kB", told)) else 0


@contextmanager
def untouched(home: Path) -> Iterator[list[str]]:
    """What appears or changes outside the folder that is worked in."""
    changed: list[str] = []
    before = seen(home)
    yield changed
    after = seen(home)
    changed += sorted(name for name in after.keys() | before.keys() if before.get(name) != after.get(name))


def seen(home: Path) -> dict[str, tuple[int, int]]:
    """Size and time of what must stay as it is: the checkout, the root of the disk, and what the corpus's
    names of members and its SQL try to make in the folder of temporary files.
    """
    files = [path for path in ROOT.iterdir() if path.name not in (".git", ".venv", "benchmarks")]
    files += [path for path in Path("/").iterdir() if path.name not in ("proc", "sys", "dev", "tmp")]
    files += [*Path(tempfile.gettempdir()).glob("*escaped*"), *home.glob("*escaped*"), MARKER]
    told = {}
    for path in files:
        try:
            state = path.lstat()
        except OSError:
            continue
        told[str(path)] = (state.st_size, state.st_mtime_ns)
    return told


if __name__ == "__main__":
    main()
