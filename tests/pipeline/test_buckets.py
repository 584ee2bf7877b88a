"""Whole runs in a workspace that lies in a bucket, against a real S3 API on loopback that also fails.

Jobs run in the driver's process, as if on a machine of their own: with another cache.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.s3_server import Fault, Gate
from pipeline import MillError, manifest
from pipeline import run as flow
from pipeline.catalog import Catalog, snapshots
from pipeline.cluster import Cluster
from pipeline.cluster.jobs import Job
from pipeline.plan import load_saved
from pipeline.run import RunOptions, run
from pipeline.storage import copies, lease, shards, stores
from pipeline.storage.workspace import LEASE, Workspace, workspace_at

Write = Callable[..., Path]
STAGES = ("ingest", "annotate")
FACTS = "SELECT * EXCLUDE (committed) FROM shards ORDER BY shard"
ROWS = {
    "images": "SELECT * FROM images ORDER BY image_id",
    "annotations": "SELECT * EXCLUDE (seconds) FROM annotations ORDER BY image_id, condition",
    "pairs": "SELECT * FROM pairs ORDER BY image_id, condition",
}


class Killed(BaseException):
    """What ends a driver without its saying anything."""


class OneMachine(Cluster):
    """A job after the other, each with the cache of another machine."""

    workers, gpus, share, device, cores_of_a_node = 1, 0, 0.0, "cpu", 1  # type: ignore[assignment]

    def __init__(self, cache: Path) -> None:
        super().__init__(workers=1)
        self.cache, self.jobs, self.most = cache, 0, 10**9

    def run(  # type: ignore[override]
        self, function: Callable[..., Any], jobs: Iterable[Job], done: Any, *, watch: Any = None, **_: Any
    ) -> None:
        for job in jobs:
            self.jobs += 1
            if self.jobs > self.most:
                raise Killed
            here = os.environ[stores.CACHE]
            os.environ[stores.CACHE] = str(self.cache)
            try:
                made = function(job.args, job.rows, job.poison_rows, False)
            finally:
                os.environ[stores.CACHE] = here
            done([(job, made)])
            self.meanwhile()
            if watch:
                watch()

    def close(self) -> None:
        pass


@pytest.fixture
def machine(server: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneMachine]:
    """The driver's cache is `here`, that of its workers `there`."""
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "here"))
    worker = OneMachine(tmp_path / "there")
    monkeypatch.setattr(flow, "cluster", lambda **_: contextlib.nullcontext(worker))
    server.requests.clear()
    yield worker
    server.choose = lambda number, method: None


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}"


def make(path: Path, stages: tuple[str, ...] = STAGES) -> list[str]:
    said: list[str] = []
    run(manifest.load(path), RunOptions(stages), said.append)
    return said


def rows(place: str | Path) -> dict[str, list[tuple[Any, ...]]]:
    catalog = Catalog(workspace_at(place))
    return {name: catalog.query(sql) for name, sql in ROWS.items()}


def maps(place: str | Path) -> dict[str, list[Any]]:
    workspace = workspace_at(place)
    return {
        workspace.relative(path): shards.read(path).drop_columns(["seconds"]).to_pylist()
        for path in workspace.all_shards()
        if "maps" in path.parts
    }


