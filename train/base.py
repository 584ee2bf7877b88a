"""The locked base model: where it lies, whether it can be trained on, its fingerprint, and loading it."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import hub, kinds, mini, samplers, single_file
from train.config import Config, unsupported
from train.weights_file import check_fit, content_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
CONFIGS = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
# of a repository of the hub, which may hold the same weights in other forms
FILES = [*CONFIGS, *WEIGHTS.values(), "tokenizer/*", "model_index.json"]
# in the file of a text encoder, without a part in what it computes
HARMLESS = ("position_ids", "text_projection.weight", "logit_scale")
# names of a VAE of 2022
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
TRAINED = "ControlMill trains bases of the topology of Stable Diffusion 1.5 and 2.1"
LATENT = 8  # pixels of a side for one of the latents
INPAINTING = 9  # channels that such a UNet takes: latents, mask, masked latents
# The shipped base before the config of its text encoder said in which precision others load it: it computes
# the same, so its runs go on.
FORMERLY = {"4f09e32709e4c3a8": "ce001ffc0f32705b"}


@dataclass(frozen=True, kw_only=True)
class Base:
    """Parts that were not asked for are None; all parameters are locked."""

    unet: Any  # diffusers UNet2DConditionModel | None
    vae: Any  # diffusers AutoencoderKL | None
    text_encoder: Any  # transformers CLIPTextModel | None
    tokenizer: Any  # transformers CLIPTokenizer | None
    scheduler: Config  # the diffusers scheduler config: noise schedule and prediction type
    # latents times this have about unit variance; known also when the vae is not loaded
    scaling_factor: float
    name: str
    fingerprint: str  # 16 hex
    random_weights: bool  # True = nothing this base draws means anything; reports must say so
    device: str
    dtype: "torch.dtype"

    @property
    def prediction_type(self) -> str:  # epsilon | v_prediction
        return str(self.scheduler.get("prediction_type", "epsilon"))


def load(
    # diffusers folder, a hub id that is in the local cache, or a single .safetensors or .ckpt file
    spec: str | Path,
    *,
    device: str = "cpu",
    dtype: "torch.dtype | None" = None,  # None = float32
    # what to read; the fingerprint is always of the whole base
    parts: tuple[str, ...] = ("unet", "vae", "text_encoder"),
) -> Base:
    """Locked from the start: no caller may forget requires_grad_(False), which would cost 44 % more
    arithmetic.

    ValueError: an unknown part, a base of a kind that is not trained, or files that are damaged or do not
    fit. FileNotFoundError as for `locate`.
    """
    import torch

    dtype = dtype or torch.float32
    unknown = set(parts) - set(WEIGHTS)
    if unknown:
        raise ValueError(f"a base has the parts {', '.join(WEIGHTS)}; it has no {', '.join(sorted(unknown))}")
    folder = locate(spec)
    _check_configs(f"base {spec}", folder)
    single = folder.is_file()

    def load_model(part: str) -> Any:
        if part not in parts:
            return None
        model = single_file.load_part(folder, part, dtype) if single else _load_part(folder, part, dtype)
        return model.to(device).requires_grad_(False).eval()

    return Base(
        unet=load_model("unet"),
        vae=load_model("vae"),
        text_encoder=load_model("text_encoder"),
        tokenizer=_load_tokenizer(folder) if "text_encoder" in parts else None,
        scheduler=_config(folder, "scheduler"),
        scaling_factor=float(_config(folder, "vae").get("scaling_factor", 0.18215)),
        name=folder.name if folder == Path(spec).expanduser() else str(spec),
        fingerprint=fingerprint(folder),
        random_weights=_is_random(folder),
        device=device,
        dtype=dtype,
    )


def _load_part(folder: Path, part: str, dtype: "torch.dtype") -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
    from transformers.utils import logging

    kind: Any = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}[part]
    _check_tensors(folder, part, kind)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # "Loading weights", in the middle of a run's own lines
    try:
        return kind.from_pretrained(
            folder / part, torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if folder.is_file():
        return single_file.load_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def _config(folder: Path, part: str) -> Config:
    if folder.is_file():
        return single_file.config(folder, part)
    return kinds.read_object(
        folder / ("scheduler/scheduler_config.json" if part == "scheduler" else f"{part}/config.json")
    )


def locate(spec: str | Path, *, download: bool = True) -> Path:
    """The complete diffusers folder, or the single file, behind `spec`; `mini` is the shipped base.

    What lacks is named before anything loads.

    FileNotFoundError: nothing is there, files are missing, or the hub's are neither in the cache nor to be
    had. ValueError: a folder of a model without a UNet, or a single file that is no whole base of a known
    kind.
    """
    folder = mini.BASE if spec == mini.NAME else Path(spec).expanduser()
    if folder.suffix in single_file.SUFFIXES and not folder.is_dir():
        return single_file.locate(folder)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(spec)):
            raise FileNotFoundError(f"base {spec}: no such folder, and not a hub id of the form owner/name")
        folder = _from_hub(str(spec), download)
    if missing := _lacking(folder):
        kind = (
            kinds.read_object(folder / "model_index.json").get("_class_name")
            if (folder / "model_index.json").is_file()
            else None
        )
        if kind and not (folder / "unet/config.json").is_file():
            raise ValueError(f"base {spec} is a {kind}, without a UNet: {TRAINED}")
        there = "".join(kinds.in_place_of(folder / name) for name in missing)
        raise FileNotFoundError(
            f"base {spec}: the folder {folder} lacks {', '.join(missing)}; a base is a complete diffusers"
            f" folder{there}"
        )
    return folder


def _lacking(folder: Path) -> list[str]:
    missing = [name for name in (*CONFIGS, *WEIGHTS.values()) if not (folder / name).is_file()]
    if not any(
        all((folder / "tokenizer" / name).is_file() for name in names) for names in single_file.VOCABULARY
    ):
        missing.append(
            "tokenizer/" + ("merges.txt" if (folder / "tokenizer/vocab.json").is_file() else "tokenizer.json")
        )
    return missing


def check(spec: str | Path) -> None:
    """ValueError or OSError with what a run on this base would meet, as far as its configs tell: nothing is
    downloaded, no weights are read.
    """
    _check_configs(f"base {spec}", locate(spec, download=False))


def side(spec: str | Path) -> int | None:
    """Pixels of the square images that the base was trained on, as its UNet's config says; None where it does
    not. OSError or ValueError where there is no such base; nothing is downloaded.
    """
    told = _config(locate(spec, download=False), "unet").get("sample_size")
    latents = max(told) if isinstance(told, list) and told else told
    return latents * LATENT if isinstance(latents, int) and latents > 0 else None


def check_sampling(spec: str | Path, sampler: samplers.Sampler, steps: int) -> None:
    """ValueError where the sampler can't take so many steps on this base; nothing is downloaded."""
    samplers.scheduler(_config(locate(spec, download=False), "scheduler"), sampler, steps)


