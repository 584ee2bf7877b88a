"""Depth is compared up to what it is known to; the published RMSE is not."""

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from evaluate.depth import aligned, depths, ordinal
from evaluate.fidelity import Map, compare

SHAPE = (60, 80)


def slope(noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Inverse depth from 0.1 to 2, and something on it."""
    rng = np.random.default_rng(seed)
    return (
        np.linspace(0.1, 2, SHAPE[0] * SHAPE[1]).reshape(SHAPE) + noise * rng.standard_normal(SHAPE)
    ).astype(np.float32)


def values(truth: np.ndarray, made: np.ndarray) -> dict[str, float]:
    return compare("depth", Map(truth, {}), Map(made, {})).values


def test_scale_and_shift_cost_nothing_and_are_least_squares():
    found = values(slope(), 37 * slope() - 5)
    assert found["depth_rmse"] < 1e-6 and found["depth_absrel"] < 1e-5
    assert found["depth_delta1"] == found["depth_ordinal"] == 1.0
    truth, made = slope().astype(np.float64), slope(0.4, 1).astype(np.float64)
    design = np.stack([made.ravel(), np.ones(made.size)], axis=1)
    solution = np.linalg.lstsq(design, truth.ravel(), rcond=None)[0]
    np.testing.assert_allclose(aligned(truth, made), (design @ solution).reshape(SHAPE), atol=1e-9)


def test_near_for_far_is_no_better_than_flat():
    upside_down, flat = values(slope(), -slope()), values(slope(), np.ones(SHAPE, np.float32))
    assert (
        upside_down["depth_rmse"]
        == pytest.approx(flat["depth_rmse"])
        == pytest.approx(1 / np.sqrt(12), rel=1e-3)
    )
    assert upside_down["depth_ordinal"] == flat["depth_ordinal"] == 0.0


def test_more_noise_scores_worse_everywhere():
    rows = [values(slope(), slope(noise, 3)) for noise in (0.02, 0.1, 0.5)]
    for name, sign in {
        "depth_rmse": 1,
        "depth_absrel": 1,
        "depth_rmse_255": 1,
        "depth_delta1": -1,
        "depth_ordinal": -1,
    }.items():
        found = [sign * row[name] for row in rows]
        assert found == sorted(found) and found[0] < found[-1], name


def test_depths_of_a_condition_reach_from_one_to_ten():
    np.testing.assert_allclose(depths(np.array([1.0, 0.0, 0.5, 7.0, -3.0])), [1, 10, 1 / 0.55, 1, 10])


def test_absrel_and_delta_by_hand():
    # Already aligned (the residual is orthogonal to made and to 1): inverse depths 0, 1/3, 2/3, 1 -> .1, .4,
    # .7, 1
    truth = np.array([[0, 1, 2, 3]], np.float32) / 3
    made = truth + np.array([[1, -3, 3, -1]], np.float32) * np.float32(0.02)
    fitted = (0.9 * aligned(truth.astype(np.float64), made.astype(np.float64)).clip(0, 1) + 0.1)[0]
    z, again = 1 / np.array([0.1, 0.4, 0.7, 1.0]), 1 / fitted
    found = values(truth, made)
    assert found["depth_absrel"] == pytest.approx(np.mean(np.abs(again - z) / z))
    assert found["depth_delta1"] == np.mean(np.maximum(z / again, again / z) < 1.25)


def test_ordinal_agreement_asks_only_for_pairs_with_an_order():
    truth = np.array([[0.0, 0.001, 1.0, 0.999]])
    assert ordinal(truth, np.array([[0.2, 0.1, 5.0, 6.0]])) == 1.0  # the near pairs may be any way round
    half = np.array([[0.0, 1.0]])
    assert ordinal(half, half[:, ::-1]) == 0.0


def test_ordinal_agreement_of_unrelated_maps_is_a_half():
    rng = np.random.default_rng(0)
    assert ordinal(rng.random((100, 100)), rng.random((100, 100))) == pytest.approx(0.5, abs=0.03)


def test_the_published_rmse_charges_a_perfect_re_reading_for_its_own_minimum():
    # facts of the review: min / max depth 0.1 -> 14.7 for evenly spread values
    perfect = np.linspace(0.1, 1.0, 100_000, dtype=np.float32).reshape(100, 1000)
    found = values(perfect, perfect)
    assert found["depth_rmse"] < 1e-6
    # by hand: label 255 u, prediction 255 (0.1 + 0.9 u): the difference 25.5 (1 - u), its root mean square
    # 25.5 / sqrt 3
    assert found["depth_rmse_255"] == pytest.approx(25.5 / np.sqrt(3), abs=0.1)


def test_the_published_rmse_is_the_published_code_s():
    truth, made = slope(0.3, 4), np.abs(slope(0.3, 5)) * 90
    label = (truth - truth.min()) / (truth.max() - truth.min()) * 255
    saved = np.array(to_pil_image(torch.from_numpy(made / made.max())))
    expected = torch.sqrt(
        torch.nn.functional.mse_loss(
            torch.from_numpy(saved).float(), torch.from_numpy(label.astype("uint8")).float()
        )
    )
    assert values(truth, made)["depth_rmse_255"] == pytest.approx(float(expected), abs=0.05)


def test_maps_that_hold_nothing_are_finite():
    flat = np.ones(SHAPE, np.float32)
    assert np.isfinite(list(values(slope(), flat).values())).all()
    assert values(flat, flat)["depth_rmse"] == 0.0 and values(flat, slope())["depth_rmse"] == 0.5
    with pytest.raises(ValueError, match="finite"):
        values(slope(), np.full(SHAPE, np.nan, np.float32))
