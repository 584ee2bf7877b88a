"""MoveNet MultiPose: against TensorFlow.js running the published graph, and people seen in photographs."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from annotate.annotator import Annotation, annotate, resolve
from annotate.flips import counterparts
from annotate.movenet import detect as movenet
from annotate.movenet.network import HEADS
from annotate.skeletons import SKELETONS
from annotate.weights import WeightsError, package_folder

GOLDEN = Path(__file__).with_name("golden") / "movenet.json"
PARAMS = resolve("pose_openpifpaf", "movenet", {}, here=False).params
SIDE = 24  # cells of the maps that are made up here


def found(images: list[np.ndarray], condition: str = "pose_openpifpaf", **params: Any) -> list[Annotation]:
    ids = [str(n) for n in range(len(images))]
    return annotate(images, ids, [resolve(condition, "movenet", params)])[condition]


def two(astronaut: np.ndarray) -> np.ndarray:
    """uint8 [256, 512, 3]: her, and her mirror image on the right."""
    half = astronaut[::2, ::2]
    return np.ascontiguousarray(np.concatenate([half, half[:, ::-1]], axis=1))


def photograph(name: str) -> np.ndarray:
    from PIL import Image

    folder = package_folder("ultralytics")
    if folder is None or not (folder / "assets" / name).is_file():
        pytest.skip("the photographs of ultralytics are not here: controlmill weights get offline")
    return np.asarray(Image.open(folder / "assets" / name).convert("RGB"))


def test_network_and_decoder_are_the_published_graph(astronaut: np.ndarray) -> None:
    """TensorFlow.js ran it, with the shipped weights in place of its own, which differ by their rounding to 8
    bits.
    """
    told = json.loads(GOLDEN.read_text())
    rows = np.array(told["people"], np.float32)
    image = two(astronaut)
    people, scores = movenet.decode(movenet.load("cpu")(image[None])[0], most=6, least=0.0)
    sure = rows[:, 55] > 0.1
    assert sure.sum() == 2, "the others are no people, and their order is chance"
    theirs = rows[sure, :51].reshape(-1, 17, 3)  # y x confidence, in shares of the picture
    np.testing.assert_allclose(
        people[: len(theirs), :, :2], theirs[..., [1, 0]] * (512, 256) - 0.5, atol=0.01
    )
    np.testing.assert_allclose(people[: len(theirs), :, 2], theirs[..., 2], atol=1e-3)
    np.testing.assert_allclose(scores[: len(theirs)], rows[sure, 55], atol=1e-3)


def test_people_are_counted_as_they_are_seen(astronaut: np.ndarray) -> None:
    from skimage import data
    from sklearn.datasets import load_sample_image

    images = [
        photograph("zidane.jpg"), photograph("bus.jpg"), load_sample_image("china.jpg"), data.coffee(),
        astronaut,
    ]  # fmt: skip
    here = found(images, "pose_openpose")
    assert [len(each.map.array) for each in here] == [2, 3, 0, 0, 1]  # type: ignore[union-attr]
    assert [each.status for each in here] == ["ok", "ok", "skipped", "skipped", "ok"]


def test_keypoints_lie_where_a_person_sees_them() -> None:
    """By eye, in zidane.jpg: both noses, Zidane's left shoulder and elbow, Ancelotti's eyes."""
    (one,) = found([photograph("zidane.jpg")])
    assert one.map is not None
    left, right = sorted(one.map.array, key=lambda person: person[0, 0])
    names = SKELETONS["coco_17"].names
    for person, spots in (
        (left, {"nose": (640, 370), "left_shoulder": (655, 425), "left_elbow": (790, 490)}),
        (right, {"nose": (985, 195), "right_eye": (957, 165), "left_eye": (1020, 168)}),
    ):
        for name, spot in spots.items():
            x, y, confidence = person[names.index(name)]
            assert confidence > 0 and np.hypot(x - spot[0], y - spot[1]) < 30, (name, x, y)


def test_a_mirror_image_gives_the_mirrored_people(astronaut: np.ndarray) -> None:
    (one,) = found([two(astronaut)], coarse=512, fine=0)
    assert one.map is not None and len(one.map.array) == 2
    a, b = sorted(one.map.array, key=lambda person: person[0, 0])
    b = b[counterparts("coco_17")]
    both = (a[:, 2] > 0.4) & (b[:, 2] > 0.4)
    assert both.sum() >= 5
    assert np.abs(a[both, 0] + b[both, 0] - 511).max() < 8 and np.abs(a[both, 1] - b[both, 1]).max() < 8


def test_an_image_has_the_same_map_alone_and_among_others(astronaut: np.ndarray, small: np.ndarray) -> None:
    sizes = {"coarse": 192, "fine": 128}
    together = found([small, astronaut, astronaut[:300], small], **sizes)
    for image, among in zip([small, astronaut, astronaut[:300]], together, strict=False):
        alone = found([image], **sizes)[0]
        np.testing.assert_array_equal(alone.map.array, among.map.array)  # type: ignore[union-attr]


def test_one_pass_serves_both_layouts_with_the_neck_between_the_shoulders(astronaut: np.ndarray) -> None:
    steps = [resolve(name, "movenet", {}) for name in ("pose_openpifpaf", "pose_openpose")]
    made = annotate([astronaut], ["a"], steps)
    coco, openpose = (made[step.condition][0].map.array[0] for step in steps)  # type: ignore[union-attr]
    names = SKELETONS["openpose_18"].names
    for k, name in enumerate(SKELETONS["coco_17"].names):
        np.testing.assert_array_equal(openpose[names.index(name)], coco[k])
    neck, right, left = (openpose[names.index(name)] for name in ("neck", "right_shoulder", "left_shoulder"))
    np.testing.assert_allclose(neck[:2], (right[:2] + left[:2]) / 2)
    assert neck[2] == min(right[2], left[2]) > 0


def maps_of(people: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """The network's maps of a person at each cell y, x, all keypoints a cell and a half right of it."""
    maps = {name: np.zeros((channels, SIDE, SIDE), np.float32) for name, channels in HEADS.items()}
    maps["center"] -= 9
    maps["kpt_heatmap"] -= 9
    maps["kpt_offset"][1::2] += 0.5
    for y, x in people:
        maps["center"][0, y, x] = 4
        maps["box_scale"][:, y, x] = 6
        maps["kpt_regress"][1::2, y, x] = 1
        maps["kpt_heatmap"][:, y, x + 1] = 3
    return maps


