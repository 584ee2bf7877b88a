import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from tests.train.conftest import SCHEDULER, tiny_base
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


def test_a_part_that_was_not_loaded_is_named(random_base_folder: Path) -> None:
    base = load(random_base_folder, parts=("unet",))
    assert base.vae is None and base.scaling_factor > 0
    with pytest.raises(ValueError, match="without its vae"):
        encode_images(base, np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="it has no decoder"):
        load(random_base_folder, parts=("decoder",))


def test_noise_levels_are_those_of_diffusers() -> None:
    assert torch.equal(noise_levels(tiny_base()), DDPMScheduler.from_config(SCHEDULER).alphas_cumprod)
