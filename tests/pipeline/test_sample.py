"""`controlmill sample` beyond a picture from a prompt: guess mode, the ControlNet's window, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.cli import main
from train import checkpoint
from train.base import build_random, load
from train.controlnet import ControlNet


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
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "hint.png")
    return folder


def run(place: Path, out: Path, *more: Any) -> Result:
    told = ["--checkpoint", place / "nets/canny", "--base", place / "base", "--image", place / "hint.png", "--hint", "--out", out]
    return CliRunner().invoke(main, ["sample", *map(str, [*told, "--resolution", 64, "--steps", 2, *more])])


def test_guess_mode_draws_without_a_prompt_and_window_and_guided_hint_count(place: Path, tmp_path: Path) -> None:
    images = []
    alone, changes = ["--prompt", ""], (["--end", 0.5], ["--start", 0.5], ["--guide-hint"])
    for number, more in enumerate((["--guess"], alone, *([*alone, *change] for change in changes))):
        told = run(place, tmp_path / f"{number}.png", *more)
        assert told.exit_code == 0, told.output
        images.append(np.asarray(Image.open(tmp_path / f"{number}.png")).astype(int))
    for i, one in enumerate(images):
        assert one.shape == (64, 64, 3)
        assert all(np.abs(one - other).mean() > 0.2 for other in images[:i])


def test_without_a_prompt_or_with_an_empty_window_one_sentence_says_what_to_do(place: Path, tmp_path: Path) -> None:
    for more, sentence in (
        (["--scale", 2], "only --guess does without"),
        (["--guess", "--start", 0.8, "--end", 0.2], "0 <= start < end <= 1"),
    ):
        told = run(place, tmp_path / "x.png", *more)
        assert told.exit_code == 1 and sentence in told.output and told.output.count("\n") == 1, told.output
    assert not list(tmp_path.iterdir())
