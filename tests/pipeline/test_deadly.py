"""Images that kill, hang or take all memory fail alone; a Ray that is lost is started again; nothing stays
behind a driver that was killed.
"""

import ast
import ctypes
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image

from annotate import memory
from annotate.detectors import DETECTORS
from pipeline import COMPLETE, COMPLETE_WITH_FAILURES, MillError
from pipeline.benchmark import scoring
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, cluster, position, session, watchdog
from pipeline.cluster.jobs import Job
from pipeline.dataset import images
from pipeline.manifest import load
from pipeline.run import RunOptions, run
from pipeline.sources.raw import Unreadable
from pipeline.stages import annotate, encode, generate, ingest, score
from pipeline.storage import codec, events
from pipeline.storage.workspace import Workspace
from tests.conftest import OPEN

ROOT = Path(__file__).parents[2]


def take_all_memory() -> None:
    np.zeros(1 << 60, np.uint8)


def fail() -> None:
    raise ValueError("never seen before")


ACTS: dict[int, Callable[[], Any]] = {
    1: lambda: os.kill(os.getpid(), signal.SIGSEGV),
    2: lambda: os._exit(1),
    3: lambda: ctypes.PyDLL(None).sleep(1000),
    4: take_all_memory,
    5: fail,
}


def mark(picture: Image.Image, act: int) -> Image.Image:
    """So that whoever sees the picture does what is deadly."""
    picture.paste((act * 20, 0, 255), (0, 0, 24, 24))
    return picture


def act_on(pixels: np.ndarray, acts: Collection[int] = tuple(ACTS)) -> None:
    red, green, blue = pixels[2:6, 2:6].reshape(-1, 3).mean(0)
    if green < 9 and blue > 246 and abs(red - 20 * round(red / 20)) < 5 and round(red / 20) in acts:
        ACTS[round(red / 20)]()


def deadly_detector(args: Any, *rest: Any) -> Any:
    """As `annotate_part`, with a detector of `hough` that some pictures kill."""
    kept = DETECTORS["opencv-lsd"]

    def detect(pictures: list[np.ndarray], *others: Any) -> Any:
        for pixels in pictures:
            act_on(pixels)
        return kept.detect(pictures, *others)

    with patch.dict(DETECTORS, {"opencv-lsd": replace(kept, detect=detect)}):
        return ANNOTATE(args, *rest)


def deadly_decoder(args: Any, *rest: Any) -> Any:
    """As `ingest_part`, with a decoder that some pictures kill."""
    kept = images.canonical

    def canonical(data: bytes, image: Any) -> Any:
        made = kept(data, image)
        act_on(made.pixels)
        return made

    with patch.object(images, "canonical", canonical):
        return INGEST(args, *rest)


def deadly_encoder(args: Any, *rest: Any) -> Any:
    """As `encode_part`, with a VAE that some pictures kill."""
    from train import encoders

    kept = encoders.encode_images

    def encode_images(loaded: Any, pictures: np.ndarray) -> Any:
        for pixels in pictures:
            act_on(pixels, (1, 2))
        return kept(loaded, pictures)

    with patch.object(encoders, "encode_images", encode_images):
        return ENCODE(args, *rest)


def deadly_arm(args: Any, *rest: Any) -> Any:
    """As `generate_part`, where some pictures kill what gives the real images."""
    kept = generate._real

    def real(args: Any, tasks: Any) -> Any:
        pictures = kept(args, tasks)
        for data in pictures:
            act_on(codec.decode(data), (1,))
        return pictures

    with patch.object(generate, "_real", real):
        return GENERATE(args, *rest)


def deadly_reader(args: Any, *rest: Any) -> Any:
    """As `score_part`, with a reader that some pictures kill."""
    kept = scoring._reread

    def reread(args: Any, image_id: str, picture: np.ndarray | None) -> Any:
        if picture is not None:
            act_on(picture, (2,))
        return kept(args, image_id, picture)

    with patch.object(scoring, "_reread", reread):
        return SCORE(args, *rest)


ANNOTATE, INGEST, ENCODE = annotate.annotate_part, ingest.ingest_part, encode.encode_part
GENERATE, SCORE = generate.generate_part, scoring.score_part


