"""What label ids mean, and in which colours they are drawn.

The golden pictures were made from the published lists, not by this code.
"""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotate.label_spaces import COCO_182_TO_171, REDRAWN, SOURCES, SPACES, VOID, disagreement, translate
from annotate.maps import RawMap, render

GOLDEN = Path(__file__).parent / "golden" / "labels"


def things() -> list[str]:
    """COCO's categories 0..90 as torchvision names them: background first, N/A where no object was ever
    annotated.
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return list(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])


def all_ids(space: str) -> np.ndarray:
    """Sixteen ids a row, from 0 to the last; then void."""
    count = len(SPACES[space].names)
    ids = np.full(-(-(count + 1) // 16) * 16, VOID, np.uint8)
    ids[:count] = range(count)
    return ids.reshape(-1, 16)


def drawn(ids: np.ndarray, space: str, protocol: str) -> np.ndarray:
    return render(RawMap("labels", ids, {"label_space": space}), protocol=protocol)


@pytest.mark.parametrize(
    ("space", "protocol"),
    [(space, "cn10") for space in SPACES] + [("ade20k_150", "cn11"), ("coco_panoptic_133", "cn11")],
)
def test_every_id_and_void_is_drawn_as_in_the_golden_picture_byte_for_byte(space: str, protocol: str) -> None:
    """Whose colours are the published ones; ten classes of COCO-Stuff have others. Spots of one pixel have no
    outline.
    """
    golden = np.asarray(Image.open(GOLDEN / f"{space}.png")).copy()
    picture = drawn(all_ids(space), space, protocol)
    assert picture.dtype == np.uint8 and picture.shape == golden.shape
    if space == "coco_stuff_171":
        others = np.isin(all_ids(space), [SPACES[space].names.index(name) for name in REDRAWN])
        assert others.sum() == 10 and (picture != golden).any(axis=2)[others].all()
        golden[others] = picture[others]
    assert picture.tobytes() == golden.tobytes()


def test_no_two_classes_of_coco_share_a_colour_nor_is_one_as_black_as_void() -> None:
    for space, count in (("coco_stuff_171", 171), ("coco_panoptic_133", 133)):
        colours = {tuple(colour) for colour in drawn(all_ids(space), space, "cn10").reshape(-1, 3).tolist()}
        assert len(colours) == count + 1 and (0, 0, 0) in colours
    stuff = np.array(SPACES["coco_stuff_171"].colours, int)
    for number in (SPACES["coco_stuff_171"].names.index(name) for name in REDRAWN):
        apart = np.linalg.norm(stuff - stuff[number], axis=1)
        assert np.sort(apart)[1] > 70 and np.linalg.norm(stuff[number]) > 70


def test_scenes_show_no_class_of_which_the_colour_has_changed() -> None:
    """So that what was trained on them still sees the same hints."""
    from pipeline import scenes

    seen = {name for i in range(40) for name in np.unique(scenes.render(7, i, 64).maps["seg_coco"].array)}
    assert len(seen) > 10
    assert not seen & {SPACES["coco_stuff_171"].names.index(name) for name in REDRAWN}


def spots(space: str) -> np.ndarray:
    """Every id of a space as a pixel alone in void."""
    ids = np.full((16, 16 * 6), VOID, np.uint8)
    ids[::2, ::4].flat[: len(SPACES[space].names)] = range(len(SPACES[space].names))
    return ids


def test_controlnet_11_sees_coco_stuff_in_panoptic_colours() -> None:
    """By cocodataset.org's list of what was merged and what was removed."""
    ids = spots("coco_stuff_171")
    picture = drawn(ids, "coco_stuff_171", "cn11")
    panoptic = SPACES["coco_panoptic_133"]
    colour_of = dict(zip(panoptic.names, panoptic.colours, strict=True))
    got = {
        name: tuple(picture[ids == number][0].tolist())
        for number, name in enumerate(SPACES["coco_stuff_171"].names)
    }
    assert got["cat"] == colour_of["cat"] != got["apple"] == colour_of["apple"]
    assert got["wall-brick"] == colour_of["wall-brick"] and got["fog"] == colour_of["sky-other-merged"]
    assert {got[name] for name in ("branch", "tree", "bush", "leaves")} == {colour_of["tree-merged"]}
    assert {got[name] for name in ("wall-other", "wall-concrete", "wall-panel")} == {
        colour_of["wall-other-merged"]
    }
    black = {name for name, colour in got.items() if colour == (0, 0, 0)}
    assert len(black) == 12 and {"metal", "plastic", "clothes", "wood"} < black
    assert set(got.values()) - {(0, 0, 0)} == set(panoptic.colours)  # none of the 133 is never drawn


