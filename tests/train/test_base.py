import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from tests.train.conftest import SCHEDULER, tiny_base
from train import checkpoint
from train.base import build_random, decode_latents, encode_images, encode_text, fingerprint, load, noise_levels
from train.controlnet import ControlNet
from train.random_base import rectangles


@pytest.fixture(scope="module")
def base(random_base_folder: Path):
    return load(random_base_folder)


def test_the_random_base_has_the_topology_of_stable_diffusion_15_and_says_what_it_is(base, random_base_folder: Path) -> None:
    controlnet, transfer = ControlNet.from_unet(base.unet)
    assert (len(controlnet.state_dict()), len(controlnet.controlnet_down_blocks), len(transfer.new)) == (340, 12, 42)
    assert base.random_weights
    assert json.loads((random_base_folder / "controlmill.json").read_text())["random_weights"] is True


def test_diffusers_loads_the_random_base_and_draws_with_it(random_base_folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(random_base_folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert image.shape == (1, 64, 64, 3) and np.isfinite(image).all()


def test_the_random_base_is_a_function_of_its_seed(random_base_folder: Path, tmp_path: Path) -> None:
    build_random(tmp_path / "again")
    build_random(tmp_path / "other", seed=1)
    assert fingerprint(tmp_path / "again") == fingerprint(random_base_folder) != fingerprint(tmp_path / "other")
    build_random(tmp_path / "again")
    with pytest.raises(FileExistsError, match="random base of seed 2"):
        build_random(tmp_path / "again", seed=2)


def test_everything_loaded_is_locked(base) -> None:
    for part in (base.unet, base.vae, base.text_encoder):
        assert not part.training and not any(parameter.requires_grad for parameter in part.parameters())


def test_latents_have_about_unit_variance_and_a_narrow_posterior(base) -> None:
    images = ((rectangles(5, count=2, side=128) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    mean, std = encode_images(base, images)
    assert mean.shape == std.shape == (2, 4, 16, 16) and mean.dtype == np.float32
    assert 0.6 < mean.std() * base.scaling_factor < 1.6
    assert std.mean() < 0.2 * mean.std()
    back = decode_latents(base, torch.from_numpy(mean) * base.scaling_factor)
    assert back.shape == images.shape and back.dtype == np.uint8
    assert np.corrcoef(back.ravel(), images.ravel())[0, 1] > 0.3


def test_text_depends_on_the_caption_and_not_on_its_neighbours(base) -> None:
    both = encode_text(base, ["a cat", ""])
    assert both.dtype == np.float32 and both.ndim == 3
    assert np.abs(both[0] - both[1]).max() > 1e-2
    np.testing.assert_allclose(encode_text(base, [""])[0], both[1], atol=1e-5)


def test_the_fingerprint_is_of_the_content_not_of_the_place(random_base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(random_base_folder, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(random_base_folder)
    config = tmp_path / "copy/vae/config.json"
    config.write_text(config.read_text().replace('"scaling_factor"', '"scaling_factor" '))
    assert fingerprint(tmp_path / "copy") != fingerprint(random_base_folder)


def test_a_base_that_is_not_there_or_not_whole_is_named(random_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"base models/v1-5.safetensors: no such file"):
        load("models/v1-5.safetensors")
    shutil.copytree(random_base_folder, tmp_path / "part")
    (tmp_path / "part/vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks vae/diffusion_pytorch_model.safetensors"):
        load(tmp_path / "part")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"hf download somebody/something"):
        load("somebody/something")


# of the repositories stable-diffusion-v1-5/stable-diffusion-v1-5 and openai/clip-vit-base-patch16
NEEDED = {
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors", "scheduler/scheduler_config.json", "model_index.json",
    "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json",
}  # fmt: skip
HEAVY = {
    "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-5-pruned-emaonly.ckpt", "v1-5-pruned-emaonly.safetensors",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors",
    "safety_checker/pytorch_model.bin", "safety_checker/model.safetensors", "safety_checker/model.fp16.safetensors",
}  # fmt: skip
CLIP = {"config.json", "preprocessor_config.json", "merges.txt", "vocab.json", "tokenizer_config.json", "pytorch_model.bin"}


def fetched(command: str, repository: set[str]) -> set[str]:
    """What `hf download` takes of a repository, by its own rule."""
    from huggingface_hub.utils import filter_repo_objects

    words = shlex.split(command)
    told = {flag: [value for name, value in itertools.pairwise(words) if name == flag] or None for flag in ("--include", "--exclude")}
    return set(filter_repo_objects(repository, allow_patterns=told["--include"], ignore_patterns=told["--exclude"]))


def test_every_command_for_a_base_fetches_its_files_and_no_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole repository is tens of GB: each network in several formats and precisions."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        load("somebody/something")
    (said,) = re.findall("`(hf download .*?)`", str(error.value))
    page = (Path(__file__).parents[2] / "docs/your-pictures.md").read_text()
    written, clip = re.findall("^hf download .*$", page, re.MULTILINE)
    for command in (said, written):
        assert fetched(command, NEEDED | HEAVY) == NEEDED
    assert fetched(clip, CLIP | {"tf_model.h5", "flax_model.msgpack"}) == CLIP


def test_the_command_for_a_controlnet_fetches_its_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        checkpoint.locate("somebody/something")
    (said,) = re.findall("`(hf download .*?)`", str(error.value))
    two = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert fetched(said, two | {"diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"}) == two


def test_a_part_that_was_not_loaded_is_named(random_base_folder: Path) -> None:
    base = load(random_base_folder, parts=("unet",))
    assert base.vae is None and base.scaling_factor > 0
    with pytest.raises(ValueError, match="without its vae"):
        encode_images(base, np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="it has no decoder"):
        load(random_base_folder, parts=("decoder",))


def test_noise_levels_are_those_of_diffusers() -> None:
    assert torch.equal(noise_levels(tiny_base()), DDPMScheduler.from_config(SCHEDULER).alphas_cumprod)
