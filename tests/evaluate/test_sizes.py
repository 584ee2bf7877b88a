"""At which sizes two measures are one, and how many scales there are."""

import numpy as np
import pytest

from evaluate import structure
from evaluate.fidelity import NAMES, Map, compare
from evaluate.sizes import remarks, repeats, scales

EDGES = NAMES["edges"]


@pytest.mark.parametrize(
    ("side", "same"),
    [
        *((64, "edge_f1"), (93, "edge_f1"), (96, "edge_f1_1px"), (128, "edge_f1_1px")),
        *((140, None), (192, "edge_f1_2px"), (256, None), (512, None)),
    ],
)
def test_a_tolerance_by_the_diagonal_is_another_one_exactly_where_both_reach_the_same_pixels(
    side: int, same: str | None
) -> None:
    found = repeats(EDGES, [(side, side)])
    assert found.get("edge_f1_pooled") == ("edge_f1_bsds_pooled" if same == "edge_f1" else None)
    assert [name for name in found if not name.endswith("pooled")] == [same] * (same is not None)
    rng = np.random.default_rng(side)
    truth, made = ((rng.random((side, side)) < 0.02).astype(np.uint8) * 255 for _ in "ab")
    values = compare("edges", Map(truth, {}), Map(made, {})).values
    alike = [
        name for name in ("edge_f1", "edge_f1_1px", "edge_f1_2px") if values[name] == values["edge_f1_bsds"]
    ]
    assert alike == [same] * (same is not None)


def test_measures_are_one_only_where_they_are_in_pictures_of_all_sizes_and_both_are_known() -> None:
    assert repeats(EDGES, [(128, 128), (96, 160)]) == {"edge_f1_1px": "edge_f1_bsds"}
    assert repeats(EDGES, [(128, 128), (512, 512)]) == repeats(EDGES, []) == {}
    assert repeats(["edge_f1_1px", "edge_f1"], [(128, 128)]) == {}


def test_the_scales_of_ms_ssim_are_told_where_they_are_not_all() -> None:
    assert [structure.scales(side, 999) for side in (8, 22, 44, 88, 175, 176)] == [1, 2, 3, 4, 4, 5]
    assert scales(NAMES["soft_edges"], [(128, 128)]) == (4, 4)
    assert scales(EDGES, [(64, 512), (512, 512)]) == (3, 5)
    assert list(remarks(NAMES["soft_edges"], [(64, 64), (128, 128)])) == [
        "Scales of MS-SSIM here: 3 to 4, not 5; more do not fit into pictures of this size."
    ]
    assert scales(EDGES, [(512, 768)]) is None and scales(["miou"], [(64, 64)]) is None
