"""Edges, soft edges, lines and depth are drawn byte for byte as the golden pictures, which plain rules about
pixels made.

`python tests/annotate/test_golden_edges.py` writes the pictures anew, from the rules and never from the
drawing.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotate.drawing import PROTOCOLS
from annotate.maps import RawMap, depth_map, render

GOLDEN = Path(__file__).parent / "golden" / "edges"
SIDE = 16
Rule = Callable[[int, int], int]  # x, y -> grey


def on(x: int, y: int) -> int:
    """An edge map of slanted rows of pixels."""
    return 255 if (x + 3 * y) % 11 == 0 else 0


def strength(x: int, y: int) -> int:
    """All 256 strengths, row by row."""
    return SIDE * y + x


def three_levels(x: int, y: int) -> int:
    """ControlNet 1.1's safe_step with step 2: floor(3 x) / 2, cut at 1, of x = strength / 255; bytes are
    truncated.
    """
    return int(min(Fraction(int(Fraction(3 * strength(x, y), 255)), 2), 1) * 255)


def nearness(x: int, y: int) -> int:
    """Inverse depth in hundredths: a slope and a near box."""
    return 999 if 4 <= x < 9 and 5 <= y < 12 else 100 + 7 * y + x


def bright(x: int, y: int) -> int:
    return round(Fraction(255 * (nearness(x, y) - 100), 899))


SEGMENTS = ((2, 3, 13, 3), (8, 14, 8, 5), (1, 1, 6, 6), (15, 9, 10, 14), (0, 15, 9, 12))


def touched(x: int, y: int) -> int:
    """Horizontal, vertical and diagonal lines, ends included, and one that rises one pixel in three."""
    spots = {(k, 3) for k in range(2, 14)} | {(8, k) for k in range(5, 15)} | {(k, k) for k in range(1, 7)}
    spots |= {(15 - k, 9 + k) for k in range(6)} | {(k, 15 - (k + 1) // 3) for k in range(10)}
    return 255 if (x, y) in spots else 0


def of(rule: Rule) -> np.ndarray:
    return np.array([[rule(x, y) for x in range(SIDE)] for y in range(SIDE)])


EDGES = RawMap("edges", of(on).astype(np.uint8))
SOFT = RawMap("soft_edges", of(strength).astype(np.uint8))
LINES = RawMap("lines", np.array([(*segment, 1) for segment in SEGMENTS], np.float32), {"size": [SIDE, SIDE]})

# picture: the map, the size it is drawn at, protocol -> the rule
CASES: dict[str, tuple[RawMap, int, dict[str, Rule]]] = {
    "edges": (EDGES, SIDE, dict.fromkeys(PROTOCOLS, on)),
    # half the size: a pixel is white if an edge touches one of its four
    "edges-half": (
        EDGES,
        SIDE // 2,
        dict.fromkeys(PROTOCOLS, lambda x, y: max(on(2 * x + i, 2 * y + j) for i in (0, 1) for j in (0, 1))),
    ),
    "edges-double": (EDGES, SIDE * 2, dict.fromkeys(PROTOCOLS, lambda x, y: on(x // 2, y // 2))),
    "soft-edges": (SOFT, SIDE, {"cn10": strength, "cn11": three_levels}),
    "lines": (LINES, SIDE, dict.fromkeys(PROTOCOLS, touched)),
    "depth": (depth_map(of(nearness) / 100), SIDE, dict.fromkeys(PROTOCOLS, bright)),
}
PICTURES = [(name, protocol) for name, (_, _, rules) in CASES.items() for protocol in rules]


def by_rule(name: str, protocol: str) -> np.ndarray:
    """uint8 [size, size, 3]."""
    _, size, rules = CASES[name]
    grey = np.array([[rules[protocol](x, y) for x in range(size)] for y in range(size)], np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(("name", "protocol"), PICTURES)
def test_the_drawing_is_the_golden_picture_and_that_is_the_rule(name: str, protocol: str) -> None:
    raw, size, _ = CASES[name]
    golden = np.asarray(Image.open(GOLDEN / f"{name}-{protocol}.png"))
    assert golden.dtype == np.uint8 and golden.shape == (size, size, 3) and len(np.unique(golden)) > 1
    np.testing.assert_array_equal(render(raw, (size, size), protocol), golden)
    np.testing.assert_array_equal(by_rule(name, protocol), golden)


def test_only_soft_edges_differ_between_the_two_protocols() -> None:
    pictures = {
        (name, protocol): (GOLDEN / f"{name}-{protocol}.png").read_bytes() for name, protocol in PICTURES
    }
    assert {name for name in CASES if pictures[name, "cn10"] != pictures[name, "cn11"]} == {"soft-edges"}
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(
        f"{name}-{protocol}" for name, protocol in PICTURES
    )


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, protocol in PICTURES:
        Image.fromarray(by_rule(name, protocol)).save(GOLDEN / f"{name}-{protocol}.png")
