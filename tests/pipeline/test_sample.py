"""`controlmill sample` beyond a picture from a prompt: guess mode, the ControlNet's window, and what it
refuses.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.cli import main
from train import checkpoint, mini
from train.base import fingerprint, load
from train.controlnet import ControlNet
from train.random_base import build_random


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base, a ControlNet on it that changes what it draws, and a hint."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("place")
    build_random(folder / "base")
    torch.manual_seed(0)
    net, _ = ControlNet.from_unet(load(folder / "base", parts=("unet",)).unet)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint.save(folder / "run", {"canny": net}, {}, {"step": 1, "images": 4}).path.rename(folder / "nets")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        folder / "hint.png"
    )
    return folder


def run(place: Path, out: Path, *more: Any) -> Result:
    told = [
        "--checkpoint",
        place / "nets/canny",
        "--base",
        place / "base",
        "--image",
        place / "hint.png",
        "--hint",
        "--out",
        out,
    ]
    return CliRunner().invoke(
        main, ["sample", *map(str, [*told, "--resolution", 64, "--num-inference-steps", 2, *more])]
    )


@pytest.mark.slow
def test_guess_mode_draws_without_a_prompt_and_window_and_guided_hint_count(
    place: Path, tmp_path: Path
) -> None:
    images = []
    alone, changes = (
        ["--prompt", ""],
        (
            ["--control-guidance-end", 0.5],
            ["--control-guidance-start", 0.5],
            ["--cfg-hint", "conditional"],
        ),
    )
    for number, more in enumerate((["--guess-mode"], alone, *([*alone, *change] for change in changes))):
        told = run(place, tmp_path / f"{number}.png", *more)
        assert told.exit_code == 0, told.output
        images.append(np.asarray(Image.open(tmp_path / f"{number}.png")).astype(int))
    for i, one in enumerate(images):
        assert one.shape == (64, 64, 3)
        assert all(np.abs(one - other).mean() > 0.2 for other in images[:i])


def test_without_a_prompt_or_with_an_empty_window_one_sentence_says_what_to_do(
    place: Path, tmp_path: Path
) -> None:
    for more, sentence in (
        (["--guidance-scale", 2], "only --guess-mode does without"),
        (
            ["--guess-mode", "--control-guidance-start", 0.8, "--control-guidance-end", 0.2],
            "0 <= start < end <= 1",
        ),
        (
            ["--guess-mode", "--sampler", "dpm++", "--num-inference-steps", 1000],
            "the sampler dpm++ can't take 1000 steps on this base",
        ),
        (["--steps", 4], "--steps is called --num-inference-steps now."),
        (["--guide-hint"], "--guide-hint is called --cfg-hint conditional now."),
        (["--guess"], "--guess is called --guess-mode now."),
    ):
        told = run(place, tmp_path / "x.png", *more)
        assert told.exit_code == 1 and sentence in told.output and told.output.count("\n") == 1, told.output
    assert not list(tmp_path.iterdir())


MANIFEST = """
name: small
workspace: elsewhere
source: {kind: scenes, count: 4}
image: {resolution: 192, fit: bucket}
conditions: {canny: {low: 40, high: 90}, depth_large: {detector: provided}}
train: {base: mini, runs: [{conditions: [canny], images: 4}]}
evaluate:
  benchmark: {sampler: unipc, num_inference_steps: 3, guidance_scale: 2.5, cfg_hint: conditional}
  readers: {depth_large: {detector: mini}}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """As a run leaves it: the manifest, and a checkpoint with what was trained at 128 pixels."""
    folder = tmp_path / "ws/checkpoints/canny-1/step-00000001"
    shutil.copytree(mini.ROOTS / "canny", folder / "canny", ignore=shutil.ignore_patterns("controlmill.json"))
    meta = {
        "step": 1,
        "images": 4,
        "files": {},
        "base": fingerprint("mini"),
        "base_name": "mini",
        "sizes": [[128, 128]],
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "ws/manifest.yaml").write_text(MANIFEST)
    draw = np.random.default_rng(0).integers(0, 256, (5, 10, 3), dtype=np.uint8)
    Image.fromarray(np.kron(draw, np.ones((64, 64, 1), np.uint8))).save(tmp_path / "photo.png")
    return tmp_path


def drawn(place: Path, checkpoint: Any, *more: Any) -> tuple[Result, tuple[int, ...]]:
    words = [
        "--checkpoint",
        checkpoint,
        "--image",
        place / "photo.png",
        "--out",
        place / "out.png",
        "--prompt",
        "a red cube",
        *more,
    ]
    told = CliRunner().invoke(main, ["sample", *map(str, words)])
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines() == [str(place / "out.png"), str(place / "out.hint.png")]
    made, hint = (np.asarray(Image.open(place / name)) for name in ("out.png", "out.hint.png"))
    assert made.shape == hint.shape
    return told, made.shape


