"""Maps that come with the images lie on the canonical image exactly where they lay on the raw one."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from annotate.maps import RawMap
from pipeline import sources
from pipeline.dataset import formats, images, provided
from pipeline.manifest import FolderSource, Image, ListSource, Provided
from pipeline.sources import RawImage
from pipeline.storage import codec

SIZE = Image(resolution=64)
WIDE, TALL = 160, 96  # the canonical image is the centre 96 x 96 at 64 x 64
DIODE = "x right, y up, z to the viewer"


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., RawMap]:
    """The canonical map of a picture of 160 x 96 with one provided map beside it; an exception is raised."""

    def make(
        condition: str,
        data: bytes,
        name: str = "a_map",
        extra: dict[str, bytes] | None = None,
        **settings: Any,
    ) -> RawMap:
        folder = tmp_path / "images" / "train"
        folder.mkdir(parents=True)
        Pillow.new("RGB", (WIDE, TALL), "red").save(folder / "a.png")
        for each, content in ({f"{name}.bin": data} | (extra or {})).items():
            (tmp_path / "maps" / "train").mkdir(parents=True, exist_ok=True)
            (tmp_path / "maps" / "train" / each).write_bytes(content)
        one = Provided(path="../maps/{folder}/{stem}_map.bin", **settings)
        (raw,) = sources.listing(
            [FolderSource(kind="folder", path=str(tmp_path / "images"), provided={condition: one})], SIZE
        )
        made = provided.read(raw, [condition], SIZE)[condition].map
        if isinstance(made, Exception):
            raise made
        return made

    return make


def test_labels_of_ade20k_shift_by_one_and_zero_is_void(given: Callable[..., RawMap]) -> None:
    ids = np.zeros((TALL, WIDE), np.uint8)
    ids[:, 80:] = 13  # person in the PNGs of ADE20K
    made = given("seg_ade20k", png(ids), labels="ade20k_png")
    assert made.meta == {"label_space": "ade20k_150"} and made.array.shape == (64, 64)
    assert set(np.unique(made.array[:, :32])) == {255} and set(np.unique(made.array[:, 32:])) == {12}, (
        "the border lies in the middle"
    )


def test_labels_are_never_blended(given: Callable[..., RawMap]) -> None:
    ids = np.random.default_rng(0).choice(np.array([1, 6, 49, 150], np.uint8), (TALL, WIDE))
    assert set(np.unique(given("seg_ade20k", png(ids), labels="ade20k_png").array)) <= {0, 5, 48, 149}


def test_labels_of_coco_stuff_lose_their_gaps(given: Callable[..., RawMap]) -> None:
    from annotate.label_spaces import SPACES

    ids = np.full((TALL, WIDE), 181, np.uint8)  # the last of COCO-Stuff's 182
    ids[:, :80] = 255
    made = given("seg_coco", png(ids), labels="coco_stuff_png")
    assert made.meta == {"label_space": "coco_stuff_171"}
    assert SPACES["coco_stuff_171"].names[made.array[0, -1]] == "wood" and made.array[0, 0] == 255


def test_a_distance_becomes_inverse_depth_and_what_is_masked_is_far(given: Callable[..., RawMap]) -> None:
    metres = np.full((TALL, WIDE, 1), 4.0, np.float32)
    metres[:, 80:] = 2.0
    mask = np.ones((TALL, WIDE), np.float32)
    mask[:48] = 0
    made = given(
        "depth_large",
        npy(metres),
        depth="distance",
        mask="../maps/{folder}/{stem}_mask.npy",
        extra={"a_mask.npy": npy(mask)},
    )
    assert made.meta["unit"] == "1/m"
    np.testing.assert_allclose(made.array[40, [5, 60]], [0.25, 0.5], rtol=1e-4)
    assert not made.array[:32].any()


def test_normals_turn_into_our_axes_and_stay_unit(given: Callable[..., RawMap]) -> None:
    away = np.zeros((TALL, WIDE, 3), np.float32)
    away[..., 1], away[..., 2] = 3.0, -4.0  # down and towards the viewer, not yet of unit length
    made = given("normal", npy(away), normals="x right, y down, z away")
    np.testing.assert_allclose(made.array[10, 10], [0, -0.6, 0.8], atol=1e-6)


def test_keypoints_move_with_the_crop_and_those_outside_go(given: Callable[..., RawMap]) -> None:
    points = np.zeros((17, 3))
    # centre; hidden; outside of the crop
    points[0], points[5], points[6] = (80, 48, 2), (40, 12, 1), (2, 48, 2)
    made = given(
        "pose_openpifpaf", json.dumps([{"keypoints": points.ravel().tolist()}]).encode(), keypoints="coco"
    )
    person = made.array[0]
    np.testing.assert_allclose(
        person[0], [(80 - 32 + 0.5) * 64 / 96 - 0.5, (48 + 0.5) * 64 / 96 - 0.5, 1.0], rtol=1e-5
    )
    assert person[5, 2] == 0.5 and not person[6].any()


def test_a_map_lies_where_its_image_lies(tmp_path: Path) -> None:
    """The same random picture given as an image and as a map comes out the same, whatever the crop."""
    noise = np.random.default_rng(1).integers(0, 2, (16, 20), np.uint8).repeat(8, 0).repeat(8, 1) * 255
    Pillow.fromarray(noise).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "a.png", "edges": "a.png"}))
    source = ListSource(
        kind="list", path=str(tmp_path / "list.jsonl"), provided={"canny": Provided(column="edges")}
    )
    image = Image(resolution=128)
    (raw,) = sources.listing([source], image)
    Pillow.fromarray(noise).save(tmp_path / "a.png")
    made = provided.read(raw, ["canny"], image)["canny"].map
    seen = codec.decode(
        images.canonical((tmp_path / "a.png").read_bytes(), image.model_copy(update={"store": "png"})).encoded
    )
    assert isinstance(made, RawMap)
    np.testing.assert_array_equal(made.array, seen[..., 0])


@pytest.mark.parametrize(
    ("condition", "data", "settings", "sentence"),
    [
        (
            "seg_ade20k",
            png(np.zeros((TALL, TALL), np.uint8)),
            {"labels": "ade20k_png"},
            "don't cover the same",
        ),
        ("seg_ade20k", png(np.full((TALL, WIDE), 200, np.uint8)), {"labels": "ade20k_png"}, "has no id 200"),
        ("seg_ade20k", png(np.zeros((TALL, WIDE), np.uint8)), {}, "set `labels` to what the numbers mean"),
        (
            "seg_ade20k",
            png(np.zeros((TALL, WIDE), np.uint8)),
            {"labels": "coco_stuff_png"},
            "takes labels of ade20k_150",
        ),
        ("normal", png(np.zeros((TALL, WIDE), np.uint8)), {"normals": DIODE}, "3 channels are wanted"),
        ("normal", npy(np.ones((TALL, WIDE, 3))), {}, "set `normals` to what the numbers mean"),
        ("depth_large", npy(np.ones((TALL, WIDE))), {}, "set `depth` to what the numbers mean"),
        ("pose_openpose", b"[]", {}, "set `keypoints` to what the numbers mean"),
        ("depth_large", b"nothing", {"depth": "distance"}, "this file is neither"),
        ("hed", npy(np.full((TALL, WIDE), -1.0)), {}, "edges go from 0 to 255 or from 0 to 1"),
        (
            "pose_openpifpaf",
            json.dumps([{"keypoints": [9, 9, 2] * 25}] * 17).encode(),
            {"keypoints": "coco"},
            "a person of 25 keypoints .* set `keypoints: openpose`",
        ),
    ],
)
def test_a_map_that_does_not_fit_says_why(
    given: Callable[..., RawMap], condition: str, data: bytes, settings: Any, sentence: str
) -> None:
    with pytest.raises(Exception, match=sentence):
        given(condition, data, **settings)


def test_an_absent_map_is_that_images_failure_only(given: Callable[..., RawMap], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no map came with this image"):
        given("seg_ade20k", b"", name="other", labels="ade20k_png")


def test_a_turned_photograph_takes_a_map_that_stands_upright(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[formats.ORIENTATION] = 6  # lies on its side: 160 x 96 is shown as 96 x 160
    Pillow.new("RGB", (WIDE, TALL), "red").save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.png.map").write_bytes(png(np.ones((WIDE, TALL), np.uint8)))
    raw = RawImage(
        str(tmp_path / "a.jpg"),
        "",
        place={"root": str(tmp_path)},
        provided={
            "seg_ade20k": Provided(path="{stem}.png.map", labels="ade20k_png", frame="upright").model_dump()
        },
    )
    made = provided.read(raw, ["seg_ade20k"], SIZE)["seg_ade20k"].map
    assert isinstance(made, RawMap) and not made.array.any()


def _edge() -> np.ndarray:
    edge = np.zeros((TALL, WIDE), bool)
    edge[40:60] = True
    return edge


def _palette(ids: np.ndarray) -> bytes:
    picture, file = Pillow.fromarray(ids.astype(np.uint8)), io.BytesIO()
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("condition", ["canny", "hed"])
@pytest.mark.parametrize(
    "data",
    [
        png(_edge()),
        png(_edge() * np.uint8(255)),
        png(_edge() * np.uint16(60000)),
        npy(_edge() / 1.0),
        npy(_edge() * 255.0),
    ],
)
def test_edges_are_the_same_in_one_bit_eight_sixteen_and_as_fractions(
    given: Callable[..., RawMap], condition: str, data: bytes
) -> None:
    made = given(condition, data).array
    assert made.max() >= 233 and made.min() == 0
    assert 0.15 < (made > 0).mean() < 0.25


def test_edges_may_be_a_palette_of_two_but_faint_soft_edges_stay_faint(
    given: Callable[..., RawMap], tmp_path: Path
) -> None:
    assert given("canny", _palette(_edge())).array.max() == 255
    (tmp_path / "images").rename(tmp_path / "before")
    assert given("hed", png(_edge() * np.uint8(1))).array.max() == 1


@pytest.mark.parametrize("most", [255, 65535])
def test_black_in_a_picture_of_normals_is_invalid_and_sixteen_bits_are_kept(
    given: Callable[..., RawMap], most: int
) -> None:
    import cv2

    facing = np.array([0.6, 0.0, 0.8])
    picture = np.tile(np.rint((facing + 1) / 2 * most), (TALL, WIDE, 1)).astype(
        np.uint8 if most == 255 else np.uint16
    )
    picture[:, :80] = 0
    made = given("normal", cv2.imencode(".png", picture[..., ::-1])[1].tobytes(), normals=DIODE).array
    assert not made[:, :30].any()
    np.testing.assert_allclose(made[:, -1], np.tile(facing, (len(made), 1)), atol=2 / most)


def _listed(
    tmp_path: Path, row: dict[str, Any], images: Path, **settings: Any
) -> tuple[RawImage, RawMap | Exception]:
    images.mkdir()
    Pillow.new("RGB", (WIDE, TALL), "red").save(images / "a.png")
    rows = ({"image": str(images / "a.png")} | row, {"image": str(images / "b.png"), "people": PERSON})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = ListSource(
        kind="list", path=str(tmp_path / "list.jsonl"), provided={"pose_openpifpaf": Provided(**settings)}
    )
    raw, _ = sources.listing([source], SIZE)
    return raw, provided.read(raw, ["pose_openpifpaf"], SIZE)["pose_openpifpaf"].map


PERSON = [{"keypoints": [80, 48, 2] * 17}]


@pytest.mark.parametrize("cell", [PERSON, json.dumps(PERSON)])
def test_a_lists_cell_holds_numbers_or_their_json_and_the_catalog_keeps_neither(
    tmp_path: Path, cell: Any
) -> None:
    raw, made = _listed(
        tmp_path, {"people": cell, "year": 1999}, tmp_path / "images", column="people", keypoints="coco"
    )
    assert isinstance(made, RawMap) and made.array.shape == (1, 17, 3)
    assert raw.fields == {"year": 1999}


@pytest.mark.parametrize("row", [{}, {"people": None}])
def test_a_list_without_a_cell_has_no_map_of_that_image(tmp_path: Path, row: dict[str, Any]) -> None:
    _, made = _listed(tmp_path, row, tmp_path / "images", column="people")
    assert "its row has no 'people'" in str(made)


def test_a_map_beside_the_list_is_found_wherever_its_image_lies(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(PERSON))
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
    assert isinstance(_listed(tmp_path, {}, elsewhere, path="{stem}.json", keypoints="coco")[1], RawMap)
    assert "lies elsewhere" in str(
        _listed(tmp_path, {}, elsewhere.with_name("more"), path="{folder}/{stem}.json")[1]
    )


def test_a_pattern_with_an_unknown_name_is_an_error_of_the_manifest() -> None:
    with pytest.raises(ValueError, match="nothing else in braces"):
        Provided(path="maps/{stm}.png")
