"""The thirteen rows and what importing costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from annotate.annotator import DETECTORS, lacks, licence, missing
from annotate.conditions import CONDITIONS


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_there_are_thirteen_conditions_in_the_papers_order() -> None:
    assert list(CONDITIONS) == [
        "canny",
        "hough",
        "hed",
        "sketch",
        "pose_openpifpaf",
        "pose_openpose",
        "seg_coco",
        "seg_ade20k",
        "depth_large",
        "depth_small",
        "normal",
        "normal_extended",
        "cartoon",
    ]
    warm = {name: row.warm_start for name, row in CONDITIONS.items() if row.warm_start}
    assert warm == {"hough": "canny", "sketch": "canny", "normal_extended": "normal"}
    assert all(row.parent in (None, *CONDITIONS) and row.rule and row.fidelity for row in CONDITIONS.values())


def test_what_cannot_be_made_here_names_the_file_and_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("CONTROLMILL_WEIGHTS", raising=False)
    for name in ("depth_large", "depth_small", "normal", "seg_coco", "seg_ade20k"):
        told = str(lacks(name))
        assert "Get it: hf download " in told and str(tmp_path) in told and "$CONTROLMILL_WEIGHTS" in told, (
            told
        )
    assert lacks("canny") is None
    assert missing("teleport") == "teleport is not built yet"


def test_every_detector_of_a_condition_is_built() -> None:
    assert {name for row in CONDITIONS.values() for name in (*row.detectors, *row.by_name)} == set(DETECTORS)


def test_every_detector_names_its_licence_and_belongs_to_a_condition() -> None:
    asked = {name for row in CONDITIONS.values() for name in (*row.detectors, *row.by_name)}
    assert set(DETECTORS) <= asked
    assert all(licence(name) for name in DETECTORS)


def test_conditions_need_the_standard_library_only() -> None:
    loaded = modules_after("import annotate.conditions")
    assert "numpy" not in loaded and "cv2" not in loaded


def test_importing_the_annotator_loads_no_library_that_computes() -> None:
    assert not {"torch", "cv2", "mediapipe", "h5py", "controlnet_aux", "ray", "duckdb"} & modules_after(
        "import annotate.annotator"
    )


def test_a_canny_worker_never_imports_torch() -> None:
    code = (
        "import numpy as np\nfrom annotate.annotator import annotate, identity, resolve\n"
        "step = resolve('canny'); identity(step); resolve('hed', params={'precision': 'fp32'})\n"
        "annotate([np.eye(64, dtype=np.uint8)[..., None].repeat(3, 2) * 255], ['a'], [step])"
    )
    loaded = modules_after(code)
    assert "cv2" in loaded and not {"torch", "mediapipe", "h5py"} & loaded
