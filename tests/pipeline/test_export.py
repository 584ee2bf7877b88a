"""Each exported dataset is loaded back by the library it is for, and compared with what the
workspace holds.
"""

import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from annotate import flips, maps
from annotate.annotator import Annotation
from annotate.drawing import draw
from annotate.maps import RawMap
from pipeline import MillError
from pipeline.catalog import Catalog
from pipeline.commands import export
from pipeline.dataset import layouts
from pipeline.dataset.layouts import WRITERS, ExportSample, Hint, Origin
from pipeline.dataset.maps import read_annotation
from pipeline.manifest import Split
from pipeline.stages import annotate
from pipeline.stages.ingest import split_of
from pipeline.storage import codec, shards
from pipeline.storage.workspace import TEMPORARY, Workspace
from tests.conftest import COMMAND, OPEN, Command

CAPTIONS = ["plain", 'a "quoted" \\ word', "two\nlines\r\nand a tab\t.", "☃ \u2028 日本 \U0001f600", "12", ""]
# of photographs of 160 x 120, of which the middle is taken
CROP = {
    "upright_width": 160, "upright_height": 120,
    "crop_left": 20, "crop_top": 0, "crop_width": 120, "crop_height": 120,
}  # fmt: skip
MANIFEST = """name: tiny
workspace: ws
source: {{kind: list, path: photos.jsonl}}
image: {{resolution: 64}}
split: {{validation: 0.2, test: 0.2, salt: {salt}}}
shard_images: 4
conditions:
  canny: {{low: [40, 90], high: [120, 200]}}
  hough: {{select: {{order_by: image_id, limit: 4}}}}
  cartoon: {{select: {{where: "false"}}}}
"""


@dataclass(frozen=True)
class Truth:
    """One pair's pieces, read from the workspace as training reads them."""

    image: bytes
    hint: np.ndarray
    stored: RawMap
    text: str
    split: str
    fingerprint: str


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory, ask: Command) -> Catalog:
    """Six photographs with awkward captions, through a real run; every split has some of them."""
    root = tmp_path_factory.mktemp("export")
    (root / "photos").mkdir()
    ids, lines = [], []
    for number, caption in enumerate(CAPTIONS):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = root / "photos" / f"{number:03d}.jpg"
        Image.fromarray(coarse).resize((160, 120), Image.Resampling.NEAREST).save(path, quality=95)
        lines.append(json.dumps({"image": str(path), "caption": caption}))
        ids.append(hashlib.sha256(path.read_bytes()).hexdigest())
    (root / "photos.jsonl").write_text("\n".join(lines))
    salt = next(
        salt
        for salt in itertools.count()
        if len({split_of(it, Split(validation=0.2, test=0.2, salt=salt)) for it in ids}) == 3
    )
    (root / "tiny.yaml").write_text(MANIFEST.format(salt=salt))
    ran = ask(root, "run", "tiny.yaml", "--stages", "ingest,annotate")
    assert ran.returncode == 0, ran.stderr
    return Catalog(Workspace(root / "ws"))


@pytest.fixture(scope="module")
def truth(catalog: Catalog) -> dict[str, dict[str, Truth]]:
    """condition -> image id -> what an export must hold."""
    found: dict[str, dict[str, Truth]] = {"canny": {}, "hough": {}}
    sql = (
        "SELECT condition, image_id, fingerprint, image_shard, map_shard, row, coalesce(caption, ''), split"
        " FROM pairs"
    )
    for condition, image_id, fingerprint, image_shard, map_shard, row, text, split in catalog.query(sql):
        image = shards.read_row(catalog.workspace.root / image_shard, row, ["image"])["image"]
        stored = read_annotation(catalog.workspace, map_shard, row, condition).map
        assert stored is not None
        found[condition][image_id] = Truth(image, maps.render(stored), stored, text, split, fingerprint)
    assert len(found["canny"]) == 6 and len(found["hough"]) == 4
    assert {it.text for it in found["canny"].values()} == set(CAPTIONS)
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`datasets`, offline and with every cache below the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def load(*address: str, **options: Any) -> Any:
        return datasets.load_dataset(*address, cache_dir=str(tmp_path / "cache"), **options)

    return load


