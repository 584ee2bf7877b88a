"""Files as they were published: the names and shapes of their tensors, from the public code that loaded them
strictly on the day of publishing, load here, every tensor of the file and no other.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from annotate import controlnet_hed, depth, lineart, mlsd, networks, normals, openpose
from annotate.detectors import DETECTORS
from annotate.weights import WeightsError

FOLDER = Path(__file__).parents[1] / "published"
PUBLISHED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
# by detector: the module that reads the file, and the function that loads it
LOADERS: dict[str, tuple[ModuleType, Callable[..., Any]]] = {
    "anime2sketch": (lineart, lineart.load),
    "controlnet-hed": (controlnet_hed, controlnet_hed.load),
    "midas-dpt-hybrid": (depth, depth.load_midas),
    "mlsd": (mlsd, mlsd.load),
    "normal-bae": (normals, normals.load_bae),
    "openpose": (openpose, openpose.load),
}


def stored(told: dict[str, Any], without: str = "", more: str = "") -> dict[str, Any]:
    """What reading the file gives, all of it ones."""
    shapes = {name: shape for name, shape in told["tensors"].items() if name != without}
    tensors = {name: torch.ones(shape) for name, shape in (shapes | ({more: [1]} if more else {})).items()}
    return {told["under"]: tensors} if told["under"] else tensors


def load(name: str, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    module, function = LOADERS[name]
    monkeypatch.setattr(networks if module is lineart else module, "tensors", lambda path: tensors)
    monkeypatch.setattr(module, "find", lambda *given: Path(PUBLISHED[name]["file"]))
    return function.__wrapped__("fp32", "cpu")  # type: ignore[attr-defined]


def test_each_layout_names_its_source_and_the_file_of_its_detector() -> None:
    assert PUBLISHED.keys() == LOADERS.keys()
    for name, told in PUBLISHED.items():
        assert told["source"].startswith("https://github.com/") and told["detector"] == name
        assert [weight.name for weight in DETECTORS[name].weights] == [told["file"]]


LARGE = {"anime2sketch", "midas-dpt-hybrid", "normal-bae"}  # that take seconds to build


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=[pytest.mark.slow] * (it in LARGE)) for it in PUBLISHED]
)
def test_a_published_layout_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = PUBLISHED[name]
    assert load(name, stored(told), monkeypatch)
    learned = [each for each in told["tensors"] if each.endswith((".weight", ".bias"))]
    with pytest.raises(
        (WeightsError, ValueError, RuntimeError), match=r"[Mm]issing|lacks|it has no|holds no"
    ):
        load(name, stored(told, without=learned[-1]), monkeypatch)


def test_names_of_a_training_on_several_devices_load_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release takes `module.` off as well, where its file has it."""
    for name in ("anime2sketch", "normal-bae"):
        told = dict(PUBLISHED[name])
        told["tensors"] = {f"module.{each}": shape for each, shape in told["tensors"].items()}
        assert load(name, stored(told), monkeypatch)
