"""Raw maps are stored without loss and drawn by named protocols."""

import json

import cv2
import numpy as np
import pytest

from annotate import planes
from annotate.conditions import CONDITIONS, MEASURES, MEASURES_OF
from annotate.drawing import draw
from annotate.maps import RawMap, blank, decode, depth_map, encode, measures, portable, render
from annotate.skeletons import SKELETONS

RNG = np.random.default_rng(0)
H, W = 37, 53  # not a multiple of eight: 1-bit rows end inside a byte


def example(kind: str) -> RawMap:
    unit = RNG.normal(size=(H, W, 3))
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    unit[:4] = 0
    return {
        "edges": RawMap("edges", (RNG.random((H, W)) > 0.8).astype(np.uint8) * 255),
        "soft_edges": RawMap("soft_edges", RNG.integers(0, 256, (H, W), dtype=np.uint8)),
        "lines": RawMap("lines", RNG.random((5, 5)).astype(np.float32) * 30, {"size": [H, W]}),
        "people": RawMap(
            "people",
            RNG.random((2, 18, 3)).astype(np.float32) * 30,
            {"size": [H, W], "layout": "openpose_18"},
        ),
        "labels": RawMap(
            "labels", RNG.integers(0, 150, (H, W), dtype=np.uint8), {"label_space": "ade20k_150"}
        ),
        "depth": depth_map(RNG.random((H, W)) * 40 + 3),
        "normals": RawMap("normals", unit.astype(np.float32)),
    }[kind]


@pytest.mark.parametrize("kind", ["edges", "soft_edges", "lines", "people", "labels"])
def test_the_stored_bytes_give_the_same_map_back(kind: str) -> None:
    raw = example(kind)
    back = decode(kind, encode(raw), json.loads(json.dumps(raw.meta)))
    assert back.array.dtype == raw.array.dtype and back.meta == raw.meta
    np.testing.assert_array_equal(back.array, raw.array)


def test_edges_take_one_bit_per_pixel() -> None:
    data = encode(example("edges"))
    assert data[24] == 1, "bit depth in the PNG header"


def test_labels_above_255_keep_sixteen_bits() -> None:
    raw = RawMap("labels", np.array([[0, 300], [65535, 255]], np.uint16), {"label_space": "coco_stuff_171"})
    np.testing.assert_array_equal(decode("labels", encode(raw), raw.meta).array, raw.array)


def test_depth_comes_back_within_half_a_step_of_sixteen_bits() -> None:
    raw = example("depth")
    back = decode("depth", encode(raw), raw.meta)
    assert np.abs(back.array - raw.array).max() <= 0.51 * raw.meta["scale"]
    assert encode(back) == encode(raw)


def test_normals_come_back_within_a_step_and_invalid_stays_invalid() -> None:
    raw = example("normals")
    back = decode("normals", encode(raw), {})
    assert np.abs(back.array - raw.array).max() < 1 / 32767
    assert not back.array[:4].any()
    png = portable(encode(RawMap("normals", np.float32([[[1, 0, -1]]]))))
    rgb = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[0, 0, ::-1]
    assert rgb.tolist() == [65534, 32767, 0], "x is red, y green, z blue"


@pytest.mark.parametrize("kind", ["depth", "normals"])
def test_maps_that_earlier_versions_stored_as_png_stay_readable_and_are_handed_out_so(kind: str) -> None:
    raw = example(kind)
    png = portable(encode(raw))
    assert png.startswith(b"\x89PNG") and portable(png) == png
    before, now = decode(kind, png, raw.meta).array, decode(kind, encode(raw), raw.meta).array
    assert before.dtype == now.dtype == np.float32 and before.flags.c_contiguous and now.flags.c_contiguous
    np.testing.assert_array_equal(before, now)
    code = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if kind == "depth":
        right = (code * raw.meta["scale"] + raw.meta["shift"]).astype(np.float32)
    else:
        right = np.where(code.any(axis=2)[..., None], code[..., ::-1] / 32767.0 - 1, 0).astype(np.float32)
    np.testing.assert_array_equal(now, right)


def test_other_maps_are_handed_out_as_stored() -> None:
    for kind in ("edges", "soft_edges", "lines", "people", "labels"):
        data = encode(example(kind))
        assert portable(data) == data


