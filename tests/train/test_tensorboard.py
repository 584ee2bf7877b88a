import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.tensorboard import TensorBoard, flatten

ROW = {
    "images": 400, "step": 100, "loss": {"canny": 0.25, "depth": 0.5}, "lr": 1e-5, "seconds_left": None,
    "held_out": {"canny": {"gap": 0.125, "control": None, "gap_by_timestep": {"000-124": -0.5}}},
    "note": "text", "done": True,
    "bad": float("nan"),
}  # fmt: skip


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def row(images: int, loss: float) -> dict[str, Any]:
    return {"images": images, "step": images // 4, "loss": {"canny": loss}}


def test_every_number_of_a_row_is_a_curve_over_images_and_nothing_else_is() -> None:
    tags = dict(flatten(ROW))
    assert tags.keys() - {"images", "step"} == {
        "loss/canny",
        "loss/depth",
        "lr",
        "held_out/canny/gap",
        "held_out/canny/gap_by_timestep/000-124",
    }
    assert tags["held_out/canny/gap_by_timestep/000-124"] == -0.5


def test_what_was_added_is_read_back_at_once(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.add(ROW)
    board.add(row(800, 0.125))
    board.picture("grid/canny", np.full((8, 12, 3), 200, np.uint8), 800)
    events = read(tmp_path)  # the board is still open, as after a kill
    assert set(events.Tags()["scalars"]) == dict(flatten(ROW)).keys() - {"images", "step"}
    assert points(tmp_path, "loss/canny") == [(400, 0.25), (800, 0.125)]
    (picture,) = events.Images("grid/canny")
    assert (picture.step, picture.height, picture.width) == (800, 8, 12)
    board.close()


def test_a_resumed_run_takes_back_what_lies_beyond_its_checkpoint(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, 0)
    for images in (400, 800, 1200, 1600):
        first.add(row(images, 1.0))
    first.close()
    again = TensorBoard(tmp_path, 800)
    again.add(row(1200, 2.0))
    again.close()
    assert points(tmp_path, "loss/canny") == [(400, 1.0), (800, 1.0), (1200, 2.0)]


def test_a_run_that_starts_over_takes_everything_back(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, 0)
    first.add(row(400, 1.0))
    first.close()
    again = TensorBoard(tmp_path, 0)
    again.add(row(200, 2.0))
    again.close()
    assert points(tmp_path, "loss/canny") == [(200, 2.0)]


def test_without_tensorboard_a_run_is_told_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = TensorBoard(tmp_path / "board", 0)
    board.add(ROW)
    board.picture("grid/canny", np.zeros((8, 8, 3), np.uint8), 400)
    board.close()
    assert capsys.readouterr().out.count("tensorboard is not installed") == 1
    assert not (tmp_path / "board").exists()
