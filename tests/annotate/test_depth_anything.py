"""Depth Anything V2 in all its rows gives what transformers gives on the same weights; metres become inverse
depth.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from annotate import depth
from annotate.annotator import annotate, resolve
from annotate.depth_anything import MODELS
from annotate.detectors import DETECTORS, licence

METRIC = [name for name, model in MODELS.items() if model.metric]


def only(images: list[np.ndarray], detector: str, **params: Any) -> list:
    params = {"precision": "fp32", "resolution": 84, **params}
    return annotate(images, [str(i) for i in range(len(images))], [resolve("depth_large", detector, params)])[
        "depth_large"
    ]


@pytest.fixture(scope="module")
def image(astronaut: np.ndarray) -> np.ndarray:
    """uint8 [128, 192, 3] RGB."""
    return np.ascontiguousarray(astronaut[:256:2, 100:484:2])


def network(**settings: Any) -> Any:
    """The true architecture, thinner, with random weights."""
    backbone = transformers.Dinov2Config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=518,
        patch_size=14,
        reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=48,
        neck_hidden_sizes=[16, 24, 32, 48],
        fusion_hidden_size=16,
        head_hidden_size=8,
        **settings,
    )
    torch.manual_seed(3)
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.ndim == 4:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5)
            if name == "head.conv3.bias" and not settings:
                weight += 20
    return model


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    model, folder = network(), tmp_path_factory.mktemp("relative")
    model.save_pretrained(folder)
    return model, str(folder)


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """One that gives metres up to 20, of the picture from about 1 to 19."""
    model = network(depth_estimation_type="metric", max_depth=20)
    with torch.inference_mode():
        noise = torch.rand(1, 3, 84, 126, generator=torch.manual_seed(0)) * 4 - 2
        said = torch.logit(model(noise).predicted_depth.double() / 20, eps=1e-9)
        model.head.conv3.weight *= 3 / (said - said.mean()).abs().max()
        model.head.conv3.bias.fill_(0.0)
    folder = tmp_path_factory.mktemp("metric")
    model.save_pretrained(folder)
    return model, str(folder)


def by_the_library(model: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its own image processor before, its own post-processing behind, with both resizings at work: the map,
    and the network's answer at its own size.
    """
    processor = transformers.DPTImageProcessor(
        size={"height": 84, "width": 84},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        resample=3,
        image_mean=depth.MEAN,
        image_std=depth.DEVIATION,
    )
    with torch.inference_mode():
        given = processor(image, return_tensors="pt")
        assert given["pixel_values"].shape[-2:] == (84, 126)
        outputs = model(**given)
        scaled = processor.post_process_depth_estimation(outputs, [image.shape[:2]])[0]["predicted_depth"]
    return scaled.numpy(), outputs.predicted_depth[0].numpy()


@pytest.mark.parametrize("detector", ["depth-anything-v2", "depth-anything-v2-large"])
def test_depth_anything_is_the_pipeline_of_transformers(
    detector: str, image: np.ndarray, relative: tuple[Any, str]
) -> None:
    model, weights = relative
    wanted, _ = by_the_library(model, image)
    found = only([image], detector, weights=weights)[0]
    assert found.status == "ok" and found.map.meta["unit"] == "relative"
    assert found.map.array.shape == image.shape[:2]
    assert np.ptp(wanted) > 1 and np.abs(found.map.array - wanted).max() < 1e-4 * np.ptp(wanted)
    rough = only([image], detector, weights=weights, precision="bf16")[0].map.array
    assert np.abs(rough - wanted).mean() < 0.02 * np.ptp(wanted)


@pytest.mark.parametrize(
    "detector", ["depth-anything-v2-metric-indoor", "depth-anything-v2-metric-outdoor-large"]
)
def test_metres_of_the_pipeline_of_transformers_become_inverse_depth(
    detector: str, image: np.ndarray, metric: tuple[Any, str]
) -> None:
    model, weights = metric
    metres, seen = by_the_library(model, image)
    assert np.ptp(metres) > 1, "or the test sees nothing"
    wanted = 1 / np.maximum(metres, seen.min())
    found = only([image], detector, weights=weights)[0]
    assert found.status == "ok" and found.map.meta["unit"] == "1/m"
    assert np.abs(found.map.array - wanted).max() < 1e-4 * np.ptp(wanted)
    assert found.map.array.max() <= 1 / seen.min() * 1.0001, "nothing is nearer than what the network said"
    rough = only([image], detector, weights=weights, precision="bf16")[0].map.array
    assert np.abs(rough - wanted).mean() < 0.03 * np.ptp(wanted)


