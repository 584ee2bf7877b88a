"""TIPSv2-DPT gives depth, normals and labels of transformers on the same weights, all three from one pass."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file

from annotate import tips
from annotate.annotator import annotate, resolve
from annotate.label_spaces import SPACES

THREE = ("depth_large", "normal", "seg_ade20k")
SIDE = 112
# the release's own words for the small network below
RELEASED = {
    "model_type": "tipsv2_dpt", "architectures": ["TIPSv2DPTModel"], "channels": 16,
    "readout_type": "project",
    "num_depth_bins": 256, "min_depth": 0.001, "max_depth": 10.0, "num_seg_classes": 150,
    "backbone_repo": "google/tipsv2-b14", "embed_dim": 64, "block_indices": [0, 1, 2, 3],
    "post_process_channels": [8, 8, 16, 16],
}  # fmt: skip


@pytest.fixture(scope="module")
def image(astronaut: np.ndarray) -> np.ndarray:
    """uint8 [128, 192, 3] RGB."""
    return np.ascontiguousarray(astronaut[:256:2, 100:484:2])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The true architecture, thinner and shallower, with random weights; its file has the release's names of
    tensors, as transformers writes it.
    """
    backbone = transformers.Tipsv2VisionConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=1,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = transformers.Tipsv2DptConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        id2label=dict(enumerate(SPACES[tips.SPACE].names)),
    )
    torch.manual_seed(5)
    model = transformers.Tipsv2DptForDensePrediction(config).eval()
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "backbone" not in name:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5)
            if "embeddings" in name:
                weight.normal_(0, 0.5)
    folder = tmp_path_factory.mktemp("tips")
    model.save_pretrained(folder)
    return model, str(folder)


def made(images: list[np.ndarray], place: Path | str, *conditions: str, **params: Any) -> dict[str, list]:
    """Through the same door as a run."""
    given = {"precision": "fp32", "resolution": SIDE, "weights": str(place), **params}
    steps = [resolve(condition, "tipsv2-dpt", given) for condition in conditions or THREE]
    return annotate(images, [str(i) for i in range(len(images))], steps)