def by_matplotlib(ids: np.ndarray, space: str) -> np.ndarray:
    """The published drawing: detectron2's Visualizer on white, lines of a point at 100 dots per inch."""
    import cv2

    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Polygon

    height, width = ids.shape
    figure = Figure(frameon=False, dpi=100, figsize=((width + 0.01) / 100, (height + 0.01) / 100))
    canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1))
    assert matplotlib.rcParamsDefault["figure.dpi"] == 100
    axes.axis("off")
    axes.imshow(np.full((height, width, 3), 255, np.uint8), extent=(0, width, height, 0))
    classes, areas = np.unique(ids, return_counts=True)
    for label in classes[np.argsort(-areas)]:
        colour = tuple(value / 255 for value in SPACES[space].colours[label])
        mask = (ids == label).astype(np.uint8)
        contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if (tree[0, :, 3] >= 0).any():
            filled = np.dstack([np.broadcast_to(colour, (height, width, 3)), mask]).astype(np.float32)
            axes.imshow(filled, extent=(0, width, height, 0))
            continue
        for contour in contours:
            if len(contour) >= 3:
                shape = Polygon(contour[:, 0] + 0.5, facecolor=colour, edgecolor=(1, 1, 1), linewidth=1)
                axes.add_patch(shape)
    data, (across, down) = canvas.print_to_buffer()
    return np.frombuffer(data, np.uint8).reshape(down, across, 4)[..., :3]


def test_outlines_are_those_that_matplotlib_draws_for_controlnet_11() -> None:
    import cv2

    ids = np.full((120, 160), 2, np.uint8)
    ids[70:] = 13
    cv2.circle(ids, (110, 80), 25, 4, -1)
    cv2.rectangle(ids, (10, 20), (50, 60), 17, -1)  # with a hole: no outline of its own
    cv2.circle(ids, (31, 41), 7, 12, -1)  # matplotlib would move a rectangle by up to a pixel
    cv2.fillPoly(ids, [np.array([[60, 10], [95, 40], [66, 55]])], 20)
    ids[100, 20] = 30  # a speck
    picture, published = drawn(ids, "ade20k_150", "cn11"), by_matplotlib(ids, "ade20k_150")
    apart = abs(picture.astype(int) - published).max(axis=2)
    apart[99:102, 19:22] = 0  # the speck, that matplotlib leaves white
    assert (apart > 16).mean() < 0.002
    assert tuple(picture[100, 20]) == SPACES["ade20k_150"].colours[30]
    plain = drawn(ids, "ade20k_150", "cn10")
    assert 0.04 < (picture != plain).any(axis=2).mean() < 0.12
    assert (picture == 255).all(axis=2).sum() > 250 and not (plain == 255).all(axis=2).any()
    inside = cv2.erode((ids == 4).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (picture[inside] == plain[inside]).all()


def test_ade20k_has_the_palette_of_controlnet_even_where_two_classes_share_a_colour() -> None:
    spec = importlib.util.find_spec("controlnet_aux")
    if spec is None or spec.origin is None:
        pytest.skip("controlnet_aux is not installed")
    # importing the package takes ten seconds
    tree = ast.parse(Path(spec.origin).with_name("util.py").read_text())
    function = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "ade_palette"
    )
    palette = [tuple(row) for row in ast.literal_eval(function.body[-1].value)]  # type: ignore[attr-defined]
    assert list(SPACES["ade20k_150"].colours) == palette
    colour = dict(zip(SPACES["ade20k_150"].names, palette, strict=True))
    assert colour["road"] == colour["skyscraper"] and len(set(palette)) == 149


