"""A base from one file of the original repositories: UNet, VAE and text encoder below their prefixes, no
config, no tokenizer.

Names follow CompVis/stable-diffusion (ldm/modules/diffusionmodules/model.py for the VAE) and, in the text
encoder of SD 2.x, open_clip. What such a file can't hold is looked up beside it: see `beside`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import kinds
from train.config import Config
from train.original import SD15, SD21, original_names
from train.weights_file import SAFE_SUFFIX, check_fit, read_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUFFIXES = (SAFE_SUFFIX, ".ckpt")
UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
FIRST_UNET = f"{UNET}input_blocks.0.0.weight"  # [w, channels, 3, 3]
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
VOCABULARY = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either is a whole tokenizer

VAE_CONFIG: Config = {  # first_stage_config of v1-inference.yaml; SD 2.x has the same
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "norm_num_groups": 32, "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
SCHEDULER = {  # linear_start, linear_end of v1-inference.yaml, under diffusers' names
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False, "clip_sample": False, "prediction_type": "epsilon",
}  # fmt: skip
# by the prefix of the text encoder, which is what tells the families apart
CONFIGS: dict[str, dict[str, Config]] = {
    CLIP: {  # SD 1.x: openai/clip-vit-large-patch14
        "unet": SD15, "vae": VAE_CONFIG, "scheduler": SCHEDULER,
        "text_encoder": {
            "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
        },
    },
    OPEN_CLIP: {  # SD 2.x: ViT-H-14 without its last layer (`layer: penultimate` of v2-inference.yaml)
        "unet": SD21, "vae": VAE_CONFIG,
        "text_encoder": {
            "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 512,
        },
    },
}  # fmt: skip
LAST_NORM = {f"{CLIP}text_model.final_layer_norm.": CLIP, f"{OPEN_CLIP}ln_final.": OPEN_CLIP}
# FrozenCLIPEmbedder pads with the end token, open_clip with number 0
PADDING = {CLIP: "<|endoftext|>", OPEN_CLIP: "!"}
OPEN_CLIP_PARTS = {
    "self_attn": "attn", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
OPEN_CLIP_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def locate(path: Path) -> Path:
    """The file, when all that a base needs is in it or beside it; else the sentence says what is missing and
    where to put it.

    FileNotFoundError: the file or its tokenizer is missing. ValueError: the file is damaged, is no whole base
    of a known family, or leaves open what the UNet predicts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"base {path}: no such file")
    tokenizer_folder(path)
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        config(path, part)
    return path


def beside(path: Path) -> tuple[Path, Path]:
    """Where tokenizer/, and configs other than those of SD 1.5 and 2.x, are looked for: a folder of the
    file's name, then its own folder.
    """
    return path.with_suffix(""), path.parent


def tokenizer_folder(path: Path) -> Path:
    """The folder `tokenizer`, beside the file, that holds a whole vocabulary.

    FileNotFoundError: there is none.
    """
    for folder in beside(path):
        if any(all((folder / "tokenizer" / name).is_file() for name in names) for names in VOCABULARY):
            return folder / "tokenizer"
    raise FileNotFoundError(
        f"base {path}: a single file has no tokenizer; put CLIP's tokenizer.json, or its vocab.json and"
        " merges.txt (folder tokenizer/ of any diffusers folder of this base), into"
        f" {beside(path)[0] / 'tokenizer'}"
    )


def config(path: Path, part: str) -> Config:
    """The part's config beside the file, else that of its family; ValueError where the family
    leaves it open.
    """
    name = SCHEDULER_CONFIG if part == "scheduler" else f"{part}/config.json"
    for folder in beside(path):
        if (folder / name).is_file():
            return kinds.read_object(folder / name)
    family = CONFIGS[_family(path)]
    if part not in family:
        raise ValueError(
            f"base {path} is of the family of SD 2, of which some predict the noise and some the velocity,"
            f" and the file does not say which: put the {SCHEDULER_CONFIG} of its diffusers folder into"
            f" {beside(path)[0]}"
        )
    return family[part]


