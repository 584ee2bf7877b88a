"""kill -9 of the driver or of a worker at random moments, then the same command: nothing lost, nothing
double, nothing done twice.
"""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from pipeline import MillError
from pipeline.catalog import Catalog
from pipeline.storage.workspace import Workspace
from tests.conftest import COMMAND, OPEN, Command

pytestmark = pytest.mark.slow

IMAGES, CONDITIONS = 40, "{canny: {}, hough: {}, cartoon: {}}"
KILLS = 5
PATIENCE = 120.0


def start(root: Path, manifest: Path, address: str | None = None) -> subprocess.Popen[bytes]:
    """On the Ray cluster of that address; None: on one of its own, which dies with it."""
    command = [
        *COMMAND,
        "run",
        str(manifest),
        "--stages",
        "ingest,annotate",
        *(["--address", address] if address else []),
    ]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=OPEN)


def committed(catalog: Catalog) -> dict[str, tuple[Any, ...]]:
    """Each committed shard with the moment of its commit and of its writing."""
    try:
        rows = catalog.query("SELECT shard, committed, sha256 FROM shards")
    except MillError:
        return {}  # killed before the catalog was made
    return {
        path: (when, digest, (catalog.workspace.root / path).stat().st_mtime_ns)
        for path, when, digest in rows
    }