def test_every_code_of_a_normal_stands_for_the_value_that_it_stood_for() -> None:
    codes = np.stack([np.arange(65536, dtype=np.uint16).reshape(256, 256)] * 3)
    codes[1] += 1  # none is 0 0 0
    array = decode("normals", planes.encode(codes), {}).array
    np.testing.assert_array_equal(array[..., 0], (codes[0] / 32767.0 - 1).astype(np.float32))


def test_a_map_of_another_kind_and_bytes_of_no_map_are_refused() -> None:
    with pytest.raises(ValueError, match="has 1 planes, not 3"):
        decode("normals", encode(example("depth")), {})
    with pytest.raises(ValueError, match="not a PNG"):
        decode("depth", b"nothing", {"scale": 1.0, "shift": 0.0})


def test_no_people_and_no_lines_are_stored_too() -> None:
    for kind, shape, meta in [
        ("lines", (0, 5), {"size": [H, W]}),
        ("people", (0, 17, 3), {"size": [H, W], "layout": "coco_17"}),
    ]:
        raw = RawMap(kind, np.zeros(shape, np.float32), meta)
        assert decode(kind, encode(raw), meta).array.shape == shape
        assert blank(raw) is not None
        assert not render(raw).any()


def test_a_map_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ValueError, match="edges is uint8"):
        RawMap("edges", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="needs meta: size"):
        RawMap("lines", np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match="known: edges"):
        RawMap("colours", np.zeros((4, 4), np.uint8))


def test_every_kind_measures_exactly_the_declared_names() -> None:
    for kind, names in MEASURES_OF.items():
        assert tuple(measures(example(kind))) == names
        assert set(names) <= set(MEASURES)
    assert {row.kind for row in CONDITIONS.values()} == set(MEASURES_OF)


def test_flat_maps_are_blank_and_full_ones_are_not() -> None:
    for kind in MEASURES_OF:
        assert blank(example(kind)) is None
    assert blank(RawMap("edges", np.zeros((4, 4), np.uint8))) == "no edges"
    assert "flat" in str(blank(depth_map(np.full((4, 4), 2.0))))
    assert blank(RawMap("normals", np.zeros((4, 4, 3), np.float32))) == "no valid normal"
    assert "flat" in str(
        blank(RawMap("labels", np.full((4, 4), 255, np.uint8), {"label_space": "ade20k_150"}))
    )


def test_the_keypoint_fraction_is_that_of_the_best_person() -> None:
    people = np.zeros((2, 17, 3), np.float32)
    people[0, :3] = 1
    people[1, :9] = 1
    found = measures(RawMap("people", people, {"size": [9, 9], "layout": "coco_17"}))
    assert found == {"n_people": 2, "keypoint_fraction": pytest.approx(9 / 17)}


@pytest.mark.parametrize("kind", ["edges", "soft_edges", "lines", "people", "depth", "normals"])
@pytest.mark.parametrize("size", [None, (64, 80), (16, 24)])
def test_every_drawing_is_rgb_bytes_of_the_size_asked_for(kind: str, size: tuple[int, int] | None) -> None:
    for protocol in ("cn10", "cn11"):
        drawn = render(example(kind), size, protocol)
        assert drawn.dtype == np.uint8 and drawn.shape == (*(size or (H, W)), 3)


def test_three_quarters_of_a_training_sets_soft_edges_are_in_steps_by_seed_and_image_id() -> None:
    """ControlNet 1.1's share; 4000 draws are within 0.03 of it in all but one of 10^5 seeds."""
    shares, first = [], draw("soft_edges", "cn11", 0, "a")
    for seed in range(3):
        drawn = [draw("soft_edges", "cn11", seed, f"{i:064x}")["safe_steps"] for i in range(4000)]
        assert abs(np.mean(drawn) - 0.75) < 0.03
        shares.append(drawn)
    assert shares[0] != shares[1] != shares[2]
    assert all(draw("soft_edges", "cn11", 0, "a") == first for _ in range(3))
    quiet = [(kind, "cn11") for kind in ("edges", "labels", "people")] + [("soft_edges", "cn10")]
    assert all(draw(kind, protocol, 0, "a") == {} for kind, protocol in quiet)


def test_a_soft_edge_is_drawn_as_was_drawn_for_its_image_and_in_steps_where_nothing_was() -> None:
    raw = RawMap("soft_edges", np.arange(256, dtype=np.uint8)[None])
    plain, stepped = (render(raw, protocol="cn11", drawn={"safe_steps": safe}) for safe in (False, True))
    np.testing.assert_array_equal(plain, render(raw))
    np.testing.assert_array_equal(stepped, render(raw, protocol="cn11"))
    assert np.unique(stepped).tolist() == [0, 127, 255]


