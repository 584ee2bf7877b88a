"""Each detector against an independent statement of what it should do."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotate import edges, hed, inference, sketch
from annotate.annotator import annotate, identity, lack, resolve
from annotate.hed import MARGIN, MEAN_BGR, WEIGHTS, load
from annotate.inference import cpu_flags
from annotate.maps import RawMap
from annotate.skeletons import SKELETONS
from annotate.weights import find


def only(images: list[np.ndarray], condition: str, params: dict | None = None, **more: object) -> list:
    ids = [f"id{i}" for i in range(len(images))]
    return annotate(images, ids, [resolve(condition, params=params)], **more)[condition]  # type: ignore[arg-type]


def test_canny_is_opencvs_canny_of_the_rgb_image(astronaut: np.ndarray) -> None:
    found = only([astronaut], "canny", {"low": 80, "high": 160})[0]
    np.testing.assert_array_equal(found.map.array, cv2.Canny(astronaut, 80, 160))
    assert found.status == "ok" and found.measures["edge_density"] == pytest.approx(
        (found.map.array > 0).mean()
    )


def test_canny_is_opencvs_on_pictures_of_any_size_and_of_ties_between_channels() -> None:
    """Channels of five values tie often; a batch of several sizes and of one size shares its memory."""
    random = np.random.default_rng(0)
    sizes = [(1, 1), (1, 40), (33, 1), (2, 3), (61, 47), (61, 47), (61, 47), (64, 128)]
    pictures = [(random.integers(0, 5, (*size, 3)) * 60).astype(np.uint8) for size in sizes]
    for one, picture in zip(only(pictures, "canny", {"low": 90, "high": 300}), pictures, strict=True):
        np.testing.assert_array_equal(one.map.array, cv2.Canny(picture, 90, 300))


def test_canny_draws_stay_inside_their_ranges_and_in_order() -> None:
    params = resolve("canny", params={"low": [50, 150], "high": [100, 200]}).params
    drawn = [edges.draw_params(params, random.Random(i)) for i in range(300)]
    assert all(50 <= d["low"] <= 150 and 100 <= d["high"] <= 200 and d["low"] <= d["high"] for d in drawn)
    assert len({d["low"] for d in drawn}) > 50


def test_line_segments_lie_on_the_edges_and_the_surest_come_first() -> None:
    image = np.zeros((128, 160, 3), np.uint8)
    image[32:96, 40:120] = 255
    found = only([image], "hough")[0].map
    assert found.meta["size"] == [128, 160] and found.array.dtype == np.float32
    assert (np.diff(found.array[:, 4]) <= 0).all()
    vertical = found.array[np.abs(found.array[:, 0] - found.array[:, 2]) < 1]
    assert sorted(vertical[:, 0].tolist()) == pytest.approx([39.5, 119.5], abs=0.6), (
        "pixel centres lie at integers"
    )


def test_short_segments_go(astronaut: np.ndarray) -> None:
    counts = [
        only([astronaut], "hough", {"min_length": length})[0].measures["n_lines"] for length in (0, 40, 100)
    ]
    assert counts[0] > counts[1] > counts[2] > 0


def test_hed_is_the_published_computation_on_the_same_weights(small: np.ndarray, needs_hed: None) -> None:
    """Direct NCHW arithmetic from the HDF5 file, fused by a 1x1 convolution as in the paper, on
    an odd size.
    """
    import h5py
    import torch
    from torch.nn.functional import conv2d, interpolate, max_pool2d

    image = small[:101, :75]
    with h5py.File(find(WEIGHTS)) as file:
        pairs = {
            name: (
                torch.tensor(file[f"{name}/vars/0"][:]).permute(3, 2, 0, 1),
                torch.tensor(file[f"{name}/vars/1"][:]),
            )
            for name in [f"dsn{n}" for n in range(1, 6)] + ["fuse"]
        }
        for n, depth in enumerate((2, 2, 3, 3, 3), 1):
            for i in range(depth):
                name = f"block{n}/layers/conv2d" + ("", "_1", "_2")[i]
                pairs[name] = (
                    torch.tensor(file[f"{name}/vars/0"][:]).permute(3, 2, 0, 1),
                    torch.tensor(file[f"{name}/vars/1"][:]),
                )
    wide = np.pad(image, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "edge")
    x = torch.tensor(wide[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)).permute(2, 0, 1)[
        None
    ]
    sides = []
    for n, depth in enumerate((2, 2, 3, 3, 3), 1):
        x = max_pool2d(x, 2, ceil_mode=True) if n > 1 else x
        for i in range(depth):
            x = conv2d(x, *pairs[f"block{n}/layers/conv2d" + ("", "_1", "_2")[i]], padding="same").clamp(
                min=0
            )
        sides.append(
            interpolate(
                conv2d(x, *pairs[f"dsn{n}"]), size=wide.shape[:2], mode="bilinear", align_corners=False
            )
        )
    wanted = (
        255
        * conv2d(torch.cat(sides, 1), *pairs["fuse"]).sigmoid()[0, 0, MARGIN:-MARGIN, MARGIN:-MARGIN].numpy()
    )
    found = only([image], "hed", {"precision": "fp32"})[0].map.array
    assert np.abs(found - wanted).max() <= 0.51, (
        "half a step of rounding, and a little for another order of additions"
    )
    assert found.std() > 20, "a face has boundaries"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fast_hed_stays_within_two_of_255_on_a_photograph(
    astronaut: np.ndarray, precision: str, needs_hed: None
) -> None:
    if precision == "int8" and "avx512_vnni" not in cpu_flags():
        pytest.skip("int8 needs AVX512-VNNI")
    image = np.ascontiguousarray(astronaut[:256, 100:357])
    exact, fast = (
        only([image], "hed", {"precision": p})[0].map.array.astype(int) for p in ("fp32", precision)
    )
    assert np.abs(exact - fast).mean() < 2


@pytest.mark.parametrize(
    ("limit", "precision"),
    [("", "int8"), ("AVX512_CORE_VNNI", "int8"), ("AVX512_CORE", "fp32"), ("avx2", "fp32")],
)
def test_instructions_that_onednn_is_told_to_leave_alone_choose_no_precision(
    limit: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them int8 strays by 7.1 of 255 from fp32, with them by 0.7 (n = 1)."""
    (tmp_path / "cpuinfo").write_text("model name : x\nflags : fpu avx2 avx512f avx512_vnni\n")
    monkeypatch.setattr(inference, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(inference, "has_gpu", lambda: False)
    monkeypatch.setattr(inference, "cpu_flags", inference.cpu_flags.__wrapped__)
    assert hed.settle({"precision": "auto"}) == {"precision": precision}


@pytest.mark.parametrize(
    ("flags", "gpu", "precision"),
    [
        ({"avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}, False, "int8"),
        ({"avx512_vnni", "avx512_bf16"}, False, "int8"),
        ({"avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}, True, "bf16"),
        ({"avx2", "avx_vnni"}, False, "fp32"),
    ],
)
def test_auto_precision_of_hed_is_the_one_that_was_measured_to_be_the_fastest(
    flags: set[str], gpu: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "has_gpu", lambda: gpu)
    monkeypatch.setattr(inference, "cpu_flags", lambda: frozenset(flags))
    assert hed.settle({"precision": "auto"}) == {"precision": precision}
    assert hed.settle({"precision": "fp32"}) == {"precision": "fp32"}, "what is asked for is taken"


def test_a_machine_says_that_it_can_not_compute_in_int8(
    monkeypatch: pytest.MonkeyPatch, needs_hed: None
) -> None:
    """A node of a cluster without these instructions would give other maps than its driver."""
    monkeypatch.setattr(inference, "cpu_flags", lambda: frozenset({"avx2"}))
    step = resolve("hed", "hed-bsds500", {"precision": "int8"}, here=False)
    assert "needs a CPU with AVX512-VNNI" in str(lack(step))
    with pytest.raises(ValueError, match="hed: precision int8 needs a CPU with AVX512-VNNI"):
        resolve("hed", "hed-bsds500", {"precision": "int8"})
    monkeypatch.setattr(inference, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert lack(step) is None


def test_hed_gives_the_same_bytes_alone_and_in_a_batch_of_mixed_sizes(
    small: np.ndarray, needs_hed: None
) -> None:
    images = [small, small[:96, :64].copy(), small[::-1].copy(), small[:, ::-1].copy()]
    together = only(images, "hed")
    for image, found in zip(images, together, strict=True):
        assert found.map.array.shape == image.shape[:2]
        np.testing.assert_array_equal(found.map.array, only([image], "hed")[0].map.array)
    assert load.cache_info().hits > 0, "the network is loaded once per process"


def test_sketch_draws_replay_exactly_and_differ_between_images(
    astronaut: np.ndarray, needs_hed: None
) -> None:
    steps = [resolve("hed"), resolve("sketch")]
    images = [astronaut[:256, :256].copy()] * 2
    first = annotate(images, ["a", "b"], steps)
    again = annotate(
        images, ["c", "d"], steps, random_params={"sketch": [one.random_params for one in first["sketch"]]}
    )
    for one, other in zip(first["sketch"], again["sketch"], strict=True):
        assert one.random_params == other.random_params
        np.testing.assert_array_equal(one.map.array, other.map.array)
    assert first["sketch"][0].random_params != first["sketch"][1].random_params
    assert set(np.unique(first["sketch"][0].map.array)) == {0, 255}


DRAW = {
    "threshold": 100,
    "thin": False,
    "sigma": 1.5,
    "masked": 0.0,
    "mask_seed": 5,
    "morphology": "none",
    "width": 5,
}


def soft_lines() -> np.ndarray:
    """uint8 [256, 256]: a dozen separate soft strokes."""
    array = np.zeros((256, 256), np.uint8)
    for i in range(12):
        cv2.line(array, (20 + 20 * i, 30), (20 + 20 * i, 220), 255, 5)
    return cv2.GaussianBlur(array, (0, 0), 1.5)


def test_each_of_the_four_sketch_steps_does_what_it_says() -> None:
    plain = sketch.sketch(soft_lines(), DRAW)
    assert cv2.connectedComponents(plain)[0] - 1 == 12
    assert (sketch.sketch(soft_lines(), {**DRAW, "threshold": 200}) > 0).sum() < (plain > 0).sum()
    thin = sketch.sketch(soft_lines(), {**DRAW, "thin": True})
    assert (thin[128] > 0).sum() <= 24 < (plain[128] > 0).sum(), "at most two pixels of each stroke"
    assert (sketch.sketch(soft_lines(), {**DRAW, "morphology": "dilate"}) > 0).sum() > (plain > 0).sum()
    masked = [
        cv2.connectedComponents(sketch.sketch(soft_lines(), {**DRAW, "masked": 0.5, "mask_seed": s}))[0] - 1
        for s in range(20)
    ]
    assert 4 <= np.mean(masked) <= 8, "about half of the strokes go, each as a whole"
    assert not sketch.sketch(soft_lines(), {**DRAW, "masked": 1.0}).any()


def strokes_of(side: int) -> np.ndarray:
    """uint8 [side, side]: soft strokes far from each other, four upright and three aslant."""
    array = np.zeros((side, side), np.uint8)
    for i in range(4):
        x = side * (2 * i + 1) // 16
        cv2.line(array, (x, side // 8), (x, side * 7 // 8), 255, max(1, side // 100))
    for i in range(3):
        y = side * (2 * i + 2) // 10
        cv2.line(array, (side * 5 // 8, y), (side * 15 // 16, y + side // 6), 255, max(1, side // 100))
    return cv2.GaussianBlur(array, (0, 0), 1.5 * side / 512)


def width_of(strokes: np.ndarray) -> float:
    """Of most strokes, pixels: twice the distance from their middle to black."""
    from skimage.morphology import skeletonize

    inside = cv2.distanceTransform(np.pad(strokes, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return float(np.median(2 * inside[skeletonize(strokes > 0)] - 1))


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_strokes_are_one_to_twenty_four_pixels_wide_at_512_and_scale_with_the_side(side: int) -> None:
    params = resolve("sketch").params
    assert params["width"] == [1, 24] and params["pen"] == "round"
    soft, found = strokes_of(side), []
    for seed in range(48):
        drawn = sketch.draw_params({**params, "masked": 0.0}, random.Random(seed))
        wanted = max(1.0, drawn["width"] * side / 512)
        found.append(width_of(sketch.sketch(soft, drawn, "round")) * 512 / side)
        # a ridge may be of two pixels, and a disc of even size is not round
        slack = 2.5 * 512 / side if side < 512 else 2.5
        assert (0.75 if not drawn["thin"] else 1) * wanted * 512 / side - slack <= found[-1]
        assert found[-1] <= max(wanted * 512 / side, 1) + slack
    assert min(found) < 4 and max(found) > 20 and 8 < np.median(found) < 16
    assert np.mean(np.array(found) < 3) < 0.3


def test_the_preset_published_is_controlnet_10s_scribble_pixel_for_pixel() -> None:
    """gradio_scribble2image.py by its own words: nms(x, 127, 3.0), a blur of 3, white above 4."""
    step = resolve("sketch", params={"preset": "published"})
    assert step.params == {"threshold": 127, "masked": 0.0, "thin": 1.0, "width": 13, "pen": "blurred"}
    soft = cv2.GaussianBlur(strokes_of(512), (0, 0), 2.0)
    soft = np.maximum(soft, np.random.default_rng(0).integers(0, 90, soft.shape, dtype=np.uint8))
    draws = [sketch.draw_params(step.params, random.Random(seed)) for seed in range(3)]
    first = sketch.sketch(soft, draws[0], "blurred")
    assert all((sketch.sketch(soft, drawn, "blurred") == first).all() for drawn in draws[1:])
    np.testing.assert_array_equal(first, published_scribble(soft))
    assert 12 <= width_of(first) <= 18


def published_scribble(soft: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(soft.astype(np.float32), (0, 0), 3.0)
    around = np.pad(smooth, 1, mode="constant", constant_values=-np.inf)
    h, w = smooth.shape
    kept = np.zeros((h, w), bool)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        ahead = around[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
        behind = around[1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
        kept |= (smooth >= ahead) & (smooth >= behind)
    line = np.where(kept & (smooth > 127), np.uint8(255), np.uint8(0))
    return np.where(cv2.GaussianBlur(line, (0, 0), 3.0) > 4, np.uint8(255), np.uint8(0))


def test_sketches_of_before_keep_their_draws_and_their_identity() -> None:
    """By the parameters that were the default; the draw is golden, by the code of then."""
    old = {"threshold": [64, 192], "masked": [0.0, 0.5], "thin": 0.5, "width": [1, 7], "pen": "none"}
    step = resolve("sketch", params=old)
    assert identity(step)["params"] == {name: old[name] for name in old if name != "pen"}
    assert identity(resolve("sketch"))["params"]["pen"] == "round"
    assert sketch.draw_params(step.params, random.Random(3)) == {
        "threshold": 124,
        "thin": False,
        "sigma": 1.261,
        "masked": 0.458,
        "mask_seed": 2036044446,
        "morphology": "none",
        "width": 5,
    }


def test_a_faint_edge_map_still_gives_a_sketch() -> None:
    assert sketch.sketch((soft_lines() // 8), DRAW).any()


def test_cartoon_lines_are_white_on_black_and_follow_the_contours(astronaut: np.ndarray) -> None:
    found = only([astronaut], "cartoon")[0]
    assert set(np.unique(found.map.array)) == {0, 255}
    assert 0.02 < found.measures["edge_density"] < 0.3
    near_edges = cv2.dilate(cv2.Canny(astronaut, 50, 100), np.ones((9, 9), np.uint8)) > 0
    assert near_edges[found.map.array > 0].mean() > 0.9


def test_the_astronauts_pose_is_plausible_and_left_is_her_left(
    astronaut: np.ndarray, needs_pose: None
) -> None:
    steps = [resolve("pose_openpose"), resolve("pose_openpifpaf")]
    found = annotate([astronaut], ["a"], steps)
    for condition, layout in (("pose_openpose", "openpose_18"), ("pose_openpifpaf", "coco_17")):
        raw = found[condition][0].map
        assert raw.array.shape == (1, len(SKELETONS[layout].names), 3) and raw.meta == {
            "size": [512, 512],
            "layout": layout,
        }
        point = dict(zip(SKELETONS[layout].names, raw.array[0], strict=True))
        left, right, nose = point["left_shoulder"], point["right_shoulder"], point["nose"]
        assert left[0] > nose[0] > right[0], "she faces us"
        assert nose[1] < min(left[1], right[1])
        assert point["left_eye"][0] > point["right_eye"][0]
        assert not point["left_ankle"].any(), "outside the picture is missing"
        assert 190 < nose[0] < 260 and 80 < nose[1] < 160
    neck = found["pose_openpose"][0].map.array[0, 1]
    assert neck[:2] == pytest.approx((left[:2] + right[:2]) / 2)


def test_a_picture_without_people_is_skipped_and_kept(flat: np.ndarray, needs_pose: None) -> None:
    found = only([flat], "pose_openpifpaf")[0]
    assert (found.status, found.reason, found.map.array.shape) == ("skipped", "no person", (0, 17, 3))


@pytest.mark.parametrize("condition", ["canny", "hough", "cartoon"])
def test_a_flat_image_is_skipped(flat: np.ndarray, condition: str) -> None:
    found = only([flat], condition)[0]
    assert found.status == "skipped" and found.reason and isinstance(found.map, RawMap)


@pytest.mark.parametrize("value", [0, 60, 120, 180, 255])
def test_hed_and_its_sketch_skip_a_flat_image(flat: np.ndarray, value: int, needs_hed: None) -> None:
    found = annotate([np.full_like(flat, value)], ["a"], [resolve("sketch"), resolve("hed")])
    assert found["hed"][0].status == "skipped", found["hed"][0].map.array.max()
    assert found["sketch"][0].status == "skipped" and found["sketch"][0].map is None


@pytest.mark.parametrize("value", [0, 255])
def test_hed_draws_no_frame_around_a_plain_margin(value: int, needs_hed: None) -> None:
    image = cv2.circle(np.full((128, 128, 3), value, np.uint8), (64, 64), 30, (200, 30, 40), -1)
    found = only([image], "hed")[0].map.array
    assert found.max() > 200 and max(found[:12].max(), found[:, -12:].max()) < 12
