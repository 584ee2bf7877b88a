"""A flipped map is the map of the mirrored picture: drawn scenes whose truth is known both ways."""

import cv2
import numpy as np
import pytest

from annotate.flips import counterparts, flip, may_flip
from annotate.maps import RawMap, decode, depth_map, encode, render
from annotate.skeletons import SKELETONS

H, W = 90, 121
RNG = np.random.default_rng(0)


def ball(mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Normals float32 [H, W, 3] and inverse depth float32 [H, W] of a ball left of the middle, or its mirror
    image, by geometry.
    """
    y, x = np.mgrid[:H, :W].astype(np.float32)
    centre = W - 1 - 40 if mirrored else 40
    dx, dy = (x - centre) / 30, (45 - y) / 30
    inside = dx**2 + dy**2 < 1
    dz = np.sqrt(np.maximum(0, 1 - dx**2 - dy**2))
    normals = np.where(inside[..., None], np.stack([dx, dy, dz], axis=2), 0).astype(np.float32)
    return normals, np.where(inside, 1 + dz, 0.5 + y / 900).astype(np.float32)


def person(layout: str, mirrored: bool) -> RawMap:
    """Someone who faces us and lifts the left hand, which lies right in the picture; in the mirror it is the
    right hand, on the left.
    """
    side, other = ("right", "left") if mirrored else ("left", "right")
    spots = {
        "nose": (60, 20),
        f"{side}_shoulder": (75, 35),
        f"{other}_shoulder": (45, 35),
        f"{side}_elbow": (90, 28),
        f"{side}_wrist": (95, 8),
    }
    names = SKELETONS[layout].names
    array = np.zeros((1, len(names), 3), np.float32)
    for name, (x, y) in spots.items():
        array[0, names.index(name)] = (W - 1 - x if mirrored else x, y, 0.9)
    return RawMap("people", array, {"size": [H, W], "layout": layout})


def example(kind: str) -> RawMap:
    normals, inverse = ball(mirrored=False)
    return {
        "edges": RawMap("edges", cv2.Canny((inverse * 100).astype(np.uint8), 20, 60)),
        "soft_edges": RawMap("soft_edges", RNG.integers(0, 256, (H, W), dtype=np.uint8)),
        "lines": RawMap("lines", (RNG.random((9, 5)) * 100).astype(np.float32), {"size": [H, W]}),
        "people": person("openpose_18", mirrored=False),
        "labels": RawMap(
            "labels", RNG.integers(0, 150, (H, W), dtype=np.uint8), {"label_space": "ade20k_150"}
        ),
        "depth": depth_map(inverse),
        "normals": RawMap("normals", normals),
    }[kind]


KINDS = ("edges", "soft_edges", "lines", "people", "labels", "depth", "normals")


@pytest.mark.parametrize("kind", KINDS)
def test_two_flips_give_the_map_back_and_one_does_not(kind: str) -> None:
    raw = example(kind)
    once, twice = flip(raw), flip(flip(raw))
    assert once.kind == kind and once.meta == raw.meta and once.array.dtype == raw.array.dtype
    assert once.array.shape == raw.array.shape and not np.array_equal(once.array, raw.array)
    np.testing.assert_allclose(
        twice.array, raw.array, rtol=0, atol=1e-4 if kind in ("lines", "people") else 0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_leaves_its_input_alone_and_can_be_stored(kind: str) -> None:
    raw = example(kind)
    before = raw.array.copy()
    flipped = flip(raw)
    np.testing.assert_array_equal(raw.array, before)
    stored = decode(kind, encode(flipped), flipped.meta)
    np.testing.assert_array_equal(flip(stored).array, decode(kind, encode(flip(flipped)), raw.meta).array)


@pytest.mark.parametrize("protocol", ["cn10", "cn11"])
@pytest.mark.parametrize("kind", ["edges", "soft_edges", "labels", "depth"])
def test_maps_of_pixels_are_drawn_mirrored(kind: str, protocol: str) -> None:
    raw = example(kind)
    np.testing.assert_array_equal(
        render(flip(raw), protocol=protocol), render(raw, protocol=protocol)[:, ::-1]
    )


def test_lines_are_drawn_mirrored() -> None:
    raw = RawMap(
        "lines", np.float32([[3, 5, 80, 5, 1], [10, 10, 10, 70, 1], [20, 20, 60, 60, 1]]), {"size": [H, W]}
    )
    np.testing.assert_array_equal(render(flip(raw)), render(raw)[:, ::-1])
    assert flip(raw).array[0].tolist() == [
        W - 1 - 3,
        5,
        W - 1 - 80,
        5,
        1,
    ], "pixel centres lie at integers; the ends keep their order"


def test_depth_and_normals_are_the_truth_of_the_mirrored_scene() -> None:
    (normals, inverse), (wanted_normals, wanted_inverse) = ball(mirrored=False), ball(mirrored=True)
    np.testing.assert_array_equal(flip(depth_map(inverse)).array, wanted_inverse)
    np.testing.assert_array_equal(flip(RawMap("normals", normals)).array, wanted_normals)


def test_a_mirrored_picture_of_normals_is_wrong_and_the_flip_is_right() -> None:
    drawn, flipped = render(example("normals")), render(flip(example("normals")))
    assert np.abs(flipped.astype(int) - drawn[:, ::-1]).max() > 200, "left and right would be exchanged"
    truth = render(RawMap("normals", ball(mirrored=True)[0]))
    np.testing.assert_array_equal(flipped, truth)


@pytest.mark.parametrize("layout", ["openpose_18", "coco_17"])
def test_people_keep_their_own_left_and_right(layout: str) -> None:
    np.testing.assert_array_equal(
        flip(person(layout, mirrored=False)).array, person(layout, mirrored=True).array
    )


@pytest.mark.parametrize("protocol", ["cn10", "cn11"])
def test_a_flipped_person_has_the_mirrored_shape_in_other_colours(protocol: str) -> None:
    """The lifted arm is drawn in the colours of a left arm before and of a right arm after; a mirrored
    picture keeps the old ones.
    """
    raw = person("openpose_18", mirrored=False)
    mirrored, flipped = render(raw, protocol=protocol)[:, ::-1], render(flip(raw), protocol=protocol)
    shape, other = mirrored.any(axis=2), flipped.any(axis=2)
    ring = cv2.dilate(shape.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert (other & ~ring).sum() == 0 and (
        shape & ~(cv2.dilate(other.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    ).sum() == 0
    elbow = (28, W - 1 - 90)
    colours = dict(zip(SKELETONS["openpose_18"].names, SKELETONS["openpose_18"].colours, strict=True))
    assert np.abs(mirrored[elbow].astype(int) - flipped[elbow]).max() > 50
    if protocol == "cn11":  # joints on top, in full colour
        assert (
            tuple(flipped[elbow]) == colours["right_elbow"]
            and tuple(mirrored[elbow]) == colours["left_elbow"]
        )


@pytest.mark.parametrize("layout", sorted(SKELETONS))
def test_every_layout_pairs_all_its_sides(layout: str) -> None:
    names, other = SKELETONS[layout].names, counterparts(layout)
    for name, k in zip(names, other, strict=True):
        assert other[k] == names.index(name)
        assert ("left" in name or "right" in name) == (names[k] != name)


def test_a_missing_keypoint_stays_missing() -> None:
    flipped = flip(person("openpose_18", mirrored=False)).array
    assert (flipped[0, flipped[0, :, 2] == 0] == 0).all()


@pytest.mark.parametrize(
    "caption",
    [
        "a man at the left",
        "Turn RIGHT.",
        "left-hand drive",
        "the right-most tree",
        "the leftmost tree",
        "raise your (left) arm",
        "alright? all right",
        "right now",
        "a left_side view",
        "walking rightwards",
        "left\nof the door",
        "the righthand page",
        "lefthanded",
    ],
)
def test_a_caption_that_names_a_side_forbids_the_flip(caption: str) -> None:
    assert not may_flip(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a bright copyright sign",
        "upright piano",
        "a cleft rock",
        "",
        "Brightmost star",
        "an alright day",
        "outright",
    ],
)
def test_words_that_only_contain_a_side_do_not(caption: str) -> None:
    assert may_flip(caption)
