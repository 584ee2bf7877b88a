"""Measures by name."""

import numpy as np
import pytest

from annotate.conditions import CONDITIONS
from evaluate import fidelity, measures


def test_each_condition_names_the_primary_measure_of_its_kind() -> None:
    for row in CONDITIONS.values():
        assert measures.primary(row.kind).name == row.fidelity
        assert measures.headline(row.kind).level == "sample"


def test_a_score_of_a_network_is_named_after_it() -> None:
    assert measures.clip("mini").name == "clip_score (mini-clip)"
    assert measures.clip("/models/clip-vit-base-patch16/").name == "clip_score (clip-vit-base-patch16)"
    named = measures.metric("fd (dinov2)")
    assert (
        named.title == "Fréchet distance (dinov2)"
        and "dinov2" in named.definition
        and not named.higher_is_better
    )
    for name in ("fd", "fid (x)", "nonsense"):
        with pytest.raises(KeyError):
            measures.metric(name)


def test_measures_stand_in_the_order_of_their_definitions() -> None:
    for names in fidelity.NAMES.values():
        assert sorted(set(names), key=measures.place) == list(names)
    seen = ["kd (mini)", "coverage (mini)", "fd (dinov2)", "clip_score (mini-clip)", "fd (mini)", "edge_f1"]
    assert sorted(seen, key=measures.place) == [
        "edge_f1", "clip_score (mini-clip)", "fd (dinov2)", "fd (mini)", "kd (mini)", "coverage (mini)",
    ]  # fmt: skip
    with pytest.raises(KeyError):
        measures.place("nonsense")


def test_distances_know_their_dimensions_and_a_biased_one_says_so() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(40, 4)).astype(np.float32)
    prompt, block = np.arange(40), np.arange(40) % 20
    found = {
        metric.name: (metric, *distance(reference + 1, prompt, block))
        for metric, distance in measures.distances("net", reference, prompt, 40)
    }
    fd, value, without = found["fd (net)"]
    assert fd.dimensions == 4 and value == pytest.approx(4, rel=0.01) and without.shape == (20,)
    assert set(found) == {
        f"{name} (net)"
        for name in ("fd", "fd_infinity", "kd", "cmmd", "precision", "recall", "density", "coverage")
    }
    assert not measures.caveats(fd, 40) and measures.caveats(fd, 39) == [
        "biased: n = 39 < 10 × 4 dimensions; ranked by kd"
    ]
    line, _, replicated = found["fd_infinity (net)"]
    assert line.column == "diagnostic" and replicated.shape == (20,)
    assert not measures.caveats(line, 40) and measures.caveats(line, 39) == [
        "extrapolated from few: n = 39 < 10 × 4 dimensions; ranked by kd"
    ]
    few = {metric.name for metric, _ in measures.distances("net", np.tile(reference, 3), prompt, 40)}
    assert "fd (net)" in few and "fd_infinity (net)" not in few, (
        "below five images for each dimension there is no line"
    )
    same = {
        metric.name: distance(reference, prompt, block)[0]
        for metric, distance in measures.distances("net", reference, prompt, 40)
    }
    assert (
        same["fd (net)"] == pytest.approx(0, abs=1e-6)
        and same["precision (net)"] == same["coverage (net)"] == 1
    )
    assert "coverage (net)" not in {
        metric.name for metric, _ in measures.distances("net", reference[:10], prompt[:10], 10)
    }
