"""What a dataset builder relies on: near-duplicates, cleaning, provided maps, shared maps, plans for another
machine.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from pipeline.catalog import Catalog
from pipeline.cli import main
from pipeline.dataset import quality
from pipeline.storage.workspace import Workspace
from tests.blip import make
from tests.conftest import Command

STAGES = ("--stages", "ingest,annotate")
SCENES = {
    "source": "{kind: scenes, count: 6, seed: 3}", "image": "{resolution: 64, store: png}",
    "conditions": "{depth_large: {}, depth_small: {select: {order_by: sharpness DESC, limit: 2}}, "
    "normal_extended: {}, "
    "seg_ade20k: {}, pose_openpose: {}}",
}  # fmt: skip


def query(tmp_path: Path, sql: str) -> list[tuple]:
    return Catalog(Workspace(tmp_path / "ws")).query(sql)


def test_near_duplicates_share_group_and_split_wherever_they_come(
    controlmill: Command,
    manifest: Callable[..., Path],
    photograph: Callable[..., Image.Image],
    tmp_path: Path,
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(10):  # three parts of four: the twins of 0 lie in the first and in the last
        photograph(number).save(photos / f"{number:03d}.jpg", quality=95)
    photograph(0).save(photos / "001-again.jpg", quality=60)
    photograph(0).resize((120, 90)).save(photos / "990-small.png")
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):  # alike to the hash alone
        disc = Image.new("RGB", (160, 120), "white")
        ImageDraw.Draw(disc).circle((80, 60), 25, fill=colour)
        disc.save(photos / f"disc-{name}.png")
        Image.new("RGB", (160, 120), colour).save(photos / f"flat-{name}.png")
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    told = (
        "SELECT group_id, split, first_of_group, regexp_extract(uri, '[^/]*$') FROM images JOIN sources USING"
        " (image_id) ORDER BY 4"
    )
    rows = query(tmp_path, told)
    twins = [row for row in rows if row[3] in ("000.jpg", "001-again.jpg", "990-small.png")]
    assert len({row[0] for row in twins}) == 1 and len({row[1] for row in twins}) == 1
    assert [row[2] for row in twins] == [True, False, False]
    assert len({row[0] for row in rows}) == 14
    assert controlmill("catalog", "rebuild", "ws").returncode == 0
    assert query(tmp_path, told) == rows, "a rebuild gives the same groups"
    next((tmp_path / "ws/shards/images").glob("*/part-000000.parquet")).unlink()  # the leader's
    assert controlmill("verify", "ws", "--repair").returncode == 0
    assert controlmill("run", manifest(), *STAGES).returncode == 0
    assert query(tmp_path, told) == rows, "so does a repair"
    assert controlmill("catalog", "rebuild", "ws").returncode == 0
    assert query(tmp_path, told) == rows, "and a rebuild after it"


def test_how_images_look_can_be_asked_in_where_and_select(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(5)
    Image.new("RGB", (160, 120), (90, 90, 90)).save(photos / "flat.png")
    Image.linear_gradient("L").resize((200, 120)).save(photos / "grey.png")
    path = manifest(
        where='"NOT grey AND aspect BETWEEN 0.5 AND 2 AND first_of_group"',
        conditions='{canny: {select: {where: "edge_density > 0.01 AND sharpness > 10"}}}',
    )
    ran = controlmill("run", path, *STAGES)
    assert ran.returncode == 0, ran.stderr
    assert query(tmp_path, "SELECT count(*) FROM pairs") == [(5,)]
    names = {
        row[0]
        for row in Catalog(Workspace(tmp_path / "ws")).query("SELECT column_name FROM (DESCRIBE candidates)")
    }
    assert {
        *quality.MEASURES,
        "n_lines",
        "keypoint_fraction",
        "edge_density",
        "source_caption",
        "model_caption",
    } - {"phash"} <= names
    facts = (
        "SELECT DISTINCT frames, colour_space, damage, upright_width, crop_left, crop_top, crop_width,"
        " crop_height, cropped FROM pairs"
    )
    assert query(tmp_path, facts) == [(1, "sRGB", None, 160, 20, 0, 120, 120, 0.25)]
    assert query(tmp_path, "SELECT DISTINCT orientation FROM images") == [(1,)]
    wrong = controlmill("run", manifest(where='"sharpnes > 1"'), *STAGES)
    assert wrong.returncode == 1 and "where does not work" in wrong.stderr


def test_maps_that_come_with_the_source_are_taken_and_shared(
    controlmill: Command, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    ran = controlmill("run", manifest(**SCENES), *STAGES)
    assert ran.returncode == 0, ran.stderr
    assert "seg_ade20k       provided" in ran.stdout
    rows = query(tmp_path, "SELECT condition, count(*), min(shard) FROM annotations GROUP BY ALL")
    assert {name: count for name, count, _ in rows} == dict.fromkeys(
        ("depth_large", "depth_small", "normal_extended", "seg_ade20k", "pose_openpose"), 6
    )
    shards = {name: shard for name, _, shard in rows}
    assert shards["depth_small"] == shards["depth_large"], "one shard, two selections"
    assert not (tmp_path / "ws/shards/maps/depth_small").exists()
    assert query(
        tmp_path,
        "SELECT condition, count(*) FROM pairs WHERE condition LIKE 'depth%' GROUP BY ALL ORDER BY ALL",
    ) == [
        ("depth_large", 6),
        ("depth_small", 2),
    ]
    again = controlmill("run", manifest(**SCENES), *STAGES)
    assert again.returncode == 0 and "annotate  nothing to do" in again.stdout
    assert controlmill("verify", "ws").returncode == 0
    before = query(tmp_path, "SELECT * EXCLUDE (image) FROM annotations ORDER BY ALL")
    assert controlmill("catalog", "rebuild", "ws").returncode == 0
    assert query(tmp_path, "SELECT * EXCLUDE (image) FROM annotations ORDER BY ALL") == before


def test_shared_maps_are_made_before_what_is_made_from_them_in_any_order_of_the_manifest(
    controlmill: Command, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    scenes = {"source": "{kind: scenes, count: 4, seed: 0}", "shard_images": "2"}
    assert (
        controlmill(
            "run", manifest(**scenes, conditions="{depth_small: {}, normal_extended: {}}"), *STAGES
        ).returncode
        == 0
    )
    assert query(
        tmp_path, "SELECT condition, count(*) FROM annotations WHERE status = 'ok' GROUP BY ALL ORDER BY ALL"
    ) == [
        ("depth_large", 4),
        ("depth_small", 4),
        ("normal_extended", 4),
    ]


def test_maps_given_for_one_condition_are_there_for_the_one_that_shares_them(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(2)
    (tmp_path / "depth").mkdir()
    for photo in photos.glob("*.jpg"):
        Image.fromarray(np.arange(120 * 160, dtype=np.uint16).reshape(120, 160) + 9).save(
            tmp_path / "depth" / f"{photo.stem}.png"
        )
    source = (
        '{kind: folder, path: photos, provided: {depth_large: {path: "../depth/{stem}.png", depth:'
        " distance}}}"
    )
    assert (
        controlmill("run", manifest(source=source, conditions="{depth_small: {}}"), *STAGES).returncode == 0
    )
    assert query(tmp_path, "SELECT condition, status FROM annotations") == [("depth_small", "ok")] * 2


def test_a_condition_without_a_pair_is_named(controlmill: Command, manifest: Callable[..., Path]) -> None:
    scenes = {"source": "{kind: scenes, count: 2, seed: 0}"}
    run = controlmill(
        "run",
        manifest(**scenes, where="'n_people >= 0'", conditions="{depth_large: {}, pose_openpose: {}}"),
        *STAGES,
    )
    assert run.returncode == 0 and "leave no pair of depth_large  (" in run.stdout


def test_a_provided_map_is_what_the_renderer_knows(
    controlmill: Command, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    import numpy as np

    from pipeline import scenes
    from pipeline.dataset.maps import read_annotation

    assert controlmill("run", manifest(**SCENES), *STAGES).returncode == 0
    sql = (
        "SELECT uri, a.shard, a.row, caption FROM annotations a JOIN sources USING (image_id) WHERE condition"
        " = 'seg_ade20k'"
    )
    for uri, shard, row, caption in query(tmp_path, sql):
        scene = scenes.render(3, int(uri.rpartition("/")[2]), 64)
        stored = read_annotation(Workspace(tmp_path / "ws"), shard, row, "seg_ade20k").map
        assert stored is not None and caption == scene.caption
        np.testing.assert_array_equal(stored.array, scene.maps["seg_ade20k"].array)


def test_a_folder_with_labels_makes_pairs_and_an_image_without_one_fails_alone(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(3)
    (tmp_path / "labels").mkdir()
    for number in (0, 2):
        Image.linear_gradient("L").resize((160, 120)).point(lambda v: v // 2).save(
            tmp_path / "labels" / f"{number:03d}.png"
        )
    source = (
        '{kind: folder, path: photos, provided: {seg_ade20k: {path: "../labels/{stem}.png", labels:'
        " ade20k_png}}}"
    )
    ran = controlmill("run", manifest(source=source, conditions="{seg_ade20k: {}}"), *STAGES)
    assert ran.returncode == 3
    rows = query(
        tmp_path,
        "SELECT regexp_extract(uri, '[^/]*$'), a.status, reason FROM annotations a JOIN sources USING"
        " (image_id) ORDER BY ALL",
    )
    assert [row[:2] for row in rows] == [("000.jpg", "ok"), ("001.jpg", "failed"), ("002.jpg", "ok")]
    assert "no map came with this image" in rows[1][2]
    Image.linear_gradient("L").resize((160, 120)).point(lambda v: v // 2).save(
        tmp_path / "labels" / "001.png"
    )
    assert (
        controlmill(
            "run", manifest(source=source, conditions="{seg_ade20k: {}}"), *STAGES, "--retry-failed"
        ).returncode
        == 0
    )
    assert query(tmp_path, "SELECT count(*) FROM pairs") == [(3,)]


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "manifests" / "paper").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_a_dry_run_of_the_papers_rules_says_what_it_would_do_and_what_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(main, ["run", str(path), "--dry-run"])
    assert ran.exit_code == 1 and not ran.stderr, ran.stderr
    assert (
        f"would work in {tmp_path}/runs/paper/{path.stem}" in ran.stdout
        and f"  {path.stem:<16} " in ran.stdout
    )
    missing = ran.stdout.partition("missing here:\n")[2]
    assert re.search(r"source(\[0\])?.path: data/", missing) and "train.base: " in missing
    assert not list(tmp_path.iterdir()), "a dry run touches nothing"


def test_the_papers_rules_are_thirteen() -> None:
    from annotate.conditions import CONDITIONS

    found = {path.stem for path in (Path(__file__).parents[2] / "manifests" / "paper").glob("*.yaml")}
    assert found == set(CONDITIONS)


@pytest.mark.slow
def test_captions_by_a_network_fill_the_gaps_or_replace_what_was_there(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    model, *_ = make(tmp_path / "blip")
    photos = folder(4)
    (photos / "001.txt").unlink()
    captions = (
        f"{{model: blip-base, when: missing, beams: 1, max_tokens: 5, precision: fp32, weights: {model}}}"
    )
    path = manifest(captions=captions)
    ran = controlmill("run", path, "--stages", "ingest,caption,annotate")
    assert ran.returncode == 0, ran.stderr
    assert "caption   4 images to do; captions: 1 ok, 3 skipped" in ran.stdout
    sql = (
        "SELECT c.caption, source_caption, model_caption FROM captions c JOIN sources USING (image_id)"
        " ORDER BY uri"
    )
    rows = query(tmp_path, sql)
    assert [row[0] for row in rows if row[1]] == ["picture 0", "picture 2", "picture 3"] and all(
        row[2] is None for row in rows if row[1]
    )
    assert rows[1][1] == "" and rows[1][0] == rows[1][2] != ""
    before = query(tmp_path, "SELECT image_id, caption FROM pairs ORDER BY ALL")
    assert controlmill("catalog", "rebuild", "ws").returncode == 0
    assert query(tmp_path, "SELECT image_id, caption FROM pairs ORDER BY ALL") == before
    again = controlmill(
        "run", manifest(captions=captions.replace("missing", "always")), "--stages", "ingest,caption,annotate"
    )
    assert again.returncode == 0, again.stderr
    rows = query(tmp_path, sql)
    assert all(row[0] == row[2] for row in rows), "made for all of them, and in force"


def test_a_captioner_that_is_not_there_is_one_sentence(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path]
) -> None:
    folder(1)
    for captions, sentence in (
        ("{model: blipp}", "unknown captioner 'blipp'"),
        ("{}", "captions: blip-base needs config.json"),
    ):
        ran = controlmill("run", manifest(captions=captions), "--stages", "ingest,caption,annotate")
        assert ran.returncode == 1 and sentence in ran.stderr and ran.stderr.count("\n") == 1


def test_an_export_with_flips_has_the_twin_of_each_pair_whose_caption_allows_it(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    import io

    import numpy as np
    import pyarrow.parquet as pq

    photos = folder(3)
    (photos / "001.txt").write_text("a cat on the left")
    source = "[{kind: folder, path: photos}, {kind: scenes, count: 2, seed: 3}]"
    run = manifest(source=source, image="{resolution: 64, store: png}", conditions="{hough: {min_length: 5}}")
    assert controlmill("run", run, *STAGES).returncode in (0, 3)
    done = controlmill("export", "ws", "out", "--condition", "hough", "--to", "huggingface", "--flip")
    assert done.returncode == 0, done.stderr
    rows = {
        row["image_id"]: row
        for path in (tmp_path / "out").rglob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    plain = {name: row for name, row in rows.items() if not name.endswith("-mirrored")}
    assert len(plain) == 5 and len(rows) == 9
    pixels = lambda cell: np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
    for name, row in plain.items():
        twin = rows.get(f"{name}-mirrored")
        if row["text"] == "a cat on the left":
            assert twin is None
            continue
        assert twin is not None
        np.testing.assert_array_equal(pixels(twin["image"]), pixels(row["image"])[:, ::-1])
        differ = (pixels(twin["conditioning_image"]) != pixels(row["conditioning_image"])[:, ::-1]).mean()
        assert differ < 0.1, "a mirrored line may take another pixel of a tie"
        scene = ";" in row["text"] or "floor" in row["text"] or "carpet" in row["text"]
        sides = lambda text: (text.count("left"), text.count("right"))
        assert sides(twin["text"]) == (sides(row["text"])[::-1] if scene else sides(row["text"]))


@pytest.mark.slow
def test_an_image_that_gets_no_caption_fails_alone_and_can_be_tried_again(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    model, *_ = make(tmp_path / "blip")
    folder(2)
    run = manifest(captions=f"{{when: always, beams: 1, max_tokens: 5, precision: fp32, weights: {model}}}")
    assert controlmill("run", run, "--stages", "ingest").returncode == 0
    weights = model / "model.safetensors"
    weights.rename(tmp_path / "kept")
    # the fingerprint was computed from these bytes; no image can be captioned
    weights.write_bytes(b"no weights")
    ran = controlmill("run", run, "--stages", "caption")
    assert ran.returncode == 3 and "captions: 2 failed" in ran.stdout, ran.stdout + ran.stderr
    assert "caption: " in controlmill("status", "ws").stdout
    again = controlmill("run", run, "--stages", "caption", "--retry-failed")
    assert again.returncode == 3 and "2 images to do" in again.stdout
