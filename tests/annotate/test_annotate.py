"""One pass over a batch: shared work, order of parents, draws, and failures that stay where they happened."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from annotate import annotator
from annotate.annotator import DETECTORS, Annotation, annotate, resolve
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap, depth_map

BAD = 13  # pixel value that makes the fake detector raise


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Detectors whose work is a stub; the list holds the batch size of each call."""
    seen: list[int] = []

    def soft(images: list, params: dict, random_params: list, parents: list, device: str) -> list[RawMap]:
        seen.append(len(images))
        params["precision"] = "spoilt by the detector"
        if any((image == BAD).all() for image in images):
            raise ArithmeticError("thirteen")
        return [RawMap("soft_edges", image[..., 0]) for image in images]

    def child(images: list, params: dict, random_params: list, parents: list, device: str) -> list[RawMap]:
        return [
            RawMap("edges", np.where(parent.array > 100, np.uint8(255), np.uint8(0))) for parent in parents
        ]

    def pose(images: list, params: dict, random_params: list, parents: list, device: str) -> list[RawMap]:
        seen.append(len(images))
        return [
            RawMap("people", np.full((1, 17, 3), 5, np.float32), {"size": [32, 32], "layout": "coco_17"})
            for _ in images
        ]

    always = {"modules": (), "weights": ()}
    monkeypatch.setitem(
        DETECTORS, "hed-bsds500", replace(DETECTORS["hed-bsds500"], detect=soft, settle=None, **always)
    )
    monkeypatch.setitem(DETECTORS, "sketch-hed", replace(DETECTORS["sketch-hed"], detect=child, **always))
    monkeypatch.setitem(DETECTORS, "movenet", replace(DETECTORS["movenet"], detect=pose, **always))
    yield seen


def pictures(*values: int) -> list[np.ndarray]:
    """Images of one value with a bright square, except BAD and 0, which are all of one value."""
    images = [np.full((32, 32, 3), value, np.uint8) for value in values]
    for image, value in zip(images, values, strict=True):
        if value not in (BAD, 0):
            image[8:24, 8:24] = 200
    return images


def test_the_bad_image_of_a_batch_fails_alone(calls: list[int]) -> None:
    found = annotate(pictures(50, BAD, 60), ["a", "b", "c"], [resolve("hed")])["hed"]
    assert [one.status for one in found] == ["ok", "failed", "ok"]
    assert found[1].reason == "ArithmeticError: thirteen" and found[1].map is None
    assert calls == [3, 1, 1, 1]


def test_a_child_shares_the_fate_of_its_parent(calls: list[int]) -> None:
    found = annotate(pictures(50, BAD, 0), ["a", "b", "c"], [resolve("sketch"), resolve("hed")])
    assert list(found) == ["sketch", "hed"], "in the order asked for, whatever runs first"
    assert [one.status for one in found["sketch"]] == ["ok", "failed", "skipped"]
    assert found["sketch"][1].reason == "hed was failed: ArithmeticError: thirteen"
    assert found["sketch"][2].reason.startswith("hed was skipped: ")


def test_two_conditions_of_one_detector_take_one_pass(calls: list[int]) -> None:
    found = annotate(pictures(50, 60), ["a", "b"], [resolve("pose_openpose"), resolve("pose_openpifpaf")])
    assert calls == [2]
    assert [found[c][0].map.array.shape[1] for c in ("pose_openpose", "pose_openpifpaf")] == [18, 17]


def test_conditions_that_share_their_maps_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def depth(images: list, params: dict, random_params: list, parents: list, device: str) -> list[RawMap]:
        seen.append(len(images))
        return [depth_map(image[..., 0].astype(np.float32)) for image in images]

    row = replace(DETECTORS["midas-dpt-hybrid"], detect=depth, settle=None, modules=(), weights=())
    monkeypatch.setitem(DETECTORS, "midas-dpt-hybrid", row)
    steps = [
        resolve(name, "midas-dpt-hybrid", {"precision": "fp32"}) for name in ("depth_large", "depth_small")
    ]
    found = annotate(pictures(50, 60), ["a", "b"], [*steps, resolve("normal_extended")])
    assert seen == [2] and found["depth_small"][1].map.array is found["depth_large"][1].map.array


def test_other_parameters_take_another_pass(calls: list[int]) -> None:
    annotate(
        pictures(50),
        ["a"],
        [resolve("pose_openpose"), resolve("pose_openpifpaf", params={"min_confidence": 0.1})],
    )
    assert calls == [1, 1]


def test_a_detector_that_spoils_its_parameters_spoils_only_its_copy(calls: list[int]) -> None:
    step = resolve("hed")
    annotate(pictures(50), ["a"], [step])
    assert step.params == resolve("hed").params == {"precision": "auto"}


def test_parents_that_are_there_already_are_not_made_again(calls: list[int]) -> None:
    parent = Annotation("ok", map=RawMap("soft_edges", pictures(50)[0][..., 0]))
    found = annotate(pictures(50), ["a"], [resolve("sketch")], given={"hed": [parent]})
    assert list(found) == ["sketch"] and found["sketch"][0].status == "ok" and calls == []


def test_a_child_without_its_parent_is_refused_by_name(calls: list[int]) -> None:
    with pytest.raises(ValueError, match="sketch is made from hed: add hed"):
        annotate(pictures(50), ["a"], [resolve("sketch")])
    with pytest.raises(ValueError, match="1 images but 2 image ids"):
        annotate(pictures(50), ["a", "b"], [resolve("hed")])


def test_no_images_give_no_annotations(calls: list[int]) -> None:
    assert annotate([], [], [resolve("hed"), resolve("sketch")]) == {"hed": [], "sketch": []}


def test_random_thresholds_depend_on_the_image_id_alone(small: np.ndarray) -> None:
    step = resolve("canny", params={"low": [10, 150], "high": [150, 255]})
    other = small[::-1].copy()
    whole = annotate([small, other, small], ["a", "b", "c"], [step])["canny"]
    alone = annotate([other], ["b"], [step, resolve("hough")])["canny"]
    assert (
        whole[1].random_params == alone[0].random_params
        and len({str(one.random_params) for one in whole}) == 3
    )
    np.testing.assert_array_equal(whole[1].map.array, alone[0].map.array)


def test_stored_draws_are_used_instead_of_new_ones(small: np.ndarray) -> None:
    step = resolve("canny", params={"low": [10, 150], "high": [150, 255]})
    stored = annotate([small], ["a"], [step])["canny"][0]
    again, fresh = annotate(
        [small, small], ["x", "x"], [step], random_params={"canny": [stored.random_params, None]}
    )["canny"]
    assert again.random_params == stored.random_params != fresh.random_params
    np.testing.assert_array_equal(again.map.array, stored.map.array)


def test_fixed_thresholds_draw_nothing(small: np.ndarray) -> None:
    assert annotate([small], ["a"], [resolve("canny")])["canny"][0].random_params == {}


def test_every_draw_is_json_and_repeats_for_the_same_seed() -> None:
    import json

    for condition, row in CONDITIONS.items():
        for name in row.detectors:
            if name in DETECTORS and DETECTORS[name].draw_params is not None:
                params: dict[str, Any] = resolve(condition, name).params
                first, second = (DETECTORS[name].draw_params(params, random.Random(7)) for _ in range(2))  # type: ignore[misc]
                assert first == second == json.loads(json.dumps(first))


def test_the_public_names_are_there() -> None:
    assert all(hasattr(annotator, name) for name in annotator.__all__)
