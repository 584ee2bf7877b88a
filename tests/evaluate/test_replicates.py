"""Replicates on the same draws: intervals that cover, pairs that are told apart, ranks that admit ties, the ruler."""

import numpy as np
import pytest

from evaluate.replicates import Replicated, blocks, difference, draws, of_means, ranks, share

N = 200
DRAWN = draws(N, count=400)
ALONE = np.arange(N)


def score(values: np.ndarray) -> Replicated:
    return of_means(values, ALONE, DRAWN)


def test_the_interval_covers_the_mean_in_about_95_of_100_repeats() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = score(rng.exponential(1.0, N)).interval or (0, 0)
        hits += low <= 1.0 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_samples_of_one_prompt_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    of_prompt = rng.normal(size=N)
    four = of_means(np.repeat(of_prompt, 4), np.repeat(ALONE, 4), DRAWN)
    assert four.error == pytest.approx(score(of_prompt).error, rel=1e-5), "four copies tell no more than one"
    apart = draws(4 * N, count=400)
    naive = of_means(np.repeat(of_prompt, 4), np.arange(4 * N), apart)
    assert naive.error is not None and four.error is not None and naive.error < 0.6 * four.error


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(2)
    easy = rng.normal(0, 1, N)
    found = difference(score(easy + 0.05 + rng.normal(0, 0.1, N)), score(easy))
    assert found.p is not None and found.low is not None and found.p < 1e-4 and found.low > 0
    assert (score(easy).interval or (0, 0))[1] > 0.05, "unpaired intervals could not tell"
    with pytest.raises(ValueError, match="one benchmark"):
        difference(score(easy), of_means(easy[:9], np.arange(9), draws(9)))


def test_two_equal_systems_are_tied_in_nine_of_ten_repeats_and_planted_ones_are_ranked_right() -> None:
    rng = np.random.default_rng(3)
    tied = 0
    for _ in range(50):
        prompts = rng.normal(0, 1, N)
        made = [score(prompts + gain + rng.normal(0, 0.5, N)) for gain in (0.6, 0.0, 0.0, 0.3)]
        best, equal, other, second = ranks(made, higher_is_better=True)
        tied += equal == other
        assert best == (1, 1) and second == (2, 2)
    assert tied >= 45
    errors = ranks([score(rng.normal(size=N) * 0.1 + level) for level in (3.0, 1.0)], higher_is_better=False)
    assert errors == [(2, 2), (1, 1)]


def test_one_or_two_prompts_tell_nothing_and_are_not_ranked() -> None:
    alone = of_means(np.array([0.5]), np.array([0]), draws(1))
    assert alone.interval is None and difference(alone, alone).p is None and ranks([alone, alone], higher_is_better=True) == [(1, 2), (1, 2)]
    with pytest.raises(ValueError, match="not finite"):
        score(np.full(N, np.nan))


def test_a_jackknife_of_means_gives_their_standard_error() -> None:
    values = np.random.default_rng(4).normal(size=N)
    without = np.array([values[blocks(N) != block].mean() for block in range(20)], np.float32)
    found = Replicated(float(values.mean()), without, "jackknife", N)
    assert found.error == pytest.approx(values.std() / np.sqrt(N), rel=0.35)


def test_the_ruler_runs_from_floor_to_ceiling_and_has_no_length_where_they_meet() -> None:
    rng = np.random.default_rng(5)
    prompts = rng.normal(0, 0.3, N)
    floor, middle, ceiling = (score(prompts + level + rng.normal(0, 0.02, N)) for level in (0.1, 0.4, 0.7))
    found = share(middle, floor, ceiling)
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(0.5, abs=0.02) and 0.45 < found.low < 0.5 < found.high < 0.55
    assert share(middle, floor, floor) is None
