"""Canny as ControlNet++ evaluates it: kornia's, which is no dependency, so its own answer is kept beside."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotate.annotator import annotate, resolve

# kornia 0.7.3's canny(image / 255, 0.1, 0.2) of the fixture `small`, 2,346 edge pixels
GOLDEN = Path(__file__).parent / "golden" / "kornia_canny.png"


def drawn(image: np.ndarray, **params: Any) -> np.ndarray:
    step = resolve("canny", "kornia-canny", params)
    (found,) = annotate([image], ["0"], [step])["canny"]
    assert found.map is not None and set(np.unique(found.map.array)) <= {0, 255}
    return found.map.array > 0


def test_the_edges_are_kornias(small: np.ndarray) -> None:
    """A pixel at a threshold may fall to the other side by the last bit of float32; so it did for one in
    900,000 of four photographs.
    """
    wanted = np.asarray(Image.open(GOLDEN)) > 0
    found = drawn(small)
    assert wanted.sum() == 2346 and (found != wanted).sum() <= 2
    assert (drawn(small, low=0.3, high=0.8) != wanted).mean() > 0.02


def test_a_weak_line_is_kept_where_it_touches_a_strong_one_and_no_other(flat: np.ndarray) -> None:
    picture, rows = flat.astype(float), np.arange(len(flat))[:, None]
    for column, height in ((20, np.interp(rows, [0, 50], [60, 8])), (95, 8.0)):
        picture[:, column] += 0.7 * np.broadcast_to(height, (len(flat), 1))
        picture[:, column + 1 :] += np.broadcast_to(height, (len(flat), 1))[..., None]
    found = drawn(picture.clip(0, 255).astype(np.uint8), low=0.05, high=0.3)
    assert found[2:90, 18:23].any(axis=1).all(), "strong above, faint below, in one piece"
    assert not found[2:90, 90:100].any(), "as faint, and alone"
    alone = drawn(picture.clip(0, 255).astype(np.uint8), low=0.05, high=0.06)
    assert alone[2:90, 90:100].any(axis=1).all()


def test_a_flat_picture_has_no_edges_and_is_skipped(flat: np.ndarray) -> None:
    (found,) = annotate([flat], ["0"], [resolve("canny", "kornia-canny", {})])["canny"]
    assert found.status == "skipped"


def test_thresholds_that_cross_are_refused() -> None:
    with pytest.raises(Exception, match=r"kornia-canny: low 0.5 lies above high 0.2"):
        resolve("canny", "kornia-canny", {"low": 0.5})
