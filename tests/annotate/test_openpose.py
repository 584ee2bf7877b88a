"""OpenPose's body keypoints: against the library's own call on the same weights and fields, and against
people that are known.
"""

import contextlib
import functools
import io
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from annotate import openpose
from annotate.annotator import Annotation, annotate, missing, resolve
from annotate.maps import RawMap, measures
from annotate.openpose import LIMBS, MOST_PEAKS, PARTS, decode, find_peaks
from annotate.weights import WeightsError
from benchmarks import fields

PARAMS = resolve("pose_openpose", "openpose", {"precision": "fp32"}, here=False).params

LACK = missing("openpose", __file__)  # any file will do for weights: what else is missing?
if LACK:
    pytest.skip(LACK, allow_module_level=True)


@functools.cache
def library() -> ModuleType:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import controlnet_aux.open_pose
    return controlnet_aux.open_pose


def librarys_people(heat: np.ndarray, affinity: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What the library's whole procedure makes of an image of `size` when its network answers with these
    fields.
    """

    class Answer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert x.shape[2] == 8 * heat.shape[1] and x.shape[3] == 8 * heat.shape[2]
            return torch.tensor(affinity)[None], torch.tensor(heat)[None]

    body = library().Body.__new__(library().Body)
    body.model = Answer()
    return as_array(body, np.zeros((*size, 3), np.uint8))


def as_array(body: Any, image: np.ndarray) -> np.ndarray:
    """float32 [P, 18, 3] with scores from 0 to 1, as ours."""
    candidates, subset = body(image)
    found = np.zeros((len(subset), PARTS, 3), np.float32)
    for n, person in enumerate(subset):
        for part in range(PARTS):
            if person[part] >= 0:
                found[n, part] = candidates[int(person[part])][:3]
    found[..., 2] = found[..., 2].clip(None, 1)
    return found


def crowd(n: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """n people side by side, each joint moved a little."""
    rng = np.random.default_rng(seed)
    step = size[1] / n
    return np.stack(
        [
            fields.figure(step * (k + 0.5), size[0] * 0.15, size[0] * rng.uniform(0.55, 0.75), rng)
            for k in range(n)
        ]
    )


def errors(found: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Distances in pixels of the keypoints that both have, people matched by the nearest neck."""
    assert len(found) == len(people)
    order = [int(np.hypot(*(found[:, 1, :2] - person[1, :2]).T).argmin()) for person in people]
    assert sorted(order) == list(range(len(people))), "each person once"
    np.testing.assert_array_equal(
        found[order][..., 2] > 0, people[..., 2] > 0, "the same keypoints are missing"
    )
    return np.hypot(*(found[order][..., :2] - people[..., :2])[people[..., 2] > 0].T)


def random_network(seed: int = 0) -> torch.nn.Module:
    """The true architecture; its last layers give fields that pass the thresholds in some places of this
    image.
    """
    from controlnet_aux.open_pose.model import bodypose_model

    torch.manual_seed(seed)
    network = bodypose_model().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.nn.init.zeros_(module.bias)
    seen: dict[Any, torch.Tensor] = {}
    for branch, mean, spread in ((network.model6_1, 0.0, 1.5), (network.model6_2, -0.4, 0.5)):
        last = [module for module in branch if isinstance(module, torch.nn.Conv2d)][-1]
        handle = last.register_forward_hook(
            lambda module, _, out, last=last: seen.__setitem__(last, out.clone())
        )
        with torch.inference_mode():
            network(torch.from_numpy(np.random.default_rng(seed).random((1, 3, 184, 184), np.float32) - 0.5))
        handle.remove()
        with torch.no_grad():
            deviation, middle = torch.std_mean(seen[last], dim=(0, 2, 3))
            last.weight *= (spread / deviation)[:, None, None, None]
            last.bias.copy_(mean - middle * spread / deviation)
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as it is published: a state dict without the names of the blocks."""
    library()
    return save(random_network(), tmp_path_factory.mktemp("openpose") / "body_pose_model.pth")


def save(network: torch.nn.Module, place: Path) -> Path:
    torch.save({name.split(".", 1)[1]: value for name, value in network.state_dict().items()}, place)
    return place


def detect(images: list[np.ndarray], weights: Path, **params: Any) -> list[Annotation]:
    step = resolve("pose_openpose", "openpose", {"weights": str(weights), "precision": "fp32", **params})
    return annotate(images, [f"id{i}" for i in range(len(images))], [step])["pose_openpose"]


# --- decoding ---


@pytest.mark.parametrize("size", [(512, 512), (512, 704), (704, 512), (300, 401), (160, 128)])
def test_drawn_fields_give_the_librarys_people_to_the_pixel(size: tuple[int, int]) -> None:
    people = crowd(2, size)
    people[1, [4, 10]] = 0
    heat, affinity, network = fields.fields_of(people, size)
    found, wanted = decode(heat, affinity, size, network, PARAMS), librarys_people(heat, affinity, size)
    np.testing.assert_array_equal(found[..., :2], wanted[..., :2])
    np.testing.assert_allclose(found[..., 2], wanted[..., 2], atol=1e-5)
    assert len(found) == 2


@pytest.mark.parametrize("seed", range(4))
def test_noisy_fields_give_the_librarys_people_to_the_pixel(seed: int) -> None:
    """Smooth noise over two people: peaks without a person, limbs that lead nowhere, parts that two people
    claim.
    """
    from scipy.ndimage import gaussian_filter

    size = (256, 224)
    rng = np.random.default_rng(seed)
    heat, affinity, network = fields.fields_of(crowd(2, size, seed), size)
    heat += np.stack([0.6 * gaussian_filter(rng.normal(size=heat.shape[1:]), 1.2) for _ in heat]).astype(
        np.float32
    )
    affinity += np.stack(
        [2.5 * gaussian_filter(rng.normal(size=heat.shape[1:]), 2) for _ in affinity]
    ).astype(np.float32)
    found, wanted = decode(heat, affinity, size, network, PARAMS), librarys_people(heat, affinity, size)
    assert found.shape == wanted.shape and len(found) > 2, "noise makes people of its own"
    np.testing.assert_array_equal(found[..., :2], wanted[..., :2])
    np.testing.assert_allclose(found[..., 2], wanted[..., 2], atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_known_people_come_back_within_four_pixels(n: int) -> None:
    size = (512, 256 * n)
    people = crowd(n, size, seed=n)
    heat, affinity, network = fields.fields_of(people, size)
    off = errors(decode(heat, affinity, size, network, PARAMS), people)
    assert off.max() < 4 and off.mean() < 1.5


def test_missing_limbs_stay_missing_and_the_rest_comes_back() -> None:
    size = (512, 512)
    people = np.stack(
        [
            fields.figure(120, 70, 420, missing=(3, 4, 12, 13)),
            fields.figure(370, 60, 420, missing=(0, 8, 9, 10, 14, 15, 16, 17)),
        ]
    )
    heat, affinity, network = fields.fields_of(people, size)
    found = decode(heat, affinity, size, network, PARAMS)
    assert errors(found, people).max() < 4
    told = measures(RawMap("people", found, {"size": list(size), "layout": "openpose_18"}))
    assert told["n_people"] == 2 and told["keypoint_fraction"] == pytest.approx(14 / 18), "of the best person"


def test_people_that_overlap_stay_two() -> None:
    """The second stands behind the first: arms cross, the bodies share a third of their width."""
    size = (512, 512)
    people = np.stack([fields.figure(210, 60, 430), fields.figure(310, 90, 400)])
    heat, affinity, network = fields.fields_of(people, size)
    off = errors(decode(heat, affinity, size, network, PARAMS), people)
    assert off.max() < 6 and np.mean(off < 4) > 0.9


def test_fewer_than_four_parts_make_no_person() -> None:
    person = fields.figure(250, 60, 420)
    three, four = person.copy(), person.copy()
    three[[k for k in range(PARTS) if k not in (1, 2, 3)]] = 0
    four[[k for k in range(PARTS) if k not in (1, 2, 3, 4)]] = 0
    counts = []
    for one in (three, four):
        heat, affinity, network = fields.fields_of(one[None], (512, 512))
        counts.append(len(decode(heat, affinity, (512, 512), network, PARAMS)))
    assert counts == [0, 1]


def test_a_peak_that_lies_between_pixels_is_one_peak_where_the_library_finds_two() -> None:
    tied = np.zeros((1, 9, 9))
    tied[0, 4, 3:5] = 1
    tied[0, 2:4, 7] = 1
    (x, y), *_ = find_peaks(tied, 0.1)
    assert list(zip(x, y, strict=True)) == [(7, 2), (3, 4)]
    (x, _), *_ = find_peaks(np.full((1, 40, 40), 0.7), 0.1)
    assert len(x) == 1, "a flat map is not 1600 peaks"


def test_peaks_at_the_border_count_and_weak_ones_go_when_there_are_too_many() -> None:
    corners = np.zeros((1, 8, 8))
    corners[0, [0, 0, 7, 7], [0, 7, 0, 7]] = 1
    assert len(find_peaks(corners, 0.1)[0][0]) == 4
    many = np.zeros((1, 40, 40))
    many[0, ::2, ::2] = np.linspace(0.2, 1, 400).reshape(20, 20)
    x, y = find_peaks(many, 0.1)[0]
    assert len(x) == MOST_PEAKS and many[0, y, x].min() > np.sort(many[0].ravel())[-MOST_PEAKS - 1]


def test_a_field_of_one_column_is_decoded() -> None:
    """The library squeezes the column away and raises."""
    assert decode(
        np.zeros((19, 23, 1), np.float32), np.zeros((38, 23, 1), np.float32), (512, 20), (184, 7), PARAMS
    ).shape == (0, 18, 3)


def test_fields_that_are_not_finite_are_an_error_and_not_an_empty_map() -> None:
    heat, affinity, network = fields.fields_of(crowd(1, (512, 512)), (512, 512))
    affinity[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decode(heat, affinity, (512, 512), network, PARAMS)


def test_the_fields_table_names_every_channel_once() -> None:
    assert sorted(openpose.FIELDS) == list(range(0, 38, 2)) and len(set(LIMBS)) == len(LIMBS) == 19


# --- the network ---


@pytest.mark.slow
def test_the_whole_path_gives_the_librarys_people_with_the_same_weights(
    small: np.ndarray, weights: Path
) -> None:
    """Two sums in another order differ by rounding, which may tip a peak: the fields are compared, and the
    library goes on with ours.
    """
    import cv2
    from controlnet_aux.util import resize_image

    image = cv2.resize(small, (448, 320))
    found = detect([image], weights)[0]
    large = resize_image(image, 512)
    assert large.shape == (512, 704, 3)
    ours = openpose.load("fp32", "cpu", str(weights))(openpose.pad(openpose.shrink(large, 0.5))[None])[0]
    given = tuple(torch.from_numpy(field)[None] for field in ours[::-1])
    body = library().Body(str(weights))
    body.model.register_forward_hook(
        lambda _, inputs, theirs: torch.testing.assert_close(theirs, given, rtol=0, atol=1e-3) or given
    )
    wanted = as_array(body, np.ascontiguousarray(large[..., ::-1]))
    assert found.status == "ok" and found.map.array.shape == wanted.shape and len(wanted) >= 3
    np.testing.assert_array_equal(found.map.array[..., 2] > 0, wanted[..., 2] > 0)
    seen = wanted[..., 2] > 0
    back = ((wanted[..., :2] + 0.5) * (448 / 704, 320 / 512) - 0.5).clip(0, (447, 319))
    np.testing.assert_allclose(found.map.array[seen][:, :2], back[seen], atol=1e-3)
    np.testing.assert_allclose(found.map.array[..., 2], wanted[..., 2], atol=1e-5)
    assert found.map.meta == {"size": [320, 448], "layout": "openpose_18"}


def test_bf16_fields_stay_close_to_fp32(small: np.ndarray, weights: Path) -> None:
    """Within 3 % of a field's own spread on average (0.8 % and 1.3 % measured), with random weights."""
    image = openpose.pad(openpose.shrink(small, 0.5))[None]
    exact, fast = (openpose.load(precision, "cpu", str(weights))(image)[0] for precision in ("fp32", "bf16"))
    for one, other in zip(exact, fast, strict=True):
        assert other.dtype == np.float32 and one.std() > 0.1
        assert np.abs(one - other).mean() < 0.03 * one.std()


def test_a_map_is_the_same_alone_and_among_others(small: np.ndarray, weights: Path) -> None:
    images = [small, small[:96].copy(), small[::-1].copy()]
    together = detect(images, weights, resolution=128, scale=0.25)
    assert sum(len(each.map.array) for each in together) > 2
    for image, found in zip(images, together, strict=True):
        np.testing.assert_array_equal(
            found.map.array, detect([image], weights, resolution=128, scale=0.25)[0].map.array
        )


def test_an_image_in_which_the_network_sees_nothing_is_skipped(flat: np.ndarray, tmp_path: Path) -> None:
    network = random_network()
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    found = detect([flat], save(network, tmp_path / "zero.pth"))[0]
    assert (found.status, found.reason) == ("skipped", "no person") and found.map.array.shape == (0, 18, 3)
    assert found.measures == {"n_people": 0, "keypoint_fraction": 0}


def test_broken_weights_fail_with_a_sentence(flat: np.ndarray, weights: Path, tmp_path: Path) -> None:
    stored = torch.load(weights, weights_only=True)
    stored["Mconv7_stage6_L2.bias"][:] = np.nan
    torch.save(stored, tmp_path / "nan.pth")
    found = detect([flat], tmp_path / "nan.pth")[0]
    assert found.status == "failed" and "not finite" in found.reason
    del stored["conv1_1.weight"]
    torch.save(stored, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"lacks conv1_1\.weight"):
        openpose.load("fp32", "cpu", str(tmp_path / "other.pth"))


@pytest.mark.slow
def test_detecting_writes_nothing_to_the_terminal(weights: Path) -> None:
    code = (
        "import numpy as np; from annotate.annotator import annotate, resolve; step ="
        f" resolve('pose_openpose', 'openpose', {{'weights': {str(weights)!r}, 'resolution': 64}}); assert"
        " annotate([np.zeros((64, 64, 3), np.uint8)], ['a'], [step])['pose_openpose'][0].status != 'failed'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
