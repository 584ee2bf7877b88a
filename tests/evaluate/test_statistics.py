"""Intervals that hold what they promise, and pairs that are compared as pairs."""

import time

import numpy as np
import pytest

from evaluate.statistics import bootstrap, paired_difference


@pytest.mark.parametrize("n", [8, 40])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(n):
    rng = np.random.default_rng(0)
    trials = 400
    covered = 0
    for _ in range(trials):
        estimate = bootstrap(rng.normal(3.0, 1.0, n), draws=500)
        covered += estimate.low <= 3.0 <= estimate.high
    assert 0.92 <= covered / trials <= 0.98


def test_clusters_are_covered_too_where_single_samples_would_promise_too_much():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(25), 4)
    with_clusters = without = 0
    for _ in range(300):
        values = np.repeat(rng.normal(0, 1, 25), 4) + rng.normal(0, 0.1, 100)
        low, high = bootstrap(values, clusters, draws=500)[1:]
        with_clusters += low <= 0 <= high
        low, high = bootstrap(values, draws=500)[1:]
        without += low <= 0 <= high
    assert with_clusters / 300 > 0.91
    assert without / 300 < 0.75


def test_copies_of_a_sample_do_not_narrow_the_interval():
    values = np.random.default_rng(0).random(30)
    once = bootstrap(values, range(30))
    copied = bootstrap(np.repeat(values, 4), np.repeat(np.arange(30), 4))
    assert copied == pytest.approx(once)
    blind = bootstrap(np.repeat(values, 4))
    assert blind.high - blind.low < 0.6 * (copied.high - copied.low)


def test_the_mean_is_over_samples_even_when_clusters_differ_in_size():
    assert bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"]).mean == 0.75


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap(values) == pytest.approx(bootstrap(values, seed=1), abs=0.02)


def test_one_sample_or_one_cluster_has_a_mean_and_no_interval():
    assert bootstrap([0.5]) == (0.5, None, None)
    assert bootstrap([0.2, 0.4], ["a", "a"]) == (pytest.approx(0.3), None, None)
    assert paired_difference([0.5], [0.25]) == (0.25, None, None, None)


def test_equal_scores_have_an_interval_of_no_width():
    assert bootstrap([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_pairing_finds_a_small_difference_that_intervals_side_by_side_hide():
    rng = np.random.default_rng(0)
    images = rng.normal(0.5, 0.2, 60)
    a, b = images + 0.02 + rng.normal(0, 0.01, 60), images
    assert bootstrap(a).low < bootstrap(b).mean
    difference = paired_difference(a, b)
    assert difference.low > 0 and difference.p < 0.01
    backwards = paired_difference(b, a)
    assert (backwards.mean, backwards.p) == (pytest.approx(-difference.mean), difference.p)


def test_no_difference_is_found_where_there_is_none_as_rarely_as_p_promises():
    rng = np.random.default_rng(0)
    found = sum(paired_difference(*rng.normal(0, 1, (2, 25)), draws=400).p <= 0.05 for _ in range(400))
    assert 0.02 <= found / 400 <= 0.08
    assert paired_difference([0.3, 0.4], [0.3, 0.4]).p == 1.0


def test_few_pairs_are_tested_by_every_pattern_of_signs():
    # five pairs, all in one direction: 2 of the 32 patterns are as extreme
    assert paired_difference([1, 2, 3, 4, 5], [0] * 5).p == 2 / 32
    assert paired_difference([1, 1, 1, 1], [0] * 4, clusters=["x", "x", "y", "y"]).p == 2 / 4


@pytest.mark.parametrize(("values", "clusters", "says"), [
    ([], None, "at least one"),
    ([1.0, float("nan")], None, "1 of 2 scores are not finite"),
    ([1.0, 2.0], ["a"], "one id per score"),
])
def test_scores_that_cannot_be_averaged_are_refused(values, clusters, says):
    with pytest.raises(ValueError, match=says):
        bootstrap(values, clusters)


def test_samples_that_are_not_pairs_are_refused():
    with pytest.raises(ValueError, match="same samples, found 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_five_thousand_samples_take_well_under_a_second_or_two():
    values = np.random.default_rng(0).random(5000)
    start = time.perf_counter()
    paired_difference(values, values[::-1], np.repeat(np.arange(1250), 4))
    bootstrap(values)
    assert time.perf_counter() - start < 5      # measured 0.2 s
