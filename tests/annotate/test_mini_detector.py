"""The mini detector: what it learns from, what it says of a picture, and how that is scored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from annotate.conditions import CONDITIONS
from annotate.mini import detect, losses, scores
from annotate.mini.detect import Reading
from annotate.mini.losses import Truth
from annotate.mini.network import Detector, Words, load, save

WORDS = Words(
    (("wood floor", "floor-wood", "floor"), ("plain wall", "wall-other", "wall"), ("box", "cardboard", "box"), ("person", "person", "person")),
    ("none", "red", "blue"), ("box",),
)  # fmt: skip
SIDE = 32


def truth(count: int = 4) -> Truth:
    """A red box on a wooden floor before a wall, and one joint; each scene has the box elsewhere."""
    classes = np.ones((count, SIDE, SIDE), np.uint8)
    classes[:, 16:] = 0
    colours = np.zeros_like(classes)
    joints = np.zeros((count, 18, 3), np.float32)
    for k in range(count):
        classes[k, 8:24, 2 + 3 * k : 14 + 3 * k] = 2
        colours[k, 8:24, 2 + 3 * k : 14 + 3 * k] = 1
        joints[k, 4] = (5 + 3 * k, 20, 1)
    depth = np.where(classes == 2, 0.5, 0.25).astype(np.float16)
    normals = np.zeros((count, SIDE, SIDE, 3), np.int8)
    normals[..., 2] = 127
    normals[classes == 2] = (127, 0, 0)
    return Truth(np.stack([classes * 60, colours * 90, classes * 20], axis=-1), depth, normals, classes, colours, joints)


@pytest.fixture(scope="module")
def learned() -> Detector:
    """Forty steps on four scenes: enough to know them by heart."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Detector(WORDS, (16, 24, 24, 24))
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses.loss(net, truth(), "cpu", bf16=False).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "SIDE", SIDE)


def test_scenes_are_learned_and_scored_by_every_measure(learned: Detector) -> None:
    wanted = [{"objects": [["box", "red"]], "person": False}] * 4
    told = scores.measure(learned, truth(), wanted)
    assert told["n"] == 4 and told["objects"] == 4
    assert told["depth_delta_1.25"][0] > 0.7 and told["normals_mean_angle"][0] < 12 and told["objects_found"][0] == 1
    lost = scores.measure(learned, truth(), wanted, np.zeros((4, SIDE, SIDE, 3), np.uint8))
    assert lost["objects_found"][0] < 0.5, "of black pictures it reads no boxes"


def test_a_reading_becomes_the_map_of_each_condition(learned: Detector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save(learned, tmp_path, {"scores": {}})
    assert (tmp_path / "detector.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in learned.parameters()) + 9000
    params = {"weights": str(tmp_path / "detector.safetensors")}
    (shared,) = detect.detect([truth().images[0]], params, [{}], [], "cpu")
    made = {name: detect.adapt(shared, CONDITIONS[name], params) for name in CONDITIONS if CONDITIONS[name].kind in ("depth", "normals", "people", "labels")}
    assert made["depth_large"].meta["unit"] == "1/m" and made["depth_large"].array.dtype == np.float32
    assert np.allclose(np.linalg.norm(made["normal"].array, axis=-1), 1, atol=1e-3)
    assert made["pose_openpose"].array.shape[1:] == (18, 3) and made["pose_openpifpaf"].array.shape[1:] == (17, 3)
    coco, ade = made["seg_coco"], made["seg_ade20k"]
    from annotate.label_spaces import SPACES

    assert {SPACES["coco_stuff_171"].names[i] for i in np.unique(coco.array)} <= {row[1] for row in WORDS.classes}
    assert SPACES["ade20k_150"].names[ade.array[12, 6]] == "box"
    again = load(tmp_path)
    assert all(torch.equal(a.bfloat16(), b.bfloat16()) for a, b in zip(learned.parameters(), again.parameters(), strict=True))


def test_another_size_is_read_at_its_own(learned: Detector) -> None:
    image = truth().images[1].repeat(3, axis=0).repeat(2, axis=1)
    (found,) = detect.read(learned, [image])
    assert found.depth.shape == found.classes.shape == image.shape[:2] and found.normals.shape == image.shape


def test_joints_lie_between_cells_and_need_to_be_sure() -> None:
    wanted = np.zeros((1, 18, 3), np.float32)
    wanted[0, 3] = (13.0, 6.5, 1.0)
    spots = losses._spots(wanted, 16)
    found = detect._joints(spots[0], (32, 32))
    assert found[3] == pytest.approx((13.0, 6.5, 1.0), abs=0.25) and not found[[0, 1, 2, 4]].any()
    assert not detect._joints(spots[0] * 0.2, (32, 32)).any()
    doubled = detect._joints(spots[0], (64, 64))
    assert doubled[3, :2] == pytest.approx((26.5, 13.5), abs=0.5)


def test_a_mirrored_scene_swaps_sides_everywhere() -> None:
    one = truth(1)
    turned = losses.mirrored(one, np.array([True]))
    assert (turned.images[0] == one.images[0, :, ::-1]).all() and (turned.classes[0] == one.classes[0, :, ::-1]).all()
    box = turned.classes[0] == 2
    assert (turned.normals[0][box] == (-127, 0, 0)).all()
    assert turned.joints[0, 7] == pytest.approx((SIDE - 1 - 5, 20, 1)) and not turned.joints[0, 4].any(), "a right wrist becomes a left one"
    same = losses.mirrored(one, np.array([False]))
    assert (same.joints == one.joints).all() and (same.normals == one.normals).all()


def test_spoiling_is_of_the_picture_alone_and_depends_on_the_draw() -> None:
    images = np.full((6, SIDE, SIDE, 3), 128, np.uint8)
    first, again, other = (losses.spoiled(images, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and (first != images).any() and first.dtype == np.uint8


def test_each_object_found_counts_for_one_that_is_named() -> None:
    net = Detector(WORDS, (16, 24, 24, 24))
    classes, colours = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    classes[4:20, 4:20], colours[4:20, 4:20] = 2, 1
    classes[40:42, 40:42] = 2  # too small to be an object
    reading = Reading(np.ones((64, 64), np.float32), np.zeros((64, 64, 3), np.float32), classes, colours, np.zeros((18, 3), np.float32))
    assert [(one.shape, one.colour) for one in detect.objects(net, reading)] == [("box", "red")]
    assert scores.found(net, reading, {"objects": [["box", "red"], ["box", "red"], ["box", "blue"]], "person": True}) == [1, 0, 0, 0]
