"""Normals point the right way, are drawn as published, and don't depend on how the depth came."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from annotate import normals
from annotate.annotator import Annotation, annotate, resolve
from annotate.drawing import normals_cn10, normals_cn11
from annotate.maps import RawMap, decode, depth_map, encode, render

GOLDEN = Path(__file__).parent / "golden" / "normals"
RECIPE = resolve("normal_extended", "normal-from-depth").params
Y, X = np.mgrid[:96, :128].astype(np.float32)


def midas(inverse: np.ndarray, **meta: Any) -> RawMap:
    raw = depth_map(inverse, unit="midas")
    return replace(raw, meta={**raw.meta, **meta})


def ball_on_floor(size: int = 256, focal: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Inverse depth and true normals of a ball of radius 1 before a wall, on a floor, seen by a pinhole
    camera (y up, z to the viewer).
    """
    y, x = np.mgrid[:size, :size]
    rays = (
        np.stack([(x + 0.5) / size * 2 - 1, 1 - (y + 0.5) / size * 2, np.full(x.shape, -focal)], axis=2)
        / focal
    )
    depth, true = np.full(x.shape, 8.0), np.zeros((size, size, 3)) + np.array([0, 0, 1])  # the wall
    below = rays[..., 1] < -1e-6
    floor = np.where(below, -1.0 / np.where(below, rays[..., 1], -1), np.inf)
    depth, true = (
        np.where(floor < depth, floor, depth),
        np.where((floor < depth)[..., None], [0.0, 1.0, 0.0], true),
    )
    centre = np.array([0, 0, -4.0])
    b, squared = rays @ centre, (rays**2).sum(axis=2)
    root = b**2 - squared * (centre @ centre - 1)
    ball = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / squared, np.inf)
    hit = ball < depth
    true[hit] = (rays * np.where(hit, ball, 0)[..., None] - centre)[hit]
    return (1 / np.where(hit, ball, depth)).astype(np.float32), true


def angle(n: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos((n * true).sum(axis=2).clip(-1, 1)))


@pytest.mark.parametrize(
    ("slope", "wanted"), [((2.0, 0.0), (-16.0, 0.0)), ((0.0, 2.0), (0.0, 16.0)), ((-1.0, 0.5), (8.0, 4.0))]
)
def test_a_plane_faces_away_from_where_it_comes_near(
    slope: tuple[float, float], wanted: tuple[float, float]
) -> None:
    """Nearer to the right is a wall that faces left; nearer below is a floor that faces up.

    Sobel sums to 8 slopes.
    """
    found = normals.from_depth(
        midas(500 + slope[0] * X + slope[1] * Y), **{**RECIPE, "bg_threshold": 0.0}
    ).array[1:-1, 1:-1]
    direction = np.array([*wanted, 2 * np.pi])
    np.testing.assert_allclose(
        found, np.broadcast_to(direction / np.linalg.norm(direction), found.shape), atol=2e-3
    )


def test_a_ball_bulges_to_all_sides() -> None:
    inverse, true = ball_on_floor()
    found = normals.from_depth(depth_map(inverse, unit="1/m"), **RECIPE).array
    r = slice(102, 154)  # the middle of the ball
    for axis in (0, 1):
        assert np.corrcoef(found[r, r, axis].ravel(), true[r, r, axis].ravel())[0, 1] > 0.95
    assert angle(found[r, r], true[r, r]).mean() < 15


def test_normals_from_metric_depth_are_near_the_true_ones() -> None:
    """The recipe keeps z constant, so it can't be exact; facing everywhere is three times as wrong."""
    inverse, true = ball_on_floor()
    found = normals.from_depth(depth_map(inverse, unit="1/m"), **{**RECIPE, "bg_threshold": 0.0}).array
    error, lazy = angle(found, true), angle(np.broadcast_to([0.0, 0.0, 1.0], true.shape), true)
    assert error.mean() < 15 and lazy.mean() > 3 * error.mean()