def test_more_than_six_people_are_found_and_their_keypoints_are_their_own() -> None:
    cells = [(y, x) for y in (3, 12, 20) for x in (3, 12, 20)]
    people, scores = movenet.decode(maps_of(cells), most=20, least=0.1)
    assert len(people) == 9 and (scores > 0.8).all()
    wanted = {(4 * (x + 1.5) - 0.5, 4 * y - 0.5) for y, x in cells}
    assert {tuple(person[0, :2].tolist()) for person in people} == wanted
    assert len(movenet.decode(maps_of(cells), most=4, least=0.1)[0]) == 4
    assert len(movenet.decode(maps_of([]), most=4, least=0.1)[0]) == 0


def test_maps_that_are_not_finite_are_refused() -> None:
    maps = maps_of([(3, 3)])
    maps["kpt_offset"][0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        movenet.decode(maps, most=6, least=0.0)


def test_weights_in_full_and_of_another_network(tmp_path: Path) -> None:
    stored = load_file(package_folder("annotate") / "movenet" / "movenet.safetensors")  # type: ignore[operator]
    assert sum(value.dtype == torch.int8 for value in stored.values()) == 44
    save_file(movenet.wide(stored), tmp_path / "whole.safetensors")
    image = np.zeros((1, 64, 64, 3), np.uint8)
    ours, whole = (
        movenet.load("cpu")(image)[0],
        movenet.load("cpu", str(tmp_path / "whole.safetensors"))(image)[0],
    )
    np.testing.assert_array_equal(ours["center"], whole["center"])
    save_file({"first.0.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds no weights of MoveNet"):
        movenet.load("cpu", str(tmp_path / "other.safetensors"))


def test_the_script_names_every_convolution_of_the_network() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "movenet.py"
    spec = importlib.util.spec_from_file_location("movenet_script", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    weight = np.random.default_rng(0).normal(size=(64, 8, 3, 3)).astype(np.float16)
    codes = {name: torch.from_numpy(value) for name, value in script.in_8_bits("a.weight", weight).items()}
    back = movenet.wide(codes)["a.weight"].numpy()
    assert np.abs(back - weight).max() <= np.abs(weight).max() / 127
    for node, name in {
        "M/model_1/model/block_13_depthwise/depthwise": "blocks.12.depthwise",
        "M/model_1/conv2d/BiasAdd": "top",
        "M/model_1/re_lu_2/Relu": "merged.1.pointwise",
        "S/kpt_offset_0/separable_conv2d_8/separable_conv2d/depthwise": "heads.kpt_offset.inner.depthwise",
    }.items():
        assert script.ours(node) == name
