"""Steps are complete and checked before anything runs; each mistake gets one sentence."""

import json

import pytest

from annotate.annotator import Step, identity, resolve


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cany",), r"unknown condition 'cany' \(did you mean 'canny'\?\); known: canny, hough"),
        (("canny", "opencv-cany"), r"no detector 'opencv-cany' \(did you mean 'opencv-canny'\?\)"),
        (("canny", "hed-bsds500"), "canny has no detector 'hed-bsds500'"),
        (("canny", "auto", {"weights": "x"}), "opencv-canny has no weights to choose"),
        (("depth_large",), "can't be made here: midas-dpt-hybrid"),
        (("canny", "auto", {"lo": 3}), r"no parameter 'lo' \(did you mean 'low'\?\); it has: low, high"),
        (("canny", "auto", {"low": "100"}), "low: an integer or a range .* is wanted, not '100'"),
        (("canny", "auto", {"low": True}), "not True"),
        (("canny", "auto", {"low": 1.5}), "an integer"),
        (("canny", "auto", {"low": [1, 2, 3]}), "two numbers"),
        (("canny", "auto", {"low": [90, 30]}), r"the range \[90, 30\] is empty; write \[30, 90\]"),
        (("canny", "auto", {"low": -1}), "set it between 0 and 10000"),
        (("canny", "auto", {"low": 300}), "low 300 lies above high 200; set high to 300 or more"),
        (("canny", "auto", {"low": [50, 250], "high": [100, 200]}), "set high to 250 or more"),
        (("hough", "auto", {"min_length": [1, 2]}), "a number is wanted"),
        (("hed", "auto", {"precision": "fp64"}), "set one of auto, fp32, bf16, int8"),
        (("sketch", "auto", {"masked": 1.5}), "out of range"),
        (
            ("sketch", "auto", {"preset": "publish"}),
            r"no preset 'publish' \(did you mean 'published'\?\); it has: pub",
        ),
        (("canny", "auto", {"preset": "published"}), "no parameter 'preset'"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_do(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        resolve(*arguments)
    assert "\n" not in str(caught.value)


def test_a_step_has_all_its_parameters() -> None:
    assert resolve("canny", params={"low": 50}) == Step(
        "canny", "opencv-canny", {"low": 50, "high": 200}, None
    )
    assert resolve("sketch").parent == "hed"


def test_a_preset_is_a_name_for_parameters_and_what_else_is_given_goes_before() -> None:
    demo = resolve("normal_extended", params={"preset": "demo"})
    assert demo == resolve("normal_extended", params={"bg_threshold": 0.4}) != resolve("normal_extended")
    assert (
        resolve("normal_extended", params={"bg_threshold": 0.2, "preset": "demo"}).params["bg_threshold"]
        == 0.2
    )
    thinner = resolve("sketch", params={"preset": "published", "width": 7})
    assert (thinner.params["width"], thinner.params["pen"], thinner.params["threshold"]) == (
        7,
        "blurred",
        127,
    )
    assert resolve("sketch", params={"preset": "published"}) == resolve(
        "sketch", params={"preset": "published"}
    )


def test_a_parameter_that_came_later_is_no_part_of_the_identity_where_it_stands_for_what_was_before() -> None:
    before = {"threshold": 100, "masked": 0.1, "thin": 1.0, "width": 5}
    assert identity(resolve("sketch", params={**before, "pen": "none"}))["params"] == before
    assert identity(resolve("sketch", params={**before, "pen": "round"}))["params"] == before | {
        "pen": "round"
    }


def test_parameters_of_one_call_never_leak_into_the_next() -> None:
    given = {"low": [10, 20]}
    first = resolve("canny", params=given)
    first.params["low"][0] = 99
    first.params["high"] = 1
    assert given == {"low": [10, 20]}
    assert resolve("canny").params == {"low": 100, "high": 200}
    assert resolve("canny", params=given).params["low"] == [10, 20]


def test_the_identity_is_json_and_says_what_made_the_map() -> None:
    step = resolve("canny", params={"low": 50})
    assert identity(step) == json.loads(json.dumps(identity(resolve("canny", params={"low": 50}))))
    assert identity(step)["library"][0].startswith("opencv") and identity(step)["weights"] is None
    assert identity(step) != identity(resolve("canny"))


def test_the_precision_and_the_weights_of_hed_are_on_record(needs_hed: None) -> None:
    found = identity(resolve("hed"))
    assert found["precision"] in ("fp32", "bf16", "int8") and len(found["weights"]) == 64
    assert identity(resolve("hed", params={"precision": "fp32"}))["precision"] == "fp32"
