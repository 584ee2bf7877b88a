"""From the catalog's scores to places."""

import numpy as np

from annotate.conditions import CONDITIONS
from evaluate import measures
from evaluate.replicates import bootstrap_weights, difference, of_means
from pipeline.benchmark.systems import CONTROL
from pipeline.report.placing import CatalogScore, _ranks

N = 100
DRAWN, ALONE = bootstrap_weights(N), np.arange(N)
SHAKEN = np.random.default_rng(0).normal(size=N)
SHAKEN -= SHAKEN.mean()


def pair(condition: str, metric: str, apart: float, caveats: tuple[str, ...] = ()) -> list[CatalogScore]:
    """Two models; the first is higher by so many standard errors."""
    values = {"a": SHAKEN + apart * SHAKEN.std(ddof=1) / np.sqrt(N), "b": np.zeros(N)}
    return [
        CatalogScore(
            system=f"{model}/{condition}", model=model, variant=CONTROL, condition=condition, metric=metric,
            metric_version="1", value=0.0, low=None, high=None, n=N, n_failed=0, prompts=N,
            method="bootstrap", higher_is_better=True, benchmark="", reader="", checkpoint=None, score_key="",
            caveats=caveats,
            score=of_means(each, ALONE, DRAWN),
        )
        for model, each in values.items()
    ]  # fmt: skip


def test_places_by_the_main_measures_are_corrected_over_all_conditions_and_by_another_over_its_own() -> None:
    main = {name: measures.primary(row.kind).name for name, row in CONDITIONS.items()}
    groups = [pair(name, metric, 2.5) for name, metric in main.items()]
    apart = difference(*(it.score for it in groups[0]))
    assert apart.p is not None and 0.05 / 13 < apart.p < 0.05
    assert {place for _, place in _ranks(groups)} == {(1, 2)}, "thirteen differences of one in 70 are chance"
    assert [place for _, place in _ranks(groups[:1])] == [(1, 1), (2, 2)]
    clip = pair("canny", measures.clip("mini").name, 2.5)
    assert dict(_ranks([*groups, clip]))["a/canny", measures.clip("mini").name] == (1, 1)
    assert len(dict(_ranks([*groups, clip]))) == 28


def test_a_mark_takes_the_rank_only_if_it_says_so() -> None:
    name = "fd (mini)"
    assert not dict(_ranks([pair("canny", name, 9, ("biased: n = 6 < 10 × 2 dimensions; ranked by kd",))]))
    assert not dict(_ranks([pair("canny", name, 9, ("3 missing: of 20; not ranked",))]))
    assert dict(_ranks([pair("canny", name, 9, ("high: of few",))])) == {
        ("a/canny", name): (1, 1),
        ("b/canny", name): (2, 2),
    }
