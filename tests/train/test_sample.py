from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline

from train.base import Base, encode_text, load
from train.controlnet import ControlNet
from train.sample import generate, initial_noise

SMALL = {"height": 64, "width": 64, "steps": 3}


@pytest.fixture(scope="module")
def base(random_base_folder: Path) -> Base:
    return load(random_base_folder)


@pytest.fixture(scope="module")
def texts(base: Base) -> np.ndarray:
    return encode_text(base, ["a cat", "two dogs", "a red house", ""])


@pytest.fixture(scope="module")
def controlnet(base: Base) -> ControlNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made, _ = ControlNet.from_unet(base.unet)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def hints(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_an_image_does_not_depend_on_its_batch(base: Base, texts: np.ndarray, controlnet: ControlNet) -> None:
    together = generate(base, controlnet, hints=hints(3), text=texts[:3], empty_text=texts[3], seeds=[5, 6, 7], **SMALL)
    for i in range(3):
        alone = generate(base, controlnet, hints=hints(3)[i : i + 1], text=texts[i : i + 1], empty_text=texts[3], seeds=[5 + i], **SMALL)
        assert np.abs(alone[0].astype(int) - together[i]).max() <= 1


def test_the_noise_can_belong_to_seed_and_image() -> None:
    one = initial_noise([1, 1, 2], ["a", "b", "a"], 64, 64)
    assert one.shape == (3, 4, 8, 8)
    assert torch.equal(one[1], initial_noise([1], ["b"], 64, 64)[0])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], one[2])


def test_without_a_controlnet_and_with_a_fresh_one_the_base_draws_the_same(base: Base, texts: np.ndarray) -> None:
    fresh, _ = ControlNet.from_unet(base.unet)
    plain = generate(base, None, hints=None, text=texts[:1], empty_text=texts[3], seeds=[0], **SMALL)
    assert np.array_equal(plain, generate(base, fresh, hints=hints(1), text=texts[:1], empty_text=texts[3], seeds=[0], **SMALL))


def test_hint_and_scale_change_the_image(base: Base, texts: np.ndarray, controlnet: ControlNet) -> None:
    common = {"text": texts[:1], "empty_text": texts[3], "seeds": [0], **SMALL}
    full, half = (generate(base, controlnet, hints=hints(1), scale=scale, **common) for scale in (1.0, 0.5))
    assert not np.array_equal(full, half)
    assert not np.array_equal(full, generate(base, controlnet, hints=255 - hints(1), **common))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_image_is_that_of_the_diffusers_pipeline(base: Base, texts: np.ndarray, controlnet: ControlNet, guidance: float) -> None:
    theirs = ControlNetModel.from_config(controlnet.config).eval()
    theirs.load_state_dict(controlnet.state_dict())
    pipeline = StableDiffusionControlNetPipeline(
        vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=base.unet, controlnet=theirs,
        scheduler=DDIMScheduler.from_config(base.scheduler), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    hint = torch.from_numpy(hints(1)).permute(0, 3, 1, 2) / 255
    image = pipeline(
        "a cat", image=hint, latents=initial_noise([3], None, 64, 64), num_inference_steps=3, guidance_scale=guidance, output_type="np"
    ).images
    ours = generate(base, controlnet, hints=hints(1), text=texts[:1], empty_text=texts[3], seeds=[3], guidance=guidance, **SMALL)
    assert np.abs(np.round(image * 255) - ours).max() <= 1


def test_wrong_hints_are_refused(base: Base, texts: np.ndarray, controlnet: ControlNet) -> None:
    common = {"text": texts[:1], "empty_text": texts[3], "seeds": [0], **SMALL}
    with pytest.raises(ValueError, match="needs hints"):
        generate(base, controlnet, hints=None, **common)
    with pytest.raises(ValueError, match=r"hints must be uint8 \(1, 64, 64, 3\)"):
        generate(base, controlnet, hints=hints(1)[:, :32], **common)
