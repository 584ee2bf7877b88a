"""The segmentation detectors on tiny random networks of the true classes, saved in the layout of the
published repositories.
"""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate import segmentation
from annotate.annotator import annotate, resolve
from annotate.detectors import missing
from annotate.label_spaces import SPACES
from annotate.maps import RawMap
from annotate.weights import WeightsError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONDITION = {"coco_panoptic_133": "seg_coco", "ade20k_150": "seg_ade20k"}
# how OneFormer's own config spells some ADE20K classes
OFFICIAL = {8: "window ", 37: "tub", 89: "tv", 6: "road, route"}


def swin() -> Any:
    return transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


TRANSFORMER = {"num_queries": 10, "hidden_dim": 32, "num_attention_heads": 4, "dim_feedforward": 32,
"encoder_feedforward_dim": 32,
               "encoder_layers": 2, "decoder_layers": 2}  # fmt: skip


def oneformer(labels: dict[int, str], folder: Path) -> Any:
    config = transformers.OneFormerConfig(
        backbone_config=swin(),
        id2label=labels,
        conv_dim=32,
        mask_dim=32,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=600,
        text_encoder_n_ctx=4,
        **TRANSFORMER,
    )
    transformers.OneFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 160}).save_pretrained(
        folder
    )
    told = json.loads((folder / "preprocessor_config.json").read_text())
    # as published
    told |= {
        "class_info_file": "ade20k_panoptic.json",
        "repo_path": "shi-labs/oneformer_demo",
        "num_text": 10,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "th",
        "the</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return transformers.OneFormerForUniversalSegmentation(config)


def mask2former(labels: dict[int, str], folder: Path) -> Any:
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(), id2label=labels, feature_size=32, mask_feature_size=32, **TRANSFORMER
    )
    transformers.Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def upernet(labels: dict[int, str], folder: Path) -> Any:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        id2label=labels,
        hidden_size=16,
        auxiliary_in_channels=16,
        auxiliary_channels=8,
    )
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return transformers.UperNetForSemanticSegmentation(config)


FAMILY = {"oneformer": oneformer, "mask2former": mask2former, "upernet": upernet}


def stir(network: Any) -> Any:
    """Weights large enough that the label maps hold several classes; the library's own start gives one class
    everywhere.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)
            if "quer" in name or "class_predictor.weight" in name:
                weight.mul_(8)
            if "mask_projection" in name:
                weight.mul_(4)
    return network.eval()


def save(network: Any, folder: Path, file: str) -> None:
    network.config.save_pretrained(folder)
    if file == "pytorch_model.bin":
        torch.save(network.state_dict(), folder / file)
    else:
        network.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Detector -> a folder with the files its row names, once per session."""
    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder, model = tmp_path_factory.mktemp(name), segmentation.MODELS[name]
            labels = dict(enumerate(SPACES[model.label_space].names)) | (
                OFFICIAL if name == "oneformer-ade20k" else {}
            )
            network = FAMILY[name.partition("-")[0]](labels, folder)
            save(stir(network), folder, model.files[0].name)
            assert {file.name for file in model.files} == {path.name for path in folder.iterdir()}
            made[name] = folder
        return made[name]

    return make


@pytest.fixture
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    """Three photographs of two sizes, none of them a multiple of anything."""
    return [
        np.ascontiguousarray(astronaut[y : y + 4 * h : 4, 40 : 40 + 4 * w : 4])
        for y, h, w in ((0, 49, 83), (30, 100, 61), (90, 49, 83))
    ]


def detected(name: str, images: list[np.ndarray], folder: Path, **params: Any) -> list[RawMap]:
    """Through the same door as a run."""
    condition = CONDITION[segmentation.MODELS[name].label_space]
    step = resolve(condition, name, {"precision": "fp32", "weights": str(folder), **params})
    found = annotate(images, [str(i) for i in range(len(images))], [step])[condition]
    assert [each.status for each in found if each.map is None] == [], found[0].reason
    return [each.map for each in found if each.map is not None]


