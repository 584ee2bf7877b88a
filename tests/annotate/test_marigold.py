"""Marigold's maps are those of diffusers' own pipelines on the same weights and noise, which an image's id
seeds.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from PIL import Image
from safetensors.torch import load_file, save_file

from annotate import inference, marigold
from annotate.annotator import annotate, resolve
from annotate.weights import FOLDER_VARIABLE, find_folder

CONDITION = {"marigold-depth": "depth_large", "marigold-normals": "normal"}
FAST = {"precision": "fp32", "resolution": 64, "steps": 2}


@pytest.fixture(scope="module")
def images(astronaut: np.ndarray) -> list[np.ndarray]:
    """Three pictures of two sizes, none a multiple of the autoencoder's step."""
    return [np.ascontiguousarray(astronaut[y : y + 4 * h : 4, 40 : 40 + 4 * w : 4])
            for y, h, w in ((0, 49, 83), (30, 90, 61), (90, 49, 83))]  # fmt: skip


def tokenizer(folder: Path) -> Any:
    """As Stable Diffusion 2's, with a few words."""
    (folder / "vocab.json").write_text(json.dumps({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    names = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    return transformers.CLIPTokenizer(*names, pad_token="a", model_max_length=77)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Detector -> a folder as diffusers saves its pipeline: the true classes, small, with random weights."""
    torch.manual_seed(8)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=3, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=32,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=8, use_linear_projection=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8, latent_channels=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
        timestep_spacing="trailing", rescale_betas_zero_snr=True,
    )  # fmt: skip
    made = {}
    for name, model in marigold.MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        pipe = getattr(diffusers, model.pipeline)(
            unet, vae, scheduler, text, tokenizer(tmp_path_factory.mktemp("tokens")),
            prediction_type=model.draws, default_denoising_steps=4, default_processing_resolution=768,
        )  # fmt: skip
        pipe.save_pretrained(folder)
        # as Stable Diffusion 2's repository, which an earlier transformers wrote
        beside = folder / "tokenizer"
        (beside / "vocab.json").write_text(json.dumps({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
        (beside / "merges.txt").write_text("#version: 0.2\n")
        (beside / "special_tokens_map.json").write_text(json.dumps({"pad_token": "a"}))
        made[name] = str(folder)
    return made


def made(name: str, images: list[np.ndarray], place: Path | str, ids: str = "abc", **params: Any) -> list:
    step = resolve(CONDITION[name], name, {**FAST, "weights": str(place), **params})
    return annotate(images, list(ids[: len(images)]), [step])[CONDITION[name]]


def by_the_library(name: str, image: np.ndarray, folder: str, seeds: list[int]) -> np.ndarray:
    """The recipe of the model's card, with noise of these seeds."""
    pipe = getattr(diffusers, marigold.MODELS[name].pipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    found = pipe(
        Image.fromarray(image), num_inference_steps=2, processing_resolution=64, ensemble_size=len(seeds),
        generator=noise,
    )  # fmt: skip
    return found.prediction[0]


@pytest.mark.parametrize("ensemble", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_depth_is_that_of_diffusers_turned_to_inverse_depth(
    ensemble: int, images: list[np.ndarray], small: dict[str, str]
) -> None:
    folder = small["marigold-depth"]
    for annotation, image in zip(
        made("marigold-depth", images, folder, ensemble=ensemble), images, strict=True
    ):
        assert annotation.status == "ok" and annotation.map.meta["unit"] == "relative"
        seed = annotation.random_params["seed"]
        depth = by_the_library("marigold-depth", image, folder, [seed + i for i in range(ensemble)])[..., 0]
        assert np.ptp(depth) > 0.1 and depth.shape == image.shape[:2]
        np.testing.assert_allclose(annotation.map.array, 1 / (1 + 9 * depth), rtol=1e-3)


def test_normals_are_those_of_diffusers(images: list[np.ndarray], small: dict[str, str]) -> None:
    folder = small["marigold-normals"]
    for annotation, image in zip(made("marigold-normals", images, folder), images, strict=True):
        wanted = by_the_library("marigold-normals", image, folder, [annotation.random_params["seed"]])
        assert annotation.status == "ok" and wanted.std() > 0.2
        assert np.abs(annotation.map.array - wanted).max() < 1e-3


def test_inverse_depth_falls_from_one_to_one_over_far_and_near_one_it_is_a_line() -> None:
    depth = np.linspace(0, 1, 5, dtype=np.float32)
    found = marigold.inverse_depth(depth, 10.0)
    assert found[0] == 1 and found[-1] == np.float32(0.1) and (np.diff(found) < 0).all()
    flat = marigold.inverse_depth(depth, 1.01)
    np.testing.assert_allclose((flat - flat[-1]) / (flat[0] - flat[-1]), 1 - depth, atol=0.003)


@pytest.mark.parametrize("name", CONDITION)
def test_an_image_has_the_same_map_alone_and_among_others_and_another_one_by_another_id(
    name: str, images: list[np.ndarray], small: dict[str, str]
) -> None:
    among = made(name, images, small[name])
    alone = made(name, images[2:], small[name], ids="c")[0]
    np.testing.assert_array_equal(among[2].map.array, alone.map.array)
    other = made(name, images[2:], small[name], ids="x")[0]
    assert other.random_params != alone.random_params and (other.map.array != alone.map.array).any()


def test_a_batch_as_a_gpu_runs_it_gives_what_single_images_give(
    images: list[np.ndarray], small: dict[str, str]
) -> None:
    network = marigold.load(marigold.MODELS["marigold-depth"], "fp32", "cpu", small["marigold-depth"])
    pair = np.stack([images[0], images[2]])
    for ensemble in (1, 3):
        both = network(pair, [5, 6], 2, ensemble, 64)
        for i, seed in enumerate((5, 6)):
            alone = network(pair[i : i + 1], [seed], 2, ensemble, 64)[0]
            np.testing.assert_allclose(both[i], alone, atol=1e-4)


@pytest.mark.parametrize("name", CONDITION)
def test_bf16_stays_close_and_has_no_terraces(
    name: str, images: list[np.ndarray], small: dict[str, str]
) -> None:
    exact, rough = (
        made(name, images[:1], small[name], precision=each)[0].map.array for each in ("fp32", "bf16")
    )
    assert np.abs(rough - exact).mean() < 0.05 * np.ptp(exact)
    assert len(np.unique(rough)) > exact.size / 2


@pytest.mark.parametrize("layout", ["half precision", "older names of layers"])
def test_other_layouts_of_the_same_weights_give_the_same(
    layout: str, images: list[np.ndarray], small: dict[str, str], tmp_path: Path
) -> None:
    """Half precision in the hub's files of the variant fp16; attention's names before diffusers 0.12, and the
    buffer of positions that transformers stored then.
    """
    shutil.copytree(small["marigold-depth"], tmp_path, dirs_exist_ok=True)
    close = 1e-6
    if layout == "half precision":
        close = 0.1
        for path in tmp_path.glob("*/*.safetensors"):
            half = {name: each.half() for name, each in load_file(path).items()}
            save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"})
            path.unlink()
    else:
        path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
        old = load_file(path)
        for today, before in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            old = {name.replace(f".{today}.", f".{before}."): each for name, each in old.items()}
        assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
        save_file(old, path, metadata={"format": "pt"})
        path = tmp_path / "text_encoder" / "model.safetensors"
        positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        save_file(load_file(path) | positions, path, metadata={"format": "pt"})
    found, wanted = (
        made("marigold-depth", images[:1], place)[0] for place in (tmp_path, small["marigold-depth"])
    )
    assert found.status == "ok", found.reason
    assert np.abs(found.map.array - wanted.map.array).mean() < close


def refused(images: list[np.ndarray], name: str, place: Path) -> str:
    marigold.load.cache_clear()
    annotation = made(name, images[:1], place)[0]
    assert annotation.status == "failed" and "\n" not in annotation.reason
    return annotation.reason


def test_weights_that_do_not_fit_are_one_sentence(
    images: list[np.ndarray], small: dict[str, str], tmp_path: Path
) -> None:
    assert "it draws depth, not normals" in refused(images, "marigold-normals", Path(small["marigold-depth"]))
    assert "it draws normals, not depth" in refused(images, "marigold-depth", Path(small["marigold-normals"]))
    shutil.copytree(small["marigold-depth"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    save_file({name: each for name, each in whole.items() if name != "conv_in.weight"}, path)
    assert "lack 1 of its tensors, conv_in.weight first" in refused(images, "marigold-depth", tmp_path)
    save_file(whole | {"conv_in.weight": whole["conv_in.weight"][:, :4].contiguous()}, path)
    said = refused(images, "marigold-depth", tmp_path)
    assert "another shape of conv_in.weight" in said and "not of this architecture" in said


def test_the_seeds_follow_their_images_into_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: equal sizes together, and a short batch filled up."""
    monkeypatch.setattr(inference, "_micro_batch", lambda *_: 4)
    pictures = [np.full((8 + i % 2, 8, 3), i, np.uint8) for i in range(5)]

    def forward(batch: np.ndarray, told: list[int]) -> list[int]:
        assert [int(image.max()) for image in batch] == told and len(batch) in (2, 4)
        return [10 * each for each in told]

    assert inference.run(pictures, forward, "cuda", "test", list(range(5))) == [0, 10, 20, 30, 40]


def test_a_resolution_that_the_autoencoder_can_not_halve_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="resolution: 700 is no multiple of 8"):
        resolve("depth_large", "marigold-depth", {"resolution": 700}, here=False)


def test_the_files_of_both_lie_in_folders_of_their_own(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names are alike, so that only the repository tells them apart."""
    for name, model in marigold.MODELS.items():
        shutil.copytree(small[name], tmp_path / model.files[0].repo)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    plain = [file for file in marigold.MODELS["marigold-normals"].files if not file.sha256]
    assert find_folder(tuple(plain)) == tmp_path / "prs-eth" / "marigold-normals-v1-1"
