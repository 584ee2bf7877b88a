"""From stored samples' scores to a benchmark's scores: what is read, what is drawn, what is not computed
twice.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluate import caveats, fidelity, measures
from evaluate.replicates import Replicated
from pipeline.benchmark import estimates
from pipeline.benchmark.estimates import Scored
from pipeline.benchmark.systems import CONTROL, NO_CONTROL, REAL, Item, System
from pipeline.storage import shards

ITEMS = tuple(Item(f"{k:02d}" * 16, f"caption {k}", 64, 64, "", k) for k in range(6))

PLAN: Any = SimpleNamespace(reader=lambda condition: SimpleNamespace(fingerprint="r"))


class Scores:
    """A catalog that holds nothing but the table of scores."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []

    def query(self, sql: str) -> Any:
        return self.marks.items()

    def record_scores(self, rows: list[dict[str, Any]], kept: list[str]) -> None:
        self.rows, self.marks = rows, self.marks | {row["system"]: row["input_hash"] for row in rows}

    def row(self, sql: str) -> tuple[int]:
        return (len(self.rows),)


def scored(root: Path, arm: str, rows: list[dict[str, Any]], name: str = "run") -> Scored:
    """Two shards of samples."""
    system = System(name, "canny", arm, "", "w" if arm == CONTROL else "", "b" * 16, ITEMS)
    paths = []
    for part, some in enumerate((rows[:4], rows[4:])):
        paths.append(f"{arm}-{part}.parquet")
        facts = {"kind": "scores", "key": "k", "name": system.name, "part": part, "made_from": "x"}
        shards.write(root / paths[-1], some, shards.SCORES, facts)
    return Scored(root, system, "k", tuple(paths), arm)


def sample(k: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    from safetensors.numpy import save

    truth = np.zeros((8, 8), np.uint8)
    truth[2] = 255
    made = np.roll(truth, k % 3, axis=0)
    compared = fidelity.compare("edges", fidelity.Map(truth, {}), fidelity.Map(made, {}))
    return {
        "image_id": ITEMS[k].image_id,
        "seed": seed,
        "status": "ok",
        "reason": "",
        "values": list(compared.values.items()),
        "counts": save(dict(compared.counts)),
        "meta": "{}",
        "map": None,
        "features": [],
    } | more


def test_values_keep_their_prompts_and_a_sample_without_one_counts_as_the_worst(tmp_path: Path) -> None:
    rows = [sample(k, seed) for k in range(3) for seed in (0, 1)]
    rows[5] |= {"status": "failed", "values": []}
    it = scored(tmp_path, CONTROL, rows)
    metric = fidelity.METRICS["edge_f1"]
    assert it.cluster.tolist() == [0, 0, 1, 1, 2, 2] and it.failed == 1
    assert it.values(metric).tolist() == [1, 1, 0, 0, 0, metric.worst]


def test_a_score_of_the_whole_set_is_drawn_with_its_prompts(tmp_path: Path) -> None:
    from evaluate.replicates import bootstrap_weights

    it = scored(tmp_path, CONTROL, [sample(k) for k in range(6)])
    drawn = bootstrap_weights(6, count=50)
    metric = fidelity.METRICS["edge_f1_pooled"]
    found = estimates._of_set(it, metric, drawn)
    assert (
        found.value == pytest.approx(fidelity.pooled("edge_f1_pooled", it.counts))
        and len(found.replicates) == 50
    )
    by_hand = fidelity.pooled(
        "edge_f1_pooled", [it.counts[k] for k in range(6) for _ in range(int(drawn[7, k]))]
    )
    assert found.replicates[7] == pytest.approx(by_hand, abs=1e-6)


def test_a_score_by_prompt_knows_which_samples_are_a_prompts(tmp_path: Path) -> None:
    """Seeds in the order of the benchmark, also behind a sample that failed."""
    rows = [sample(k, seed) for k in range(3) for seed in (0, 1)]
    it = scored(tmp_path, CONTROL, rows)
    assert it.seed.tolist() == [0, 1, 0, 1, 0, 1]
    drawn = np.array([[3, 0, 0], [0, 0, 3], [1, 1, 1]], np.float32)
    found = estimates._of_set(it, fidelity.METRICS["edge_f1_prompt"], drawn)
    each = [fidelity.pooled("edge_f1_pooled", it.counts[2 * k : 2 * k + 2]) for k in range(3)]
    assert len(set(each)) > 1 and found.value == pytest.approx(np.mean(each))
    assert found.replicates == pytest.approx([each[0], each[2], np.mean(each)], abs=1e-6)


def test_distances_leave_out_blocks_and_skip_samples_without_a_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 2)).astype(np.float32)
    rows = [sample(k, features=[("net", features[k].tobytes())]) for k in range(6)]
    real = scored(tmp_path, REAL, rows)
    moved = [sample(k, features=[("net", (features[k] + 3).tobytes())] if k != 2 else []) for k in range(6)]
    it = scored(tmp_path, CONTROL, moved)
    found = {metric.name: (metric, score) for metric, score, _ in estimates._distances(it, real, "net")}
    for _, _, said in estimates._distances(it, real, "net"):
        assert said[0].startswith("1 missing: of 6 samples 5 have an image") and caveats.unranked(said)
    whole = {metric.name: said for metric, _, said in estimates._distances(real, real, "net")}
    assert whole["kd (net)"] == [], "who made all of them has no such mark"
    metric, score = found["fd (net)"]
    assert (
        metric.dimensions == 2
        and score.method == "jackknife"
        and len(score.replicates) == 6
        and score.value > 10
    )
    assert "precision (net)" not in found, "six images have no neighbourhoods"
    from evaluate.frechet import Moments, frechet

    without = {
        k: frechet(Moments.of(np.delete(features, [2, k], 0) + 3), Moments.of(np.delete(features, k, 0)))
        for k in (1, 2)
    }
    assert score.replicates[1] == pytest.approx(without[1], rel=1e-5), (
        "a prompt is left out with its real image"
    )
    assert score.replicates[2] == pytest.approx(without[2], rel=1e-5), (
        "and of what could not be made, that alone"
    )
    for there in ([], [1, 2]):
        root = tmp_path / str(len(there))
        root.mkdir()
        few = scored(
            root, CONTROL, [row | ({"features": []} if k not in there else {}) for k, row in enumerate(moved)]
        )
        assert not list(estimates._distances(few, real, "net")), (
            "without a prompt one image is left, of which there is no distance"
        )


