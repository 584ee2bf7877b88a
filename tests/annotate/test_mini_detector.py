"""The mini detector: what it learns from, what it says of a picture, and how that is scored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from annotate.annotator import annotate, lack, resolve
from annotate.conditions import CONDITIONS
from annotate.label_spaces import SPACES
from annotate.mini import detect, figure, losses, scores
from annotate.mini.detect import Reading
from annotate.mini.losses import Truth
from annotate.mini.network import DetectorNetwork, JointNetwork, load, save
from annotate.mini.vocabulary import Vocabulary, Wanted
from annotate.weights import WeightsError

VOCABULARY = Vocabulary(
    (
        ("wood floor", "floor-wood", "floor"),
        ("plain wall", "wall-other", "wall"),
        ("box", "cardboard", "box"),
        ("person", "person", "person"),
        ("cone", "plastic", "plaything"),
    ),
    ("none", "red", "blue"),
    ("box", "cone"),
)
SIDE, WIDTHS = 32, (16, 24, 24, 24)
RED_BOX = Wanted((("box", "red"),), False)
READ_BY_MINI = [name for name, row in CONDITIONS.items() if "mini" in row.by_name]


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
    return Truth(
        np.stack([classes * 60, colours * 90, classes * 20], axis=-1),
        depth,
        normals,
        classes,
        colours,
        joints,
    )


def reading(classes: np.ndarray, colours: np.ndarray) -> Reading:
    shape = classes.shape
    return Reading(
        VOCABULARY,
        np.ones(shape, np.float32),
        np.zeros((*shape, 3), np.float32),
        classes,
        colours,
        np.zeros((18, 3), np.float32),
    )


def by_hand(net: DetectorNetwork | JointNetwork) -> None:
    """Of each cell of 2 x 2 pixels, row by row, the three colours go through unchanged; what is made of them
    is still nothing.
    """
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for k in range(12):
            net.stem.weight[k, k % 3, 2 + k // 6, 2 + k // 3 % 2] = 1
            # what the first block had, behind what came from below
            net.up[-1].carry.weight[k, net.widths[1] + k] = 1


def random_detector() -> DetectorNetwork:
    torch.manual_seed(0)
    return DetectorNetwork(VOCABULARY, WIDTHS).eval()


@pytest.fixture(scope="module")
def exact() -> DetectorNetwork:
    """Set by hand, so that it is right about `truth` on every processor: class and colour are numbers in red
    and green.
    """
    net = DetectorNetwork(VOCABULARY, WIDTHS)
    by_hand(net)
    # factor, and whether of red or of green in -1..1
    number, object_, once = (127.5 / 60, 0), (127.5 / 90, 1), np.log(2)
    # depth; normals: of the box x, else z
    rows = [(object_, once, np.log(0.25)), (object_, 1, 0), (number, 0, 0), (object_, -1, 1)]
    for source, count in ((number, len(VOCABULARY.classes)), (object_, len(VOCABULARY.colours))):
        # the nearest number has the highest logit, by 20
        rows += [(source, 40 * k, -20 * k**2) for k in range(count)]
    with torch.no_grad():
        for row, ((factor, channel), weight, bias) in enumerate(rows):
            for pixel in range(4):
                net.dense.weight[4 * row + pixel, 3 * pixel + channel] = weight * factor
                net.dense.bias[4 * row + pixel] = weight * factor + bias
    return net.eval()


@pytest.fixture(scope="module")
def weights(exact: DetectorNetwork, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mini") / "detector.safetensors"
    save(exact, path)
    return str(path)


@pytest.fixture(autouse=True)
def small_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "SIDE", SIDE)


def test_scenes_that_are_read_exactly_score_best_by_every_measure(exact: DetectorNetwork) -> None:
    told = scores.measure(exact, truth(), [RED_BOX] * 4)
    assert told["n"] == 4 and told["objects"] == 4 and told["joints"] == 4
    assert (
        told["depth_delta_1.25"][0] == told["objects_found"][0] == told["miou_ade20k_150"] == 1
        and told["normals_mean_angle"][0] < 0.1
    )
    lost = scores.measure(exact, truth(), [RED_BOX] * 4, np.zeros((4, SIDE, SIDE, 3), np.uint8))
    assert lost["objects_found"][0] == 0, "of black pictures it reads no boxes"


def test_who_reads_exactly_has_no_loss_and_learning_lowers_it(exact: DetectorNetwork) -> None:
    assert losses.loss(exact, truth(), "cpu", bf16=False).item() < 0.01
    torch.manual_seed(0)
    nets, rng = (
        (DetectorNetwork(VOCABULARY, WIDTHS), JointNetwork((16, 16, 16, 16))),
        np.random.default_rng(0),
    )
    loss_of = (
        lambda: losses.loss(nets[0], truth(), "cpu", bf16=False),
        lambda: losses.figure_loss(nets[1], losses.figures_of(figures(8), 3, rng), "cpu", bf16=False),
    )
    for net, loss in zip(nets, loss_of, strict=True):
        optimizer, found = torch.optim.AdamW(net.parameters(), lr=5e-3), []
        for _ in range(11):
            optimizer.zero_grad()
            step = loss()
            step.backward()
            optimizer.step()
            found.append(step.item())
        assert found[-1] < 0.6 * found[0], "measured: 0.38 and 0.03 of it; rounding moves the sixth digit"


def test_one_pass_gives_the_map_of_each_condition(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    read = detect.read
    monkeypatch.setattr(detect, "read", lambda net, images: passes.append(len(images)) or read(net, images))
    image = truth().images[0]
    done = annotate([image], ["a"], [resolve(name, "mini", {"weights": weights}) for name in READ_BY_MINI])
    assert passes == [1] and len(READ_BY_MINI) == 7
    made = {name: found[0].map for name, found in done.items()}
    depth, normal = made["depth_large"], made["normal"]
    assert depth.meta["unit"] == "1/m" and np.allclose(depth.array, truth().depth[0], rtol=0.01), (
        "weights have eight bits"
    )
    assert np.allclose(normal.array, truth().normals[0] / 127, atol=0.01)
    coco, ade = made["seg_coco"], made["seg_ade20k"]
    assert (
        SPACES["coco_stuff_171"].names[coco.array[16, 8]] == "cardboard"
        and SPACES["ade20k_150"].names[ade.array[16, 8]] == "box"
    )
    for name in ("pose_openpose", "pose_openpifpaf"):
        assert done[name][0].status == "skipped" and len(made[name].array) == 0, "a joint alone is no person"


def test_both_layouts_of_a_person_come_from_one_set_of_joints() -> None:
    joints = np.zeros((18, 3), np.float32)
    # nose, neck, right wrist, left wrist
    joints[[0, 1, 4, 7]] = ((5, 5, 0.9), (6, 8, 0.8), (1, 12, 0.7), (11, 12, 0.6))
    found = reading(np.full((SIDE, SIDE), 3, np.uint8), np.zeros((SIDE, SIDE), np.uint8))
    found.joints[:] = joints
    scene = detect.ReadingMap("depth", found.depth, {"scale": 1.0, "shift": 0.0}, reading=found)
    body, coco = (detect.adapt(scene, CONDITIONS[name], {}) for name in ("pose_openpose", "pose_openpifpaf"))
    assert (body.array == joints).all() and body.meta == {"size": [SIDE, SIDE], "layout": "openpose_18"}
    assert coco.array.shape == (1, 17, 3) and (coco.array[0, [0, 9, 10]] == joints[[0, 7, 4]]).all(), (
        "COCO has no neck, and left first"
    )
    assert np.count_nonzero(coco.array[0, :, 2]) == 3


def test_auto_never_takes_what_knows_no_photographs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("CONTROLMILL_WEIGHTS", raising=False)
    assert lack(resolve("depth_large", "mini")) is None
    with pytest.raises(ValueError, match="depth_large can't be made here: midas"):
        resolve("depth_large")
    with pytest.raises(ValueError, match="canny has no detector 'mini'"):
        resolve("canny", "mini")


def test_an_image_has_the_same_map_alone_and_among_others(tmp_path: Path) -> None:
    images = [truth().images[1].repeat(3, axis=0).repeat(2, axis=1), truth().images[2]]
    save(random_detector(), tmp_path / "random.safetensors")
    params = {"weights": str(tmp_path / "random.safetensors")}
    both, alone = (
        detect.detect(images, params, [{}, {}], [], "cpu"),
        detect.detect(images[:1], params, [{}], [], "cpu"),
    )
    assert (both[0].array == alone[0].array).all() and both[0].array.shape == images[0].shape[:2]


def test_weights_of_something_else_are_one_sentence(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other", "text"):
        with pytest.raises(WeightsError, match=f"{name}.safetensors holds no mini detector"):
            load(tmp_path / f"{name}.safetensors")


def test_what_is_shipped_is_what_was_learned_to_eight_bits(tmp_path: Path) -> None:
    learned, weights = random_detector(), tmp_path / "detector.safetensors"
    save(learned, weights)
    again = load(weights)
    assert again.vocabulary == learned.vocabulary and again.widths == learned.widths
    assert all(
        torch.equal(a.bfloat16().float(), b)
        for a, b in zip(learned.parameters(), again.parameters(), strict=True)
    )
    assert weights.stat().st_size < 2 * sum(p.numel() for p in learned.parameters()) + 9000


def test_joints_lie_between_cells_and_need_to_be_sure() -> None:
    wanted = np.zeros((1, 18, 3), np.float32)
    wanted[0, 3] = (13.0, 6.5, 1.0)
    spots = losses.spots_of(wanted, 16)
    found = figure.find_joints(spots[0], (32, 32))
    assert found[3] == pytest.approx((13.0, 6.5, 1.0), abs=0.25) and not found[[0, 1, 2, 4]].any()
    assert not figure.find_joints(spots[0] * 0.2, (32, 32)).any()
    wanted[0, 5] = (31, 0, 1)
    corner = figure.find_joints(losses.spots_of(wanted, 16)[0], (32, 32))
    assert corner[5, :2] == pytest.approx((31, 0), abs=2), "at the frame there is less of a neighbourhood"
    doubled = figure.find_joints(spots[0], (64, 64))
    assert doubled[3, :2] == pytest.approx((26.5, 13.5), abs=0.5)


def test_a_figure_is_cut_out_at_one_size_wherever_it_stands() -> None:
    picture, mask = np.zeros((64, 128, 3), np.uint8), np.zeros((64, 128), bool)
    mask[10:50, 90:100] = True
    picture[mask] = 200
    one = figure.cut(picture, mask)
    rows, columns = np.nonzero(one.picture[..., 0] > 100)
    assert one.picture.shape == (figure.SIDE, figure.SIDE, 3) and np.ptp(rows) + 1 == pytest.approx(
        figure.FILL * figure.SIDE, abs=1.5
    )
    assert (rows.mean(), columns.mean()) == pytest.approx(((figure.SIDE - 1) / 2,) * 2, abs=0.6)
    joints = np.zeros((18, 3), np.float32)
    joints[[1, 4, 7]] = ((95, 12, 1), (90, 49, 0.5), (2, 2, 1))  # the last far from it
    inside = one.moved(joints)
    assert inside[1, :2] == pytest.approx((figure.SIDE / 2, 11.5), abs=2) and not inside[[0, 7]].any()
    assert (
        one.returned(inside)[[1, 4]] == pytest.approx(joints[[1, 4]], abs=1e-3)
        and not one.returned(inside)[[0, 7]].any()
    )
    beside = figure.cut(picture, mask, fill=0.5, aside=(0.0, 0.1))
    assert (
        beside.scale == pytest.approx(0.5 * figure.SIDE / 40) and beside.shift[1] < 47.5 - beside.scale * 29.5
    )


def figures(count: int) -> Truth:
    """People who hold up one arm, and let the other one hang: the right wrist is a red pixel, the left one a
    green pixel.
    """
    classes = np.zeros((count, SIDE, SIDE), np.uint8)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    joints = np.zeros((count, 18, 3), np.float32)
    for k in range(count):
        x = 8 + 4 * (k % 4)
        classes[k, 6:28, x : x + 8] = 3
        images[k, 6:28, x : x + 8] = 60
        joints[k, 7 if k % 2 else 4] = (x + 1, 7, 1)
        joints[k, 4 if k % 2 else 7] = (x + 6, 26, 1)
        for joint, channel in ((4, 0), (7, 1)):
            column, row = joints[k, joint, :2].astype(int)
            images[k, row, column, channel] = 255
    blank = np.ones((count, SIDE, SIDE), np.float16)
    return Truth(
        images, blank, np.zeros((count, SIDE, SIDE, 3), np.int8), classes, np.zeros_like(classes), joints
    )


@pytest.fixture(scope="module")
def knows_figures() -> JointNetwork:
    """Set by hand: how sure a wrist is goes with how red, or how green, its cell is; no other joint is ever
    seen.
    """
    net = JointNetwork((16, 16, 16, 16))
    by_hand(net)
    with torch.no_grad():
        net.joints.bias.fill_(-20)
        for joint, channel in ((4, 0), (7, 1)):
            net.joints.bias[joint] = -4
            net.joints.weight[joint, channel:12:3], net.joints.weight[joint, 1 - channel : 12 : 3] = (
                1.25,
                -1.25,
            )
    return net.eval()


def test_the_joints_of_a_figure_are_told_from_its_looks(knows_figures: JointNetwork, tmp_path: Path) -> None:
    assert scores.figure_hits(knows_figures, figures(8), 3) == [1] * 16
    whole = random_detector()
    whole.figure = JointNetwork(WIDTHS)
    save(whole, tmp_path / "whole.safetensors")
    again = load(tmp_path / "whole.safetensors")
    assert again.figure is not None and random_detector().figure is None
    assert all(
        torch.equal(a.bfloat16().float(), b)
        for a, b in zip(whole.figure.parameters(), again.figure.parameters(), strict=True)
    )


def test_joints_are_those_of_the_picture_that_was_given(knows_figures: JointNetwork) -> None:
    sizes = {"normals": 3, "classes": 5, "colours": 3}
    made = {name: np.ones((count, SIDE, SIDE)) for name, count in sizes.items()} | {
        "depth": np.zeros((SIDE, SIDE))
    }
    truth_of, net = figures(1), random_detector()
    made["classes"][3] = np.where(truth_of.classes[0] == 3, 9, -9)
    assert not detect._reading(net, truth_of.images[0], dict(made), (SIDE, SIDE)).joints.any(), (
        "without a net that reads them there are none"
    )
    net.figure = knows_figures
    same, larger = (
        detect._reading(net, truth_of.images[0], dict(made), (side, side)).joints for side in (SIDE, 4 * SIDE)
    )
    assert same[[4, 7], :2] == pytest.approx(truth_of.joints[0, [4, 7], :2], abs=0.6), (
        "a cell of the cut is half a pixel of the picture"
    )
    assert larger[4, :2] == pytest.approx(4 * same[4, :2] + 1.5, abs=0.01) and not larger[0].any()
    made["classes"][3] = -9
    assert not detect._reading(net, truth_of.images[0], dict(made), (SIDE, SIDE)).joints.any(), (
        "nobody is there"
    )


def test_a_mirrored_scene_swaps_sides_everywhere() -> None:
    one = truth(1)
    turned = losses.mirrored(one, np.array([True]))
    assert (turned.images[0] == one.images[0, :, ::-1]).all() and (
        turned.classes[0] == one.classes[0, :, ::-1]
    ).all()
    box = turned.classes[0] == 2
    assert (turned.normals[0][box] == (-127, 0, 0)).all()
    assert turned.joints[0, 7] == pytest.approx((SIDE - 1 - 5, 20, 1)) and not turned.joints[0, 4].any(), (
        "a right wrist becomes a left one"
    )
    same = losses.mirrored(one, np.array([False]))
    assert (same.joints == one.joints).all() and (same.normals == one.normals).all()


def test_degrading_is_of_the_picture_alone_and_depends_on_the_draw() -> None:
    images = np.full((6, SIDE, SIDE, 3), 128, np.uint8)
    first, again, other = (losses.degraded(images, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (
        (first == again).all()
        and (first != other).any()
        and (first != images).any()
        and first.dtype == np.uint8
    )


def test_an_object_is_an_area_of_one_colour_and_of_the_shape_of_most_of_it() -> None:
    classes, colours = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    # six columns of sixteen look like a cone
    classes[4:20, 8:24], classes[4:20, 8:14], colours[4:20, 8:24] = 2, 4, 1
    classes[4:20, 24:40], colours[4:20, 24:40] = 4, 2  # touches it in another colour
    classes[40:44, 40:44], colours[40:44, 40:44] = 2, 1  # too small to be an object
    colours[50:60, 4:30] = 1  # of the floor
    found = detect.objects(reading(classes, colours))
    assert found == [
        ("box", "red", (8 / 64, 4 / 64, 24 / 64, 20 / 64)),
        ("cone", "blue", (24 / 64, 4 / 64, 40 / 64, 20 / 64)),
    ]
    assert not detect.has_person(reading(classes, colours))
    classes[30:60, 50:60] = 3
    assert detect.has_person(reading(classes, colours))


def test_each_object_seen_counts_for_one_that_is_named() -> None:
    classes, colours = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    classes[4:20, 4:20], colours[4:20, 4:20] = 2, 1
    one = reading(classes, colours)
    wanted = Wanted((("box", "red"), ("box", "red"), ("box", "blue")), True)
    assert scores.recall_hits(one, wanted) == [1, 0, 0, 0]
    assert scores.recall_hits(one, RED_BOX) == [1] and scores.recall_hits(one, Wanted((), False)) == []


def test_a_caption_names_what_it_brings_in_and_no_more() -> None:
    caption = (
        "three objects: a blue checked cone on the left, a red box in the middle, a green glossy box; a"
        " person in a red shirt and blue trousers walking; the red box in front of the person; plain wall,"
        " light from the left"
    )
    assert VOCABULARY.wanted(caption) == Wanted((("cone", "blue"), ("box", "red")), True), (
        "green is no colour of this vocabulary"
    )
    assert VOCABULARY.wanted("one object: a red striped box; the person") == RED_BOX


def test_measures_are_those_of_the_hand() -> None:
    true = np.array([[[0, 0, 1, 2]]], np.uint8)
    made = np.array([[[0, 1, 1, 2]]], np.uint8)
    assert scores.miou(VOCABULARY, "coco_stuff_171", made, true) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    joints = np.zeros((18, 3), np.float32)
    joints[:4] = ((0, 0, 1), (100, 0, 1), (0, 60, 1), (50, 50, 0.5))
    guess = joints + np.float32([6, 7, 0])  # 9.2 pixels of the 10 that are allowed
    guess[1, 0] += 3
    guess[2] = 0
    assert scores.near(guess, joints) == [
        1,
        0,
        0,
    ], "the third was not found, and the hidden one doesn't count"
    assert (
        scores.interval([0, 0, 1, 1]) == pytest.approx([0.5, 1.96 * (1 / 3) ** 0.5 / 2], abs=1e-4)
        and scores.interval([1]) is None
    )
