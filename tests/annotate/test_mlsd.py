"""M-LSD against controlnet_aux on the same weights, and its decoding against segments that are known."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from annotate import mlsd
from annotate.annotator import Annotation, annotate, resolve
from annotate.inference import detection_size, resize
from annotate.maps import render

SIDE = 256  # of what the network sees here; the release has 512


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, astronaut: np.ndarray) -> str:
    """Random weights with settled statistics, the last layer scaled so that some centres are sure and
    segments have 30 pixels.
    """
    import torch
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    torch.manual_seed(0)
    network = MobileV2_MLSD_Large()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of the one picture
    picture = torch.from_numpy(resize(astronaut, (SIDE, SIDE))).permute(2, 0, 1).float()
    x = torch.cat([picture, torch.ones(1, SIDE, SIDE)])[None] / 127.5 - 1
    with torch.no_grad():
        network.train()(x)
        given = network.eval()(x)[0]
        last = network.block23.conv3
        for channel, (mean, spread) in enumerate([(-5.0, 1.5), *[(0.0, 10.0)] * 4]):
            factor = spread / given[channel].std()
            last.weight[7 + channel] *= factor
            last.bias[7 + channel] = (last.bias[7 + channel] - given[channel].mean()) * factor + mean
    place = tmp_path_factory.mktemp("weights") / "mlsd_large_512_fp32.pth"
    torch.save(network.state_dict(), place)
    return str(place)


def found(images: list[np.ndarray], weights: str, **params: object) -> list[Annotation]:
    step = resolve("hough", "mlsd", {"weights": weights, "resolution": SIDE, **params})
    return annotate(images, [str(i) for i in range(len(images))], [step])["hough"]


def published(image: np.ndarray, weights: str, **options: object) -> np.ndarray:
    """uint8 [h, w] of the library's own detector on the same file, at the resolution of detection, as it
    draws our field.

    Its network's own field differs from ours by the order of additions, which may tip a peak or the pixel of
    an end; it is compared here.
    """
    import torch
    from controlnet_aux.mlsd import MLSDdetector
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    ours = torch.from_numpy(
        mlsd.load("fp32", "cpu", weights)(resize(image, detection_size(*image.shape[:2], SIDE))[None])
    )
    network = MobileV2_MLSD_Large()
    network.load_state_dict(torch.load(weights, weights_only=True))

    def compare(_: object, inputs: object, theirs: torch.Tensor) -> torch.Tensor:
        # of a spread of 1.5 and 10; 0.0004 measured
        torch.testing.assert_close(theirs[:, :5], ours, rtol=0, atol=0.01)
        return ours

    network.register_forward_hook(compare)
    compared: list[bool] = []
    # an error in there is swallowed by the library
    network.register_forward_hook(lambda *_: compared.append(True))
    drawn = MLSDdetector(network.eval())(
        image, detect_resolution=SIDE, image_resolution=SIDE, output_type="np", **options
    )[..., 0]
    assert compared, "the two fields differ"
    return drawn


def drawn_as_published(segments: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The library cuts coordinates towards zero; we round them."""
    canvas = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in segments[:, :4].astype(int).tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), 255, 1)
    return canvas


def test_the_segments_are_controlnet_auxs_to_the_pixel(astronaut: np.ndarray, weights: str) -> None:
    image = resize(astronaut, (SIDE, SIDE))
    for thresholds in ({}, {"thr_v": 0.05, "thr_d": 12.0}):
        wanted = published(image, weights, **thresholds)
        one = found([image], weights, **thresholds)[0]
        assert (wanted > 0).mean() > 0.02 and one.measures["n_lines"] > 15, "not a trivial picture"
        np.testing.assert_array_equal(drawn_as_published(one.map.array, (SIDE, SIDE)), wanted)
        assert (np.diff(one.map.array[:, 4]) <= 0).all() and one.map.array[-1, 4] > thresholds.get(
            "thr_v", 0.1
        )


def test_our_drawing_lies_within_two_pixels_of_the_published_one(astronaut: np.ndarray, weights: str) -> None:
    """Rounded ends against cut ones: at most one pixel, and one more along lines that leave the picture."""
    image = resize(astronaut, (SIDE, SIDE))
    wanted, ours = published(image, weights), render(found([image], weights)[0].map)[..., 0]
    near = np.ones((5, 5), np.uint8)
    assert not (ours[cv2.dilate(wanted, near) == 0]).any() and not (wanted[cv2.dilate(ours, near) == 0]).any()