def test_a_distance_of_many_images_to_few_real_ones_is_marked_as_one_of_few(tmp_path: Path) -> None:
    """640 samples of 64 prompts in 64 dimensions: two equal sets, whose Fréchet distance is 22."""
    items = tuple(Item(f"{k:02d}" * 16, "", 64, 64, "", k) for k in range(64))
    rng = np.random.default_rng(0)

    def of(arm: str, seeds: int) -> Scored:
        rows = [
            {"image_id": item.image_id, "seed": seed, "status": "ok", "reason": "", "values": [],
             "counts": None, "meta": "{}", "map": None,
             "features": [("net", rng.normal(size=64).astype(np.float32).tobytes())]}
            for item in items
            for seed in range(seeds)
        ]  # fmt: skip
        it = scored(tmp_path, arm, rows)
        return replace(it, system=replace(it.system, items=items))

    found = {
        metric.name: (score, said)
        for metric, score, said in estimates._distances(of(CONTROL, 10), of(REAL, 1), "net")
    }
    fd, said = found["fd (net)"]
    assert fd.value > 15 and said == ["biased: n = 64 < 10 × 64 dimensions; ranked by kd"]
    assert caveats.unranked(said) and not caveats.unranked(found["kd (net)"][1])


def test_likeness_is_with_the_image_of_the_same_prompt(tmp_path: Path) -> None:
    from evaluate.measures import clip_image
    from evaluate.replicates import bootstrap_weights

    metric = clip_image("mini")
    unit = np.eye(6, dtype=np.float32)
    real = scored(tmp_path, REAL, [sample(k, features=[(metric.name, unit[k].tobytes())]) for k in range(6)])
    order = [5, 4, 3, 2, 1, 0]
    same = scored(
        tmp_path,
        CONTROL,
        [sample(k, features=[(metric.name, unit[k].tobytes())] if k else []) for k in order],
    )
    _, found, _ = estimates._likeness(same, real, metric, bootstrap_weights(6, count=20))
    (tmp_path / "nothing").mkdir()
    nothing = scored(tmp_path / "nothing", CONTROL, [sample(k) for k in order])
    assert estimates._likeness(nothing, real, metric, bootstrap_weights(6, count=20))[1].value == metric.worst
    assert found.value == pytest.approx(500 / 6), (
        "five are alike, and the one without a picture is like nothing"
    )


def test_a_score_whose_samples_are_shared_names_the_benchmark_that_is_asked_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples without a ControlNet outlive a change of the benchmark; what is said of them does not."""
    alone = scored(tmp_path, NO_CONTROL, [sample(k) for k in range(6)])
    told = Replicated(0.5, np.empty(0, np.float32), "bootstrap", 6)
    monkeypatch.setattr(estimates, "_scores", lambda *_: iter([(fidelity.METRICS["edge_f1_bsds"], told, [])]))

    catalog, found = Scores(), []
    for benchmark in ("first", "first", "second"):
        now = replace(alone, system=replace(alone.system, benchmark=benchmark))
        monkeypatch.setattr(estimates, "scored", lambda *_, now=now: [now])
        estimates.estimate(PLAN, catalog, [])  # type: ignore[arg-type]
        found.append([row["benchmark"] for row in catalog.rows])
    assert found == [["first"], [], ["second"]]


def test_a_stored_interval_ends_where_the_score_can_be_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = scored(tmp_path, CONTROL, [sample(k) for k in range(6)])
    spread = np.linspace(0.8, 1.1, 20, dtype=np.float32)
    told = {name: Replicated(0.95, spread, "bootstrap", 6) for name in ("edge_f1", "edge_chamfer")}
    told["kd (net)"] = Replicated(0.05, spread, "jackknife", 6)
    monkeypatch.setattr(estimates, "scored", lambda *_: [it])
    monkeypatch.setattr(
        estimates, "_scores", lambda *_: ((measures.metric(name), score, []) for name, score in told.items())
    )
    catalog = Scores()
    estimates.estimate(PLAN, catalog, [])  # type: ignore[arg-type]
    rows = {row["metric"]: row for row in catalog.rows}
    assert rows["edge_f1"]["high"] == rows["edge_chamfer"]["high"] == 1 and rows["edge_f1"]["low"] < 0.8
    assert rows["kd (net)"]["low"] < 0, "an estimate without bias of a distance of 0 may lie below it"
    again = estimates.replicated(rows["edge_f1"])
    assert again.interval == (rows["edge_f1"]["low"], 1)
