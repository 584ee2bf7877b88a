"""Labels, edges and lines that look right and are not, and maps of photographs that EXIF turns."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from annotate import label_spaces, maps
from annotate.maps import RawMap
from pipeline.dataset import formats
from pipeline.dataset.provided.frames import TURNS
from tests.provided_maps import TALL, WIDE, npy, picture, read_map

Read = Callable[..., RawMap]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return partial(read_map, tmp_path)


# -- labels --------------------------------------------------------------------------------------------------


def street() -> np.ndarray:
    """Ids of ade20k_150: sky above, buildings, a road below with a car on it."""
    ids = np.full((TALL, WIDE), 1, np.uint8)
    ids[:24], ids[44:], ids[46:52, 40:60] = 2, 6, 20
    return ids


def test_a_map_is_squashed_with_its_image(read: Read) -> None:
    """All of it, turned first where EXIF turns the image: three columns become two, rows stay."""
    ids = np.zeros((TALL, WIDE), np.uint8)
    ids[:, : WIDE // 3], ids[: TALL // 4] = 2, 20
    told = {"fit": "squash", "labels": "ade20k_150", "frame": "stored"}
    made = read("seg_ade20k", picture(ids), **told).array
    wanted = np.zeros((64, 64), np.uint8)
    wanted[:, :21], wanted[:16] = 2, 20
    assert made.shape == wanted.shape and (made != wanted).sum() <= 64, "the border lies within a pixel"
    turned = read("seg_ade20k", picture(ids), orientation=6, **told).array
    assert (turned != np.rot90(wanted, -1)).sum() <= 64


@pytest.mark.parametrize(
    ("kind", "options", "lossless"),
    [
        ("PNG", {}, True),
        ("TIFF", {}, True),
        ("WEBP", {"lossless": True}, True),
        ("JPEG2000", {}, True),
        ("JPEG", {"quality": 95}, False),
        ("WEBP", {"quality": 100}, False),
        ("AVIF", {"quality": 100}, False),
        ("JPEG2000", {"irreversible": True}, False),
        ("TIFF", {"compression": "jpeg"}, False),
    ],
)
def test_labels_come_from_lossless_formats_only(read: Read, kind: str, options: Any, lossless: bool) -> None:
    data = picture(street(), kind, **options)
    if lossless:
        array = read("seg_ade20k", data, labels="ade20k_150").array
        np.testing.assert_array_equal(array, street()[:, 16:80])
    else:
        with pytest.raises(ValueError, match=r"must be lossless, and .* write them as PNG or \.npy"):
            read("seg_ade20k", data, labels="ade20k_150")


def test_labels_in_equal_channels_are_read_and_a_drawing_of_them_is_not(read: Read) -> None:
    same = picture(np.dstack([street()] * 3 + [np.full_like(street(), 255)]))
    np.testing.assert_array_equal(read("seg_ade20k", same, labels="ade20k_150").array, street()[:, 16:80])
    drawn = maps.render(RawMap("labels", street(), {"label_space": "ade20k_150"}))
    with pytest.raises(ValueError, match="a picture in colours, such as a drawing of them"):
        read("seg_ade20k", picture(drawn), labels="ade20k_150")


def test_labels_off_by_one_are_told(read: Read) -> None:
    assert "note" not in read("seg_ade20k", picture(street()), labels="ade20k_150").meta
    assert "note" not in read("seg_ade20k", picture(street() + 1), labels="ade20k_png").meta
    note = read("seg_ade20k", picture(street() + 1), labels="ade20k_150").meta["note"]
    assert (
        "floors lie high or the sky low as `labels: ade20k_150` reads the map, and not as ade20k_png" in note
    )
    note = read("seg_ade20k", picture(street()), labels="ade20k_png").meta["note"]
    assert "as `labels: ade20k_png` reads the map, and not as ade20k_150" in note
    void = street()
    void[0, 0] = 255
    void[20:] = 0
    note = read("seg_ade20k", picture(void), labels="ade20k_png").meta["note"]
    assert "more than half of the map is void as `labels: ade20k_png` reads it" in note
    void[30:40, 30:40] = 255
    assert (
        "has the id 255, which ade20k_png"
        in read("seg_ade20k", picture(void), labels="ade20k_png").meta["note"]
    )


@pytest.mark.parametrize(
    ("condition", "coding", "present", "sentence"),
    [
        ("seg_ade20k", "ade20k_150", 150, "ade20k_150 has no id 150: .* and ade20k_png has them all"),
        ("seg_ade20k", "ade20k_png", 151, "ade20k_png has no id 151: 0.49% of the map are ids that it lacks"),
        ("seg_coco", "coco_stuff_171", 175, "coco_stuff_171 has no id 175: .* and coco_stuff_png has them"),
        ("seg_coco", "coco_stuff_png", 11, "coco_stuff_png has no id 11: .* and coco_stuff_171 has them all"),
        ("seg_coco", "coco_panoptic_133", 140, "coco_panoptic_133 has no id 140: .* coco_stuff_png has them"),
        ("seg_coco", "coco_stuff_pixelmaps", 91, "coco_stuff_pixelmaps has no id 91: .* coco_stuff_png has"),
    ],
)
def test_ids_that_a_codebook_lacks_are_refused_with_the_likely_one(
    read: Read, condition: str, coding: str, present: int, sentence: str
) -> None:
    base = 120 if coding.startswith("coco_stuff_p") and present != 11 else 5
    ids = np.full((TALL, WIDE), base, np.uint8)
    ids[10:14, 40:45] = present
    with pytest.raises(ValueError, match=sentence):
        read(condition, picture(ids), labels=coding)


def test_a_stray_id_is_void_and_told(read: Read) -> None:
    ids = street()
    ids[10, 40] = 200
    labels = read("seg_ade20k", picture(ids), labels="ade20k_150")
    assert labels.array[10, 24] == 255 and (labels.array == 255).sum() == 1
    assert labels.meta["note"] == (
        "ade20k_150 has no id 200: 0.02% of the map are ids that it lacks; they became void"
    )


def test_pixel_maps_of_stuff_have_a_coding_and_are_not_taken_for_things_and_stuff(read: Read) -> None:
    ids = np.full((TALL, WIDE), 157, np.uint8)  # sky-other, category 157
    ids[40:] = 149  # road
    names = label_spaces.SPACES["coco_stuff_171"].names
    labels = read("seg_coco", picture(ids), labels="coco_stuff_pixelmaps")
    assert (names[labels.array[0, 0]], names[labels.array[-1, 0]]) == ("sky-other", "road")
    assert "stuff alone" in read("seg_coco", picture(ids), labels="coco_stuff_png").meta["note"]
    ids[0, 48] = 183  # a thing
    assert read("seg_coco", picture(ids), labels="coco_stuff_pixelmaps").array[0, 32] == 255
    with pytest.raises(ValueError, match=r"no id 183: .* and coco_stuff_pixelmaps has them all"):
        read("seg_coco", picture(ids), labels="coco_stuff_png")


# -- edges and lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["canny", "hed", "cartoon"])
def test_black_lines_on_white_are_refused_until_their_ink_is_said(read: Read, condition: str) -> None:
    ground = np.full((TALL, WIDE), 255, np.uint8)
    ground[30:33] = 0
    with pytest.raises(
        ValueError, match=f"95% of the map is edge.* set `provided.{condition}.ink` to `dark`"
    ):
        read(condition, picture(ground))
    np.testing.assert_array_equal(read(condition, picture(ground), ink="dark").array, 255 - ground[:, 16:80])
    assert read(condition, picture(ground), ink="light").array.mean() > 240, "as it is said"
    with pytest.raises(ValueError, match=r"light lines on a dark ground: set .* to `light`"):
        read(condition, picture(255 - ground), ink="dark")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_line_that_ends_nowhere_is_refused(read: Read, bad: float) -> None:
    lines = np.array([[20, 10, 60, 40], [20, 10, bad, 40]], np.float32)
    with pytest.raises(ValueError, match="1 of 2 lines have an end or a score that is not a finite number"):
        read("hough", npy(lines))
    assert len(read("hough", npy(lines[:1])).array) == 1
    with pytest.raises(ValueError, match=r"rows of x0 y0 x1 y1 and perhaps a score, not of shape \(2, 2\)"):
        read("hough", npy(lines[:, :2]))


@pytest.mark.parametrize("coordinates", [None, "fractions"])
def test_lines_may_be_fractions_of_the_image(read: Read, coordinates: str | None) -> None:
    lines = np.array([[0.5, 0.25, 0.75, 0.5, 0.9]], np.float32)
    array = read("hough", npy(lines), coordinates=coordinates).array
    np.testing.assert_allclose(array[0], [31.5, 15.5, 55.5, 31.5, 0.9], atol=1e-4)


def test_a_map_whose_own_file_is_turned_is_refused(read: Read) -> None:
    exif = Pillow.Exif()
    exif[formats.ORIENTATION] = 3
    with pytest.raises(ValueError, match="EXIF turns the map's own file"):
        read("canny", picture(street(), exif=exif))


# -- frames --------------------------------------------------------------------------------------------------


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow turns a photograph."""
    stored = Pillow.fromarray(array)
    stored.getexif()[formats.ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(stored))


