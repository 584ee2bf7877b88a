"""OpenPifPaf: against the package's own predictor on the same weights, and against people that are known."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from annotate import openpifpaf
from annotate.annotator import Annotation, annotate, missing, resolve
from annotate.openpifpaf import CONVERTED, decode, keep_inside
from annotate.skeletons import SKELETONS
from annotate.weights import WeightsError
from benchmarks import fields

PARAMS = resolve("pose_openpifpaf", "openpifpaf", {"precision": "fp32"}, here=False).params
NAMES = SKELETONS["coco_17"].names

LACK = missing("openpifpaf", __file__)  # any file will do for weights: what else is missing?
built = pytest.mark.skipif(LACK is not None, reason=str(LACK))


def figure(x: float, y: float, height: float, missing: tuple[str, ...] = ()) -> np.ndarray:
    """float32 [17, 3] in COCO order."""
    whole = fields.figure(x, y, height)
    person = whole[[SKELETONS["openpose_18"].names.index(name) for name in NAMES]]
    person[[NAMES.index(name) for name in missing]] = 0
    return person


def metas(upsample: int = 2) -> Any:
    openpifpaf.package()
    from openpifpaf.plugins.coco.cocokp import CocoKp

    found = CocoKp().head_metas[:2]
    for n, meta in enumerate(found):
        meta.head_index, meta.base_stride, meta.upsample_stride = n, 16, upsample
    return found


def fields_of(people: np.ndarray, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a perfect network gives for these people: the package's training targets, in the form in which its
    heads answer.
    """
    cif, caf = metas()
    from openpifpaf import encoder, transforms
    from PIL import Image

    told = []
    for person in people:
        seen = person[person[:, 2] > 0, :2]
        low, high = seen.min(axis=0), seen.max(axis=0)
        marked = np.where(person[:, 2:] > 0, np.concatenate([person[:, :2], np.full((17, 1), 2)], axis=1), 0)
        told.append(
            {
                "keypoints": marked.astype(np.float32),
                "bbox": np.array([*low, *(high - low)], np.float32),
                "iscrowd": False,
            }
        )
        told[-1] |= {"category_id": 1, "num_keypoints": len(seen)}
    steps = transforms.Compose(
        [
            transforms.NormalizeAnnotations(),
            transforms.CenterPadTight(16),
            transforms.EVAL_TRANSFORM,
            transforms.Encoders([encoder.Cif(cif), encoder.Caf(caf)]),
        ]
    )
    _, targets, _ = steps(Image.fromarray(np.zeros((*size, 3), np.uint8)), told, None)
    return tuple(answer(np.asarray(target), vectors) for target, vectors in zip(targets, (1, 2), strict=True))  # type: ignore[return-value]


def answer(target: np.ndarray, vectors: int) -> torch.Tensor:
    """A target is confidence, offsets from the cell, spreads, scales; a head gives a spare channel,
    confidence, positions, scales.
    """
    known = np.isfinite(target).all(axis=1)
    filled = np.nan_to_num(target)
    y, x = np.indices(target.shape[2:])
    out = np.zeros((len(target), 2 + 3 * vectors, *target.shape[2:]), np.float32)
    out[:, 1] = filled[:, 0] * known
    for n in range(vectors):
        out[:, 2 + 2 * n] = filled[:, 1 + 2 * n] + x
        out[:, 3 + 2 * n] = filled[:, 2 + 2 * n] + y
        out[:, 2 + 2 * vectors + n] = filled[:, 1 + 3 * vectors + n]
    return torch.from_numpy(out)


