"""All kinds of maps are compared alike: every metric named, every sample counted, every set resampled."""

import re

import cv2
import numpy as np
import pytest
from safetensors.numpy import load, save

from annotate import maps
from annotate.conditions import CONDITIONS, MEASURES_OF
from evaluate.fidelity import (
    DERIVED,
    METRICS,
    NAMES,
    RETIRED,
    Map,
    compare,
    pooled,
    prepared,
    retired,
    versions,
)

SIZE = (96, 128)
SETS = [name for name, metric in METRICS.items() if metric.level == "set"]


def sample(kind: str, seed: int) -> Map:
    """A map as a detector makes it; two of different seeds have nothing in common."""
    rng = np.random.default_rng(seed)
    soft = cv2.normalize(cv2.GaussianBlur(rng.random(SIZE), (0, 0), 4), None, 0, 1, cv2.NORM_MINMAX)
    size = {"size": list(SIZE)}
    if kind.endswith("edges") and kind != "soft_edges":
        thin = cv2.Canny((soft * 255).astype(np.uint8), 40, 80)
        return Map(cv2.dilate(thin, np.ones((3, 3))) if kind == "wide_edges" else thin, {})
    if kind == "soft_edges":
        return Map((soft * 255).astype(np.uint8), {})
    if kind == "lines":
        ends = rng.uniform(0, 1, (10, 4)) * [SIZE[1], SIZE[0], SIZE[1], SIZE[0]]
        return Map(np.concatenate([ends, rng.random((10, 1))], axis=1).astype(np.float32), size)
    if kind == "people":
        # one large, one of medium size
        at = rng.uniform(0, 50, (2, 1, 2)) + rng.uniform(0, 46, (2, 17, 2)) * [[[1.0]], [[0.3]]]
        return Map(
            np.concatenate([at, np.full((2, 17, 1), rng.random())], axis=2).astype(np.float32),
            size | {"layout": "coco_17"},
        )
    if kind == "labels":
        return Map((soft * 6).astype(np.uint8) + np.uint8(seed % 3), {"label_space": "ade20k_150"})
    if kind == "depth":
        return Map((soft + 0.1).astype(np.float32), {"unit": "relative"})
    normals = np.dstack([np.gradient(soft, axis=1) * 20, np.gradient(soft, axis=0) * 20, np.ones(SIZE)])
    return Map((normals / np.linalg.norm(normals, axis=2, keepdims=True)).astype(np.float32), {})


def empty(kind: str) -> Map | None:
    """A re-reading that found nothing, as it is stored; None = the kind knows no such map."""
    one = sample(kind, 0)
    if kind in ("edges", "wide_edges", "soft_edges", "normals"):
        return Map(np.zeros_like(one.array), one.meta)
    if kind in ("lines", "people"):
        return Map(one.array[:0], one.meta)
    return Map(np.full_like(one.array, 255), one.meta) if kind == "labels" else None


def near(kind: str, seed: int) -> Map:
    """The map of `sample`, not quite."""
    one = sample(kind, seed)
    if kind in ("lines", "people"):
        moved = one.array.copy()
        moved[..., : 4 if kind == "lines" else 2] += 0.7
        return Map(moved, one.meta)
    return Map(np.roll(one.array, 1, axis=1), one.meta)


def test_every_kind_of_map_has_measures_and_one_that_stands_for_it():
    assert set(NAMES) == {row.compared_as for row in CONDITIONS.values()}
    assert set(NAMES) - {"wide_edges"} == set(MEASURES_OF) == {row.kind for row in CONDITIONS.values()}
    for kind, names in NAMES.items():
        metrics = [METRICS[name] for name in names]
        assert [metric.primary for metric in metrics].count(True) == 1
        assert {metric.kind for metric in metrics} == {kind.removeprefix("wide_")}
        assert any(metric.column == "corrected" or metric.primary for metric in metrics)
    assert {name for names in NAMES.values() for name in names} == set(METRICS)


def test_every_published_number_names_its_quirks_and_no_other_does():
    for metric in METRICS.values():
        assert bool(metric.quirks) == (metric.column == "paper"), metric.name
        # a reader has no other document beside the page, whose sections could be named
        assert not re.match(r"[A-Z]\.\d", metric.quirks), metric.quirks
        assert metric.definition and metric.title and (metric.worst < metric.best) == metric.higher_is_better


@pytest.mark.parametrize("kind", NAMES)
def test_a_comparison_has_exactly_the_values_it_declares_and_its_counts_can_be_stored(kind):
    names = {name for name in NAMES[kind] if METRICS[name].level == "sample"}
    for made in (sample(kind, 0), sample(kind, 1), near(kind, 0), empty(kind), None):
        compared = compare(kind, sample(kind, 0), made)
        assert set(compared.values) == names
        assert all(isinstance(value, float) and np.isfinite(value) for value in compared.values.values())
        stored = load(save({name: np.ascontiguousarray(array) for name, array in compared.counts.items()}))
        assert {name: (array.dtype, array.tolist()) for name, array in stored.items()} == {
            name: (array.dtype, array.tolist()) for name, array in compared.counts.items()
        }


@pytest.mark.parametrize("kind", NAMES)
def test_the_map_itself_scores_best_what_is_near_less_and_another_least(kind):
    truth = sample(kind, 0)
    same, close, other = (
        compare(kind, truth, made).values for made in (truth, near(kind, 0), sample(kind, 1))
    )
    for name, value in same.items():
        metric = METRICS[name]
        if metric.column != "paper":
            assert value == pytest.approx(metric.best, abs=1e-6), name
    name = next(name for name in NAMES[kind] if name in same and METRICS[name].column != "diagnostic")
    sign = 1 if METRICS[name].higher_is_better else -1
    assert sign * same[name] >= sign * close[name] > sign * other[name]


