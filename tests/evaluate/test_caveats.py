"""Which scores are told to be of few, and which of them keep their rank."""

import numpy as np
import pytest

from evaluate import caveats, measures
from evaluate.fidelity import METRICS
from evaluate.oks import THRESHOLDS
from evaluate.ranking import average_precision


def told(name: str, made: int, real: int = 10**6, asked: int | None = None) -> list[str]:
    return caveats.of_distance(measures.metric(f"{name} (net)"), made=made, real=real, asked=asked or made)


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage", "cmmd"])
def test_neighbourhoods_of_few_are_marked_with_the_reason_and_have_no_rank(name: str) -> None:
    (mark,) = told(name, 999)
    assert mark.startswith("high for few: n = 999 < 1,000, where") and caveats.unranked([mark])
    assert told(name, 5000, 20) == told(name, 20) and not told(name, 1000)


def test_what_is_missing_is_told_first_and_takes_the_rank_of_every_distance() -> None:
    for name in ("fd", "kd", "recall"):
        mark, *_ = told(name, 4997, asked=5000)
        assert mark.startswith("3 missing: of 5,000 samples 4,997 have an image") and caveats.unranked([mark])


def found(n: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Images of one person each, who is found, as well as it may be, with a score that says nothing."""
    hits = (rng.beta(8, 2, n)[:, None] >= THRESHOLDS).astype(np.uint8)
    return [
        {"scores": rng.random(1).astype(np.float32), "hits": hit[None], "n_truth": np.ones(1, np.int32)}
        for hit in hits
    ]


def test_an_average_precision_of_few_people_is_high_and_marked_but_ranked() -> None:
    rng = np.random.default_rng(0)

    def mean(n: int, repeats: int) -> float:
        return float(np.mean([average_precision(found(n, rng), "hits")(np.ones(n)) for _ in range(repeats)]))

    many = mean(4000, 1)
    assert 0.03 < mean(20, 100) - many < 0.08 and abs(mean(500, 10) - many) < 0.03
    (mark,) = caveats.of_precision(METRICS["people_ap"], found(20, rng))
    assert mark.startswith("high for few: 20 people < 500") and not caveats.unranked([mark])
    assert not caveats.of_precision(METRICS["people_ap"], found(500, rng))
    assert not caveats.of_precision(METRICS["people_ar"], found(20, rng)), (
        "a share of people has no such bias"
    )


def test_every_average_precision_of_a_whole_set_counts_what_there_is_to_find() -> None:
    counts = [{"n_truth": np.ones(1), "n_truth_medium": np.zeros(1), "n_truth_large": np.ones(1)}]
    marked = {name for name, metric in METRICS.items() if caveats.of_precision(metric, counts)}
    # the paper's are means over batches of ten whatever n is
    assert marked == {
        name
        for name, metric in METRICS.items()
        if metric.definition.startswith(("COCO's keypoint AP", "Average precision"))
    }