def test_edges_are_white_on_black_and_survive_shrinking() -> None:
    array = np.zeros((64, 64), np.uint8)
    array[:, 31] = 255
    assert render(RawMap("edges", array))[5, 31].tolist() == [255] * 3
    smaller = render(RawMap("edges", array), (16, 16))
    assert set(np.unique(smaller)) == {0, 255} and (smaller[:, 7] == 255).all()


def test_near_is_white_and_a_flat_depth_does_not_divide_by_zero() -> None:
    drawn = render(depth_map(np.array([[1.0, 5.0]])))
    assert drawn[0, :, 0].tolist() == [0, 255]
    assert not render(depth_map(np.full((4, 4), 7.0))).any()


def test_normals_follow_each_protocol() -> None:
    viewer, right = RawMap("normals", np.float32([[[0, 0, 1]]])), RawMap("normals", np.float32([[[1, 0, 0]]]))
    assert render(viewer, protocol="cn11")[0, 0].tolist() == [127, 127, 255], "blue is front"
    assert render(viewer, protocol="cn10")[0, 0].tolist() == [
        255,
        127,
        127,
    ], "fed with red and blue exchanged"
    assert render(right, protocol="cn11")[0, 0].tolist() == [0, 127, 127], "red is left"


def test_lines_are_one_pixel_wide_and_move_with_the_resolution() -> None:
    raw = RawMap("lines", np.float32([[2, 3, 2, 8, 1]]), {"size": [16, 16]})
    assert np.argwhere(render(raw)[..., 0]).tolist() == [[y, 2] for y in range(3, 9)]
    assert set(np.argwhere(render(raw, (32, 32))[..., 0])[:, 1]) == {4}


def person(layout: str, **points: tuple[float, float]) -> RawMap:
    names = SKELETONS[layout].names
    array = np.zeros((1, len(names), 3), np.float32)
    for name, xy in points.items():
        array[0, names.index(name)] = (*xy, 1)
    return RawMap("people", array, {"size": [120, 120], "layout": layout})


def test_openpose_1_0_blends_limbs_over_joints() -> None:
    drawn = render(person("openpose_18", neck=(60, 20), right_shoulder=(20, 20), left_wrist=(100, 100)))
    assert drawn[100, 100].tolist() == [0, 255, 85], "a joint without a limb keeps its full colour"
    assert drawn[20, 40].tolist() == [153, 0, 0], "the limb is 0.6 of its colour on black"
    assert drawn[20, 58].tolist() == [
        round(0.4 * 255 + 0.6 * 255),
        round(0.4 * 85),
        0,
    ], "and 0.6 over the neck's joint"
    assert drawn[24, 40].tolist() == [153, 0, 0] and drawn[25, 40].tolist() == [
        0,
        0,
        0,
    ], "4 pixels to each side"
    assert drawn[60, 60].tolist() == [0, 0, 0], "a missing joint draws nothing"


def test_openpose_1_1_puts_joints_on_top_of_limbs() -> None:
    drawn = render(person("openpose_18", neck=(60, 20), right_shoulder=(20, 20)), protocol="cn11")
    assert drawn[20, 40].tolist() == [153, 0, 0]
    assert drawn[20, 58].tolist() == [255, 85, 0], "the neck's own colour"


def test_the_skeletons_have_the_published_numbers_of_limbs_and_colours() -> None:
    openpose, coco = SKELETONS["openpose_18"], SKELETONS["coco_17"]
    assert (len(openpose.names), len(openpose.limbs), len(openpose.colours)) == (18, 17, 18)
    assert (len(coco.names), len(coco.limbs), len(set(coco.colours))) == (17, 19, 19)
    assert openpose.limbs[:3] == ((1, 2), (1, 5), (2, 3)) and openpose.limbs[-1] == (15, 17)
    # OpenPifPaf counts from one: ankle-knee first, ear-shoulder last
    assert (coco.limbs[0], coco.limbs[-1]) == ((15, 13), (4, 6))


def test_coco_people_are_drawn_with_white_joints() -> None:
    drawn = render(person("coco_17", left_ankle=(30, 100), left_knee=(30, 60)))
    assert drawn[100, 30].tolist() == [255] * 3
    assert drawn[80, 30].tolist() == [255, 0, 0]


def test_an_unknown_protocol_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="cn10, cn11"):
        render(example("edges"), protocol="cn12")
