import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import diffusers_loop
from benchmarks import train as benchmark
from benchmarks.shapes import SHAPES, RandomPairs, random_base
from train import fit as loop
from train import throughput

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK = ["--shape", "tiny", "--steps", "1", "--readings", "1", "--repeats", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """One real run of the command, from another folder: what it printed, and its JSON."""
    folder = tmp_path_factory.mktemp("benchmark")
    only = "K = 1,diffusers,K = 4 joined,plain AdamW"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "train.py"),
        *QUICK,
        "--only",
        only,
        "--out",
        "out.json",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "out.json").read_text())


def test_the_command_measures_every_loop_and_tells_the_machine(told: tuple[str, dict[str, Any]]) -> None:
    printed, report = told
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {
        "ours, K = 1",
        "diffusers, cached",
        "diffusers, live",
        "ours, K = 4 joined",
        "ours, small scale with plain AdamW",
    }
    assert [
        row["name"]
        for row in report["rows"]
        if row["failed"] or row["not_run"] or not row["images_per_s"] > 0
    ] == []
    assert rows["diffusers, cached"]["times_cached"] == rows["diffusers, live"]["times_live"] == 1
    assert (
        report["machine"] and report["versions"]["torch"] == torch.__version__ and report["matmul_tflops"] > 0
    )
    assert all(re.search(rf"^{re.escape(name)} +\d", printed, re.MULTILINE) for name in rows)


def test_rates_are_images_over_seconds_and_shares_are_flops_over_the_measured_rate(
    told: tuple[str, dict[str, Any]],
) -> None:
    _, report = told
    for row in report["rows"]:
        (run,) = row["runs"]
        assert run["images_per_s"] == pytest.approx(row["batch"] * 1 / run["readings"][0], rel=0.01)
        assert row["trained_per_s"] == row["conditions"] * row["images_per_s"]
        flops = row["images_per_s"] * row["gigaflops_per_image"] / (report["matmul_tflops"] * 1e3)
        assert row["share"] == pytest.approx(flops, rel=0.01)
    by_name = {row["name"]: row["gigaflops_per_image"] for row in report["rows"]}
    assert by_name["diffusers, cached"] == by_name["ours, K = 1"] < by_name["diffusers, live"]
    answer = report["answers"]["ours, K = 4 joined, batch 4: time against 4 separate runs"]
    one, four = (
        next(row for row in report["rows"] if row["name"] == name)
        for name in ("ours, K = 1", "ours, K = 4 joined")
    )
    assert answer == pytest.approx(one["images_per_s"] / (4 * four["images_per_s"]))


def test_a_row_that_fails_says_why_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(*given: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("no room for 9 GiB\nand more words")

    monkeypatch.setattr(loop, "fit", failing)
    benchmark.main([*QUICK, "--only", "K = 1,cached", "--out", str(tmp_path / "out.json")])
    ours, cached = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert ours["failed"] == "OutOfMemoryError: no room for 9 GiB" and ours["runs"] == []
    assert cached["failed"] is None and cached["images_per_s"] > 0


def test_a_row_that_the_budget_has_no_room_for_is_told_as_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main([*QUICK, "--only", "K = 1", "--budget", "0", "--out", str(tmp_path / "out.json")])
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["not_run"].startswith("0 s of the budget were left")
    assert row["not_run"] in capsys.readouterr().out


def test_the_baseline_halves_its_batch_until_it_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start, tried = diffusers_loop.start, []

    def narrow(*given: Any, batch: int, **more: Any) -> Any:
        tried.append(batch)
        if batch > 1:
            raise torch.OutOfMemoryError
        return start(*given, batch=batch, **more)

    monkeypatch.setattr(diffusers_loop, "start", narrow)
    benchmark.main([*QUICK, "--only", "cached", "--out", str(tmp_path / "out.json")])
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert tried == [4, 2, 1]
    assert row["runs"][0]["batch"] == 1
    assert row["images_per_s"] == pytest.approx(1 / row["runs"][0]["readings"][0], rel=0.01)


@pytest.mark.parametrize("loop", ["live", "cached", "tuned"])
def test_the_baseline_trains_the_same_network_and_nothing_else(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import ControlNetModel

    from train.controlnet import ControlNet

    made, from_unet = [], ControlNetModel.from_unet
    monkeypatch.setattr(
        ControlNetModel,
        "from_unet",
        lambda *given, **more: made.append(from_unet(*given, **more)) or made[-1],
    )
    shape = SHAPES["tiny"]
    base = random_base("tiny", shape, "cpu")
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    told = {"batch": 4, "device": "cpu", "dtype": torch.float32, "backend": "aot_eager"}
    step = diffusers_loop.start(base, RandomPairs(shape, ["a"], 8), shape, loop=loop, **told)
    layouts = {
        tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in made[0].parameters()
        if tensor.dim() == 4 and min(tensor.shape[1:]) > 1
    }
    assert layouts == {loop == "tuned"}
    first = {name: tensor.clone() for name, tensor in made[0].state_dict().items()}
    losses = [step() for _ in range(4)]
    assert all(0 < loss < 10 for loss in losses)
    changed = {name for name, tensor in made[0].state_dict().items() if not torch.equal(first[name], tensor)}
    assert changed == set(first)
    ours = ControlNet.from_unet(base.unet)[0].state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in first.items()
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in base.unet.state_dict().items())


def test_the_shape_sd15_is_stable_diffusion_1_5() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from benchmarks.shapes import FOUR_DOWN, FOUR_UP

    shape = SHAPES["sd15"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape.unet)
        vae = AutoencoderKL(
            **shape.vae, latent_channels=4, down_block_types=FOUR_DOWN, up_block_types=FOUR_UP
        )
        pixels = torch.empty(1, 3, shape.pixels, shape.pixels)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863
    with torch.no_grad():
        assert throughput.counted(lambda: vae.encode(pixels))[0] == pytest.approx(1117e9, rel=0.02)