def write(catalog: Catalog, dest: Path, to: str, *conditions: str, **options: Any) -> list[str]:
    """Exports; returns the lines it said."""
    told: list[str] = []
    export.export(catalog, dest, export.ExportOptions(to=to, conditions=conditions, **options), told.append)
    return told


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ids_in_order(catalog: Catalog, split: str, condition: str = "canny") -> list[str]:
    rows = catalog.query(
        "SELECT image_id FROM pairs WHERE condition = ? AND split = ? ORDER BY part, row", [condition, split]
    )
    return [image_id for (image_id,) in rows]


# -- huggingface ---------------------------------------------------------------------------------------------


def test_a_hugging_face_export_loads_with_pictures_texts_splits_and_what_made_them(
    catalog: Catalog, truth: dict[str, dict[str, Truth]], hub: Any, tmp_path: Path
) -> None:
    write(catalog, tmp_path / "out", "huggingface", "canny")
    loaded = hub(str(tmp_path / "out"))
    assert set(loaded) == {"train", "validation", "test"}
    assert hub("parquet", data_dir=str(tmp_path / "out")).num_rows == loaded.num_rows
    for split, rows in loaded.items():
        assert (
            type(rows.features["image"]).__name__
            == type(rows.features["conditioning_image"]).__name__
            == "Image"
        )
        assert rows["image_id"][:] == ids_in_order(catalog, split)
        for row in rows:
            known = truth["canny"][row["image_id"]]
            assert (np.asarray(row["image"]) == pixels(known.image)).all()
            assert (
                row["conditioning_image"].mode == "RGB"
                and (np.asarray(row["conditioning_image"]) == known.hint).all()
            )
            assert (row["text"], split, row["fingerprint"]) == (known.text, known.split, known.fingerprint)
            assert (row["detector"], row["protocol"], row["width"], row["height"]) == (
                "opencv-canny",
                "cn10",
                64,
                64,
            )
            assert row["licence"] and set(json.loads(row["draws"])) == {"low", "high"}
            assert {name: row[name] for name in CROP} == CROP
    assert sum(loaded.num_rows.values()) == 6


def test_the_canonical_image_is_exported_byte_for_byte(
    catalog: Catalog, truth: dict[str, dict[str, Truth]], hub: Any, tmp_path: Path
) -> None:
    import datasets

    write(catalog, tmp_path / "out", "huggingface", "canny", split="train")
    rows = hub(str(tmp_path / "out"))["train"].cast_column("image", datasets.Image(decode=False))
    assert len(rows) and all(row["image"]["bytes"] == truth["canny"][row["image_id"]].image for row in rows)


def test_several_conditions_are_columns_of_the_images_that_have_all_with_raw_maps_that_decode_as_stored(
    catalog: Catalog, truth: dict[str, dict[str, Truth]], hub: Any, tmp_path: Path
) -> None:
    told = write(catalog, tmp_path / "out", "huggingface", "canny", "hough", raw=True)
    assert told[0] == "pairs: canny 6, hough 4; 4 images have all of them"
    rows = [row for part in hub(str(tmp_path / "out")).values() for row in part]
    assert {row["image_id"] for row in rows} == set(truth["hough"])
    for row, name in itertools.product(rows, ("canny", "hough")):
        known = truth[name][row["image_id"]]
        assert (np.asarray(row[f"conditioning_image_{name}"]) == known.hint).all()
        assert row[f"fingerprint_{name}"] == known.fingerprint
        stored = maps.decode(row[f"raw_kind_{name}"], row[f"raw_{name}"], json.loads(row[f"raw_meta_{name}"]))
        assert np.array_equal(stored.array, known.stored.array) and stored.meta == known.stored.meta


# -- webdataset ----------------------------------------------------------------------------------------------


