"""What changes in a source after it was read: noticed by the next run, made again once, kept by a rebuild."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import manifest as manifests
from pipeline import sources
from pipeline.catalog import Catalog
from pipeline.dataset.changes import Known, examine
from pipeline.manifest import FolderSource
from pipeline.sources import RawImage, Unreadable
from pipeline.sources.files import may_pass
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

STAGES = ("--stages", "ingest,annotate")
STATE = {  # what a rebuild must give again
    "images": "SELECT image_id, status, reason, group_id, split, width, shard, row FROM images ORDER BY ALL",
    "sources": "SELECT image_id, uri, captions, stamp, gone, part, position FROM sources ORDER BY ALL",
    "captions": "SELECT image_id, caption, caption_changed FROM captions ORDER BY ALL",
    "maps": "SELECT image_id, condition, status, reason, source_hash, source_stamp, row FROM all_annotations"
    " ORDER BY ALL",
    "pairs": "SELECT condition, image_id FROM pairs ORDER BY ALL",
    "changes": "SELECT noticed, change, uri, image_id, condition FROM changes ORDER BY ALL",
}


def query(root: Path, sql: str) -> list[tuple[Any, ...]]:
    return Catalog(Workspace(root / "ws")).query(sql)


def state(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {name: query(root, sql) for name, sql in STATE.items()}


def written(root: Path) -> dict[str, int]:
    """Every shard and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in (root / "ws").rglob("*.parquet")}


def captions(root: Path) -> dict[str, str]:
    """File name -> caption of the pairs."""
    rows = query(
        root,
        "SELECT uri, p.caption FROM pairs p JOIN sources s USING (image_id) WHERE s.gone IS NULL"
        " AND condition = 'canny'",
    )
    return {Path(uri).name: caption for uri, caption in rows}


def noticed(root: Path) -> dict[str, list[str]]:
    """Change -> the file names where it was noticed."""
    found: dict[str, list[str]] = {}
    for change, uri in query(root, "SELECT change, uri FROM changes ORDER BY ALL"):
        found.setdefault(change, []).append(Path(uri).name)
    return found


def check_rebuild(controlmill: Command, root: Path) -> None:
    """A catalog that is made again says the same."""
    before = state(root)
    assert controlmill("catalog", "rebuild", "ws").returncode == 0
    assert state(root) == before


