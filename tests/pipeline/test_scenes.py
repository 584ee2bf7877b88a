"""A rendered scene is the same every time, its truth agrees with itself and with the picture, and its caption
says what is there.
"""

import json
import re
from dataclasses import asdict, replace
from typing import Any

import cv2
import numpy as np
import pytest

from annotate import maps
from annotate.label_spaces import SPACES
from annotate.skeletons import SKELETONS
from pipeline.scenes import Limits, Scene, bodies, camera, raster, render
from pipeline.scenes.description import describe, mirrored
from pipeline.scenes.person import draw_person

# said again here, so that a slip in the table of pipeline/scenes/props.py shows
COCO = {
    "sphere": "sports ball",
    "box": "cardboard",
    "cylinder": "plastic",
    "cone": "plastic",
    "pyramid": "plastic",
}
ADE = {"sphere": "ball", "box": "box", "cylinder": "column", "cone": "plaything", "pyramid": "plaything"}
SURFACES = {  # words of the caption -> COCO-Stuff, ADE20K
    "wooden floor": ("floor-wood", "floor"), "tiled floor": ("floor-tile", "floor"),
    "stone floor": ("floor-stone", "floor"),
    "carpet": ("carpet", "rug"), "plain": ("floor-other", "floor"),
    "brick wall": ("wall-brick", "wall"), "tiled wall": ("wall-tile", "wall"),
    "panel wall": ("wall-panel", "wall"), "concrete wall": ("wall-concrete", "wall"),
    "striped wall": ("wall-other", "wall"),
}  # fmt: skip


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [render(11, index, 64) for index in range(300)]


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return [render(12, index, 192) for index in range(40)]


def same(a: Scene, b: Scene) -> bool:
    arrays = [(getattr(a, name), getattr(b, name)) for name in ("image", "outlines", "lines", "instances")]
    arrays += [(a.maps[name].array, b.maps[name].array) for name in a.maps]
    return all(x.tobytes() == y.tobytes() for x, y in arrays) and (a.caption, a.graph) == (b.caption, b.graph)


def near(mask: np.ndarray, distance: float) -> np.ndarray:
    return cv2.distanceTransform(1 - (mask > 0).astype(np.uint8), cv2.DIST_L2, 5) <= distance


def border(instances: np.ndarray) -> np.ndarray:
    """Pixels with another instance among their eight neighbours."""
    kernel = np.ones((3, 3), np.uint8)
    return cv2.dilate(instances, kernel) != cv2.erode(instances, kernel)


