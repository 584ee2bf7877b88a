"""A small base of the true topology, written as one file, is the base that it was; diffusers reads the same
file to the same tensors.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from tests.train.conftest import tiny_unet
from train import single_file
from train.base import check, fingerprint, load, locate
from train.encoders import encode_images, encode_text
from train.original import original_names

CONFIGS = ("unet", "vae", "text_encoder", "scheduler", "tokenizer")


def as_one_file(base: Any) -> dict[str, Tensor]:
    """The names of an SD 1.x file, with what else lies in those: the noise schedule, positions, weights of
    the loss.
    """
    unet, vae, text = (part.state_dict() for part in (base.unet, base.vae, base.text_encoder))
    tensors = {single_file.UNET + theirs: unet[name] for name, theirs in original_names(unet, 2).items()}
    for name, tensor in vae.items():
        theirs = single_file.vae_name(name, 4)
        tensors[single_file.VAE + theirs] = (
            tensor[:, :, None, None] if ".attn_1." in theirs and tensor.ndim == 2 else tensor
        )
    tensors |= {
        f"{single_file.CLIP}text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in text.items()
    }
    tensors |= {
        f"{single_file.CLIP}text_model.embeddings.position_ids": torch.arange(32),
        "betas": torch.zeros(1000),
    }
    tensors |= {f"{single_file.VAE}loss.logvar": torch.zeros(1)}
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def base(random_base_folder: Path) -> Any:
    torch.set_num_threads(1)
    return load(random_base_folder)


@pytest.fixture(scope="module")
def one(base: Any, random_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, and beside it a folder of its name with the configs, since this base is none
    that is known.
    """
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    save_file(as_one_file(base), path)
    for name in CONFIGS:
        shutil.copytree(
            random_base_folder / name,
            path.with_suffix("") / name,
            ignore=shutil.ignore_patterns("*.safetensors"),
        )
    return path


