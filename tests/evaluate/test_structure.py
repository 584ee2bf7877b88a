"""SSIM and MS-SSIM are torchmetrics' own."""

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from evaluate.fidelity import Map, compare
from evaluate.structure import ms_ssim, ssim


def soft(seed: int, shape: tuple[int, int] = (192, 240)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.normalize(
        cv2.GaussianBlur(rng.random(shape), (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX
    ).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).double()[None, None] / 255


PAIRS = [
    (soft(0), soft(0)),
    (soft(0), np.roll(soft(0), 1, 1)),
    (soft(0), soft(1)),  # as likely against each other as with: the terms that must be cut at zero
    (soft(0), 255 - soft(0)),
    (soft(2, (177, 301)), np.zeros((177, 301), np.uint8)),
]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_both_are_equal_to_torchmetrics(a, b):
    torch.set_num_threads(1)
    x, y = tensor(a), tensor(b)
    assert ssim(a, b) == pytest.approx(
        float(structural_similarity_index_measure(x, y, data_range=1.0)), abs=2e-5
    )
    theirs = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, normalize="relu")
    assert ms_ssim(a, b) == pytest.approx(float(theirs), abs=2e-5)


def test_a_map_too_small_for_five_scales_uses_those_that_fit():
    torch.set_num_threads(1)
    # 64, 32 and 16 pixels hold a window of 11; 8 don't
    a, b = soft(3, (64, 64)), np.roll(soft(3, (64, 64)), 1, 1)
    betas = np.array([0.0448, 0.2856, 0.3001])
    theirs = multiscale_structural_similarity_index_measure(
        tensor(a), tensor(b), data_range=1.0, normalize="relu", betas=tuple((betas / betas.sum()).tolist())
    )
    assert ms_ssim(a, b) == pytest.approx(float(theirs), abs=2e-5)
    assert ms_ssim(soft(4, (8, 8)), soft(4, (8, 8))) == pytest.approx(1.0)


def test_soft_edges_are_called_what_they_are():
    a = soft(0)
    same, moved, other = (
        compare("soft_edges", Map(a, {}), Map(b, {})).values for b in (a, np.roll(a, 2, 1), soft(1))
    )
    assert same == {name: pytest.approx(1.0) for name in ("soft_ms_ssim", "soft_ssim", "soft_f1")}
    assert (
        moved["soft_ms_ssim"] == pytest.approx(ms_ssim(a, np.roll(a, 2, 1)))
        and moved["soft_ms_ssim"] > moved["soft_ssim"]
    )
    assert all(other[name] < moved[name] for name in other)


def test_soft_edges_count_from_half_strength_on_and_are_thinned_before_they_are_matched():
    truth, thick, weak = (np.zeros((200, 200), np.uint8) for _ in range(3))
    truth[100, 20:180] = 255
    thick[98:103, 20:180] = 128
    weak[100, 20:180] = 127
    assert compare("soft_edges", Map(truth, {}), Map(thick, {})).values["soft_f1"] > 0.97
    assert compare("soft_edges", Map(truth, {}), Map(weak, {})).values["soft_f1"] == 0.0


def test_soft_edges_of_another_type_are_refused():
    with pytest.raises(ValueError, match="float64"):
        compare("soft_edges", Map(np.zeros((20, 20)), {}), None)
