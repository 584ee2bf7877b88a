"""Provided maps that look right and are not: each has its right value, or one sentence that refuses it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from annotate import label_spaces, maps
from annotate.annotator import annotate, resolve
from annotate.maps import RawMap
from pipeline.dataset import images, provided
from pipeline.dataset.provided.frames import TURNS
from pipeline.dataset.provided.normals import AXES
from pipeline.manifest import Image, Provided
from pipeline.sources import RawImage

TALL, WIDE = 64, 96  # the canonical image is the middle, 64 x 64
Read = Callable[..., RawMap]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(array).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The map of one photograph of 96 x 64 whose bytes lie beside it; what is wrong with it is raised."""

    def make(condition: str, data: Any, orientation: int = 1, **settings: Any) -> RawMap:
        exif = Pillow.Exif()
        exif[images.ORIENTATION] = orientation
        Pillow.new("RGB", (WIDE, TALL), "red").save(tmp_path / "a.jpg", exif=exif)
        (tmp_path / "a.map").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        stored = Provided(path="{stem}.map", **settings).model_dump()
        raw = RawImage(
            str(tmp_path / "a.jpg"), "", place={"root": str(tmp_path)}, provided={condition: stored}
        )
        image = Image(resolution=64, fit="crop")
        read_map = provided.read(raw, [condition], image)[condition]
        if isinstance(read_map, Exception):
            raise read_map
        return read_map

    return make


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
            "three quarters of the map lie beyond 2000 m: set `depth: millimetres`, `depth_scale`",
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


# -- frames --------------------------------------------------------------------------------------------------


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow turns a photograph."""
    stored = Pillow.fromarray(array)
    stored.getexif()[images.ORIENTATION] = orientation
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
    data = npy(room() if orientation == 3 else room().T)
    with pytest.raises(
        ValueError, match=r"orientation [36]\).* set `provided.depth_large.frame` to `stored`"
    ):
        read("depth_large", data, orientation, depth="metres")
    assert read("depth_large", npy(room()), depth="metres").array.any(), "no turn, no question"


# -- labels --------------------------------------------------------------------------------------------------


def street() -> np.ndarray:
    """Ids of ade20k_150: sky above, buildings, a road below with a car on it."""
    ids = np.full((TALL, WIDE), 1, np.uint8)
    ids[:24], ids[44:], ids[46:52, 40:60] = 2, 6, 20
    return ids


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
    exif[images.ORIENTATION] = 3
    with pytest.raises(ValueError, match="EXIF turns the map's own file"):
        read("canny", picture(street(), exif=exif))
