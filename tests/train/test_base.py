import dataclasses
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file

from tests.train.conftest import SCHEDULER, tiny_base
from train import hub, loss, pretrained, weights_file
from train.base import WEIGHTS, check, fingerprint, load, locate, noise_levels, side
from train.controlnet import ControlNet
from train.encoders import decode_latents, encode_images, encode_text
from train.random_base import build_random, rectangles


@pytest.fixture(scope="module")
def base(random_base_folder: Path):
    return load(random_base_folder)


def test_the_random_base_has_the_topology_of_stable_diffusion_15_and_says_what_it_is(
    base, random_base_folder: Path
) -> None:
    controlnet, transfer = ControlNet.from_unet(base.unet)
    assert (len(controlnet.state_dict()), len(controlnet.controlnet_down_blocks), len(transfer.new)) == (
        340,
        12,
        42,
    )
    assert base.random_weights
    assert json.loads((random_base_folder / "controlmill.json").read_text())["random_weights"] is True


def test_diffusers_loads_the_random_base_and_draws_with_it(random_base_folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(random_base_folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert image.shape == (1, 64, 64, 3) and np.isfinite(image).all()


@pytest.mark.slow
def test_the_random_base_is_a_function_of_its_seed(random_base_folder: Path, tmp_path: Path) -> None:
    build_random(tmp_path / "again")
    build_random(tmp_path / "other", seed=1)
    assert (
        fingerprint(tmp_path / "again") == fingerprint(random_base_folder) != fingerprint(tmp_path / "other")
    )
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


def test_a_base_that_is_not_there_or_not_whole_is_named(
    random_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"base models/v1-5.safetensors: no such file"):
        load("models/v1-5.safetensors")
    shutil.copytree(random_base_folder, tmp_path / "part")
    (tmp_path / "part/vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"lacks vae/diffusion_pytorch_model.safetensors; a base is a complete diffusers folder$",
    ):
        load(tmp_path / "part")
    (tmp_path / "part/vae/diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError,
        match=r"vae/diffusion_pytorch_model.bin is not read: get diffusion_pytorch_model.safetensors$",
    ):
        load(tmp_path / "part")
    half = shutil.copy(
        random_base_folder / WEIGHTS["vae"], tmp_path / "part/vae/diffusion_pytorch_model.fp16.safetensors"
    )
    with pytest.raises(
        FileNotFoundError,
        match=rf"{half} has them in half precision: a copy of it called diffusion_pytorch_model.safetensors",
    ):
        load(tmp_path / "part")
    shutil.copy(half, tmp_path / "part" / WEIGHTS["vae"])
    assert load(tmp_path / "part", parts=("vae",)).vae is not None
    (tmp_path / "part/controlmill.json").write_text("{")
    with pytest.raises(ValueError, match=r"part/controlmill.json is no JSON"):
        load(tmp_path / "part", parts=())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"hf download somebody/something"):
        load("somebody/something")


# of the repositories stable-diffusion-v1-5/stable-diffusion-v1-5 and openai/clip-vit-base-patch16
NEEDED = {
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors", "scheduler/scheduler_config.json",
    "model_index.json",
    "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
}  # fmt: skip
HEAVY = {
    "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-5-pruned-emaonly.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors",
    "safety_checker/pytorch_model.bin", "safety_checker/model.safetensors",
    "safety_checker/model.fp16.safetensors",
}  # fmt: skip
CLIP = {
    "config.json",
    "preprocessor_config.json",
    "merges.txt",
    "vocab.json",
    "tokenizer_config.json",
    "pytorch_model.bin",
}


def fetched(command: str, repository: set[str]) -> set[str]:
    """What `hf download` takes of a repository, by its own rule."""
    from huggingface_hub.utils import filter_repo_objects

    words = shlex.split(command)
    told = {
        flag: [value for name, value in itertools.pairwise(words) if name == flag] or None
        for flag in ("--include", "--exclude")
    }
    return set(
        filter_repo_objects(repository, allow_patterns=told["--include"], ignore_patterns=told["--exclude"])
    )


def test_every_command_for_a_base_fetches_its_files_and_no_other_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_a_base_says_the_size_of_the_images_that_it_was_trained_on(
    random_base_folder: Path, tmp_path: Path
) -> None:
    assert side("mini") == 128
    shutil.copytree(random_base_folder, tmp_path / "base")
    place = tmp_path / "base" / "unet" / "config.json"
    for told, expected in ((96, 768), ([64, 96], 768), (None, None), ("large", None)):
        place.write_text(json.dumps(json.loads(place.read_text()) | {"sample_size": told}))
        assert side(tmp_path / "base") == expected


def test_the_command_for_a_controlnet_fetches_its_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        pretrained.locate("somebody/something")
    (said,) = re.findall("`(hf download .*?)`", str(error.value))
    two = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert (
        fetched(said, two | {"diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"})
        == two
    )


def test_a_part_that_was_not_loaded_is_named(random_base_folder: Path) -> None:
    base = load(random_base_folder, parts=("unet",))
    assert base.vae is None and base.scaling_factor > 0
    with pytest.raises(ValueError, match="without its vae"):
        encode_images(base, np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="it has no decoder"):
        load(random_base_folder, parts=("decoder",))


def test_noise_levels_are_those_of_diffusers() -> None:
    assert torch.equal(noise_levels(tiny_base()), DDPMScheduler.from_config(SCHEDULER).alphas_cumprod)


ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (DDPMScheduler, {}), (DDIMScheduler, {}), (PNDMScheduler, {"skip_prk_steps": True}),
    (DDPMScheduler, {"beta_schedule": "linear"}),
    (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2"}), (DDIMScheduler, ZERO), (DDPMScheduler, ZERO),
    (DDIMScheduler, {"trained_betas": [0.0001 + 0.00002 * i for i in range(1000)]}),
    (PNDMScheduler, {"trained_betas": [0.0001 + 0.00001 * i for i in range(1000)]}),
    (EulerDiscreteScheduler, {"beta_schedule": "linear"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_noise_levels_are_those_of_diffusers_for_every_kind_of_schedule(
    kind: Any, changes: dict[str, Any]
) -> None:
    theirs = kind.from_config(SCHEDULER, **changes)
    base = dataclasses.replace(tiny_base(), scheduler=json.loads(json.dumps(dict(theirs.config))))
    levels = noise_levels(base)
    assert torch.equal(levels, theirs.alphas_cumprod) and levels.shape == (1000,)
    assert torch.equal(levels, DDIMScheduler.from_config(base.scheduler).alphas_cumprod)  # what samples
    weights = loss.timestep_weights(levels, base.prediction_type, 5.0)
    noisy, target = loss.noisy_and_target(
        torch.ones(1000, 1, 1, 1), torch.ones(1000, 1, 1, 1), levels, base.prediction_type
    )
    assert all(bool(torch.isfinite(one).all()) for one in (weights, noisy, target)) and weights.min() >= 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rescale_betas_zero_snr": True}, "predicts the noise, which says nothing of the image"),
        ({"num_train_timesteps": 500}, "has 500 timesteps; bases of 1000 are known"),
        ({"beta_schedule": "sigmoid"}, "has the noise schedule 'sigmoid'"),
        ({"prediction_type": "sample"}, "predicts 'sample'; epsilon and v_prediction are known"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
            r"was trained by flow matching \(FlowMatchEulerDiscreteScheduler\), .*: take a base that",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
            r"was trained by flow matching \(UniPCMultistepScheduler\)",
        ),
    ],
)
def test_a_schedule_that_can_not_be_trained_is_refused_before_anything_loads(
    changes: dict[str, Any], sentence: str, random_base_folder: Path, tmp_path: Path
) -> None:
    folder = copied(random_base_folder, tmp_path, "scheduler/scheduler_config.json", changes)
    for read in (check, load):
        with pytest.raises(ValueError, match=sentence):
            read(folder)


def copied(folder: Path, tmp_path: Path, config: str = "", changes: dict[str, Any] | None = None) -> Path:
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    if config:
        (place / config).write_text(json.dumps(json.loads((place / config).read_text()) | (changes or {})))
    return place


@pytest.mark.parametrize(
    ("config", "changes", "sentence"),
    [
        (
            "unet/config.json",
            {"in_channels": 9},
            r"is an inpainting base: its UNet takes 9 channels, and latents of its VAE have 4",
        ),
        ("unet/config.json", {"in_channels": 5}, r"is no base for text alone: its UNet takes 5 channels"),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            r"is a Stable Diffusion XL: ControlMill trains bases",
        ),
        (
            "unet/config.json",
            {"class_embed_type": "timestep"},
            r"has a UNet with class_embed_type: ControlMill",
        ),
        (
            "unet/config.json",
            {"cross_attention_dim": 768},
            r"reads text 768 wide, and its text encoder gives 32",
        ),
        ("vae/config.json", {"latent_channels": 16}, r"latents of its VAE have 16"),
        ("vae/config.json", {"shift_factor": 0.1}, r"has a VAE that"),
        ("text_encoder/config.json", {"model_type": "t5"}, r"has a text encoder of the kind t5"),
    ],
)
def test_what_the_configs_tell_is_said_before_work_on_every_path(
    config: str, changes: dict[str, Any], sentence: str, random_base_folder: Path, tmp_path: Path
) -> None:
    folder = copied(random_base_folder, tmp_path, config, changes)
    readers: list[Callable[..., Any]] = [check, load, lambda path: load(path, parts=("vae", "text_encoder"))]
    for read in readers:
        with pytest.raises(ValueError, match=sentence):
            read(folder)


def test_a_pipeline_without_a_unet_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match=r"is a FluxPipeline, without a UNet"):
        check(tmp_path)