def random_network(name: str = "shufflenetv2k16", upsample: int = 2) -> Any:
    """The true architecture by the package's factory; its heads spread over what a trained one says, so that
    people are found.
    """
    openpifpaf.package()
    from openpifpaf.network import Factory

    torch.manual_seed(1)
    factory = Factory()
    factory.base_name = name
    network, _ = factory.factory(head_metas=metas(upsample))
    with torch.inference_mode():
        features = network.base_net(
            torch.from_numpy(np.random.default_rng(1).normal(size=(1, 3, 129, 129)).astype(np.float32))
        )
    for head in network.head_nets:
        parts, cells = head.meta.n_fields, head.n_components
        vectors = head.meta.n_vectors
        with torch.no_grad():
            deviation, middle = torch.std_mean(head.conv(features.clone()), dim=(0, 2, 3))
            # confidences of 0 to 1, positions within a cell, scales of about four cells
            each = torch.tensor([[0.0, 0.0] + [0.0] * 2 * vectors + [4.0] * vectors] * parts)
            spread = torch.tensor([[1.0, 2.5] + [0.5] * 2 * vectors + [0.5] * vectors] * parts)
            each, spread = (value.reshape(-1).repeat_interleave(upsample**2) for value in (each, spread))
            assert len(each) == parts * cells * upsample**2
            head.conv.weight *= (spread / deviation)[:, None, None, None]
            head.conv.bias.copy_((head.conv.bias - middle) * spread / deviation + each)
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("openpifpaf") / CONVERTED
    torch.save(random_network().state_dict(), place)
    return place


def detect(images: list[np.ndarray], weights: Path, **params: Any) -> list[Annotation]:
    step = resolve("pose_openpifpaf", "openpifpaf", {"weights": str(weights), "precision": "fp32", **params})
    return annotate(images, [f"id{i}" for i in range(len(images))], [step])["pose_openpifpaf"]


# --- decoding ---


@built
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_known_people_come_back_within_a_pixel(n: int) -> None:
    size = (513, 256 * n + 1)
    gone = ((), ("left_wrist", "right_ankle"), ("left_eye", "left_ear"), ())
    people = np.stack([figure(256 * k + 120 + 7 * k, 70 + 9 * k, 400 - 20 * k, gone[k]) for k in range(n)])
    found = decode(fields_of(people, size), 8, PARAMS)
    assert found.shape == (n, 17, 3) and found.dtype == np.float32
    for person in people:
        nearest = found[int(np.abs(found[:, 5, 0] - person[5, 0]).argmin())]
        np.testing.assert_array_equal(nearest[:, 2] > 0, person[:, 2] > 0)
        assert np.abs(nearest - person)[person[:, 2] > 0, :2].max() < 1
    assert (np.diff(found[..., 2].mean(axis=1)) < 0.2).all()


@built
def test_people_that_overlap_stay_two() -> None:
    people = np.stack([figure(210, 60, 430), figure(310, 90, 400)])
    found = decode(fields_of(people, (513, 513)), 8, PARAMS)
    assert len(found) == 2
    off = [min(np.abs(one[:, :2] - person[:, :2]).max() for one in found) for person in people]
    assert max(off) < 2


@built
def test_confidences_do_not_depend_on_the_images_before_as_those_of_a_kept_decoder_do() -> None:
    """The package counts images in the floats that hold its confidences: after thousands they drift by
    hundredths.
    """
    cif, caf = fields_of(np.stack([figure(210, 60, 430), figure(310, 90, 400)]), (513, 513))
    cif[:, 1] *= 0.613
    first = decode((cif, caf), 8, PARAMS)
    from openpifpaf.plugins.coco.constants import COCO_PERSON_SKELETON

    kept = torch.classes.openpifpaf_decoder.CifCaf(17, torch.tensor(COCO_PERSON_SKELETON) - 1)
    little = [field[:, :, :3, :3].contiguous() for field in (cif, caf)]
    kept.call(cif, 8, caf, 8)
    for _ in range(6000):
        kept.call(little[0], 8, little[1], 8)
    drifted = kept.call(cif, 8, caf, 8)[0].numpy()
    assert drifted.shape[0] == len(first) == 2 and np.abs(drifted[..., 0] - first[..., 2]).max() > 0.005
    np.testing.assert_array_equal(decode((cif, caf), 8, PARAMS), first)


@built
def test_thresholds_of_one_call_do_not_leak_into_the_next() -> None:
    given = fields_of(figure(210, 60, 430)[None], (513, 513))
    given[0][:, 1] *= 0.4
    assert len(decode(given, 8, {**PARAMS, "seed_threshold": 0.9})) == 0
    assert len(decode(given, 8, PARAMS)) == 1