def by_the_library(name: str, image: np.ndarray, folder: Path, place: Path, **options: Any) -> np.ndarray:
    """The recipe of the model cards: processor, network, post_process_semantic_segmentation, one image at a
    time.
    """
    if name.startswith("oneformer"):
        (place / "classes.json").write_text(json.dumps({"0": {"name": "wall", "isthing": 0}}))
        processor = transformers.OneFormerProcessor.from_pretrained(
            folder, repo_path=str(place), class_info_file="classes.json"
        )
        network = transformers.OneFormerForUniversalSegmentation.from_pretrained(folder)
        options["task_inputs"] = ["semantic"]
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        family = {
            "mask2former": "Mask2FormerForUniversalSegmentation",
            "upernet": "UperNetForSemanticSegmentation",
        }
        network = getattr(transformers, family[name.partition("-")[0]]).from_pretrained(folder)
    with torch.no_grad():
        outputs = network(**processor(images=image, return_tensors="pt", **options))
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])[0].numpy()


@pytest.mark.parametrize("name", segmentation.MODELS)
def test_a_detector_gives_the_librarys_label_map_at_image_size(
    name: str, tiny: Callable[[str], Path], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    found = detected(name, pictures, tiny(name))
    for raw, image in zip(found, pictures, strict=True):
        assert raw.kind == "labels" and raw.array.dtype == np.uint8
        assert raw.meta == {"label_space": segmentation.MODELS[name].label_space}
        np.testing.assert_array_equal(raw.array, by_the_library(name, image, tiny(name), tmp_path))
    assert len(np.unique(np.concatenate([raw.array.ravel() for raw in found]))) >= 3


def test_the_detect_resolution_is_what_the_network_sees(
    tiny: Callable[[str], Path], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    import cv2

    folder, image = tiny("mask2former-ade20k"), pictures[0]
    [raw] = detected("mask2former-ade20k", [image], folder, resolution=128)
    # 83 / 49 * 128 = 217, nearest multiple of 64
    seen = cv2.resize(image, (192, 128), interpolation=cv2.INTER_LANCZOS4)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    network = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    with torch.no_grad():
        inputs = processor(images=seen, return_tensors="pt", do_resize=False)
        assert inputs["pixel_values"].shape == (1, 3, 128, 192)
        expected = processor.post_process_semantic_segmentation(
            network(**inputs), target_sizes=[image.shape[:2]]
        )[0]
    np.testing.assert_array_equal(raw.array, expected.numpy())
    assert (raw.array != detected("mask2former-ade20k", [image], folder)[0].array).any()


@pytest.mark.parametrize("name", ["oneformer-coco", "mask2former-ade20k", "upernet-ade20k"])
def test_a_batch_as_a_gpu_runs_it_gives_what_single_images_give(
    name: str, tiny: Callable[[str], Path], pictures: list[np.ndarray]
) -> None:
    prepare, network = segmentation.load(segmentation.MODELS[name], "fp32", "cpu", str(tiny(name)))
    pair = [pictures[0], pictures[2]]
    together = network(prepare(pair), (49, 83))
    assert together.shape == (2, 49, 83)
    for ids, image in zip(together, pair, strict=True):
        # sums of another shape may round otherwise
        assert (ids == network(prepare([image]), (49, 83))[0]).mean() > 0.99


class Brightness(torch.nn.Module):
    """Instead of a network that has learned: class 1 where the pixels it sees are bright, class 0 elsewhere,
    in masks of a quarter of their size.
    """

    def forward(self, pixel_values: Any, **more: Any) -> Any:
        height, width = pixel_values.shape[-2:]
        bright = (pixel_values.mean(dim=1, keepdim=True) > 1).float()
        quarter = torch.nn.functional.interpolate(bright, (-(-height // 4), -(-width // 4)), mode="area")
        modeling = transformers.models.mask2former.modeling_mask2former
        return modeling.Mask2FormerForUniversalSegmentationOutput(
            class_queries_logits=torch.eye(3)[None, :2].repeat(len(bright), 1, 1) * 20,
            masks_queries_logits=torch.cat([20 - 40 * quarter, 40 * quarter - 20], dim=1),
        )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("height", "width", "border"), [(448, 576, 518), (384, 640, 576), (512, 512, 460)])
def test_borders_lie_where_they_are_in_the_image_whatever_the_processor_pads(
    height: int, width: int, border: int, padded: bool
) -> None:
    """As published: a short side of 640, both sides in multiples of 32. Padding left in moves the border at
    90 % of the width by five pixels and more.
    """
    pad = {"pad_size": {"height": 1216, "width": 1152}} if padded else {}
    processor = transformers.Mask2FormerImageProcessor(
        size={"shortest_edge": 640, "longest_edge": 2560}, size_divisor=32, **pad
    )
    image = np.zeros((height, width, 3), np.uint8)
    image[:, border:] = 255
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))  # the border is below
    prepare = segmentation._prepare(
        segmentation.MODELS["mask2former-ade20k"], processor, Path(), Brightness()
    )
    run = segmentation._run(processor, Brightness(), "cpu", False)
    for picture, axis in ((image, 1), (turned, 0)):
        inputs = prepare([picture, picture])
        assert bool(inputs["pixel_mask"].all()) is not padded
        for ids in run(inputs, picture.shape[:2]):
            # the library compares classes on a grid of 384 x 384, and a border between two of its values
            assert abs((ids == 0).sum(axis=axis) - border).max() <= 1


def stripes(h: int, w: int, count: int, seed: int) -> np.ndarray:
    """Ids [h, w] in columns or in rows, the first and the last of the space among them; straight borders
    survive interpolation.
    """
    ids = np.random.default_rng(seed).choice([0, 1, 40, 77, count - 2, count - 1], h if seed % 2 else w)
    ids[0], ids[-1] = 0, count - 1
    return np.repeat(ids[:, None], w, axis=1) if seed % 2 else np.repeat(ids[None], h, axis=0)


@pytest.mark.parametrize(
    ("processor", "count"),
    [("OneFormerImageProcessor", 133), ("Mask2FormerImageProcessor", 150), ("SegformerImageProcessor", 150)],
)
def test_logits_of_a_known_label_map_give_it_back_at_four_times_the_size_in_label_order(
    processor: str, count: int
) -> None:
    made = getattr(transformers, processor)()
    for h, w in ((12, 16), (24, 8)):
        known = np.stack([stripes(h, w, count, seed) for seed in range(3)])
        # [n, classes, h, w]
        hot = torch.from_numpy(known[:, None] == np.arange(count)[None, :, None, None]).float()
        if processor == "SegformerImageProcessor":
            outputs = transformers.modeling_outputs.SemanticSegmenterOutput(logits=(hot * 9 - 3).bfloat16())
        else:
            # which class each query speaks of
            queries = torch.randperm(count, generator=torch.manual_seed(0))
            classes = torch.nn.functional.one_hot(queries, count + 1) * 20.0
            modeling = transformers.models.mask2former.modeling_mask2former
            outputs = modeling.Mask2FormerForUniversalSegmentationOutput(
                class_queries_logits=classes.expand(3, -1, -1).bfloat16(),
                masks_queries_logits=(hot[:, queries] * 40 - 20).bfloat16(),
            )
        ids = segmentation.decode(made, outputs, (h * 4, w * 4))
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, known.repeat(4, axis=1).repeat(4, axis=2))


def test_logits_of_bf16_are_compared_in_fp32() -> None:
    rising = torch.tensor([100.0, 101.0])
    # steps of bf16 are 0.5 here
    logits = torch.stack([rising, torch.full((2,), 100.5)])[None, :, None].bfloat16()
    outputs = transformers.modeling_outputs.SemanticSegmenterOutput(logits=logits)
    ids = segmentation.decode(transformers.SegformerImageProcessor(), outputs, (1, 64))
    np.testing.assert_array_equal(ids[0, 0], [1] * 32 + [0] * 32)


@pytest.mark.parametrize("name", ["oneformer-ade20k", "mask2former-coco", "upernet-ade20k"])
def test_nothing_looks_for_the_network(
    name: str, tiny: Callable[[str], Path], pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tiny(name), []

    def refuse(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("no network in this test")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    segmentation.load.cache_clear()
    assert len(detected(name, pictures, folder)) == 3
    assert asked == []


@pytest.mark.parametrize("name", ["oneformer-ade20k", "mask2former-ade20k", "upernet-ade20k"])
def test_a_missing_file_is_one_sentence_with_its_name_and_place(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    model = segmentation.MODELS[name]
    for lost in model.files:
        folder = tmp_path / lost.name
        folder.mkdir()
        for path in tiny(name).iterdir():
            if path.name != lost.name:
                os.link(path, folder / path.name)
        with pytest.raises(WeightsError) as error:
            segmentation.load(model, "fp32", "cpu", str(folder))
        assert (
            lost.name in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)
        )


def test_without_the_pinned_files_a_detector_says_which_and_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("CONTROLMILL_WEIGHTS", raising=False)
    for name, model in segmentation.MODELS.items():
        said = str(missing(name))
        assert model.files[0].name in said and model.files[0].repo in said and "\n" not in said


def test_another_order_of_classes_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for path in tiny("upernet-ade20k").iterdir():
        os.link(path, tmp_path / path.name)
    told = json.loads((tmp_path / "config.json").read_text())
    told["id2label"]["2"], told["id2label"]["3"] = "floor", "sky"
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(
        WeightsError, match=r"config.json: class 2 is 'floor' instead of 'sky' \(ade20k_150\)"
    ):
        segmentation.load(segmentation.MODELS["upernet-ade20k"], "fp32", "cpu", str(tmp_path))


def damaged(tiny: Callable[[str], Path], tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    for path in tiny("upernet-ade20k").iterdir():
        if path.name != "pytorch_model.bin":
            os.link(path, tmp_path / path.name)
    state = torch.load(tiny("upernet-ade20k") / "pytorch_model.bin", weights_only=True)
    torch.save(change(state), tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception) as error:
        segmentation.load(segmentation.MODELS["upernet-ade20k"], "fp32", "cpu", str(tmp_path))
    return str(error.value)


def test_weights_that_lack_a_part_are_refused_not_filled_with_noise(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    said = damaged(
        tiny,
        tmp_path,
        lambda state: {key: each for key, each in state.items() if key != "decode_head.classifier.bias"},
    )
    assert f"the weights in {tmp_path} lack 1 of its tensors, decode_head.classifier.bias first" in said


def test_weights_of_another_shape_are_refused_not_filled_with_noise(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    said = damaged(tiny, tmp_path, lambda state: state | {"decode_head.classifier.bias": torch.zeros(7)})
    assert f"the weights in {tmp_path} have another shape of decode_head.classifier.bias" in said


def test_weights_do_without_what_only_training_uses(
    tiny: Callable[[str], Path], tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    for path in tiny("upernet-ade20k").iterdir():
        if path.name != "pytorch_model.bin":
            os.link(path, tmp_path / path.name)
    state = torch.load(tiny("upernet-ade20k") / "pytorch_model.bin", weights_only=True)
    kept = {key: each for key, each in state.items() if not key.startswith("auxiliary_head.")}
    assert len(kept) < len(state)
    torch.save(kept, tmp_path / "pytorch_model.bin")
    [full], [bare] = (
        detected("upernet-ade20k", pictures[:1], folder) for folder in (tiny("upernet-ade20k"), tmp_path)
    )
    np.testing.assert_array_equal(full.array, bare.array)


class _Trap:
    """A pickle that writes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_code_in_a_weight_file_is_not_run(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    damaged(tiny, tmp_path, lambda state: state | {"decode_head.classifier.bias": _Trap(mark)})
    assert not mark.exists()


def test_bf16_gives_nearly_the_same_map(tiny: Callable[[str], Path], pictures: list[np.ndarray]) -> None:
    fine, coarse = (
        detected("upernet-ade20k", pictures, tiny("upernet-ade20k"), precision=each)
        for each in ("fp32", "bf16")
    )
    same = [(a.array == b.array).mean() for a, b in zip(fine, coarse, strict=True)]
    assert min(same) > 0.95 and min(same) < 1  # another arithmetic: 0.989 measured


@pytest.mark.parametrize("name", ["oneformer-coco", "mask2former-coco"])
def test_bf16_runs_through_deformable_attention(
    name: str, tiny: Callable[[str], Path], pictures: list[np.ndarray]
) -> None:
    found = detected(name, pictures, tiny(name), precision="bf16")
    assert [raw.array.shape for raw in found] == [image.shape[:2] for image in pictures]


def test_the_progress_bars_of_the_library_are_as_before(
    tiny: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    segmentation.load.cache_clear()
    segmentation.load(segmentation.MODELS["upernet-ade20k"], "fp32", "cpu", str(tiny("upernet-ade20k")))
    assert logging.is_progress_bar_enabled()
    assert "Loading weights" not in capfd.readouterr().err


def test_all_five_are_rows_with_resolution_and_precision() -> None:
    for name, model in segmentation.MODELS.items():
        step = resolve(CONDITION[model.label_space], name, here=False)
        # settled, so that it is on record
        assert step.params["resolution"] == 0 and step.params["precision"] in ("fp32", "bf16")