def touch(path: Path) -> None:
    """Another moment, the same bytes."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_what_changed_is_made_again_once_and_the_rest_stays(
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
) -> None:
    photos, path = folder(9), manifest(conditions="{canny: {}, cartoon: {}}")
    assert controlmill("run", path, *STAGES).returncode == 0
    before = written(tmp_path)
    splits = dict(query(tmp_path, "SELECT image_id, split FROM images"))
    photograph(100).save(photos / "001.jpg")
    (photos / "002.txt").write_text("other words")
    (photos / "005.txt").write_bytes(b"caf\xe9")
    (photos / "003.jpg").unlink()
    touch(photos / "004.jpg")
    photograph(101).save(photos / "100.jpg")
    dry = controlmill("run", path, *STAGES, "--dry-run")
    assert "sources: 1 new addresses, 4 that look changed, 0 with other captions, 1 gone" in dry.stdout, (
        dry.stdout
    )
    assert written(tmp_path) == before
    second = controlmill("run", path, *STAGES)
    assert second.returncode == 0, second.stderr
    assert "1 new addresses, 1 changed, 1 gone, 2 with other captions, 1 touched" in second.stdout
    assert "1 captions could not be read" in second.stdout
    assert noticed(tmp_path) == {
        "changed": ["001.jpg"],
        "caption": ["002.jpg", "005.jpg"],
        "gone": ["003.jpg"],
        "touched": ["004.jpg"],
    }
    after = written(tmp_path)
    assert {name: after[name] for name in before} == before, "no committed shard is written again"
    told = captions(tmp_path)
    assert told["002.jpg"] == "other words" and "003.jpg" not in told and len(told) == 9
    assert query(tmp_path, "SELECT status, count(*) FROM images GROUP BY ALL ORDER BY ALL") == [
        ("gone", 2),
        ("ok", 9),
    ]
    assert query(tmp_path, "SELECT count(*) FROM annotations") == [(18,)]
    now = dict(query(tmp_path, "SELECT image_id, split FROM images"))
    assert {image: now[image] for image in splits} == splits
    third = controlmill("run", path, *STAGES)
    assert third.returncode == 0 and "0 new addresses;" in third.stdout, third.stdout[200:]
    assert "nothing to do" in third.stdout
    assert written(tmp_path) == after
    assert controlmill("verify", "ws").returncode == 0
    assert "2 gone, 9 ok; 9 addresses" in controlmill("status", "ws").stdout
    check_rebuild(controlmill, tmp_path)


@pytest.mark.slow
def test_what_is_gone_may_come_back_and_gets_what_was_made_meanwhile(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(5)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    shutil.move(photos / "001.jpg", tmp_path / "001.jpg")
    assert controlmill("run", manifest(), *STAGES, "--keep-gone").returncode == 0
    assert len(captions(tmp_path)) == 5 and noticed(tmp_path) == {}
    both = manifest(conditions="{canny: {}, hough: {}}")
    assert controlmill("run", both, *STAGES).returncode == 0
    assert len(captions(tmp_path)) == 4
    reasons = query(
        tmp_path, "SELECT reason FROM all_annotations WHERE condition = 'hough' AND reason LIKE '%gone%'"
    )
    assert reasons == [("its image is gone from the source",)]
    shutil.move(tmp_path / "001.jpg", photos / "001.jpg")
    (photos / "001.txt").write_text("it is back")
    again = controlmill("run", both, *STAGES)
    assert again.returncode == 0 and "1 there again" in again.stdout, again.stdout
    assert captions(tmp_path)["001.jpg"] == "it is back"
    assert query(tmp_path, "SELECT condition, count(*) FROM annotations GROUP BY ALL ORDER BY ALL") == [
        ("canny", 5),
        ("hough", 5),
    ]
    assert query(tmp_path, "SELECT count(*) FROM annotations WHERE reason LIKE '%gone%'") == [(0,)]
    check_rebuild(controlmill, tmp_path)
    assert "nothing to do" in controlmill("run", both, *STAGES).stdout
    assert controlmill("verify", "ws").returncode == 0


@pytest.mark.slow
def test_a_picture_that_changes_and_changes_back_is_itself_again(
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
) -> None:
    photos = folder(3)
    first = (photos / "001.jpg").read_bytes()
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    ((image_id,),) = [query(tmp_path, "SELECT image_id FROM sources WHERE uri LIKE '%001.jpg'")]
    for step in range(2):
        photograph(50).save(photos / "001.jpg")
        touch(photos / "001.jpg")
        assert controlmill("run", manifest(), *STAGES).returncode == 0
        (photos / "001.jpg").write_bytes(first)
        os.utime(photos / "001.jpg", ns=(0, step))
        assert controlmill("run", manifest(), *STAGES).returncode == 0
    live = "SELECT image_id FROM sources WHERE uri LIKE '%001.jpg' AND gone IS NULL"
    assert query(tmp_path, live) == [image_id]
    assert len(captions(tmp_path)) == 3
    (photos / "001.jpg").unlink()
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    assert query(tmp_path, live) == []
    (photos / "001.jpg").write_bytes(first)
    assert "1 there again" in controlmill("run", manifest(), *STAGES).stdout
    assert query(tmp_path, live) == [image_id]
    check_rebuild(controlmill, tmp_path)
    assert controlmill("verify", "ws").returncode == 0


def test_an_image_at_two_addresses_stays_until_both_are_gone(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(3)
    shutil.copy(photos / "000.jpg", photos / "zzz.jpg")
    (photos / "zzz.txt").write_text("the copy")
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    (photos / "000.jpg").unlink()
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    assert captions(tmp_path) == {"001.jpg": "picture 1", "002.jpg": "picture 2", "zzz.jpg": "the copy"}
    assert query(tmp_path, "SELECT count(*) FROM captions WHERE caption_changed") == [(1,)]
    (photos / "zzz.jpg").unlink()
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    assert set(captions(tmp_path)) == {"001.jpg", "002.jpg"}


@pytest.mark.slow
def test_a_broken_picture_that_was_mended_is_read_and_one_that_breaks_is_a_row(
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
) -> None:
    photos = folder(4)
    (photos / "bad.jpg").write_text("no picture")
    assert controlmill("run", manifest(), *STAGES).returncode == 3
    photograph(60).save(photos / "bad.jpg")
    (photos / "001.jpg").write_text("no picture any more")
    second = controlmill("run", manifest(), *STAGES)
    assert second.returncode == 3 and "2 changed" in second.stdout
    assert {"bad.jpg"} < set(captions(tmp_path)) and "001.jpg" not in captions(tmp_path)
    assert query(tmp_path, "SELECT count(*) FROM images WHERE status = 'failed'") == [(1,)]
    photograph(61).save(photos / "001.jpg")
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    assert "nothing to do" in controlmill("run", manifest(), *STAGES).stdout


@pytest.mark.slow
def test_what_could_not_be_read_for_a_while_is_tried_again_and_what_is_broken_is_not(
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
) -> None:
    photos = folder(3)
    (photos / "bad.jpg").write_text("no picture")
    (photos / "share.jpg").symlink_to("/proc/self/mem")  # a file that gives an input/output error
    assert controlmill("run", manifest(), *STAGES).returncode == 3
    failed = "SELECT reason, transient FROM images WHERE status = 'failed' ORDER BY ALL"
    broken = ("not an image of a known format", False)
    assert query(tmp_path, failed) == [("can't be read: Input/output error", True), broken]
    assert "1 that failed are tried again by the next run" in controlmill("status", "ws").stdout
    again = controlmill("run", manifest(), *STAGES)
    assert again.returncode == 3 and "0 new addresses, 1 tried again;" in again.stdout, again.stdout
    assert len(query(tmp_path, failed)) == 2 and noticed(tmp_path) == {}
    (photos / "share.jpg").unlink()
    photograph(80).save(photos / "share.jpg")
    assert controlmill("run", manifest(), *STAGES).returncode == 3
    assert query(tmp_path, failed) == [broken] and len(query(tmp_path, "FROM pairs")) == 4
    assert "tried again" not in controlmill("run", manifest(), *STAGES).stdout
    check_rebuild(controlmill, tmp_path)


@pytest.mark.parametrize(
    ("raw", "number", "expected"),
    [
        (RawImage("a", stamp="1:2"), errno.ENOENT, True),
        (RawImage("a", stamp="-"), errno.ENOENT, False),  # it was not there when it was listed
        (RawImage("a", stamp="1:2@0 -"), errno.ENOENT, False),
        (RawImage("a", stamp="1:2@0 3:4", reader="parquet"), errno.ENOENT, True),
        (RawImage("a", stamp="-"), errno.EIO, True),
        (RawImage("a", stamp="1:2", reader="tar"), errno.ESTALE, True),
        (RawImage("a", stamp="1:2"), errno.EACCES, True),
        (RawImage("a", stamp="1:2"), errno.EISDIR, False),
        (RawImage("a", reader="url"), errno.ETIMEDOUT, False),
    ],
    ids=str,
)
def test_what_may_be_readable_soon(raw: RawImage, number: int, expected: bool) -> None:
    error = OSError(number, os.strerror(number))
    wrapped = Unreadable("can't be read")
    wrapped.__cause__ = error
    assert may_pass(raw, error) is may_pass(raw, wrapped) is expected
    assert not may_pass(raw, Unreadable("empty file")) and not may_pass(raw, ValueError("no"))


def test_captions_that_could_not_be_read_for_a_while_are_read_again(tmp_path: Path) -> None:
    """And those that were known before stay meanwhile."""
    picture, sidecar = tmp_path / "a.jpg", tmp_path / "a.txt"
    picture.write_bytes(b"a picture")
    sidecar.symlink_to("/proc/self/mem")
    (raw,) = sources.listing([FolderSource(kind="folder", path=str(tmp_path))], manifests.Image())
    read = sources.read_captions(raw)
    assert read.may_pass and read.problem == "caption file: can't be read: Input/output error"
    was = Known(sources.image_id(b"a picture"), False, raw.stamp, "before", ["known"], "{}")
    assert list(examine([(raw, was)])) == []
    sidecar.unlink()
    sidecar.write_text("words")
    (raw,) = sources.listing([FolderSource(kind="folder", path=str(tmp_path))], manifests.Image())
    assert [change.captions for change in examine([(raw, was)])] == [("words",)]


def test_a_change_that_was_written_down_before_a_kill_is_carried_out(
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    tmp_path: Path,
) -> None:
    photos = folder(3)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    shutil.copy(tmp_path / "ws/catalog.duckdb", tmp_path / "before.duckdb")
    (photos / "001.jpg").unlink()
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    shutil.copy(tmp_path / "before.duckdb", tmp_path / "ws/catalog.duckdb")  # as if killed before the commit
    assert len(captions(tmp_path)) == 3
    (photos / "001.txt").unlink()
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    assert set(captions(tmp_path)) == {"000.jpg", "002.jpg"} and noticed(tmp_path) == {"gone": ["001.jpg"]}


def test_a_list_whose_captions_and_columns_change_keeps_its_maps(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(3)
    rows = [{"image": f"{number:03d}.jpg", "caption": f"c{number}", "n": number} for number in range(3)]
    (photos / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = manifest(source="{kind: list, path: photos/list.jsonl}")
    assert controlmill("run", path, *STAGES).returncode == 0
    before = written(tmp_path)
    rows[1] |= {"caption": ["one", "two"]}
    rows[2] |= {"n": 7}
    (photos / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    second = controlmill("run", path, *STAGES)
    assert second.returncode == 0 and "1 gone, 2 with other captions" in second.stdout, second.stdout
    assert captions(tmp_path) == {"001.jpg": "one", "002.jpg": "c2"}
    assert query(tmp_path, "SELECT source_captions FROM captions WHERE caption = 'one'") == [
        (["one", "two"],)
    ]
    assert query(tmp_path, "SELECT fields FROM captions WHERE caption = 'c2'") == [('{"n":7}',)]
    new = set(written(tmp_path)) - set(before)
    assert len(new) == 1 and all("/changes/" in name for name in new)


@pytest.mark.slow
def test_a_provided_map_that_changes_is_read_again_with_what_is_made_from_it(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(5)
    depth = tmp_path / "photos" / "depth"
    depth.mkdir()
    ramp = np.linspace(1000, 9000, 160 * 120).reshape(120, 160).astype(np.uint16)
    for number in range(5):
        Image.new("L", (160, 120), 255).save(depth / f"{number:03d}_mask.png")
    (depth / "004_mask.png").unlink()
    for number in range(3):
        Image.fromarray(ramp).save(depth / f"{number:03d}.png")
    path = manifest(
        source="{kind: folder, path: photos, provided: {depth_large: {path: 'depth/{stem}.png',"
        " mask: 'depth/{stem}_mask.png', depth: distance}}}",
        conditions="{depth_large: {detector: provided}, normal_extended: {}, canny: {}}",
    )
    assert controlmill("run", path, *STAGES).returncode == 3
    before, files = state(tmp_path), written(tmp_path)
    Image.fromarray(ramp[::-1].copy()).save(depth / "001.png")  # another map
    Image.fromarray(ramp).save(depth / "003.png")  # one that was not there
    touch(depth / "002.png")
    Image.new("L", (160, 120), 255).save(depth / "004_mask.png")  # of a map that is still not there
    second = controlmill("run", path, *STAGES)
    assert second.returncode == 3, second.stderr
    assert noticed(tmp_path) == {"map": ["001.jpg", "003.jpg"], "touched": ["002.jpg", "004.jpg"]}
    changed = {row[:2] for row in set(state(tmp_path)["maps"]) ^ set(before["maps"])}
    assert {condition for _, condition in changed} == {"depth_large", "normal_extended"}
    assert {
        name for name, when in written(tmp_path).items() if files.get(name) != when and "/canny/" in name
    } == set()
    after = written(tmp_path)
    assert "nothing to do" in controlmill("run", path, *STAGES).stdout
    assert written(tmp_path) == after
    check_rebuild(controlmill, tmp_path)


@pytest.mark.slow
def test_many_touched_files_are_hashed_by_the_workers_and_noted_once(
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
) -> None:
    photos = folder(70)
    path = manifest(shard_images="30")
    assert controlmill("run", path, *STAGES).returncode == 0
    for picture in photos.glob("*.jpg"):
        touch(picture)
    photograph(200).save(photos / "033.jpg")
    second = controlmill("run", path, *STAGES)
    assert second.returncode == 0 and "0 new addresses, 1 changed, 69 touched" in second.stdout, second.stderr
    assert "0 new addresses;" in controlmill("run", path, *STAGES).stdout
    assert len(captions(tmp_path)) == 70
