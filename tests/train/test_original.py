"""The original layout, checked against the list of its tensors as its own repository makes them, and against
diffusers' converter.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    ControlNetXSAdapter,
    FluxControlNetModel,
    SD3ControlNetModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.train.conftest import tiny_unet
from train.checkpoint import diffusers_config
from train.controlnet import ControlNet, empty_controlnet
from train.original import CONFIG_KEY, PREFIX, SD15, SD21, original_names, read_controlnet, write_controlnet
from train.pretrained import load_controlnet, locate, weights_hash

PROJECTION = {"SD 1.5": (768, False), "SD 2.1": (1024, True)}
CONFIGS: dict[str, dict[str, Any]] = {"SD 1.5": SD15, "SD 2.1": SD21}


def table(text: int, linear: bool) -> dict[str, list[int]]:
    """Names and shapes of the class ControlNet of cldm/cldm.py at 320 channels, built up in the order of its
    constructor.
    """
    made: dict[str, list[int]] = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        made[f"{name}.weight"] = list(shape)
        if bias:
            made[f"{name}.bias"] = [shape[0]]

    def resnet(name: str, into: int, out: int) -> None:
        add(f"{name}.in_layers.0", into)
        add(f"{name}.in_layers.2", out, into, 3, 3)
        add(f"{name}.emb_layers.1", out, 1280)
        add(f"{name}.out_layers.0", out)
        add(f"{name}.out_layers.3", out, out, 3, 3)
        if into != out:
            add(f"{name}.skip_connection", out, into, 1, 1)

    def transformer(name: str, width: int) -> None:
        add(f"{name}.norm", width)
        for side in ("proj_in", "proj_out"):
            add(f"{name}.{side}", width, width, *(() if linear else (1, 1)))
        block = f"{name}.transformer_blocks.0"
        for attention, source in (("attn1", width), ("attn2", text)):
            add(f"{block}.{attention}.to_q", width, width, bias=False)
            add(f"{block}.{attention}.to_k", width, source, bias=False)
            add(f"{block}.{attention}.to_v", width, source, bias=False)
            add(f"{block}.{attention}.to_out.0", width, width)
        add(f"{block}.ff.net.0.proj", 8 * width, width)
        add(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            add(f"{block}.{norm}", width)

    add("time_embed.0", 1280, 320)
    add("time_embed.2", 1280, 1280)
    add("input_blocks.0.0", 320, 4, 3, 3)
    hint = [3, 16, 16, 32, 32, 96, 96, 256, 320]
    for k in range(8):
        add(f"input_hint_block.{2 * k}", hint[k + 1], hint[k], 3, 3)
    channels, width, number = [320], 320, 1
    for level, out in enumerate((320, 640, 1280, 1280)):
        for _ in range(2):
            resnet(f"input_blocks.{number}.0", width, out)
            if level < 3:
                transformer(f"input_blocks.{number}.1", out)
            width, number = out, number + 1
            channels.append(width)
        if level < 3:
            add(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            channels.append(width)
    resnet("middle_block.0", 1280, 1280)
    transformer("middle_block.1", 1280)
    resnet("middle_block.2", 1280, 1280)
    for k, channel in enumerate(channels):
        add(f"zero_convs.{k}.0", channel, channel, 1, 1)
    add("middle_block_out.0", 1280, 1280, 1, 1)
    return made


def filled(**changes: Any) -> ControlNet:
    """A small ControlNet in which no tensor is zero or equals another."""
    controlnet, _ = ControlNet.from_unet(tiny_unet(**changes))
    torch.manual_seed(1)
    for parameter in controlnet.parameters():
        nn.init.normal_(parameter, std=0.2)
    return controlnet


def write(path: Path, controlnet: ControlNet) -> dict[str, Tensor]:
    write_controlnet(
        path,
        {name: tensor.detach() for name, tensor in controlnet.state_dict().items()},
        diffusers_config(controlnet),
    )
    return load_file(path)


@pytest.mark.parametrize("base", PROJECTION)
def test_all_340_names_and_shapes_are_those_of_the_original_class(base: str) -> None:
    mine = {name: list(tensor.shape) for name, tensor in empty_controlnet(CONFIGS[base]).state_dict().items()}
    names = original_names(mine, 2)
    assert {names[name]: shape for name, shape in mine.items()} == table(*PROJECTION[base])
    assert len(set(names.values())) == 340
    assert base != "SD 1.5" or sum(torch.Size(shape).numel() for shape in mine.values()) == 361_279_120


@pytest.mark.parametrize("base", PROJECTION)
def test_a_file_of_full_size_comes_back_bit_by_bit_and_its_base_is_known(base: str, tmp_path: Path) -> None:
    empty = empty_controlnet(CONFIGS[base])
    torch.manual_seed(0)
    # half precision keeps the file at 0.7 GB; each tensor begins elsewhere in the pool, so all differ
    pool = torch.rand(15_000_000).half()
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    weights = {
        name: pool[i : i + shape.numel()].reshape(shape).clone()
        for i, (name, shape) in enumerate(shapes.items())
    }
    save_file(
        {PREFIX + name: weights[mine] for mine, name in original_names(weights, 2).items()},
        tmp_path / "plain.safetensors",
    )
    back, config = read_controlnet(tmp_path / "plain.safetensors")
    assert back.keys() == weights.keys() and len(back) == 340
    assert all(
        torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype
        for name, tensor in weights.items()
    )
    heads = {"SD 1.5": 8, "SD 2.1": [5, 10, 20, 20]}[base]
    assert (config["attention_head_dim"], config["cross_attention_dim"]) == (heads, PROJECTION[base][0])
    (tmp_path / "plain.safetensors").unlink()


@pytest.mark.parametrize("changes", [{}, {"use_linear_projection": True, "attention_head_dim": (1, 2, 3, 3)}])
def test_diffusers_reads_the_file_to_the_same_tensors(changes: dict[str, Any], tmp_path: Path) -> None:
    ours = filled(**changes)
    write(tmp_path / "net.safetensors", ours)
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(ours)))
    theirs = ControlNetModel.from_single_file(
        str(tmp_path / "net.safetensors"), config=str(tmp_path), local_files_only=True
    )
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"use_linear_projection": True, "attention_head_dim": (1, 2, 3, 3)}])
def test_a_file_written_here_loads_without_a_word_about_its_base_and_computes_the_same(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = filled(**changes)
    written = write(tmp_path / "net.safetensors", ours)
    assert len(written) == 340 and all(name.startswith(PREFIX) for name in written)
    back = load_controlnet(tmp_path / "net.safetensors")
    assert back.config.keys() == ours.config.keys() and all(
        parameter.requires_grad for parameter in back.parameters()
    )
    given = torch.randn(1, 4, 16, 16), torch.tensor([9]), torch.randn(1, 5, 8), torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(back(*given)[1], ours(*given)[1])
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())


def test_a_single_file_is_known_by_its_content(tmp_path: Path) -> None:
    ours = filled()
    for name in ("one", "same"):
        write(tmp_path / f"{name}.safetensors", ours)
    with torch.no_grad():
        ours.controlnet_mid_block.bias[0] += 1
    write(tmp_path / "other.safetensors", ours)
    one, same, other = (weights_hash(tmp_path / f"{name}.safetensors") for name in ("one", "same", "other"))
    assert one == same != other and len(one) == 16


@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("wrapped", [True, False])
def test_files_of_other_makers_are_read_with_the_config_of_their_base(
    prefix: str, wrapped: bool, tmp_path: Path
) -> None:
    ours = filled()
    names = original_names(ours.state_dict(), 2)
    stored: dict[str, Any] = {prefix + names[name]: tensor for name, tensor in ours.state_dict().items()}
    if prefix:  # a whole model, as the first checkpoints were published
        stored |= {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
            "betas": torch.zeros(1000),
        }
    torch.save({"state_dict": stored, "global_step": 7} if wrapped else stored, tmp_path / "net.pth")
    unet = tiny_unet()
    back = load_controlnet(tmp_path / "net.pth", unet)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert back.config == ours.config
    with pytest.raises(
        ValueError, match=r"its text is 8 wide, SD 1.5 has 768 and SD 2.1 1024; give .*--base-config"
    ):
        load_controlnet(tmp_path / "net.pth")


def test_what_does_not_fit_is_named_with_what_was_expected(tmp_path: Path) -> None:
    ours = filled()
    good = write(tmp_path / "good.safetensors", ours)
    zero = f"{PREFIX}zero_convs.3.0.weight"

    def reason(tensors: dict[str, Tensor]) -> str:
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError) as caught:
            read_controlnet(tmp_path / "bad.safetensors", tiny_unet().config)
        return str(caught.value).removeprefix(f"{tmp_path / 'bad.safetensors'} ")

    assert (
        reason({name: tensor for name, tensor in good.items() if name != zero})
        == f"lacks the tensor {zero} with the shape [4, 4, 1, 1]"
    )
    assert (
        reason(good | {zero: torch.zeros(4, 5, 1, 1)})
        == f"belongs to another base: {zero} has the shape [4, 5, 1, 1], [4, 4, 1, 1] was expected"
    )
    extra = {f"{PREFIX}label_emb.0.weight": torch.zeros(1), f"{PREFIX}label_emb.2.weight": torch.zeros(1)}
    assert (
        reason(good | extra)
        == f"has the tensor {PREFIX}label_emb.0.weight, which has no place in this network, and 1 more"
        " like it"
    )
    assert reason({"lora_unet.down": torch.zeros(1)}).endswith(
        "lacks control_model.input_hint_block.0.weight, and its first tensor is lora_unet.down"
    )
    with pytest.raises(ValueError, match="belongs to another base"):
        load_controlnet(tmp_path / "good.safetensors", tiny_unet(block_out_channels=(4, 8, 16, 16)))


WIDTHS = {"block_out_channels": (4, 8, 12, 12), "cross_attention_dim": 8}
HINTS = {"conditioning_embedding_out_channels": (4, 4, 8, 8)}
TRANSFORMER = {
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
}
OTHERS: dict[str, Callable[[], Any]] = {  # as diffusers builds them
    "ControlNet-Union": lambda: ControlNetUnionModel(
        **WIDTHS, **HINTS, norm_num_groups=2, attention_head_dim=2, addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=4
    ),
    "ControlNet-XS": lambda: ControlNetXSAdapter(
        **HINTS, block_out_channels=(4, 8, 12, 12), base_block_out_channels=(4, 8, 12, 12),
        cross_attention_dim=8, num_attention_heads=1,
        max_norm_num_groups=2,
    ),
    "T2I-Adapter": lambda: T2IAdapter(channels=(4, 8, 8, 8), num_res_blocks=1),
    "A ControlNet of FLUX": lambda: FluxControlNetModel(**TRANSFORMER, in_channels=4, num_single_layers=1,
    axes_dims_rope=(2, 2, 4)),
    "A ControlNet of SD 3": lambda: SD3ControlNetModel(**TRANSFORMER, sample_size=8,
    caption_projection_dim=16),
    "A ControlNet of SDXL": lambda: ControlNetModel(
        **WIDTHS, **HINTS, norm_num_groups=2, attention_head_dim=2, addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=4,
    ),
    "A base's UNet": tiny_unet,
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_a_folder_of_another_kind_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    OTHERS[kind]().save_pretrained(tmp_path)
    for read in (load_controlnet, locate):
        with pytest.raises(
            ValueError, match=rf"{tmp_path}: {kind} is not read: ControlMill reads whole ControlNets"
        ):
            read(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        (
            (
                "is a difference file: its tensors are what to add to the encoder of a base, not weights; get"
                " the whole"
            ),
            {"difference": torch.tensor(1.0)},
        ),
        ("Control-LoRA is not read (it has lora_controlnet)", {"lora_controlnet": torch.zeros(0)}),
        (
            "Control-LoRA is not read (it has input_blocks.1.0.emb_layers.1.up)",
            {"input_blocks.1.0.emb_layers.1.up": torch.zeros(1)},
        ),
        (
            "A ControlNet of SDXL is not read (it has control_model.label_emb.0.0.weight)",
            {f"{PREFIX}label_emb.0.0.weight": torch.zeros(1)},
        ),
    ],
)
def test_a_file_with_all_tensors_of_a_whole_controlnet_is_refused_where_it_says_that_it_is_none(
    kind: str, tensors: dict[str, Tensor], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"net{suffix}"
    stored = write(tmp_path / "whole.safetensors", filled()) | tensors
    save_file(stored, path) if suffix == ".safetensors" else torch.save(stored, path)
    for read in (load_controlnet, locate, lambda path: load_controlnet(path, tiny_unet())):
        with pytest.raises(ValueError) as caught:
            read(path)
        assert kind in str(caught.value) and str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ControlNet-LLLite", "lllite_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.down.0.weight"),
        ("ControlNet-XS", "control_model.enc_zero_convs_out.0.0.weight"),
        ("T2I-Adapter", "body.0.block1.weight"),
        ("IP-Adapter", "image_proj.proj.weight"),
        ("A LoRA", "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
        ("A ControlNet of SD 3 or FLUX", "controlnet_blocks.0.weight"),
        ("A ControlNet of SDXL", "add_embedding.linear_1.weight"),
    ],
)
def test_a_file_of_another_kind_is_named(kind: str, name: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1), "mid.bias": torch.zeros(1)}, tmp_path / "net.safetensors")
    for read in (read_controlnet, locate):
        with pytest.raises(ValueError, match=rf"net.safetensors: {kind} is not read \(it has {name}\)"):
            read(tmp_path / "net.safetensors")


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "A base's UNet"])
def test_a_single_file_of_such_a_class_is_refused_by_its_tensors_too(kind: str, tmp_path: Path) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in OTHERS[kind]().state_dict().items()},
        tmp_path / "net.safetensors",
    )
    with pytest.raises(ValueError, match=r"net.safetensors: .* is not read \(it has "):
        read_controlnet(tmp_path / "net.safetensors")


def test_a_file_of_diffusers_names_sends_to_its_folder(tmp_path: Path) -> None:
    save_file(
        {name: tensor.detach().clone() for name, tensor in filled().state_dict().items()},
        tmp_path / "net.safetensors",
    )
    with pytest.raises(ValueError, match=r"its names are those of diffusers: name the folder"):
        read_controlnet(tmp_path / "net.safetensors")


def test_a_file_called_shuffle_pools_its_residuals_and_a_config_that_is_none_is_named(tmp_path: Path) -> None:
    write(tmp_path / "own.safetensors", filled())
    for name in ("control_v11e_sd15_shuffle", "control_v11p_sd15_canny"):
        save_file(load_file(tmp_path / "own.safetensors"), tmp_path / f"{name}.safetensors")
        config = load_controlnet(tmp_path / f"{name}.safetensors", tiny_unet()).config
        assert config.get("global_pool_conditions", False) is ("shuffle" in name)
    for told, sentence in (
        ("{", "is no JSON"),
        ("[]", "holds no object"),
        ('{"down_block_types": []}', "it lacks block_out_channels"),
        ('{"in_channels": 9}', "inpainting"),
        ('{"class_embed_type": "timestep"}', "has class_embed_type: timestep"),
        ('{"controlnet_conditioning_channel_order": "grb"}', "order 'grb'; rgb and bgr are known"),
    ):
        (tmp_path / "config.json").write_text(told)
        (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
        with pytest.raises(ValueError, match=sentence):
            load_controlnet(tmp_path)


@pytest.mark.parametrize("value", [None, "x"])
@pytest.mark.parametrize(
    "key",
    [
        "block_out_channels",
        "down_block_types",
        "conditioning_channels",
        "conditioning_embedding_out_channels",
    ],
)
def test_a_config_that_no_network_can_be_built_from_is_named_before_any_work(
    key: str, value: Any, tmp_path: Path
) -> None:
    theirs = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4, 4, 8, 8))
    theirs.save_pretrained(tmp_path)
    assert locate(tmp_path) == tmp_path
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {key: value}))
    with pytest.raises(ValueError, match=f"{tmp_path}: its config.json is not that of a ControlNet"):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("told", "sentence"), [("{", "is no JSON"), ("[1]", "holds no object"), ("[" * 9999, "is no JSON")]
)
def test_a_header_that_holds_no_config_is_named_with_its_file(
    told: str, sentence: str, tmp_path: Path
) -> None:
    write(tmp_path / "own.safetensors", filled())
    save_file(
        load_file(tmp_path / "own.safetensors"), tmp_path / "net.safetensors", metadata={CONFIG_KEY: told}
    )
    with pytest.raises(
        ValueError, match=f"{CONFIG_KEY} in the header of {tmp_path / 'net.safetensors'} {sentence}"
    ):
        read_controlnet(tmp_path / "net.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "data", [b"", b"<html>404", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"]
)
def test_what_is_no_file_of_weights_is_not_taken_for_one_with_code(
    data: bytes, suffix: str, tmp_path: Path
) -> None:
    (tmp_path / f"net{suffix}").write_bytes(data)
    with pytest.raises(ValueError, match=rf"net{suffix} can't be read: it is damaged, or no {suffix} file"):
        read_controlnet(tmp_path / f"net{suffix}")


def test_a_difference_file_is_known_by_what_stands_beside_its_state_dict(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"control_model.x": torch.zeros(1)}, "difference": torch.zeros(1)},
        tmp_path / "net.pth",
    )
    with pytest.raises(ValueError, match=r"net.pth is a difference file"):
        locate(tmp_path / "net.pth")


def test_a_file_that_is_damaged_or_could_run_code_is_refused(tmp_path: Path) -> None:
    for name in ("net.safetensors", "net.ckpt"):
        (tmp_path / name).write_bytes(b"\x08\0\0\0\0\0\0\0not it")
        with pytest.raises(ValueError, match=rf"{name} (can't be read|holds more than tensors)"):
            read_controlnet(tmp_path / name)
    torch.save({"state_dict": {}, "callbacks": Path}, tmp_path / "pickled.ckpt")
    with pytest.raises(ValueError, match="holds more than tensors, and reading that could run code"):
        read_controlnet(tmp_path / "pickled.ckpt")
    with pytest.raises(ValueError, match=r"its name should end in .safetensors"):
        read_controlnet(tmp_path / "net.txt")


def test_what_the_layout_can_not_say_is_not_written(tmp_path: Path) -> None:
    ours = filled()
    weights = {name: tensor.detach() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ValueError, match="hints as BGR"):
        write_controlnet(
            tmp_path / "net.safetensors",
            weights,
            diffusers_config(ours) | {"controlnet_conditioning_channel_order": "bgr"},
        )
    assert not list(tmp_path.iterdir())


def test_a_whole_unet_has_its_names_too() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    names = original_names(unet.state_dict(), 2)
    assert len(set(names.values())) == 686
    assert names["up_blocks.0.upsamplers.0.conv.weight"] == "output_blocks.2.1.conv.weight"
    assert names["up_blocks.1.upsamplers.0.conv.weight"] == "output_blocks.5.2.conv.weight"
    assert names["up_blocks.3.attentions.2.norm.bias"] == "output_blocks.11.1.norm.bias"
    with pytest.raises(
        ValueError, match=r"add_embedding.linear_1.weight has no place in the original layout"
    ):
        original_names(["add_embedding.linear_1.weight"], 2)