@pytest.mark.slow
def test_a_run_in_a_bucket_makes_what_a_run_in_a_folder_makes(
    machine: OneMachine,
    server: Gate,
    address: str,
    folder: Callable[[int], Path],
    manifest: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder(12)
    monkeypatch.chdir(tmp_path)
    conditions = "{canny: {}, hough: {}}"
    make(manifest(conditions=conditions))
    assert not server.requests
    said = make(manifest(conditions=conditions, workspace=address), (*STAGES, "report"))
    requests = server.requests.copy()
    assert said[0] == f"tiny: starting in {address}" and not any("/here/" in line for line in said)
    assert rows(address) == rows(tmp_path / "ws") and maps(address) == maps(tmp_path / "ws")
    # 3 parts of images, 2 conditions of each: a PUT and a HEAD for each, and none of them is listed
    asked = [(method, path) for method, path in requests if ".parquet" in path]
    assert len([1 for method, _ in asked if method == "PUT"]) == 9
    assert len([1 for method, _ in asked if method == "HEAD"]) == 9
    assert len({path for method, path in asked if method == "PUT"}) == 9
    listed = [path for _, path in requests if "list-type" in path]
    assert len(listed) == 4  # shards, samples, scores of a workspace without a catalog; changes of its images
    assert not list((tmp_path / "there").rglob("part-*"))  # shards are not kept
    # on another machine there is nothing left to do
    machine.jobs, before = 0, rows(address)
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
    server.requests.clear()
    make(manifest(conditions=conditions, workspace=address))
    assert machine.jobs == 0 and rows(address) == before
    assert not [path for method, path in server.requests if method == "PUT" and ".parquet" in path]


@pytest.mark.slow
def test_what_was_not_in_the_last_snapshot_is_adopted_elsewhere(
    machine: OneMachine,
    server: Gate,
    address: str,
    folder: Callable[[int], Path],
    manifest: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder(12)
    monkeypatch.chdir(tmp_path)
    make(manifest(workspace=address), ("ingest",))
    with monkeypatch.context() as killed:
        killed.setattr(snapshots.Snapshots, "save", lambda *_, **__: None)
        killed.setattr(lease.Lease, "end", lambda self: self._ended.set())
        machine.jobs, machine.most = 0, 2
        with pytest.raises(Killed):
            make(manifest(workspace=address))
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
    monkeypatch.setattr(lease, "LIFE", 1.0)
    machine.jobs, machine.most = 0, 10**9
    server.requests.clear()
    make(manifest(workspace=address))
    assert machine.jobs == 1  # the third part; two were there
    assert len([1 for method, path in server.requests if method == "PUT" and ".parquet" in path]) == 1
    make(manifest())
    assert rows(address) == rows(tmp_path / "ws")


@pytest.mark.slow
def test_a_shard_that_was_made_again_is_not_hidden_by_an_older_snapshot(
    machine: OneMachine, address: str, folder: Callable[[int], Path], manifest: Write, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder(8)
    monkeypatch.chdir(tmp_path)
    make(manifest(workspace=address))
    workspace = workspace_at(address)
    catalog = Catalog(workspace)
    ((shard,),) = catalog.query("SELECT shard FROM shards WHERE kind = 'maps' AND part = 0")
    driver = snapshots.Snapshots(catalog, lambda: True)
    driver.note(shard)
    stored = shards.read(workspace.root / shard).to_pylist()
    metadata = shards.metadata(workspace.root / shard)
    again = [row | {"reason": "made again"} for row in stored]
    shards.write(workspace.root / shard, again, shards.MAPS, metadata, replace=True)
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
    make(manifest(workspace=address))
    sql = "SELECT DISTINCT reason FROM annotations JOIN shards USING (shard) WHERE shards.part = 0"
    assert Catalog(workspace_at(address)).query(sql) == [("made again",)]
    assert not list(stores.below(workspace.root / snapshots.REMOVED))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_faults_on_the_way_change_nothing(
    machine: OneMachine,
    server: Gate,
    address: str,
    folder: Callable[[int], Path],
    manifest: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    folder(8)
    monkeypatch.chdir(tmp_path)
    make(manifest())
    draw = random.Random(seed)
    kinds = [503, 503, 429, 500, 0.05, "torn", "half", "lost"]
    server.choose = lambda number, method: draw.choice(kinds) if draw.random() < 0.15 else None
    make(manifest(workspace=address))
    server.choose = lambda number, method: None
    assert rows(address) == rows(tmp_path / "ws") and maps(address) == maps(tmp_path / "ws")


@pytest.mark.slow
def test_a_store_that_stops_answering_ends_the_run_and_loses_nothing(
    machine: OneMachine,
    server: Gate,
    address: str,
    folder: Callable[[int], Path],
    manifest: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder(12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(stores.PATIENCE, "retries", 1)
    stores._store.cache_clear()
    puts: list[int] = []
    server.choose = lambda number, method: (
        503 if len(puts) > 8 else puts.append(number) if method == "PUT" else None
    )
    with pytest.raises(MillError, match=r"The store of s3://bucket failed .*run the same command again"):
        make(manifest(workspace=address))
    stores._store.cache_clear()
    server.choose = lambda number, method: None
    make(manifest(workspace=address))
    make(manifest())
    assert rows(address) == rows(tmp_path / "ws")


@pytest.mark.slow
def test_a_catalog_is_made_again_from_the_shards(
    machine: OneMachine, address: str, folder: Callable[[int], Path], manifest: Write, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder(8)
    monkeypatch.chdir(tmp_path)
    make(manifest(workspace=address))
    before = rows(address)
    copies.remove(workspace_at(address).catalog)
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
    said = make(manifest(workspace=address))
    assert "The catalog is missing; making it again from the shards." in said
    assert rows(address) == before and machine.jobs == 4


@pytest.mark.slow
def test_repair_deletes_the_object_and_the_next_run_makes_it_again(
    machine: OneMachine, address: str, folder: Callable[[int], Path], manifest: Write, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pipeline.commands.verify import problems

    folder(8)
    monkeypatch.chdir(tmp_path)
    make(manifest(workspace=address))
    workspace, before = workspace_at(address), rows(address)
    broken = workspace.all_shards()[-1]
    content = bytes(stores.read(broken))
    stores.put(broken, content[:100] + bytes(100) + content[200:])
    said: list[str] = []
    assert len(problems(Catalog(workspace), repair=True, say=said.append)) == 1
    assert stores.head(broken) is None and "removed; the next run makes it again" in said[1]
    make(manifest(workspace=address))
    assert rows(address) == before and not problems(Catalog(workspace), repair=False, say=said.append)


def test_a_damaged_copy_of_a_whole_shard_is_brought_again(
    machine: OneMachine,
    address: str,
    folder: Write,
    manifest: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder(4)
    monkeypatch.chdir(tmp_path)
    make(manifest(workspace=address))
    shard = next(path for path in workspace_at(address).all_shards() if "maps" in path.parts)
    whole = shards.read_row(shard, 1, ["map"])
    copy, content = copies.copy_of(shard), copies.copy_of(shard).read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for damaged in (bytes(len(content) - footer) + content[-footer:], content[:300], b""):
        copy.write_bytes(damaged)
        assert shards.read_row(shard, 1, ["map"]) == whole and copy.read_bytes() == content


def test_a_damaged_note_of_a_shard_that_was_taken_out_is_told_by_its_name(
    machine: OneMachine,
    address: str,
    folder: Write,
    manifest: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder(4)
    monkeypatch.chdir(tmp_path)
    make(manifest(workspace=address))
    workspace, before = workspace_at(address), rows(address)
    shard = workspace.all_shards()[-1]
    notes = snapshots.Snapshots(Catalog(workspace), lambda: True)
    notes.note(workspace.relative(shard))
    (note,) = stores.below(workspace.root / snapshots.REMOVED)
    stores.put(note.path, b"\xff\xfe garbage")
    notes.take_out_removed()
    assert rows(address) != before
    make(manifest(workspace=address))
    assert rows(address) == before and not list(stores.below(workspace.root / snapshots.REMOVED))


# -- the lease -------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.1, "LIFE": 1.0, "LOOK": 0.1}.items():
        monkeypatch.setattr(lease, name, seconds)


def test_two_drivers_are_one_sentence(
    machine: OneMachine, address: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workspace_at(address)
    with first.lock() as is_held:
        with (
            pytest.raises(MillError, match=rf"Another run \(process {os.getpid()}\) is working in {address}"),
            first.lock(),
        ):
            pass
        monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
        with (
            pytest.raises(MillError, match=rf"Another run \(.+, process \d+\) is working in {address}: wait"),
            workspace_at(address).lock(),
        ):
            pass
        assert is_held()
    assert not list(stores.below(first.root))
    with workspace_at(address).lock():
        pass


def test_the_lease_of_a_dead_driver_is_taken_over(
    machine: OneMachine, address: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        with monkeypatch.context() as killed:
            killed.setattr(lease.Lease, "end", lambda self: self._ended.set())
            with contextlib.suppress(Killed), workspace_at(address).lock():
                raise Killed

    die()
    began = time.monotonic()
    with workspace_at(address).lock():  # the same machine knows at once
        assert time.monotonic() - began < 0.9
    die()
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
    said: list[str] = []
    with workspace_at(address).lock(said.append):
        assert time.monotonic() - began > 1.0
    assert f"{address} is held by another run" in said[0]


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["", "in the background"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """As a terminal starts a command, and as a script starts it with `&`."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_driver_that_lost_its_lease_stops_with_one_sentence(
    machine: OneMachine, address: str, quick: None, server: Gate, interrupts: None
) -> None:
    workspace, handler = workspace_at(address), signal.getsignal(signal.SIGINT)
    with pytest.raises(MillError, match=rf"{address} was taken over by other, process 1,"):  # noqa: SIM117
        with workspace.lock() as is_held:
            stores.put(workspace.root / LEASE, b'{"token": "other", "who": "other, process 1"}')
            for _ in range(100):
                time.sleep(0.1)
    assert not is_held() and lease.holder(workspace.root / LEASE) == "other, process 1"
    assert signal.getsignal(signal.SIGINT) == handler
    stores.delete(workspace.root / LEASE)
    server.choose = lambda number, method: "lost" if method == "PUT" and number % 2 else None
    with workspace.lock() as is_held:  # answers get lost, the lease does not
        time.sleep(1.0)
        assert is_held()
    server.choose = lambda number, method: None
    assert not list(stores.below(workspace.root))


def test_a_late_worker_never_changes_a_shard(machine: OneMachine, address: str) -> None:
    path = Workspace(workspace_at(address).root).maps("canny", "0" * 16, 0)
    row = {"image_id": "a", "status": "ok", "reason": "", "map": b"first", "meta": "{}", "draws": "{}"}
    facts = {"kind": "maps", "key": "0" * 16, "part": 0, "made_from": "one"}
    first = shards.write(path, [row], shards.MAPS, facts)
    late = shards.write(path, [row | {"map": b"late"}], shards.MAPS, facts)
    assert (first.sha256, first.bytes) == (late.sha256, late.bytes)
    assert shards.read_row(path, 0, ["map"]) == {"map": b"first"}
    with pytest.raises(MillError, match=rf"{address}/.* was written by another process from other inputs"):
        shards.write(path, [row], shards.MAPS, facts | {"made_from": "two"})
    assert shards.adopt(path, "two") is None and stores.head(path) is None


def test_a_bucket_that_can_not_be_worked_in_is_one_sentence_before_any_work(
    machine: OneMachine, folder: Callable[[int], Path], manifest: Write, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder(1)
    monkeypatch.chdir(tmp_path)
    for workspace, words in {
        "s3://no-such-bucket/ws": "There is no bucket s3://no-such-bucket",
        "ftp://bucket/ws": r"manifest\.yaml:2: workspace: 'ftp://bucket/ws' is no address of a bucket",
        "s3://bucket/../ws": "is no address of a bucket",
    }.items():
        with pytest.raises(MillError, match=words):
            make(manifest(workspace=workspace))
    assert machine.jobs == 0


@pytest.mark.slow
def test_commands_take_addresses(
    machine: OneMachine, address: str, folder: Callable[[int], Path], manifest: Write, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from click.testing import CliRunner

    from pipeline.cli import main

    folder(4)
    monkeypatch.chdir(tmp_path)
    make(manifest(workspace=address))
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
    for words, told in {
        f"status {address}": f"{address}\nimages     4 ok",
        f"sql {address} --csv 'SELECT count(*) AS n FROM pairs'": "n\n4\n",
        f"verify {address}": "2 shards checked, 0 problems",
        f"catalog rebuild {address}": "2 shards are in the catalog.",
        f"export {address} out --condition canny --to diffusers": "",
        "status s3://bucket/nothing": "s3://bucket/nothing is no workspace",
    }.items():
        answer = CliRunner().invoke(main, words if "'" not in words else _words(words))
        assert told in answer.output, answer.output
    assert load_saved(workspace_at(address)).workspace.address == address
    assert len(list((tmp_path / "out").rglob("*.png"))) >= 4
    assert replace(RunOptions(), limit=1).limit == 1


def _words(line: str) -> list[str]:
    import shlex

    return shlex.split(line)


# -- training, and real processes ------------------------------------------------------------------------

TRAIN = "{base: random, runs: [{conditions: [canny], images: 16, batch: 4, lr: 1.0e-3, checkpoint_every: 4}]}"
EVALUATE = (
    "{benchmark: {split: test, samples: 3, seeds: [0], num_inference_steps: 2}, baselines: [no_control]}"
)
SECTIONS = {"train": TRAIN, "evaluate": EVALUATE, "split": "{validation: 0.1, test: 0.3, salt: 3}"}
ALL_STAGES = ("ingest", "annotate", "encode", "train", "generate", "score", "report")


@pytest.mark.slow
def test_a_training_goes_on_elsewhere_and_everything_after_it_is_the_same(
    machine: OneMachine, server: Gate, address: str, folder: Callable[[int], Path], manifest: Write,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from train import fit as fitting
    from train.integrity import whole

    folder(14)
    monkeypatch.chdir(tmp_path)
    make(manifest(**SECTIONS), ALL_STAGES)
    path = manifest(**SECTIONS, workspace=address)
    saved = fitting.save

    def killed(*arguments: Any) -> None:
        done = saved(*arguments)
        if done.images == 8:
            raise Killed

    with monkeypatch.context() as first:
        first.setattr(fitting, "save", killed)
        with pytest.raises(Killed):
            make(path, ALL_STAGES)
    for cache in ("here", "there"):  # both machines are lost
        (tmp_path / cache).rename(tmp_path / f"lost {cache}")
    server.requests.clear()
    make(path, ALL_STAGES)
    workspace = workspace_at(address)
    stored = [
        each.path.relative_to(workspace.root / "checkpoints").parts
        for each in stores.below(workspace.root / "checkpoints")
    ]
    (name,) = {parts[0] for parts in stored}
    there = {parts[1] for parts in stored}
    assert {"step-00000003", "step-00000004", "train.jsonl"} <= there and "step-00000001" not in there
    last, plain = (
        whole(Workspace(at).run(name) / "step-00000004") for at in (workspace.root, tmp_path / "ws")
    )
    assert last.meta["files"] == plain.meta["files"]
    logs = [(Workspace(at).run(name) / "train.jsonl").read_text() for at in (workspace.root, tmp_path / "ws")]
    assert logs[0].count("\n") == logs[1].count("\n")
    sql = "SELECT * FROM scores ORDER BY ALL"
    assert Catalog(workspace).query(sql) == Catalog(Workspace(tmp_path / "ws")).query(sql)
    said: list[str] = []
    from pipeline.commands.verify import problems

    monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
    snapshots.fetch(workspace_at(address))
    assert not problems(Catalog(workspace_at(address)), repair=False, say=said.append)
    assert "2 checkpoints checked" in said[-1]
    machine.jobs = 0
    make(path, ALL_STAGES)
    assert machine.jobs == 0


@pytest.mark.slow
def test_an_old_listing_of_a_training_that_ended_is_not_believed(
    machine: OneMachine, server: Gate, address: str, folder: Callable[[int], Path], manifest: Write,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pipeline.experiment import under_way

    folder(14)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(under_way, "BETWEEN", 0.0)
    path, old = manifest(**SECTIONS, workspace=address), 1000

    def choose(number: int, method: str) -> Fault | None:
        """Listings are as they were before the training, so many times behind its end."""
        nonlocal old
        asked = server.requests[-1][1]
        ended = any(method == "PUT" and "step-00000004/meta.json" in of for method, of in server.requests)
        if ended and "list-type" in asked and "checkpoints" in asked and old:
            old -= 1
            return "old"
        return None

    server.choose = choose
    with pytest.raises(MillError, match=r"last checkpoint \(step-00000004\) can't be seen in s3://"):
        make(path, ALL_STAGES)
    old = under_way.LISTINGS - 1
    make(path, ALL_STAGES)
    catalog = Catalog(workspace_at(address))
    assert old == 0 and catalog.query("SELECT status FROM runs") == [("complete",)]
    assert catalog.query("SELECT count(*) FROM samples WHERE status = 'ok'") == [(6,)]


@pytest.mark.slow
def test_a_driver_that_is_killed_is_followed_by_another_machine(
    server: Gate, address: str, folder: Callable[[int], Path], manifest: Write, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import subprocess

    from tests.conftest import COMMAND

    folder(40)
    monkeypatch.chdir(tmp_path)
    path = manifest(conditions="{canny: {}, hough: {}, cartoon: {}}", workspace=address)
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", stores.CACHE: str(tmp_path / "one")}
    command = [*COMMAND, "run", str(path), "--stages", "ingest,annotate", "--workers", "2"]
    server.requests.clear()

    def written() -> list[str]:
        return [path for method, path in server.requests if method == "PUT" and ".parquet" in path]

    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 200
        while len(written()) < 16 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        first.kill()
    environment[stores.CACHE] = str(tmp_path / "two")
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"{address} is held by another run" in second.stdout
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "three"))
    snapshots.fetch(workspace_at(address))
    made = rows(address)
    assert len(made["images"]) == 40 and len(made["annotations"]) == 120
    third = subprocess.run(
        [*command[:4], str(manifest(conditions="{canny: {}, hough: {}, cartoon: {}}")), *command[5:]],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert third.returncode == 0, third.stdout + third.stderr
    assert made == rows(tmp_path / "ws") and maps(address) == maps(tmp_path / "ws")
