"""Several Ray nodes on one machine: each proves that it sees what the run needs; one is killed in each stage,
one joins late.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.catalog import Catalog
from pipeline.cluster import cluster, nodes
from pipeline.cluster.jobs import Job
from pipeline.cluster.sharing import GpuShares, Measured
from pipeline.commands import requirements
from pipeline.manifest import load
from pipeline.plan import make
from pipeline.storage import events
from pipeline.storage.workspace import TEMPORARY, Workspace
from tests.conftest import COMMAND, OPEN

STAGES = ("ingest", "annotate", "encode", "train", "generate", "score")
TRAIN = (
    """{base: random, runs: [{conditions: [canny], images: 24, batch: 4, checkpoint_every: 8, lr: 1.0e-3}]}"""
)
EVALUATE = (
    """{benchmark: {split: test, samples: 6, seeds: [0], num_inference_steps: 2}, baselines: [no_control]}"""
)
HEAD = """
    import sys
    from ray.cluster_utils import Cluster
    head, *others = [{"num_cpus": max(1, 2 * gpus), "num_gpus": gpus} for gpus in map(int, sys.argv[1:])]
    cluster = Cluster(initialize_head=True, head_node_args=head | {"include_dashboard": False})
    members = [cluster.add_node(**node) for node in others]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "join":
            members.append(cluster.add_node(num_cpus=1))
        elif line.strip() == "kill":
            cluster.remove_node(members.pop(), allow_graceful=False)
        print("done", flush=True)
"""


class Machines:
    """A Ray cluster of a head and some more nodes, each with one core, or with two cores for each of its
    GPUs: these are numbers that Ray counts.
    """

    def __init__(self, *gpus: int) -> None:  # of the head, then of each other node
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HEAD), *map(str, gpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=OPEN,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def ask(self, what: str) -> None:
        assert self.process.stdin and self.process.stdout
        print(what, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline().strip() == "done"

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def machines() -> Iterator[Callable[..., Machines]]:
    started: list[Machines] = []

    def start(*gpus: int) -> Machines:
        started.append(Machines(*gpus))
        return started[-1]

    yield start
    for each in started:
        each.close()


def begin(folder: Path, manifest: Path, machines: Machines, stages: str) -> subprocess.Popen[str]:
    words = [*COMMAND, "run", str(manifest), "--stages", stages, "--address", machines.address]
    return subprocess.Popen(
        words, cwd=folder, env=OPEN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(root: Path, process: subprocess.Popen[str], kind: str, **facts: Any) -> None:
    """Until there is such an event, or the run has ended."""
    while process.poll() is None:
        for event in events.read(root):
            if event["event"] == kind and facts.items() <= event.items():
                return
        time.sleep(0.1)


def at_work(stage: str) -> bool:
    """Whether a worker of this machine is at a job of the stage."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{stage} "):
                return True
    return False


def contents(root: Path) -> dict[str, str]:
    """Shard -> its hash, of what does not tell seconds."""
    rows = Catalog(Workspace(root)).query(
        "SELECT shard, sha256 FROM shards WHERE kind IN ('images', 'latents')"
    )
    return dict(rows)


def maps(root: Path) -> list[tuple[Any, ...]]:
    rows = Catalog(Workspace(root)).query(
        "SELECT image_id, condition, status, reason FROM annotations ORDER BY ALL"
    )
    return list(rows)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_is_killed_in_a_stage_changes_nothing(
    stage: str,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    machines: Callable[..., Machines],
    tmp_path: Path,
) -> None:
    folder(30)
    two = machines(0, 0)
    sections = {"train": TRAIN, "evaluate": EVALUATE, "shard_images": "2"}
    path = manifest(**sections)
    before = ",".join(STAGES[: STAGES.index(stage)])
    if before:
        assert begin(tmp_path, path, two, before).wait(timeout=300) == 0
    process = begin(tmp_path, path, two, stage)
    while process.poll() is None and not at_work(stage):
        time.sleep(0.02)
    two.ask("kill")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "Traceback" not in out + err
    alone = machines(0)
    other = manifest(**sections | {"workspace": "undisturbed"})
    assert begin(tmp_path, other, alone, ",".join(STAGES[: STAGES.index(stage) + 1])).wait(timeout=300) == 0
    assert contents(tmp_path / "ws") == contents(tmp_path / "undisturbed")
    assert maps(tmp_path / "ws") == maps(tmp_path / "undisturbed")
    columns = {"train": "runs", "generate": "samples", "score": "sample_scores"}
    if stage in columns:
        counts = [
            Catalog(Workspace(tmp_path / name)).query(f"SELECT count(*) FROM {columns[stage]}")
            for name in ("ws", "undisturbed")
        ]
        assert counts[0] == counts[1] != [(0,)]


@pytest.mark.slow
def test_a_node_that_joins_late_gets_jobs(
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    machines: Callable[..., Machines],
    tmp_path: Path,
) -> None:
    folder(400)
    one = machines(0)
    process = begin(tmp_path, manifest(shard_images="1", conditions="{cartoon: {}}"), one, "ingest,annotate")
    wait_for(tmp_path / "ws", process, "commit")
    one.ask("join")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    kinds = [event["event"] for event in events.read(tmp_path / "ws")]
    assert "node joined" in kinds and "node unfit" not in kinds