def wait_for_shards(catalog: Catalog, process: subprocess.Popen[bytes], count: int) -> None:
    """Until so many shards are committed, or the run has ended."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(catalog.workspace.root.rglob("part-*.parquet"))) >= count:
            return
        time.sleep(0.02)


def ray_workers(driver: int) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    if not psutil.pid_exists(driver):
        return found
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(
                ("ray::ingest", "ray::annotate", "ray::IDLE")
            ):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def workspace(folder: Callable[[int], Path], tmp_path: Path) -> Workspace:
    folder(IMAGES)
    return Workspace(tmp_path / "ws")


def check_complete(catalog: Catalog) -> None:
    assert catalog.query("SELECT count(*), count(DISTINCT image_id) FROM images WHERE status = 'ok'") == [
        (IMAGES, IMAGES)
    ]
    assert catalog.query("SELECT count(*), count(DISTINCT uri) FROM sources") == [(IMAGES, IMAGES)]
    assert catalog.query("SELECT count(*), count(DISTINCT (image_id, condition)) FROM annotations") == [
        (3 * IMAGES, 3 * IMAGES)
    ]
    assert catalog.query("SELECT count(*), count(DISTINCT shard) FROM shards") == [
        (IMAGES // 2 * 4, IMAGES // 2 * 4)
    ]


def test_killing_the_driver_at_random_moments_loses_and_doubles_nothing(
    workspace: Workspace, manifest: Callable[..., Path], tmp_path: Path, controlmill: Command, address: str
) -> None:
    catalog, path = Catalog(workspace), manifest(conditions=CONDITIONS, shard_images="2")
    draw = random.Random()
    seed = draw.randrange(10**6)
    draw.seed(seed)
    print(f"kill moments drawn from seed {seed}")
    kept: dict[str, tuple[Any, ...]] = {}
    for kill in range(KILLS):
        process = start(tmp_path, path, address if kill % 2 else None)
        wait_for_shards(catalog, process, len(kept) + draw.randint(0, 12))
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.wait()
        now = committed(catalog)
        assert {shard: now[shard] for shard in kept} == kept, f"kill {kill}: a committed shard was made again"
        kept = now
    last = start(tmp_path, path, address)
    assert last.wait(timeout=PATIENCE) == 0, last.stderr.read() if last.stderr else ""
    assert {shard: committed(catalog)[shard] for shard in kept} == kept
    check_complete(catalog)
    assert controlmill("verify", "ws").returncode == 0
    assert not list(workspace.root.rglob(".tmp-*"))


def test_killing_the_driver_while_it_carries_changes_out_ends_as_if_nothing_had_happened(
    workspace: Workspace,
    manifest: Callable[..., Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
    controlmill: Command,
    address: str,
) -> None:
    catalog, path = Catalog(workspace), manifest(conditions=CONDITIONS, shard_images="2")
    assert controlmill("run", path, "--stages", "ingest,annotate").returncode == 0
    before = committed(catalog)
    for number in range(8):
        photograph(100 + number).save(tmp_path / f"photos/{number:03d}.jpg")
    for number in range(8, 12):
        (tmp_path / f"photos/{number:03d}.jpg").unlink()
    (tmp_path / "photos/012.txt").write_text("other words")
    draw = random.Random()
    seed = draw.randrange(10**6)
    draw.seed(seed)
    print(f"kill moments drawn from seed {seed}")
    for kill in range(KILLS):
        process = start(tmp_path, path, address if kill % 2 else None)
        wait_for_shards(catalog, process, len(before) + draw.randint(0, 14))
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.wait()
    last = start(tmp_path, path, address)
    assert last.wait(timeout=PATIENCE) == 0, last.stderr.read() if last.stderr else ""
    assert {shard: committed(catalog)[shard] for shard in before} == before
    assert catalog.query("SELECT change, count(*) FROM changes GROUP BY ALL ORDER BY ALL") == [
        ("caption", 1),
        ("changed", 8),
        ("gone", 4),
    ]
    live = IMAGES - 4
    assert catalog.query("SELECT status, count(*) FROM images GROUP BY ALL ORDER BY ALL") == [
        ("gone", 12),
        ("ok", live),
    ]
    assert catalog.query("SELECT count(*), count(DISTINCT uri) FROM sources WHERE gone IS NULL") == [
        (live, live)
    ]
    assert catalog.query("SELECT count(*), count(DISTINCT (image_id, condition)) FROM annotations") == [
        (3 * live, 3 * live)
    ]
    assert controlmill("verify", "ws").returncode == 0
    assert not list(workspace.root.rglob(".tmp-*"))


def test_killing_workers_is_survived_by_the_run(
    workspace: Workspace, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    catalog = Catalog(workspace)
    process = start(tmp_path, manifest(conditions=CONDITIONS, shard_images="2"))
    killed = 0
    for count in (4, 20, 40):
        wait_for_shards(catalog, process, count)
        for worker in ray_workers(process.pid)[:1]:
            worker.kill()
            killed += 1
    assert process.wait(timeout=PATIENCE) == 0, process.stderr.read() if process.stderr else ""
    assert killed
    check_complete(catalog)


def test_sigterm_ends_a_run_with_one_sentence_and_the_same_command_goes_on(
    workspace: Workspace, manifest: Callable[..., Path], tmp_path: Path, address: str
) -> None:
    catalog, path = Catalog(workspace), manifest(conditions=CONDITIONS, shard_images="2")
    process = start(tmp_path, path)
    wait_for_shards(catalog, process, 6)
    process.terminate()
    assert process.wait(timeout=PATIENCE) == 1 and process.stderr
    told = process.stderr.read().decode()
    assert "controlmill: stopped; what was committed is kept" in told and "Traceback" not in told
    kept = committed(catalog)
    assert start(tmp_path, path, address).wait(timeout=PATIENCE) == 0
    assert {shard: committed(catalog)[shard] for shard in kept} == kept
    check_complete(catalog)


def test_status_and_sql_answer_while_a_run_is_going(
    workspace: Workspace, manifest: Callable[..., Path], tmp_path: Path, controlmill: Command, address: str
) -> None:
    catalog = Catalog(workspace)
    process = start(tmp_path, manifest(conditions=CONDITIONS, shard_images="1"))
    wait_for_shards(catalog, process, 10)
    answers = 0
    while process.poll() is None:
        told = controlmill("sql", "ws", "SELECT count(*) FROM annotations")
        assert told.returncode == 0, told.stderr
        assert controlmill("status", "ws").returncode == 0
        answers += 1
    assert process.returncode == 0 and answers
    second = start(tmp_path, tmp_path / "manifest.yaml", address)
    third = controlmill("run", tmp_path / "manifest.yaml", "--stages", "ingest,annotate")
    if third.returncode:  # both at work at one moment: the later one says so and leaves
        assert "Another run" in third.stderr
    assert second.wait(timeout=PATIENCE) in (0, 1)
