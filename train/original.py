"""ControlNets in the layout of the original repository: one file, tensors under `control_model.`, no config.

Names follow lllyasviel/ControlNet (cldm/cldm.py, and ldm/modules/diffusionmodules/openaimodel.py below it).
Between this layout and that of diffusers only names differ: no tensor is reshaped, cast or dropped, so both
directions are exact.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import kinds
from train.config import BGR, PAPER_WIDTHS, POOLED, SHARED_CONFIG, Config
from train.weights_file import check_fit, read_file

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "control_model."
# in the header of files written here: diffusers' config.json, which other files of this layout lack
CONFIG_KEY = "controlnet_config"
SHUFFLE = "shuffle"  # in the name of a file: control_v11e_sd15_shuffle
FIRST_HINT = "input_hint_block.0.weight"  # [w, hint channels, 3, 3]
DIFFUSERS_HINT = "controlnet_cond_embedding.conv_in.weight"  # the same tensor there
FIRST_TEXT = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # [C, text width]

SD15: Config = {  # models/cldm_v15.yaml
    "in_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
    "DownBlock2D"],
    "cross_attention_dim": 768, "attention_head_dim": 8,  # diffusers' name for num_heads
}  # fmt: skip
# models/cldm_v21.yaml: num_head_channels 64; attention in float32, without which 2.1 overflows in half
# precision
SD21 = SD15 | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
KNOWN = {768: SD15, 1024: SD21}  # by the width of the text

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def original_names(names: Iterable[str], layers: int) -> dict[str, str]:
    """The name, without a prefix, in the original layout of each tensor of a diffusers UNet or ControlNet
    with so many layers a block.
    """
    names = list(names)
    attended = {
        name.split(".")[1] for name in names if name.startswith("up_blocks.") and ".attentions." in name
    }
    hints = len(
        {name.split(".")[2] for name in names if name.startswith("controlnet_cond_embedding.blocks.")}
    )
    return {name: _original_name(name, layers + 1, hints, attended) for name in names}


def _original_name(name: str, stride: int, hints: int, attended: set[str]) -> str:
    """input_blocks counts conv_in, then each layer and downsampler; output_blocks puts an upsampler behind
    the last layer of its level.
    """
    match name.split("."):
        case ["conv_in", leaf]:
            return f"input_blocks.0.0.{leaf}"
        case ["time_embedding", ("linear_1" | "linear_2") as which, leaf]:
            return f"time_embed.{0 if which == 'linear_1' else 2}.{leaf}"
        case ["down_blocks", i, "resnets", j, part, leaf]:
            return f"input_blocks.{stride * int(i) + int(j) + 1}.0.{RESNET[part]}.{leaf}"
        case ["down_blocks", i, "attentions", j, *rest]:
            return f"input_blocks.{stride * int(i) + int(j) + 1}.1.{'.'.join(rest)}"
        case ["down_blocks", i, "downsamplers", "0", "conv", leaf]:
            return f"input_blocks.{stride * (int(i) + 1)}.0.op.{leaf}"
        case ["mid_block", "resnets", j, part, leaf]:
            return f"middle_block.{2 * int(j)}.{RESNET[part]}.{leaf}"
        case ["mid_block", "attentions", "0", *rest]:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["up_blocks", i, "resnets", j, part, leaf]:
            return f"output_blocks.{stride * int(i) + int(j)}.0.{RESNET[part]}.{leaf}"
        case ["up_blocks", i, "attentions", j, *rest]:
            return f"output_blocks.{stride * int(i) + int(j)}.1.{'.'.join(rest)}"
        case ["up_blocks", i, "upsamplers", "0", "conv", leaf]:
            return f"output_blocks.{stride * int(i) + stride - 1}.{2 if i in attended else 1}.conv.{leaf}"
        case [("conv_norm_out" | "conv_out") as which, leaf]:
            return f"out.{0 if which == 'conv_norm_out' else 2}.{leaf}"
        case ["controlnet_cond_embedding", "conv_in", leaf]:
            return f"input_hint_block.0.{leaf}"
        case ["controlnet_cond_embedding", "blocks", k, leaf]:
            return f"input_hint_block.{2 * int(k) + 2}.{leaf}"
        case ["controlnet_cond_embedding", "conv_out", leaf]:
            return f"input_hint_block.{2 * hints + 2}.{leaf}"
        case ["controlnet_down_blocks", i, leaf]:
            return f"zero_convs.{i}.0.{leaf}"
        case ["controlnet_mid_block", leaf]:
            return f"middle_block_out.0.{leaf}"
    raise ValueError(
        f"the tensor {name} has no place in the original layout, which holds networks of the topology of SD"
        " 1.5 and 2.1"
    )


def read_controlnet(
    # .safetensors, or a file of torch.save: a ControlNet alone, with or without the prefix, or a whole model
    # around one
    path: Path,
    # of the UNet it belongs to; None = as the file says, else SD 1.5 or 2.1 by its text width
    base_config: Config | None = None,
    # weights by diffusers' names, in the file's own dtype; the config
) -> "tuple[dict[str, Tensor], Config]":
    """Every tensor must be there, have its shape, and be known; ValueError names the first that isn't, and
    other kinds of files.
    """
    from train.controlnet import empty_controlnet

    prefix, weights, header = read_file(path, (PREFIX, ""), look=functools.partial(kinds.check_names, path))
    if FIRST_HINT not in weights:
        instead = f"its first tensor is {min(weights)}" if weights else "it has no tensors"
        if DIFFUSERS_HINT in weights:
            instead = (
                "its names are those of diffusers: name the folder that it lies in, with its config.json"
            )
        raise ValueError(
            f"{path} holds no ControlNet in the original layout: it lacks {PREFIX}{FIRST_HINT}, and {instead}"
        )
    config = _config(path, weights, base_config, header)
    kinds.check_config(path, config)
    expected = {name: tensor.shape for name, tensor in empty_controlnet(config).state_dict().items()}
    names = original_names(expected, config.get("layers_per_block", 2))
    check_fit(str(path), prefix, weights, {names[name]: shape for name, shape in expected.items()})
    return {name: weights[theirs] for name, theirs in names.items()}, config


def write_controlnet(
    path: Path,
    weights: "Mapping[str, Tensor]",  # by diffusers' names; their dtype is kept
    # diffusers' config.json; it is kept in the header, so that nothing is lost on the way back
    config: Config,
) -> None:
    """One safetensors file, every name under `control_model.`; ValueError where the layout can't hold what
    the config says.
    """
    from safetensors.torch import save_file

    from train.controlnet import empty_controlnet

    if config.get(BGR, "rgb") != "rgb":
        raise ValueError(
            "this ControlNet takes hints as BGR, which the original layout can't say: programs that read it"
            " would swap red and blue"
        )
    expected = {name: tensor.shape for name, tensor in empty_controlnet(config).state_dict().items()}
    check_fit("the ControlNet", "", weights, expected)
    names = original_names(expected, config.get("layers_per_block", 2))
    tensors = {PREFIX + names[name]: tensor.contiguous() for name, tensor in weights.items()}
    # one key: safetensors writes several in any order
    save_file(tensors, path, metadata={CONFIG_KEY: json.dumps(dict(config))})


def unfixed(
    config: Config,  # diffusers' config.json
) -> str:  # '' = it has the shapes of SD 1.5 or 2.1
    """How a network differs from those whose shapes ComfyUI and A1111 build, whatever the file says: they
    can't load it.
    """
    wanted = KNOWN.get(config.get("cross_attention_dim", 0), SD15) | {
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": list(PAPER_WIDTHS),
        "only_cross_attention": False,
    }
    # which changes no shape
    said = {key: _plain(config[key]) for key in wanted if key in config and key != "upcast_attention"}
    return ", ".join(
        f"{key} is {value}, not {wanted[key]}" for key, value in said.items() if value != wanted[key]
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _config(
    path: Path, weights: "Mapping[str, Tensor]", base_config: Config | None, header: dict[str, str]
) -> Config:
    """What the tensors say themselves is taken from them: the hint's channels and the widths of
    its encoder.
    """
    if base_config is None and CONFIG_KEY in header:
        return kinds.object_of(f"{CONFIG_KEY} in the header of {path}", header[CONFIG_KEY])
    if base_config is None:
        width = weights[FIRST_TEXT].shape[-1] if FIRST_TEXT in weights else None
        if width not in KNOWN:
            raise ValueError(
                f"{path} does not say which base it belongs to: its text is {width or 'not'} wide, SD 1.5 has"
                f" {' and SD 2.1 '.join(map(str, KNOWN))}; give the config of that base's UNet"
                " (`--base-config FOLDER`)"
            )
        base_config = KNOWN[width]
    # Every second convolution of the encoder widens; the last one, behind them, goes to the base's own width.
    widths = [
        tensor.shape[0]
        for name, tensor in sorted(weights.items(), key=_place)
        if _place((name, tensor)) % 4 == 0
    ]
    shared = {name: base_config[name] for name in SHARED_CONFIG if name in base_config}
    # No tensor tells that residuals are pooled: A1111 and ComfyUI go by the name of the file, and so do we.
    pooled = {POOLED: True} if SHUFFLE in path.name.lower() else {}
    return (
        shared
        | pooled
        | {
            "conditioning_channels": weights[FIRST_HINT].shape[1],
            "conditioning_embedding_out_channels": widths,
        }
    )


def _place(item: "tuple[str, Tensor]") -> int:  # in the hint encoder; -1 = elsewhere, or a bias
    parts = item[0].split(".")
    return int(parts[1]) if parts[0] == "input_hint_block" and parts[-1] == "weight" else -1
