"""Many shards in one commit: the same rows and groups as one by one, whatever the commits and parts."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import MillError
from pipeline.catalog import Catalog, totals
from pipeline.storage import shards
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import Workspace

KEY, NEAR = "k", 3
Rows = Sequence[dict[str, Any]]


def record(root: Path, kind: str, folder: str, part: int, rows: Rows, **facts: Any) -> Shard:
    """A shard as a worker returns it, of which no file exists."""
    schema = pa.schema([field for field in shards.SCHEMAS[kind] if field.name not in shards.PAYLOADS])
    light = shards._light(pa.Table.from_pylist(list(rows), schema=schema), kind)
    metadata = {"kind": kind, "key": KEY, "image_key": KEY, "part": part, "made_from": "x"} | facts
    return Shard(root / f"{folder}/part-{part:06d}.parquet", len(rows), 1, f"{folder}{part}", metadata, light)


def images(root: Path, part: int, rows: Rows, *, near: int | None = None, retry: bool = False) -> Shard:
    return record(root, "images", "images", part, rows, near=near, retry=retry)


def maps(root: Path, part: int, ids: Sequence[str], name: str = "canny", status: str = "ok") -> Shard:
    detector = {
        "condition": name, "fingerprint": "f", "licence": "",
        "identity": {"detector": "d", "version": 1, "weights": "", "params": {}},
    }  # fmt: skip
    rows = [{"image_id": each, "status": status, "reason": "" if status == "ok" else "why"} for each in ids]
    return record(root, "maps", name, part, rows, key="f", name=name, detector=detector)


def row(image_id: str, uri: str, *, status: str = "ok", phash: int | None = None) -> dict[str, Any]:
    return {
        "image_id": image_id, "uri": uri, "status": status, "reason": "", "caption": uri, "phash": phash,
        "group_id": image_id, "split": image_id[-1],
    }  # fmt: skip


def opened(root: Path) -> Catalog:
    root.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(Workspace(root))
    catalog.create()
    catalog.activate({"image_key": KEY}, [])
    return catalog


IMAGES = "SELECT image_id, status, group_id, split, first_of_group FROM images ORDER BY image_id"
SOURCES = "SELECT image_id, uri, caption, gone FROM sources ORDER BY uri, gone"
CAPTIONS = "SELECT image_id, caption FROM captions ORDER BY image_id"


def told(catalog: Catalog) -> list[Any]:
    return [catalog.query(sql) for sql in (IMAGES, SOURCES, CAPTIONS)]


def parted(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def source(near: bool) -> list[dict[str, Any]]:
    """Of 120 pictures; some files twice under other names, many with hashes that are near."""
    draw = random.Random(3)
    hashes = [draw.getrandbits(64) for _ in range(12)]
    rows = []
    for number in range(120):
        same = draw.random() < 0.2 and rows
        phash = draw.choice(hashes) ^ 1 << draw.randrange(64) ^ 1 << draw.randrange(64)
        image_id = draw.choice(rows)["image_id"] if same else f"{number:03d}{'ab'[number % 2]}"
        known = next((one for one in rows if one["image_id"] == image_id), None)
        rows.append(row(image_id, f"u{number}", phash=known["phash"] if known else phash if near else None))
    return rows


@pytest.mark.parametrize("near", [None, NEAR])
@pytest.mark.parametrize(("size", "together"), [(7, 100), (120, 1), (16, 3), (31, 1)])
def test_rows_and_groups_do_not_depend_on_parts_and_commits(
    tmp_path: Path, near: int | None, size: int, together: int
) -> None:
    rows = source(near is not None)
    whole = opened(tmp_path / "whole")
    whole.commit(images(whole.workspace.root, 0, rows, near=near))
    catalog = opened(tmp_path / "parts")
    root = catalog.workspace.root
    made = [images(root, part, members, near=near) for part, members in enumerate(parted(rows, size))]
    for number, start in enumerate(range(0, len(made), together)):
        if number % 2:  # another run, or one that was killed
            catalog = Catalog(catalog.workspace)
        else:
            wrong = maps(root, 0, ["nobody"])
            with pytest.raises(MillError, match="does not fit"):
                catalog.commit(*made[start : start + together], wrong)
        catalog.commit(*made[start : start + together])
    assert told(catalog) == told(whole)
    if near:
        groups = {image_id: group for image_id, _, group, *_ in catalog.query(IMAGES)}
        assert 1 < len(set(groups.values())) < len(groups)


def test_a_retry_takes_the_place_of_what_failed_alone_or_with_others(tmp_path: Path) -> None:
    first = [row("aa", "u1", status="failed"), row("bb", "u2"), row("cc", "u3", status="failed")]
    again = [[row("dd", "u1"), row("bb", "u4")], [row("cc", "u3", status="failed"), row("cc", "u5")]]
    answers = []
    for name, together in (("one", 1), ("all", 2)):
        catalog = opened(tmp_path / name)
        root = catalog.workspace.root
        catalog.commit(images(root, 0, first))
        made = [images(root, part, rows, retry=True) for part, rows in enumerate(again, start=1)]
        for start in range(0, 2, together):
            catalog.commit(*made[start : start + together])
        answers.append(told(catalog))
    assert answers[0] == answers[1]
    assert [image_id for image_id, *_ in answers[0][0]] == ["bb", "cc", "dd"]


def test_a_leader_that_is_taken_out_is_followed_again_when_it_comes_back(tmp_path: Path) -> None:
    catalog = opened(tmp_path)
    rows = [
        row("aa", "u1", phash=2**40 - 1),
        row("bb", "u2", phash=2**40 - 2),
        row("cc", "u3", phash=2**40 - 3),
    ]
    made = [images(tmp_path, part, [each], near=NEAR) for part, each in enumerate(rows)]
    catalog.commit(*made)
    whole = told(catalog)
    assert [first for *_, first in whole[0]] == [True, False, False]
    catalog.remove_shard(catalog.workspace.relative(made[0].path))
    assert [(group, first) for _, _, group, _, first in catalog.query(IMAGES)] == [
        ("aa", True),
        ("aa", False),
    ]
    catalog.commit(images(tmp_path, 3, [row("dd", "u4", phash=2**40 - 2)], near=NEAR))
    assert [first for *_, first in catalog.query(IMAGES)] == [True, False, False]
    catalog.commit(made[0])
    assert [(group, first) for _, _, group, _, first in catalog.query(IMAGES)] == [
        ("aa", True), ("aa", False), ("aa", False), ("aa", False),
    ]  # fmt: skip


def test_maps_of_many_parts_fit_their_own_images_and_are_counted(tmp_path: Path) -> None:
    catalog = opened(tmp_path)
    parts = [[row(f"{part}{number}", f"u{part}{number}") for number in range(3)] for part in range(4)]
    parts[2][1]["status"] = "failed"
    catalog.commit(*(images(tmp_path, part, rows) for part, rows in enumerate(parts)))
    ids = [[each["image_id"] for each in rows] for rows in parts]
    whole = [maps(tmp_path, part, ids[part], status="skipped" if part == 1 else "ok") for part in (0, 1, 3)]
    with pytest.raises(MillError, match="part-000002"):
        catalog.commit(*whole, maps(tmp_path, 2, ids[2]))
    assert catalog.query("FROM annotation_rows") == []
    assert catalog.commit_fitting([*whole, maps(tmp_path, 2, ids[3])]) == 3
    detector = {**whole[0].metadata["detector"], "maps": "canny"}
    catalog.activate({"image_key": KEY}, [detector])
    (counted,) = totals.maps(catalog)
    assert [counted.of_status(status) for status in ("ok", "skipped", "failed")] == [6, 3, 0]
    assert counted.rows == 9 == catalog.row("SELECT count(*) FROM annotations")[0]
    with catalog.transaction() as connection:
        connection.execute("UPDATE image_rows SET gone = 'gone' WHERE image_id IN ('00', '10')")
    (counted,) = totals.maps(catalog)
    assert [counted.of_status(status) for status in ("ok", "skipped")] == [5, 2]
    assert totals.images(catalog) == {"ok": 9, "failed": 1, "gone": 2}
    assert np.sum(list(totals.splits(catalog).values())) == 9