def by_the_library(model: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """Image processor, network, post-processing: the recipe of transformers' page."""
    processor = transformers.Tipsv2DptImageProcessor(size={"height": SIDE, "width": SIDE})
    with torch.inference_mode():
        outputs = model(**processor(images=image, return_tensors="pt"))
        size = [image.shape[:2]]
        return {
            "depth_large": processor.post_process_depth_estimation(outputs, size)[0][
                "predicted_depth"
            ].numpy(),
            "normal": processor.post_process_normal_estimation(outputs, size)[0]["normals"].numpy(),
            "seg_ade20k": processor.post_process_semantic_segmentation(outputs, size)[0].numpy(),
        }


def test_all_three_maps_are_those_of_transformers(image: np.ndarray, small: tuple[Any, str]) -> None:
    """Depth as 1/m; vectors with x to the right, where the network's points left, and of length 1 again."""
    wanted = by_the_library(small[0], image)
    found = {name: annotations[0] for name, annotations in made([image], small[1]).items()}
    assert {each.status for each in found.values()} == {"ok"}
    inverse, normals, labels = (found[name].map for name in THREE)
    metres = wanted["depth_large"]
    assert np.ptp(metres) > 0.1 and inverse.meta["unit"] == "1/m"
    np.testing.assert_allclose(inverse.array, 1 / metres, rtol=1e-4)
    vectors = wanted["normal"].transpose(1, 2, 0) * [-1, 1, 1]
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    assert vectors.std() > 0.3 and np.abs(normals.array - vectors).max() < 1e-4
    assert labels.meta == {"label_space": "ade20k_150"} and len(np.unique(labels.array)) > 3
    assert (labels.array == wanted["seg_ade20k"]).mean() > 0.9999


def test_vectors_point_right_up_and_to_the_viewer() -> None:
    """In the authors' pictures of rooms a wall on the right, which faces left, is red: x is large there;
    floors are green, walls ahead blue.
    """
    left, up, viewer = np.eye(3)
    seen = torch.tensor(np.stack([left, up, viewer, -left]).reshape(2, 2, 3)).permute(2, 0, 1).float()
    scene = tips._scene(torch.ones(1, 2, 2), seen, torch.eye(3)[:, :2, None].expand(3, 2, 2), (2, 2))
    np.testing.assert_array_equal(scene.normals.reshape(4, 3), [[-1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_one_pass_makes_all_three_and_both_depths(
    image: np.ndarray, small: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    network = tips.load(tips.MODELS["tipsv2-dpt"], "fp32", "cpu", SIDE, small[1])
    monkeypatch.setattr(tips, "load", lambda *_: lambda images: passes.append(len(images)) or network(images))
    together = made([image], small[1], *THREE, "depth_small")
    assert passes == [1]
    for name in THREE:
        apart = made([image], small[1], name)[name][0]
        np.testing.assert_array_equal(together[name][0].map.array, apart.map.array)
    assert passes == [1] * 4
    np.testing.assert_array_equal(together["depth_small"][0].map.array, together["depth_large"][0].map.array)


def test_a_map_is_the_same_alone_and_among_others(image: np.ndarray, small: tuple[Any, str]) -> None:
    others = [image[::-1].copy(), image[:100, :90].copy(), image]
    among, alone = made(others, small[1]), made([image], small[1])
    for name in THREE:
        np.testing.assert_array_equal(among[name][2].map.array, alone[name][0].map.array)
        assert among[name][1].map.array.shape[:2] == (100, 90)


def test_a_batch_as_a_gpu_runs_it_gives_what_single_images_give(
    image: np.ndarray, small: tuple[Any, str]
) -> None:
    network = tips.load(tips.MODELS["tipsv2-dpt"], "fp32", "cpu", SIDE, small[1])
    pair = np.stack([image, image[::-1]])
    for scene, single in zip(network(pair), pair, strict=True):
        [alone] = network(single[None])
        np.testing.assert_allclose(scene.metres, alone.metres, rtol=1e-4)
        np.testing.assert_allclose(scene.normals, alone.normals, atol=1e-4)
        assert (scene.labels == alone.labels).mean() > 0.999


def test_bf16_stays_close(image: np.ndarray, small: tuple[Any, str]) -> None:
    exact, rough = (made([image], small[1], precision=precision) for precision in ("fp32", "bf16"))
    depth, normals, labels = ((exact[name][0].map.array, rough[name][0].map.array) for name in THREE)
    assert np.abs(depth[1] - depth[0]).mean() < 0.02 * np.ptp(depth[0])
    assert len(np.unique(depth[1])) > depth[1].size / 2, "a last layer in bf16 leaves a few hundred values"
    assert np.abs(normals[1] - normals[0]).mean() < 0.03
    assert (labels[1] == labels[0]).mean() > 0.9


def test_the_side_that_it_sees_is_rounded_to_its_patches(image: np.ndarray, small: tuple[Any, str]) -> None:
    one, other = (made([image], small[1], "depth_large", resolution=side) for side in (SIDE, SIDE + 5))
    np.testing.assert_array_equal(one["depth_large"][0].map.array, other["depth_large"][0].map.array)


@pytest.mark.parametrize("names", ["of the release", "of transformers"])
@pytest.mark.parametrize("config", ["of the release", "of transformers", "without names of classes"])
def test_both_layouts_of_tensors_and_of_the_config_give_the_same(
    names: str, config: str, image: np.ndarray, small: tuple[Any, str], tmp_path: Path
) -> None:
    model, whole = small
    tensors = load_file(Path(whole, "model.safetensors"))
    assert "vision_encoder.blocks.0.attn.qkv.weight" in tensors and "depth_head.depth_head.bias" in tensors
    if names == "of transformers":
        tensors = {name: each.contiguous().clone() for name, each in model.state_dict().items()}
        assert "depth_decoder.head.bias" in tensors
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    told = json.loads(Path(whole, "config.json").read_text())
    if config == "without names of classes":
        told |= {"id2label": {i: f"LABEL_{i}" for i in range(150)}}
    (tmp_path / "config.json").write_text(json.dumps(RELEASED if config == "of the release" else told))
    found, wanted = made([image], tmp_path), made([image], whole)
    for name in THREE:
        np.testing.assert_array_equal(found[name][0].map.array, wanted[name][0].map.array)


def refused(image: np.ndarray, place: Path) -> str:
    found = made([image], place)
    assert {annotations[0].status for annotations in found.values()} == {"failed"}
    assert "\n" not in found["normal"][0].reason
    return found["normal"][0].reason


def test_weights_that_do_not_fit_are_one_sentence(
    image: np.ndarray, small: tuple[Any, str], tmp_path: Path
) -> None:
    told = json.loads(Path(small[1], "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told))
    tensors = load_file(Path(small[1], "model.safetensors"))
    del tensors["vision_encoder.mask_token"]  # no output depends on it
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert made([image], tmp_path)["normal"][0].status == "ok"
    tips.load.cache_clear()
    del tensors["normals_head.project.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lack 1 of its tensors, normals_decoder.project.bias first" in refused(image, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(told | {"fusion_hidden_size": 32}))
    assert "are not of this architecture" in refused(image, tmp_path)


def test_another_order_of_classes_is_refused(
    image: np.ndarray, small: tuple[Any, str], tmp_path: Path
) -> None:
    told = json.loads(Path(small[1], "config.json").read_text())
    told["id2label"]["2"], told["id2label"]["3"] = "floor", "sky"
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "model.safetensors").symlink_to(Path(small[1], "model.safetensors"))
    assert "class 2 is 'floor' instead of 'sky' (ade20k_150)" in refused(image, tmp_path)
