"""Parquet: every row is read as it was written, and whatever is wrong has a row."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import MillError, sources
from pipeline.manifest import Image, ParquetSource, Provided
from pipeline.sources import RawImage, tables
from pipeline.sources.raw import Unreadable
from pipeline.sources.tables import read_cell
from tests.contents import contents

SIZE = Image(resolution=64)


def listed(path: Path | str, **settings: Any) -> list[RawImage]:
    return sources.listing([ParquetSource(kind="parquet", path=str(path), **settings)], SIZE)


def write(path: Path, columns: dict[str, Any], rows_a_group: int = 2, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group, **options)
    return path


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([b"0", b"1", b"2"]),
        pa.array([b"0", b"1", b"2"], pa.large_binary()),
        pa.array(
            [
                {"bytes": b"0", "path": "a.jpg"},
                {"bytes": b"1", "path": None},
                {"bytes": None, "path": "2.jpg"},
            ]
        ),
        pa.array(["0.jpg", "sub/1.jpg", "2.jpg"]),
    ],
    ids=["binary", "large binary", "struct", "path"],
)
def test_an_image_cell_is_bytes_a_struct_or_a_path_beside_the_file(tmp_path: Path, cells: pa.Array) -> None:
    for name, data in (("0.jpg", "0"), ("sub/1.jpg", "1"), ("2.jpg", "2")):
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / name).write_text(data)
    path = write(tmp_path / "parts" / "a.parquet", {"image": cells, "text": ["zero", "one", None]})
    found = listed(path)
    assert [raw.uri for raw in found] == [f"{path}::{row}" for row in range(3)]
    assert [contents(raw) for raw in found] == [(b"0", "zero"), (b"1", "one"), (b"2", "")]
    assert listed(path) == found == listed(tmp_path / "parts") == listed(f"{tmp_path}/*/*.parquet")
    assert contents(RawImage(**json.loads(json.dumps(found[1].__dict__)))) == (b"1", "one")


def test_further_columns_are_kept_but_bytes_and_what_is_too_large_for_a_catalog(tmp_path: Path) -> None:
    columns = {
        "image": [b"0", b"1"],
        "text": [["first", "second"], []],
        "year": [1999, None],
        "score": [0.5, float("nan")],
        "when": [datetime.datetime(2020, 1, 2), None],
        "tags": [["a"], ["b", "c"]],
        "thumb": [b"x", b"y"],
        "name": ["\N{GRINNING FACE}", ""],
        "embedding": [np.arange(1000.0)] * 2,
        "boxes": [[{"x": 1, "raw": b"z"}], []],
    }
    one, two = listed(write(tmp_path / "a.parquet", columns, use_dictionary=False))
    assert (one.caption, two.caption) == ("first", "")
    assert one.fields == {
        "text": ["first", "second"],
        "year": 1999,
        "score": 0.5,
        "when": "2020-01-02T00:00:00",
        "tags": ["a"],
        "name": "\N{GRINNING FACE}",
        "left_out": ["embedding"],
    }
    assert two.fields["score"] is None and two.fields["when"] is None


def test_a_list_of_captions_is_kept_whole(tmp_path: Path) -> None:
    columns = {"image": [b"0", b"1", b"2"], "text": [["first", " ", "second"], [], None]}
    found = listed(write(tmp_path / "a.parquet", columns))
    assert [sources.read_captions(raw).texts for raw in found] == [("first", "second"), (), ()]
    odd = {"image": [b"0"], "text": [{"en": "x"}]}
    (raw,) = listed(write(tmp_path / "b.parquet", odd))
    assert raw.caption == "" and raw.fields == {"text": {"en": "x"}}


@pytest.mark.parametrize(
    ("cells", "followed"),
    [
        ([b"0", b"1"], [False, False]),
        (["0.jpg", "none.jpg"], [True, False]),
        ([{"bytes": b"0", "path": "0.jpg"}, {"bytes": b"1", "path": None}], [False, False]),
        ([{"bytes": None, "path": "0.jpg"}, {"bytes": b"1", "path": None}], [True, False]),
    ],
)
def test_stamps_of_rows_follow_the_table_and_the_files_it_names(
    tmp_path: Path, cells: list[Any], followed: list[bool]
) -> None:
    (tmp_path / "0.jpg").write_text("0")
    provided = {"depth_large": Provided(column="map", mask="mask", depth="distance")}
    columns = {"image": cells, "map": ["0.jpg", "none.png"], "mask": [b"m", b"m"]}
    path = write(tmp_path / "a.parquet", columns, rows_a_group=1)

    def look() -> list[RawImage]:
        return listed(path, captions="none", provided=provided)

    before = look()
    assert before == look() and len({raw.stamp for raw in before}) == 2
    os.utime(tmp_path / "0.jpg", (0, 0))
    after = look()
    assert [old.stamp != new.stamp for old, new in zip(before, after, strict=True)] == followed
    assert [old.map_stamps != new.map_stamps for old, new in zip(before, after, strict=True)] == [True, False]
    os.utime(path, (0, 0))
    assert not {raw.stamp for raw in after} & {raw.stamp for raw in look()}


def test_what_is_wrong_with_a_row_is_its_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cells = ["ftp://example.com/a.jpg", None, "none.jpg", "pipe", "[1]", "nul\0.jpg"]
    found = listed(write(tmp_path / "a.parquet", {"image": cells}), captions="none")
    reasons = [
        "only the address 'ftp",
        "is empty",
        "No such file",
        "not a file",
        "holds str, no picture",
        "only the address",
    ]
    for raw, reason in zip(found, reasons, strict=True):
        with pytest.raises(Unreadable, match=reason):
            sources.read(raw)
    (number,) = listed(write(tmp_path / "b.parquet", {"image": [5]}), captions="none")
    with pytest.raises(Unreadable, match="the cell of 'image' holds int, no picture"):
        sources.read(number)


def test_a_broken_file_is_one_row_among_the_others_and_alone_it_is_one_sentence(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", {"image": [b"0", b"1"], "text": ["a", "b"]})
    (tmp_path / "b.parquet").write_bytes(whole.read_bytes()[:-40])
    (tmp_path / "c.parquet").touch()
    write(tmp_path / "d.parquet", {"image": [b"3"]})
    found = listed(tmp_path)
    bad = {Path(raw.uri).name: raw.problem for raw in found if raw.problem}
    assert [contents(raw) for raw in found if not raw.problem] == [(b"0", "a"), (b"1", "b")]
    assert set(bad) == {"b.parquet", "c.parquet", "d.parquet"}
    assert (
        "there is no column 'text': set `source.captions` to one of image, to {template: …} or to none"
        in bad["d.parquet"]
    )
    for name in ("a", "d"):
        (tmp_path / f"{name}.parquet").unlink()
    with pytest.raises(MillError, match=r"b\.parquet: "):
        listed(tmp_path)
    write(tmp_path / "e.parquet", {"picture": [b"3"]})
    with pytest.raises(MillError, match=r"no column 'image': set `source\.image_column` to one of picture"):
        listed(tmp_path / "e.parquet")
    with pytest.raises(MillError, match=r"names no \.parquet file"):
        listed(tmp_path / "nowhere")


def test_a_file_that_changes_after_it_was_listed_is_read_anew_or_is_a_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"0", b"1"]})
    found = listed(path, captions="none")
    assert sources.read(found[1]) == b"1"
    write(path, {"image": [b"other"]})
    assert sources.read(found[0]) == b"other"
    with pytest.raises(Unreadable, match="broken table"):
        sources.read(found[1])
    path.unlink()
    with pytest.raises(Unreadable, match="No such file"):
        sources.read(found[0])


def test_a_row_group_is_read_once_for_all_its_rows_and_a_worker_keeps_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = listed(
        write(tmp_path / "a.parquet", {"image": [bytes([row]) * 1000 for row in range(40)]}, rows_a_group=10),
        captions="none",
    )
    reads: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: reads.append(group) or real(self, group, **options),
    )
    monkeypatch.setattr(tables, "KEPT_BYTES", 25_000)
    tables._columns.clear()
    assert [sources.read(raw)[0] for raw in found] == list(range(40))
    assert reads == [0, 1, 2, 3]
    assert len(tables._columns) == 2


def test_a_row_group_too_large_to_be_read_whole_is_one_row_and_moves_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "GROUP_BYTES", 5000)
    *small, large = listed(
        write(tmp_path / "a.parquet", {"image": [b"0", b"1", b"2" * 9000, b"3", b"4"]}), captions="none"
    )
    assert {raw.uri[-1]: sources.read(raw) for raw in small} == {"0": b"0", "1": b"1", "4": b"4"}
    assert (
        large.uri.endswith("::group 1")
        and "too large to be read whole" in large.problem
        and "row_group_size=100" in large.problem
    )


def test_a_provided_map_is_the_bytes_that_its_cell_holds_or_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "seg.png").write_bytes(b"map")
    columns = {
        "image": [b"0", b"1"],
        "seg": ["seg.png", None],
        "depth": [{"bytes": b"d", "path": "d.png"}] * 2,
        "people": [[[1.0, 2.0, 2.0]], []],
        "coco": ['[{"keypoints": []}]', ""],
    }
    given = {
        "seg_coco": Provided(column="seg", labels="coco_stuff_171"),
        "depth_large": Provided(column="depth", depth="distance", mask="seg"),
    }
    one, two = listed(write(tmp_path / "a.parquet", columns), captions="none", provided=given)
    assert one.provided["depth_large"] == given["depth_large"].model_dump()
    assert [read_cell(one, name) for name in ("seg", "depth", "people", "coco")] == [
        b"map",
        b"d",
        [[1.0, 2.0, 2.0]],
        '[{"keypoints": []}]',
    ]
    with pytest.raises(Unreadable, match="the cell of 'seg' is empty"):
        read_cell(two, "seg")
    assert "seg" not in one.fields and "people" in one.fields
