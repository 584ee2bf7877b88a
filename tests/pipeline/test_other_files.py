"""Files of a workspace that no catalog lists: what was written is told from what was damaged since."""

import errno
import hashlib
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipeline import MillError, manifest
from pipeline import plan as plans
from pipeline.cli import main
from pipeline.commands.damage import other_files
from pipeline.plan import kept
from pipeline.sources import spool
from pipeline.storage import events
from pipeline.storage.workspace import Workspace, misplaced, set_aside
from train import sums

GIVEN = "{name: tiny, workspace: ws, source: {kind: folder, path: .}, conditions: {canny: {low: 100}}}"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Its copy of a manifest, a stream of six rows in three files, a base, a picture of the report."""
    (tmp_path / "m.yaml").write_text(GIVEN)
    made = Workspace(tmp_path / "ws")
    made.root.mkdir()
    kept.save(made, manifest.load(tmp_path / "m.yaml"))
    stream = made.spool / "key"
    for first in (0, 2, 4):
        spool.write_rows(stream, first, pa.table({"image": [f"{first}" * 900, "b"]}))
    spool.Stream("p", None, "train", None, complete=True, rows=6).save(stream / spool.RECORD)
    (made.root / "base/random").mkdir(parents=True)
    (made.root / "base/random/weights").write_bytes(b"1234")
    sums.write(made.root / "base/random")
    (made.report / "pictures").mkdir(parents=True)
    (made.report / "pictures" / f"{hashlib.sha256(b'picture').hexdigest()[:20]}.png").write_bytes(b"picture")
    return made


def found(workspace: Workspace) -> list[str]:
    return [sentence for damage in other_files(workspace) for sentence in damage.sentences]


def repair(workspace: Workspace) -> None:
    for damage in other_files(workspace):
        damage.take_out()


def test_a_bit_that_flips_in_the_manifest_is_found_wherever_it_is(workspace: Workspace) -> None:
    assert found(workspace) == []
    whole, given = workspace.manifest.read_bytes(), plans.saved(workspace)
    draw = random.Random(0)
    for place in (*range(len(kept.SEAL)), *(draw.randrange(len(whole)) for _ in range(60))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        workspace.manifest.write_bytes(damaged)
        try:
            assert plans.saved(workspace) == given, place
        except MillError as error:
            assert "delete it" in str(error)
            (sentence,) = found(workspace)
            assert sentence.startswith("manifest.yaml: damaged: ")
    for cut in range(0, len(whole) - 1, 41):
        workspace.manifest.write_bytes(whole[:cut])
        assert len(found(workspace)) == 1
    repair(workspace)
    assert not workspace.manifest.exists()


def test_a_manifest_of_an_earlier_version_has_no_sum_and_is_read(workspace: Workspace) -> None:
    given = plans.saved(workspace)
    workspace.manifest.write_text(manifest.dump(given))
    assert plans.saved(workspace) == given and found(workspace) == []


@pytest.mark.parametrize("lost", [0, 2, 4])
def test_rows_of_a_stream_that_are_gone_are_named_and_read_again_from_there(
    workspace: Workspace, lost: int
) -> None:
    stream = workspace.spool / "key"
    path = stream / f"rows-{lost:09d}.parquet"
    path.unlink()
    record = spool.Stream("p", None, "train", None)
    record.load(stream / spool.RECORD)
    with pytest.raises(MillError, match=f"{path.name}, kept of a stream, is missing: delete the folder"):
        spool.rows_kept(stream, record)
    assert found(workspace) == [f"spool/key/{path.name}: missing"]
    repair(workspace)
    record.load(stream / spool.RECORD)
    assert not record.complete and spool.rows_kept(stream, record)[1] == lost and found(workspace) == []


def test_a_damaged_page_and_a_damaged_record_of_a_stream_are_named(workspace: Workspace) -> None:
    stream = workspace.spool / "key"
    path = stream / "rows-000000002.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(8) + content[68:])
    assert found(workspace) == [f"spool/key/{path.name}: damaged"]
    (stream / spool.RECORD).write_text(json.dumps({"commit": 3, "complete": "yes"}))
    assert found(workspace)[0] == "spool/key/stream.json: damaged"
    repair(workspace)
    assert not list(stream.iterdir()) and found(workspace) == []


def test_a_base_that_was_damaged_is_taken_out_whole(workspace: Workspace) -> None:
    weights = workspace.root / "base/random/weights"
    weights.write_bytes(b"1235")
    assert found(workspace) == [f"{weights} is not the file of SHA256SUMS"]
    weights.unlink()
    assert found(workspace) == [f"{weights} is missing"]
    (weights.parent / sums.SUMS).write_text(f"{'0' * 64}  ../../manifest.yaml\n")
    assert found(workspace) == [f"{weights.parent / sums.SUMS} is damaged"]
    repair(workspace)
    assert not weights.parent.exists() and workspace.manifest.exists()


def test_a_picture_that_is_not_what_its_name_says_is_named(workspace: Workspace) -> None:
    (picture,) = (workspace.report / "pictures").iterdir()
    picture.write_bytes(b"pictvre")
    assert found(workspace) == [f"report/pictures/{picture.name}: damaged"]
    repair(workspace)
    assert not picture.exists() and found(workspace) == []


def test_what_lies_in_the_place_of_a_file_is_kept_under_another_name(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "part").mkdir()
        (tmp_path / "part/somebody's").write_text("file")
        assert set_aside(tmp_path / "part") == tmp_path / f"damaged-part-{number}"
        assert (tmp_path / f"damaged-part-{number}/somebody's").read_text() == "file"
    (tmp_path / "part").write_text("ours")
    set_aside(tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_a_folder_where_a_file_belongs_is_one_sentence(workspace: Workspace) -> None:
    (workspace.root / ".lock").mkdir()
    ran = CliRunner().invoke(main, ["catalog", "rebuild", str(workspace.root)])
    assert ran.exit_code == 1
    assert ran.output == (
        f"controlmill: A folder lies where a file belongs ({workspace.root / '.lock'}): move it away, then"
        " run the same command again.\n"
    )
    error = NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b")
    assert str(misplaced(error)).startswith("A file lies where a folder belongs (/a/b)")
    assert misplaced(FileNotFoundError(errno.ENOENT, "No such file", "/a/b")) is None


def test_a_full_disk_is_told_from_the_words_of_any_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("pipeline.cli.workspaces.open_workspace", full)
    ran = CliRunner().invoke(main, ["status", "ws"])
    assert ran.exit_code == 1 and ran.output.startswith("controlmill: The disk is full: make room")


def test_events_that_are_none_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / events.EVENTS).write_bytes(b'\xff\xfe\n{"event": "a"}\n[]\n{"eve\n{"event": "b"}\n')
    assert [event["event"] for event in events.read(tmp_path)] == ["a", "b"]
