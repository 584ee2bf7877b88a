"""Canny as ControlNet++ evaluates it: kornia's, which is no dependency, so its own answer is kept beside."""

from pathlib import Path

import numpy as np
from PIL import Image

from annotate.annotator import annotate, resolve
from annotate.edges import kornia_canny

# kornia 0.7.3's canny(image / 255, 0.1, 0.2) of the fixture `small`, 2,346 edge pixels
GOLDEN = Path(__file__).parent / "golden" / "kornia_canny.png"


def test_the_edges_are_kornias(small: np.ndarray) -> None:
    """A pixel at a threshold may fall to the other side by the last bit of float32; so it did for one in
    900,000 of four photographs.
    """
    wanted = np.asarray(Image.open(GOLDEN)) > 0
    (found,) = annotate([small], ["0"], [resolve("canny", "kornia-canny", {})])["canny"]
    assert found.map is not None and set(np.unique(found.map.array)) == {0, 255}
    assert wanted.sum() == 2346 and ((found.map.array > 0) != wanted).sum() <= 2
    assert ((kornia_canny(small, 0.3, 0.8) > 0) != wanted).mean() > 0.02


def test_a_weak_line_is_kept_where_it_touches_a_strong_one_and_no_other(flat: np.ndarray) -> None:
    picture, rows = flat.astype(float), np.arange(len(flat))[:, None]
    for column, height in ((20, np.interp(rows, [0, 50], [60, 8])), (95, 8.0)):
        picture[:, column] += 0.7 * np.broadcast_to(height, (len(flat), 1))
        picture[:, column + 1 :] += np.broadcast_to(height, (len(flat), 1))[..., None]
    shown = picture.clip(0, 255).astype(np.uint8)
    found = kornia_canny(shown, 0.05, 0.3) > 0
    assert found[2:90, 18:23].any(axis=1).all(), "strong above, faint below, in one piece"
    assert not found[2:90, 90:100].any(), "as faint, and alone"
    alone = kornia_canny(shown, 0.05, 0.06) > 0
    assert alone[2:90, 90:100].any(axis=1).all()


def test_a_flat_picture_has_no_edges_and_is_skipped(flat: np.ndarray) -> None:
    (found,) = annotate([flat], ["0"], [resolve("canny", "kornia-canny", {})])["canny"]
    assert found.status == "skipped"
