"""The catalog's file: held by another process, damaged, or asked what takes too long."""

import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest
from PIL import Image

from pipeline import MillError
from pipeline import plan as plans
from pipeline import run as flow
from pipeline.catalog import Catalog, CatalogHeld, connections
from pipeline.catalog.schema import MIGRATIONS
from pipeline.catalog.selections import Selection
from pipeline.cluster.jobs import Job
from pipeline.commands import verify
from pipeline.experiment import under_way
from pipeline.plan import MEASURES
from pipeline.report import counts
from pipeline.stages import train
from pipeline.stages.stage import StageContext
from pipeline.storage import shards
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

STAGES = ("--stages", "ingest,annotate")
HOLD = (
    "import duckdb, sys; held = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == 'True'); print(1,"
    " flush=True); input()"
)


@contextmanager
def holding(path: Path, *, read_only: bool) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the file open, as a notebook has, until it is told to end."""
    words = [sys.executable, "-c", HOLD, str(path), str(read_only)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdin and held.stdout and held.stdout.readline() == "1\n"
        yield held
        held.stdin.close()


def is_held(it: Catalog) -> bool:
    try:
        with it.at_most(0.0):
            it.checkpoint()
    except CatalogHeld:
        return True
    return False


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def driver(tmp_path: Path, said: list[str]) -> Catalog:
    made = Catalog(Workspace(tmp_path), say=said.append)
    made.create()
    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOCK_PATIENCE", 0.3)
    monkeypatch.setattr(connections, "FIRST_WORD", 0.1)
    monkeypatch.setattr(connections, "NEXT_WORD", 0.1)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


WRITES: dict[str, Callable[[Catalog], Any]] = {
    "activate": lambda it: it.activate({"image_key": "k"}, []),
    "create": lambda it: it.create(),
    "define_pairs": lambda it: it.define_pairs({"canny": Selection((("where", "true"),))}, MEASURES),
    "remove_shard": lambda it: it.remove_shard("nothing"),
    "record_run": lambda it: it.record_run(run="canny-1", status="complete"),
    "record_scores": lambda it: it.record_scores([], []),
    "checkpoint": lambda it: it.checkpoint(),
}


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.slow
def test_what_a_driver_writes_waits_without_end_and_says_who_holds_the_catalog(
    driver: Catalog, said: list[str], impatient: None, read_only: bool
) -> None:
    for name, write in WRITES.items():
        said.clear()
        with holding(driver.path, read_only=read_only) as held:
            writing = threading.Thread(target=write, args=(driver,))
            writing.start()
            until(lambda: len(said) >= 3)
            assert writing.is_alive(), name
            assert all(f"process {held.pid} (python" in line and "waiting" in line for line in said), said
        writing.join(timeout=60)
        assert not writing.is_alive(), name
    assert driver.query("SELECT run, status FROM runs") == [("canny-1", "complete")]


def test_a_query_of_a_driver_waits_for_who_writes_and_a_readers_gives_up_with_the_process_id(
    driver: Catalog, said: list[str], impatient: None
) -> None:
    reader = Catalog(driver.workspace)
    with holding(driver.path, read_only=False) as held:
        with pytest.raises(
            CatalogHeld,
            match=(
                rf"{re.escape(str(driver.path))} is open in process {held.pid} \(python[\d.]*\): close it"
                r" there"
            ),
        ):
            reader.query("SELECT 1")
        with pytest.raises(CatalogHeld):
            reader.table("SELECT 1")
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.append(driver.row("SELECT 1")))
        asking.start()
        until(lambda: len(said) >= 2)
        assert not found
    asking.join(timeout=60)
    assert found == [(1,)]
    with holding(driver.path, read_only=True):
        assert reader.query("SELECT 1") == [(1,)], "two may read"


def test_a_driver_that_waits_can_be_stopped(tmp_path: Path, driver: Catalog) -> None:
    code = f"""from pathlib import Path