def test_segments_of_a_picture_of_another_size_lie_where_it_has_them(
    astronaut: np.ndarray, weights: str
) -> None:
    image = np.ascontiguousarray(astronaut[:300, :500])
    size = detection_size(300, 500, SIDE)
    assert size == (256, 448), "rounded to 64: the two sides shrink by different factors"
    seen, one = found([resize(image, size)], weights)[0].map, found([image], weights)[0].map
    np.testing.assert_array_equal(drawn_as_published(seen.array, size), published(image, weights))
    assert one.meta["size"] == [300, 500]
    np.testing.assert_allclose(
        (one.array[:, [0, 2]] + 0.5) * (448 / 500), seen.array[:, [0, 2]] + 0.5, atol=1e-3
    )
    np.testing.assert_allclose(
        (one.array[:, [1, 3]] + 0.5) * (256 / 300), seen.array[:, [1, 3]] + 0.5, atol=1e-3
    )


def field_of(segments: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What a perfect network gives for float [N, 4] segments in pixels: a round peak at each centre,
    displacements all around it.
    """
    height, width = size[0] // 2, size[1] // 2
    field = np.zeros((5, height, width), np.float32)
    field[0] = -8
    y, x = np.mgrid[:height, :width]
    for x0, y0, x1, y1 in segments / 2:
        away = np.hypot(x - (x0 + x1) / 2, y - (y0 + y1) / 2)
        field[0] = np.maximum(field[0], 4 - 2 * away)
        close = away < 2.5
        field[1:, close] = np.stack([x0 - x, y0 - y, x1 - x, y1 - y])[:, close]
    return field


def test_a_perfect_field_gives_its_segments_back_within_a_hundredth_of_a_pixel() -> None:
    rng = np.random.default_rng(0)
    wanted = np.array(
        [
            (x + dx, y + dy, x - dx, y - dy)
            for x in range(30, 240, 40)
            for y in range(30, 170, 30)
            for dx, dy in [rng.uniform(-60, 60, 2)]
        ]
    )
    got = mlsd.decode(field_of(wanted, (192, 256)), 0.1, 0.1)
    assert len(got) == len(wanted) == 30
    assert all(np.abs(wanted - each).max(axis=1).min() < 0.01 for each in got[:, :4])
    assert got[:, 4].min() > 0.8


def test_weak_centres_short_segments_and_all_beyond_two_hundred_go() -> None:
    field = field_of(np.array([(20, 20, 120, 20), (60, 60, 63, 60)], float), (128, 128))
    assert len(mlsd.decode(field, 0.1, 0.1)) == 2
    assert mlsd.decode(field, 0.1, 2.0)[:, :4].round().tolist() == [[20, 20, 120, 20]], (
        "three pixels are one cell and a half"
    )
    assert len(mlsd.decode(field, 0.999, 0.1)) == 0
    crowd = np.array([(x, y, x + 8, y) for x in range(8, 500, 16) for y in range(8, 200, 16)], float)
    assert len(crowd) > mlsd.MOST == len(mlsd.decode(field_of(crowd, (208, 528)), 0.1, 0.1))


def test_bf16_moves_segments_by_pixels_and_has_to_be_asked_for(astronaut: np.ndarray, weights: str) -> None:
    """Measured: a mean error of 0.2 to 0.3 of the field's spread (n = 2, random weights, which are harder on
    it than trained ones).
    """
    image = resize(astronaut, (SIDE, SIDE))[None]
    exact, fast = (mlsd.load(precision, "cpu", weights)(image)[0] for precision in ("fp32", "bf16"))
    apart = np.abs(exact - fast).mean(axis=(1, 2)) / exact.std(axis=(1, 2))
    assert fast.dtype == np.float32 and 0 < apart.max() < 0.5
    assert resolve("hough", "mlsd", {"weights": weights}).params["precision"] == "fp32"


def test_an_image_has_the_same_segments_alone_and_among_others(astronaut: np.ndarray, weights: str) -> None:
    images = [np.ascontiguousarray(astronaut[:256, x : x + 256]) for x in (0, 100, 200)] + [
        astronaut[:128, :200].copy()
    ]
    for image, one in zip(images, found(images, weights), strict=True):
        np.testing.assert_array_equal(one.map.array, found([image], weights)[0].map.array)


def test_a_picture_without_lines_is_skipped_and_a_broken_network_fails(
    astronaut: np.ndarray, weights: str, tmp_path: Path
) -> None:
    """The release gives a black picture for both."""
    import torch

    none = found([astronaut], weights, thr_v=1.0)[0]
    assert (none.status, none.reason, none.map.array.shape) == ("skipped", "no lines", (0, 5))
    tensors = torch.load(weights, weights_only=True)
    tensors["block23.conv3.bias"][7] = float("nan")
    torch.save(tensors, tmp_path / "mlsd_large_512_fp32.pth")
    broken = found([astronaut], str(tmp_path))[0]
    assert broken.status == "failed" and "not finite" in broken.reason and broken.map is None
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    wrong = found([astronaut], str(tmp_path / "other.pth"))[0]
    assert wrong.status == "failed" and "other.pth holds no weights of M-LSD large" in wrong.reason
