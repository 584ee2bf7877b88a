"""Whose group pictures join: what the hash proposes, what thumbnails decide."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import sklearn
from PIL import Image

from pipeline.catalog import duplicates, hash_index
from pipeline.dataset import quality
from pipeline.scenes.painter import paint
from pipeline.scenes.plan import draw_plan

SIDE = 256
SHIPPED = [  # photographs that lie inside installed packages
    *(Path(skimage.__file__).parent / "data" / name for name in (
        "astronaut.png", "chelsea.png", "coffee.png", "camera.png", "hubble_deep_field.jpg", "rocket.jpg",
    )),
    *(Path(sklearn.__file__).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")),
]  # fmt: skip


def fitted(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [fitted(np.asarray(Image.open(path).convert("RGB"))) for path in SHIPPED]


def grouped(
    pictures: Sequence[np.ndarray], near: int = 6, without: Sequence[int] = (), known: int = 0
) -> list[int]:
    """The leader of each; `without` have no thumbnail, the first `known` are of an earlier commit."""
    measures = [quality.measure(picture) for picture in pictures]
    hashes = np.array([one["phash"] for one in measures], np.uint64)

    def fetch(numbers: duplicates.Numbers) -> tuple[np.ndarray, np.ndarray]:
        present = ~np.isin(numbers, without)
        data = b"".join(measures[number]["thumbnail"] for number in numbers[present])
        return present, np.frombuffer(data, np.uint8).reshape(-1, duplicates.BYTES)

    led = np.array([], np.int64)
    for start, end in ((0, known), (known, len(pictures))):
        joined = hash_index.leaders(hashes[:start], hashes[start:end], near, led, fetch)
        led = np.concatenate([led, np.where(joined < 0, np.arange(start, end), joined)])
    return led.tolist()


def alone(count: int) -> list[int]:
    return list(range(count))


# --- copies ---


def jpeg(pixels: np.ndarray, grade: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=grade)
    return np.asarray(Image.open(file))


def contrasted(pixels: np.ndarray, factor: float) -> np.ndarray:
    return np.clip((pixels - pixels.mean()) * factor + pixels.mean(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        partial(jpeg, grade=40),
        lambda p: cv2.resize(p, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA),
        lambda p: cv2.resize(p, None, fx=1.5, fy=1.5),
        partial(cv2.convertScaleAbs, alpha=0.8),
        partial(cv2.convertScaleAbs, alpha=1.2),
        partial(contrasted, factor=0.8),
        lambda p: p[2:-3, 2:-3],
        lambda p: jpeg(cv2.convertScaleAbs(p, alpha=1.1)[3:, 2:], 70),
    ],
)
def test_copies_of_photographs_join_them(
    photographs: list[np.ndarray], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    copies = [fitted(change(photograph)) for photograph in photographs]
    assert grouped([*photographs, *copies], known=len(photographs)) == alone(len(photographs)) * 2


@pytest.mark.parametrize("change", [partial(jpeg, grade=75), lambda p: cv2.pyrDown(p)])
def test_copies_of_drawn_pictures_join_them(change: Callable[[np.ndarray], np.ndarray]) -> None:
    drawn = [disc((200, 30, 30)), disc((30, 30, 200), 30), page(0), page(1)]
    assert grouped([*drawn, *(fitted(change(picture)) for picture in drawn)]) == alone(4) * 2


# --- different pictures ---


def disc(colour: Sequence[int], radius: float = 50, ground: int = 255) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    picture = np.full((SIDE, SIDE, 3), ground, np.uint8)
    picture[y**2 + x**2 < radius**2] = colour
    return picture


def page(seed: int) -> np.ndarray:
    picture, draw = np.full((SIDE, SIDE, 3), 255, np.uint8), np.random.default_rng(seed)
    for line in range(12):
        text = "".join(draw.choice(list("aeilmnorstw  "), 24))
        cv2.putText(
            picture, text, (20, 30 + 17 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
        )
    picture[:, -20:] = 255
    return picture


@pytest.mark.parametrize("ground", [255, 200, 128])
def test_discs_of_different_colours_are_different(ground: int) -> None:
    colours = np.random.default_rng(ground).permutation(np.mgrid[:200:50, :200:50, :200:50].reshape(3, -1).T)
    assert grouped([disc(colour, 50 + i % 5, ground) for i, colour in enumerate(colours[:20])]) == alone(20)


def test_a_form_in_other_greys_is_no_brighter_copy() -> None:
    assert grouped([disc((level,) * 3) for level in (20, 60, 100, 140, 180)]) == alone(5)


def test_pages_of_text_are_different() -> None:
    assert grouped([page(seed) for seed in range(15)]) == alone(15)


def test_frames_of_a_scene_are_different() -> None:
    pictures = []
    for index in range(4):
        plan = draw_plan(11, index)
        pictures += [paint(plan, SIDE), paint(replace(plan, actors=plan.actors[1:]), SIDE)]
    assert grouped(pictures) == alone(8)


def test_flat_pictures_and_gradients_join_none() -> None:
    ramp = np.broadcast_to(np.linspace(0, 200, SIDE)[:, None], (SIDE, SIDE, 3)).astype(np.uint8)
    flat = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 127, 255)]
    pictures = [*flat, flat[1], ramp, ramp + 20, ramp[::-1]]
    assert grouped(pictures) == alone(7) == grouped(pictures, without=range(7), known=3)


# --- what decides ---


def test_without_thumbnails_the_hash_alone_decides() -> None:
    discs = [disc((200, 30, 30)), disc((30, 30, 200)), disc((30, 200, 30))]
    assert grouped(discs) == alone(3)
    assert grouped(discs, without=[0, 1, 2]) == [0, 0, 0] == grouped(discs, without=[0], known=1)


def test_a_pair_is_judged_the_same_both_ways(photographs: list[np.ndarray]) -> None:
    pictures = [*photographs, *(fitted(photograph[4:, 4:]) for photograph in photographs), disc((9, 9, 9))]
    data = b"".join(quality.measure(picture)["thumbnail"] for picture in pictures)
    thumbnails = np.frombuffer(data, np.uint8).reshape(-1, duplicates.BYTES)
    one, other = np.array(list(combinations(range(len(pictures)), 2))).T
    verdicts = duplicates.alike(thumbnails, one, other)
    assert verdicts.tolist() == duplicates.alike(thumbnails, other, one).tolist()
    assert 0 < verdicts.sum() < len(verdicts)


@pytest.mark.parametrize("known", [0, 5, 15])
def test_groups_by_thumbnails_do_not_depend_on_the_batches(photographs: list[np.ndarray], known: int) -> None:
    copies = [fitted(photograph[3:-3, 3:-3]) for photograph in photographs]
    mixed = [picture for pair in zip(photographs, copies, strict=True) for picture in pair]
    assert grouped(mixed, known=known) == [number // 2 * 2 for number in range(len(mixed))]
