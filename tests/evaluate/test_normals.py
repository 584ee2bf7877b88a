"""Angles between normals, where there are normals."""

import numpy as np
import pytest

from evaluate.fidelity import Map, compare
from evaluate.normals import angles


def tilted(*degrees: float) -> np.ndarray:
    """One row of normals that lean to the right by so much; float32 [1, n, 3]."""
    radians = np.radians(degrees)
    return np.stack([np.sin(radians), np.zeros_like(radians), np.cos(radians)], axis=1)[None].astype(
        np.float32
    )


def values(truth: np.ndarray, made: np.ndarray) -> dict[str, float]:
    return compare("normals", Map(truth, {}), Map(made, {})).values


def test_by_hand():
    found = values(tilted(0, 0, 0, 0), tilted(0, 12, 25, 90))
    assert found["normal_angle"] == pytest.approx(127 / 4, abs=1e-4)
    assert found["normal_median"] == pytest.approx(18.5, abs=1e-4)
    assert found["normal_rmse"] == pytest.approx(np.sqrt((144 + 625 + 8100) / 4), abs=1e-4)
    assert [found[f"normal_within_{limit}"] for limit in ("11.25", "22.5", "30")] == [0.25, 0.5, 0.75]


def test_the_same_map_is_exactly_at_no_angle_whatever_the_length_of_its_vectors():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 3))
    assert angles(vectors, vectors).max() == 0.0
    assert angles(vectors, -vectors) == pytest.approx(180.0)
    assert angles(vectors, 5 * vectors) == pytest.approx(0.0, abs=1e-6)


def test_angles_are_the_arc_cosine_s_where_that_is_exact():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 200, 3))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(angles(a, b), np.degrees(np.arccos(cosine)), atol=1e-6)


def test_pixels_without_a_true_normal_are_left_out_and_one_that_was_lost_is_wrong():
    truth, made = tilted(0, 0, 0), tilted(0, 60, 0)
    truth[0, 1] = 0
    assert values(truth, made)["normal_angle"] == 0.0
    made[0, 2] = 0
    found = values(truth, made)
    assert found["normal_angle"] == 90.0 and found["normal_within_30"] == 0.5


def test_a_map_without_any_normal_is_the_worst():
    truth, nothing = tilted(0, 10), np.zeros((1, 2, 3), np.float32)
    assert values(truth, nothing) == compare("normals", Map(truth, {}), None).values
    assert values(truth, nothing)["normal_angle"] == 180.0
    assert values(nothing, nothing)["normal_angle"] == 0.0
