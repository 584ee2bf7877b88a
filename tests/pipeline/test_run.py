"""The command as a person runs it, over a few small pictures: complete, resumable, every failure a row."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotate import annotator, inference
from pipeline import manifest as manifests
from pipeline import plan
from pipeline.catalog import Catalog
from pipeline.catalog.schema import MIGRATIONS
from pipeline.storage import shards
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

STAGES = ("--stages", "ingest,annotate")


def query(root: Path, sql: str) -> list[tuple[Any, ...]]:
    return Catalog(Workspace(root / "ws")).query(sql)


def files(root: Path) -> dict[str, int]:
    """Every shard and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in (root / "ws").rglob("*.parquet")}


def test_every_image_has_one_row_for_every_condition_and_a_second_run_does_nothing(
    process: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(10)
    path = manifest(conditions="{canny: {}, hough: {}, cartoon: {}}")
    first = process("run", path, *STAGES)
    assert first.returncode == 0, first.stderr
    assert query(tmp_path, "SELECT count(*), count(DISTINCT (image_id, condition)) FROM annotations") == [
        (30, 30)
    ]
    assert query(tmp_path, "SELECT count(*) FROM images WHERE status = 'ok'") == [(10,)]
    assert query(tmp_path, "SELECT caption FROM sources WHERE uri LIKE '%003.jpg'") == [("picture 3",)]
    before = files(tmp_path)
    second = process("run", path, *STAGES)
    assert second.returncode == 0 and "going on in" in second.stdout and "nothing to do" in second.stdout
    assert files(tmp_path) == before
    assert process("verify", "ws").returncode == 0


def test_each_bad_file_is_a_row_with_its_reason_and_doubles_are_kept_once(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(9)
    shutil.copy(photos / "000.jpg", photos / "001-same.jpg")  # in the same part
    shutil.copy(photos / "000.jpg", photos / "zzz-same.jpg")  # in a later part
    (photos / "bad-empty.jpg").touch()
    (photos / "bad-text.jpg").write_text("hello")
    (photos / "bad-truncated.jpg").write_bytes((photos / "001.jpg").read_bytes()[:1000])
    (photos / "bad-dangling.jpg").symlink_to("/no/such/file")
    ran = controlmill("run", manifest(), *STAGES)
    assert ran.returncode == 3, ran.stderr
    assert "2 exact duplicates" in ran.stdout
    rows = dict(
        query(
            tmp_path,
            "SELECT regexp_extract(uri, '[^/]*$'), images.reason FROM sources JOIN images USING (image_id)"
            " WHERE status = 'failed'",
        )
    )
    assert rows == {
        "bad-empty.jpg": "empty file",
        "bad-text.jpg": "not an image of a known format",
        "bad-truncated.jpg": rows["bad-truncated.jpg"],
        "bad-dangling.jpg": "can't be read: No such file or directory",
    }
    assert "truncated" in rows["bad-truncated.jpg"]
    assert query(tmp_path, "SELECT count(*) FROM images WHERE status = 'ok'") == [(9,)]
    same = query(
        tmp_path,
        "SELECT regexp_extract(uri, '[^/]*$') FROM sources WHERE image_id = (SELECT image_id FROM sources"
        " WHERE uri LIKE '%/000.jpg') ORDER BY 1",
    )
    assert [name for (name,) in same] == ["000.jpg", "001-same.jpg", "zzz-same.jpg"]
    assert query(tmp_path, "SELECT count(*) FROM annotations") == [(9,)]
    # mended, only what failed is tried again
    shutil.copy(photos / "005.jpg", tmp_path / "kept.jpg")
    (tmp_path / "new.jpg").write_bytes(_other_jpeg())
    shutil.copy(tmp_path / "new.jpg", photos / "bad-text.jpg")
    mended = controlmill("run", manifest(), *STAGES)
    assert mended.returncode == 3 and "0 new addresses, 1 changed;" in mended.stdout
    retried = controlmill("run", manifest(), *STAGES, "--retry-failed")
    assert retried.returncode == 3 and "0 new addresses, 3 tried again;" in retried.stdout
    assert query(
        tmp_path, "SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'failed') FROM images"
    ) == [(10, 3)]
    assert query(tmp_path, "SELECT reason FROM images WHERE status = 'gone'") == [
        ("the file at this address has changed",)
    ]
    assert query(tmp_path, "SELECT count(*) FROM annotations") == [(10,)]
    assert controlmill("verify", "ws").returncode == 0
    everything = query(tmp_path, EVERYTHING)
    assert controlmill("catalog", "rebuild", "ws").returncode == 0
    assert query(tmp_path, EVERYTHING) == everything


EVERYTHING = """SELECT uri, s.image_id, i.status, i.reason, i.split, a.condition, a.fingerprint, a.status,
                a.reason, a.measures, a.shard, a.row
                FROM sources s JOIN images i USING (image_id) LEFT JOIN annotations a USING (image_id) ORDER
                BY ALL"""


def _other_jpeg() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.radial_gradient("L").save(buffer, "JPEG")
    return buffer.getvalue()


def test_new_images_and_new_conditions_cost_only_themselves(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(6)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    before = files(tmp_path)
    folder(9)
    assert controlmill("run", manifest(conditions="{canny: {}, hough: {}}"), *STAGES).returncode == 0
    after = files(tmp_path)
    assert {path: after[path] for path in before} == before
    assert query(tmp_path, "SELECT condition, count(*) FROM annotations GROUP BY ALL ORDER BY ALL") == [
        ("canny", 9),
        ("hough", 9),
    ]
    changed = controlmill("run", manifest(conditions="{canny: {low: 50}, hough: {}}"), *STAGES)
    assert changed.returncode == 0
    assert query(tmp_path, "SELECT condition, count(*) FROM annotations GROUP BY ALL ORDER BY ALL") == [
        ("canny", 9),
        ("hough", 9),
    ]
    new = set(files(tmp_path)) - set(after)
    assert new and all("/maps/canny/" in path for path in new)


def test_a_broken_shard_is_found_repaired_and_made_again(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(10)
    path = manifest()
    assert controlmill("run", path, *STAGES).returncode == 0
    everything = query(tmp_path, EVERYTHING)
    maps, images = (
        sorted((tmp_path / "ws/shards/maps").rglob("*.parquet")),
        sorted((tmp_path / "ws/shards/images").rglob("*.parquet")),
    )
    maps[0].write_bytes(maps[0].read_bytes()[:-50])
    images[1].unlink()
    found = controlmill("verify", "ws")
    assert found.returncode == 1 and "2 problems" in found.stdout
    assert controlmill("verify", "ws", "--repair").returncode == 0
    assert controlmill("run", path, *STAGES).returncode == 0
    assert controlmill("verify", "ws").returncode == 0
    strip = lambda rows: sorted((row[0], *row[1:10]) for row in rows)  # where the rows lie may differ
    assert strip(query(tmp_path, EVERYTHING)) == strip(everything)


def test_maps_of_a_part_whose_images_came_back_in_another_are_removed_by_the_next_run(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos, path = folder(10), manifest()
    assert controlmill("run", path, *STAGES).returncode == 0
    images, maps = (sorted((tmp_path / "ws/shards" / kind).rglob("*.parquet")) for kind in ("images", "maps"))
    kept = {shard: shard.stat().st_ino for shard in maps[1:]}
    images[0].write_bytes(b"broken")
    away = tmp_path / "away.jpg"
    (photos / "001.jpg").rename(away)
    assert controlmill("verify", "ws", "--repair").returncode == 0
    assert controlmill("run", path, *STAGES).returncode == 0
    told = controlmill("verify", "ws")
    assert told.returncode == 0 and "not in the catalog" not in told.stdout, told.stdout
    assert query(tmp_path, "SELECT count(*) FROM annotations") == [(9,)] and not maps[0].exists()
    assert {shard: shard.stat().st_ino for shard in kept} == kept, "the others are as they were"


def test_maps_wait_for_images_that_may_all_come_back(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos, path = folder(8), manifest()
    assert controlmill("run", path, *STAGES).returncode == 0
    images, maps = (sorted((tmp_path / "ws/shards" / kind).rglob("*.parquet")) for kind in ("images", "maps"))
    images[0].write_bytes(b"broken")
    assert controlmill("verify", "ws", "--repair").returncode == 0
    away = [shutil.move(photos / f"{number:03d}.jpg", tmp_path / f"{number}.away") for number in range(4)]
    made = maps[0].stat().st_ino
    assert controlmill("run", path, *STAGES).returncode == 0
    assert maps[0].stat().st_ino == made
    for number, it in enumerate(away):
        shutil.move(it, photos / f"{number:03d}.jpg")
    assert controlmill("run", path, *STAGES).returncode == 0
    assert maps[0].stat().st_ino == made, "adopted"
    assert controlmill("verify", "ws").returncode == 0


def test_a_damaged_manifest_of_a_workspace_names_its_remedy(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(3)
    path, saved = manifest(), tmp_path / "ws/manifest.yaml"
    assert controlmill("run", path, *STAGES).returncode == 0
    for data in (b"", b"name: [", b"\xff\xfe", saved.read_bytes()[:40]):
        saved.write_bytes(data)
        for command in (("status", "ws"), ("run", path, *STAGES), ("catalog", "rebuild", "ws")):
            ran = controlmill(*command)
            assert (
                ran.returncode == 1
                and "Traceback" not in ran.stderr
                and "delete it" in ran.stderr
                and str(saved) in ran.stderr
            ), ran.stderr
    saved.unlink()
    assert controlmill("run", path, *STAGES).returncode == 0
    assert controlmill("status", "ws").returncode == 0


@pytest.mark.slow
def test_orphans_of_another_state_never_stand_in_the_way_after_a_rebuild(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(7)
    shutil.copy(photos / "000.jpg", photos / "005-same.jpg")  # the same image in two parts
    path = manifest()
    assert controlmill("run", path, *STAGES).returncode == 0
    for lost in ("part-000000", "part-000001"):
        next((tmp_path / "ws/shards/images").rglob(f"{lost}.parquet")).unlink()
        if lost == "part-000000":
            assert controlmill("verify", "ws", "--repair").returncode == 0
            assert controlmill("run", path, *STAGES).returncode == 0
        assert controlmill("catalog", "rebuild", "ws").returncode == 0
        assert controlmill("run", path, *STAGES).returncode == 0
        assert query(tmp_path, "SELECT count(*), count(DISTINCT (image_id, condition)) FROM annotations") == [
            (7, 7)
        ]
        assert controlmill("verify", "ws").returncode == 0


def test_a_selection_can_neither_leave_its_condition_nor_silence_another(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(5)
    refused = manifest(conditions="{canny: {select: {where: \"condition = 'x') OR (true\"}}, hough: {}}")
    ran = controlmill("run", refused, *STAGES)
    assert (
        ran.returncode == 1
        and "conditions.canny.select.where is not one condition" in ran.stderr
        and "Traceback" not in ran.stderr
    )
    controlmill(
        "run", manifest(conditions='{canny: {select: {where: "true -- and no more"}}, hough: {}}'), *STAGES
    )
    pairs, made = (
        dict(query(tmp_path, f"SELECT condition, count(*) FROM {rows} GROUP BY ALL"))
        for rows in ("pairs", "annotations WHERE status = 'ok'")
    )
    assert pairs["hough"] == made["hough"] and pairs.get("canny", 0) <= made["canny"]


def test_detect_draws_each_image_and_condition_once_under_a_name_of_its_own(
    process: Command, folder: Callable[[int], Path], tmp_path: Path
) -> None:
    photos = folder(2)
    (tmp_path / "other").mkdir()
    shutil.copy(photos / "001.jpg", tmp_path / "other" / "000.jpg")
    (photos / "bad.jpg").write_text("hello")
    images = (photos / "000.jpg", tmp_path / "other" / "000.jpg", photos / "bad.jpg")
    ran = process(
        "detect",
        *images,
        "--condition",
        "canny",
        "--condition",
        "hough",
        "--out",
        "maps",
        "--resolution",
        "128",
    )
    assert ran.returncode == 3 and "bad.jpg: not an image" in ran.stderr
    assert (
        len(ran.stdout.split())
        == len(set(ran.stdout.split()))
        == len(list((tmp_path / "maps").glob("*.png")))
        == 4
    )
    wrong = process("detect", images[0], "--condition", "cany", "--out", "maps")
    assert (
        wrong.returncode == 1
        and "unknown condition 'cany'" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )


def test_detect_says_of_each_image_what_was_found_to_be_empty(
    controlmill: Command, folder: Callable[[int], Path], tmp_path: Path
) -> None:
    """As a run has rows: a skipped map is kept and is no failure; what failed is 3, and 1 where nothing could
    be done.
    """
    photo, grey = folder(1) / "000.jpg", tmp_path / "grey.png"
    Image.new("RGB", (128, 128), (120, 120, 120)).save(grey)
    (tmp_path / "bad.jpg").write_text("hello")
    asked = (
        "--condition",
        "canny",
        "--condition",
        "hough",
        "--condition",
        "cartoon",
        "--out",
        "maps",
        "--resolution",
        "128",
    )
    ran = controlmill("detect", photo, grey, *asked)
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == 6, ran.stderr
    assert ran.stderr.splitlines() == [
        f"{grey}: {name}: skipped: no {what}; kept as maps/grey.{name}.png"
        for name, what in (("canny", "edges"), ("hough", "lines"), ("cartoon", "edges"))
    ]
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / "maps").iterdir()} == set(
        ran.stdout.split()
    )
    some = controlmill("detect", grey, "bad.jpg", *asked)
    assert (
        some.returncode == 3 and "bad.jpg: not an image" in some.stderr and some.stderr.count("skipped") == 3
    )
    none = controlmill("detect", "bad.jpg", "absent.jpg", *asked)
    assert none.returncode == 1 and none.stdout == "" and len(none.stderr.splitlines()) == 2


def test_detect_of_a_pose_without_people_and_of_what_is_made_from_an_empty_map(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No people: a black picture with a reason.

    A child of an empty map is skipped without a picture, as in a run.
    """
    from click.testing import CliRunner

    from annotate import annotator
    from annotate.annotator import Annotation
    from annotate.maps import RawMap, blank
    from pipeline.cli import main

    nobody = RawMap("people", np.zeros((0, 18, 3), np.float32), {"size": [64, 64], "layout": "openpose_18"})
    given = {
        "pose_openpose": [Annotation("skipped", str(blank(nobody)), nobody)],
        "normal_extended": [Annotation("skipped", "depth_large was skipped: flat: one value, 0")],
        "canny": [Annotation("failed", "ValueError: no")],
    }
    monkeypatch.setattr(annotator, "annotate", lambda *_: given)
    monkeypatch.setattr("pipeline.commands.detect.chain", lambda name: [annotator.resolve("canny")])
    photo = tmp_path / "a.png"
    Image.new("RGB", (64, 64), (9, 9, 9)).save(photo)
    asked = [
        str(photo),
        "--out",
        str(tmp_path / "maps"),
        "--condition",
        "pose_openpose",
        "--condition",
        "normal_extended",
    ]
    ran = CliRunner().invoke(main, ["detect", *asked])
    assert ran.exit_code == 0 and ran.stdout == f"{tmp_path}/maps/a.pose_openpose.png\n"
    assert ran.stderr.splitlines() == [
        f"{photo}: pose_openpose: skipped: no person; kept as {tmp_path}/maps/a.pose_openpose.png",
        f"{photo}: normal_extended: skipped: depth_large was skipped: flat: one value, 0",
    ]
    ran = CliRunner().invoke(main, ["detect", *asked, "--condition", "canny"])
    assert ran.exit_code == 3 and f"{photo}: canny: ValueError: no" in ran.stderr


def test_a_lost_catalog_is_made_again_from_the_shards(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(6)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    everything = query(tmp_path, EVERYTHING)
    (tmp_path / "ws/catalog.duckdb").unlink()
    before = files(tmp_path)
    again = controlmill("run", manifest(), *STAGES)
    assert again.returncode == 0 and "making it again" in again.stdout and files(tmp_path) == before
    assert query(tmp_path, EVERYTHING) == everything


@pytest.mark.slow
def test_a_lost_catalog_is_made_again_although_the_trained_condition_has_no_pairs_now(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(4)
    train = {
        "train": "{base: random, runs: [{conditions: [canny], images: 4}]}",
        "evaluate": "{}",
        "split": "{validation: 0, test: 0.5}",
    }
    assert controlmill("run", manifest(**train), "--stages", "ingest").returncode == 0
    trained = tmp_path / "ws/checkpoints/canny-00000000/step-00000001"
    trained.mkdir(parents=True)
    told = {"images": 4, "step": 1, "conditions": ["canny"], "options": {"images": 4}, "files": {}}
    (trained / "meta.json").write_text(json.dumps(told))
    (tmp_path / "ws/catalog.duckdb").unlink()
    again = controlmill("catalog", "rebuild", "ws")
    assert again.returncode == 0 and "left to the next run" in again.stdout
    assert query(tmp_path, "SELECT count(*) FROM images") == [(4,)]


def test_what_an_earlier_version_made_is_kept_and_its_catalog_brought_up_to_date(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(3)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    everything = query(tmp_path, EVERYTHING)
    for path in sorted((tmp_path / "ws/shards/maps").rglob("*.parquet")):  # as version 0.1 wrote them
        table = pq.read_table(path)
        told = json.loads(table.schema.metadata[shards.FOOTER])
        del told["detector"]["maps"]
        pq.write_table(
            table.replace_schema_metadata({shards.FOOTER: json.dumps(told).encode()}),
            path,
            write_page_checksum=True,
        )
    catalog = tmp_path / "ws/catalog.duckdb"
    catalog.unlink()
    with duckdb.connect(str(catalog)) as connection:
        connection.execute(
            "CREATE TABLE migrations (version INTEGER, applied TIMESTAMP); INSERT INTO migrations VALUES (1,"
            " now()::TIMESTAMP)"
        )
        connection.execute(MIGRATIONS[0])
    early = controlmill("verify", "ws")
    assert (
        early.returncode == 1
        and "made by an earlier version" in early.stderr
        and "Traceback" not in early.stderr
    )
    assert controlmill("catalog", "rebuild", "ws").returncode == 0
    assert query(tmp_path, EVERYTHING) == everything
    assert controlmill("verify", "ws").returncode == 0


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"source": "{kind: folder, path: nowhere}"},
            "source.path: nowhere does not exist; put the data there",
        ),
        ({"conditions": "{cany: {}}"}, "unknown condition 'cany'"),
        ({"conditions": "{canny: {detector: sobel}}"}, "no detector 'sobel'"),
        ({"conditions": "{canny: {low: 300, high: 200}}"}, "low"),
        ({"conditions": "{canny: {lo: 3}}"}, "did you mean 'low'?"),
        ({"conditions": "{seg_coco: {}}"}, "seg_coco can't be made here"),
        (
            {"conditions": "{canny: {select: {where: 'no_such_column > 1'}}}"},
            "conditions.canny.select.where does not work",
        ),
        (
            {"conditions": "{canny: {select: {where: 'true); DROP TABLE shards; --'}}}"},
            "conditions.canny.select",
        ),
        ({"conditions": "{canny: {low: .inf}}"}, "an integer"),
        ({"workspace": '"~nobody-here/x"'}, "is no path"),
        ({"workspace": "/proc/nowhere"}, "can't be written"),
    ],
)
def test_bad_input_is_one_sentence_and_status_1(
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    sections: dict[str, str],
    sentence: str,
) -> None:
    folder(1)
    ran = controlmill("run", manifest(**sections), *STAGES)
    assert ran.returncode == 1
    assert sentence in ran.stderr and "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def test_a_process_of_its_own_has_no_more_to_say(
    process: Command, folder: Callable[[int], Path], manifest: Callable[..., Path]
) -> None:
    folder(1)
    for sections, sentence in (
        ({"workspace": "/proc/nowhere"}, "can't be written"),
        ({"conditions": "{canny: {lo: 3}}"}, "did you mean 'low'?"),
    ):
        ran = process("run", manifest(**sections), *STAGES)
        assert ran.returncode == 1 and sentence in ran.stderr and len(ran.stderr.strip().splitlines()) == 1


def test_a_workspace_keeps_its_name_and_its_split(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path]
) -> None:
    folder(4)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    other = controlmill("run", manifest("other"), *STAGES)
    assert other.returncode == 1 and "belongs to 'tiny', this manifest is 'other'" in other.stderr
    split = controlmill("run", manifest(split="{test: 0.5}"), *STAGES)
    assert split.returncode == 1 and "a split never changes" in split.stderr
    assert controlmill("verify", "ws").returncode == 0


def test_a_split_that_leaves_a_needed_part_empty_is_an_error(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path]
) -> None:
    folder(4)
    train = "{base: random, runs: [{conditions: [canny], images: 4}]}"
    ran = controlmill(
        "run", manifest(split="{test: 0.0, validation: 0.0}", train=train, evaluate="{}"), *STAGES
    )
    assert ran.returncode == 1 and "no image fell into 'test'" in ran.stderr


def test_auto_is_resolved_once_and_kept(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(2)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    assert "detector: opencv-canny" in (tmp_path / "ws/manifest.yaml").read_text()


@pytest.mark.parametrize("given", ["{}", "{precision: auto}"])
def test_a_workspace_keeps_its_precision_on_another_machine_and_under_a_later_rule(
    given: str,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if lack := annotator.missing("hed-bsds500"):
        pytest.skip(lack)
    folder(1)
    path = manifest(conditions=f"{{hed: {given}}}")
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(inference, "has_gpu", lambda: False)
    monkeypatch.setattr(inference, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    before = plan.make(manifests.load(path))
    before.workspace.create()
    plan.save(before)
    monkeypatch.setattr(inference, "cpu_flags", lambda: frozenset({"amx_bf16", "avx512_vnni"}))
    after = plan.make(manifests.load(path)).conditions["hed"]
    assert after.step.params["precision"] == before.conditions["hed"].step.params["precision"] == "bf16"
    assert after.fingerprint == before.conditions["hed"].fingerprint
    path.write_text(path.read_text().replace(given, "{precision: int8}", 1))
    assert plan.make(manifests.load(path)).conditions["hed"].step.params["precision"] == "int8"


def test_a_dry_run_touches_nothing(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(2)
    ran = controlmill("run", manifest(conditions="{sketch: {}}"), "--dry-run")
    assert ran.returncode == 0 and "hed" in ran.stdout and not (tmp_path / "ws").exists()


def test_a_dry_run_tells_of_files_that_are_no_controlnets_and_of_a_base_that_can_not_be_trained(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    from train import mini

    folder(2)
    for key in ("difference", "lora_controlnet"):
        save_file(
            {key: torch.zeros(1), "control_model.input_hint_block.0.weight": torch.zeros(1)},
            tmp_path / f"{key}.safetensors",
        )
    shutil.copytree(mini.BASE, tmp_path / "inpainting")
    config = tmp_path / "inpainting/unet/config.json"
    config.write_text(config.read_text().replace('"in_channels": 8', '"in_channels": 9'))
    train = "{base: inpainting, runs: [{conditions: [canny], images: 4, warm_start: difference.safetensors}]}"
    evaluate = "{external: [{name: theirs, condition: canny, checkpoint: lora_controlnet.safetensors}]}"
    ran = controlmill("run", manifest(train=train, evaluate=evaluate), "--dry-run")
    assert ran.returncode == 1 and not (tmp_path / "ws").exists()
    for told in (
        "difference.safetensors is a difference file",
        "evaluate.external[0].checkpoint: theirs: lora_controlnet.safetensors: Control-LoRA is not read",
        "train.base: base inpainting is an inpainting base: its UNet takes 9 channels",
    ):
        assert told in ran.stdout


def test_status_and_sql_tell_the_same_numbers(
    controlmill: Command, process: Command, folder: Callable[[int], Path], manifest: Callable[..., Path]
) -> None:
    folder(5)
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    told = json.loads(process("status", "ws", "--json").stdout)
    assert told["conditions"]["canny"]["ok"] == 5 and told["conditions"]["canny"]["to do"] == 0
    assert "canny" in controlmill("status", "manifest.yaml").stdout
    rows = process("sql", "ws", "SELECT condition, count(*) AS n FROM pairs GROUP BY ALL", "--json").stdout
    assert json.loads(rows) == {"condition": "canny", "n": 5}
    listed = (
        "SELECT 'a, \"b\"' AS text, NULL AS none, true AS yes, [1, 2] AS list, MAP {'a': 0.5::DOUBLE} AS map"
    )
    told = process("sql", "ws", listed, "--csv").stdout
    assert told == 'text,none,yes,list,map\n"a, ""b""",,true,"[1, 2]","{""a"": 0.5}"\n', (
        "a pipe of text reads CRLF as one line end"
    )
    both = controlmill("sql", "ws", "SELECT 1", "--csv", "--json")
    assert both.returncode == 1 and both.stderr.count("\n") == 1 and "--json and --csv" in both.stderr
    wrong = controlmill("sql", "ws", "SELECT nothing FROM nowhere")
    assert wrong.returncode == 1 and "The query failed" in wrong.stderr and "Traceback" not in wrong.stderr


def test_sql_can_neither_write_nor_leave_the_catalog(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(1)
    controlmill("run", manifest(), *STAGES)
    for query in (
        "DELETE FROM shards",
        "COPY images TO 'stolen.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH 'x.db'",
    ):
        refused = controlmill("sql", "ws", query)
        assert refused.returncode == 1 and "The query failed" in refused.stderr, query
    assert not (tmp_path / "stolen.csv").exists() and not (tmp_path / "x.db").exists()


def test_select_defines_the_pairs_and_deletes_nothing(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(8)
    where = (
        "{canny: {select: {where: \"edge_density >= 0 and caption <> 'picture 3'\", order_by: edge_density,"
        " limit: 5}}, hough: {}}"
    )
    assert controlmill("run", manifest(conditions=where), *STAGES).returncode == 0
    assert query(
        tmp_path,
        "SELECT count(*), count(*) FILTER (caption = 'picture 3') FROM pairs WHERE condition = 'canny'",
    ) == [(5, 0)]
    assert query(tmp_path, "SELECT count(*) FROM annotations WHERE condition = 'canny'") == [(8,)]