@built
def test_fields_that_are_not_finite_are_an_error_and_not_an_empty_map() -> None:
    cif, caf = fields_of(figure(210, 60, 430)[None], (513, 513))
    cif[0, 1, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        decode((cif, caf), 8, PARAMS)


def test_keypoints_outside_the_image_are_missing_and_so_are_people_without_any() -> None:
    people = np.zeros((3, 17, 3), np.float32)
    people[0, :3] = [(-3, 10, 0.9), (5, 10, 0.8), (63.4, 47.4, 0.7)]
    people[1, 0] = (70, 10, 0.9)
    found = keep_inside(people, (48, 64))
    assert found.shape == (1, 17, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0, :, 2] > 0, [False, True, True] + [False] * 14)
    assert not found[0, 0].any()


def test_a_seed_threshold_below_the_keypoint_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seed_threshold 0\.1 is below keypoint_threshold 0\.15"):
        openpifpaf.check({**PARAMS, "seed_threshold": 0.1})
    openpifpaf.check(PARAMS)


# --- the network ---


@built
@pytest.mark.parametrize("size", [(128, 128), (160, 150)])
def test_the_whole_path_gives_the_packages_people_with_the_same_weights(
    astronaut: np.ndarray, weights: Path, size: tuple[int, int]
) -> None:
    openpifpaf.package()
    from openpifpaf import Predictor
    from openpifpaf.network import Factory

    image = np.ascontiguousarray(astronaut[20 : 20 + size[0], 150 : 150 + size[1]])
    Factory.base_name = "shufflenetv2k16"
    try:
        predictor = Predictor(head_metas=metas())
    finally:
        Factory.base_name = None
    predictor.model.load_state_dict(torch.load(weights, weights_only=True))
    predictor.device = torch.device("cpu")
    predictor.model.to("cpu")
    found = detect([image], weights)[0]
    predictions, _, _ = predictor.numpy_image(image)
    everywhere = np.array([each.data for each in predictions], np.float32)
    wanted = keep_inside(everywhere, size)
    assert found.status == "ok" and found.map.meta == {"size": list(size), "layout": "coco_17"}
    assert len(wanted) >= 2 and (wanted[..., 2] > 0).sum() >= 10, "the comparison means something"
    assert found.map.array.shape == wanted.shape
    np.testing.assert_allclose(found.map.array, wanted, atol=1e-3)


@built
def test_the_long_edge_moves_keypoints_back_to_the_image(small: np.ndarray, weights: Path) -> None:
    """Doubled by pixel centres: what is found at the size the network sees lies at half of it here."""
    from cv2 import INTER_LINEAR, resize

    inside = detect([resize(small, (256, 256), interpolation=INTER_LINEAR)], weights)[0].map.array
    found = detect([small], weights, long_edge=256)[0].map.array
    assert found.shape == inside.shape and len(found)
    seen = inside[..., 2] > 0
    np.testing.assert_allclose(found[seen][:, :2], (inside[seen][:, :2] + 0.5) / 2 - 0.5, atol=1e-4)


@built
def test_a_map_is_the_same_alone_and_among_others(small: np.ndarray, weights: Path) -> None:
    images = [small[:96, :96].copy(), small[:80].copy(), small[32:, 32:].copy()]
    together = detect(images, weights)
    assert sum(len(each.map.array) for each in together) > 2
    for image, found in zip(images, together, strict=True):
        np.testing.assert_array_equal(found.map.array, detect([image], weights)[0].map.array)


@built
def test_bf16_moves_positions_by_little_and_never_to_whole_cells(small: np.ndarray, weights: Path) -> None:
    """With random weights: confidences by less than 0.02 on average, positions by less than a tenth of a
    cell.
    """
    image = openpifpaf.pad(small)[None]
    exact, fast = (
        openpifpaf.load(precision, "cpu", str(weights))[0](image)[0] for precision in ("fp32", "bf16")
    )
    for one, other in zip(exact, fast, strict=True):
        assert other.dtype == torch.float32 and one[:, 1].std() > 0.1
        assert (one[:, 1] - other[:, 1]).abs().mean() < 0.02
        assert (one[:, 2:4] - other[:, 2:4]).abs().mean() < 0.1