def _check_configs(what: str, folder: Path) -> None:
    from train.loss import levels_of

    unet, vae, text, scheduler = (
        _config(folder, part) for part in ("unet", "vae", "text_encoder", "scheduler")
    )
    if unet.get("addition_embed_type") == "text_time":
        raise ValueError(f"{what} is a Stable Diffusion XL: {TRAINED}")
    if odd := unsupported(unet):
        raise ValueError(f"{what} has a UNet with {', '.join(odd)}: {TRAINED}")
    taken, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    taken = single_file.unet_channels(folder, taken) if folder.is_file() else taken
    if taken != latents or unet.get("out_channels", 4) != latents:
        kind = "is an inpainting base" if taken == INPAINTING else "is no base for text alone"
        raise ValueError(
            f"{what} {kind}: its UNet takes {taken} channels, and latents of its VAE have {latents};"
            f" {TRAINED}"
        )
    if len(vae.get("block_out_channels", range(4))) != 4 or vae.get("shift_factor"):
        raise ValueError(
            f"{what} has a VAE that does not make latents of an eighth of the side, or shifts them: {TRAINED}"
        )
    if text.get("model_type", "clip_text_model") not in ("clip_text_model", "clip"):
        raise ValueError(f"{what} has a text encoder of the kind {text['model_type']}, not CLIP's: {TRAINED}")
    read, written = unet.get("cross_attention_dim"), text.get("hidden_size")
    if read and written and read != written:
        raise ValueError(
            f"{what} has a UNet that reads text {read} wide, and its text encoder gives {written}: the parts"
            " are of two bases"
        )
    levels_of(what, scheduler)