# UNet2DConditionModel, AutoencoderKL or CLIPTextModel on the CPU
def load_part(path: Path, part: str, dtype: "torch.dtype") -> Any:
    """Strict: every tensor of the part must be in the file, with its shape.

    Weights of an EMA beside the plain ones are not read.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    settings = config(path, part)
    if part == "text_encoder":  # not on the meta device: its positions are a buffer that no file holds
        model: Any = CLIPTextModel(CLIPTextConfig(**settings))
    else:
        with torch.device("meta"):
            model = (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(settings)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    prefixes = {"unet": (UNET,), "vae": (VAE,), "text_encoder": (CLIP, OPEN_CLIP)}[part]
    prefix, weights, _ = read_file(path, prefixes)
    if part == "unet":
        names = original_names(shapes, settings.get("layers_per_block", 2))
    elif part == "vae":
        names = {name: vae_name(name, len(settings["block_out_channels"])) for name in shapes}
        weights = {
            name: _as_linear(name, tensor)
            for name, tensor in weights.items()
            if not name.startswith(("loss.", "model_ema."))
        }
    elif prefix == CLIP:
        names = {name: f"text_model.{name.removeprefix('text_model.')}" for name in shapes}
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith("position_ids")}
    else:
        names = {name: open_clip_name(name) for name in shapes}
        weights = _encoder_of_open_clip(weights, settings["num_hidden_layers"])
    check_fit(f"base {path}", prefix, weights, {names[name]: shape for name, shape in shapes.items()})
    model.load_state_dict({name: weights[theirs].to(dtype) for name, theirs in names.items()}, assign=True)
    return model


def unet_channels(
    path: Path,
    usual: int,  # where the file has no such tensor, which is told when it is loaded
) -> int:
    """What the first layer of the file's UNet takes: 9 in a base for inpainting, of which its family's config
    knows nothing.
    """
    _, tensors, _ = read_file(path, (FIRST_UNET,))
    return next((tensor.shape[1] for tensor in tensors.values()), usual)


def load_tokenizer(path: Path) -> Any:  # CLIPTokenizer
    """What fills a caption up to its length is a fact of the family, not of the vocabulary that both families
    share.
    """
    from transformers import CLIPTokenizer

    own = any((folder / "text_encoder/config.json").is_file() for folder in beside(path))
    from_folder = functools.partial(
        CLIPTokenizer.from_pretrained, tokenizer_folder(path), local_files_only=True
    )
    return from_folder() if own else from_folder(pad_token=PADDING[_family(path)], model_max_length=77)


def facts(path: Path) -> dict[str, Config]:
    """What besides the file itself decides what the base computes."""
    parts = {part: config(path, part) for part in ("unet", "vae", "text_encoder", "scheduler")}
    tokenizer = {
        one.name: one.read_text()
        for one in sorted(tokenizer_folder(path).iterdir())
        if one.suffix in {".json", ".txt"}
    }
    return parts | {"tokenizer": tokenizer}


def vae_name(name: str, levels: int) -> str:
    """The original counts the decoder's levels from the image, diffusers from the latents."""
    match name.split("."):
        case [side, ("down_blocks" | "up_blocks") as way, i, "resnets", j, part, leaf]:
            short, level = ("down", int(i)) if way == "down_blocks" else ("up", levels - 1 - int(i))
            return f"{side}.{short}.{level}.block.{j}.{part.replace('conv_shortcut', 'nin_shortcut')}.{leaf}"
        case [side, "down_blocks", i, "downsamplers", "0", "conv", leaf]:
            return f"{side}.down.{i}.downsample.conv.{leaf}"
        case [side, "up_blocks", i, "upsamplers", "0", "conv", leaf]:
            return f"{side}.up.{levels - 1 - int(i)}.upsample.conv.{leaf}"
        case [side, "mid_block", "resnets", j, part, leaf]:
            return f"{side}.mid.block_{int(j) + 1}.{part}.{leaf}"
        case [side, "mid_block", "attentions", "0", *part, leaf]:
            return f"{side}.mid.attn_1.{VAE_ATTENTION['.'.join(part)]}.{leaf}"
    return name.replace("conv_norm_out", "norm_out")


def open_clip_name(name: str) -> str:
    name = name.removeprefix("text_model.")
    if name in OPEN_CLIP_NAMES:
        return OPEN_CLIP_NAMES[name]
    name = name.replace("encoder.layers", "transformer.resblocks")
    for mine, theirs in OPEN_CLIP_PARTS.items():
        name = name.replace(mine, theirs)
    return name


def _encoder_of_open_clip(weights: "Mapping[str, Tensor]", layers: int) -> "dict[str, Tensor]":
    """Queries, keys and values lie in one tensor there; layers behind the one that is read, and the head,
    have no part in a base.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in {"text_projection", "logit_scale", "attn_mask"} or (
            name.startswith("transformer.") and int(name.split(".")[2]) >= layers
        ):
            continue
        block, packed, leaf = name.partition("in_proj_")
        thirds = zip("qkv", tensor.chunk(3), strict=True) if packed else ()
        kept |= {f"{block}{one}_proj.{leaf}": part for one, part in thirds} if packed else {name: tensor}
    return kept


def _as_linear(name: str, tensor: "Tensor") -> "Tensor":
    """The VAE's attention is made of 1x1 convolutions there, of linear layers in diffusers."""
    return tensor[:, :, 0, 0] if ".attn_1." in name and tensor.ndim == 4 else tensor


def _family(path: Path) -> str:
    status = path.stat()
    return _read_family(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_family(path: Path, size: int, mtime_ns: int) -> str:
    prefix, tensors, _ = read_file(path, tuple(LAST_NORM))  # two small tensors, not the whole file
    if tensors:
        return LAST_NORM[prefix]
    raise ValueError(
        f"base {path} is no whole Stable Diffusion 1.x or 2.x: it has no tensor below {CLIP} or {OPEN_CLIP}; "
        "give a file with UNet, VAE and text encoder, or a complete diffusers folder"
    )
