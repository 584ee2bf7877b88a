"""Ray runs plain functions: retried when a worker dies, the row found that kills or hangs, failures named at
the end.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import MillError
from pipeline.cluster import Cluster, cluster, position
from pipeline.cluster.jobs import Job, JobsFailed
from pipeline.cluster.metrics import Metrics
from pipeline.cluster.nodes import Unfit
from pipeline.cluster.position import Limit
from pipeline.cluster.progress import Rate


@pytest.fixture(scope="module")
def workers() -> Iterator[Cluster]:
    with cluster(workers=2) as made:
        yield made


def run(workers: Cluster, function: Any, jobs: list[Job]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    done = lambda ended: results.update({job.name: result for job, result in ended})
    workers.run(function, jobs, done, label="test", total=len(jobs))
    return results


def double(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> list[int]:
    return [row * 2 for row in rows]


def die_once(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> str:
    mark = Path(args["mark"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def die_on_three(
    args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> dict[int, str]:
    for row in rows:
        if row == 3 and row not in poison_rows:
            os.kill(os.getpid(), signal.SIGSEGV)
    return {row: poison_rows.get(row, "ok") for row in rows}


def hang_on_five(
    args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> dict[int, str]:
    """In C, with the interpreter's lock held, in one of the two places that a row passes."""
    done = {}
    together = position.at_a_time(4)
    for start in range(0, len(rows), together):
        batch = rows[start : start + together]
        for what in ("first", "second"):
            known = position.kills(what)
            position.begin(batch, what, Limit(0.5, "here.time_limit"))
            if what == "second" and 5 in batch and 5 not in known:
                ctypes.PyDLL(None).sleep(1000)
            done |= {row: known.get(row, done.get(row, "ok")) for row in batch}
        position.end(len(batch))
    return done


