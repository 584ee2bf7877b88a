"""EoMT gives the labels of transformers on the same weights, without the padding that it leaves in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file

from annotate import eomt
from annotate.annotator import annotate, resolve
from annotate.label_spaces import SPACES, nameless

SIDE = 64
# as published, in a smaller square
PROCESSOR = {
    "do_pad": True, "do_split_image": False, "image_processor_type": "EomtImageProcessorFast",
    "size": {"longest_edge": SIDE, "shortest_edge": SIDE},
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    """A square, one that is wide, and another square."""
    return [
        np.ascontiguousarray(astronaut[:400:4, 40:440:4]),
        np.ascontiguousarray(astronaut[:200:4, 40:440:4]),
        np.ascontiguousarray(astronaut[100:500:4, 100:500:4]),
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The true class, small, with random weights whose maps hold several classes; trained to its end."""
    config = transformers.EomtConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        num_queries=10,
        num_blocks=2,
        num_upscale_blocks=1,
        num_labels=133,
    )
    torch.manual_seed(7)
    model = transformers.EomtForUniversalSegmentation(config).eval()
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
            if "query" in name or "class_predictor.weight" in name or "mask_head.fc3" in name:
                weight.mul_(6)
        model.attn_mask_probs.zero_()
    folder = tmp_path_factory.mktemp("eomt")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model, str(folder)


def detected(images: list[np.ndarray], place: Path | str, **params: Any) -> list:
    step = resolve("seg_coco", "eomt-coco", {"weights": str(place), **params})
    return annotate(images, [str(i) for i in range(len(images))], [step])["seg_coco"]


def by_the_library(model: Any, folder: str, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels at `size` of all that the network saw, its padding included."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        outputs = model(**processor(images=image, return_tensors="pt"))
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()


def test_the_labels_of_squares_are_those_of_transformers(
    pictures: list[np.ndarray], small: tuple[Any, str]
) -> None:
    model, folder = small
    found = detected(pictures, folder)
    for annotation, image in zip(found[::2], pictures[::2], strict=True):
        assert annotation.status == "ok", annotation.reason
        assert annotation.map.meta == {"label_space": "coco_panoptic_133"}
        wanted = by_the_library(model, folder, image, image.shape[:2])
        assert (annotation.map.array == wanted).mean() > 0.9999
    assert len(np.unique(found[0].map.array)) >= 3


def test_the_padding_below_a_wide_picture_is_cut_off(
    pictures: list[np.ndarray], small: tuple[Any, str]
) -> None:
    """The library's labels of the whole square, cut by hand: the picture fills its upper half."""
    model, folder = small
    wide = pictures[1]
    [annotation] = detected([wide], folder)
    assert annotation.map.array.shape == (50, 100) and len(np.unique(annotation.map.array)) >= 3
    square = by_the_library(model, folder, wide, (100, 100))
    assert (annotation.map.array == square[:50]).mean() > 0.99
    pressed = by_the_library(model, folder, wide, (50, 100))
    assert (annotation.map.array == pressed).mean() < 0.95, "as the library leaves it"


def test_known_masks_give_their_classes_at_the_place_where_the_picture_is() -> None:
    """Query i sees column i of the upper half, as class 3 i; the last sees the padding."""
    masks = torch.full((1, 5, 16, 16), -20.0)
    for i in range(4):
        masks[0, i, :8, 4 * i : 4 * i + 4] = 20
    masks[0, 4, 8:] = 20
    classes = torch.full((1, 5, 134), -20.0)
    for i in range(5):
        classes[0, i, 3 * i] = 20
    outputs = transformers.models.eomt.modeling_eomt.EomtForUniversalSegmentationOutput(
        class_queries_logits=classes.bfloat16(), masks_queries_logits=masks.bfloat16()
    )
    processor = transformers.EomtImageProcessor(**PROCESSOR)
    [ids] = eomt.decode(processor, outputs, (80, 160))
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids[:70, 20::40], np.tile([0, 3, 6, 9], (70, 1)))


def test_a_map_is_the_same_alone_and_among_others(pictures: list[np.ndarray], small: tuple[Any, str]) -> None:
    among = detected(pictures, small[1])
    for i, image in enumerate(pictures):
        np.testing.assert_array_equal(among[i].map.array, detected([image], small[1])[0].map.array)
    both = eomt.load("fp32", "cpu", small[1])(np.stack([pictures[0], pictures[2]]))  # as a GPU runs them
    for ids, alone in zip(both, among[::2], strict=True):
        assert (ids == alone.map.array).mean() > 0.99


def test_bf16_gives_nearly_the_same_map(pictures: list[np.ndarray], small: tuple[Any, str]) -> None:
    fine, coarse = (detected(pictures, small[1], precision=precision) for precision in ("fp32", "bf16"))
    assert min((a.map.array == b.map.array).mean() for a, b in zip(fine, coarse, strict=True)) > 0.9


def test_classes_may_be_named_in_the_order_of_the_space_or_not_at_all(
    pictures: list[np.ndarray], small: tuple[Any, str], tmp_path: Path
) -> None:
    told = json.loads(Path(small[1], "config.json").read_text())
    assert told["id2label"]["5"] == "LABEL_5", "the published config names none"
    names = SPACES["coco_panoptic_133"].names
    turned = told | {"id2label": dict(enumerate(reversed(names)))}
    assert "config.json: class 0 is " in refused(turned, small[1], tmp_path, pictures)
    (tmp_path / "config.json").write_text(json.dumps(told | {"id2label": dict(enumerate(names))}))
    eomt.load.cache_clear()
    np.testing.assert_array_equal(
        detected(pictures[:1], tmp_path)[0].map.array, detected(pictures[:1], small[1])[0].map.array
    )


def test_the_config_as_it_was_published_is_that_of_the_large_network() -> None:
    """That of tue-mps/coco_instance_eomt_large_640 on the hub, but for the number of classes."""
    published = {
        "model_type": "eomt", "backbone": "vit_large_patch14_reg4_dinov2", "image_size": 640,
        "patch_size": 16, "num_queries": 200, "num_blocks": 4, "num_labels": 133,
    }  # fmt: skip
    config = transformers.EomtConfig.from_dict(published)
    assert (config.hidden_size, config.num_hidden_layers, config.num_labels) == (1024, 24, 133)
    assert nameless(config.id2label, eomt.SPACE)


def refused(
    config: dict[str, Any], whole: str, place: Path, pictures: list[np.ndarray], **change: Any
) -> str:
    eomt.load.cache_clear()
    (place / "config.json").write_text(json.dumps(config))
    (place / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | change.get("processor", {})))
    tensors = load_file(Path(whole, "model.safetensors")) | change.get("tensors", {})
    kept = {name: each for name, each in tensors.items() if name != change.get("lost")}
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    [annotation] = detected(pictures[:1], place)
    assert annotation.status == "failed" and "\n" not in annotation.reason
    return annotation.reason


def test_weights_that_do_not_fit_are_one_sentence(
    pictures: list[np.ndarray], small: tuple[Any, str], tmp_path: Path
) -> None:
    told, place = json.loads(Path(small[1], "config.json").read_text()), (small[1], tmp_path, pictures)
    assert "lack 1 of its tensors, query.weight first" in refused(told, *place, lost="query.weight")
    assert "are not of this architecture" in refused(told | {"num_queries": 11}, *place)
    assert "does not pad" in refused(told, *place, processor={"do_pad": False, "do_split_image": True})
    half = {"attn_mask_probs": torch.full((2,), 0.5)}
    assert "a training that had not ended" in refused(told, *place, tensors=half)
