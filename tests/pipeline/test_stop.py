"""A run tells what it does while it is under way, and can be asked to stop and be continued elsewhere."""

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline import MillError
from pipeline.catalog import Catalog
from pipeline.catalog.connections import CatalogFile
from pipeline.cli.group import Mill
from pipeline.cluster import Cluster, Drained
from pipeline.cluster.jobs import Ended, Job
from pipeline.cluster.progress import Rate, stage_progress
from pipeline.commands.status import progress_text
from pipeline.manifest import load
from pipeline.run import RunOptions, run
from pipeline.storage import events, requests
from pipeline.storage.workspace import Workspace
from tests.conftest import COMMAND, OPEN, Command

CONDITIONS = "{canny: {}, hough: {}}"


def wait(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> int:
    time.sleep(0.3)
    return len(rows)


@pytest.mark.slow
def test_what_is_under_way_is_committed_and_the_rest_is_left() -> None:
    started, done = Cluster(workers=1), list[str]()
    started.stopping = lambda: len(done) > 2

    def commit(ended: Ended[int]) -> None:
        done.extend(job.name for job, _ in ended)

    try:
        with pytest.raises(Drained, match="Stopped in test, as asked"):
            started.run(wait, (Job(str(n), {}, (n,)) for n in range(100)), commit, label="test", total=100)
        assert sorted(done, key=int) == [str(n) for n in range(len(done))] and 3 <= len(done) < 20
        started.stopping = lambda: True
        started.run(wait, [], commit, label="test", total=0)  # nothing was left: that is no stop
    finally:
        started.close()


def test_an_event_is_a_whole_line_also_after_one_that_was_torn(tmp_path: Path) -> None:
    events.say(tmp_path, "run begins", stages=("ingest",), path=tmp_path)
    with (tmp_path / events.EVENTS).open("a") as file:
        file.write('{"time": "2026')
    events.say(tmp_path, "run ends", reason="two\nlines, \u00e9")
    assert [event["event"] for event in events.read(tmp_path)] == ["run begins", "run ends"]
    assert events.read(tmp_path)[1]["reason"] == "two\nlines, \u00e9"
    assert len((tmp_path / events.EVENTS).read_text().splitlines()) == 3
    events.say(tmp_path / "gone", "run begins")  # never ends a run


def test_what_a_worker_of_a_killed_driver_wrote_late_is_swept_when_the_next_run_ends(
    folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(1)
    late = tmp_path / "ws" / "shards" / "images" / ".tmp-1-part-000000.parquet"

    def say(line: str) -> None:
        late.parent.mkdir(parents=True, exist_ok=True)
        late.touch()

    given = load(
        manifest(workspace=str(tmp_path / "ws"), source=f"{{kind: folder, path: {tmp_path / 'photos'}}}")
    )
    run(given, RunOptions(("report",)), say)
    assert late.parent.exists() and not late.exists()


def test_an_error_on_the_way_out_of_an_interrupt_is_a_stop_and_no_traceback() -> None:
    @click.command()
    def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("connection is busy with another call")

    told = CliRunner().invoke(Mill("controlmill", commands={"work": work}), ["work"])
    assert told.exit_code == 1 and "controlmill: stopped; what was committed is kept" in told.output


def test_a_second_interrupt_does_not_leave_a_query_under_way(tmp_path: Path) -> None:
    class Asked:
        """A connection that is interrupted twice before its query ends."""

        interrupted = 0

        def interrupt(self) -> None:
            self.interrupted += 1
            if self.interrupted < 3:
                raise KeyboardInterrupt
            ended.set()

    ended, asked = threading.Event(), Asked()
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        CatalogFile(tmp_path / "catalog.duckdb", "ws").ask(asked, lambda: ended.wait(20))  # type: ignore[arg-type]
    assert asked.interrupted == 3 and ended.is_set()


def test_stop_needs_a_run_and_is_seen_by_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(MillError, match="No run is under way"):
        requests.ask_to_stop(workspace)
    with workspace.lock():
        requests.ask_to_stop(workspace)
        assert requests.asked_to_stop(workspace)
        requests.forget(workspace)
        assert not requests.asked_to_stop(workspace)
    assert not requests.is_under_way(workspace)


def test_progress_is_told_in_images_and_by_condition(tmp_path: Path) -> None:
    rate = Rate("annotate", 40, 240, "images", 2.0, 100.0, {"hed": 2, "": 1}, 20.0)
    events.write_progress(tmp_path, stage_progress(rate, {"canny": 32, "hed": 16}))
    progress = events.read_progress(tmp_path)
    assert progress is not None
    assert progress_text(progress) == [
        "under way  annotate, 40 of 240 images, 2/s, 2 min left",
        "  canny            32 rows committed, 1.6/s, 2 min left",
        "  hed              16 rows committed, 0.8/s, 5 min left, 2 jobs at it",
    ]
    events.clear_progress(tmp_path)
    assert events.read_progress(tmp_path) is None and not list(tmp_path.iterdir())


def start(folder: Path, manifest: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "run", str(manifest), "--stages", "ingest,annotate", "--workers", "1"],
        cwd=folder,
        env=OPEN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_a_copy_of_its_workspace_and_makes_nothing_again(
    folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path, controlmill: Command
) -> None:
    folder(120)
    path = manifest(conditions=CONDITIONS, shard_images="1")
    process = start(tmp_path, path)
    workspace = Workspace(tmp_path / "ws")
    while not (committed(workspace)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    assert controlmill("stop", "ws").returncode == 0
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "as asked" in out and not err.startswith("controlmill:"), out + err
    assert "Traceback" not in out + err
    kept = committed(workspace)
    assert not requests.asked_to_stop(workspace)
    told = [event["event"] for event in events.read(workspace.root)]
    assert told[0] == "run begins" and told[-2:] == ["drained", "run ends"] and "commit" in told
    shutil.copytree(tmp_path / "ws", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "ws")
    path.write_text(path.read_text().replace("workspace: ws", "workspace: elsewhere"))
    ran = controlmill("run", path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    now = committed(Workspace(tmp_path / "elsewhere"))
    assert len(now) == 360 and {shard: now[shard] for shard in kept} == kept
    status = json.loads(controlmill("status", "elsewhere", "--json").stdout)
    assert status["under way"] is None and status["conditions"]["canny"]["to do"] == 0
    assert controlmill("stop", "elsewhere").returncode == 1


def committed(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """Shard -> its hash and when it was committed."""
    if not workspace.catalog.exists():
        return {}
    rows = Catalog(workspace).query(
        "SELECT shard, sha256, committed::VARCHAR FROM shards WHERE kind = 'maps' OR kind = 'images'"
    )
    return {shard: (sha256, when) for shard, sha256, when in rows}
