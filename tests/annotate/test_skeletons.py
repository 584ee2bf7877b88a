"""How people are drawn: against the library's drawing, a restatement of ControlNet 1.0's, and pictures made
from both.
"""

import contextlib
import importlib.util
import io
import math
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotate.maps import RawMap, render
from annotate.skeletons import SKELETONS

GOLDEN = Path(__file__).with_name("golden") / "people"
# joints and limbs as ControlNet and OpenPose number them, from 1
LIMBS = "2-3 2-6 3-4 4-5 6-7 7-8 2-9 9-10 10-11 2-12 12-13 13-14 2-1 1-15 15-17 1-16 16-18"
HUES = (
    "ff0000 ff5500 ffaa00 ffff00 aaff00 55ff00 00ff00 00ff55 00ffaa 00ffff 00aaff 0055ff 0000ff 5500ff aa00ff"
    " ff00ff ff00aa ff0055"
)


def drawn(people: np.ndarray, protocol: str, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    return render(RawMap("people", people, {"size": list(size), "layout": "openpose_18"}), protocol=protocol)


def two_people() -> np.ndarray:
    """float32 [2, 18, 3]: a whole one, and one without the left arm and the right leg who covers part of the
    first.
    """
    whole = [
        (88, 40),
        (88, 68),
        (64, 68),
        (50, 104),
        (46, 138),
        (112, 68),
        (128, 104),
        (132, 138),
        (72, 144),
        (70, 190),
        (68, 236),
        (104, 144),
        (106, 190),
        (108, 236),
        (82, 34),
        (94, 34),
        (75, 40),
        (101, 40),
    ]
    people = np.ones((2, 18, 3), np.float32)
    people[0, :, :2] = whole
    people[1, :, :2] = np.array(whole) * 0.9 + (60, 14)
    people[1, [6, 7, 9, 10]] = 0
    return people


def random_people(seed: int) -> np.ndarray:
    """float32 [3, 18, 3] anywhere in 256 x 256, a fifth of the keypoints missing; coordinates as a detector
    at half the size gives them.
    """
    rng = np.random.default_rng(seed)
    people = np.concatenate([rng.integers(0, 510, (3, 18, 2)) / 2, np.ones((3, 18, 1))], axis=2)
    people[rng.random((3, 18)) < 0.2] = 0
    return people.astype(np.float32)


def drawn_by_library(people: np.ndarray, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    """ControlNet 1.1, as controlnet_aux draws it; its coordinates are shares of the picture."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from controlnet_aux.open_pose.body import Keypoint
        from controlnet_aux.open_pose.util import draw_bodypose
    canvas = np.zeros((*size, 3), np.uint8)
    for person in people:
        draw_bodypose(
            canvas, [Keypoint(x / size[1], y / size[0]) if seen else None for x, y, seen in person.tolist()]
        )
    return canvas


def drawn_as_first_published(people: np.ndarray, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    """ControlNet 1.0: joints of all people, part by part; then limb by limb, 0.4 of what is there and 0.6 of
    the limb's colour.
    """
    colours = [tuple(bytes.fromhex(hue)) for hue in HUES.split()]
    canvas = np.zeros((*size, 3), np.uint8)
    for part, colour in enumerate(colours):
        for x, y, seen in people[:, part].tolist():
            if seen:
                cv2.circle(canvas, (int(x), int(y)), 4, colour, -1)
    for limb, colour in zip(LIMBS.split(), colours, strict=False):
        a, b = (int(number) - 1 for number in limb.split("-"))
        for person in people.tolist():
            (ax, ay, seen_a), (bx, by, seen_b) = person[a], person[b]
            if not seen_a or not seen_b:
                continue
            half, turn = (
                int(math.dist((ax, ay), (bx, by)) / 2),
                int(math.degrees(math.atan2(ay - by, ax - bx))),
            )
            stick = np.zeros(size, np.uint8)
            cv2.fillConvexPoly(
                stick,
                cv2.ellipse2Poly((int((ax + bx) / 2), int((ay + by) / 2)), (half, 4), turn, 0, 360, 1),
                1,
            )
            mixed = np.rint(0.4 * canvas.astype(np.float64) + 0.6 * np.array(colour))
            canvas = np.where(stick[..., None] == 1, mixed, canvas).astype(np.uint8)
    return canvas


ORACLES = {"cn10": drawn_as_first_published, "cn11": drawn_by_library}


def needs(protocol: str) -> None:
    if protocol == "cn11" and importlib.util.find_spec("controlnet_aux") is None:
        pytest.skip("controlnet_aux is not installed")


@pytest.mark.parametrize("protocol", ORACLES)
def test_people_are_drawn_as_in_the_golden_picture(protocol: str) -> None:
    """The pictures were written by the functions above, not by ours."""
    golden = cv2.imread(str(GOLDEN / f"openpose_18_{protocol}.png"))[..., ::-1]
    np.testing.assert_array_equal(drawn(two_people(), protocol), golden)


@pytest.mark.parametrize("protocol", ORACLES)
def test_any_people_are_drawn_as_published_to_the_pixel(protocol: str) -> None:
    needs(protocol)
    for seed in range(20):
        people = random_people(seed)
        np.testing.assert_array_equal(drawn(people, protocol), ORACLES[protocol](people), f"seed {seed}")


def test_the_two_protocols_differ_where_limbs_cross_and_in_brightness() -> None:
    first, second = drawn(two_people(), "cn10"), drawn(two_people(), "cn11")
    assert (first.any(axis=2) == second.any(axis=2)).mean() > 0.999, "the same places"
    assert (first != second).any(axis=2).sum() > 1000


def test_a_person_seen_in_a_mirror_has_other_colours() -> None:
    """Left and right limbs differ, so that a picture of a pose must not be flipped."""
    person = two_people()[:1]
    mirrored = person.copy()
    mirrored[..., 0] = 255 - mirrored[..., 0]
    assert np.abs(drawn(mirrored, "cn10").astype(int) - drawn(person, "cn10")[:, ::-1]).max() > 100


def test_nobody_is_a_black_picture() -> None:
    for protocol in ORACLES:
        assert not drawn(np.zeros((0, 18, 3), np.float32), protocol).any()
        assert not drawn(np.zeros((1, 18, 3), np.float32), protocol).any()


def test_the_limbs_and_colours_are_the_published_ones() -> None:
    skeleton = SKELETONS["openpose_18"]
    assert " ".join(f"{a + 1}-{b + 1}" for a, b in skeleton.limbs) == LIMBS
    assert " ".join(bytes(colour).hex() for colour in skeleton.colours) == HUES