def test_a_map_is_the_same_alone_and_among_others(image: np.ndarray, metric: tuple[Any, str]) -> None:
    detector = "depth-anything-v2-metric-indoor"
    among = only([image[::-1].copy(), image[:100, :90].copy(), image], detector, weights=metric[1])
    np.testing.assert_array_equal(among[2].map.array, only([image], detector, weights=metric[1])[0].map.array)


def test_the_filter_that_scales_metres_never_makes_them_negative(
    image: np.ndarray, metric: tuple[Any, str], tmp_path: Path
) -> None:
    """Weights that jump between 0 and 20 metres from pixel to pixel."""
    model = network(depth_estimation_type="metric", max_depth=20)
    with torch.inference_mode():
        model.head.conv3.weight *= 2000
    model.save_pretrained(tmp_path)
    metres, seen = by_the_library(model, image)
    assert metres.min() < 0, "or the test sees nothing"
    found = only([image], "depth-anything-v2-metric-indoor", weights=str(tmp_path))[0].map.array
    assert found.min() > 0 and found.max() <= 1 / max(float(seen.min()), depth.CLOSEST) * 1.0001


@pytest.mark.parametrize("detector", MODELS)
def test_metres_and_inverse_depth_are_never_taken_for_each_other(
    detector: str, image: np.ndarray, relative: tuple[Any, str], metric: tuple[Any, str]
) -> None:
    kinds = (relative, metric)
    wrong = kinds[not MODELS[detector].metric][1]
    found = only([image], detector, weights=wrong)[0]
    assert found.status == "failed" and "config.json: depth_estimation_type is" in found.reason
    assert "name the detector depth-anything-v2" in found.reason and "\n" not in found.reason


def test_a_folder_without_a_tensor_is_refused(
    image: np.ndarray, relative: tuple[Any, str], tmp_path: Path
) -> None:
    """transformers would fill it at random and go on."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(Path(relative[1], "model.safetensors"))
    del tensors["head.conv2.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(Path(relative[1], "config.json").read_text())
    found = only([image], "depth-anything-v2-base", weights=str(tmp_path))[0]
    assert found.status == "failed" and "head.conv2.weight first" in found.reason


def test_a_folder_of_another_architecture_is_one_sentence(
    image: np.ndarray, relative: tuple[Any, str], tmp_path: Path
) -> None:
    told = json.loads(Path(relative[1], "config.json").read_text()) | {"head_hidden_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "model.safetensors").symlink_to(Path(relative[1], "model.safetensors"))
    found = only([image], "depth-anything-v2-base", weights=str(tmp_path))[0]
    assert found.status == "failed" and "they are not of this architecture" in found.reason
    assert "\n" not in found.reason


def test_the_rows_say_what_they_get_and_under_which_licence() -> None:
    assert len(METRIC) == 6 and len(MODELS) == 9
    for name, model in MODELS.items():
        assert [file.name for file in model.files] == ["config.json", "model.safetensors"]
        repo = model.files[0].repo
        assert repo.startswith("depth-anything/Depth-Anything-V2-") and repo.endswith("-hf")
        assert ("-Metric-" in repo) == model.metric
        free = repo.endswith("-Small-hf")
        assert ("CC-BY-NC-4.0" in DETECTORS[name].licence) == (not free)


@pytest.mark.parametrize("detector", ["depth-anything-v2-large", "depth-pro", "eomt-coco", "marigold-depth"])
def test_the_licence_of_the_code_is_told_beside_weights_of_ones_own(detector: str, tmp_path: Path) -> None:
    for file in DETECTORS[detector].weights:
        (tmp_path / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / file.name).touch()
    assert licence(detector, str(tmp_path)) == "not known: weights of your own; the code: Apache-2.0"