from pipeline import catalog
from pipeline.catalog import connections
from pipeline.storage.workspace import Workspace
catalog.connections.FIRST_WORD = 0.1
catalog.Catalog(Workspace(Path({str(tmp_path)!r}))).remove_shard("nothing")"""
    words = [sys.executable, "-c", code]
    with (
        holding(driver.path, read_only=True),
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as waiting,
    ):
        assert waiting.stderr and "waiting" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in waiting.communicate(timeout=60)[1]


class Finished:
    """A cluster whose one run is watched twice, first while the catalog is held, and then ends."""

    gpus, device, workers, cores_of_a_node = 0, "cpu", 1, 1

    def __init__(self, between: Callable[[], None]) -> None:
        self.between = between

    def run(
        self, function: Any, jobs: list[Any], done: Any, *, watch: Callable[[], int], **more: Any
    ) -> None:
        watch()
        self.between()
        watch()
        done([(jobs[0], "")])


def test_progress_notes_are_left_out_while_the_catalog_is_held_and_the_next_one_says_it(
    driver: Catalog, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = iter([4, 8, 12, 16])
    plan: Any = SimpleNamespace(workspace=driver.workspace)
    it: Any = SimpleNamespace(name="canny-1", run=SimpleNamespace(gpus=1, images=16, conditions=["canny"]))
    job = Job("train canny-1", SimpleNamespace(name="canny-1"), ())
    monkeypatch.setattr(under_way, "EVERY", 0.0)
    monkeypatch.setattr(train, "_job", lambda *given: job)
    kept = iter([0, 16])  # in its checkpoint, when this begins and when it ends
    monkeypatch.setattr(under_way.RunsUnderWay, "_images_kept", lambda *given: next(kept))
    monkeypatch.setattr(under_way, "read_log", lambda out: [{"images": next(images)}])
    monkeypatch.setattr(
        under_way,
        "record",
        lambda plan, catalog, name, state, *given, **more: catalog.record_run(run=name, status=state),
    )
    told: list[Any] = []
    with holding(driver.path, read_only=True) as held:

        def between() -> None:
            told.extend(Catalog(driver.workspace).query("SELECT run FROM runs"))
            assert held.stdin
            held.stdin.close()
            held.wait()
            (driver.workspace.root / "checkpoints" / ".tmp-canny-1-began").touch()

        cluster: Any = Finished(between)
        done = cluster.run
        cluster.run = lambda *given, **more: (
            done(*given, **more) or told.extend(driver.query("SELECT status FROM runs"))
        )
        noted: list[str] = []
        record = driver.record_run
        monkeypatch.setattr(driver, "record_run", lambda **row: (record(**row), noted.append(row["status"])))
        train._train_all(StageContext(plan, driver, cluster), [it], {"canny-1": it})
    assert noted == ["running", "complete"] and told == [("complete",)] and said == []


def test_a_report_under_way_does_not_wait_for_the_catalog(
    driver: Catalog, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "HURRY", 0.1)
    for name in ("report", "write_page"):
        monkeypatch.setattr(flow, name, lambda context: context.catalog.query("SELECT 1"))
    plan: Any = SimpleNamespace(manifest=SimpleNamespace(evaluate=None))
    cluster: Any = None
    page = flow.Filling(StageContext(plan, driver, cluster), said.append)
    with holding(driver.path, read_only=False) as held:
        page.renew(after=-1.0)
        page.renew(after=-1.0)
    assert len(said) == 1 and "not renewed" in said[0] and str(held.pid) in said[0]
    page.renew(after=-1.0)
    assert len(said) == 1


# -- queries that take too long ------------------------------------------------------------------------------

ENDLESS = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE hash(a.range, b.range) = 1"


def test_a_query_of_the_driver_is_stopped_and_its_transaction_undone(
    driver: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "QUERY_LIMIT", 0.3)
    with pytest.raises(MillError, match="did not end within"):
        driver.query(ENDLESS)
    with pytest.raises(MillError, match="did not end within"), driver.transaction() as connection:
        connection.execute("INSERT INTO settings VALUES ('a', 'b')")
        connection.execute(ENDLESS)
    with pytest.raises(MillError, match="did not end within"), driver.reading():
        driver.query(ENDLESS)
    assert driver.query("FROM settings") == []


def test_what_a_person_asks_has_no_limit_and_can_be_stopped(driver: Catalog, tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").touch()
    code = (
        "import sys; from pipeline import cli; from pipeline.catalog import connections;"
        " connections.QUERY_LIMIT = 0.1; print(1, flush=True); cli.main(sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, "sql", str(tmp_path), ENDLESS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert asking.stdout and asking.stdout.readline()
        until(lambda: is_held(driver))
        with pytest.raises(subprocess.TimeoutExpired):
            asking.wait(timeout=1)
        asking.send_signal(signal.SIGINT)
        told = asking.communicate(timeout=60)[1]
    assert asking.returncode == 1 and told.startswith("controlmill: stopped;"), told


# -- a damaged file ------------------------------------------------------------------------------------------


def operations(root: Path) -> dict[str, Callable[[], Any]]:
    """What the commands do with a catalog; the same answer each time."""
    made = Catalog(Workspace(root))
    plan = plans.load_saved(made.workspace)
    shard = shards.verify(plan.maps_of("canny", 0))
    told: list[str] = []
    return {
        "status": lambda: counts.workspace_counts(made),
        "sql": lambda: made.table("SELECT * FROM annotations ORDER BY ALL"),
        "pairs": lambda: made.query("SELECT * FROM pairs ORDER BY ALL"),
        "verify": lambda: verify.problems(made, repair=False, say=told.append),
        "create": lambda: made.create(),
        "settle": lambda: flow.activate(plan, made),
        "commit": lambda: made.commit(shard),
        "checkpoint": lambda: made.checkpoint(),
    }


@pytest.fixture(scope="module")
def workspace(ask: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images and their canny maps."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "photos").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 80)).save(root / "photos" / f"{number}.png")
    source = "{kind: folder, path: photos}"
    (root / "m.yaml").write_text(
        f"{{name: tiny, workspace: ws, source: {source}, image: {{resolution: 64}}, conditions: {{canny:"
        " {}}}"
    )
    ran = ask(root, "run", "m.yaml", *STAGES)
    assert ran.returncode == 0, ran.stderr
    return root


@pytest.mark.slow
def test_a_flipped_bit_gives_the_right_answer_or_a_sentence_that_names_the_file_and_the_remedy(
    workspace: Path, tmp_path: Path
) -> None:
    root = tmp_path / "ws"
    shutil.copytree(workspace / "ws", root)
    file = root / "catalog.duckdb"
    whole = file.read_bytes()
    right = {name: does() for name, does in operations(root).items()}
    file.write_bytes(whole)
    draw = random.Random(0)
    places = [draw.randrange(3 * 4096) for _ in range(10)] + [
        draw.randrange(3 * 4096, len(whole)) for _ in range(30)
    ]
    refused: dict[int, set[str]] = {place: set() for place in places}
    for place in places:
        for name, does in operations(root).items():
            file.write_bytes(
                whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
            )
            file.with_name(f"{file.name}.wal").unlink(missing_ok=True)
            try:
                assert does() == right[name], (place, name)
            except MillError as error:
                refused[place].add(name)
                assert str(file) in str(error) and f"`controlmill catalog rebuild {root}`" in str(error), (
                    place,
                    name,
                    str(error),
                )
    assert all("verify" in names for names in refused.values() if names), "it reads all of it"
    assert sum(bool(names) for names in refused.values()) > len(places) // 2


@pytest.mark.parametrize(
    "data",
    [b"", b"hello\n" * 5000, b"SQLite format 3\0" + bytes(9000), "cut", "header", "garbage", "another"],
)
def test_a_file_that_is_no_catalog_is_one_sentence_and_a_rebuild_mends_it(
    workspace: Path, ask: Command, data: bytes | str
) -> None:
    file = workspace / "ws/catalog.duckdb"
    whole = file.read_bytes()
    other = workspace / "other.duckdb"
    other.unlink(missing_ok=True)
    with duckdb.connect(str(other)) as connection:
        connection.execute("CREATE TABLE a (b INTEGER)")
    texts = {
        "another": other.read_bytes(),
        "cut": whole[:100_000],  # behind the headers; what lies in the last half is not always read
        "header": whole[:5000],
        "garbage": random.Random(0).randbytes(20_000),
    }
    asked = (
        ("status", "ws"),
        ("sql", "ws", "FROM annotations"),
        ("verify", "ws"),
        ("verify", "ws", "--repair"),
    )
    for command in (*asked, ("run", "m.yaml", "--dry-run"), ("run", "m.yaml", *STAGES)):
        file.write_bytes(texts[data] if isinstance(data, str) else data)
        ran = ask(workspace, *command)
        assert ran.returncode == 1 and "Traceback" not in ran.stderr, (command, ran.stderr)
        assert (
            len(ran.stderr.splitlines()) == 1
            and str(file) in ran.stderr
            and "`controlmill catalog rebuild" in ran.stderr
        ), (command, ran.stderr)
    assert ask(workspace, "catalog", "rebuild", "ws").returncode == 0
    told = ask(workspace, "verify", "ws")
    assert told.returncode == 0, told.stdout
    assert "6 ok" in ask(workspace, "status", "ws").stdout


# -- one of an earlier version -------------------------------------------------------------------------------


def test_an_earlier_catalog_keeps_its_rows_and_its_scores_find_their_samples(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    row = {"image_id": "i", "status": "ok", "reason": "", "seed": 3}
    sampled, old = (workspace.samples("r/canny/control", key, 0) for key in ("k", "older"))
    scored = workspace.scores("r/canny/control", "s", 0)
    made_from = shards.made_from("s", workspace.relative(sampled))
    scores = row | {"values": [("edge_f1", 0.5)]}
    footer = {"kind": "scores", "key": "s", "name": "r/canny/control", "part": 0, "made_from": made_from}
    shards.write(scored, [scores], shards.SCORES, footer)
    with duckdb.connect(str(workspace.catalog)) as connection:
        connection.execute("CREATE TABLE migrations (version INTEGER, applied TIMESTAMP)")
        for number, sql in enumerate(MIGRATIONS[:4], 1):
            connection.execute(sql)
            connection.execute("INSERT INTO migrations VALUES (?, now()::TIMESTAMP)", [number])
        connection.execute("CREATE VIEW samples AS SELECT path FROM sample_rows JOIN shards USING (shard)")
        for number, kind, key, path in (
            (1, "samples", "k", sampled),
            (2, "samples", "older", old),
            (3, "scores", "s", scored),
        ):
            connection.execute(
                "INSERT INTO shards (shard, kind, key, path, name, part, rows, bytes)"
                " VALUES (?, ?, ?, ?, ?, 0, 1, 8)",
                [number, kind, key, workspace.relative(path), "r/canny/control"],
            )
        for number in (1, 2):
            values = [number, number]
            connection.execute("INSERT INTO sample_rows VALUES (?, 0, 'i', 'i', 3, 'ok', '', ?)", values)
        connection.execute("INSERT INTO score_rows VALUES (3, 0, 'i', 3, 'ok', '', 'edge_f1', 0.5)")
        connection.execute("INSERT INTO runs (run, images) VALUES ('r', 8)")
        connection.execute(
            "INSERT INTO scores BY NAME SELECT 'r/canny/control' AS system, 'r' AS model, 'control' AS arm,"
            " 'canny' AS condition, 'edge_f1' AS metric, 0.5 AS value, 'b' AS benchmark, 's' AS identity,"
            " 'hash' AS mark, '[]' AS marks"
        )
    made = Catalog(workspace)
    for ask in (made.query, made.table):
        with pytest.raises(
            MillError, match=f"made by an earlier version.+catalog rebuild {tmp_path}` brings"
        ):
            ask("SELECT * FROM shards")  # whose columns meant other things
    made.create()
    joined = """
        SELECT s.sample_key, s.seconds, x.value, e.value, e.variant, e.benchmark, e.input_hash, e.caveats,
               r.images, f.bytes
        FROM samples s
        JOIN sample_scores x USING (sample_set, sample_key, image_id, seed)
        JOIN scores e USING (system, score_key, metric)
        JOIN runs r ON r.run = e.run
        JOIN shards f ON f.shard = s.shard"""
    assert made.query(joined) == [("k", 1.0, 0.5, 0.5, "control", "b", "hash", "[]", 8, 8)]
    made.create()
    assert made.query("SELECT count(*) FROM migrations") == [(len(MIGRATIONS),)]


def test_scores_find_samples_that_were_made_again_after_them(tmp_path: Path) -> None:
    """As after a rebuild that left out a damaged shard of samples."""
    workspace = Workspace(tmp_path)
    row = {"image_id": "i", "hint_image_id": "i", "status": "ok", "reason": "", "seed": 3}
    footer = {"name": "r/canny/control", "part": 0}
    sampled, scored = (
        workspace.samples("r/canny/control", "k", 0),
        workspace.scores("r/canny/control", "s", 0),
    )
    samples = shards.write(
        sampled, [row], shards.SAMPLES, footer | {"kind": "samples", "key": "k", "made_from": "m"}
    )
    made_from = shards.made_from("s", workspace.relative(sampled))
    scores = shards.write(
        scored,
        [row | {"values": [("edge_f1", 0.5)]}],
        shards.SCORES,
        footer | {"kind": "scores", "key": "s", "made_from": made_from},
    )
    made = Catalog(workspace)
    made.create()
    made.commit(scores)
    linked = "SELECT sample_set, sample_key, value FROM sample_scores"
    assert made.query(linked) == [(None, None, 0.5)]
    made.commit(samples)
    assert made.query(linked) == [("r/canny/control", "k", 0.5)]