@pytest.mark.parametrize("bg_threshold", [0.1, 0.4])
def test_the_picture_of_midas_normals_is_that_of_controlnet_aux(bg_threshold: float) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        midas_detector = pytest.importorskip("controlnet_aux.midas").MidasDetector
    rng = np.random.default_rng(0)
    raw = midas(
        300 * cv2.GaussianBlur(rng.random((192, 256), np.float32), (0, 0), 6)
        + 3 * cv2.resize(X + Y, (256, 192))
    )
    raw = decode("depth", encode(raw), raw.meta)

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth = torch.nn.Parameter(torch.from_numpy(raw.array)[None])

        def forward(self, x: Any) -> Any:
            return self.depth

    image = np.zeros((192, 256, 3), np.uint8)
    library = midas_detector(Given())
    _, wanted = library(
        image, bg_th=bg_threshold, depth_and_normal=True, detect_resolution=192, image_resolution=192
    )
    drawn = render(normals.from_depth(raw, **{**RECIPE, "bg_threshold": bg_threshold}), protocol="cn10")
    background = (wanted == [255, 127, 127]).all(axis=2)
    assert 0.005 < background.mean() < 0.9 and wanted[~background].std(axis=0).min() > 5
    assert np.abs(drawn.astype(int) - wanted).max() <= 1, "unit vectors are rounded once more"
    assert (drawn == wanted).mean() > 0.999