def test_a_webdataset_export_holds_the_files_of_each_sample_side_by_side(
    catalog: Catalog, truth: dict[str, dict[str, Truth]], tmp_path: Path
) -> None:
    write(catalog, tmp_path / "out", "webdataset", "canny", "hough", raw=True)
    seen = []
    for path in sorted((tmp_path / "out").rglob("*.tar")):
        assert path.name == "000000.tar"
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            names = [member.name for member in members]
            assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {
                (0, 0, 0, "")
            }
            for start in range(0, len(names), 7):
                image_id = names[start].partition(".")[0]
                suffixes = ["jpg", "canny.png", "canny.raw.png", "hough.png", "hough.raw.npy", "txt", "json"]
                assert names[start : start + 7] == [f"{image_id}.{suffix}" for suffix in suffixes]
                data = {
                    name: file.read() for name in suffixes if (file := tar.extractfile(f"{image_id}.{name}"))
                }
                canny, hough = truth["canny"][image_id], truth["hough"][image_id]
                told = json.loads(data["json"])
                assert data["jpg"] == canny.image and data["txt"].decode() == canny.text
                assert {name: told[name] for name in CROP} == CROP
                assert (pixels(data["canny.png"]) == canny.hint).all() and (
                    pixels(data["hough.png"]) == hough.hint
                ).all()
                lines = told["conditions"]["hough"]
                assert np.array_equal(
                    maps.decode(lines["kind"], data["hough.raw.npy"], lines["meta"]).array, hough.stored.array
                )
                assert (
                    told["conditions"]["canny"]["fingerprint"] == canny.fingerprint
                    and told["split"] == path.parent.name == canny.split
                )
                assert set(told["conditions"]["canny"]["draws"]) == {"low", "high"} and lines["measures"][
                    "n_lines"
                ] == len(hough.stored.array)
                assert (
                    Path(told["uri"]).is_file()
                    and hashlib.sha256(Path(told["uri"]).read_bytes()).hexdigest() == image_id
                )
                seen.append(image_id)
    assert sorted(seen) == sorted(truth["hough"])


def test_datasets_loads_a_webdataset_export(
    catalog: Catalog, truth: dict[str, dict[str, Truth]], hub: Any, tmp_path: Path
) -> None:
    write(catalog, tmp_path / "out", "webdataset", "canny", raw=True)
    loaded = hub("webdataset", data_dir=str(tmp_path / "out"))
    assert hub(str(tmp_path / "out")).num_rows == loaded.num_rows
    for split, rows in loaded.items():
        assert rows["__key__"][:] == ids_in_order(catalog, split)
        for row in rows:
            known = truth["canny"][row["__key__"]]
            assert (np.asarray(row["jpg"]) == pixels(known.image)).all() and (
                np.asarray(row["canny.png"]) == known.hint
            ).all()
            assert (
                row["txt"] == known.text and row["json"]["conditions"]["canny"]["detector"] == "opencv-canny"
            )
    assert sum(loaded.num_rows.values()) == 6


