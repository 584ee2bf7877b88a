"""Edge F1 as exact, one-to-one and safe as its docstrings say."""

import itertools
import time

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt

from evaluate.fidelity import FIDELITY, METRICS, NAMES, EdgeCounts, edge_counts, f1, sample_fidelity, summarise


def drawing(shape: tuple[int, int] = (128, 128)) -> np.ndarray:
    """Thin curves as a detector makes them: uint8 HW of 0 and 255."""
    canvas = np.zeros(shape, np.uint8)
    cv2.circle(canvas, (60, 64), 40, 255, 1)
    cv2.line(canvas, (10, 20), (110, 90), 255, 1)
    cv2.ellipse(canvas, (70, 60), (20, 45), 30, 0, 360, 255, 1)
    return canvas


def pixels(shape: tuple[int, int], *where: tuple[int, int]) -> np.ndarray:
    edges = np.zeros(shape, bool)
    for y, x in where:
        edges[y, x] = True
    return edges


def brute_force_matching(truth: np.ndarray, made: np.ndarray, tolerance: float) -> int:
    """The largest matching by trying every assignment."""
    true, found = np.argwhere(truth), np.argwhere(made)
    if len(true) > len(found):
        true, found = found, true
    near = np.linalg.norm(true[:, None] - found[None], axis=2) <= tolerance
    choices = itertools.permutations(range(len(found)), len(true))
    return max((sum(near[i, j] for i, j in enumerate(choice)) for choice in choices), default=0)


def distance_transform_f1(truth: np.ndarray, made: np.ndarray, tolerance: float) -> float:
    """The usual shortcut, which lets one true pixel excuse many made ones."""
    precision = (distance_transform_edt(~truth)[made] <= tolerance).mean()
    recall = (distance_transform_edt(~made)[truth] <= tolerance).mean()
    return float(2 * precision * recall / (precision + recall))


def test_identical_maps_score_one_whether_bool_or_uint8():
    edges = drawing()
    assert f1(edge_counts(edges, edges)) == f1(edge_counts(edges > 0, edges, 1.0)) == 1.0


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shift_of_one_pixel_costs_the_exact_score_and_not_the_tolerant_one(axis):
    edges = drawing()
    shifted = np.roll(edges, 1, axis)
    scores = sample_fidelity("edges", edges, shifted)
    assert scores["edge_f1"] < 0.5
    assert scores["edge_f1_1px"] > 0.99


def test_one_pixel_of_tolerance_is_euclidean_so_a_diagonal_neighbour_is_too_far():
    truth = pixels((5, 5), (2, 2))
    assert edge_counts(truth, pixels((5, 5), (2, 3)), 1.0).matched == 1
    assert edge_counts(truth, pixels((5, 5), (3, 3)), 1.0).matched == 0
    assert edge_counts(truth, pixels((5, 5), (3, 3)), 1.5).matched == 1
    assert edge_counts(truth, pixels((5, 5), (2, 3)), 0.9).matched == 0


def test_two_made_pixels_beside_one_true_pixel_give_one_match():
    truth, made = pixels((3, 5), (1, 2)), pixels((3, 5), (1, 1), (1, 3))
    counts = edge_counts(truth, made, 1.0)
    assert counts == EdgeCounts(matched=1, n_truth=1, n_made=2)
    assert f1(counts) == pytest.approx(2 / 3)
    assert distance_transform_f1(truth, made, 1.0) == 1.0


def test_doubled_edges_do_not_pay_although_a_distance_transform_would_let_them():
    truth = drawing() > 0
    doubled = binary_dilation(truth)
    assert distance_transform_f1(truth, doubled, 1.0) == 1.0
    assert f1(edge_counts(truth, doubled, 1.0)) < 0.6


def test_the_matching_is_the_largest_where_taking_the_nearest_first_is_not():
    # true pixels at 0 and 1, made ones at 1 and 2: pairing 1 with 1 first leaves 0 and 2 alone
    truth, made = pixels((1, 4), (0, 0), (0, 1)), pixels((1, 4), (0, 1), (0, 2))
    assert edge_counts(truth, made, 1.0).matched == 2


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 2.0])
def test_the_matching_agrees_with_brute_force_on_small_random_maps(tolerance):
    rng = np.random.default_rng(0)
    for _ in range(25):
        truth, made = rng.random((4, 4)) < 0.35, rng.random((4, 4)) < 0.35
        if min(truth.sum(), made.sum()) > 5 or max(truth.sum(), made.sum()) > 8:
            continue
        assert edge_counts(truth, made, tolerance).matched == brute_force_matching(truth, made, tolerance)