@pytest.mark.parametrize("orientation", TURNS)
def test_a_map_in_the_stored_frame_turns_as_its_photograph(read: Read, orientation: int) -> None:
    ids = np.random.default_rng(0).integers(1, 151, (8, 12), np.uint8).repeat(8, 0).repeat(8, 1)
    upright = turned(ids, orientation)
    wanted = read("seg_ade20k", picture(upright), orientation, labels="ade20k_png", frame="upright").array
    stored = read("seg_ade20k", picture(ids), orientation, labels="ade20k_png", frame="stored").array
    np.testing.assert_array_equal(stored, wanted)
    assert (stored != read("seg_ade20k", picture(ids), labels="ade20k_png").array).any() or orientation == 1


@pytest.mark.parametrize("orientation", TURNS)
def test_points_and_vectors_turn_with_their_photograph(read: Read, orientation: int) -> None:
    at = np.array([[40, 20], [52, 33]])  # x, y in the stored frame
    dots = np.zeros((TALL, WIDE), np.uint8)
    dots[at[:, 1], at[:, 0]] = 1, 2
    crop = turned(dots, orientation)
    top, left = (crop.shape[0] - 64) // 2, (crop.shape[1] - 64) // 2
    wanted = np.array([np.argwhere(crop == value)[0][::-1] - (left, top) for value in (1, 2)])
    line = read("hough", npy(at.reshape(1, 4) * 1.0), orientation, frame="stored").array[0]
    np.testing.assert_allclose(line[:4].reshape(2, 2), wanted, atol=1e-4)
    body = np.zeros((17, 3))
    body[[5, 6], :2], body[[5, 6], 2] = at, 2
    given = [{"keypoints": body.ravel().tolist()}]
    person = read("pose_openpifpaf", given, orientation, keypoints="coco", frame="stored").array[0]
    np.testing.assert_allclose(person[[5, 6], :2], wanted, atol=1e-4)

    step = (wanted[1] - wanted[0]) / np.hypot(12, 13)  # the same direction, x right and y down
    normal = np.tile(np.array([12, -13, np.hypot(12, 13)]) / np.hypot(12, 13) / 2**0.5, (TALL, WIDE, 1))
    array = read(
        "normal", npy(normal), orientation, frame="stored", normals="x right, y up, z to the viewer"
    ).array
    np.testing.assert_allclose(array[20, 20], np.array([step[0], -step[1], 1]) / 2**0.5, atol=1e-5)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_map_of_a_turned_photograph_is_refused_until_its_frame_is_said(
    read: Read, orientation: int
) -> None:
    metres = np.ones((TALL, WIDE), np.float32) * np.arange(1, WIDE + 1, dtype=np.float32)
    data = npy(metres if orientation == 3 else metres.T)
    with pytest.raises(
        ValueError, match=r"orientation [36]\).* set `provided.depth_large.frame` to `stored`"
    ):
        read("depth_large", data, orientation, depth="metres")
    assert read("depth_large", npy(metres), depth="metres").array.any(), "no turn, no question"
