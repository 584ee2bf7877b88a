"""Edge F1 as exact, one-to-one and safe as its docstrings say."""

import itertools

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt

from evaluate import edges, fidelity, matching
from evaluate.comparison import PROMPT
from evaluate.edges import EdgeCounts, chamfer, edge_counts, f1, thinned
from evaluate.fidelity import Map, compare
from evaluate.matching import most_pairs, near_pixels


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
def test_a_shift_of_one_pixel_costs_the_exact_score_and_not_the_tolerant_ones(axis):
    edges = drawing()
    scores = compare("edges", Map(edges, {}), Map(np.roll(edges, 1, axis), {})).values
    assert scores["edge_f1"] < 0.5
    assert min(scores["edge_f1_1px"], scores["edge_f1_2px"], scores["edge_f1_bsds"]) > 0.99


def test_one_pixel_of_tolerance_is_euclidean_so_a_diagonal_neighbour_is_too_far():
    truth = pixels((5, 5), (2, 2))
    assert edge_counts(truth, pixels((5, 5), (2, 3)), 1.0).matched == 1
    assert edge_counts(truth, pixels((5, 5), (3, 3)), 1.0).matched == 0
    assert edge_counts(truth, pixels((5, 5), (3, 3)), 1.5).matched == 1
    assert edge_counts(truth, pixels((5, 5), (2, 3)), 0.9).matched == 0


def test_a_wide_line_is_compared_by_its_middle_as_berkeley_s_benchmark_does() -> None:
    """A sketch drawn with a broader pen in the same places is kept; an edge detector's second line is not."""
    pen, broad = (cv2.dilate(drawing(), np.ones((width, width))) for width in (3, 7))
    as_drawn = compare("edges", Map(pen, {}), Map(broad, {})).values
    by_middle = compare("wide_edges", Map(pen, {}), Map(broad, {})).values
    assert as_drawn["edge_f1_bsds"] < 0.7 and by_middle["edge_f1_bsds"] > 0.85
    assert as_drawn["edge_ms_ssim"] == by_middle["edge_ms_ssim"], "drawings are seen as they are"
    same = compare("wide_edges", Map(pen, {}), Map(pen, {}))
    assert {same.values[name] for name in ("edge_f1", "edge_f1_bsds", "edge_recall", "edge_chamfer")} == {
        0,
        1,
    }
    assert same.counts["pixels"].tolist() == [int(thinned(pen > 0).sum())] * 2
    other = cv2.dilate(np.roll(drawing(), 30, axis=1), np.ones((7, 7)))
    shuffled = compare("wide_edges", Map(pen, {}), Map(other, {})).values
    assert shuffled["edge_f1_1px"] < shuffled["edge_f1_2px"] < 0.5


def test_thinning_takes_no_line_away() -> None:
    for side in (1, 2, 3, 5):
        dot = np.zeros((16, 16), bool)
        dot[4 : 4 + side, 6 : 6 + side] = True
        assert thinned(dot).any() and not (thinned(dot) & ~dot).any()


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


def test_the_matching_agrees_with_networkx_s_on_dense_maps():
    import networkx as nx

    rng = np.random.default_rng(2)
    for tolerance in (1.0, 2.3, 5.4):
        truth, made = rng.random((2, 20, 24)) < 0.4
        near = near_pixels(truth, made, tolerance)
        graph = nx.Graph([(("true", i), ("made", j)) for i, j in near.tolist()])
        largest = nx.bipartite.hopcroft_karp_matching(graph, [node for node in graph if node[0] == "true"])
        assert most_pairs(near) == len(largest) // 2


def test_matching_in_strips_never_pairs_more_and_hardly_fewer(monkeypatch):
    rng = np.random.default_rng(3)
    truth, made = rng.random((2, 120, 120)) < 0.25
    near = near_pixels(truth, made, 3.0)
    exact = most_pairs(near)
    monkeypatch.setattr(matching, "EXACT", 1000)
    monkeypatch.setattr(matching, "STRIP", 500)
    assert 0.98 * exact <= most_pairs(near) <= exact


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


