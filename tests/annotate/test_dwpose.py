"""DWPose: what is computed before and after its graphs, against rtmlib on small graphs, and against answers
that are known.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate import dwpose, wholebody
from annotate.annotator import annotate, missing, resolve
from annotate.weights import WeightsError

GOLDEN = Path(__file__).with_name("golden") / "dwpose"  # small_graphs.py
LACK = missing("dwpose", str(GOLDEN))
if LACK:
    pytest.skip(LACK, allow_module_level=True)


def params(**others: Any) -> dict[str, Any]:
    given = {"weights": str(GOLDEN), "box_threshold": 0.1, "min_confidence": 0.0} | others
    return dict(resolve("pose_openpose", "dwpose", given).params)


def found(images: list[np.ndarray], **others: Any) -> list[np.ndarray]:
    return [raw.array for raw in dwpose.detect(images, params(**others), [], [], "cpu")]


def test_boxes_and_points_are_those_of_rtmlib(astronaut: np.ndarray) -> None:
    rtmlib = pytest.importorskip("rtmlib", reason="pip install --no-deps rtmlib")
    boxes, square = dwpose.load(dwpose.BOXES, "cpu", str(GOLDEN))
    pose, size = dwpose.load(dwpose.POSE, "cpu", str(GOLDEN))
    yolox = rtmlib.YOLOX(str(GOLDEN / "yolox_l.onnx"), square, nms_thr=dwpose.OVERLAP, score_thr=0.1)
    rtmpose = rtmlib.RTMPose(str(GOLDEN / "dw-ll_ucoco_384.onnx"), size[::-1])
    yolox.det_mode = "multiclass"
    noise = np.random.default_rng(0).integers(0, 128, astronaut.shape, np.uint8)  # no two cells alike
    uneven = astronaut // 2 + noise
    theirs, _ = yolox.preprocess(np.ascontiguousarray(uneven[..., ::-1]))
    np.testing.assert_array_equal(dwpose.letterbox(uneven, square)[0][0], theirs.transpose(2, 0, 1))
    # of the square's own shape: cells of the grey beside a picture have equal scores, whose order is chance
    for image in (uneven[:320, :480], uneven[100:300, 60:360], uneven[::3, ::2][:160, :240]):
        corners, classes = yolox(np.ascontiguousarray(image[..., ::-1]))
        seen, factor = dwpose.letterbox(image, square)
        ours = dwpose.people_boxes(boxes(seen)[0], square, factor, 0.1)
        assert len(ours) > 1
        known = corners[classes == 0]
        np.testing.assert_allclose(ours, known, rtol=1e-4, atol=1e-2)
        keypoints, scores = rtmpose(image, ours)
        for box, xy, score in zip(ours, keypoints, scores, strict=True):
            centre, scale = dwpose.region(box, size)
            mine = dwpose.points(pose(dwpose.crop(image, centre, scale, size)), centre, scale, size)
            seen_by_both = (score > 0.05) & (mine[:, 2] > 0.05)
            # a level of 1 in 255 that the two crops round otherwise may move the height of a tie
            assert (np.abs(mine[:, :2] - xy)[seen_by_both].max(axis=1) < 0.01).mean() > 0.98
            np.testing.assert_allclose(mine[seen_by_both, 2], score[seen_by_both], atol=0.02)


def test_an_image_has_the_same_people_alone_and_among_others(
    astronaut: np.ndarray, small: np.ndarray
) -> None:
    images = [small, astronaut, small[:, :100]]
    together = found(images)
    assert min(len(each) for each in together) >= 1
    for image, among in zip(images, together, strict=True):
        np.testing.assert_array_equal(found([image])[0], among)


def test_hands_and_face_stay_behind_either_layout(astronaut: np.ndarray) -> None:
    steps = [resolve(name, "dwpose", {"weights": str(GOLDEN), "box_threshold": 0.1}) for name in
             ("pose_openpifpaf", "pose_openpose")]  # fmt: skip
    made = annotate([astronaut], ["a"], steps)
    coco, openpose = (made[step.condition][0].map.array for step in steps)  # type: ignore[union-attr]
    assert coco.shape[1:] == (17 + wholebody.EXTRA, 3) and openpose.shape[1:] == (18 + wholebody.EXTRA, 3)
    np.testing.assert_array_equal(coco[:, 17:], openpose[:, 18:])
    assert len(found([astronaut], box_threshold=1.0)[0]) == 0, "nobody is found where there is no box"


def test_boxes_that_are_known_come_back_and_the_less_sure_of_two_goes() -> None:
    size, factor = (64, 96), 0.5
    output = np.zeros((1, 96 + 24 + 6, 6), np.float32)
    wanted = [(20, 10, 60, 90), (100, 20, 150, 100)]  # in an image of twice the size
    for cell, (x0, y0, x1, y1), score in (
        (13, wanted[0], 0.9),
        (14, (22, 12, 60, 92), 0.6),
        (40, wanted[1], 0.8),
    ):
        middle = np.array([x0 + x1, y0 + y1]) / 2 * factor
        sides = np.array([x1 - x0, y1 - y0]) * factor
        output[0, cell] = (*(middle / 8 - (cell % 12, cell // 12)), *np.log(sides / 8), score, 1.0)
    np.testing.assert_allclose(dwpose.people_boxes(output, size, factor, 0.3), wanted, atol=1e-3)
    assert len(dwpose.people_boxes(output, size, factor, 0.85)) == 1
    output[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        dwpose.people_boxes(output, size, factor, 0.3)


def test_points_that_are_known_come_back_within_half_a_bin() -> None:
    size, box = (384, 288), np.array([100.0, 40.0, 220.0, 300.0])
    centre, scale = dwpose.region(box, size)
    assert scale[0] / scale[1] == pytest.approx(288 / 384) and scale[1] == pytest.approx(260 * 1.25)
    rng = np.random.default_rng(0)
    wanted = centre + rng.uniform(-0.45, 0.45, (133, 2)) * scale
    bins = (wanted - centre + scale / 2) / scale * (288, 384) * 2
    x = np.exp(-((np.arange(576) - bins[:, :1]) ** 2) / 50)
    y = np.exp(-((np.arange(768) - bins[:, 1:]) ** 2) / 50)
    read = dwpose.points([x[None], y[None]], centre, scale, size)
    assert np.abs(read[:, :2] - wanted).max() <= 0.5 * scale[0] / 576 + 1e-3
    with pytest.raises(ValueError, match="not those of DWPose"):
        dwpose.points([x[None, :17], y[None, :17]], centre, scale, size)
    body = dwpose.stored(read[None])[0]
    np.testing.assert_array_equal(body[:17], read[:17])
    np.testing.assert_array_equal(body[17:][wholebody.LEFT], read[91:112])
    np.testing.assert_array_equal(body[17:][wholebody.RIGHT], read[112:133])
    np.testing.assert_array_equal(body[17:][wholebody.HEAD], read[23:91])


def test_a_file_that_is_no_graph_is_one_sentence(tmp_path: Path, small: np.ndarray) -> None:
    for name in ("dw-ll_ucoco_384.onnx", "yolox_l.onnx"):
        (tmp_path / name).write_bytes(b"no graph")
    with pytest.raises(WeightsError, match="is no graph that sees images of one size") as caught:
        found([small], weights=str(tmp_path))
    assert "\n" not in str(caught.value)