def test_the_spaces_have_as_many_names_as_they_say_and_each_once() -> None:
    assert {space: len(each.names) for space, each in SPACES.items()} == {
        "ade20k_150": 150,
        "coco_stuff_171": 171,
        "coco_panoptic_133": 133,
    }
    for each in SPACES.values():
        assert len(set(each.names)) == len(each.names) == len(each.colours)
    ade = SPACES["ade20k_150"].names
    assert (ade[0], ade[2], ade[12], ade[136], ade[149]) == ("wall", "sky", "person", "traffic light", "flag")


def test_both_coco_spaces_begin_with_the_eighty_things_in_category_order() -> None:
    eighty = tuple(name for name in things()[1:] if name != "N/A")
    assert len(eighty) == 80
    assert SPACES["coco_stuff_171"].names[:80] == eighty
    assert SPACES["coco_panoptic_133"].names[:80] == eighty
    stuff = SPACES["coco_stuff_171"].names[80:]
    assert list(stuff) == sorted(stuff)  # as COCO-Stuff lists it
    kept = [name for name in SPACES["coco_panoptic_133"].names[80:] if not name.endswith("-merged")]
    assert len(kept) == 36 and kept == [name for name in stuff if name in kept]


def test_the_png_ids_of_coco_stuff_become_the_171_by_name() -> None:
    categories = things()[1:]  # PNG id = category id - 1; categories end at 90, the stuff begins at 92
    assert len(COCO_182_TO_171) == 182
    for png, name in enumerate(categories):
        if name == "N/A":
            assert COCO_182_TO_171[png] == VOID
        else:
            assert SPACES["coco_stuff_171"].names[COCO_182_TO_171[png]] == name
    assert COCO_182_TO_171[90] == VOID  # hair brush, never annotated
    assert COCO_182_TO_171[91:] == tuple(range(80, 171))
    assert SPACES["coco_stuff_171"].names[COCO_182_TO_171[156]] == "sky-other"  # category 157


def test_ade20k_pngs_have_void_at_zero_and_classes_from_one() -> None:
    png = np.array([[0, 1, 150], [255, 3, 7]], np.uint16)
    ids = translate(png, "ade20k_png")
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, [[VOID, 0, 149], [VOID, 2, 6]])
    np.testing.assert_array_equal(png, [[0, 1, 150], [255, 3, 7]])


@pytest.mark.parametrize("source", [name for name in SOURCES if name in SPACES])
def test_ids_that_are_of_a_space_already_stay_as_they_are(source: str) -> None:
    np.testing.assert_array_equal(translate(all_ids(source).astype(np.int32), source), all_ids(source))


