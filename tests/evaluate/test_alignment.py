"""CLIP scores: torchmetrics' number for each sample, long captions read to their end, other encoders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import small_networks
from evaluate.alignment import DualEncoder, crop, load, mark, similarity
from evaluate.extractors import Images

torch.set_num_threads(1)
DRAW = np.random.default_rng(0)
IMAGES = [DRAW.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
CAPTIONS = ["a cat", "dog", "sky b"]
LONG = "a b c d e f g h i j k l m n o p"  # 16 words where the model reads 12 positions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_networks.clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


def clip_scores(encoder: DualEncoder, images: list[np.ndarray], captions: list[str]) -> np.ndarray:
    """As the pipeline makes them of a shard of samples."""
    return similarity(encoder.images(images), encoder.texts(captions)).clip(0)


class Bare:
    """As torchmetrics calls a CLIP: transformers 5 gives it a record where it expects a tensor."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    def to(self, device: Any) -> "Bare":
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.text_projection(self.model.text_model(ids, mask).pooler_output)


def theirs(folder: Path, images: list[np.ndarray], captions: list[str]) -> np.ndarray:
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    model = CLIPModel.from_pretrained(str(folder)).eval()
    processor = CLIPProcessor(
        CLIPImageProcessor.from_pretrained(str(folder)), CLIPTokenizer.from_pretrained(str(folder))
    )
    with torch.inference_mode():
        tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
        return _clip_score_update(tensors, captions, Bare(model), processor)[0].numpy()


def test_each_sample_scores_what_torchmetrics_gives_it(folder: Path) -> None:
    encoder = load(folder)
    wanted = theirs(folder, IMAGES, CAPTIONS)
    assert np.ptp(wanted) > 1 and (wanted < 0).any() and (wanted > 0).any(), (
        "the tiny network tells these apart"
    )
    found = clip_scores(encoder, IMAGES, CAPTIONS)
    assert np.allclose(found, wanted.clip(0), atol=1e-3)
    assert (encoder.name, len(encoder.sha256)) == ("tiny-clip", 64)
    assert np.allclose(clip_scores(encoder, np.stack(IMAGES), CAPTIONS), found, atol=1e-4)


def test_a_long_caption_is_cut_before_its_end_mark_and_not_behind_it(folder: Path) -> None:
    encoder: Any = load(folder)
    ids = encoder.tokens([LONG, "a"])["input_ids"]
    assert ids.shape == (2, 12) and ids[0, -1] == 53 and ids[0, 0] == 52
    assert np.allclose(encoder.texts([LONG]), encoder.texts(["a b c d e f g h i j"]), atol=1e-6), (
        "as if it had ended there"
    )
    with pytest.warns(UserWarning, match="longer"):
        cut = theirs(folder, IMAGES[:1], [LONG])
    right = theirs(folder, IMAGES[:1], ["a b c d e f g h i j"])
    ours = 100 * (encoder.images(np.stack(IMAGES[:1])) @ encoder.texts([LONG]).T)[0]
    assert ours == pytest.approx(right, abs=1e-3)
    assert abs(cut - right) > 0.1, "torchmetrics loses the end mark and reads another place"


def test_short_captions_are_not_moved_by_longer_ones_beside_them(folder: Path) -> None:
    encoder = load(folder)
    assert np.allclose(encoder.texts(["a cat", LONG])[0], encoder.texts(["a cat"])[0], atol=1e-5)
    assert np.allclose(np.linalg.norm(encoder.texts(CAPTIONS), axis=1), 1, atol=1e-5)


def test_other_sizes_are_prepared_as_clip_was_trained(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    wide = np.asarray(crop(np.repeat(np.arange(96, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2), 32))
    assert (
        wide.shape == (32, 32, 3)
        and wide[0, 16, 0] == pytest.approx(48, abs=1)
        and wide[0, 0, 0] == pytest.approx(24, abs=1)
    ), "the middle"
    image = DRAW.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    pixels = CLIPImageProcessor.from_pretrained(str(folder))(images=[image], return_tensors="np")[
        "pixel_values"
    ][0]
    theirs = (np.asarray(pixels).transpose(1, 2, 0) * [0.26, 0.25, 0.27] + [0.48, 0.45, 0.4]) * 255
    assert np.abs(crop(image, 32) - theirs).max() < 2, "two libraries' bicubic, each with antialiasing"


def test_images_are_like_themselves_and_less_like_others(folder: Path) -> None:
    encoder = load(folder)
    seen = encoder.images(IMAGES)
    assert similarity(seen, seen) == pytest.approx([100] * 3, abs=1e-3)
    assert (similarity(seen, np.roll(seen, 1, axis=0)) < 99.9).all()
    mixed = encoder.images([IMAGES[0], DRAW.integers(0, 256, (40, 64, 3), dtype=np.uint8)])
    assert similarity(mixed, mixed) == pytest.approx([100] * 2, abs=1e-3), "sizes may differ"


def test_any_encoder_of_both_will_do_and_nothing_scores_below_nothing() -> None:
    class Named:
        name, version, sha256 = "signs", "1", "0"

        def images(self, images: Images) -> np.ndarray:
            return np.where(np.stack(images)[:, 0, 0, :1] > 127, [[1.0, 0.0]], [[0.6, 0.8]]).astype(
                np.float32
            )

        def texts(self, texts: list[str]) -> np.ndarray:
            return np.array([[1.0, 0.0] if text == "light" else [-1.0, 0.0] for text in texts], np.float32)

    dark, light = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert clip_scores(Named(), [light, dark, light], ["light", "light", "dark"]) == pytest.approx(
        [100, 60, 0]
    )
    assert similarity(Named().images([light]), Named().images([dark])) == pytest.approx([60])


def test_an_encoder_is_identified_as_it_is_when_it_is_loaded(folder: Path) -> None:
    for spec in (folder, "mini"):
        encoder = load(spec)
        assert mark(spec) == (encoder.name, encoder.version, encoder.sha256)


def test_a_folder_that_is_not_whole_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(ValueError, match="holds no network of transformers"):
        load(tmp_path)
    shutil.copytree(folder, tmp_path / "part")
    (tmp_path / "part" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="get all the files of the model"):
        load(tmp_path / "part")