def stay(args: Path, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> None:
    """Until the file `args` is there."""
    while not args.exists():
        time.sleep(0.05)


@pytest.mark.slow
def test_jobs_that_need_little_of_a_gpu_join_those_that_had_it_alone(
    machines: Callable[..., Machines], tmp_path: Path
) -> None:
    known: list[Measured] = []
    most = {False: 0, True: 0}
    with cluster(address=machines(2, 2).address) as two:

        def watch() -> int:
            used = two.ray.cluster_resources()["CPU"] - two.ray.available_resources().get("CPU", 0)
            most[bool(known)] = max(most[bool(known)], round(used))
            if most[False] == 4:
                known.append(Measured(2**30, 80 * 2**30, 0.3))
            if most[True] == 7:
                (tmp_path / "go").touch()
            return 0

        jobs = [Job(str(number), tmp_path / "go", ()) for number in range(7)]
        shares = GpuShares(1, lambda: two.gpus, lambda job: known[0] if known else None)
        two.run(stay, jobs, lambda ended: None, label="stay", total=7, each=shares, watch=watch)
    assert most == {False: 4, True: 7}


RUNS = ", ".join(
    f"{{conditions: [canny], seed: {seed}, images: 96, batch: 4, checkpoint_every: 8, lr: 1.0e-3}}"
    for seed in range(13)
)


def begun(root: Path) -> list[Path]:
    """Marks of runs at work."""
    return list((root / "checkpoints").glob(f"{TEMPORARY}*-began"))


def learned(root: Path) -> dict[str, dict[str, str]]:
    """Run -> hashes of the files of weights that it ended with, those of its optimizer too."""
    runs = Catalog(Workspace(root)).query("SELECT run, checkpoint FROM runs WHERE status = 'complete'")
    return {
        run: {
            str(file.relative_to(root / place)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted((root / place).rglob("*.safetensors"))
        }
        for run, place in runs
    }


@pytest.mark.slow
def test_thirteen_runs_on_eight_gpus_of_three_nodes_end_alike_where_a_node_is_killed(
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    machines: Callable[..., Machines],
    tmp_path: Path,
) -> None:
    """The GPUs are numbers that Ray counts: what is tried is how runs are placed, and that they move."""
    folder(24)
    sections = {"train": f"{{base: random, runs: [{RUNS}]}}"}
    path = manifest(**sections)
    three = machines(3, 3, 2)
    assert begin(tmp_path, path, three, "ingest,annotate,encode").wait(timeout=300) == 0
    process, root = begin(tmp_path, path, three, "train"), tmp_path / "ws"
    while process.poll() is None and len(begun(root)) < 8:
        time.sleep(0.05)
    three.ask("kill")
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    kinds = [event["event"] for event in events.read(root)]
    assert "node lost" in kinds and "worker lost" in kinds, "a run was on the node that was killed"
    other = manifest(**sections | {"workspace": "undisturbed"})
    assert begin(tmp_path, other, machines(0), "ingest,annotate,encode,train").wait(timeout=600) == 0
    assert len(learned(root)) == 13
    assert learned(root) == learned(tmp_path / "undisturbed")


@pytest.fixture
def needs(
    folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> Iterator[nodes.Needs]:
    folder(1)
    path = manifest(source=f"{{kind: folder, path: {tmp_path}/photos}}", workspace=f"{tmp_path}/ws")
    plan = make(load(path), here=False)
    plan.workspace.create()
    with plan.workspace.probe() as probe:
        yield requirements.of_nodes(plan, probe, STAGES)


def test_a_node_that_sees_everything_lacks_nothing(needs: nodes.Needs) -> None:
    assert nodes.lacking(needs, "The node") == []
    assert needs.roots and needs.code == nodes.code_version()


def test_what_a_node_does_not_see_is_one_sentence_with_its_path_and_what_to_do(needs: nodes.Needs) -> None:
    other = replace(needs.probe, token="of another folder")
    gone = replace(needs.probe, path=Path("/nowhere/ws/.tmp-probe-1"))
    for probe in (other, gone):
        (line,) = nodes.lacking(replace(needs, probe=probe), "The node a")
        assert line.startswith("The node a ") and str(probe.path.parent) in line and "mount" in line
    (line,) = nodes.lacking(replace(needs, roots=("/nowhere/photos",)), "The node a")
    assert line.startswith("The node a does not see the source /nowhere/photos (it is not there): mount")
    (line,) = nodes.lacking(replace(needs, code="other"), "The node a")
    assert "another version of ControlMill" in line and "install" in line
    (line,) = nodes.lacking(replace(needs, lacks=lambda: ["hed-bsds500 needs its weights"]), "The node a")
    assert line == "The node a: hed-bsds500 needs its weights"


def test_a_node_that_dies_while_it_is_asked_is_no_reason_to_refuse_the_run() -> None:
    from ray import exceptions

    def get(error: Exception) -> Any:
        raise error

    ray = SimpleNamespace(get=get, exceptions=exceptions)
    assert nodes._answer(ray, exceptions.NodeDiedError("dead or unavailable"), "The node a") == []
    assert nodes._answer(ray, exceptions.LocalRayletDiedError(), "The node a") == []
    (line,) = nodes._answer(ray, exceptions.WorkerCrashedError(), "The node a")
    assert line.startswith("The node a can't run ControlMill (") and line.endswith("version there")


@pytest.mark.slow
def test_a_run_is_refused_before_any_work_where_a_node_does_not_see_the_workspace(
    needs: nodes.Needs, machines: Callable[..., Machines]
) -> None:
    from pipeline import MillError
    from pipeline.cluster import Cluster

    here = Cluster(address=machines(0, 0).address)
    here.needs = replace(needs, roots=("/nowhere/photos",))
    try:
        with pytest.raises(MillError, match="does not see the source /nowhere/photos") as caught:
            here._prove()
        assert len(str(caught.value).splitlines()) == 2, "one sentence for each of two nodes"
    finally:
        here.close()
