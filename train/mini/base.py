"""The mini base as a diffusers folder: bfloat16 safetensors, what it cost, its card, and the sums of its
files.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from train import sums
from train.mini import denoiser
from train.mini.denoiser import Denoiser
from train.mini.learning import Spent
from train.random_base import NOTE_FILE

VAE_FILE = "diffusion_pytorch_model.safetensors"
SPENT_FILE = "spent.json"


@dataclass(frozen=True)
class Parts:
    """A whole mini base."""

    vae: Any  # diffusers AutoencoderKL
    unet: Any  # diffusers UNet2DConditionModel
    text_encoder: Any  # transformers CLIPTextModel
    tokenizer: Any  # transformers CLIPTokenizer


def write(
    dest: Path,  # replaced as a whole
    parts: Parts,
    spent: Mapping[str, Spent],  # vae, denoiser
    facts: Mapping[str, object],  # JSON-able; kept in the note
    card: str,
) -> None:
    """A folder that diffusers.StableDiffusionPipeline and train.base load, all of it as float32, though it is
    stored in half of that.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline(
        vae=nn.Module.to(parts.vae, torch.bfloat16),
        unet=nn.Module.to(parts.unet, torch.bfloat16),
        text_encoder=nn.Module.to(parts.text_encoder, torch.bfloat16),
        tokenizer=parts.tokenizer,
        scheduler=DDIMScheduler(**denoiser.SCHEDULER),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,
        requires_safety_checker=False,  # type: ignore[arg-type]
    )
    work = dest.with_name(f".tmp-{dest.name}-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    pipeline.save_pretrained(work)
    # by which transformers loads it; diffusers takes float32 for its parts, whatever is stored
    config = work / "text_encoder/config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))
    note = {"random_weights": False, "spent": {name: vars(one) for name, one in spent.items()}, **facts}
    (work / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n")
    (work / "README.md").write_text(card)
    sums.write(work)
    shutil.rmtree(dest, ignore_errors=True)
    work.rename(dest)


def verify(folder: Path) -> None:
    """ValueError names the first file that is not what was written."""
    if not (folder / sums.SUMS).is_file():
        raise ValueError(f"{folder} has no {sums.SUMS}: take the folder from the repository again")
    for wrong in sums.problems(folder):
        raise ValueError(f"{wrong}: take the folder from the repository again")


def rounded(model: Any) -> Any:
    """Float32 weights that bfloat16 can hold."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    return model


def copy_vae(folder: Path, vae: Any) -> None:
    """From folder/vae, with its scaling factor."""
    _fill(vae, folder / "vae" / VAE_FILE)
    vae.register_to_config(
        scaling_factor=json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
    )


def load_vae(folder: Path) -> Any:  # diffusers AutoencoderKL, float32, in evaluation mode
    """Of a base, or of a folder in which one is made."""
    from diffusers import AutoencoderKL

    return (
        AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
        .to(torch.float32)
        .eval()
        .requires_grad_(False)
    )


def save_vae(vae: Any, folder: Path, spent: Spent) -> None:
    """The weights last, since where they are, the VAE is done."""
    folder.mkdir(parents=True, exist_ok=True)
    vae.save_config(folder)
    (folder.parent / SPENT_FILE).write_text(json.dumps({"vae": vars(spent)}))
    work = folder / f".tmp-{os.getpid()}"
    save_file({name: value.detach().to("cpu").contiguous() for name, value in vae.state_dict().items()}, work)
    work.rename(folder / VAE_FILE)


def load_denoiser(folder: Path, net: Denoiser) -> Spent:
    """Weights of both, and what they have cost."""
    _fill(net.unet, folder / "unet" / VAE_FILE)
    _fill(net.text_encoder, folder / "text_encoder" / "model.safetensors")
    return spent_of(folder)["denoiser"]


def load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def spent_of(folder: Path) -> dict[str, Spent]:
    """Of a base's folder, or of one in which a base is made."""
    note = folder / NOTE_FILE
    rows = (
        json.loads(note.read_text())["spent"]
        if note.is_file()
        else json.loads((folder / SPENT_FILE).read_text())
    )
    return {name: Spent(**row) for name, row in rows.items()}


def _fill(model: nn.Module, path: Path) -> None:
    weights = {name: value.to(torch.float32) for name, value in load_file(path).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the recipe: its sizes are those of another; start from nothing, or take its"
            " sizes"
        ) from error