def equal(left: Any, right: Any) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_base_from_one_file_computes_what_its_folder_computes(
    suffix: str, base: Any, one: Path, tmp_path: Path
) -> None:
    path = one
    if suffix == ".ckpt":
        path = tmp_path / "small.ckpt"
        torch.save({"state_dict": load_file(one), "global_step": 3}, path)
        shutil.copytree(one.with_suffix(""), tmp_path / "small")
    again = load(path)
    assert (
        equal(again.unet, base.unet)
        and equal(again.vae, base.vae)
        and equal(again.text_encoder, base.text_encoder)
    )
    assert not any(
        parameter.requires_grad
        for part in (again.unet, again.vae, again.text_encoder)
        for parameter in part.parameters()
    )
    assert (again.name, again.scaling_factor, again.scheduler) == (
        path.name,
        base.scaling_factor,
        base.scheduler,
    )
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([40])
    text = torch.from_numpy(encode_text(base, ["a red door"]))
    np.testing.assert_allclose(encode_text(again, ["a red door"]), text, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(again.unet(x, t, text).sample, base.unet(x, t, text).sample)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(encode_images(again, pixels)[0], encode_images(base, pixels)[0], atol=1e-4)


def test_diffusers_reads_the_same_file_to_the_same_tensors(base: Any, one: Path) -> None:
    beside = str(one.with_suffix(""))
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        theirs = kind.from_single_file(str(one), config=beside, subfolder=part, local_files_only=True)
        assert equal(theirs, getattr(base, part)), part
    theirs = create_diffusers_clip_model_from_ldm(
        CLIPTextModel, load_file(one), "text_encoder", beside, local_files_only=True
    )
    assert equal(theirs, base.text_encoder)


def test_only_the_parts_asked_for_are_read(one: Path) -> None:
    small = load(one, parts=("unet",), dtype=torch.float16)
    assert small.vae is None and small.tokenizer is None and small.unet.conv_in.weight.dtype == torch.float16
    assert small.scaling_factor == load(one, parts=()).scaling_factor


def open_clip(path: Path) -> tuple[CLIPTextModel, dict[str, Tensor]]:
    """A text encoder of two layers, as open_clip stores it: packed projections, a last layer that is not
    used, a head.
    """
    torch.manual_seed(0)
    settings = CLIPTextConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=0,
        eos_token_id=1,
        hidden_act="gelu",
    )
    model = CLIPTextModel(settings).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    settings.save_pretrained(path / "text_encoder")
    mine = {
        name.removeprefix("text_model."): tensor.detach().clone()
        for name, tensor in model.state_dict().items()
    }
    stored = {
        "token_embedding.weight": mine["embeddings.token_embedding.weight"],
        "positional_embedding": mine["embeddings.position_embedding.weight"],
        "ln_final.weight": mine["final_layer_norm.weight"],
        "ln_final.bias": mine["final_layer_norm.bias"],
        "text_projection": torch.randn(8, 8),
        "logit_scale": torch.tensor(1.0),
    }
    for layer in range(2):
        here, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for leaf in ("weight", "bias"):
            stored[f"{there}.attn.in_proj_{leaf}"] = torch.cat(
                [mine[f"{here}.self_attn.{one}_proj.{leaf}"] for one in "qkv"]
            )
            stored[f"{there}.attn.out_proj.{leaf}"] = mine[f"{here}.self_attn.out_proj.{leaf}"]
            for name, theirs in (
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                stored[f"{there}.{theirs}.{leaf}"] = mine[f"{here}.{name}.{leaf}"]
    stored |= {
        name.replace("blocks.1", "blocks.2"): tensor + 1
        for name, tensor in stored.items()
        if "blocks.1" in name
    }
    return model, {single_file.OPEN_CLIP + name: tensor for name, tensor in stored.items()}


def test_the_text_encoder_of_sd_2_is_unpacked_and_ends_before_its_last_layer(tmp_path: Path) -> None:
    model, stored = open_clip(tmp_path)
    save_file(stored, tmp_path / "two.safetensors")
    again = single_file.load_part(tmp_path / "two.safetensors", "text_encoder", torch.float32)
    assert equal(again, model)
    theirs = create_diffusers_clip_model_from_ldm(
        CLIPTextModel, dict(stored), "text_encoder", str(tmp_path), local_files_only=True
    )
    tokens = torch.tensor([[0, 7, 9, 1, 1, 1]])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens)[0], theirs(tokens)[0])


def test_a_unet_with_linear_projections_is_read_as_that_of_sd_2(tmp_path: Path) -> None:
    unet = tiny_unet(use_linear_projection=True, attention_head_dim=(1, 2, 3, 3))
    unet.save_config(tmp_path / "unet")
    tensors = {
        single_file.UNET + theirs: unet.state_dict()[name]
        for name, theirs in original_names(unet.state_dict(), 2).items()
    }
    save_file(tensors, tmp_path / "two.safetensors")
    assert equal(single_file.load_part(tmp_path / "two.safetensors", "unet", torch.float32), unet)


@pytest.mark.parametrize(
    ("family", "unet", "text"),
    [(single_file.CLIP, 859_520_964, 123_060_480), (single_file.OPEN_CLIP, 865_910_724, 340_387_840)],
)
def test_the_known_configs_have_the_published_numbers_of_parameters(
    family: str, unet: int, text: int
) -> None:
    settings = single_file.CONFIGS[family]
    with torch.device("meta"):
        made = (
            UNet2DConditionModel.from_config(settings["unet"]),
            AutoencoderKL.from_config(settings["vae"]),
            CLIPTextModel(CLIPTextConfig(**settings["text_encoder"])),
        )
    assert [sum(parameter.numel() for parameter in one.parameters()) for one in made] == [
        unet,
        83_653_863,
        text,
    ]