@pytest.mark.parametrize("kind", NAMES)
def test_what_could_not_be_read_or_holds_nothing_scores_the_worst(kind):
    for made in (None, empty(kind)):
        if made is None or kind != "depth":
            for name, value in compare(kind, sample(kind, 0), made).values.items():
                # two people, none found
                assert value == (2.0 if name == "people_pce" else METRICS[name].worst), name


@pytest.mark.parametrize("metric", SETS)
def test_a_weight_is_how_often_a_sample_is_in_the_set(metric):
    kind = METRICS[metric].kind
    rng = np.random.default_rng(0)
    made = [[near, sample][seed % 2](kind, seed + seed % 2) for seed in range(6)]
    counts = [compare(kind, sample(kind, seed), found).counts for seed, found in enumerate(made)]
    counts.append(compare(kind, sample(kind, 6), None).counts)
    statistic = prepared(metric, counts)
    assert 0 < statistic(np.ones(7)) < 1
    for _ in range(5):
        weights = rng.multinomial(7, np.full(7, 1 / 7))
        drawn = [counts[index] for index in np.repeat(np.arange(7), weights)]
        assert statistic(weights.astype(float)) == pytest.approx(pooled(metric, drawn))
        assert pooled(metric, counts, weights) == statistic(weights.astype(float))


@pytest.mark.parametrize("metric", SETS)
def test_a_set_is_perfect_only_if_no_sample_is_lost(metric):
    kind = METRICS[metric].kind
    good, lost = (compare(kind, sample(kind, 0), made).counts for made in (sample(kind, 0), None))
    published = METRICS[metric].column == "paper" and kind == "people"  # CAP of a perfect pose is below 1
    assert pooled(metric, [good]) == pytest.approx(1.0) or published
    assert pooled(metric, [good, lost]) < pooled(metric, [good])
    assert pooled(metric, [lost]) == 0.0


def test_a_raw_map_of_the_catalog_is_compared_as_it_is_decoded():
    for kind in NAMES:
        one = sample(kind, 3)
        meta = dict(one.meta) | ({"scale": 1e-4, "shift": 0.1} if kind == "depth" else {})
        raw = kind.removeprefix("wide_")  # as it is stored
        stored = maps.decode(raw, maps.encode(maps.RawMap(raw, one.array, meta)), meta)
        primary = next(name for name in NAMES[kind] if METRICS[name].primary)
        compared = compare(kind, one, Map(stored.array, stored.meta))
        found = compared.values.get(
            primary, pooled(primary, [compared.counts]) if METRICS[primary].level == "set" else None
        )
        assert found == pytest.approx(METRICS[primary].best, abs=0.01), kind


def test_every_measure_tells_a_perfect_re_reading_from_another_images_map():
    """The line art of ControlNet++ as published did not: on maps of two values a perfect one had .163,
    another's .157.
    """
    for kind, names in NAMES.items():
        one, other = sample(kind, 3), sample(kind, 4)
        found = [compare(kind, one, it) for it in (one, other)]
        for name in (name for name in names if name != "people_pce"):  # it counts people: two in both
            good, poor = (
                pooled(name, [it.counts]) if METRICS[name].level == "set" else it.values[name] for it in found
            )
            assert (good > poor) == METRICS[name].higher_is_better and abs(good - poor) > 0.05 * max(
                good, poor
            ), (name, good, poor)


def test_a_measure_that_was_taken_out_is_computed_for_no_kind():
    assert retired("edge_ms_ssim_uint8") and not any(retired(name) for name in METRICS)
    assert all(kind in NAMES and not set(names) & set(METRICS) for kind, names in RETIRED.items())


def test_an_unknown_kind_and_a_score_of_samples_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'sound': there are measures for edges"):
        compare("sound", sample("depth", 0), None)
    with pytest.raises(
        ValueError, match=r"'depth_rmse' is no score of a whole set: those are edge_f1_bsds_pooled"
    ):
        prepared("depth_rmse", [])


@pytest.mark.parametrize("kind", ["edges", "soft_edges"])
def test_a_drawing_against_its_negative_lies_below_the_worst_and_within_what_is_possible(kind: str) -> None:
    drawing = np.zeros((32, 32), np.uint8)
    drawing[::2] = 255
    values = compare(kind, Map(drawing, {}), Map(255 - drawing, {})).values
    below = [
        name
        for name, value in values.items()
        if METRICS[name].higher_is_better and value < METRICS[name].worst
    ]
    assert below == [name for name in values if name in ("edge_ssim", "soft_ssim")]
    for name, value in values.items():
        least, most = METRICS[name].possible
        assert least <= value <= most, name


def test_wide_lines_have_the_measures_of_edges_and_other_scores() -> None:
    assert NAMES["wide_edges"] == NAMES["edges"]
    old, new = versions("edges"), versions("wide_edges")
    assert not set(DERIVED) & (old.keys() | new.keys()), "of counts that others' versions tell"
    changed = {name for name in NAMES["edges"] if old.get(name) != new.get(name)}
    assert changed == set(NAMES["edges"]) - {"edge_ssim", "edge_ms_ssim", *DERIVED}
    for row in CONDITIONS.values():
        assert row.compared_as in NAMES and (row.compared_as == row.kind or row.wide)
    assert [row.name for row in CONDITIONS.values() if row.wide] == ["sketch", "cartoon"]
