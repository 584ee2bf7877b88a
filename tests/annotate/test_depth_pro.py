"""Depth Pro gives the depth of transformers' processor, network and post-processing on the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file

from annotate import depth_pro
from annotate.annotator import annotate, resolve

SIDE = 64


@pytest.fixture(scope="module")
def images(astronaut: np.ndarray) -> list[np.ndarray]:
    """Three pictures of two sizes, larger and smaller than the square that the network sees."""
    return [
        np.ascontiguousarray(astronaut[:256:2, 100:484:2]),
        np.ascontiguousarray(astronaut[100:400:6, 100:400:5]),
        np.ascontiguousarray(astronaut[256:512:2, 100:484:2]),
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The true architecture with its three scales and its angle of view, smaller, with random weights."""
    encoder = {
        "model_type": "dinov2", "image_size": 16, "patch_size": 2, "hidden_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    config = transformers.DepthProConfig(
        patch_size=16,
        fusion_hidden_size=16,
        intermediate_hook_ids=[2, 1],
        intermediate_feature_dims=[16, 16],
        scaled_images_feature_dims=[24, 24, 16],
        merge_padding_value=1,
        use_fov_model=True,
        num_fov_head_layers=2,
        image_model_config=dict(encoder),
        patch_model_config=dict(encoder),
        fov_model_config=dict(encoder),
    )
    torch.manual_seed(6)
    model = transformers.DepthProForDepthEstimation(config).eval()
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.ndim == 4 and "encoder.layer" not in name:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5)
            if name == "head.layers.4.bias":
                weight += 2
        model.fov_model.head.layers[-1].weight *= 0.02
        model.fov_model.head.layers[-1].bias.fill_(60.0)  # degrees
    folder = tmp_path_factory.mktemp("depth_pro")
    model.save_pretrained(folder)
    return model, str(folder)


def found(images: list[np.ndarray], place: Path | str, **params: Any) -> list:
    step = resolve("depth_large", "depth-pro", {"precision": "fp32", "weights": str(place), **params})
    return annotate(images, [str(i) for i in range(len(images))], [step])["depth_large"]


def test_depth_is_one_over_transformers_metres(images: list[np.ndarray], small: tuple[Any, str]) -> None:
    model, weights = small
    processor = transformers.DepthProImageProcessor(size={"height": SIDE, "width": SIDE})
    for annotation, image in zip(found(images, weights), images, strict=True):
        with torch.inference_mode():
            outputs = model(**processor(images=image, return_tensors="pt"))
            told = processor.post_process_depth_estimation(outputs, [image.shape[:2]])[0]
        assert 10 < told["field_of_view"] < 170, "an angle that means something"
        wanted = 1 / told["predicted_depth"].numpy()
        assert annotation.status == "ok" and annotation.map.meta["unit"] == "1/m"
        assert np.ptp(wanted) > 0.1
        assert np.abs(annotation.map.array - wanted).max() < 1e-4 * np.ptp(wanted)
    rough = found(images[-1:], weights, precision="bf16")[0].map.array
    assert np.abs(rough - wanted).mean() < 0.03 * np.ptp(wanted)
    assert len(np.unique(rough)) > rough.size / 2, "a last layer in bf16 leaves a few hundred values"


def test_a_map_is_the_same_alone_and_among_others(images: list[np.ndarray], small: tuple[Any, str]) -> None:
    among = found(images, small[1])
    np.testing.assert_array_equal(among[2].map.array, found(images[2:], small[1])[0].map.array)
    network = depth_pro.load("fp32", "cpu", small[1])
    pair = np.stack([images[0], images[2]])  # as a GPU runs them
    np.testing.assert_allclose(network(pair), [each.map.array for each in (among[0], among[2])], rtol=1e-3)


def test_weights_that_do_not_fit_are_one_sentence(
    images: list[np.ndarray], small: tuple[Any, str], tmp_path: Path
) -> None:
    told = json.loads(Path(small[1], "config.json").read_text())
    tensors = load_file(Path(small[1], "model.safetensors"))

    def refused(config: dict[str, Any], lost: str = "") -> str:
        depth_pro.load.cache_clear()
        (tmp_path / "config.json").write_text(json.dumps(config))
        kept = {name: each for name, each in tensors.items() if name != lost}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        annotation = found(images[:1], tmp_path)[0]
        assert annotation.status == "failed" and "\n" not in annotation.reason
        return annotation.reason

    assert "lack 1 of its tensors, head.layers.0.weight first" in refused(told, "head.layers.0.weight")
    assert "are not of this architecture" in refused(told | {"fusion_hidden_size": 24})
    assert "use_fov_model is off" in refused(told | {"use_fov_model": False})


def test_its_square_has_1536_pixels_as_published() -> None:
    config = transformers.DepthProConfig()
    assert round(config.patch_size / min(config.scaled_images_ratios)) == 1536
