"""A catalog of hundreds of thousands of images, made up by bulk inserts: the same pairs at every query, and
every query ends.
"""

from pathlib import Path

import pytest

from pipeline import manifest as manifests
from pipeline import plan, run
from pipeline.catalog import Catalog, connections
from pipeline.experiment.base import base_fingerprint, base_spec, latent_key
from pipeline.experiment.pairs import planned_runs
from pipeline.plan import Plan

CONDITIONS = ("canny", "hough", "cartoon")
PART = 256  # images in a shard
MANIFEST = """
name: big
workspace: {root}/ws
source: {{kind: folder, path: {root}}}
split: {{validation: 0.01, test: 0.01}}
where: first_of_group AND least(raw_width, raw_height) >= 512
conditions: {conditions}
train: {{base: mini, runs: [{{conditions: [canny], images: 64}}]}}
"""


def made_up(root: Path, images: int) -> tuple[Plan, Catalog]:
    """A workspace with so many images and three times as many maps, of which the catalog alone is there."""
    out = asked(root, dict.fromkeys(CONDITIONS, ""))
    key, parts = out.image_key, -(-images // PART)
    out.workspace.create()
    made = Catalog(out.workspace)
    made.create()
    run.activate(out, made)
    with made.transaction() as connection:
        shards = (
            "BY NAME SELECT $n + i AS shard_number, '{}' AS kind, $key AS key, $name AS name,"
            " $image_key AS image_key, i AS part, '{}/' || i AS shard, 256 AS rows FROM range($parts) t(i)"
        )
        rows = f"SELECT i + 1, $n + i // {PART}, i % {PART}, 'ok', '' FROM range($images) t(i)"
        given = {"n": 0, "key": key, "name": None, "image_key": None, "parts": parts}
        connection.execute(f"INSERT INTO shard_rows {shards.format('images', 'images')}", given)
        connection.execute(
            f"""INSERT INTO image_rows BY NAME
                SELECT image, image::VARCHAR AS image_id, shard_number, row, 'ok' AS status,
                       512 AS width, 512 AS height, 1024 AS raw_width, 768 AS raw_height,
                       image::VARCHAR AS group_id,
                       CASE WHEN image % 100 = 0 THEN 'validation' ELSE 'train' END AS split,
                       image % 1000 AS sharpness
                FROM ({rows}) t(image, shard_number, row, status, reason)""",
            {"n": 0, "images": images},
        )
        connection.execute(
            """INSERT INTO source_rows BY NAME
               SELECT image, shard_number, row, image_id AS uri, '' AS caption, '{}' AS fields
               FROM image_rows"""
        )
        for number, it in enumerate(out.conditions.values(), start=1):
            given |= {"n": number * parts, "key": it.fingerprint, "name": it.maps, "image_key": key}
            connection.execute(f"INSERT INTO shard_rows {shards.format('maps', it.maps)}", given)
            connection.execute(
                f"""INSERT INTO annotation_rows BY NAME
                    SELECT * FROM ({rows}) t(image, shard_number, row, status, reason)""",
                {"n": number * parts, "images": images},
            )
        given |= {"n": 4 * parts, "key": latent_key(out, base_fingerprint(base_spec(out))), "name": None}
        connection.execute(f"INSERT INTO shard_rows {shards.format('latents', 'latents')}", given)
    made.checkpoint()
    return out, made


def asked(root: Path, selects: dict[str, str]) -> Plan:
    path = root / "manifest.yaml"
    chosen = ", ".join(f"{name}: {{select: {{{select}}}}}" for name, select in selects.items())
    path.write_text(MANIFEST.format(root=root, conditions=f"{{{chosen}}}"))
    return plan.make(manifests.load(path))


@pytest.fixture(scope="module", params=[150_000, 600_000])
def big(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path, Catalog]:
    root = tmp_path_factory.mktemp("big")
    return request.param, root, made_up(root, request.param)[1]


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that waits for ever fails its test."""
    monkeypatch.setattr(connections, "QUERY_LIMIT", 300.0)


def chosen(made: Catalog, condition: str) -> tuple[int, int]:
    """How many pairs, and a hash of which."""
    count, images = made.row(
        "SELECT count(*), bit_xor(hash(image)) FROM pairs WHERE condition = ?", [condition]
    )
    return int(count), int(images)


@pytest.mark.slow
def test_a_limit_chooses_the_same_pairs_at_every_query_and_of_equal_rows_the_first_of_the_source(
    big: tuple[int, Path, Catalog],
) -> None:
    images, root, made = big
    run.activate(
        asked(
            root,
            {"canny": "limit: 50_000", "hough": "limit: 50_000, order_by: sharpness DESC", "cartoon": ""},
        ),
        made,
    )
    for condition in ("canny", "hough"):
        found = {chosen(made, condition) for _ in range(3)}
        assert len(found) == 1 and next(iter(found))[0] == 50_000, condition
    assert made.row("SELECT min(image), max(image) FROM pairs WHERE condition = 'canny'") == (1, 50_000)
    # of the sharpest, whole thousands of images and then some that are equally sharp
    last = 999 - (50_000 * 1000 // images)
    assert made.row("SELECT min(sharpness) FROM pairs WHERE condition = 'hough'") in [(last,), (last + 1,)]
    assert dict(made.query("SELECT condition, count(*) FROM pairs GROUP BY ALL")) == {
        "canny": 50_000,
        "hough": 50_000,
        "cartoon": images,
    }


def test_a_branch_with_a_limit_beside_one_without_ends(big: tuple[int, Path, Catalog]) -> None:
    images, _, made = big
    limited = "(SELECT * FROM candidates WHERE condition = 'hough' AND grey IS NULL LIMIT 100000)"
    sql = (
        "SELECT count(*) FROM ((SELECT * FROM candidates WHERE condition = 'canny' AND grey IS NULL) UNION"
        f" ALL {limited})"
    )
    assert made.row(sql) == (images + 100_000,)


@pytest.mark.parametrize("big", [150_000], indirect=True)
def test_a_run_with_a_limit_keeps_its_name(big: tuple[int, Path, Catalog]) -> None:
    _, root, made = big
    some = asked(root, {"canny": "limit: 50_000", "hough": "", "cartoon": ""})
    run.activate(some, made)
    assert len({it.name for _ in range(4) for it in planned_runs(some, made)}) == 1
