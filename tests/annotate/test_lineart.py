"""Anime2Sketch against controlnet_aux on the same random weights of the true architecture."""

import functools
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotate import lineart
from annotate.annotator import Annotation, annotate, resolve
from annotate.inference import resize

SIDE = 256  # of what the network sees here; the release has 512


def network() -> object:
    import torch
    from controlnet_aux.lineart_anime import UnetGenerator

    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    return UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, astronaut: np.ndarray) -> str:
    """The last layer is scaled so that the drawing has all greys; names as in the released file, below
    `module.`
    """
    import torch

    torch.manual_seed(0)
    net = network().eval()
    with torch.no_grad():
        last = net.model.model[3]
        values = []
        last.register_forward_hook(lambda _, inputs, output: values.append(output))
        net(torch.from_numpy(resize(astronaut, (SIDE, SIDE))).permute(2, 0, 1)[None].float() / 127.5 - 1)
        last.weight *= 0.8 / values[0].std()
        last.bias += 0.5
    place = tmp_path_factory.mktemp("weights") / "netG.pth"
    torch.save({f"module.{name}": tensor for name, tensor in net.state_dict().items()}, place)
    return str(place)


def settings(weights: str, **params: object) -> dict:
    return {"weights": weights, "precision": "fp32", "resolution": SIDE, **params}


def found(images: list[np.ndarray], weights: str, **params: object) -> list[Annotation]:
    step = resolve("cartoon", "anime2sketch", settings(weights, **params))
    return annotate(images, [str(i) for i in range(len(images))], [step])["cartoon"]


def grey(image: np.ndarray, weights: str, **params: object) -> np.ndarray:
    return lineart.draw_grey([image], settings(weights, **params), "cpu")[0]


def published(image: np.ndarray, weights: str, resolution: int = SIDE) -> np.ndarray:
    """uint8 [h, w] of the library's own detector on the same file, at the resolution of detection."""
    import torch
    from controlnet_aux.lineart_anime import LineartAnimeDetector

    net = network()
    net.load_state_dict(
        {
            name.removeprefix("module."): tensor
            for name, tensor in torch.load(weights, weights_only=True).items()
        }
    )
    return LineartAnimeDetector(net.eval())(
        image, detect_resolution=resolution, image_resolution=resolution, output_type="np"
    )[..., 0]


def test_the_grey_drawing_is_controlnet_auxs_to_the_pixel(astronaut: np.ndarray, weights: str) -> None:
    """But where the fp32 sums of two memory layouts fall on different sides of a whole number: by one, a
    pixel in a thousand.
    """
    image = resize(astronaut, (SIDE, SIDE))
    wanted, ours = published(image, weights), grey(image, weights)
    apart = np.abs(ours.astype(int) - wanted)
    assert wanted.std() > 30 and np.ptp(wanted) > 200, "not a trivial picture"
    assert apart.max() <= 1 and (apart > 0).mean() < 2e-3


def test_sides_that_are_no_multiple_of_256_are_stretched_and_back(
    astronaut: np.ndarray, weights: str
) -> None:
    image = np.ascontiguousarray(astronaut[:192, :320])
    wanted, ours = published(image, weights, 192), grey(image, weights, resolution=192)
    assert wanted.shape == (192, 320)
    apart = np.abs(ours.astype(int) - wanted)
    assert apart.max() <= 1 and (apart > 0).mean() < 2e-3


def test_seen_at_another_resolution_the_drawing_still_has_the_size_of_the_image(
    astronaut: np.ndarray, weights: str
) -> None:
    image = np.ascontiguousarray(astronaut[:150, :170])
    ours = grey(image, weights)
    assert ours.shape == (150, 170)
    smaller = cv2.resize(grey(resize(image, (256, 320)), weights), (170, 150), interpolation=cv2.INTER_AREA)
    assert np.abs(ours.astype(int) - smaller).max() <= 1
    assert grey(image, weights, resolution=0).shape == (150, 170)


def test_lines_are_white_on_black_and_the_threshold_cuts_the_grey_drawing(
    astronaut: np.ndarray, weights: str
) -> None:
    """The random network's bias makes the paper brighter than the lines: most of the drawing
    must be black.
    """
    image = resize(astronaut, (SIDE, SIDE))
    drawing = grey(image, weights)
    default, high = found([image], weights)[0], found([image], weights, threshold=128)[0]
    assert drawing.mean() < 110
    for one, threshold in ((default, 64), (high, 128)):
        assert one.status == "ok" and set(np.unique(one.map.array)) == {0, 255}
        np.testing.assert_array_equal(one.map.array > 0, drawing >= threshold)


def test_bf16_moves_the_drawing_by_little(astronaut: np.ndarray, weights: str) -> None:
    """Measured: 0.6 and 0.7 of 255 on average, 7 at most (n = 2, random weights)."""
    image = resize(astronaut, (SIDE, SIDE))
    exact, fast = grey(image, weights).astype(int), grey(image, weights, precision="bf16").astype(int)
    assert 0 < np.abs(exact - fast).mean() < 2


def test_an_image_has_the_same_drawing_alone_and_among_others(astronaut: np.ndarray, weights: str) -> None:
    images = [np.ascontiguousarray(astronaut[:256, x : x + 256]) for x in (0, 200)] + [
        astronaut[:128, :140].copy()
    ]
    for image, one in zip(images, found(images, weights), strict=True):
        np.testing.assert_array_equal(one.map.array, found([image], weights)[0].map.array)


def test_a_flat_picture_gives_finite_edges_and_a_broken_network_fails(
    flat: np.ndarray, weights: str, tmp_path: Path
) -> None:
    import torch

    assert found([flat], weights)[0].status in ("ok", "skipped")
    tensors = torch.load(weights, weights_only=True)
    tensors["module.model.model.3.bias"][:] = float("nan")
    torch.save(tensors, tmp_path / "netG.pth")
    broken = found([flat], str(tmp_path))[0]
    assert broken.status == "failed" and "not finite" in broken.reason
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    wrong = found([flat], str(tmp_path / "other.pth"))[0]
    assert wrong.status == "failed" and "other.pth holds no weights of Anime2Sketch" in wrong.reason