def along(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of points every half pixel of a line."""
    k = np.linspace(0, 1, 2 + int(2 * np.hypot(line[2] - line[0], line[3] - line[1])))
    return np.rint(line[1] + (line[3] - line[1]) * k).astype(int), np.rint(
        line[0] + (line[2] - line[0]) * k
    ).astype(int)


# --- one scene, again ---


def test_the_same_seed_and_index_give_the_same_bytes_whatever_was_drawn_before() -> None:
    first = render(3, 5)
    np.random.seed(1)
    render(3, 6)
    assert same(first, render(3, 5))


def test_another_index_or_seed_is_another_scene() -> None:
    captions = {render(seed, index, 64).caption for seed in range(3) for index in range(8)}
    assert len(captions) == 24


def test_two_sizes_show_the_same_scene() -> None:
    for index in range(10):
        small, large = render(5, index, 96), render(5, index, 288)
        assert small.caption == large.caption
        for name in ("seg_coco", "seg_ade20k"):
            # their pixel centres coincide
            assert (small.maps[name].array == large.maps[name].array[1::3, 1::3]).mean() > 0.95
        np.testing.assert_allclose(
            small.maps["depth_large"].array, large.maps["depth_large"].array[1::3, 1::3], rtol=1e-3
        )
        a, b = small.maps["pose_openpose"].array, large.maps["pose_openpose"].array
        both = (a[..., 2] > 0) & (b[..., 2] > 0)
        np.testing.assert_allclose((a[both][:, :2] + 0.5) / 96, (b[both][:, :2] + 0.5) / 288, atol=1e-4)


def test_a_scene_with_limits_is_the_first_of_its_thousand_that_keeps_to_them() -> None:
    limits = Limits(most_objects=1, least_box=0.08, least_visible=0.8)
    first = next(scene for number in range(5000, 6000) if limits.hold((scene := render(3, number, 64)).graph))
    assert same(render(3, 5, 64, limits), first)
    assert not same(render(3, 5, 64), first)
    with pytest.raises(ValueError, match="loosen"):
        render(3, 5, 64, Limits(least_box=0.99))


@pytest.mark.parametrize("size", [63, 1025])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="64 to 1024"):
        render(0, 0, size)


# --- geometry ---


def test_the_nearer_body_hides_the_other_in_either_order() -> None:
    view = camera.View(focal=2.4, height=1.4, pitch=0.3, wall=5.0, yaw=0.0)
    balls = [[bodies.Part("ball", np.eye(3) * 0.3, np.array([0, 0.3, z]))] for z in (-2.6, -3.4)]
    for first, order in ((2, balls), (3, balls[::-1])):
        seen = raster.cast(order, view, 65)
        both = np.array(seen.alone) > (np.bincount(seen.instance.ravel(), minlength=4)[2:])
        assert both.tolist() == [first == 3, first == 2]  # only the farther one lost pixels


def test_a_ball_has_the_depth_that_its_equation_gives() -> None:
    view = camera.View(focal=2.4, height=1.4, pitch=0.0, wall=5.0, yaw=0.0)
    seen = raster.cast([[bodies.Part("ball", np.eye(3) * 0.5, np.array([0.0, 1.4, -3.0]))]], view, 65)
    assert seen.depth[32, 32] == pytest.approx(2.5)
    np.testing.assert_allclose(seen.normal[32, 32], (0, 0, 1), atol=1e-6)
    assert seen.depth[0, 32] == pytest.approx(5.0)  # the wall
    assert seen.depth[64, 32] == pytest.approx(1.4 / (64 / 65 / 2.4), rel=1e-5)  # the floor


def test_normals_are_those_of_the_depth() -> None:
    size = 256
    for index in range(8):
        scene = render(6, index, size)
        depth = 1 / scene.maps["depth_large"].array.astype(float)
        v, u = np.mgrid[:size, :size]
        focal = scene.graph.camera.focal
        points = np.stack(
            [((u + 0.5) * 2 / size - 1) / focal * depth, -((v + 0.5) * 2 / size - 1) / focal * depth, -depth],
            axis=2,
        )
        right, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        normal = np.cross(down, right)
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        cosine = (normal * scene.maps["normal"].array[1:-1, 1:-1]).sum(axis=2)
        inside = ~near(scene.outlines | border(scene.instances) * np.uint8(255), 3)[1:-1, 1:-1]
        room = inside & (scene.instances[1:-1, 1:-1] < 2)
        assert cosine[room].min() > 0.9999
        bodies = inside & (scene.instances[1:-1, 1:-1] >= 2)
        # the rest: creases between limbs, which are no outlines
        assert np.mean(cosine[bodies] > np.cos(np.radians(4))) > 0.95


def test_maps_keep_the_conventions_of_annotate(some: list[Scene]) -> None:
    for scene in some:
        for raw in scene.maps.values():
            assert maps.resolution(raw) == (192, 192)
            assert maps.decode(raw.kind, maps.encode(raw), raw.meta).array.shape == raw.array.shape
        depth, normal = scene.maps["depth_large"], scene.maps["normal"].array
        assert depth.meta["unit"] == "1/m"
        floor, wall = scene.instances == 1, scene.instances == 0
        assert depth.array[floor].mean() > depth.array[wall].mean()  # near is large
        np.testing.assert_allclose(np.linalg.norm(normal, axis=2), 1, atol=1e-5)
        assert (normal[floor][:, 1] > 0.5).all() and (normal[wall][:, 2] > 0.5).all()  # y up, z to the viewer
        json.dumps(asdict(scene.graph))


# --- the figure ---


def test_about_a_third_of_the_scenes_have_a_figure(many: list[Scene]) -> None:
    share = np.mean([scene.graph.person is not None for scene in many])
    assert 0.25 < share < 0.42  # three standard errors of 300 draws around a third
    for scene in many:
        assert len(scene.maps["pose_openpose"].array) == (scene.graph.person is not None)


def test_seen_keypoints_lie_on_the_figure(some: list[Scene], many: list[Scene]) -> None:
    states = set()
    for scene in some + many:
        figure = scene.graph.person
        for name, layout in (("pose_openpifpaf", "coco_17"), ("pose_openpose", "openpose_18")):
            assert scene.maps[name].meta["layout"] == layout
            for person in scene.maps[name].array:
                for joint, (x, y, confidence) in zip(SKELETONS[layout].names, person, strict=True):
                    state = figure.keypoints[joint]
                    states.add(state)
                    assert confidence == {"seen": 1, "hidden": 0.5, "outside": 0}[state]
                    if state != "outside":
                        there = scene.instances[round(float(y)), round(float(x))]
                        assert there == figure.instance or state == "hidden"
                    if state == "outside":
                        assert x == y == 0
    assert states == {"seen", "hidden", "outside"}


def test_left_is_the_persons_left_and_faces_are_seen_from_the_front_only(many: list[Scene]) -> None:
    faces = {"us": 0, "away": 0}
    for scene in many:
        figure = scene.graph.person
        if figure and figure.facing in faces:
            points = dict(
                zip(SKELETONS["coco_17"].names, scene.maps["pose_openpifpaf"].array[0], strict=True)
            )
            sign = 1 if figure.facing == "us" else -1
            assert sign * (points["left_shoulder"][0] - points["right_shoulder"][0]) > 0
            faces[figure.facing] += 1
            assert figure.keypoints["nose"] == ("seen" if sign > 0 else "hidden")
    assert min(faces.values()) >= 10


def test_a_figure_that_faces_left_has_its_nose_left_of_its_ears(many: list[Scene]) -> None:
    seen = 0
    for scene in many:
        figure = scene.graph.person
        if figure and figure.facing in ("left", "right"):
            points = dict(
                zip(SKELETONS["coco_17"].names, scene.maps["pose_openpifpaf"].array[0], strict=True)
            )
            if all(points[name][2] > 0 for name in ("nose", "left_ear", "right_ear")):
                ears = (points["left_ear"][0] + points["right_ear"][0]) / 2
                assert (points["nose"][0] < ears) == (figure.facing == "left")
                seen += 1
    assert seen >= 20


def test_figures_are_large(many: list[Scene]) -> None:
    for scene in many:
        if scene.graph.person:
            assert np.ptp(scene.graph.person.box[1::2]) >= 0.4


# --- words ---


def test_the_caption_says_what_the_graph_says(many: list[Scene]) -> None:
    words = {1: "one object:", 2: "two objects:", 3: "three objects:", 4: "four objects:"}
    for scene in many:
        graph, caption = scene.graph, scene.caption
        assert caption.startswith(words[len(graph.objects)])
        for thing in graph.objects:
            assert f"{thing.colour} {thing.material} {thing.shape} {thing.place}" in caption
        assert graph.floor in caption and graph.wall in caption and f"light {graph.light}" in caption
        assert ("person" in caption) == (graph.person is not None)
        if figure := graph.person:
            assert (
                f"{figure.shirt} shirt and {figure.trousers} trousers {figure.pose}"
                f" {figure.place}, facing {figure.facing}" in caption
            )
        assert len(re.findall(r"\w+|[^\w\s]", caption)) <= 75  # what CLIP's text encoder takes


def test_places_are_where_the_pixels_are_also_in_the_mirrored_scene(many: list[Scene]) -> None:
    for scene in many:
        named = {
            one.instance: one.place for one in [*scene.graph.objects, *filter(None, [scene.graph.person])]
        }
        for instances, swap in ((scene.instances, str), (scene.instances[:, ::-1], mirrored)):
            for instance, place in named.items():
                middle = np.nonzero(instances == instance)[1].mean() / 63
                low, high = {
                    "on the left": (0, 0.5),
                    "in the middle": (0.25, 0.75),
                    "on the right": (0.5, 1),
                }[swap(place)]
                assert low < middle < high


def test_mirroring_the_graph_mirrors_the_caption(many: list[Scene]) -> None:
    swap = {"left": "right", "right": "left", "on the left": "on the right", "on the right": "on the left"}
    swap |= {"from the left": "from the right", "from the right": "from the left"}
    swap |= {
        f"waving with the {a} hand": f"waving with the {b} hand"
        for a, b in (("left", "right"), ("right", "left"))
    }
    changed = 0
    for scene in many:

        def turned(one: Any) -> Any:
            words = {name: value for name, value in vars(one).items() if isinstance(value, str)}
            return replace(one, **{name: swap.get(value, value) for name, value in words.items()})

        objects = tuple(turned(one) for one in scene.graph.objects)
        person = scene.graph.person and turned(scene.graph.person)
        assert describe(replace(turned(scene.graph), objects=objects, person=person)) == mirrored(
            scene.caption
        )
        assert mirrored(mirrored(scene.caption)) == scene.caption
        changed += mirrored(scene.caption) != scene.caption
    assert changed == len(many)  # the light always comes from a side


def test_what_stands_before_something_is_nearer_and_overlaps_it(some: list[Scene]) -> None:
    told = 0
    for scene in some:
        if scene.graph.in_front:
            near_one, far_one = scene.graph.in_front
            inverse = scene.maps["depth_large"].array
            assert np.median(inverse[scene.instances == near_one]) > np.median(
                inverse[scene.instances == far_one]
            )
            columns = [set(np.nonzero(scene.instances == k)[1].tolist()) for k in (near_one, far_one)]
            assert columns[0] & columns[1]
            assert " in front of the " in scene.caption
            told += 1
    assert told >= 5


def test_everything_that_the_caption_names_can_be_seen(many: list[Scene]) -> None:
    for scene in many:
        for one in [*scene.graph.objects, *filter(None, [scene.graph.person])]:
            assert (scene.instances == one.instance).mean() >= 0.01
            assert one.visible >= 0.4


def test_class_ids_are_those_of_the_names(many: list[Scene]) -> None:
    for scene in many:
        expected = {one.instance: (COCO[one.shape], ADE[one.shape]) for one in scene.graph.objects}
        if scene.graph.person:
            expected[scene.graph.person.instance] = ("person", "person")
        for instance, words in ((0, scene.graph.wall), (1, scene.graph.floor)):
            plain = ("wall-other", "wall") if instance == 0 else SURFACES["plain"]
            expected[instance] = next((row for key, row in SURFACES.items() if words.endswith(key)), plain)
        for column, name in enumerate(("seg_coco", "seg_ade20k")):
            raw = scene.maps[name]
            for instance, row in expected.items():
                ids = np.unique(raw.array[scene.instances == instance]).tolist()
                assert [SPACES[raw.meta["label_space"]].names[i] for i in ids] == [row[column]]


# --- outlines and lines ---


def test_outlines_lie_where_instances_change_and_shadows_make_none(some: list[Scene]) -> None:
    for scene in some:
        changes = border(scene.instances)
        assert near(scene.outlines, 1.5)[changes].all()
        room = cv2.dilate(scene.instances, np.ones((3, 3), np.uint8)) < 2
        assert not (scene.outlines[room & ~changes]).any()  # nothing on floor and wall but their border
        thick = cv2.erode(scene.outlines, np.ones((2, 2), np.uint8)) > 0
        assert thick.sum() < 0.06 * (scene.outlines > 0).sum()  # one pixel wide, but where outlines meet


def test_boxes_show_creases_and_balls_none(some: list[Scene]) -> None:
    found = {"box": 0, "sphere": 0}
    for scene in some:
        inner = ~near(border(scene.instances), 2.5)
        for one in scene.graph.objects:
            if one.shape in found and one.visible == 1:
                creases = (scene.outlines > 0) & inner & (scene.instances == one.instance)
                assert (creases.sum() >= 12) == (one.shape == "box")
                found[one.shape] += 1
    assert min(found.values()) >= 4


def test_lines_lie_on_outlines_where_floor_and_wall_have_no_seams() -> None:
    tried = 0
    for index in range(80):
        scene = render(13, index, 128)
        seamless = re.search(r"carpet|plain \w+ floor", scene.graph.floor) and "plain" in scene.graph.wall
        if seamless:
            tried += 1
            assert np.concatenate([near(scene.outlines, 1.5)[along(line)] for line in scene.lines]).all(), (
                index
            )
    assert tried >= 5


def test_creases_of_boxes_and_pyramids_lie_on_lines(some: list[Scene]) -> None:
    tried = 0
    for scene in some:
        drawn = np.zeros(scene.instances.shape, np.uint8)
        for line in scene.lines:
            drawn[along(line)] = 1
        inner = ~near(border(scene.instances), 3)
        for one in scene.graph.objects:
            if one.shape in ("box", "pyramid"):
                creases = (scene.outlines > 0) & inner & (scene.instances == one.instance)
                if creases.any():
                    assert near(drawn, 2)[creases].mean() > 0.97
                    tried += 1
    assert tried >= 10


def test_lines_on_floor_and_wall_lie_on_seams_that_can_be_seen(some: list[Scene]) -> None:
    tried = 0
    kernel = np.ones((3, 3), np.uint8)
    for scene in some:
        grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY)
        contrast = (cv2.dilate(grey, kernel) - cv2.erode(grey, kernel)).astype(float)
        room = (scene.instances < 2) & ~near(scene.outlines, 4)
        rows, columns = (
            np.concatenate(part) for part in zip(*(along(line) for line in scene.lines), strict=True)
        )
        on = room[rows, columns]
        drawn = np.zeros_like(grey)
        drawn[rows, columns] = 1
        off = room & ~near(drawn, 3)
        if on.sum() > 200 and off.sum() > 200:
            assert contrast[rows, columns][on].mean() > 1.3 * contrast[off].mean()
            tried += 1
    assert tried >= 10


def test_lines_stay_in_the_image_and_before_everything(some: list[Scene]) -> None:
    for scene in some:
        assert scene.lines.dtype == np.float32 and scene.lines.shape[1] == 4
        assert scene.lines.min() >= 0 and scene.lines.max() <= 191
        figure = scene.graph.person
        if figure:  # nothing of a figure is straight, so no line crosses it
            deep = (scene.instances == figure.instance) & ~near(scene.instances != figure.instance, 2)
            assert not any(deep[along(line)].any() for line in scene.lines)


def test_a_figure_has_every_joint_of_both_layouts() -> None:
    person = draw_person(np.random.default_rng(0))
    assert set(person.joints) == set(SKELETONS["coco_17"].names) | set(SKELETONS["openpose_18"].names)