@pytest.mark.parametrize("family", single_file.CONFIGS)
def test_at_full_size_diffusers_finds_each_tensor_under_the_same_name(family: str) -> None:
    settings = single_file.CONFIGS[family]
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(settings["unet"])
        vae: Any = AutoencoderKL.from_config(settings["vae"])
    names = original_names(unet.state_dict(), 2)
    stored = {single_file.UNET + names[name]: tensor for name, tensor in unet.state_dict().items()}
    theirs = convert_ldm_unet_checkpoint(dict(stored), unet.config)
    assert len(theirs) == 686 and all(
        theirs[name] is stored[single_file.UNET + names[name]] for name in names
    )
    names = {name: single_file.vae_name(name, 4) for name in vae.state_dict()}
    stored = {single_file.VAE + names[name]: tensor for name, tensor in vae.state_dict().items()}
    theirs = convert_ldm_vae_checkpoint(dict(stored), vae.config)
    assert len(theirs) == 248 and all(theirs[name] is stored[single_file.VAE + names[name]] for name in names)


def test_what_one_file_can_not_hold_is_asked_for_by_name_and_place(one: Path, tmp_path: Path) -> None:
    path = tmp_path / "v1-5.safetensors"
    shutil.copy(one, path)
    with pytest.raises(
        FileNotFoundError,
        match=rf"has no tokenizer; put CLIP's tokenizer.json, .* into {tmp_path}/v1-5/tokenizer$",
    ):
        locate(path)
    shutil.copytree(one.with_suffix("") / "tokenizer", tmp_path / "tokenizer")
    assert locate(path) == path
    with pytest.raises(
        ValueError,
        match=(
            r"belongs to another base: model.diffusion_model.*\[8, 4, 3, 3\], \[320, 4, 3, 3\] was expected"
        ),
    ):
        load(path, parts=("unet",))
    _, stored = open_clip(tmp_path / "elsewhere")
    save_file(stored, tmp_path / "v2-1.safetensors")
    with pytest.raises(
        ValueError,
        match=rf"put the scheduler/scheduler_config.json of its diffusers folder into {tmp_path}/v2-1$",
    ):
        locate(tmp_path / "v2-1.safetensors")
    save_file({"control_model.a": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is no whole Stable Diffusion"):
        locate(tmp_path / "net.safetensors")
    path.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="can't be read: it is damaged"):
        locate(path)


def test_both_families_fill_captions_up_as_they_were_trained(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one.with_suffix("") / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(one, tmp_path / "one.safetensors")
    save_file(open_clip(tmp_path / "elsewhere")[1], tmp_path / "two.safetensors")
    for name, pad in (("one", "<|endoftext|>"), ("two", "!")):
        tokenizer = single_file.load_tokenizer(tmp_path / f"{name}.safetensors")
        assert tokenizer.pad_token == pad and tokenizer.model_max_length == 77
        assert tokenizer("a", padding="max_length").input_ids[-1] == tokenizer.convert_tokens_to_ids(pad)


def test_the_fingerprint_is_of_the_file_and_of_what_lies_beside_it(one: Path, tmp_path: Path) -> None:
    path = tmp_path / "renamed.safetensors"
    shutil.copy(one, path)
    shutil.copytree(one.with_suffix(""), tmp_path / "renamed")
    assert fingerprint(path) == fingerprint(one) == load(one, parts=()).fingerprint
    settings = tmp_path / "renamed/scheduler/scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"prediction_type": "v_prediction"}))
    assert fingerprint(path) != fingerprint(one)
    tensors = load_file(path)
    tensors["model.diffusion_model.out.2.bias"] += 1
    shutil.copytree(one.with_suffix(""), tmp_path / "other")
    save_file(tensors, tmp_path / "other.safetensors")
    assert fingerprint(tmp_path / "other.safetensors") != fingerprint(one)


def test_a_single_file_for_inpainting_is_refused_before_it_is_read(one: Path, tmp_path: Path) -> None:
    tensors = load_file(one)
    first = f"{single_file.UNET}input_blocks.0.0.weight"
    tensors[first] = tensors[first].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(tensors, tmp_path / "inpainting.safetensors")
    shutil.copytree(one.with_suffix(""), tmp_path / "inpainting")
    for read in (check, load, lambda path: load(path, parts=("vae",))):
        with pytest.raises(ValueError, match="is an inpainting base: its UNet takes 9 channels"):
            read(tmp_path / "inpainting.safetensors")