@pytest.mark.parametrize(
    ("source", "bad", "words"),
    [
        ("ade20k_150", np.array([[3, 150]], np.uint8), "ade20k_150 has no id 150; its ids are 0 to 149"),
        ("ade20k_png", np.array([[151]], np.uint8), "ade20k_png has no id 151; its ids are 0 to 150"),
        ("coco_stuff_png", np.array([[182]], np.uint8), "no id 182"),
        ("coco_stuff_171", np.array([[70_000]], np.int32), "no id 70000"),
        ("coco_panoptic_133", np.array([[-1]], np.int16), "no id -1"),
        ("coco_panoptic_133", np.array([[1.0]], np.float32), "labels are integers, not float32"),
        ("cityscapes", np.array([[1]], np.uint8), "unknown coding of labels 'cityscapes'; known: ade20k_150"),
    ],
)
def test_labels_that_are_not_of_the_coding_are_named(source: str, bad: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        translate(bad, source)


def test_a_drawing_at_another_size_takes_the_nearest_pixel_and_invents_no_colour() -> None:
    ids = np.random.default_rng(0).choice(np.array([0, 1, 7, 149, VOID], np.uint8), (7, 11))
    h, w = 20, 5
    rows = ((np.arange(h) + 0.5) * 7 / h).astype(int)
    columns = ((np.arange(w) + 0.5) * 11 / w).astype(int)
    palette = np.array([*SPACES["ade20k_150"].colours, *[(0, 0, 0)] * 106], np.uint8)
    picture = render(RawMap("labels", ids, {"label_space": "ade20k_150"}), (h, w))
    np.testing.assert_array_equal(picture, palette[ids[np.ix_(rows, columns)]])


def test_sixteen_bit_labels_are_drawn_like_eight_bit_ones() -> None:
    ids = all_ids("coco_panoptic_133")
    meta = {"label_space": "coco_panoptic_133"}
    sixteen = RawMap("labels", ids.astype(np.uint16), meta)
    np.testing.assert_array_equal(render(sixteen, (40, 33)), render(RawMap("labels", ids, meta), (40, 33)))


def test_an_unknown_space_and_an_id_out_of_range_are_one_sentence_each() -> None:
    with pytest.raises(
        ValueError,
        match="unknown label space 'cityscapes_19'; known: ade20k_150, coco_stuff_171, coco_panoptic_133",
    ):
        render(RawMap("labels", np.zeros((2, 2), np.uint8), {"label_space": "cityscapes_19"}))
    with pytest.raises(
        ValueError, match="coco_panoptic_133 has no id 133; its ids are 0 to 132, and 255 for void"
    ):
        render(RawMap("labels", np.array([[0, 133]], np.uint8), {"label_space": "coco_panoptic_133"}))
    with pytest.raises(ValueError, match="ade20k_150 has no id 300"):
        render(RawMap("labels", np.array([[300, 255]], np.uint16), {"label_space": "ade20k_150"}))


def as_oneformer_names_them() -> dict[int, str]:
    """ADE20K in the words of Mask2Former's and OneFormer's own lists: ten other names, some with synonyms."""
    other = {
        6: "road, route",
        8: "window ",
        11: "sidewalk, pavement",
        37: "tub",
        38: "rail",
        87: "street lamp",
        89: "tv",
        90: "plane",
        92: "clothes",
        109: "pool",
        113: "falls",
        138: "trash can",
        65: "toilet, can, commode, crapper, pot, potty, stool, throne",
    }
    return dict(enumerate(SPACES["ade20k_150"].names)) | other


def test_synonyms_of_a_models_classes_are_the_same_classes() -> None:
    assert disagreement(as_oneformer_names_them(), "ade20k_150") is None
    short = {
        i: name.replace("-merged", "").replace("-other", "")
        for i, name in enumerate(SPACES["coco_panoptic_133"].names)
    }
    assert short[119] == "sky" and disagreement(short, "coco_panoptic_133") is None


def test_classes_in_another_order_or_number_are_told() -> None:
    names = as_oneformer_names_them()
    assert (
        disagreement(names | {2: "floor", 3: "sky"}, "ade20k_150")
        == "class 2 is 'floor' instead of 'sky' (ade20k_150)"
    )
    shifted = {0: "background"} | {i + 1: name for i, name in names.items()}
    assert disagreement(shifted, "ade20k_150") == "151 classes instead of the 150 of ade20k_150"
    coco = dict(enumerate(SPACES["coco_panoptic_133"].names))
    assert "class 111 is 'wall-wood' instead of 'wall-tile'" in str(
        disagreement(coco | {111: "wall-wood"}, "coco_panoptic_133")
    )