def slow(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> list[int]:
    time.sleep(0.3)
    return list(rows)


@pytest.fixture
def photos(tmp_path: Path, photograph: Callable[..., Image.Image]) -> Path:
    """Sixteen pictures in two parts; of the first part five are deadly, each in another way."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(16):
        picture = photograph(number, 128, 128)
        picture = mark(picture, number) if number in ACTS else picture
        picture.save(folder / f"{number:03d}.png")
    return folder


def here(root: Path) -> dict[str, str]:
    """Sections of a manifest that mean the same wherever the run is started: its workers import the tests."""
    return {"workspace": str(root / "ws"), "source": f"{{kind: folder, path: {root / 'photos'}}}"}


def statuses(root: Path, condition: str) -> dict[str, tuple[str, str]]:
    sql = "SELECT uri, status, reason FROM annotations JOIN sources USING (image_id) WHERE condition = ?"
    found = Catalog(Workspace(root)).query(sql, [condition])
    return {Path(uri).stem: (status, reason) for uri, status, reason in found}


@pytest.mark.slow
def test_deadly_images_fail_alone_in_the_condition_that_they_kill_while_others_are_done(
    photos: Path, manifest: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = "{canny: {}, hough: {time_limit: 3}}"
    given = load(manifest(conditions=conditions, shard_images="8", **here(tmp_path)))
    assert run(given, RunOptions(stages=("ingest",), workers=2), print) == COMPLETE
    monkeypatch.setattr(annotate, "annotate_part", deadly_detector)
    options = RunOptions(stages=("annotate",), workers=2)
    assert run(given, options, print) == COMPLETE_WITH_FAILURES
    hough, canny = statuses(tmp_path / "ws", "hough"), statuses(tmp_path / "ws", "canny")
    assert [status for status, _ in canny.values()] == ["ok"] * 16
    failed = {name: reason for name, (status, reason) in hough.items() if status == "failed"}
    assert sorted(failed) == ["001", "002", "003", "004", "005"]
    assert "killed its worker" in failed["001"] and "killed its worker" in failed["002"]
    assert failed["003"] == "took longer than 3 s (conditions.hough.time_limit)"
    assert failed["004"].startswith("ran out of memory, also with nothing beside it")
    assert failed["005"] == "ValueError: never seen before"
    told = [event["event"] for event in events.read(tmp_path / "ws") if event.get("stage") != "ingest"]
    last_found = len(told) - 1 - told[::-1].index("row found")
    assert told.index("commit") < last_found, "the other part did not wait"
    assert told.count("worker lost") + told.count("memory ran out") <= 15, "three tries for each, at most"
    monkeypatch.setattr(annotate, "annotate_part", ANNOTATE)
    assert run(given, options, print) == COMPLETE_WITH_FAILURES
    again = {name for name, (status, _) in statuses(tmp_path / "ws", "hough").items() if status == "failed"}
    assert again == failed.keys() - {"004"}, "memory is no property of an image: the next run tries it again"


@pytest.mark.slow
def test_deadly_files_fail_alone_as_they_are_read_and_memory_is_tried_again(
    photos: Path, manifest: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load(manifest(image="{resolution: 64, time_limit: 3}", shard_images="8", **here(tmp_path)))
    monkeypatch.setattr(ingest, "ingest_part", deadly_decoder)
    options = RunOptions(stages=("ingest",), workers=2)
    assert run(given, options, print) == COMPLETE_WITH_FAILURES
    catalog = Catalog(Workspace(tmp_path / "ws"))
    sql = """SELECT uri, reason, transient FROM images JOIN sources USING (image_id)
             WHERE images.status = 'failed'"""
    failed = {Path(uri).stem: (reason, transient) for uri, reason, transient in catalog.query(sql)}
    assert sorted(failed) == ["001", "002", "003", "004", "005"]
    assert [name for name, (_, transient) in failed.items() if transient] == ["004"]
    assert failed["004"][0].startswith("ran out of memory")
    monkeypatch.setattr(ingest, "ingest_part", INGEST)
    assert run(given, options, print) == COMPLETE_WITH_FAILURES
    assert {Path(uri).stem for uri, *_ in catalog.query(sql)} == failed.keys() - {"004"}


@pytest.mark.slow
def test_what_kills_in_a_later_stage_fails_alone_there(
    photos: Path, manifest: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = here(tmp_path) | {"shard_images": "8"}
    training = "{base: random, runs: [{conditions: [canny], images: 8, batch: 4, lr: 1.0e-3}]}"
    made = load(manifest(train=training, **given))
    assert run(made, RunOptions(stages=("ingest", "annotate"), workers=2), print) == COMPLETE
    monkeypatch.setattr(encode, "encode_part", deadly_encoder)
    run(made, RunOptions(stages=("encode",), workers=2), print)

    def failed(place: str, sql: str) -> dict[str, str]:
        found = Catalog(Workspace(tmp_path / place)).query(sql)
        return {Path(uri).stem: reason for uri, reason in found}

    latents = failed(
        "ws",
        """SELECT uri, l.reason FROM latent_rows l JOIN image_rows i ON l.image = i.image
           JOIN sources USING (image_id) WHERE l.status = 'failed'""",
    )
    assert sorted(latents) == ["001", "002"]
    assert "killed its worker" in latents["001"] and "killed its worker" in latents["002"]

    given |= {"workspace": str(tmp_path / "other"), "split": "{validation: 0, test: 0.999, salt: 0}"}
    benchmark = "{split: test, samples: 16, seeds: [0], num_inference_steps: 2}"
    made = load(
        manifest(evaluate=f"{{base: random, benchmark: {benchmark}, baselines: [real_image]}}", **given)
    )
    assert run(made, RunOptions(stages=("ingest", "annotate"), workers=2), print) == COMPLETE
    monkeypatch.setattr(generate, "generate_part", deadly_arm)
    run(made, RunOptions(stages=("generate",), workers=2), print)
    samples = failed(
        "other", "SELECT uri, reason FROM samples JOIN sources USING (image_id) WHERE status = 'failed'"
    )
    assert sorted(samples) == ["001"] and "killed its worker" in samples["001"]
    monkeypatch.setattr(score, "score_part", deadly_reader)
    assert run(made, RunOptions(stages=("score", "report"), workers=2), print) == COMPLETE
    scores = failed(
        "other", "SELECT uri, reason FROM sample_scores JOIN sources USING (image_id) WHERE status = 'failed'"
    )
    assert sorted(scores) == ["001", "002"] and "killed its worker" in scores["002"]
    catalog = Catalog(Workspace(tmp_path / "other"))
    assert catalog.query("SELECT DISTINCT n, n_failed FROM scores") == [(16, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_ray_that_is_killed_is_started_again_and_nothing_of_it_stays(name: str) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    said: list[str] = []
    done: dict[str, list[int]] = {}

    def commit(ended: list[tuple[Job, list[int]]]) -> None:
        if not done:
            seen.extend(of_this_run())
            next(process for process in seen if process.name() == name).kill()
        done.update({job.name: rows for job, rows in ended})

    before, seen = set(psutil.Process().children(recursive=True)), list[psutil.Process]()
    of_this_run = lambda: set(psutil.Process().children(recursive=True)) - before
    with cluster(workers=2) as workers:
        workers.event = lambda kind, **facts: told.append((kind, facts))
        workers.say = said.append
        jobs = [Job(str(number), {}, (number,)) for number in range(12)]
        workers.run(slow, jobs, commit, label="test", total=12)
        assert not [each for each in seen if each.is_running()], "the Ray that was lost is gone, all of it"
        seen.extend(of_this_run())
    assert done == {str(number): [number] for number in range(12)}
    assert [kind for kind, _ in told if kind.startswith("ray")] == ["ray lost", "ray started again"]
    (sentence,) = said
    assert sentence.startswith(f"Ray itself was lost ({name} is gone")
    assert not [each for each in seen if each.is_running()]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before it answers", "while it starts", "when it has started"])
def test_a_call_to_a_ray_that_is_gone_does_not_hold_the_run(when: str) -> None:
    """The command begins again, before Ray ends the process without a sentence. A Ray whose head dies before
    it answers fails to start, and is started again first.
    """
    script = """
import os, psutil, sys, threading, time
from ray._private import services
from pipeline.cluster import Cluster, watchdog
def kill(seen="gcs_server"):
    while True:
        ray = {each.name(): each for each in psutil.Process().children()}
        if seen in ray:
            return ray["gcs_server"].kill()
        time.sleep(0.02)
def killed(*given, start=services.start_gcs_server, **named):
    services.start_gcs_server = start
    started = start(*given, **named)
    started.process.kill()
    return started
watchdog.PATIENCE = 2.0
if os.environ.get(watchdog.AGAIN):
    print("the second time", flush=True)
    os._exit(0)
workers = Cluster(workers=1)
workers.lost = watchdog.begin_again
if sys.argv[1] == "before it answers":
    services.start_gcs_server = killed
elif sys.argv[1] == "while it starts":
    threading.Thread(target=kill, args=["raylet"], daemon=True).start()
ray = workers.ray
kill()
ray.get_actor("nobody", namespace="none")
"""
    command, env = [sys.executable, "-c", script, when], OPEN | {"RAY_gcs_server_port_wait_time_s": "5"}
    told = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)
    assert told.returncode == 0, told.stderr
    *lost, last = told.stdout.splitlines()
    assert lost and all(line.startswith("Ray itself was lost (gcs_server is gone") for line in lost)
    assert last == "the second time"


def test_a_ray_that_dies_as_it_starts_is_started_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*given: Any) -> Any:
        raise session.Lost("gcs_server is gone")

    said: list[str] = []
    workers = Cluster(workers=1)
    workers.say = said.append
    monkeypatch.setattr("pipeline.cluster.Session", die)
    with pytest.raises(MillError, match="Ray died twice as it started \\(gcs_server is gone\\)"):
        _ = workers.ray
    assert len(said) == 1 and "it is started again" in said[0]


def test_a_run_that_is_asked_to_end_while_ray_starts_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**where: Any) -> None:
        raise SystemExit(15)  # as Ray does on SIGTERM

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyboardInterrupt):
        _ = Cluster(workers=1).ray


def test_a_command_begins_again_a_stated_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: begun.append(words))
    monkeypatch.setattr(watchdog, "give_up", lambda why: begun.append([why]))
    monkeypatch.setenv(watchdog.AGAIN, "0")
    for _ in range(watchdog.MOST):
        watchdog.begin_again("gone")
    assert begun == [[sys.executable, *sys.orig_argv[1:]]] * watchdog.MOST
    watchdog.begin_again("gone")
    assert begun[watchdog.MOST] == ["gone"]


@pytest.mark.slow
def test_nothing_stays_behind_a_driver_that_was_killed(tmp_path: Path) -> None:
    script = """
from tests.pipeline.test_deadly import Job, cluster, slow
with cluster(workers=2) as workers:
    print(workers.token, flush=True)
    jobs = [Job(str(number), {}, (number,)) for number in range(1000)]
    tell = lambda ended: print(workers._session._folder, flush=True)
    workers.run(slow, jobs, tell, label="test", total=1000)
"""
    pipe = subprocess.PIPE
    driver = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=OPEN, stdout=pipe, stderr=pipe, text=True
    )
    assert driver.stdout and driver.stderr
    token, folder = driver.stdout.readline().strip(), Path(driver.stdout.readline().strip())
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 5 and folder.is_dir()
    driver.kill()
    driver.wait()
    psutil.wait_procs(started, timeout=30)
    assert not [each for each in started if each.is_running()]
    assert not folder.exists() and not position.of_run(token)
    assert "run it again; it goes on" in driver.stderr.read()


@pytest.mark.slow
def test_a_driver_that_ray_ends_while_it_starts_leaves_nothing_and_a_sentence() -> None:
    script = """
import os, threading, time, psutil
from pipeline.cluster import Cluster
def end() -> None:
    while "gcs_server" not in [each.name() for each in psutil.Process().children()]:
        time.sleep(0.02)
    os._exit(1)  # as Ray does where its raylet is gone
workers = Cluster(workers=1)
print(workers.token, flush=True)
threading.Thread(target=end, daemon=True).start()
workers.ray
"""
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=OPEN, capture_output=True, text=True, timeout=50
    )
    assert told.returncode == 1 and not session.processes_of(told.stdout.strip())
    assert "run it again; it goes on" in told.stderr


@pytest.mark.slow
def test_a_cluster_of_somebody_else_whose_head_is_gone_is_one_sentence() -> None:
    """In a process of its own, which Ray or the watchdog may end."""
    script = """
from pipeline.cluster import Cluster
print(Cluster(workers=2).ray.get_runtime_context().gcs_address, flush=True)
input()
"""
    driver = """
import os, signal, sys
from pipeline import MillError
from pipeline.cluster import session
from tests.pipeline.test_deadly import Job, cluster, slow
session.UNREACHED = 2.0
address, gcs = sys.argv[1:]
def kill(ended):
    os.kill(int(gcs), signal.SIGKILL)
try:
    with cluster(address=address) as workers:
        workers.event = lambda kind, **facts: print(kind, flush=True)
        jobs = [Job(str(number), {}, (number,)) for number in range(100)]
        workers.run(slow, jobs, kill, label="test", total=100)
except MillError as error:
    print(f"controlmill: {error}", file=sys.stderr)
"""
    pipe = subprocess.PIPE
    head = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=OPEN, stdin=pipe, stdout=pipe, text=True
    )
    assert head.stdin and head.stdout
    port = head.stdout.readline().strip().split(":")[1]
    gcs = next(each for each in psutil.Process(head.pid).children() if each.name() == "gcs_server")
    words = [sys.executable, "-c", driver, f"127.0.0.1:{port}", str(gcs.pid)]
    told = subprocess.run(words, cwd=ROOT, env=OPEN, capture_output=True, text=True, timeout=120)
    sentences = [line for line in told.stderr.splitlines() if line.startswith("controlmill: ")]
    assert len(sentences) == 1 and "ray started again" not in told.stdout
    # by the driver, or where that waits for Ray too long by its watchdog, or behind it by its reaper
    assert re.search(r"start it again|run the same command again|run it again", sentences[0]), sentences
    head.kill()
    head.wait()


def test_what_attempts_left_here_is_swept_an_hour_later_unless_they_are_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tokens = {name: f"{number:012x}-{number:012x}" for number, name in enumerate(("left", "held", "fresh"))}
    for token in tokens.values():
        position.path(token).touch()
    for name in ("left", "held"):
        os.utime(position.path(tokens[name]), (0, 0))
    (tmp_path / "controlmill-cache-0").mkdir()
    with position.path(tokens["held"]).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        position.sweep.cache_clear()
        position.sweep()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"controlmill-cache-0", *(f"controlmill-{tokens[name]}" for name in ("held", "fresh"))}


def test_a_ray_that_is_lost_again_and_again_ends_the_run_with_one_sentence() -> None:
    assert "started again" in session.going_on("raylet is gone", session.STARTED_AGAIN, None)
    with pytest.raises(
        MillError, match=r"^Ray was lost 6 times in a row \(raylet is gone\): look at .*goes on"
    ):
        session.going_on("raylet is gone", session.STARTED_AGAIN + 1, None)
    with pytest.raises(MillError, match=r"^The Ray cluster at 10.0.0.1:6379 is gone \(.*\): start it again"):
        session.going_on("its head does not answer", 1, "10.0.0.1:6379")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        raised(take_all_memory),
        raised(lambda: cv2.resize(np.zeros((1, 1), np.uint8), (2**31 - 1, 2**31 - 1))),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."),
        caused(Unreadable("broken image: "), MemoryError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_is_known_in_whatever_words_it_is_told(error: Exception) -> None:
    assert memory.ran_out(error), repr(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the caption is: out of memory"),
        OSError(errno.EIO, "Input/output error"),
        raised(lambda: cv2.resize(np.zeros((0, 0), np.uint8), (4, 4))),
        caused(Unreadable("broken image"), SyntaxError("not a PNG file")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_not_taken_for_memory(error: Exception) -> None:
    assert not memory.ran_out(error), repr(error)


def catch_alls() -> Iterator[tuple[str, ast.ExceptHandler]]:
    for place in ("annotate", "pipeline/dataset", "pipeline/stages"):
        for path in sorted((ROOT / place).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ExceptHandler) and (
                    node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_whatever_catches_everything_of_an_image_lets_memory_through() -> None:
    handlers = dict(catch_alls())
    assert len(handlers) > 10
    asks = lambda node: "memory.let_through" in (text := ast.unparse(node)) or "memory.ran_out" in text
    assert not [place for place, handler in handlers.items() if not asks(handler)]
