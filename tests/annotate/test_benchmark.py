"""The benchmark of the detectors measures every learned row beside its library, and keeps what it has."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotate.detectors import DETECTORS
from benchmarks import annotate, library_loops, profiles
from benchmarks.library_loops import ROWS, WITHOUT_LOOP

SMALL = ["--images", "2", "--size", "64", "--repeats", "1", "--seconds", "0.2", "--threads", "1", "--tiny"]


def test_every_detector_with_weights_has_its_librarys_loop_or_a_reason() -> None:
    learned = {name for name, row in DETECTORS.items() if row.weights}
    assert learned - WITHOUT_LOOP.keys() <= ROWS.keys(), "add a row to benchmarks/library_loops.py"
    assert not WITHOUT_LOOP.keys() & ROWS.keys() and WITHOUT_LOOP.keys() <= DETECTORS.keys()


def test_a_run_that_breaks_off_keeps_the_detectors_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(folder: Path, device: str) -> Any:
        return lambda image: Image.fromarray(image[..., 0])

    def broken(folder: Path, device: str) -> Any:
        raise RuntimeError("no such network")

    monkeypatch.setitem(library_loops.ROWS, "opencv-canny", replace(ROWS["opencv-canny"], load=load))
    monkeypatch.setitem(library_loops.ROWS, "mlsd", replace(ROWS["opencv-canny"], load=broken))
    monkeypatch.setattr(
        annotate,
        "photographs",
        lambda count, size: [np.eye(64, dtype=np.uint8)[..., None].repeat(3, 2)] * count,
    )
    with pytest.raises(RuntimeError, match="no such network"):
        annotate.main([*SMALL, "--detectors", "opencv-canny,mlsd", "--out", str(tmp_path / "a.json")])
    told = json.loads((tmp_path / "a.json").read_text())
    rows = told["opencv-canny"]
    assert list(rows) == ["controlnet_aux in a loop", "opencv-canny"] and "mlsd" not in told
    assert rows["controlnet_aux in a loop"]["times_loop"] == 1.0
    assert told["device"] == "cpu" and 1 <= rows["opencv-canny"]["images"] <= 2


def test_a_profile_counts_the_sums_and_names_the_kinds_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(profiles, "best_rate", lambda dtype, device: 100.0)
    one = torch.randn(1024, 1024)
    found = profiles.of(lambda: one @ one, "fp32", "cpu")
    assert found["gflop"] == 2.1 and found["seconds"] > 0 and found["least_seconds"] > 0
    assert "matrix products" in found["shares"] and 0 < sum(found["shares"].values()) < 1.1
    assert profiles.kind("aten::mkldnn_convolution") == "convolutions"
    assert profiles.kind("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"


def test_a_name_that_has_no_loop_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        annotate.main([*SMALL, "--detectors", "midas"])
    assert "no loop is known for midas; known: opencv-canny" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "detector", ["mlsd", "anime2sketch", "depth-anything-v2", "upernet-ade20k", "oneformer-coco"]
)
def test_both_sides_of_a_row_run_on_the_same_weights(detector: str, tmp_path: Path) -> None:
    pytest.importorskip("controlnet_aux")
    annotate.main([*SMALL, "--detectors", detector, "--out", str(tmp_path / "a.json")])
    first, *others = json.loads((tmp_path / "a.json").read_text())[detector]
    assert first.endswith("in a loop") and any("bf16" in name for name in others)
