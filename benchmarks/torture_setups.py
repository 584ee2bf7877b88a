"""Where the rounds of `torture.py` run: Ray of the driver's own, three nodes, a workspace in a bucket.

Each set-up says how a run is started and what can be done to it from outside. Names of its methods are those
of the disturbances that a round draws.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.s3_server import Fault, s3_server
from pipeline.cluster import position
from pipeline.storage import faults, stores

HEAD = """
import sys
from ray.cluster_utils import Cluster
cores, *others = [int(word) for word in sys.argv[1:]]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
members = [cluster.add_node(num_cpus=cores) for cores in others]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "lose node":
        cluster.remove_node(members.pop(), allow_graceful=False)
        members.append(cluster.add_node(num_cpus=1))
    print("done", flush=True)
"""
SIGNALS = ("KILL", "STOP", "TERM", "INT")
PAUSED = 2.0  # seconds after which what was stopped goes on
SWEPT = 120.0  # seconds within which another worker begins, which sweeps
ENDED = 60.0  # seconds in which what a killed driver left has to end
# of a store, by how often each is drawn
STORE_FAULTS: dict[Fault | None, int] = {
    None: 90, 503: 2, 429: 1, 500: 1, 0.3: 2, "torn": 1, "half": 1, "lost": 1, "old": 1,
}  # fmt: skip
Chooser = Callable[[Callable[[], Fault | None]], None]  # takes what is asked for each request


class SetUp:
    """Ray that the driver starts for itself, and a workspace in a folder."""

    name = "one node"
    disturbances: tuple[str, ...] = ("driver", "worker", "raylet", "gcs_server")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.schedule = root / "faults"
        self.address: str | None = None  # of a Ray cluster
        temporary = root / "t"
        temporary.mkdir(parents=True)
        self.environment = os.environ | {
            faults.VARIABLE: str(self.schedule),
            stores.CACHE: str(root / "cache"),
            "TMPDIR": str(temporary),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
        }

    def workspace(self, name: str) -> str:
        return str(self.root / name)

    def begin_round(self, rng: random.Random) -> None:
        """Before the first command of a round."""

    def between(self, rng: random.Random, workspace: str, stages: str) -> str:
        """What happens between two tries of a round; '' = nothing. Images that are read in another order are
        learned in another one.
        """
        if stages == "maps" and rng.random() < 0.15:
            for path in Path(workspace).glob("catalog.duckdb*"):
                path.unlink()
            return "catalog gone"
        return ""

    def end_round(self, workspace: str) -> None:
        shutil.rmtree(workspace, ignore_errors=True)

    def processes(self) -> Iterator[psutil.Process]:
        """Those that were started with the environment of this set-up."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(faults.VARIABLE) == str(self.schedule):
                    yield process

    def disturb(self, what: str, how: str, driver: int, rng: random.Random) -> bool:
        """Signals a process of that kind; False where there is none now."""
        found = [process for process in self.processes() if is_kind(process, what, driver)]
        if not found:
            return False
        process = rng.choice(sorted(found, key=lambda each: each.pid))
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.Signals[f"SIG{how}"])
            if how == "STOP":
                time.sleep(PAUSED)
                process.send_signal(signal.SIGCONT)
        return True

    def left_alive(self) -> list[str]:
        """Processes of a run that has ended."""
        deadline = time.monotonic() + ENDED
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        names = []
        for process in alive:
            with contextlib.suppress(psutil.Error):
                names.append(f"process {' '.join(process.cmdline())[:80]}")
        return names

    def _alive(self) -> list[psutil.Process]:
        return [each for each in self.processes() if each.status() != psutil.STATUS_ZOMBIE]

    def left_files(self) -> list[str]:
        """Of the temporary folder, when a last run has swept it."""
        return sorted(path.name for path in (self.root / "t").glob("controlmill-*"))

    def in_process(self) -> Mapping[str, str]:
        """What a process needs to read the workspace."""
        return {}

    def close(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


class ThreeNodes(SetUp):
    """Three Ray nodes of this machine, each with a core; they stay from round to round."""

    name = "three nodes"
    disturbances = ("driver", "worker", "lose node")
    cores = (1, 1, 1)  # of each node

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._cluster = subprocess.Popen(
            [sys.executable, "-c", HEAD, *map(str, self.cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        assert self._cluster.stdout
        self.address = self._cluster.stdout.readline().strip()

    def disturb(self, what: str, how: str, driver: int, rng: random.Random) -> bool:
        if what != "lose node":
            return super().disturb(what, how, driver, rng)
        assert self._cluster.stdin and self._cluster.stdout
        print(what, file=self._cluster.stdin, flush=True)
        return self._cluster.stdout.readline().strip() == "done"

    def _alive(self) -> list[psutil.Process]:
        """Workers that wait stay with their node."""
        return [process for process in super()._alive() if is_kind(process, "driver", 0)]

    def left_files(self) -> list[str]:
        """Workers sweep what dead ones left a while ago: the driver asks them where those were."""
        oldest = time.time() - position.LEFT - SWEPT
        return [name for name in super().left_files() if (self.root / "t" / name).stat().st_mtime < oldest]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._cluster.pid, signal.SIGKILL)
        self._cluster.wait()
        super().close()


class Bucket(ThreeNodes):
    """A workspace in a bucket of moto's S3 server, which fails now and then; one node of Ray stays."""

    name = "bucket"
    disturbances = ("driver", "worker")
    cores = (2,)

    def __init__(self, root: Path, choose: Chooser) -> None:
        super().__init__(root)
        self._choose, self._machines = choose, 0
        self.faults: Counter[str] = Counter()
        self._another_machine()

    def workspace(self, name: str) -> str:
        return f"s3://torture/{name}"

    def begin_round(self, rng: random.Random) -> None:
        store = random.Random(rng.random())
        kinds, weights = list(STORE_FAULTS), list(STORE_FAULTS.values())

        def choose() -> Fault | None:
            fault = store.choices(kinds, weights)[0]
            if fault is not None:
                self.faults[str(fault)] += 1
            return fault

        self._choose(choose)

    def between(self, rng: random.Random, workspace: str, stages: str) -> str:
        """The next try may be made on another machine."""
        if rng.random() < 0.3:
            self._another_machine()
            return "another machine"
        return ""

    def _another_machine(self) -> None:
        """A driver with another cache; workers keep that of their node."""
        shutil.rmtree(self.root / f"cache-{self._machines}", ignore_errors=True)
        self._machines += 1
        self.environment[stores.CACHE] = str(self.root / f"cache-{self._machines}")

    def end_round(self, workspace: str) -> None:
        self._choose(lambda: None)
        self._another_machine()

    def in_process(self) -> Mapping[str, str]:
        return {stores.CACHE: self.environment[stores.CACHE]}


def is_kind(process: psutil.Process, what: str, driver: int) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:  # it has just ended
        return False
    if what == "driver":
        return process.pid == driver if driver else "from pipeline.cli import main; main()" in words
    if what == "worker":
        return bool(words) and words[0].startswith("ray::") and "IDLE" not in words[0]
    return bool(words) and Path(words[0]).name == what


@contextmanager
def set_up(name: str, root: Path) -> Iterator[SetUp]:
    """Started, and ended with all its processes."""
    if name == Bucket.name:
        import boto3

        with s3_server() as (_, gate):
            boto3.client("s3").create_bucket(Bucket="torture")

            def use(choose: Callable[[], Fault | None]) -> None:
                gate.choose = lambda number, method: choose()
                gate.requests.clear()

            bucket = Bucket(root, use)
            try:
                yield bucket
            finally:
                bucket.close()
        return
    started = {SetUp.name: SetUp, ThreeNodes.name: ThreeNodes}[name](root)
    try:
        yield started
    finally:
        started.close()


NAMES = (SetUp.name, ThreeNodes.name, Bucket.name)


def told(found: Mapping[str, int]) -> str:
    return json.dumps(dict(sorted(found.items())))
