"""What the catalog chooses: the samples that a page shows, and the rows that become pairs."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmark import evidence
from pipeline.benchmark.systems import CONTROL, REAL, System
from pipeline.catalog import Catalog
from pipeline.catalog.selections import Selection
from pipeline.storage import shards
from pipeline.storage.workspace import Workspace

IMAGES = [f"{number:02d}" * 32 for number in range(5)]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog(Workspace(tmp_path))
    made.create()
    return made


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "score_key", lambda plan, system: f"scores of {system.name}")


def system(condition: str, arm: str = CONTROL) -> System:
    return System("run", condition, arm, "", "w" if arm == CONTROL else "", "b" * 16, (), "asked")


def commit(
    catalog: Catalog, kind: str, name: str, key: str, rows: list[dict[str, Any]], part: int = 0
) -> None:
    path = catalog.workspace.root / f"{kind}-{name.replace('/', '-')}-{key}-{part}.parquet"
    shards.write(
        path,
        rows,
        shards.SCHEMAS[kind],
        {"kind": kind, "key": key, "name": name, "part": part, "made_from": "x"},
    )
    catalog.commit(shards.verify(path))


def put(
    catalog: Catalog,
    it: System,
    metric: str,
    values: dict[tuple[int, int], float],
    **failed: list[tuple[int, int]],
) -> None:
    """Samples and scores of (image, seed), in two shards; those in `unmade` were asked for in vain."""
    places = sorted(values)
    for part, some in enumerate((places[:3], places[3:])):
        samples = [
            {
                "image_id": IMAGES[image],
                "hint_image_id": "",
                "status": "failed" if (image, seed) in failed.get("unmade", []) else "ok",
                "reason": "",
                "seed": seed,
                "seconds": 1.0,
                "image": b"x",
            }
            for image, seed in some
        ]
        scores = [
            {
                "image_id": IMAGES[image],
                "seed": seed,
                "status": "ok",
                "reason": "",
                "meta": "{}",
                "values": [(metric, values[image, seed]), ("another", 7.0)],
            }
            for image, seed in some
        ]
        commit(catalog, "samples", it.sample_set, it.key, samples, part)
        commit(catalog, "scores", it.name, f"scores of {it.name}", scores, part)


def told(found: list[tuple[str, evidence.Sample]]) -> list[tuple[str, str, int, int]]:
    return [(it.system.condition, which, IMAGES.index(it.image_id), it.seed) for which, it in found]


def test_best_median_and_worst_go_by_the_headline_metric_and_all_systems_share_the_first_images(
    catalog: Catalog,
) -> None:
    canny, depth = system("canny"), system("depth_large")
    put(
        catalog,
        canny,
        "edge_f1_bsds",
        {(0, 4): 0.5, (1, 4): 0.9, (2, 4): 0.7, (3, 4): 0.9, (4, 4): 0.1, (0, 9): 0.6},
    )
    # lower is better
    put(catalog, depth, "depth_rmse", {(0, 4): 0.5, (1, 4): 0.9, (2, 4): 0.7, (3, 4): 0.2, (4, 4): 0.1})
    found = evidence.extremes(None, catalog, [depth, canny], 2)  # type: ignore[arg-type]
    assert told(found) == [
        ("depth_large", "best", 4, 4),
        ("depth_large", "median", 0, 4),
        ("depth_large", "worst", 1, 4),
        ("depth_large", "same", 0, 4),
        ("depth_large", "same", 1, 4),
        ("canny", "best", 1, 4),
        ("canny", "median", 0, 9),
        ("canny", "worst", 4, 4),
        ("canny", "same", 0, 4),
        ("canny", "same", 1, 4),
    ]
    best = found[0][1]
    assert best.values == {"depth_rmse": 0.1} and best.picture == (
        "samples-run-depth_large-control-" + depth.key + "-1.parquet",
        1,
    )
    assert best.scores == (f"scores-run-depth_large-control-scores of {depth.name}-1.parquet", 1)


def test_what_failed_to_be_made_or_belongs_to_another_benchmark_is_not_shown(catalog: Catalog) -> None:
    canny = system("canny")
    put(
        catalog,
        canny,
        "edge_f1_bsds",
        {(0, 4): 0.5, (1, 4): 0.9, (2, 4): 0.7, (3, 4): 0.0},
        unmade=[(3, 4), (0, 4)],
    )
    older = System("run", "canny", CONTROL, "", "other weights", "b" * 16, (), "asked")
    commit(
        catalog,
        "samples",
        older.sample_set,
        older.key,
        [{"image_id": IMAGES[4], "status": "ok", "reason": "", "seed": 4, "image": b"x"}],
    )
    commit(
        catalog,
        "scores",
        older.name,
        "scores of older",
        [
            {
                "image_id": IMAGES[4],
                "seed": 4,
                "status": "ok",
                "reason": "",
                "meta": "{}",
                "values": [("edge_f1_bsds", 1.0)],
            }
        ],
    )
    found = evidence.extremes(None, catalog, [canny], 2)  # type: ignore[arg-type]
    assert told(found) == [
        ("canny", which, image, 4)
        for which, image in (("best", 1), ("median", 2), ("worst", 2), ("same", 1), ("same", 2))
    ]
    some = evidence.samples(None, catalog, [canny], IMAGES[1:])[canny.name]  # type: ignore[arg-type]
    assert [IMAGES.index(it.image_id) for it in some] == [1, 2]


def test_a_baseline_that_conditions_share_is_found_under_each_of_them(catalog: Catalog) -> None:
    canny, hed = system("canny", REAL), system("hed", REAL)
    put(catalog, canny, "edge_f1_bsds", {(0, 4): 0.5, (1, 4): 0.9})
    found = evidence.samples(None, catalog, [canny, hed])  # type: ignore[arg-type]
    assert [it.values for it in found[canny.name]] == [{"edge_f1_bsds": 0.5}, {"edge_f1_bsds": 0.9}]
    assert [(it.picture, it.reason, it.values) for it in found[hed.name]] == [
        (it.picture, "not scored", {}) for it in found[canny.name]
    ]


def test_conditions_that_ask_for_the_same_are_one_branch_of_the_pairs_and_a_limit_is_each_ones_own(
    catalog: Catalog,
) -> None:
    common = {"image_key": "k", "part": 0, "made_from": "x"}
    rows = [
        {
            "image_id": image_id,
            "status": "ok",
            "reason": "",
            "uri": image_id,
            "caption": "",
            "fields": "{}",
            "width": 64,
            "height": 64,
            "raw_width": 64,
            "raw_height": 64,
            "group_id": image_id,
            "split": "test",
            "sharpness": float(number),
        }
        for number, image_id in enumerate(IMAGES)
    ]
    names = ("canny", "hed", "hough", "cartoon")
    identity = {"detector": "d", "version": 1, "weights": "", "params": {}}
    detectors = [
        {"condition": name, "maps": name, "fingerprint": name, "licence": "", "identity": identity}
        for name in names
    ]
    images = shards.write(
        catalog.workspace.root / "images.parquet",
        rows,
        shards.IMAGES,
        common | {"kind": "images", "key": "k"},
    )
    catalog.commit(images)
    for detector in detectors:
        name = str(detector["condition"])
        made = [{"image_id": image_id, "status": "ok", "reason": ""} for image_id in IMAGES]
        facts = common | {"kind": "maps", "key": name, "name": name, "detector": detector}
        catalog.commit(shards.write(catalog.workspace.root / f"{name}.parquet", made, shards.MAPS, facts))
    catalog.activate({"image_key": "k"}, detectors)
    sharp = (("where", "sharpness > 0 -- as all"), ("select", "true OR false"))
    catalog.define_pairs(
        {
            "canny": Selection(sharp),
            "hed": Selection(sharp, order_by="sharpness"),
            "hough": Selection(sharp, "sharpness DESC", 2),
            "cartoon": Selection(sharp, "sharpness", 2),
        },
        [],
    )
    found = catalog.query(
        "SELECT condition, list(sharpness ORDER BY sharpness) FROM pairs GROUP BY condition ORDER BY"
        " condition"
    )
    assert dict(found) == {"canny": [1, 2, 3, 4], "hed": [1, 2, 3, 4], "hough": [3, 4], "cartoon": [1, 2]}
    ((view,),) = catalog.query("SELECT sql FROM duckdb_views() WHERE view_name = 'pair_rows'")
    assert view.count("UNION ALL") == 2, (
        "views are planned anew for each query: thirteen branches took four times as long"
    )


def test_many_questions_open_the_catalog_once_and_it_can_be_written_again_after_them(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    opened = []
    connect = duckdb.connect
    monkeypatch.setattr(
        duckdb, "connect", lambda *given, **more: opened.append(given) or connect(*given, **more)
    )
    with catalog.reading():
        assert [catalog.row("SELECT count(*) FROM samples") for _ in range(5)] == [
            catalog.row("SELECT count(*) FROM samples")
        ] * 5
        with catalog.reading():  # by something that it asks
            catalog.row("SELECT count(*) FROM samples")
        catalog.row("SELECT count(*) FROM samples")
    assert len(opened) == 1
    catalog.checkpoint()  # writes
    assert catalog.row("SELECT count(*) FROM samples") == (0,) and len(opened) == 3
