"""A shard is whole or not there, and knows what it was made from."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import MillError
from pipeline.storage import shards
from pipeline.storage.workspace import TEMPORARY, Workspace, fingerprint, write_text, write_whole

METADATA = {"kind": "maps", "key": "k", "part": 0, "made_from": "inputs"}
ROWS = [
    {
        "image_id": str(n),
        "status": "ok",
        "reason": "",
        "map": bytes([n]) * 1000,
        "measures": [("density", n / 2)],
    }
    for n in range(70)
]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = shards.write(tmp_path / "part.parquet", ROWS, shards.MAPS, METADATA).path
    assert shards.read(path, ["image_id", "map"]).to_pylist() == [
        {"image_id": row["image_id"], "map": row["map"]} for row in ROWS
    ]
    assert shards.metadata(path) == METADATA
    for row in (0, 31, 32, 69):
        assert shards.read_row(path, row, ["map"])["map"] == ROWS[row]["map"]
    with pytest.raises(IndexError):
        shards.read_row(path, 70, ["map"])
    light = shards.verify(path).light
    assert "map" not in light.column_names and light["row"].to_pylist() == list(range(70))


def test_some_rows_are_read_with_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shards.write(tmp_path / "part.parquet", ROWS, shards.MAPS, METADATA).path
    asked: list[int] = []
    read = shards.pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        shards.pq.ParquetFile,
        "read_row_group",
        lambda file, group, **more: asked.append(group) or read(file, group, **more),
    )
    found = shards.read_rows(path, [69, 0, 31, 0, 5], ["image_id", "map"])
    assert {row: it["map"] for row, it in found.items()} == {row: ROWS[row]["map"] for row in (0, 5, 31, 69)}
    assert asked == [0, 2] and shards.read_rows(path, [], ["map"]) == {}
    with pytest.raises(IndexError, match="no row 70"):
        shards.read_rows(path, [3, 70], ["map"])


def test_an_existing_shard_is_never_overwritten_by_a_late_worker(tmp_path: Path) -> None:
    path = shards.write(tmp_path / "part.parquet", ROWS, shards.MAPS, METADATA).path
    before = path.read_bytes()
    shards.write(path, ROWS[:1], shards.MAPS, METADATA)
    assert path.read_bytes() == before
    shards.write(path, ROWS[:1], shards.MAPS, METADATA, replace=True)
    assert shards.read(path).num_rows == 1


@pytest.mark.parametrize("place", [10, 20_000, -3])
def test_a_flipped_byte_is_found(tmp_path: Path, place: int) -> None:
    path = shards.write(tmp_path / "part.parquet", ROWS, shards.MAPS, METADATA).path
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises((pa.ArrowInvalid, OSError)):
        shards.verify(path)


def test_a_complete_shard_of_the_same_inputs_is_adopted_and_any_other_removed(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    assert shards.adopt(path, "inputs") is None
    shards.write(path, ROWS, shards.MAPS, METADATA)
    adopted = shards.adopt(path, "inputs")
    assert adopted and adopted.rows == 70
    assert shards.adopt(path, "other inputs") is None and not path.exists()
    shards.write(path, ROWS, shards.MAPS, METADATA)
    path.write_bytes(path.read_bytes()[:-100])
    assert shards.adopt(path, "inputs") is None and not path.exists()


def test_a_shard_of_other_inputs_is_never_taken_for_ones_own(tmp_path: Path) -> None:
    path = shards.write(tmp_path / "part.parquet", ROWS, shards.MAPS, METADATA).path
    with pytest.raises(MillError, match="written by another process"):
        shards.verify(path, "other inputs")


def test_a_missing_or_broken_shard_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="is missing: `controlmill verify WORKSPACE --repair`"):
        shards.read(tmp_path / "none.parquet")
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(MillError, match="is broken"):
        shards.read_row(tmp_path / "half.parquet", 0, ["map"])


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []


def test_only_temporary_names_are_swept(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_text(tmp_path / "shards" / "deep" / "kept.txt", "kept")
    (tmp_path / "shards" / "deep" / f"{TEMPORARY}1-x").write_text("half")
    (tmp_path / "checkpoints" / f"{TEMPORARY}step" / "inner").mkdir(parents=True)
    (tmp_path / "checkpoints" / f"{TEMPORARY}step" / "inner" / "file").touch()
    (tmp_path / f"{TEMPORARY}rebuild").mkdir()
    assert workspace.sweep() == 3
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kept.txt"]


def test_sweeping_follows_no_link_and_touches_nothing_of_others(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "ws"
    for path in (
        outside / "precious.txt",
        root / "photos" / f"{TEMPORARY}note.txt",
        root / "shards" / "part.parquet",
    ):
        write_text(path, "precious")
    (root / "shards" / f"{TEMPORARY}link").symlink_to(outside)
    Workspace(root).sweep()
    assert (outside / "precious.txt").exists() and (root / "photos" / f"{TEMPORARY}note.txt").exists()
    assert not (root / "shards" / f"{TEMPORARY}link").is_symlink()


def test_a_fingerprint_depends_on_values_and_not_on_their_order() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5}) and len(fingerprint(0)) == 16
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))
