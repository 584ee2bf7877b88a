"""Which kind of file somebody's weights are, told from the names of their tensors or from their config: only
a whole ControlNet is read.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.config import BGR, Config

CLASS = "ControlNetModel"
READ = "ControlMill reads whole ControlNets of Stable Diffusion 1.5 and 2.1"
INPAINTING = 9  # channels: noisy latents, the mask, latents of what lies around it
UNKNOWN = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
# the key by which such a file says what it is, beside the names of a whole ControlNet
DIFFERENCE = "difference"
# The first pattern that a name holds gives the kind. A Control-LoRA has names of a whole ControlNet too, so
# it comes before all.
KINDS = {
    "Control-LoRA": (
        r"^lora_controlnet$|^(control_model\.)?(input_blocks|middle_block|time_embed)\..*\.(up|down)$"
    ),
    "ControlNet-LLLite": r"^lllite_",
    "ControlNet-XS": r"\.(base_to_ctrl|ctrl_to_base)\.|(^|\.)enc_zero_convs_(in|out)\.",
    "ControlNet-Union": (
        r"^(control_model\.)?(task_embedding$|spatial_ch_projs\.|control_add_embedding\.|transformer_layes\.)"
    ),
    "T2I-Adapter": r"^(adapter\.)?body\.\d+\.(resnets\.\d+\.)?(block1|block2|in_conv)\.",
    "IP-Adapter": r"^(image_proj|ip_adapter)(\.|$)",
    "A LoRA": r"^lora_(unet|te\d?)_|\.lora_(down|up|A|B)(\.|$)",
    "A ControlNet of SDXL": r"^(control_model\.)?(add_embedding\.linear_1|label_emb\.0\.0)\.",
    "A ControlNet of SD 3 or FLUX": (
        r"^(controlnet_(single_)?blocks|controlnet_x_embedder|pos_embed_input|double_blocks)\."
    ),
}
CLASSES = {  # of diffusers
    "ControlNetUnionModel": "ControlNet-Union", "ControlNetXSAdapter": "ControlNet-XS",
    "UNetControlNetXSModel": "ControlNet-XS",
    "T2IAdapter": "T2I-Adapter", "MultiAdapter": "T2I-Adapter", "FluxControlNetModel": "A ControlNet of FLUX",
    "SD3ControlNetModel": "A ControlNet of SD 3", "UNet2DConditionModel": "A base's UNet",
}  # fmt: skip


def check_names(
    where: Path,
    names: Iterable[str],  # of all that lies in the file, whatever is looked for
) -> None:
    """ValueError where the file is another kind by its names, since some kinds have all the tensors of a
    whole ControlNet.
    """
    names = set(names)
    if DIFFERENCE in names:
        raise ValueError(
            f"{where} is a difference file: its tensors are what to add to the encoder of a base, not"
            " weights; get the whole ControlNet, which the same authors publish without `diff` in its name"
        )
    for kind, pattern in KINDS.items():
        if telling := min(filter(re.compile(pattern).search, names), default=None):
            raise ValueError(f"{where}: {kind} is not read (it has {telling}): {READ}")


def check_config(where: Path, config: Config) -> None:
    """ValueError where a folder's config.json is not that of a whole ControlNet of a known base, or no
    network can be built from it.
    """
    name = config.get("_class_name", CLASS)
    if name != CLASS:
        raise ValueError(f"{where}: {CLASSES.get(str(name), name)} is not read: {READ}, diffusers' {CLASS}")
    if config.get("addition_embed_type") == "text_time":
        raise ValueError(f"{where}: A ControlNet of SDXL is not read: {READ}")
    if config.get("in_channels") == INPAINTING:
        raise ValueError(
            f"{where}: A ControlNet of an inpainting base (in_channels: {INPAINTING}) is not read: {READ}"
        )
    if odd := [f"{key}: {config[key]}" for key in UNKNOWN if config.get(key) is not None]:
        raise ValueError(f"{where} has {', '.join(odd)} in its config.json: {READ}, which have none")
    if (order := config.get(BGR, "rgb")) not in ("rgb", "bgr"):
        raise ValueError(f"{where} takes hints in the channel order {order!r}; rgb and bgr are known")
    if lacking := [key for key in ("block_out_channels", "down_block_types") if key not in config]:
        raise ValueError(
            f"{where}: its config.json is not that of a ControlNet: it lacks {', '.join(lacking)}"
        )
    from train.controlnet import empty_controlnet

    try:
        empty_controlnet(config)
    except Exception as error:  # whatever diffusers and torch make of a value of another kind
        raise ValueError(
            f"{where}: its config.json is not that of a ControlNet ({error}): get the file again"
        ) from error


def read_config(folder: Path) -> Config:
    """The config.json of a ControlNet's folder, of the kind that is read."""
    config = read_object(folder / "config.json")
    check_config(folder, config)
    return config


def read_object(path: Path) -> dict[str, Any]:
    return object_of(str(path), path.read_bytes())


def object_of(what: str, text: str | bytes) -> dict[str, Any]:
    """The JSON object that a file should hold; ValueError names the file."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON ({error}): get the file again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} holds no object: get the file again")
    return value


def in_place_of(path: Path) -> str:
    """For the end of a sentence that `path` is missing: the same weights in half precision or as a pickle,
    where they lie beside it; else ''.
    """
    half = path.with_name(f"{path.stem}.fp16{path.suffix}")
    if half.is_file():
        return f"; {half} has them in half precision: a copy of it called {path.name} is read"
    pickled = [other for other in path.parent.glob("*.bin") if path.suffix == ".safetensors"]
    return f"; {pickled[0]} is not read: get {path.name}" if pickled else ""
