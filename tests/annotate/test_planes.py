"""The bytes of 16-bit maps give the same codes back, or are refused."""

import numpy as np
import pytest

from annotate import maps, planes
from pipeline import scenes

RNG = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(64) ** 2 * 7, np.arange(48) ** 2 * 5).astype(np.uint16)
HOLES = np.where(RNG.random((3, 40, 30)) > 0.3, SMOOTH[:40, :30], np.uint16(0))

EXAMPLES = {
    "one pixel": np.array([[[65535]]], np.uint16),
    "one row": RNG.integers(0, 65536, (1, 1, 17), dtype=np.uint16),
    "one column of three planes": RNG.integers(0, 65536, (3, 13, 1), dtype=np.uint16),
    "flat": np.full((1, 33, 21), 4711, np.uint16),
    "black": np.zeros((3, 8, 8), np.uint16),
    "white": np.full((3, 8, 8), 65535, np.uint16),
    "random, odd sides": RNG.integers(0, 65536, (3, 37, 53), dtype=np.uint16),
    "smooth": SMOOTH[None],
    "holes": HOLES,
    "a chessboard of both ends": (np.indices((1, 31, 31)).sum(axis=0) % 2 * 65535).astype(np.uint16),
    "not contiguous": RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16).transpose(2, 0, 1)[:, ::-1, ::2],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_codes_come_back(name: str) -> None:
    back = planes.decode(planes.encode(EXAMPLES[name]))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, EXAMPLES[name])


def test_the_maps_of_a_scene_come_back_and_take_about_as_much_as_a_png() -> None:
    scene = scenes.render(3, 0, 192)
    for raw in (scene.maps["depth_large"], scene.maps["normal"]):
        data = maps.encode(raw)
        png = maps.portable(data)
        np.testing.assert_array_equal(
            maps.decode(raw.kind, data, raw.meta).array, maps.decode(raw.kind, png, raw.meta).array
        )
        assert len(data) < 1.2 * len(png)


def test_planes_of_another_type_or_shape_are_refused() -> None:
    for wrong in (np.zeros((1, 4, 4), np.uint8), np.zeros((4, 4), np.uint16), np.zeros((1, 0, 4), np.uint16)):
        with pytest.raises(ValueError, match="planes are uint16"):
            planes.encode(wrong)


def test_damaged_bytes_are_refused_wherever_the_damage_is() -> None:
    data = planes.encode(HOLES)
    for length in (4, 17, 18, 40, len(data) - 1):
        with pytest.raises(ValueError, match="the stored map is damaged"):
            planes.decode(data[:length])
    with pytest.raises(ValueError, match="the stored map is damaged"):
        planes.decode(data + b"0")
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 16
        with pytest.raises(ValueError):
            planes.decode(bytes(flipped))


def test_bytes_of_a_later_version_and_of_nothing_are_told_apart() -> None:
    data = bytearray(planes.encode(HOLES))
    data[4] = 2
    with pytest.raises(ValueError, match="version 2 of its format"):
        planes.decode(bytes(data))
    with pytest.raises(ValueError, match="not those of a 16-bit map"):
        planes.decode(b"")
