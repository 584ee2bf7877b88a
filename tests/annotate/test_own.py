"""A detector of one's own: found by its entry point, identified by its package, held to what it promises."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotate import detectors
from annotate.annotator import annotate, identity, resolve
from annotate.maps import RawMap
from annotate.own import Own, detector
from annotate.parameters import Number
from tests.conftest import COMMAND
from tests.wheel import write_wheel

PAGE = Path(__file__).parents[2] / "docs" / "conditions.md"
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As if these were entry points of the package pretty-nets 1.2."""
    for table in ("DETECTORS", "OWN", "BROKEN"):
        monkeypatch.setattr(detectors, table, dict(getattr(detectors, table)))
    for room in ("annotate.annotator", "annotate.steps"):
        monkeypatch.setattr(f"{room}.DETECTORS", detectors.DETECTORS)
    monkeypatch.setattr("annotate.steps.BROKEN", detectors.BROKEN)
    version = importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "1.2" if name == "pretty-nets" else version(name)
    )

    def add(**points: Any) -> None:
        def load(found: Any) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

        made = [
            types.SimpleNamespace(
                name=name.replace("_", "-"),
                value=f"nets:{name}",
                dist=types.SimpleNamespace(name="pretty-nets"),
                load=lambda found=found: load(found),
            )
            for name, found in points.items()
        ]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: made)
        detectors._add_installed()

    return add


def made(function: Any, name: str = "of-mine", conditions: tuple[str, ...] = ("canny",), **facts: Any) -> Own:
    return detector(name=name, conditions=conditions, licence="MIT", **facts)(function)


def edges(image: np.ndarray, params: dict[str, Any], device: str) -> np.ndarray:
    return np.where(image[..., 0] < params.get("below", 60), 255, 0).astype(np.uint8)


def test_a_detector_is_named_and_its_package_is_part_of_its_identity(added: Callable[..., None]) -> None:
    added(of_mine=made(edges, parameters={"below": Number(default=60, least=0, most=255)}, version=3))
    assert resolve("canny").detector == "opencv-canny", "auto never takes it"
    step = resolve("canny", "of-mine", {"below": 90})
    facts = identity(step)
    assert (facts["detector"], facts["version"], facts["library"]) == ("of-mine", 3, ["pretty-nets", "1.2"])
    assert facts["params"] == {"below": 90.0}
    (found,) = annotate([IMAGE], ["a"], [step])["canny"]
    assert found.status == "ok" and found.map is not None
    assert np.array_equal(found.map.array, np.where(IMAGE[..., 0] < 90, 255, 0))
    with pytest.raises(ValueError, match="hough has no detector 'of-mine'"):
        resolve("hough", "of-mine")
    with pytest.raises(ValueError, match="below: 999 is out of range"):
        resolve("canny", "of-mine", {"below": 999})


@pytest.mark.parametrize(
    ("condition", "function", "reason"),
    [
        (
            "canny",
            lambda image, params, device: image[:20, :, 0] * 0,
            "gave a map of (20, 64) for an image of",
        ),
        ("canny", lambda image, params, device: image[..., 0] * 1.0, "a map of kind edges is uint8"),
        ("canny", lambda image, params, device: image, "a map of kind edges is uint8 with 2 axes"),
        (
            "canny",
            lambda image, params, device: RawMap("soft_edges", image[..., 0]),
            "gave a map of kind soft_edges where edges was promised",
        ),
        ("depth_large", lambda image, params, device: image[..., 0] / 0.0, "values that are not finite"),
        (
            "pose_openpose",
            lambda image, params, device: RawMap(
                "people", np.zeros((1, 17, 3), np.float32), {"size": [48, 64], "layout": "coco_17"}
            ),
            "pose_openpose has keypoints openpose_18, not coco_17",
        ),
        (
            "seg_coco",
            lambda image, params, device: RawMap("labels", image[..., 0], {"label_space": "ade20k_150"}),
            "seg_coco has labels of",
        ),
        ("canny", lambda image, params, device: None, "a map of kind edges is uint8"),
    ],
)
def test_a_broken_promise_is_a_failed_row(
    condition: str, function: Any, reason: str, added: Callable[..., None]
) -> None:
    added(of_mine=made(function, conditions=(condition,)))
    with np.errstate(all="ignore"):
        (found,) = annotate([IMAGE], ["a"], [resolve(condition, "of-mine")])[condition]
    assert found.status == "failed" and reason in found.reason


