"""Hands and face behind the body's keypoints: drawn as controlnet_aux does, mirrored as a picture is."""

import contextlib
import io
import warnings

import numpy as np
import pytest

from annotate import wholebody
from annotate.flips import flip
from annotate.maps import RawMap, decode, encode, measures, render
from annotate.people import arranged
from annotate.skeletons import SKELETONS

SIZE = (200, 256)


def people(seed: int, missing: float = 0.0, layout: str = "openpose_18") -> RawMap:
    """Two people with hands and faces anywhere in a picture of SIZE, at pixels that its shares give back."""
    rng = np.random.default_rng(seed)
    count = len(SKELETONS[layout].names) + wholebody.EXTRA
    xy = rng.integers(2, (SIZE[1] - 2, SIZE[0] - 2), (2, count, 2)) + 0.25
    array = np.concatenate([xy, np.ones((2, count, 1))], axis=2).astype(np.float32)
    array[rng.random((2, count)) < missing] = 0
    return RawMap("people", array, {"size": list(SIZE), "layout": layout})


def drawn_by_library(raw: RawMap) -> np.ndarray:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from controlnet_aux.open_pose import BodyResult, Keypoint, PoseResult, draw_poses
    poses = []
    for person in raw.array:
        point = [Keypoint(x / SIZE[1], y / SIZE[0]) for x, y, _ in person.tolist()]
        extra = point[18:]
        poses.append(
            PoseResult(
                BodyResult(point[:18], 1.0, 18),
                extra[wholebody.LEFT], extra[wholebody.RIGHT], extra[wholebody.HEAD],
            )
        )  # fmt: skip
    return np.asarray(draw_poses(poses, *SIZE))


@pytest.mark.parametrize("seed", range(4))
def test_the_drawing_of_1_1_is_controlnet_auxs_to_the_pixel(seed: int) -> None:
    raw = people(seed)
    ours = render(raw, protocol="cn11")
    np.testing.assert_array_equal(ours, drawn_by_library(raw))
    bare = RawMap("people", raw.array[:, :18].copy(), raw.meta)
    assert (ours != render(bare, protocol="cn11")).any()
    np.testing.assert_array_equal(render(raw, protocol="cn10"), render(bare, protocol="cn10"))


def test_missing_points_are_not_drawn_and_those_of_coco_never() -> None:
    raw = people(0)
    raw.array[:, 18:] = 0
    bare = RawMap("people", raw.array[:, :18].copy(), raw.meta)
    np.testing.assert_array_equal(render(raw, protocol="cn11"), render(bare, protocol="cn11"))
    coco = people(1, layout="coco_17")
    bare = RawMap("people", coco.array[:, :17].copy(), coco.meta)
    np.testing.assert_array_equal(render(coco, protocol="cn11"), render(bare, protocol="cn11"))


def test_the_measures_and_the_stored_bytes_know_them() -> None:
    raw = people(2, missing=0.3)
    bare = RawMap("people", raw.array[:, :18].copy(), raw.meta)
    assert measures(raw) == measures(bare), "the paper's rule asks for the body"
    np.testing.assert_array_equal(decode("people", encode(raw), raw.meta).array, raw.array)


def test_a_mirrored_person_has_the_other_hand_and_a_face_in_ibugs_order() -> None:
    raw = people(3, missing=0.2)
    twice = flip(flip(raw)).array
    np.testing.assert_allclose(twice, raw.array, atol=1e-4)
    left, right = (flip(raw).array[:, 18:][:, part] for part in (wholebody.LEFT, wholebody.RIGHT))
    for mirrored, part in ((left, wholebody.RIGHT), (right, wholebody.LEFT)):
        was = raw.array[:, 18:][:, part]
        there = was[..., 2] > 0
        np.testing.assert_allclose(mirrored[there][:, 0], SIZE[1] - 1 - was[there][:, 0])
        np.testing.assert_array_equal(mirrored[..., 1:], was[..., 1:])


def test_a_symmetric_face_is_its_own_mirror_image() -> None:
    """The points of a face from the front by the rules of iBUG's numbers: jaw from the right ear down and up
    again, brows, nose, eyes, lips, each from right to left above and back below.
    """
    arc = lambda n, rx, ry, up: [(-rx * np.cos(t), up * ry * np.sin(t)) for t in np.linspace(0, np.pi, n)]
    ring = lambda n, cx, cy: [
        (cx - 6 * np.cos(2 * np.pi * k / n), cy - 3 * np.sin(2 * np.pi * k / n)) for k in range(n)
    ]
    eye = ring(6, -15, -12)
    other = [(-eye[k][0], eye[k][1]) for k in (3, 2, 1, 0, 5, 4)]
    face = [
        *arc(17, 40, 45, 1), *((x, -25) for x in (-25, -20, -15, -10, -5, 5, 10, 15, 20, 25)),
        *((0, y) for y in (-10, -5, 0, 5)), *((x, 8) for x in (-6, -3, 0, 3, 6)), *eye, *other,
        *ring(12, 0, 25), *ring(8, 0, 25),
    ]  # fmt: skip
    raw = people(0)
    points = np.array(face, np.float32) + np.array([(SIZE[1] - 1) / 2, 100], np.float32)
    raw.array[:, 18:][:, wholebody.HEAD, :2] = points
    np.testing.assert_allclose(flip(raw).array[:, 18:][:, wholebody.HEAD, :2], [points] * 2, atol=1e-3)


def test_another_layout_keeps_hands_and_face() -> None:
    raw = people(0, layout="coco_17")
    other = arranged(raw.array, SKELETONS["coco_17"].names, "openpose_18")
    np.testing.assert_array_equal(other[:, 18:], raw.array[:, 17:])


def test_fidelity_is_that_of_the_body() -> None:
    from evaluate import oks
    from evaluate.comparison import Map

    raw = people(0)
    whole = oks.coco(Map(raw.array, dict(raw.meta)), "whole")
    np.testing.assert_array_equal(whole, oks.coco(Map(raw.array[:, :18], dict(raw.meta)), "body"))