def test_the_score_is_symmetric_and_grows_with_tolerance():
    rng = np.random.default_rng(1)
    truth, made = rng.random((2, 40, 50)) < 0.15
    scores = [f1(edge_counts(truth, made, tolerance)) for tolerance in (0, 1, 2, 3)]
    assert scores == sorted(scores)
    assert edge_counts(truth, made, 1.0).matched == edge_counts(made, truth, 1.0).matched


def test_pixels_at_the_border_do_not_wrap_around():
    assert edge_counts(pixels((4, 4), (1, 3)), pixels((4, 4), (2, 0)), 1.0).matched == 0
    assert edge_counts(pixels((4, 4), (0, 1)), pixels((4, 4), (3, 1)), 1.0).matched == 0


def test_empty_maps_agree_with_each_other_and_with_nothing_else():
    empty, edges = np.zeros((8, 8), np.uint8), pixels((8, 8), (2, 2))
    for tolerance in (0.0, 1.0):
        assert f1(edge_counts(empty, empty, tolerance)) == 1.0
        assert f1(edge_counts(edges, empty, tolerance)) == 0.0
        assert f1(edge_counts(empty, edges, tolerance)) == 0.0


def test_counts_of_many_pairs_add_up():
    total = EdgeCounts(matched=1, n_truth=2, n_made=3) + EdgeCounts(matched=4, n_truth=5, n_made=6)
    assert total == EdgeCounts(matched=5, n_truth=7, n_made=9)


@pytest.mark.parametrize(("truth", "made", "says"), [
    (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), "one size"),
    (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8), "float32"),
    (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), "edge map"),
    (np.array([[0, 100, 255]], np.uint8), np.array([[0, 0, 255]], np.uint8), "grey levels"),
])
def test_maps_that_are_not_two_binary_maps_of_one_size_are_refused(truth, made, says):
    with pytest.raises(ValueError, match=says):
        edge_counts(truth, made)


def test_thick_edges_at_512_take_well_under_a_second():
    # SciPy's own bipartite matching does not come back from maps such as these
    rng = np.random.default_rng(0)
    noise = [cv2.GaussianBlur(rng.random((512, 512)), (0, 0), 6) for _ in range(2)]
    truth, made = (layer < np.quantile(layer, 0.3) for layer in noise)
    start = time.perf_counter()
    edge_counts(truth, made, 1.0)
    assert time.perf_counter() - start < 5      # measured 0.1 s; generous for a loaded machine


def test_a_failed_re_reading_scores_the_worst_of_each_metric():
    assert sample_fidelity("edges", drawing(), None) == {"edge_f1": 0.0, "edge_f1_1px": 0.0}


def test_a_kind_without_a_measure_is_named_with_those_that_have_one():
    with pytest.raises(ValueError, match=r"'depth' yet: scored so far are edges"):
        sample_fidelity("depth", drawing(), drawing())


def test_every_measure_returns_exactly_the_metrics_it_declares():
    assert set(NAMES) == set(FIDELITY)
    for kind, names in NAMES.items():
        assert tuple(sample_fidelity(kind, drawing(), drawing())) == names
        assert all(name in METRICS for name in names)


def test_failed_samples_are_counted_and_pull_the_mean_down():
    identity = {"system": "canny", "condition": "canny", "benchmark": "b", "checkpoint": "c", "detector": "d", "seeds": (0,)}
    score = summarise("edge_f1", [0.8, None, 0.4, 0.8], ["a", "b", "c", "d"], **identity)
    assert (score.n, score.n_failed, score.value) == (4, 1, pytest.approx(0.5))
    assert score.low < 0.5 < score.high
    assert score.higher_is_better and score.detector == "d" and score.seeds == (0,)
    alone = summarise("edge_f1", [0.8], ["a"], **identity)
    assert (alone.low, alone.high) == (None, None)
    with pytest.raises(ValueError, match="unknown metric"):
        summarise("ssim", [0.8], ["a"], **identity)
