"""Measures by name."""

import numpy as np
import pytest

from annotate.conditions import CONDITIONS
from evaluate import measures


def test_each_condition_names_the_primary_measure_of_its_kind() -> None:
    for row in CONDITIONS.values():
        assert measures.primary(row.kind).name == row.fidelity
        assert measures.telling(row.kind).level == "sample"


def test_a_score_of_a_network_is_named_after_it() -> None:
    assert measures.clip("mini").name == "clip_score (mini-clip)"
    assert measures.clip("/models/clip-vit-base-patch16/").name == "clip_score (clip-vit-base-patch16)"
    named = measures.metric("fd (dinov2)")
    assert named.title == "Fréchet distance (dinov2)" and "dinov2" in named.definition and not named.higher_is_better
    for name in ("fd", "fid (x)", "nonsense"):
        with pytest.raises(KeyError):
            measures.metric(name)


def test_distances_know_their_dimensions_and_a_biased_one_says_so() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(40, 4)).astype(np.float32)
    block = np.arange(40) % 20
    found = {metric.name: (metric, *distance(reference + 1, block)) for metric, distance in measures.distances("net", reference)}
    fd, value, without = found["fd (net)"]
    assert fd.dimensions == 4 and value == pytest.approx(4, rel=0.01) and without.shape == (20,)
    assert set(found) == {f"{name} (net)" for name in ("fd", "kd", "cmmd", "precision", "recall", "density", "coverage")}
    assert not measures.marks(fd, 40) and measures.marks(fd, 39) == ["biased: n = 39 < 10 × 4 dimensions; ranked by kd"]
    same = {metric.name: distance(reference, block)[0] for metric, distance in measures.distances("net", reference)}
    assert same["fd (net)"] == pytest.approx(0, abs=1e-6) and same["precision (net)"] == same["coverage (net)"] == 1
    assert "coverage (net)" not in {metric.name for metric, _ in measures.distances("net", reference[:10])}
