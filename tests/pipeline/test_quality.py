"""Measures of images against independent statements of what they are."""

import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import skimage
import sklearn
from PIL import Image

from pipeline.catalog import duplicates
from pipeline.dataset import quality

SIDE = 512
SHIPPED = [  # photographs that lie inside installed packages
    *(Path(skimage.__file__).parent / "data" / name for name in (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png",
        "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg", "rocket.jpg",
    )),
    *(Path(sklearn.__file__).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")),
]  # fmt: skip


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)  # 4:2:0
    return np.asarray(Image.open(file))


def half(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def blur(pixels: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (0, 0), 2)


def brighten(pixels: np.ndarray) -> np.ndarray:
    return cv2.convertScaleAbs(pixels, alpha=1.1)


def without_colour(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """The centre squares at 512 x 512."""
    pictures = [Image.open(path).convert("RGB") for path in SHIPPED]
    return [
        np.asarray(
            each.crop(
                (
                    (each.width - min(each.size)) // 2,
                    (each.height - min(each.size)) // 2,
                    (each.width + min(each.size)) // 2,
                    (each.height + min(each.size)) // 2,
                )
            ).resize((SIDE, SIDE))
        )
        for each in pictures
    ]


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def hashed(pixels: np.ndarray) -> int:
    return quality.measure(pixels)["phash"]


@pytest.mark.parametrize("change", [lambda p: jpeg(p, 50), half, blur, brighten, without_colour])
def test_the_hash_outlives_what_copies_of_a_picture_go_through(
    photographs: list[np.ndarray], change: Callable[..., np.ndarray]
) -> None:
    assert max(bits(hashed(each), hashed(change(each))) for each in photographs) <= 4


def test_hashes_of_different_photographs_are_far_apart(photographs: list[np.ndarray]) -> None:
    apart = [bits(one, other) for one, other in itertools.combinations(map(hashed, photographs), 2)]
    assert min(apart) >= 16 and 30 <= np.mean(apart) <= 34


def test_the_hash_is_what_its_docstring_says(photographs: list[np.ndarray]) -> None:
    for each in photographs:
        small = np.rint(
            cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(float).reshape(32, 16, 32, 16).mean((1, 3))
        )
        table = scipy.fft.dctn(small, norm="ortho")
        low = [table[u, total - u] for total in range(1, 11) for u in range(total + 1)][:64]
        low = [value if abs(value) >= quality.FAINT else 0 for value in low]
        expected = sum(1 << (63 - place) for place, value in enumerate(low) if value > np.median(low))
        # halves are rounded the other way here, which tips a bit at the median
        assert bits(hashed(each), expected) <= 2
        assert 20 <= expected.bit_count() <= 32  # half of them, less what is faint


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_plain_pictures_share_the_hash_zero_and_rounding_makes_no_bits(level: int) -> None:
    plain = np.full((SIDE, SIDE, 3), level, np.uint8)
    assert hashed(plain) == hashed(jpeg(plain, 50)) == hashed(plain[:65, :97]) == 0
    noisy = plain ^ np.random.default_rng(level).integers(0, 2, (SIDE, SIDE, 1), dtype=np.uint8)
    assert hashed(noisy) == 0


def test_sharpness_is_the_variance_of_the_laplacian(photographs: list[np.ndarray]) -> None:
    grey = cv2.cvtColor(photographs[0], cv2.COLOR_RGB2GRAY)
    assert quality.measure(photographs[0])["sharpness"] == pytest.approx(
        scipy.ndimage.laplace(grey.astype(float), mode="mirror").var()
    )


def test_sharpness_falls_with_blur_and_is_the_same_for_a_larger_copy(photographs: list[np.ndarray]) -> None:
    for each in photographs:
        sharp = quality.measure(each)["sharpness"]
        assert quality.measure(blur(each))["sharpness"] < 0.8 * sharp
        doubled = quality.measure(np.kron(each, np.ones((2, 2, 1), np.uint8)))["sharpness"]
        assert doubled == pytest.approx(sharp, rel=0.01)


def test_contrast_is_the_spread_of_the_luma() -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    assert quality.measure(halves)["contrast"] == 0
    halves[:32] = 255
    assert quality.measure(halves)["contrast"] == pytest.approx(0.5)


def test_colourfulness_is_the_papers_formula(photographs: list[np.ndarray]) -> None:
    for each in photographs:
        red, green, blue = np.moveaxis(each.astype(float), 2, 0)
        rg, yb = red - green, (red + green) / 2 - blue
        expected = math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean())
        assert quality.measure(each)["colour"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_sums_of_bytes_give_what_sixteen_bits_do_to_the_last_bit(seed: int) -> None:
    draw = np.random.default_rng(seed)
    size, top = draw.integers(1, 200, 2), int(draw.integers(2, 257))
    pixels = draw.integers(0, top, (*size, 3), dtype=np.uint8)
    red, green, blue = cv2.split(pixels.astype(np.int16))
    (rg, rg_spread), (yb, yb_spread) = (
        [value.item() for value in cv2.meanStdDev(plane)] for plane in (red - green, red + green - 2 * blue)
    )
    laplacian = cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_16S)
    measures = quality.measure(pixels)
    assert measures["colour"] == math.hypot(rg_spread, yb_spread / 2) + 0.3 * math.hypot(rg, yb / 2)
    assert measures["sharpness"] == cv2.meanStdDev(laplacian)[1].item() ** 2


def test_a_thumbnail_is_luma_and_chroma_of_the_whole_picture() -> None:
    halves = np.zeros((300, 500, 3), np.uint8)
    halves[:, :250] = (255, 0, 0)
    thumbnail = np.frombuffer(quality.measure(halves)["thumbnail"], np.uint8)
    luma, chroma = thumbnail[:256].reshape(16, 16), thumbnail[256:].reshape(8, 8, 2)
    assert (luma[:, :7] == 76).all() and (luma[:, 9:] == 0).all()  # 0.299 of 255
    assert (chroma[:, :3] == (255, 85)).all() and (chroma[:, 5:] == 128).all()  # red, blue


def test_grey_pictures_are_known_as_grey_even_when_stored_as_colour(photographs: list[np.ndarray]) -> None:
    for each in photographs:
        grey = without_colour(each)
        assert quality.measure(grey)["grey"] and quality.measure(jpeg(grey, 50))["grey"]
        spotted = grey.copy()
        spotted[: SIDE // 8, : SIDE // 4] = (200, 30, 30)  # three percent
        assert not quality.measure(spotted)["grey"]
    sepia = (without_colour(photographs[0]) * np.array([1.0, 0.85, 0.65])).astype(np.uint8)
    assert not quality.measure(sepia)["grey"]
    colourful = {
        path.stem
        for path, each in zip(SHIPPED, photographs, strict=True)
        if not quality.measure(each)["grey"]
    }
    assert colourful == {
        "astronaut",
        "chelsea",
        "coffee",
        "hubble_deep_field",
        "ihc",
        "retina",
        "rocket",
        "china",
        "flower",
    }


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (3, 700), (512, 512)])
def test_every_image_has_finite_measures_in_the_stated_order(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for pixels in (noise, noise[:, ::-1], np.zeros_like(noise), np.full_like(noise, 255), noise & 1):
        found = quality.measure(pixels)
        assert tuple(found) == (*quality.MEASURES, "thumbnail")
        assert len(found["thumbnail"]) == duplicates.BYTES
        assert all(math.isfinite(found[name]) and found[name] >= 0 for name in quality.MEASURES)
        assert (
            0 <= found["phash"] < 2**64
            and isinstance(found["phash"], int)
            and isinstance(found["grey"], bool)
        )


def test_measuring_changes_no_pixel(photographs: list[np.ndarray]) -> None:
    before = photographs[0].copy()
    quality.measure(photographs[0])
    assert np.array_equal(before, photographs[0])
