"""Keypoints of every layout, canvas and unit, and one JSON of COCO's kind for a whole data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from annotate.label_spaces import SPACES
from annotate.maps import RawMap
from annotate.skeletons import SKELETONS
from pipeline.dataset import provided
from pipeline.dataset.provided import coco
from pipeline.manifest import Image, Provided
from pipeline.sources import RawImage
from tests.provided_maps import read_map

TALL, WIDE = 64, 96  # the canonical image is the middle, 64 x 64
COCO, OPENPOSE = SKELETONS["coco_17"].names, SKELETONS["openpose_18"].names
BODY_25 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
    "left_wrist", "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel",
    "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip
AT = {name: (30 + 1.5 * i, 4 + 2.5 * i) for i, name in enumerate(COCO)}  # x, y on the photograph
AT["neck"] = tuple(np.mean([AT["left_shoulder"], AT["right_shoulder"]], axis=0))


def read(folder: Path, condition: str, given: Any, name: str = "a.json", **settings: Any) -> RawMap:
    """What is wrong with the map is raised."""
    Pillow.new("RGB", (WIDE, TALL), "red").save(folder / "a.png")
    (folder / name).write_text(given if isinstance(given, str) else json.dumps(given))
    stored = Provided(**{"path": "{stem}.json"} | settings).model_dump()
    raw = RawImage(str(folder / "a.png"), "", place={"root": str(folder)}, provided={condition: stored})
    made = provided.read(raw, [condition], Image(resolution=64))[condition].map
    if isinstance(made, Exception):
        raise made
    return made


def numbers(names: tuple[str, ...], scale: Any = (1, 1), sure: float = 0.9) -> list[float]:
    """x, y, confidence of each; what no layout of ours has lies far below."""
    points = [AT.get(name, (47.5, 60.5)) for name in names]
    return [float(number) for x, y in points for number in (x * scale[0], y * scale[1], sure)]


def check(raw: RawMap, names: tuple[str, ...]) -> None:
    assert raw.array.shape == (1, len(names), 3)
    for name, point in zip(names, raw.array[0], strict=True):
        np.testing.assert_allclose(point[:2], (AT[name][0] - 16, AT[name][1]), atol=0.02, err_msg=name)


@pytest.mark.parametrize(("coding", "names"), [("coco", COCO), ("openpose", OPENPOSE), ("openpose", BODY_25)])
@pytest.mark.parametrize(("condition", "wanted"), [("pose_openpifpaf", COCO), ("pose_openpose", OPENPOSE)])
def test_every_layout_of_bodies_becomes_that_of_the_condition(
    tmp_path: Path, coding: str, names: tuple[str, ...], condition: str, wanted: tuple[str, ...]
) -> None:
    key = "keypoints" if coding == "coco" else "pose_keypoints_2d"
    raw = read(tmp_path, condition, {"people": [{key: numbers(names)}]}, keypoints=coding)
    check(raw, wanted)
    assert raw.array[0, 0, 2] == pytest.approx(0.9), "a score is no flag"
    assert raw.meta.get("note") == (
        f"feet dropped: {condition} draws bodies only" if len(names) == 25 else None
    )


def test_keypoints_are_squashed_with_their_image(tmp_path: Path) -> None:
    given = {"people": [{"keypoints": numbers(COCO)}]}
    made = read_map(tmp_path, "pose_openpifpaf", given, fit="squash", keypoints="coco").array[0]
    for name, point in zip(COCO, made, strict=True):
        x, y = AT[name]
        np.testing.assert_allclose(point[:2], ((x + 0.5) * 64 / WIDE - 0.5, y), atol=0.02, err_msg=name)


def test_a_neck_is_missing_where_a_shoulder_is(tmp_path: Path) -> None:
    person = np.reshape(numbers(COCO), (17, 3))
    person[5] = 0
    raw = read(tmp_path, "pose_openpose", [{"keypoints": person.ravel().tolist()}], keypoints="coco")
    assert not raw.array[0, OPENPOSE.index("neck")].any() and raw.array[0, 0].any()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("canvas", "scale"),
    [
        ((64, 96), (1, 1)),
        ((128, 192), (2, 2)),
        ((512, 768), (8, 8)),
        ((64, 96), (1 / 96, 1 / 64)),  # as some nodes write them: fractions, and a canvas beside
    ],
)
def test_an_openpose_canvas_is_honoured(
    tmp_path: Path, canvas: tuple[int, int], scale: Any, listed: bool
) -> None:
    given: Any = {
        "people": [{"pose_keypoints_2d": numbers(OPENPOSE, scale)}],
        "canvas_height": canvas[0],
        "canvas_width": canvas[1],
    }
    raw = read(tmp_path, "pose_openpose", [given] if listed else given, keypoints="openpose")
    np.testing.assert_allclose(raw.array[0, 0, :2], (AT["nose"][0] - 16, AT["nose"][1]), atol=0.5)
    np.testing.assert_allclose(raw.array[0, 13, :2], np.subtract(AT["left_ankle"], (16, 0)), atol=0.5)


FRACTIONS = (1 / WIDE, 1 / TALL)


@pytest.mark.parametrize("settings", [{}, {"coordinates": "fractions"}])
def test_fractions_are_known_where_they_can_be_nothing_else(tmp_path: Path, settings: Any) -> None:
    given = {"people": [{"pose_keypoints_2d": numbers(OPENPOSE, FRACTIONS)}]}
    raw = read(tmp_path, "pose_openpose", given, keypoints="openpose", **settings)
    np.testing.assert_allclose(raw.array[0, 13, :2], np.subtract(AT["left_ankle"], (16, 0)), atol=0.51)


def test_what_is_said_to_be_pixels_is(tmp_path: Path) -> None:
    given = {"people": [{"pose_keypoints_2d": [20.5, 0.5, 1] * 18}]}
    raw = read(tmp_path, "pose_openpose", given, keypoints="openpose", coordinates="pixels")
    np.testing.assert_allclose(raw.array[0, 0, :2], (4.5, 0.5))


@pytest.mark.parametrize(
    ("given", "settings", "sentence"),
    [
        (
            {"people": [{"pose_keypoints_2d": [0.5, 0.5, 1] + [0.0] * 51}]},
            {},
            r"go to 0.5 at most, so they may be pixels or fractions: set `provided\.pose_openpose\.coord",
        ),
        ({"people": [{"pose_keypoints_2d": [1.5, 0.5, 1] * 18}]}, {}, "go to 1.5 at most"),
        (
            {"people": [{"pose_keypoints_2d": [15, 5, 1] * 18}]},
            {"coordinates": "fractions"},
            "`coordinates: fractions`, and one is 15",
        ),
        (
            {"people": [{"pose_keypoints_2d": [15, 5, 1] * 18}], "canvas_width": 512, "canvas_height": 512},
            {},
            "a canvas of 512×512 pixels, the image has 96×64: they don't cover the same",
        ),
        (
            {"people": [{"pose_keypoints_2d": [150, 50, 1] * 18}]},
            {},
            "100% of the keypoints lie outside of the image of 96×64 pixels: their JSON needs `canvas_width`",
        ),
        ('{"people": [{"pose_keypoints_2d": [NaN, 5, 1]}]}', {}, "a person of 1 keypoints"),
        (
            json.dumps({"people": [{"pose_keypoints_2d": [15, 5, 1] * 17 + [float("nan"), 5, 1]}]}),
            {},
            "a keypoint is not a finite number",
        ),
        (
            {"people": [{"pose_keypoints_2d": [15, 5, 1] * 17}]},
            {},
            "a person of 17 keypoints .* has 18 or 25: set `keypoints: coco` if",
        ),
        ([{"bbox": [1, 2, 3, 4]}], {}, "none of the 1 people has `keypoints` or `pose_keypoints_2d`"),
        ({"version": 1, "hands": []}, {}, "`people` or `annotations`, and the JSON has version, hands"),
        ([{"people": []}, {"people": []}], {}, "keypoints of 2 frames where one image is wanted"),
    ],
)
def test_keypoints_that_can_not_be_placed_are_refused(
    tmp_path: Path, given: Any, settings: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, "pose_openpose", given, keypoints="openpose", **settings)


def test_hands_and_faces_that_no_drawing_has_are_told(tmp_path: Path) -> None:
    body = {"pose_keypoints_2d": numbers(OPENPOSE)}
    none: dict[str, Any] = {"hand_left_keypoints_2d": [0.0] * 63, "face_keypoints_2d": None}
    assert "note" not in read(tmp_path, "pose_openpose", {"people": [body | none]}, keypoints="openpose").meta
    more = none | {"hand_right_keypoints_2d": [20, 30, 1] * 21, "face_keypoints_2d": [20, 30, 1] * 70}
    raw = read(tmp_path, "pose_openpose", {"people": [body | more]}, keypoints="openpose")
    assert (
        raw.meta["note"] == "hands and face dropped: pose_openpose draws bodies only" and len(raw.array) == 1
    )
    whole = {"keypoints": numbers(COCO, sure=2) + [40, 30, 1] * 116}
    raw = read(tmp_path, "pose_openpifpaf", [whole], keypoints="coco")
    check(raw, COCO)
    assert raw.meta["note"] == "hands, face and feet dropped: pose_openpifpaf draws bodies only"


# -- one JSON for a whole data set ---------------------------------------------------------------------------


def data_set(annotations: list[dict[str, Any]], names: list[str], **image: Any) -> dict[str, Any]:
    images = [
        {"id": 7, "file_name": "a.png", "height": TALL, "width": WIDE} | image,
        {"id": 8, "file_name": "b.png", "height": 10, "width": 10},
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    annotations = [{"id": number, "image_id": 7} | one for number, one in enumerate(annotations)]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_people_come_from_the_json_of_a_data_set(tmp_path: Path) -> None:
    points = numbers(COCO, (2, 2), sure=2)
    people = [
        {"keypoints": points, "num_keypoints": 17},
        {"keypoints": [0] * 51, "num_keypoints": 0},
        {"image_id": 8, "keypoints": numbers(COCO), "num_keypoints": 17},
    ]
    whole = data_set(people, ["person"], height=2 * TALL, width=2 * WIDE)
    raw = read(tmp_path, "pose_openpifpaf", whole, "all.json", path="all.json", keypoints="coco")
    assert raw.array.shape == (1, 17, 3) and raw.array[0, 0, 2] == 1
    np.testing.assert_allclose(raw.array[0, 16, :2], np.subtract(AT["right_ankle"], (16, 0)), atol=0.5)
    before = coco._load.cache_info().misses
    read(tmp_path, "pose_openpifpaf", whole, path="all.json", keypoints="coco")
    assert coco._load.cache_info().misses == before, "read once a process"


@pytest.mark.parametrize(
    ("whole", "sentence"),
    [
        (data_set([], [], file_name="c.png"), "all.json has no image whose `file_name` ends its address"),
        (data_set([], [], file_name="val/a.png"), "all.json has no image whose `file_name` ends its"),
        ({"images": [{"file_name": "a.png", "id": n} for n in (1, 2)], "annotations": []}, "has 2 images"),
        ({"people": []}, "is no JSON of COCO's kind, with `images` and `annotations`"),
        ("[", "is no JSON of COCO's kind"),
    ],
)
def test_an_image_that_a_data_sets_json_does_not_name_is_told(
    tmp_path: Path, whole: Any, sentence: str
) -> None:
    with pytest.raises(Exception, match=sentence):
        read(tmp_path, "pose_openpose", whole, "all.json", path="all.json", keypoints="coco")


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((TALL, WIDE), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("form", ["polygon", "runs", "compressed"])
def test_instances_become_labels_and_the_smaller_lie_above(tmp_path: Path, form: str) -> None:
    def segmentation(mask: np.ndarray) -> Any:
        if form == "polygon":
            (top, left), (bottom, right) = np.argwhere(mask)[0], np.argwhere(mask)[-1] + 1
            return [[float(number) for number in (left, top, right, top, right, bottom, left, bottom)]]
        if form == "compressed":
            encoded = pytest.importorskip("pycocotools.mask").encode(np.asfortranarray(mask.astype(np.uint8)))
            return {"size": encoded["size"], "counts": encoded["counts"].decode()}
        flat = np.concatenate([[False], mask.T.ravel()])
        runs = np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1]), mask.size])
        return {"size": [TALL, WIDE], "counts": runs.tolist()}

    small, large = rectangle(20, 40, 30, 60), rectangle(10, 20, 50, 90)
    annotations = [
        {"category_id": 2, "area": small.sum().item(), "segmentation": segmentation(small)},
        {"category_id": 1, "area": large.sum().item(), "segmentation": segmentation(large), "iscrowd": 1},
    ]
    whole = data_set(annotations, ["bus", "person"])
    raw = read(tmp_path, "seg_coco", whole, "i.json", path="i.json", labels="coco_stuff_171")
    wanted = np.full((TALL, WIDE), 255)
    wanted[large], wanted[small] = 5, 0
    assert (raw.array != wanted[:, 16:80]).mean() < 0.03 * (form == "polygon") + 1e-9
    with pytest.raises(ValueError, match="seg_coco takes labels of coco_stuff_171"):
        read(tmp_path, "seg_coco", whole, path="i.json", labels="ade20k_150")


def test_run_lengths_are_those_of_cocos_own_library(tmp_path: Path) -> None:
    library = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for number in range(20):
        mask = (rng.random((50 + number, 41)) > rng.random()).repeat(1 + number % 4, 0)
        encoded = library.encode(np.asfortranarray(mask.astype(np.uint8)))
        one = {"segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()}}
        np.testing.assert_array_equal(coco._mask(one, mask.shape), mask)


def test_panoptic_pngs_become_labels_by_their_json(tmp_path: Path) -> None:
    ids = np.full((TALL, WIDE), 70000)
    ids[40:], ids[:5] = 300, 0
    (tmp_path / "p").mkdir()
    colours = np.dstack([ids % 256, ids // 256 % 256, ids // 65536]).astype(np.uint8)
    Pillow.fromarray(colours).save(tmp_path / "p" / "a.png")
    segments = [{"id": 70000, "category_id": 1}, {"id": 300, "category_id": 2}]
    whole = data_set([{"segments_info": segments, "file_name": "a.png"}], ["sky-other-merged", "person"])
    raw = read(tmp_path, "seg_coco", whole, "p.json", path="p.json", labels="coco_panoptic_133")
    names = SPACES["coco_panoptic_133"].names
    assert [names[raw.array[row, 3]] for row in (10, 50)] == ["sky-other-merged", "person"]
    assert raw.array[0, 0] == 255
    whole["annotations"][0]["segments_info"] = segments[:1]
    with pytest.raises(
        ValueError, match=r"37\.5% of the panoptic PNG are segments that the JSON does not name"
    ):
        read(tmp_path, "seg_coco", whole, "p.json", path="p.json", labels="coco_panoptic_133")
    with pytest.raises(ValueError, match="'sky-other-merged' is no class of coco_stuff_171: set `labels`"):
        read(tmp_path, "seg_coco", whole, "p.json", path="p.json", labels="coco_stuff_171")


def test_the_content_of_a_data_sets_json_is_that_of_one_image(tmp_path: Path) -> None:
    """So that another annotation of another image renews no map of this one."""
    Pillow.new("RGB", (WIDE, TALL), "red").save(tmp_path / "a.png")
    stored = Provided(path="all.json", keypoints="coco").model_dump()
    hashes = []
    for number, image in ((1, 7), (2, 7), (2, 7), (2, 8)):
        people = [{"keypoints": numbers(COCO)}] + [{"image_id": image, "keypoints": numbers(COCO)}] * number
        (tmp_path / "all.json").write_text(json.dumps(data_set(people, [])) + " " * len(hashes))
        raw = RawImage(
            str(tmp_path / "a.png"), "", place={"root": str(tmp_path)}, provided={"pose_openpifpaf": stored}
        )
        hashes.append(provided.source_hash(raw, "pose_openpifpaf"))
    assert hashes[0] != hashes[1] == hashes[2] != hashes[3] and None not in hashes