def test_the_webdataset_package_loads_a_webdataset_export(
    catalog: Catalog, truth: dict[str, dict[str, Truth]], tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")
    write(catalog, tmp_path / "out", "webdataset", "canny", "hough", split="train", raw=True)
    samples = list(
        webdataset.WebDataset(str(tmp_path / "out" / "train" / "000000.tar"), shardshuffle=False).decode(
            "rgb8"
        )
    )
    assert {it["__key__"] for it in samples} == {
        image_id for image_id, it in truth["hough"].items() if it.split == "train"
    }
    for it in samples:
        canny, hough = truth["canny"][it["__key__"]], truth["hough"][it["__key__"]]
        assert (
            (it["jpg"] == pixels(canny.image)).all()
            and (it["canny.png"] == canny.hint).all()
            and it["txt"] == canny.text
        )
        assert np.array_equal(it["hough.raw.npy"], hough.stored.array)


# -- diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [(), ("imagefolder",)], ids=["by its address", "as an image folder"])
def test_a_diffusers_export_has_the_three_columns_that_its_controlnet_trainer_reads(
    catalog: Catalog, truth: dict[str, dict[str, Truth]], hub: Any, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    write(catalog, tmp_path / "out", "diffusers", "hough")
    loaded = hub(*asked, data_dir=str(tmp_path / "out")) if asked else hub(str(tmp_path / "out"))
    found = {hashlib.sha256(known.image).digest(): known for known in truth["hough"].values()}
    assert loaded.num_rows == {
        split: len(ids) for split in loaded if (ids := ids_in_order(catalog, split, "hough"))
    }
    assert sum(loaded.num_rows.values()) == 4
    for split, rows in loaded.items():
        # the trainer takes the first three by their place
        assert rows.column_names == ["image", "text", "conditioning_image", *CROP]
        assert all({name: row[name] for name in CROP} == CROP for row in rows)
        for row in rows:
            known = found[hashlib.sha256(Path(row["image"].filename).read_bytes()).digest()]
            assert (np.asarray(row["image"]) == pixels(known.image)).all()
            assert (np.asarray(row["conditioning_image"]) == known.hint).all() and row[
                "conditioning_image"
            ].mode == "RGB"
            assert (row["text"], split) == (known.text, known.split)


# -- all of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", WRITERS)
def test_the_same_pairs_give_the_same_bytes(catalog: Catalog, tmp_path: Path, to: str) -> None:
    write(catalog, tmp_path / "one", to, "canny")
    write(catalog, tmp_path / "two", to, "canny")
    assert files(tmp_path / "one") and files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("limit", ["samples", "bytes"])
def test_a_file_that_would_grow_too_large_is_followed_by_another(
    catalog: Catalog, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    # one sample is more than 10 bytes
    monkeypatch.setattr(layouts, *(("MOST_SAMPLES", 1) if limit == "samples" else ("MOST_BYTES", 10)))
    write(catalog, tmp_path / "parquet", "huggingface", "canny")
    write(catalog, tmp_path / "tars", "webdataset", "canny")
    for split in export.SPLITS:
        ids = ids_in_order(catalog, split)
        assert hub(str(tmp_path / "parquet"), split=split)["image_id"][:] == ids
        assert hub(str(tmp_path / "tars"), split=split)["__key__"][:] == ids
        names = [f"data/{split}-{number:05d}-of-{len(ids):05d}.parquet" for number in range(len(ids))]
        assert [name for name in files(tmp_path / "parquet") if split in name] == names
        assert [name for name in files(tmp_path / "tars") if split in name] == [
            f"{split}/{number:06d}.tar" for number in range(len(ids))
        ]


def test_one_split_is_exported_alone_and_keeps_its_name(catalog: Catalog, hub: Any, tmp_path: Path) -> None:
    for to in WRITERS:
        write(catalog, tmp_path / to, to, "canny", split="test")
        assert hub(str(tmp_path / to)).num_rows == {"test": len(ids_in_order(catalog, "test"))}


def options(protocol: str, seed: int = 0) -> export.ExportOptions:
    return export.ExportOptions(to="huggingface", conditions=("hed",), protocol=protocol, seed=seed)


def test_three_of_four_soft_edges_are_exported_in_steps_and_each_says_whether_it_is() -> None:
    soft = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64)
    raw = Annotation("ok", map=RawMap("soft_edges", soft), random_params={"x": 1})
    for seed in (0, 1):
        steps = 0
        for number in range(80):
            hint = export._hint(f"id {number}", raw, b"", options("cn11", seed))
            safe = hint.random_params["safe_steps"]
            assert hint.random_params == {"x": 1, "safe_steps": safe}
            assert len(np.unique(pixels(hint.png))) == (3 if safe else 256)
            assert safe == draw("soft_edges", "cn11", seed, f"id {number}")["safe_steps"]
            steps += safe
        assert 40 < steps < 80
    assert export._hint("id", raw, b"", options("cn10")).random_params == {"x": 1}


def test_the_hint_is_drawn_by_the_protocol_that_was_asked_for() -> None:
    person = np.zeros((1, 18, 3), np.float32)
    person[0, :, :2] = np.random.default_rng(0).uniform(8, 56, (18, 2))
    person[0, :, 2] = 1
    raw = RawMap("people", person, {"size": [64, 64], "layout": "openpose_18"})
    row = annotate._row(Annotation("ok", map=raw)) | {"image_id": "a"}
    drawn = {
        protocol: pixels(export._hint("a", *export._stored(row, "pose_openpose", "a"), options(protocol)).png)
        for protocol in ("cn10", "cn11")
    }
    assert all((drawn[protocol] == maps.render(raw, protocol=protocol)).all() for protocol in drawn)
    assert (drawn["cn10"] != drawn["cn11"]).any()


@pytest.fixture
def lines() -> tuple[ExportSample, Origin]:
    """One PNG picture with lines, made by hand."""
    png, npy = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    np.save(npy, np.zeros((1, 5), np.float32))
    hint = Hint(png.getvalue(), npy.getvalue(), "lines", {"size": [4, 4]}, {}, {})
    sample = ExportSample(
        image_id="ab",
        image=png.getvalue(),
        width=4,
        height=4,
        text="2024-01-31",
        uri="x",
        hints={"hough": hint},
    )
    return sample, Origin("hough", "opencv-lsd", "0", "Apache-2.0", "cn10")


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("condition", "axes"), [("depth_large", 2), ("normal", 3)])
def test_raw_maps_go_out_as_files_that_other_programs_read(condition: str, axes: int, mirror: bool) -> None:
    array = np.random.default_rng(0).uniform(-0.9, 0.9, (12, 10, 3)).astype(np.float32)
    raw = maps.depth_map(array[..., 0]) if axes == 2 else RawMap("normals", array)
    picture = {"image_id": "a", "uri": "a.png", "width": 10, "height": 12}
    picture["image"] = codec.encode(np.zeros((12, 10, 3), np.uint8), "png")
    row = dict.fromkeys(shards.MAPS.names) | {
        "image_id": "a", "status": "ok", "reason": "", "measures": {}, "draws": "{}",
        "meta": json.dumps(raw.meta), "map": maps.encode(raw),
    }  # fmt: skip
    pictures, stored = pa.Table.from_pylist([picture]), pa.Table.from_pylist([row], schema=shards.MAPS)

    def sample(with_raw: bool) -> Hint:
        options = export.ExportOptions(to="webdataset", conditions=(condition,), raw=with_raw)
        made = export._sample(
            pictures, {condition: stored}, {0: [""]}, {0: layouts.Crop()}, options, 0, 0, mirror
        )
        assert made is not None
        return made.hints[condition]

    assert sample(False).raw == b""
    hint = sample(True)
    assert layouts.suffix_of(hint.raw) == "png"
    code = cv2.imdecode(np.frombuffer(hint.raw, np.uint8), cv2.IMREAD_UNCHANGED)
    assert code.dtype == np.uint16 and code.shape == array.shape[:axes]
    right = flips.flip(raw) if mirror else raw
    assert np.allclose(maps.decode(raw.kind, hint.raw, hint.meta).array, right.array, atol=1e-4)


def test_the_crop_of_a_mirror_image_is_mirrored() -> None:
    crop = layouts.Crop(100, 80, 5, 0, 80, 80)
    assert crop.mirrored() == layouts.Crop(100, 80, 15, 0, 80, 80) and crop.mirrored().mirrored() == crop
    assert layouts.Crop().mirrored() == layouts.Crop(), "of an image that an earlier version stored"


def test_pictures_and_maps_are_named_by_what_they_are(
    lines: tuple[ExportSample, Origin], tmp_path: Path
) -> None:
    sample, origin = lines
    layouts.write_folder(tmp_path, "train", iter([replace(sample, text="a line")]), [origin], False)
    layouts.write_tars(tmp_path, "test", iter([sample]), [origin], True)
    assert list(files(tmp_path / "train")) == [
        "conditioning_images/ab.png",
        "images/ab.png",
        "metadata.jsonl",
    ]
    with tarfile.open(tmp_path / "test" / "000000.tar") as tar:
        assert tar.getnames() == ["ab.png", "ab.hough.png", "ab.hough.raw.npy", "ab.txt", "ab.json"]


def test_captions_that_read_as_dates_stay_text_or_are_refused(
    lines: tuple[ExportSample, Origin], hub: Any, tmp_path: Path
) -> None:
    sample, origin = lines
    layouts.write_parquet(tmp_path, "train", iter([sample]), [origin], False)
    assert hub(str(tmp_path))["train"]["text"][:] == ["2024-01-31"]
    with pytest.raises(MillError, match="as dates: use --to huggingface"):
        layouts.write_folder(tmp_path, "test", iter([sample]), [origin], False)


# -- what can go wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "coco"}, "--to: 'coco' is unknown; set one of huggingface, webdataset, diffusers."),
        ({"to": "webdatset"}, "did you mean 'webdataset'?"),
        ({"conditions": ("cany",)}, "--condition: unknown condition 'cany' (did you mean 'canny'?)"),
        ({"conditions": ("cartoon",)}, "--condition cartoon has no pairs: `controlmill status"),
        ({"conditions": ("hed",)}, "add hed to the manifest's conditions"),
        ({"split": "dev"}, "--split: 'dev' is unknown"),
        ({"protocol": "cn12"}, "--protocol: 'cn12' is unknown"),
        ({"to": "diffusers", "conditions": ("canny", "hough")}, "--to diffusers holds one condition, not 2"),
        ({"to": "diffusers", "raw": True}, "no place for --raw"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_do(
    catalog: Catalog, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(MillError) as caught:
        export.export(
            catalog,
            tmp_path / "out",
            export.ExportOptions(**({"to": "webdataset", "conditions": ("canny",)} | options)),
            print,
        )
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_never_touched(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(MillError, match="is there already"):
            write(catalog, tmp_path / name, "webdataset", "canny")
    with pytest.raises(MillError, match="can't be made"):
        write(catalog, tmp_path / "file" / "below", "webdataset", "canny")
    assert files(tmp_path) == {"full/mine.txt": b"mine", "file": b"mine"}
    (tmp_path / "empty").mkdir()
    write(catalog, tmp_path / "empty", "webdataset", "canny")
    assert (tmp_path / "empty" / "train" / "000000.tar").is_file()


@pytest.mark.parametrize("name", ["", "shards/mine", "report/mine"])
def test_an_export_stays_out_of_what_the_workspace_writes(catalog: Catalog, name: str) -> None:
    before = files(catalog.workspace.root)
    with pytest.raises(MillError, match="is there already" if not name else "belongs to the workspace"):
        write(catalog, catalog.workspace.root / name, "webdataset", "canny")
    assert files(catalog.workspace.root) == before


def test_a_killed_export_leaves_nothing_that_looks_whole_and_the_next_one_clears_it_away(
    catalog: Catalog, tmp_path: Path
) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from pipeline.commands import export
from pipeline.catalog import Catalog
from pipeline.storage.workspace import Workspace
export.Progress.add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # after the first samples
catalog = Catalog(Workspace(Path(sys.argv[1])))
export.export(catalog, Path("out"), export.ExportOptions(to="diffusers", conditions=("canny",)), print)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code, str(catalog.workspace.root)],
        cwd=tmp_path,
        env=OPEN | {"PYTHONPATH": str(Path.cwd())},
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert any(name.startswith(f"{TEMPORARY}out/train/") for name in files(tmp_path)), (
        "it was killed in the middle"
    )
    write(catalog, tmp_path / "out", "webdataset", "canny")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {Path(name).name for name in files(tmp_path / "out")} == {"000000.tar"}


def test_a_broken_shard_stops_the_export_with_one_sentence_and_leaves_nothing(
    catalog: Catalog, tmp_path: Path
) -> None:
    ((shard,),) = catalog.query(
        "SELECT shard FROM shards WHERE kind = 'maps' AND name = 'canny' AND part = 1"
    )
    path = catalog.workspace.root / shard
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    try:
        with pytest.raises(MillError, match="is broken"):
            write(catalog, tmp_path / "out", "huggingface", "canny")
    finally:
        path.write_bytes(whole)
    assert not list(tmp_path.iterdir())


def test_two_exports_to_one_place_do_not_mix(catalog: Catalog, tmp_path: Path) -> None:
    other = tmp_path / f"{TEMPORARY}out"
    other.mkdir()
    (other / "half").write_text("of the other")
    descriptor = os.open(other, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(MillError, match="Another export is writing"):
            write(catalog, tmp_path / "out", "webdataset", "canny")
    finally:
        os.close(descriptor)
    assert files(tmp_path) == {f"{TEMPORARY}out/half": b"of the other"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 16 KiB: less than one picture and its hint."""
    root = tmp_path / "disk"
    root.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(root)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if made.returncode:
        pytest.skip(f"a small disk can't be mounted here: {made.stderr.strip()}")
    yield root
    subprocess.run(["umount", "--lazy", str(root)], check=True)


@pytest.mark.parametrize("to", WRITERS)
def test_a_full_disk_costs_one_sentence_and_leaves_nothing(
    catalog: Catalog, small_disk: Path, to: str
) -> None:
    with pytest.raises(MillError, match="The disk is full") as caught:
        write(catalog, small_disk / "out", to, "canny")
    assert os.strerror(errno.ENOSPC) in str(caught.value.__cause__)
    assert not list(small_disk.iterdir())


def test_the_command_says_what_it_wrote_and_a_mistake_is_status_1(catalog: Catalog, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [*COMMAND, "export", str(catalog.workspace.root), *arguments]
        return subprocess.run(words, cwd=tmp_path, env=OPEN, capture_output=True, text=True)

    good = command(
        "out/canny",
        "--condition",
        "canny",
        "--condition",
        "hough",
        "--to",
        "webdataset",
        "--split",
        "all",
        "--protocol",
        "cn11",
        "--raw",
    )
    assert good.returncode == 0 and good.stderr == ""
    assert (
        "4 images have all of them" in good.stdout and "out/canny: 4 images with canny, hough" in good.stdout
    )
    with tarfile.open(next((tmp_path / "out" / "canny").rglob("*.tar"))) as tar:
        told, *_ = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".json")]
        assert told is not None and json.load(told)["conditions"]["canny"]["protocol"] == "cn11"
    again = command("out/canny", "--condition", "canny", "--to", "webdataset")
    assert again.returncode == 1 and again.stdout == ""
    assert (
        again.stderr.startswith("controlmill: ")
        and again.stderr.count("\n") == 1
        and "is there already" in again.stderr
    )
