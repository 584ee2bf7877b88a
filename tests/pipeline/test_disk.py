"""A disk that fills up or turns read-only costs one sentence and status 1; with room again, the same command
completes.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.catalog import Catalog
from pipeline.storage.workspace import TEMPORARY, Workspace
from tests.conftest import Command
from tests.kept import differences, kept

pytestmark = pytest.mark.slow

STAGES = ("--stages", "ingest,annotate")
IMAGES = 8
DISK = 16 * 1024  # KiB


class Disk:
    """A small real file system at the workspace's place."""

    def __init__(self, root: Path) -> None:
        self.root, self.filler = root, root / "filler"

    def leave(self, free: int) -> None:
        """So many KiB free, the rest taken by somebody else's file."""
        self.make_room()
        room = os.statvfs(self.root).f_bavail * os.statvfs(self.root).f_frsize - free * 1024
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room)

    def make_room(self) -> None:
        self.filler.unlink(missing_ok=True)

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "ws"
    root.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}k", "tmpfs", str(root)],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if made.returncode:
        pytest.skip(f"a small disk can't be mounted here: {made.stderr.strip()}")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@pytest.fixture
def job(disk: Disk, folder: Callable[[int], Path], manifest: Callable[..., Path]) -> Path:
    """Eight images whose shards are larger than an empty catalog."""
    folder(IMAGES)
    return manifest(image="{resolution: 512, store: png}")


def sentence(ran: subprocess.CompletedProcess[str], word: str) -> None:
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    lines = [line for line in ran.stderr.strip().splitlines() if not re.match(r"\w+ +[\d,]+ of ", line)]
    assert len(lines) == 1 and lines[0].startswith("controlmill: ") and word in lines[0].lower(), ran.stderr


def committed(root: Path) -> set[tuple[str, str]]:
    return {
        (path, sha256) for path, sha256 in Catalog(Workspace(root)).query("SELECT shard, sha256 FROM shards")
    }


def completes(controlmill: Command, job: Path, root: Path, kept: set[tuple[str, str]]) -> None:
    ran = controlmill("run", job, *STAGES)
    assert ran.returncode == 0, ran.stderr
    catalog = Catalog(Workspace(root))
    assert catalog.query("SELECT count(*), count(DISTINCT image_id) FROM images WHERE status = 'ok'") == [
        (IMAGES, IMAGES)
    ]
    assert catalog.query("SELECT count(*), count(DISTINCT (image_id, condition)) FROM annotations") == [
        (IMAGES, IMAGES)
    ]
    assert kept <= committed(root)
    assert controlmill("verify", "ws").returncode == 0
    assert not list(root.rglob(f"{TEMPORARY}*"))


def test_a_disk_that_is_full_from_the_start_costs_one_sentence(
    disk: Disk, job: Path, controlmill: Command
) -> None:
    for free in (0, 16, 300):  # KiB: nothing; a part of the catalog; the catalog, and no commit
        disk.leave(free)
        sentence(controlmill("run", job, *STAGES), "full")
    disk.make_room()
    completes(controlmill, job, disk.root, set())


def test_a_disk_that_fills_while_workers_write_keeps_what_was_committed(
    disk: Disk, job: Path, controlmill: Command
) -> None:
    assert controlmill("run", job, *STAGES, "--limit", "4").returncode == 0
    kept = committed(disk.root)
    disk.leave(600)  # room for the driver's commits, not for another shard of images
    sentence(controlmill("run", job, *STAGES), "full")
    assert kept <= committed(disk.root)
    assert not list(disk.root.rglob(f"{TEMPORARY}*"))
    disk.leave(0)
    sentence(controlmill("catalog", "rebuild", "ws"), "full")
    assert kept <= committed(disk.root), "the catalog that was there stays until the new one is whole"
    disk.make_room()
    completes(controlmill, job, disk.root, kept)


def test_a_read_only_workspace_answers_questions_and_refuses_work_in_one_sentence(
    disk: Disk, job: Path, controlmill: Command
) -> None:
    assert controlmill("run", job, *STAGES, "--limit", "4").returncode == 0
    kept = committed(disk.root)
    disk.mount("ro")
    sentence(controlmill("run", job, *STAGES), "read-only")
    sentence(controlmill("catalog", "rebuild", "ws"), "read-only")
    sentence(controlmill("verify", "ws", "--repair"), "read-only")
    for question in (("status", "ws"), ("sql", "ws", "SELECT count(*) FROM annotations"), ("verify", "ws")):
        assert controlmill(*question).returncode == 0
    disk.mount("rw")
    completes(controlmill, job, disk.root, kept)


SPLIT = "{validation: 0.25, test: 0.25, salt: 3}"
TRAIN = (
    "{base: random, runs: [{conditions: [canny], images: 12, batch: 4, checkpoint_every: 4, held_out: 2,"
    " grids: 2}]}"
)
EVALUATE = (
    "{benchmark: {split: test, samples: 2, seeds: [0], num_inference_steps: 2}, baselines: [no_control]}"
)
# stage -> KiB that are left when it begins: too few for what it writes
ROOM = {"encode": 40, "train": 600, "generate": 12, "score": 0, "report": 40}


def test_a_disk_that_fills_in_any_stage_costs_one_sentence_and_nothing_is_lost(
    disk: Disk,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    controlmill: Command,
    tmp_path: Path,
) -> None:
    disk.mount("size=64m")
    folder(12)
    job = manifest(split=SPLIT, train=TRAIN, evaluate=EVALUATE)
    assert controlmill("run", job, *STAGES).returncode == 0
    for stage, free in ROOM.items():
        disk.leave(free)
        sentence(controlmill("run", job, "--stages", stage), "full")
        assert not [path for path in disk.root.rglob(f"{TEMPORARY}*") if path.is_file()], stage
        disk.make_room()
        ran = controlmill("run", job, "--stages", stage)
        assert ran.returncode == 0, (stage, ran.stderr)
    disk.leave(0)
    sentence(controlmill("export", "ws", "ws/export", "--condition", "canny", "--to", "diffusers"), "full")
    assert not list(disk.root.glob("*export*"))
    disk.make_room()
    assert controlmill("verify", "ws").returncode == 0
    found = kept(disk.root)
    undisturbed = manifest(split=SPLIT, train=TRAIN, evaluate=EVALUATE, workspace="other")
    assert controlmill("run", undisturbed).returncode == 0
    assert differences(found, kept(tmp_path / "other")) == []