def raise_on_b(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> str:
    if args["name"] == "b":
        raise KeyError("missing thing")
    return args["name"]


def fill_the_disk(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> str:
    raise OSError(28, "No space left on device", "/somewhere/part-000001.parquet")


def die(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> None:
    if not args.get("live"):
        os.kill(os.getpid(), signal.SIGKILL)


def lack(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> None:
    import ray

    raise Unfit("This node lacks something.", ray.get_runtime_context().get_node_id())


def fail_in_a_rank(args: Any, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool) -> None:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise ValueError(f"rank 1 of {dist.get_world_size()} says why")
    dist.barrier()


def test_jobs_run_and_give_their_results(workers: Cluster) -> None:
    assert run(workers, double, [Job(str(n), {}, (n, n + 1)) for n in range(20)]) == {
        str(n): [2 * n, 2 * n + 2] for n in range(20)
    }


def test_a_worker_that_dies_is_tried_again(workers: Cluster, tmp_path: Path) -> None:
    assert run(workers, die_once, [Job("a", {"mark": str(tmp_path / "mark")}, (0,))]) == {"a": "lived"}


def test_a_run_whose_every_node_lacks_something_ends_and_does_not_wait(workers: Cluster) -> None:
    with pytest.raises(MillError, match="No node of the cluster can be used") as told:
        run(workers, lack, [Job("a", {}, (0,))])
    assert str(told.value).endswith("This node lacks something.")
    workers._unfit.clear()


@pytest.mark.slow
def test_the_one_row_that_kills_is_found_and_the_rest_goes_on(workers: Cluster) -> None:
    results = run(workers, die_on_three, [Job("a", {}, tuple(range(8))), Job("b", {}, (8, 9))])
    assert "killed its worker" in results["a"].pop(3)
    assert set(results["a"].values()) == {"ok"} and len(results["a"]) == 7
    assert results["b"] == {8: "ok", 9: "ok"}


def test_a_row_that_hangs_in_c_is_found_and_the_others_are_done(workers: Cluster) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    workers.event = lambda kind, **facts: told.append((kind, facts)) if kind != "commit" else None
    results = run(workers, hang_on_five, [Job("a", {}, tuple(range(8))), Job("b", {}, (8, 9))])
    workers.event = lambda kind, **facts: None
    assert results["a"].pop(5) == "took longer than 0.5 s (here.time_limit)"
    assert set(results["a"].values()) == {"ok"} and len(results["a"]) == 7
    assert results["b"] == {8: "ok", 9: "ok"}
    assert [kind for kind, _ in told if kind != "commit"] == ["worker lost", "worker lost", "row found"]
    assert told[-1][1] == {
        "job": "a",
        "row": 5,
        "what": "second",
        "reason": "took longer than 0.5 s (here.time_limit)",
    }
    assert not list(Path(tempfile.gettempdir()).glob(f"controlmill-{workers.token}*"))


def test_a_job_that_raises_is_named_at_the_end_and_the_others_are_done(workers: Cluster) -> None:
    done = []
    with pytest.raises(JobsFailed, match="b: KeyError: 'missing thing'"):
        workers.run(
            raise_on_b,
            [Job(n, {"name": n}, (0,)) for n in "abc"],
            lambda ended: done.extend(job.name for job, _ in ended),
            label="test",
            total=3,
        )
    assert sorted(done) == ["a", "c"]


def test_a_full_disk_stops_at_once_with_one_sentence(workers: Cluster) -> None:
    with pytest.raises(
        MillError,
        match=(
            r"The disk is full \(/somewhere/part-000001.parquet\): make room, then run the same command again"
        ),
    ):
        run(workers, fill_the_disk, [Job(str(n), {}, (0,)) for n in range(100)])


def test_the_driver_has_time_while_jobs_are_under_way(
    workers: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    monkeypatch.setattr(workers, "meanwhile", lambda: turns.append(1))
    assert run(workers, double, [Job("one", {}, (1,)), Job("two", {}, (2,))]) == {"one": [2], "two": [4]}
    assert turns


def test_a_job_waits_for_the_one_it_names_and_fails_with_it(workers: Cluster) -> None:
    done: list[str] = []
    told: dict[str, str] = {}
    jobs = [
        Job("late", {"name": "late"}, (), after=("early",)),
        Job("orphan", {"name": "orphan"}, (), after=("broken",)),
        Job("broken", {"name": "b"}, ()),
        Job("grandchild", {"name": "g"}, (), after=("orphan",)),
        Job("early", {"name": "early"}, ()),
    ]
    with pytest.raises(JobsFailed, match="3 of the test jobs failed"):
        workers.run(
            raise_on_b,
            jobs,
            lambda ended: done.extend(job.name for job, _ in ended),
            label="test",
            total=5,
            failed=lambda job, reason: told.update({job.name: reason}),
        )
    assert done == ["early", "late"]
    assert told == {
        "broken": "KeyError: 'missing thing'",
        "orphan": "it waits for broken, which failed",
        "grandchild": "it waits for orphan, which failed",
    }


def test_a_job_that_always_loses_its_worker_fails_alone_where_it_has_no_rows(workers: Cluster) -> None:
    done: list[str] = []
    with pytest.raises(JobsFailed, match="a: killed its worker every time it was tried"):
        workers.run(
            die,
            [Job("a", {}, ()), Job("b", {"live": True}, ())],
            lambda ended: done.extend(job.name for job, _ in ended),
            label="test",
            total=2,
        )
    assert done == ["b"]


@pytest.mark.slow
def test_what_one_of_several_processes_raises_comes_out_as_one_sentence(
    workers: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(JobsFailed) as caught:
        workers.run(
            fail_in_a_rank,
            [Job("a", {}, (), processes=2, scratch=str(tmp_path))],
            lambda *_: None,
            label="test",
            total=1,
        )
    assert str(caught.value).splitlines()[1:] == ["  a: ValueError: rank 1 of 2 says why"]
    assert not list(tmp_path.iterdir()), "what Ray Train writes is thrown away"


def test_ray_is_not_started_when_there_is_nothing_to_do() -> None:
    with cluster() as idle:
        run(idle, double, [])
        assert idle._session is None


def test_numbers_for_prometheus_carry_stage_condition_and_status(
    workers: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util import metrics

    told: dict[tuple[str, ...], float] = {}

    def record(self: Any, value: float, tags: dict[str, str]) -> None:
        told[self.info["name"], *tags.values()] = value

    monkeypatch.setattr(metrics.Counter, "inc", record)
    monkeypatch.setattr(metrics.Gauge, "set", record)
    measures = Metrics()
    measures.committed("annotate", {"canny": {"ok": 3, "failed": 1}, "hed": {"ok": 4}}, 1000)
    measures.follow(Rate("annotate", 40, 240, "images", 2.0, 100.0, {}, 20.0), jobs=4)
    assert told == {
        ("controlmill_rows_total", "annotate", "canny", "ok"): 3,
        ("controlmill_rows_total", "annotate", "canny", "failed"): 1,
        ("controlmill_rows_total", "annotate", "hed", "ok"): 4,
        ("controlmill_bytes_total", "annotate"): 1000,
        ("controlmill_rows_done", "annotate"): 40,
        ("controlmill_rows_to_do", "annotate"): 240,
        ("controlmill_jobs_under_way", "annotate"): 4,
        ("controlmill_seconds_left", "annotate"): 100.0,
    }


@pytest.mark.slow
def test_prometheus_reads_the_numbers_at_rays_own_port() -> None:
    for module in ("prometheus_client", "opencensus", "opentelemetry", "aiohttp_cors"):
        pytest.importorskip(module, reason="ray[default] is not installed: Ray serves no metrics without it")
    script = """
import sys, time, urllib.request, ray
from pipeline.cluster.metrics import Metrics
ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=int(sys.argv[1]))
Metrics().committed("annotate", {"canny": {"ok": 3}}, 1000)
for _ in range(30):
    time.sleep(2)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=5).read().decode()
    except OSError:
        continue
    if "controlmill_rows_total" in text:
        print(text)
        break
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = subprocess.run([sys.executable, "-c", script, port], capture_output=True, text=True, timeout=120)
    (line,) = [line for line in told.stdout.splitlines() if line.startswith("ray_controlmill_rows_total{")]
    assert 'stage="annotate"' in line and 'name="canny"' in line and line.endswith(" 3.0")