def rewritten(
    folder: Path, part: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    save_file(change(load_file(folder / WEIGHTS[part])), folder / WEIGHTS[part])
    return folder


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("text_encoder", "encoder.layers.0.mlp.fc2.weight"),
        ("unet", "mid_block.resnets.0.conv1.weight"),
        ("vae", "decoder.mid_block.attentions.0.to_q.weight"),
    ],
)
def test_a_tensor_that_is_missing_stray_or_of_another_shape_is_named_with_its_file(
    part: str, name: str, random_base_folder: Path, tmp_path: Path
) -> None:
    def without(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {one: tensor for one, tensor in tensors.items() if not one.endswith(name)}

    cases: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
        f"lacks the tensor {name} with the shape": without,
        "has the tensor stray.weight, which has no place in this network": lambda tensors: (
            tensors | {"stray.weight": torch.zeros(1)}
        ),
        f"belongs to another base: {name} has the shape [3]": lambda tensors: (
            without(tensors) | {name: torch.zeros(3)}
        ),
    }
    folder = copied(random_base_folder, tmp_path)
    whole = (folder / WEIGHTS[part]).read_bytes()
    for sentence, change in cases.items():
        (folder / WEIGHTS[part]).write_bytes(whole)
        with pytest.raises(ValueError) as caught:
            load(rewritten(folder, part, change), parts=(part,))
        assert str(caught.value).startswith(f"{folder / WEIGHTS[part]} {sentence}"), caught.value
    (folder / WEIGHTS[part]).write_bytes(whole[:100])
    with pytest.raises(ValueError, match="can't be read: it is damaged"):
        load(folder, parts=(part,))