def _check_tensors(folder: Path, part: str, kind: Any) -> None:
    """Before loading, which fills what a file lacks with random numbers, or dies of it: ValueError with the
    first tensor that does not fit.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import CLIPTextConfig

    path, settings = folder / WEIGHTS[part], _config(folder, part)
    with torch.device("meta"):
        model = (
            kind(CLIPTextConfig.from_dict(settings)) if part == "text_encoder" else kind.from_config(settings)
        )
    expected = {_usual(part, name): tensor.shape for name, tensor in model.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {
                _usual(part, name): torch.empty(file.get_slice(name).get_shape(), device="meta")
                for name in file.keys()
            }
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read: it is damaged ({error}); get it again") from error
    stored = {
        name: tensor
        for name, tensor in shapes.items()
        if not (part == "text_encoder" and name.endswith(HARMLESS))
    }
    check_fit(str(path), "", stored, expected)


def _usual(part: str, name: str) -> str:
    """The name by which a part's loader knows a tensor: libraries took the prefix off, and renamed the
    attention of a VAE.
    """
    if part == "text_encoder":
        return name.removeprefix("text_model.")
    if part == "vae" and ".attentions." in name:
        return ".".join(OLD_ATTENTION.get(word, word) for word in name.split("."))
    return name


def _is_random(folder: Path) -> bool:
    from train.random_base import NOTE_FILE

    note = folder / NOTE_FILE
    return note.is_file() and bool(kinds.read_object(note).get("random_weights"))


def _from_hub(name: str, download: bool) -> Path:
    return hub.folder(f"base {name}", name, FILES, download, "set `train.base` to its path", _lacking)


def bytes_to_get(name: str) -> int:
    """What a download of the base owner/name would bring, beside what is in the cache; 0 also where it is no
    base. OSError: the hub can't be reached, or refuses.
    """
    return hub.bytes_to_get(name, FILES)


def fingerprint(spec: str | Path) -> str:  # 16 hex
    """Of what the base computes: all configs and all weights, whatever its folder is called."""
    folder = locate(spec)
    # never that of a folder with the same weights: what was made from one is not taken for the other's
    if folder.is_file():
        own = json.dumps(single_file.facts(folder), sort_keys=True)
        content = content_of(folder)
        return hashlib.sha256(f"{content}\n{own}".encode()).hexdigest()[:16]
    tokenizer = [f"tokenizer/{path.name}" for path in sorted((folder / "tokenizer").glob("*.json"))]
    digest = hashlib.sha256()
    for name in (*CONFIGS, *tokenizer, *WEIGHTS.values()):
        digest.update(f"{name}\n{content_of(folder / name)}\n".encode())
    mark = digest.hexdigest()[:16]
    return FORMERLY.get(mark, mark)


def text_fingerprint(spec: str | Path) -> str:  # 16 hex
    """Of what its text encoder computes: bases that share one share the embeddings of their texts."""
    folder = locate(spec)
    if folder.is_file():
        return fingerprint(folder)
    names = [f"tokenizer/{path.name}" for path in sorted((folder / "tokenizer").glob("*.*"))]
    digest = hashlib.sha256()
    for name in ("text_encoder/config.json", *names, WEIGHTS["text_encoder"]):
        digest.update(f"{name}\n{content_of(folder / name)}\n".encode())
    return digest.hexdigest()[:16]


# [1000] float32: the share of signal variance left at each timestep (alpha bar)
def noise_levels(base: Base) -> "Tensor":
    """Those that samples are drawn by, to the last bit."""
    from train.loss import levels_of

    return levels_of(f"base {base.name}", base.scheduler)