@pytest.mark.slow
def test_a_checkpoint_is_drawn_with_at_the_size_and_by_the_detector_that_it_was_trained_with(
    workspace: Path,
) -> None:
    folder = workspace / "ws/checkpoints/canny-1/step-00000001"
    told, shape = drawn(workspace, folder / "canny")
    assert shape == (128, 128, 3)
    size, detector = told.stderr.splitlines()
    assert (
        size == "128 pixels, as it was trained at; UniPC, 3 steps, guidance 2.5 of the hint too"
        and detector == "canny by the detector opencv-canny"
    )
    own = (workspace / "out.hint.png").read_bytes()
    text = yaml.safe_load(MANIFEST)
    text["conditions"]["canny"] = {"low": 500, "high": 900}
    (workspace / "ws/manifest.yaml").write_text(yaml.safe_dump(text))
    drawn(workspace, folder / "canny")
    assert (workspace / "out.hint.png").read_bytes() != own
    told, shape = drawn(
        workspace,
        folder / "canny",
        "--resolution",
        64,
        "--guidance-scale",
        1.5,
        "--cfg-hint",
        "both",
        "--num-inference-steps",
        1,
    )
    assert shape == (64, 64, 3) and told.stderr.startswith(
        "64 pixels, as you say; UniPC, 1 steps, guidance 1.5\n"
    )


def test_an_older_checkpoint_takes_the_size_of_its_workspace(workspace: Path) -> None:
    folder = workspace / "ws/checkpoints/canny-1/step-00000001"
    meta = json.loads((folder / "meta.json").read_text())
    del meta["sizes"]
    (folder / "meta.json").write_text(json.dumps(meta | {"base": "another"}))
    told, shape = drawn(workspace, folder / "canny", "--num-inference-steps", 1)
    assert (
        shape == (128, 256, 3) and "192 pixels, aspect ratio kept, as its workspace trains at" in told.stderr
    )
    assert "warning: " in told.stderr and "was trained on the base mini" in told.stderr


def test_what_is_read_again_of_maps_that_came_with_the_images_draws_the_hint(workspace: Path) -> None:
    folder = workspace / "ws/checkpoints/canny-1/step-00000001/canny"
    told, _ = drawn(workspace, folder, "--condition", "depth_large", "--num-inference-steps", 1)
    assert "depth_large by the detector mini" in told.stderr


def test_a_shipped_controlnet_needs_no_more_than_its_name(workspace: Path) -> None:
    told, shape = drawn(workspace, "mini/canny", "--num-inference-steps", 2)
    assert shape == (128, 128, 3) and told.stderr.startswith(
        "128 pixels, the size of its base; DDIM, eta 0, 2 steps, guidance 3 of the hint too\n"
    )
    copy = shutil.copytree(mini.ROOTS / "canny", workspace / "canny")
    refused = CliRunner().invoke(
        main, ["sample", "--checkpoint", str(copy), "--image", "x", "--out", "y", "--prompt", ""]
    )
    assert refused.exit_code == 1 and "name it with --base" in refused.output
    (copy / "controlmill.json").unlink()
    told, shape = drawn(workspace, copy, "--base", "mini", "--num-inference-steps", 1)
    assert shape == (128, 128, 3) and told.stderr.startswith(
        "128 pixels, the size of its base; DDIM, eta 0, 1 steps, guidance 7.5\n"
    )


def test_files_of_others_around_a_controlnet_are_no_record_of_it(workspace: Path) -> None:
    folder = workspace / "some/where/else/canny"
    shutil.copytree(mini.ROOTS / "canny", folder)
    (folder.parent / "meta.json").write_text('["of another program"]')
    (workspace / "manifest.yaml").write_text("apiVersion: v1")
    told, shape = drawn(workspace, folder, "--base", "mini", "--num-inference-steps", 1)
    assert shape == (128, 128, 3) and told.stderr.startswith(
        "128 pixels, the size of its base; DDIM, eta 0, 1 steps, guidance 3 of the hint too\n"
    )
    (folder / "controlmill.json").write_text("{")
    refused = CliRunner().invoke(
        main,
        [
            "sample",
            "--checkpoint",
            str(folder),
            "--image",
            "x",
            "--out",
            "y",
            "--prompt",
            "",
            "--base",
            "mini",
        ],
    )
    assert refused.exit_code == 1 and f"{folder / 'controlmill.json'} is no JSON" in refused.output


def test_a_run_writes_down_at_which_sizes_it_trained(tmp_path: Path) -> None:
    from tests.train.conftest import ToyPairs, tiny_base
    from train.fit import Options, fit

    done = fit(
        tiny_base(),
        ToyPairs(wide=(1, 2)),
        ["edges"],
        Options(images=4, batch=4, workers=0, held_out=0),
        tmp_path,
    )
    assert json.loads((done.path / "meta.json").read_text())["sizes"] == [[128, 128], [128, 256]]


def test_a_resolution_that_the_networks_can_not_halve_is_one_sentence(workspace: Path) -> None:
    told = run(workspace, workspace / "x.png", "--resolution", 100, "--prompt", "")
    assert (
        told.exit_code == 1
        and "--resolution 100 is no multiple of 64" in told.output
        and told.output.count("\n") == 1
    )
