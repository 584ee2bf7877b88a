"""What label ids mean, and in which colours they are drawn.

The golden pictures were made from the published lists, not by this code.
"""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotate.label_spaces import COCO_182_TO_171, SOURCES, SPACES, VOID, disagreement, translate
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


@pytest.mark.parametrize("protocol", ["cn10", "cn11"])
@pytest.mark.parametrize("space", SPACES)
def test_every_id_and_void_is_drawn_as_in_the_golden_picture_byte_for_byte(space: str, protocol: str) -> None:
    golden = np.asarray(Image.open(GOLDEN / f"{space}.png"))
    drawn = render(RawMap("labels", all_ids(space), {"label_space": space}), protocol=protocol)
    assert drawn.dtype == np.uint8 and drawn.shape == golden.shape
    assert drawn.tobytes() == golden.tobytes()


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
    drawn = render(RawMap("labels", ids, {"label_space": "ade20k_150"}), (h, w))
    np.testing.assert_array_equal(drawn, palette[ids[np.ix_(rows, columns)]])


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
