"""Line segments are compared as wireframe parsing compares them, both ends and each once."""

import numpy as np
import pytest

from evaluate.fidelity import Map, compare, pooled
from evaluate.lines import REACHES, distances, hits, structural_f1


def segments(*rows: tuple[float, ...], size: tuple[int, int] = (128, 128)) -> Map:
    return Map(np.array(rows, np.float32).reshape(-1, 5), {"size": list(size)})


def random_lines(rng: np.random.Generator, n: int) -> np.ndarray:
    """[n, 5], scores all different."""
    return np.concatenate(
        [rng.uniform(0, 128, (n, 4)), rng.permutation(n)[:, None] / n + rng.random() * 1e-3], axis=1
    ).astype(np.float32)


def lcnn_sap(pairs: list[tuple[np.ndarray, np.ndarray]], reach: float) -> float:
    """lcnn/metric.py in plain loops: msTPFP for each image, then ap over all."""
    scored, total = [], 0
    for made, true in pairs:
        taken = set()
        total += len(true)
        for line in sorted(made.tolist(), key=lambda line: -line[4]):
            apart = []
            for other in true.tolist():
                straight = sum((line[k] - other[k]) ** 2 for k in range(4))
                swapped = sum((line[k] - other[(k + 2) % 4]) ** 2 for k in range(4))
                apart.append(min(straight, swapped))
            nearest = int(np.argmin(apart))
            true_positive = apart[nearest] < reach and nearest not in taken
            if true_positive:
                taken.add(nearest)
            scored.append((line[4], true_positive))
    scored.sort(key=lambda row: -row[0])
    recall, precision, tp = [0.0], [0.0], 0
    for rank, (_, good) in enumerate(scored, 1):
        tp += good
        recall.append(tp / total)
        precision.append(tp / rank)
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))


def test_segments_are_the_same_in_either_order_of_their_ends():
    truth, turned = segments((10, 10, 100, 20, 1)), segments((100, 20, 10, 10, 1))
    values = compare("lines", truth, turned).values
    assert values == dict.fromkeys(values, 1.0)


def test_the_distance_is_squared_at_both_ends_in_a_square_of_128():
    # at 256 x 512 a shift of 4 pixels down and 8 right is 2 and 2 at 128 x 128: 8 at each end, 16 in all
    truth = segments((10, 10, 200, 100, 1), size=(256, 512))
    made = segments((18, 14, 200, 100, 1), size=(256, 512))
    values = compare("lines", truth, made).values
    assert (values["line_f1_5"], values["line_f1_10"], values["line_f1_15"]) == (0.0, 1.0, 1.0)
    both = segments((18, 14, 208, 104, 1), size=(256, 512))
    assert compare("lines", truth, both).values["line_f1_15"] == 0.0


def test_maps_of_two_sizes_are_compared_in_shares_of_their_own():
    truth, made = segments((10, 20, 90, 110, 1)), segments((40, 80, 360, 440, 1), size=(512, 512))
    values = compare("lines", truth, made).values
    assert values["line_f1_5"] == 1.0 and values["line_raster_f1"] == 1.0


def test_a_segment_drawn_twice_pays_once():
    truth = segments((10, 10, 100, 20, 1))
    twice = segments((10, 10, 100, 20, 0.9), (10, 11, 100, 21, 0.8))
    assert compare("lines", truth, twice).values["line_f1_10"] == pytest.approx(2 / 3)


def test_structural_f1_finds_the_most_pairs():
    # the first made is near both, the second only near the first true: greedy pairing would lose one
    assert structural_f1(np.array([[1, 2], [3, 99]], np.float32), 10) == 1.0
    assert structural_f1(np.empty((0, 0), np.float32), 10) == 1.0


def test_a_line_cut_in_two_loses_the_segment_and_keeps_its_pixels():
    values = compare(
        "lines", segments((10, 64, 110, 64, 1)), segments((10, 64, 60, 64, 1), (61, 64, 110, 64, 1))
    ).values
    assert values["line_f1_15"] == 0.0 and values["line_raster_f1"] == 1.0


@pytest.mark.parametrize("reach", REACHES)
def test_sap_is_lcnn_s(reach):
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(12):
        true = random_lines(rng, 15)
        made = np.concatenate(
            [true + np.pad(rng.normal(0, 1.2, (15, 4)), ((0, 0), (0, 1))), random_lines(rng, 5)]
        ).astype(np.float32)
        made[:, 4] = rng.random(20)
        pairs.append((made[rng.random(20) < 0.8], true))
    counts = [compare("lines", segments(*true), segments(*made)).counts for made, true in pairs]
    found = pooled(f"line_sap_{reach:g}", counts)
    assert found == pytest.approx(lcnn_sap(pairs, reach), abs=1e-6)
    assert 0.1 < found < 0.9


def test_the_nearest_true_segment_is_the_only_one_a_segment_can_find():
    # both made lie nearest to the first; lcnn gives the second of them no other, although one is near enough
    distance = np.array([[1, 4], [2, 3]], np.float32)
    assert hits(distance, np.array([0.9, 0.8], np.float32), 5).tolist() == [True, False]
    assert hits(distance, np.array([0.8, 0.9], np.float32), 5).tolist() == [False, True]


def test_segments_of_one_score_enter_together_so_that_the_order_of_samples_does_not_count():
    truth = segments((10, 10, 100, 20, 1))
    good, bad = (compare("lines", truth, segments((10 + off, 10, 100, 20, 0.5))).counts for off in (0, 50))
    # half of the lines, half right
    assert pooled("line_sap_10", [good, bad]) == pooled("line_sap_10", [bad, good]) == pytest.approx(0.25)


def test_distances_are_those_of_plain_loops():
    rng = np.random.default_rng(1)
    a, b = random_lines(rng, 4)[:, :4], random_lines(rng, 3)[:, :4]
    expected = [
        [min(((p - q) ** 2).sum(), ((p[[2, 3, 0, 1]] - q) ** 2).sum()) for q in b.astype(np.float64)]
        for p in a.astype(np.float64)
    ]
    np.testing.assert_allclose(distances(a, b), expected, rtol=1e-5)


def test_a_map_without_its_size_is_refused():
    with pytest.raises(ValueError, match="meta size"):
        compare("lines", Map(np.zeros((1, 5), np.float32), {}), None)