def test_one_pass_serves_several_conditions_with_arrays_of_each_kind(added: Callable[..., None]) -> None:
    calls: list[int] = []

    def depth(image: np.ndarray, params: dict[str, Any], device: str) -> np.ndarray:
        calls.append(1)
        return image[..., 0].astype(np.float32)

    lines = lambda image, params, device: np.array([[0, 0, 40, 40, 1]], np.float32)
    both = ("depth_large", "depth_small")
    added(of_mine=made(depth, conditions=both), liner=made(lines, "liner", ("hough",)))
    steps = [resolve(name, "of-mine") for name in both]
    found = annotate([IMAGE], ["a"], [*steps, resolve("hough", "liner")])
    assert {name: rows[0].status for name, rows in found.items()} == dict.fromkeys(found, "ok")
    assert len(calls) == 1


def test_what_can_not_be_loaded_stops_nothing_else(added: Callable[..., None]) -> None:
    added(
        absent=ModuleNotFoundError("No module named 'heavy'"),
        plain=edges,
        other=made(edges, name="another-name"),
        mlsd=made(edges, name="mlsd"),
        fine=made(edges, name="fine"),
    )
    assert detectors.named("canny")[-1] == "fine"
    told = {
        name: reason.removeprefix("pretty-nets can't be loaded ") for name, reason in detectors.BROKEN.items()
    }
    assert told == {
        "absent": "(ModuleNotFoundError: No module named 'heavy')",
        "plain": "(TypeError: nets:plain is no detector: decorate it with annotate.own.detector)",
        "other": "(ValueError: its entry point has another name than the detector another-name)",
        "mlsd": "(ValueError: there is a detector mlsd already)",
    }
    with pytest.raises(ValueError, match=r"absent: pretty-nets can't be loaded \(ModuleNotFoundError"):
        resolve("canny", "absent")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"name": "Of Mine"}, "is no name of a detector"),
        ({"conditions": ("scribble",)}, r"not \['scribble'\]"),
        ({"conditions": ()}, "conditions are of canny"),
        ({"conditions": ("canny", "normal")}, "maps of the kinds edges and normals"),
    ],
)
def test_facts_that_do_not_fit_are_refused(facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        made(edges, **facts)


@pytest.mark.slow
def test_the_package_on_the_page_is_installed_and_runs(tmp_path: Path) -> None:
    """Its wheel is made here, for a builder may want the network; pip installs it, and a worker of a run uses
    it.
    """
    page = PAGE.read_text(encoding="utf-8")
    (facts,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    project = tomllib.loads(facts)["project"]
    points = project["entry-points"]["controlmill.detectors"]
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    files = {"dark_edges.py": code, "{about}/entry_points.txt": f"[controlmill.detectors]\n{lines}"}
    wheel = write_wheel(tmp_path, project["name"], project["version"], files)
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(place), str(wheel)], check=True)
    (tmp_path / "photos").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "photos" / "one.png")
    manifest = tmp_path / "mine.yaml"
    manifest.write_text(
        f"""name: mine
workspace: {tmp_path / "ws"}
source: {{kind: folder, path: {tmp_path / "photos"}}}
image: {{resolution: 64}}
conditions: {{canny: {{detector: dark-edges, below: 128}}}}
"""
    )
    env = os.environ | {"PYTHONPATH": f"{place}:{Path(__file__).parents[2]}"}

    def told(*words: str | Path) -> str:
        command = [*COMMAND, *map(str, words)]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    assert "dark-edges" in told("conditions")
    told("run", manifest, "--workers", "1")
    query = "SELECT status, identity FROM annotations JOIN detectors USING (fingerprint)"
    (row,) = told("sql", tmp_path / "ws", query, "--json").splitlines()
    assert json.loads(row)["status"] == "ok"
    facts = json.loads(json.loads(row)["identity"])
    assert (facts["detector"], facts["library"]) == ("dark-edges", ["dark-edges", "1.0"])
    assert facts["params"] == {"below": 128.0}