def test_the_names_of_published_weights_load_as_before(random_base_folder: Path, tmp_path: Path) -> None:
    """Half precision, `text_model.`, positions and a projection; the attention of a VAE as it was called in
    2022.
    """
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made = {
            f"text_model.{name.removeprefix('text_model.')}": tensor.half()
            for name, tensor in tensors.items()
        }
        more = {
            "text_model.embeddings.position_ids": torch.arange(32)[None],
            "text_projection.weight": torch.zeros(8, 32),
        }
        return made | more

    def of_2022(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for mine, theirs in old.items():
            tensors = {
                name.replace(f".{mine}.", f".{theirs}.") if ".attentions." in name else name: it
                for name, it in tensors.items()
            }
        return tensors

    folder = rewritten(
        rewritten(copied(random_base_folder, tmp_path), "text_encoder", published), "vae", of_2022
    )
    plain, again = load(random_base_folder), load(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(encode_images(again, pixels)[0], encode_images(plain, pixels)[0])
    np.testing.assert_allclose(encode_text(again, ["a cat"]), encode_text(plain, ["a cat"]), atol=0.02)


def test_a_tokenizer_without_its_vocabulary_or_merges_is_named(
    random_base_folder: Path, tmp_path: Path
) -> None:
    folder = copied(random_base_folder, tmp_path)
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks tokenizer/tokenizer.json"):
        check(folder)
    (folder / "tokenizer/vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"lacks tokenizer/merges.txt"):
        check(folder)


@pytest.fixture
def cache(
    random_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[list[str]]]:
    """A hub repository as the cache of one who loaded it with variant="fp16" holds it; what a download would
    be asked for.
    """
    snapshot, asked = tmp_path / "models--some--base/snapshots/abc", []
    shutil.copytree(random_base_folder, snapshot)
    for name in WEIGHTS.values():
        (snapshot / name).rename((snapshot / name).with_suffix(".fp16.safetensors"))

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert name == "some/base"
        if not local_files_only:
            asked.append(allow_patterns)
            for one in WEIGHTS.values():
                shutil.copy(random_base_folder / one, snapshot / one)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return snapshot, asked


def test_a_partly_cached_base_is_completed_by_what_it_needs(cache: tuple[Path, list[list[str]]]) -> None:
    snapshot, asked = cache
    assert locate("some/base") == snapshot and len(asked) == 1
    assert set(WEIGHTS.values()) < set(asked[0]) and not any("fp16" in one for one in asked[0])
    assert locate("some/base") == snapshot and len(asked) == 1  # whole now: nothing is asked for again
    assert load("some/base", parts=("unet",)).unet is not None


def test_a_partly_cached_base_names_what_is_missing_and_the_command_where_nothing_may_be_downloaded(
    cache: tuple[Path, list[list[str]]],
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        check("some/base")
    includes = " ".join(f"--include '{name}'" for name in WEIGHTS.values())
    assert f"is not whole in the Hugging Face cache: {', '.join(WEIGHTS.values())} are missing" in str(
        caught.value
    )
    assert f"`hf download some/base {includes}` completes it" in str(caught.value) and not cache[1]


def test_a_controlnet_that_is_partly_cached_is_completed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import pretrained

    (tmp_path / "config.json").write_text(
        json.dumps({"block_out_channels": [32] * 4, "down_block_types": ["DownBlock2D"] * 4})
    )
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if not local_files_only:
            (tmp_path / weights_file.WEIGHTS).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=rf"--include '{weights_file.WEIGHTS}'` completes it"):
        pretrained.locate("some/net", download=False)
    assert pretrained.locate("some/net") == tmp_path and (tmp_path / weights_file.WEIGHTS).is_file()


def test_a_hub_that_can_not_be_reached_says_so_with_what_is_missing(
    cache: tuple[Path, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            return str(cache[0])
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError,
        match=r"is not whole in the Hugging Face cache and the hub can not be reached: unet/",
    ):
        hub.folder("it", "some/base", ["*"], True, "go on", lambda folder: ["unet/x.safetensors"])
