"""Depth and normals that look right and are not: each has a right value, or a sentence that refuses it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate import maps
from annotate.annotator import annotate, resolve
from annotate.maps import RawMap
from pipeline.dataset.provided.normals import AXES
from tests.provided_maps import TALL, WIDE, npy, picture, read_map

Read = Callable[..., RawMap]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return partial(read_map, tmp_path)


# -- depth ---------------------------------------------------------------------------------------------------


def room() -> np.ndarray:
    """Metres: from 5 at the top to 1 at the bottom."""
    return np.repeat(np.linspace(5, 1, TALL, dtype=np.float32)[:, None], WIDE, axis=1)


@pytest.mark.parametrize(
    ("stored", "settings", "unit"),
    [
        (npy(room()), {"depth": "metres"}, "1/m"),
        (npy(room()), {"depth": "distance"}, "1/m"),
        (picture(np.rint(room() * 1000).astype(np.uint16)), {"depth": "millimetres"}, "1/m"),
        (picture(np.rint(room() * 5000).astype(np.uint16)), {"depth": "metres", "depth_scale": 5000}, "1/m"),
        (picture(np.rint(room() * 256).astype(np.uint16)), {"depth": "distance", "depth_scale": 256}, "1/m"),
        (npy(1 / room()), {"depth": "inverse"}, "relative"),
        (npy(256 / room()), {"depth": "disparity", "depth_scale": 256}, "relative"),
    ],
)
def test_depth_is_inverse_in_every_unit(read: Read, stored: bytes, settings: Any, unit: str) -> None:
    depth = read("depth_large", stored, **settings)
    assert depth.meta["unit"] == unit and "note" not in depth.meta
    np.testing.assert_allclose(depth.array[:, 5], 1 / room()[:, 5], rtol=4e-3)


@pytest.mark.parametrize("depth", ["metres", "inverse", "disparity"])
def test_one_pixel_of_a_millimetre_does_not_black_out_the_rest(read: Read, depth: str) -> None:
    metres = room()
    before = read("depth_large", npy(metres if depth == "metres" else 1 / metres), depth=depth)
    metres[30, 40] = 0.001
    after = read("depth_large", npy(metres if depth == "metres" else 1 / metres), depth=depth)
    assert "clipped" not in before.meta and 0 < after.meta["clipped"] < 0.001
    drawn = [maps.render(one)[..., 0].astype(int) for one in (before, after)]
    assert (np.abs(drawn[0] - drawn[1]) > 1).sum() <= 1
    assert after.array.max() == before.array.max(), "the pixel counts as the nearest of the rest"


def test_what_is_clipped_of_depth_is_told_in_the_row_where_it_is_much(read: Read) -> None:
    metres = room()
    metres[30:34, 40:46] = 0.001
    depth = read("depth_large", npy(metres), depth="metres")
    assert depth.meta["note"].startswith("0.6% of the depths are over 3 times nearer than the rest")
    row = annotate(
        [np.zeros((64, 64, 3), np.uint8)],
        ["a"],
        [resolve("depth_large", "provided", {}, provided=True)],
        provided={"depth_large": [depth]},
    )["depth_large"][0]
    assert row.status == "ok" and row.reason == depth.meta["note"]


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf])
def test_a_depth_that_is_no_distance_is_far_and_no_near_end(read: Read, bad: float) -> None:
    metres = room()
    metres[:20] = bad
    depth = read("depth_large", npy(metres), depth="metres")
    assert not depth.array[:20].any() and "clipped" not in depth.meta
    np.testing.assert_allclose(depth.array[20:, 5], 1 / metres[20:, 5], rtol=1e-6)


def test_a_small_thing_before_one_wall_stays(read: Read) -> None:
    metres = np.full((TALL, WIDE), 4, np.float32)
    metres[30:34, 40:46] = 3
    assert read("depth_large", npy(metres), depth="metres").array.max() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("array", "settings", "sentence"),
    [
        (
            room() * 1000,
            {"depth": "metres"},
            "three quarters of the map lie beyond 2143 m: set `depth: millimetres`, `depth_scale`",
        ),
        (
            room(),
            {"depth": "millimetres"},
            "three quarters of the map lie nearer than 4 mm: set `depth: metres`",
        ),
    ],
)
def test_a_depth_in_another_unit_is_refused(
    read: Read, array: np.ndarray, settings: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read("depth_large", npy(array), **settings)


@pytest.mark.parametrize("alpha", [False, True])
def test_grey_in_equal_channels_is_read_and_colours_are_not(read: Read, alpha: bool) -> None:
    grey = np.rint(room() * 50).astype(np.uint8)
    channels = [grey, grey, grey, np.full_like(grey, 255)][: 4 if alpha else 3]
    same = read("depth_large", picture(np.dstack(channels)), depth="distance").array
    np.testing.assert_array_equal(same, read("depth_large", picture(grey), depth="distance").array)
    channels[1] = channels[1] // 2
    for condition, settings in (("depth_large", {"depth": "distance"}), ("canny", {})):
        with pytest.raises(ValueError, match="one number a pixel, and this is a picture in colours"):
            read(condition, picture(np.dstack(channels)), **settings)


# -- normals -------------------------------------------------------------------------------------------------

OURS = np.array([0.36, 0.48, 0.8], np.float32)  # right, up, to the viewer


@pytest.mark.parametrize("coding", AXES)
@pytest.mark.parametrize("stored_as", ["-1 to 1", "0 to 1", "uint8", "uint16"])
def test_normals_of_every_axes_and_range_become_ours(read: Read, coding: str, stored_as: str) -> None:
    """What is stored is made from words: x left is the negative of x right."""
    signs = {
        "x right, y up, z to the viewer": [1, 1, 1], "x right, y down, z away": [1, -1, -1],
        "x left, y up, z to the viewer": [-1, 1, 1], "x right, y down, z to the viewer": [1, -1, 1],
        "cn11": [-1, 1, 1], "cn10": [-1, 1, 1],
    }  # fmt: skip
    theirs = np.tile(OURS * np.array(signs[coding], np.float32), (TALL, WIDE, 1))
    theirs = theirs[..., ::-1] if coding == "cn10" else theirs
    theirs[:10] = 0
    if stored_as == "-1 to 1":
        data = npy(theirs)
    elif stored_as == "0 to 1":
        data = npy((theirs + 1) / 2)
    else:
        import cv2

        dtype = np.dtype(stored_as)
        code = np.rint((theirs + 1) / 2 * np.iinfo(dtype).max).astype(dtype)
        code[:10] = 0
        data = cv2.imencode(".png", code[..., ::-1])[1].tobytes()
    given = {"values": stored_as} if "to" in stored_as else {}
    array = read("normal", data, normals=coding, **given).array
    np.testing.assert_allclose(array[40, 5], OURS, atol=0.01)
    assert not array[:10].any()


@pytest.mark.parametrize("protocol", ["cn10", "cn11"])
def test_our_own_drawing_of_normals_comes_back(read: Read, protocol: str) -> None:
    x = np.repeat(np.linspace(-0.7, 0.5, WIDE, dtype=np.float32)[None], TALL, axis=0)
    normals = np.dstack([x, np.full_like(x, 0.3), np.sqrt(1 - x**2 - 0.09)])
    normals[:8] = 0
    drawn = maps.render(RawMap("normals", normals), protocol=protocol)
    array = read("normal", picture(drawn), normals=protocol).array
    np.testing.assert_allclose(array, normals[:, 16:80], atol=0.02)
    other = "cn11" if protocol == "cn10" else "cn10"
    with pytest.raises(
        ValueError, match=f"with red and blue exchanged they would .* `normals` to '{protocol}'"
    ):
        read("normal", picture(drawn), normals=other)


@pytest.mark.parametrize(
    ("vector", "settings", "sentence"),
    [
        ([0.5, 0.5, 1.0], {}, 'normals from 0 to 1 where -1 to 1 is meant: set .*values` to "0 to 1"'),
        ([0.2, 0.5, 0.9], {}, 'normals from 0 to 1 where -1 to 1 is meant: set .*values` to "0 to 1"'),
        ([0.0, -0.6, 0.8], {"values": "0 to 1"}, 'normals from -0.6 to 0.8, where `values: "0 to 1"`'),
        ([0.9, 0.9, 0.9], {"values": "0 to 1"}, "100% of the normals are no unit vectors"),
        (
            [0.0, 0.6, -0.8],
            {},
            "100% of the normals face away from the viewer .* to 'x right, y down, z away'",
        ),
    ],
)
def test_numbers_that_are_no_normals_as_declared_are_refused(
    read: Read, vector: list[float], settings: Any, sentence: str
) -> None:
    array = np.tile(np.array(vector, np.float32), (TALL, WIDE, 1))
    with pytest.raises(ValueError, match=sentence):
        read("normal", npy(array), normals="x right, y up, z to the viewer", **settings)


def test_lengths_that_vary_are_no_normals_and_a_floor_that_faces_down_is_told(read: Read) -> None:
    slopes = np.random.default_rng(0).normal(0, 3, (TALL, WIDE, 3))
    slopes[..., 2] = 1
    with pytest.raises(ValueError, match="are no unit vectors"):
        read("normal", npy(slopes), normals="x right, y up, z to the viewer")
    floor = np.tile(np.array([0, 0.05, 1], np.float32), (TALL, WIDE, 1))
    floor[40:] = [0, -0.8, 0.6]
    note = read("normal", npy(floor), normals="x right, y up, z to the viewer").meta["note"]
    assert "the lower third faces down" in note and "x right, y down, z to the viewer" in note
    turned = read("normal", npy(floor), normals="x right, y down, z to the viewer")
    assert "note" not in turned.meta
