"""BLIP captions: a small network of the true class with random weights, through files, against the library's
own call.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from annotate import captions, inference, pretrained, weights
from annotate.weights import FOLDER_VARIABLE, WeightsError
from tests.blip import END, START, WORDS, make


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """(folder, network, processor)"""
    return make(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Eight pictures of different sizes."""
    draw = np.random.default_rng(2)
    sizes = [(int(h), int(w)) for h, w in draw.integers(20, 90, (8, 2))]
    return [
        np.kron(draw.integers(0, 256, (4, 4, 3)), np.ones((25, 25, 1)))[:h, :w].astype(np.uint8)
        for h, w in sizes
    ]


def library(network: Any, processor: Any, picture: np.ndarray, **search: int) -> str:
    """What a person writes with transformers alone."""
    inputs = processor(images=Image.fromarray(picture), text=captions.PROMPT, return_tensors="pt")
    made = processor.decode(
        network.generate(**inputs, do_sample=False, **search)[0], skip_special_tokens=True
    )
    assert made.startswith(captions.PROMPT)
    return made.removeprefix(captions.PROMPT).strip()


def write_old_format(folder: Path, model: Path, state: dict[str, torch.Tensor]) -> None:
    """As the pinned files are: tensors in a .bin."""
    torch.save(state, folder / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((model / name).read_bytes())


@pytest.mark.parametrize(("beams", "most"), [(3, 40), (1, 40), (5, 8)])
def test_captions_are_the_librarys_own_text_for_text(
    blip: tuple[Path, Any, Any], pictures: list[np.ndarray], beams: int, most: int
) -> None:
    folder, network, processor = blip
    made = captions.caption(pictures, weights=str(folder), precision="fp32", beams=beams, max_tokens=most)
    assert made == [
        library(network, processor, each, num_beams=beams, max_new_tokens=most, min_new_tokens=1)
        for each in pictures
    ]
    # they tell the pictures apart, or the comparison would mean little
    assert len(set(made)) >= 4 and all(made)


def test_the_picture_is_prepared_as_by_the_librarys_processor(
    blip: tuple[Path, Any, Any], pictures: list[np.ndarray]
) -> None:
    for picture in pictures:
        expected = blip[2].image_processor(images=[Image.fromarray(picture)], return_tensors="np")[
            "pixel_values"
        ][0]
        np.testing.assert_allclose(captions.prepare(picture, 32), expected, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_gives_each_picture_the_caption_that_it_gets_alone(
    blip: tuple[Path, Any, Any], pictures: list[np.ndarray], beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [
        captions.caption([each], weights=str(blip[0]), precision="fp32", beams=beams)[0] for each in pictures
    ]
    shapes = []
    network = captions.load("fp32", "cpu", str(blip[0]))
    texts = captions.CaptionNetwork(
        network.side, lambda pixels, *search: shapes.append(len(pixels)) or network.texts(pixels, *search)
    )  # type: ignore[func-returns-value]
    monkeypatch.setattr(captions, "load", lambda *_: texts)
    monkeypatch.setattr(inference, "_micro_batch", lambda *_: 3)  # as on a GPU
    assert captions.caption(pictures, weights=str(blip[0]), precision="fp32", beams=beams) == alone
    assert shapes == [3, 3, 2]  # sizes that differ run together
    assert len({len(each.split()) for each in alone}) > 1  # some end while their neighbours go on


def test_bf16_is_close_to_fp32(blip: tuple[Path, Any, Any], pictures: list[np.ndarray]) -> None:
    """Of the first word's logits: 3 percent of their spread; of the texts, most words."""
    pixels = torch.from_numpy(np.stack([captions.prepare(each, 32) for each in pictures]))
    prompt = torch.tensor([[START, *(WORDS.index(word) for word in captions.PROMPT.split())]] * len(pictures))
    load = lambda p: pretrained.load("BlipForConditionalGeneration", blip[0], "blip-base").to(
        inference.dtype(p)
    )
    exact, rough = (
        load(p)(pixels.to(inference.dtype(p)), prompt).logits[:, -1].float() for p in ("fp32", "bf16")
    )
    assert 0 < (exact - rough).abs().mean() / exact.std() < 0.03
    texts = captions.caption(pictures, weights=str(blip[0]), precision="bf16", beams=1)
    assert all(texts) and len(set(texts)) >= 4


def test_a_flat_picture_and_a_single_pixel_have_a_caption(blip: tuple[Path, Any, Any]) -> None:
    flat = [np.zeros((64, 64, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)]
    assert all(captions.caption(flat, weights=str(blip[0])))
    assert captions.caption([], weights=str(blip[0])) == []


def test_no_caption_is_longer_than_asked(blip: tuple[Path, Any, Any], pictures: list[np.ndarray]) -> None:
    made = captions.caption(pictures, weights=str(blip[0]), precision="fp32", max_tokens=2)
    assert all(1 <= len(each.split()) <= 2 for each in made)


def test_a_caption_is_never_empty(
    blip: tuple[Path, Any, Any], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    """BLIP's recipe wants five tokens with the four of the prompt's start."""
    state = {name: tensor.clone() for name, tensor in blip[1].state_dict().items()}
    for name in ("bias", "decoder.bias"):
        state[f"text_decoder.cls.predictions.{name}"][END] = 50.0
    write_old_format(tmp_path, blip[0], state)
    assert all(captions.caption(pictures, weights=str(tmp_path), precision="fp32"))


def test_weights_in_the_old_format_give_the_same_captions(
    blip: tuple[Path, Any, Any], pictures: list[np.ndarray], tmp_path: Path
) -> None:
    """The pinned file is a .bin of 2022, with a buffer that later versions of the library do not keep."""
    buffers = {"text_decoder.bert.embeddings.position_ids": torch.arange(64)[None]}
    write_old_format(tmp_path, blip[0], {**blip[1].state_dict(), **buffers})
    old, new = (
        captions.caption(pictures, weights=str(place), precision="fp32") for place in (tmp_path, blip[0])
    )
    assert old == new


def test_weights_that_lack_a_tensor_are_refused_and_not_filled_at_random(
    blip: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    state = blip[1].state_dict()
    del state["vision_model.post_layernorm.weight"]
    write_old_format(tmp_path, blip[0], state)
    with pytest.raises(WeightsError, match=r"1 of its tensors, vision_model\.post_layernorm\.weight"):
        captions.caption([np.zeros((8, 8, 3), np.uint8)], weights=str(tmp_path))


def test_what_is_missing_is_said_with_the_command_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    said = captions.missing("blip-base")
    assert (
        "hf download Salesforce/blip-image-captioning-base config.json tokenizer.json pytorch_model.bin"
        in str(said)
    )
    with pytest.raises(WeightsError, match="hf download"):
        captions.caption([np.zeros((8, 8, 3), np.uint8)])
    assert "tokenizer.json, pytorch_model.bin" in str(_lacks(tmp_path, "config.json"))
    assert captions.missing("blip") == "blip is not built yet"


def _lacks(folder: Path, present: str) -> str | None:
    (folder / present).write_text("{}")
    return captions.missing("blip-base", str(folder))


def test_parameters_are_checked_and_auto_is_settled(blip: tuple[Path, Any, Any]) -> None:
    params = captions.resolve("blip-base", {"weights": os.path.relpath(blip[0])})
    assert params == {
        "precision": params["precision"],
        "beams": 3,
        "max_tokens": 40,
        "weights": str(blip[0].resolve()),
    }
    assert params["precision"] in ("fp32", "bf16")
    for given, said in (
        ({"beams": 0}, "out of range"),
        ({"beam": 1}, "did you mean 'beams'"),
        ({"precision": "int8"}, "fp32"),
    ):
        with pytest.raises(ValueError, match=said):
            captions.resolve("blip-base", given)
    with pytest.raises(ValueError, match="did you mean 'blip-base'"):
        captions.resolve("blip-bas")


def test_the_identity_changes_with_what_changes_captions_and_not_with_where_the_files_lie(
    blip: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    def of(**params: Any) -> dict[str, Any]:
        return captions.identity("blip-base", captions.resolve("blip-base", {"precision": "fp32", **params}))

    copy, other = tmp_path / "copy", tmp_path / "other"
    for place in (copy, other):
        place.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (place / name).write_bytes((blip[0] / name).read_bytes())
    (other / "config.json").write_bytes((blip[0] / "config.json").read_bytes() + b"\n")
    base = of(weights=str(blip[0]))
    assert base["weights"] and base == of(weights=str(copy))
    assert base["weights"] != of(weights=str(other))["weights"]
    assert base != of(weights=str(blip[0]), beams=1)
    assert base["library"][0] == "transformers" and base["precision"] == "fp32"
    # all files are pinned: known before they are here
    assert of()["weights"] == weights.identity(captions.WEIGHTS)
    assert all(file.sha256 for file in captions.WEIGHTS)
