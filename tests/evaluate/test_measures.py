"""Measures by name."""

import numpy as np
import pytest

from annotate.conditions import CONDITIONS
from evaluate import caveats, fidelity, measures
from evaluate.comparison import Metric


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


def said(metric: Metric, made: int, real: int) -> list[str]:
    return caveats.of_distance(metric, made=made, real=real, asked=made)


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
    assert not said(fd, 40, 40) and said(fd, 400, 39) == said(fd, 39, 400) == [
        "biased: n = 39 < 10 × 4 dimensions; ranked by kd"
    ]
    line, _, replicated = found["fd_infinity (net)"]
    assert line.column == "diagnostic" and replicated.shape == (20,)
    assert not said(line, 40, 40) and said(line, 400, 39) == said(line, 39, 400) == [
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


def test_a_published_distance_is_the_mean_of_those_of_its_seeds_and_no_other_networks() -> None:
    from evaluate.frechet import Moments, frechet

    rng = np.random.default_rng(0)
    reference = rng.normal(size=(24, 2)).astype(np.float32)
    generated = (rng.normal(size=(72, 2)) + np.tile([[0.0], [1.0], [2.0]], (24, 1))).astype(np.float32)
    prompt, seed, block = np.repeat(np.arange(24), 3), np.tile(np.arange(3), 24), np.arange(24) % 20
    found = {
        metric.name: (metric, distance)
        for metric, distance in measures.distances("inception", reference, np.arange(24), 24, seed)
    }
    metric, distance = found["fd_groups (inception)"]
    value, without = distance(generated, prompt, block)
    by_hand = [frechet(Moments.of(generated[seed == k]), Moments.of(reference)) for k in range(3)]
    assert metric.column == "paper" and value == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert abs(value - found["fd (inception)"][1](generated, prompt, block)[0]) > 0.1
    kept = np.repeat(block != 3, 3)
    others = Moments.of(reference[block != 3])
    left = [frechet(Moments.of(generated[kept & (seed == k)]), others) for k in range(3)]
    assert without.shape == (20,) and without[3] == pytest.approx(np.mean(left), rel=1e-5)
    assert not said(metric, 72, 24), "24 images a seed are more than 10 x 2, and so are the real ones"
    for made, real in ((57, 24), (72, 19)):
        assert said(metric, made, real) == ["biased: n = 19 < 10 × 2 dimensions; ranked by kd"]
    for name, seeds in (("inception", np.zeros(72, int)), ("inception", None), ("mini", seed)):
        names = {it.name for it, _ in measures.distances(name, reference, np.arange(24), 24, seeds)}
        assert not any(name.startswith("fd_groups") for name in names)