@built
@pytest.mark.parametrize(("name", "upsample"), [("shufflenetv2k16", 1), ("shufflenetv2k30", 2)])
def test_the_weights_tell_which_network_they_are_of(name: str, upsample: int, tmp_path: Path) -> None:
    stored = random_network(name, upsample).state_dict()
    # of connections that the decoder doesn't ask for
    stored["head_nets.2.conv.weight"] = torch.zeros(8, 2048, 1, 1)
    torch.save(stored, tmp_path / "given.pt")
    network = openpifpaf.build(tmp_path / "given.pt")
    assert (
        openpifpaf.NETWORKS[network.base_net.out_features] == name
        and network.head_nets[0].meta.stride == 16 // upsample
    )
    assert (
        all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())
        and not network.training
    )


@built
def test_other_weights_and_the_official_pickle_are_refused_with_a_recipe(
    tmp_path: Path, weights: Path
) -> None:
    official = tmp_path / "official.pkl"
    torch.save({"model": Hostile(tmp_path / "ran"), "epoch": 250}, official)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    for place in (official, tmp_path / "other.pt"):
        with pytest.raises(
            WeightsError, match=r"no state dict of an OpenPifPaf network; make one: curl .*weights_only=False"
        ):
            openpifpaf.build(place)
    assert not (tmp_path / "ran").exists(), "nothing in a pickle is run"
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "and this one would have left a file"
    stored = torch.load(weights, weights_only=True)
    del stored["base_net.conv5.1.bias"]
    torch.save(stored, tmp_path / "short.pt")
    with pytest.raises(WeightsError, match=r"fits neither .*conv5\.1\.bias"):
        openpifpaf.build(tmp_path / "short.pt")


@built
def test_the_recipe_turns_a_pickled_network_into_weights_that_load(tmp_path: Path) -> None:
    """With a random network in place of the official one, which is pickled in the same way."""
    network = random_network()
    torch.save({"model": network, "epoch": 250}, tmp_path / openpifpaf.CHECKPOINT)
    place = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", openpifpaf.CONVERT],
        cwd=tmp_path,
        env=place,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    again = openpifpaf.build(tmp_path / CONVERTED)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())


class Hostile:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.place,)


@built
def test_an_image_in_which_the_network_sees_nothing_is_skipped(flat: np.ndarray, tmp_path: Path) -> None:
    stored = random_network().state_dict()
    for name in stored:
        if name.startswith("head_nets"):
            stored[name].zero_()
    stored["head_nets.0.conv.bias"].copy_(torch.tensor([0.0, -9, 0, 0, 0]).repeat_interleave(4).repeat(17))
    torch.save(stored, tmp_path / "nothing.pt")
    found = detect([flat], tmp_path / "nothing.pt")[0]
    assert (found.status, found.reason) == ("skipped", "no person") and found.map.array.shape == (0, 17, 3)


@built
def test_a_fresh_process_says_nothing_and_the_defaults_are_the_packages(weights: Path) -> None:
    code = (
        "import numpy as np, torch; from annotate import openpifpaf; from annotate.annotator import"
        " annotate, resolve; step = resolve('pose_openpifpaf', 'openpifpaf', {'weights':"
        f" {str(weights)!r}}}); openpifpaf.package(); utils = torch.classes.openpifpaf_decoder_utils; given ="
        " step.params; assert given['seed_threshold'] == utils.CifSeeds.get_threshold(); assert"
        " given['keypoint_threshold'] == utils.NMSKeypoints.get_keypoint_threshold(); assert"
        " given['keypoint_threshold'] == torch.classes.openpifpaf_decoder.CifCaf.get_keypoint_threshold();"
        " assert given['instance_threshold'] == utils.NMSKeypoints.get_instance_threshold(); assert"
        " annotate([np.zeros((64, 64, 3), np.uint8)], ['a'], [step])['pose_openpifpaf'][0].status !="
        " 'failed'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