def test_the_background_faces_the_viewer_and_is_valid() -> None:
    inverse = np.where(X < 40, 0, 1000 + 5 * X)
    found = normals.from_depth(midas(inverse), **RECIPE).array
    np.testing.assert_array_equal(found[:, :39], np.broadcast_to(np.float32([0, 0, 1]), (96, 39, 3)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-6)


def test_neither_the_unit_nor_the_size_of_the_image_turns_normals() -> None:
    inverse, _ = ball_on_floor(256)
    first = normals.from_depth(depth_map(inverse, unit="1/m"), **RECIPE).array
    scaled = normals.from_depth(depth_map(inverse * 700 - 30, unit="relative"), **RECIPE).array
    assert angle(first, scaled).max() < 0.5
    large = normals.from_depth(depth_map(ball_on_floor(512)[0], unit="1/m"), **RECIPE).array
    assert np.median(angle(first, large[::2, ::2])) < 1


def test_midas_depth_counts_per_pixel_that_the_network_saw() -> None:
    inverse = 200 + 40 * np.sin(X / 9) + 2 * Y
    seen_small = normals.from_depth(midas(inverse, seen=[48, 64]), **RECIPE).array
    np.testing.assert_allclose(seen_small, normals.from_depth(midas(inverse * 2), **RECIPE).array, atol=1e-3)
    assert angle(seen_small, normals.from_depth(midas(inverse, seen=[96, 128]), **RECIPE).array).mean() > 1


def test_depth_made_now_and_depth_read_back_have_the_same_normals() -> None:
    raw = midas(np.random.default_rng(1).random((96, 128)) * 900, seen=[96, 128])
    read = decode("depth", encode(raw), raw.meta)
    assert (raw.array != read.array).any()
    np.testing.assert_array_equal(
        normals.from_depth(raw, **RECIPE).array, normals.from_depth(read, **RECIPE).array
    )


def test_flat_depth_never_divides_by_zero() -> None:
    for unit in ("midas", "relative", "1/m"):
        found = normals.from_depth(depth_map(np.full((8, 9), 3.0), unit=unit), **RECIPE).array
        np.testing.assert_array_equal(found, np.broadcast_to(np.float32([0, 0, 1]), (8, 9, 3)))


def test_a_skipped_depth_skips_its_normals_and_a_good_one_gives_them() -> None:
    step = resolve("normal_extended")
    assert step.detector == "normal-from-depth" and step.parent == "depth_large"
    image = np.zeros((96, 128, 3), np.uint8)
    parents = [Annotation("ok", map=midas(X + Y)), Annotation("skipped", "flat", map=midas(X * 0))]
    found = annotate([image, image], ["a", "b"], [step], given={"depth_large": parents})["normal_extended"]
    assert [one.status for one in found] == ["ok", "skipped"]
    np.testing.assert_array_equal(found[0].map.array, normals.from_depth(parents[0].map, **step.params).array)


@pytest.mark.parametrize("protocol", ["cn10", "cn11"])
def test_the_drawing_of_a_ball_is_the_stored_one(protocol: str) -> None:
    drawn = render(
        normals.from_depth(depth_map(ball_on_floor(96)[0], unit="1/m"), **RECIPE), protocol=protocol
    )
    wanted = cv2.imread(str(GOLDEN / f"ball_{protocol}.png"), cv2.IMREAD_COLOR)
    assert wanted is not None and np.abs(drawn[..., ::-1].astype(int) - wanted).max() <= 1


@pytest.fixture(scope="module")
def bae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The library's network with random weights whose normals point to many sides, and their file."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("controlnet_aux")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from controlnet_aux.normalbae.nets.NNET import NNET

    torch.manual_seed(0)
    model = NNET(SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7)).eval()
    with torch.inference_mode():
        for stage in (
            model.decoder.out_conv_res8,
            model.decoder.out_conv_res4,
            model.decoder.out_conv_res2,
            model.decoder.out_conv_res1,
        ):
            for layer in stage.modules():
                if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)):
                    layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5)
                    layer.bias.zero_()
    path = tmp_path_factory.mktemp("bae") / normals.BAE.name
    torch.save({"model": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    yield model, str(path)
    normals.load_bae.cache_clear()
    path.unlink()  # 0.3 gigabytes


def only(images: list[np.ndarray], **params: Any) -> list:
    return annotate(images, [str(i) for i in range(len(images))], [resolve("normal", "normal-bae", params)])[
        "normal"
    ]


def test_normal_bae_draws_the_picture_of_controlnet_aux(small: np.ndarray, bae: tuple[Any, str]) -> None:
    from controlnet_aux.normalbae import NormalBaeDetector

    model, weights = bae
    wanted = NormalBaeDetector(model)(small, detect_resolution=128, image_resolution=128, output_type="np")
    found = only([small], weights=weights, precision="fp32", resolution=128)[0]
    drawn = normals_cn11(found.map.array, found.map.meta, (128, 128))
    assert found.status == "ok" and wanted.reshape(-1, 3).std(axis=0).min() > 3
    assert np.abs(drawn.astype(int) - wanted).max() <= 1 and (drawn == wanted).mean() > 0.99
    np.testing.assert_array_equal(normals_cn10(found.map.array, {}, (128, 128)), drawn[..., ::-1])


def test_normal_bae_keeps_size_length_and_neighbours_apart(small: np.ndarray, bae: tuple[Any, str]) -> None:
    params = {"weights": bae[1], "precision": "fp32", "resolution": 64}
    flat = np.full((90, 70, 3), 120, np.uint8)
    odd = np.ascontiguousarray(small[:90, :70])
    among = only([flat, odd, small], **params)
    np.testing.assert_array_equal(only([odd], **params)[0].map.array, among[1].map.array)
    assert [one.map.array.shape[:2] for one in among] == [(90, 70), (90, 70), (128, 128)]
    for one in among:
        np.testing.assert_allclose(np.linalg.norm(one.map.array, axis=2), 1, atol=1e-5)


def test_normal_bae_in_bf16_stays_within_two_degrees(small: np.ndarray, bae: tuple[Any, str]) -> None:
    exact, rough = (
        only([small], weights=bae[1], precision=p, resolution=128)[0].map.array for p in ("fp32", "bf16")
    )
    assert angle(exact, rough).mean() < 2