def test_the_papers_score_flattens_the_images_of_a_prompt_into_one_before_it_averages_prompts() -> None:
    """As torchmetrics scores them in ControlNet++'s eval_edge.py; a mean over images is another number."""
    torch = pytest.importorskip("torch")
    from torchmetrics.classification import BinaryF1Score

    rng = np.random.default_rng(0)
    truths = [rng.random((3, 1, 16, 16)) < share for share in (0.1, 0.4, 0.7)]
    made = [rng.random((4, 16, 16)) < share for share in (0.5, 0.2, 0.6)]
    made[1][2:] = False
    counts, by_hand = [], []
    for number, (truth, images) in enumerate(zip(truths, made, strict=True)):
        label = np.broadcast_to(truth[0], images.shape)
        by_hand.append(
            float(BinaryF1Score()(torch.from_numpy(images.ravel()), torch.from_numpy(label.ravel().copy())))
        )
        for image in images:
            compared = compare("edges", Map(truth[0, 0], {}), Map(image, {}))
            counts.append(dict(compared.counts) | {PROMPT: np.array([number])})
    statistic = edges.STATISTICS["edge_f1_prompt"](counts)
    assert statistic(np.ones(12)) == pytest.approx(np.mean(by_hand), abs=1e-6)
    drawn = np.repeat([2.0, 0.0, 1.0], 4)
    assert statistic(drawn) == pytest.approx((2 * by_hand[0] + by_hand[2]) / 3, abs=1e-6)
    for it in counts:
        del it[PROMPT]
    alone = fidelity.pooled("edge_f1_prompt", counts)
    assert abs(alone - np.mean(by_hand)) > 0.005


@pytest.mark.parametrize(
    ("truth", "made", "says"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), "one size"),
        (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8), "float32"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), "edge map"),
        (np.array([[0, 100, 255]], np.uint8), np.array([[0, 0, 255]], np.uint8), "grey levels"),
    ],
)
def test_maps_that_are_not_two_binary_maps_of_one_size_are_refused(truth, made, says):
    with pytest.raises(ValueError, match=says):
        edge_counts(truth, made)


def test_the_widest_tolerance_is_a_share_of_the_diagonal():
    # 300 x 400: the diagonal is 500 pixels and 0.75 % of it 3.75
    truth = pixels((300, 400), (100, 100))
    for column, found in ((103, 1.0), (104, 0.0)):
        assert (
            compare("edges", Map(truth, {}), Map(pixels((300, 400), (100, column)), {})).values[
                "edge_f1_bsds"
            ]
            == found
        )


def test_precision_and_recall_tell_too_much_from_too_little():
    truth, made = (
        pixels((300, 400), (100, 100)),
        pixels((300, 400), (100, 100), (200, 200), (200, 300), (50, 50)),
    )
    values = compare("edges", Map(truth, {}), Map(made, {})).values
    assert (values["edge_precision"], values["edge_recall"], values["edge_f1_bsds"]) == (
        0.25,
        1.0,
        pytest.approx(0.4),
    )


def test_the_chamfer_distance_is_the_mean_of_both_directions_in_diagonals():
    # 30 x 40, diagonal 50. Truth to made: 3 pixels. Made to truth: 3 and 20 pixels, on average 11.5
    truth, made = pixels((30, 40), (10, 10)), pixels((30, 40), (10, 13), (10, 30))
    assert chamfer(truth, made) == pytest.approx((3 + 11.5) / 2 / 50)
    assert chamfer(truth, truth) == 0.0
    assert chamfer(truth, np.zeros_like(truth)) == 1.0


def test_the_chamfer_distance_agrees_with_scipy_s_distances():
    rng = np.random.default_rng(0)
    truth, made = rng.random((2, 60, 80)) < 0.01
    expected = (
        (distance_transform_edt(~made)[truth].mean() + distance_transform_edt(~truth)[made].mean()) / 2 / 100
    )
    assert chamfer(truth, made) == pytest.approx(expected, rel=1e-12)
    # wherever the array lies in memory
    moved = np.zeros(truth.nbytes + 3, np.uint8)[3:].view(truth.dtype).reshape(truth.shape)
    moved[:] = truth
    assert chamfer(moved, made) == chamfer(truth, made)
