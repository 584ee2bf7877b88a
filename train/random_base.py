"""A small Stable Diffusion with random weights, so that the whole job runs where no base can be
downloaded.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from train import sums

NOTE_FILE = "controlmill.json"
NOTE = (
    "random weights, never trained; only the last layers of the VAE's encoder and decoder and of the UNet"
    " were solved by least squares on random rectangles, so that latents have unit variance and sampling does"
    " not blow up. It runs every step of the job but can't draw: its scores mean nothing"
)
# of the UNet's levels: what a CPU trains at 512x512 in under half a second a step of four
WIDTHS = (8, 16, 32, 32)
TEXT_WIDTH, TEXT_LENGTH = 32, 32
SCHEDULER = {  # of diffusers' DDIMScheduler; that of Stable Diffusion 1.5
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
BRANCH_GAIN, RIM_GAIN = 0.1, 0.3


def build_random(dest: Path, *, seed: int = 0) -> None:
    """Four levels, two layers a block, cross-attention on three of them, thirteen control points: SD 1.5, but
    narrow.

    FileExistsError: `dest` is there and is not the random base of this seed.
    """
    note = {"random_weights": True, "seed": seed, "note": NOTE}
    if (dest / NOTE_FILE).is_file() and json.loads((dest / NOTE_FILE).read_text()) == note:
        return
    if dest.exists():
        raise FileExistsError(
            f"{dest} exists and is not the random base of seed {seed}: delete it or choose another folder"
        )
    work = dest.with_name(f".tmp-{dest.name}-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that the same seed gives the same bytes
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _write_models(work, rectangles(seed))
        (work / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n")
        sums.write(work)
        with contextlib.suppress(OSError):  # another process was first: it wrote the same
            work.rename(dest)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(work, ignore_errors=True)


def rectangles(seed: int, *, count: int = 6, side: int = 256) -> NDArray[np.float32]:  # NCHW in -1..1
    """Overlapping rectangles of random colour and heavy-tailed size have edges and flats about as photographs
    do.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, side, side), np.float32)
    for image in images:
        image[:] = rng.uniform(-1, 1, (3, 1, 1))
        for _ in range(80):
            height, width = np.clip(8 / rng.random(2), 8, side).astype(int)
            y, x = rng.integers(-8, side, 2)
            image[:, max(y, 0) : y + height, max(x, 0) : x + width] = rng.uniform(-1, 1, (3, 1, 1))
    return images


def _write_models(dest: Path, images: NDArray[np.float32]) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    from transformers.utils import logging

    unet: Any = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=2,
        attention_head_dim=(1, 1, 2, 2),
        # Self-attention over 4096 positions would be most of a step on a CPU: the two upper levels look at
        # the text only.
        only_cross_attention=(True, True, False, False),
    )
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=4,
        sample_size=512,
    )
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler: Any = DDIMScheduler(**SCHEDULER)
    _keep_the_path_plain(unet, vae)
    latents = _calibrate_vae(vae.eval(), torch.from_numpy(images))
    _calibrate_unet(unet.eval(), latents, scheduler.alphas_cumprod, text_width=TEXT_WIDTH)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    bars = logging.is_progress_bar_enabled()
    # a bar for a file of 100 kB would stand in the middle of the run's own lines
    logging.disable_progress_bar()
    pipeline.save_pretrained(dest)
    if bars:
        logging.enable_progress_bar()


@torch.no_grad()
def _keep_the_path_plain(*models: nn.Module) -> None:
    """Random layers in series lose what they were given: quiet branches and convolutions that look at their
    centre keep it.
    """
    for model in models:
        for name, parameter in model.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight", "to_out.0.weight")):
                parameter.mul_(BRANCH_GAIN)
            elif name.endswith("conv_in.weight") or "samplers.0.conv.weight" in name:
                centre = parameter[..., 1, 1].clone()
                parameter.mul_(RIM_GAIN)
                parameter[..., 1, 1] = centre


def _tokenizer() -> Any:
    """CLIP's byte-level tokenizer without merges: one token a byte, so it needs no vocabulary file."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=TEXT_LENGTH
    )


@torch.no_grad()
def _calibrate_vae(vae: Any, images: Tensor) -> Tensor:  # scaled latents of the images
    """Latents become colour and contrast of each 8x8 block, with a narrow posterior and unit variance."""
    means = functional.avg_pool2d(images, 8)
    grey = images.mean(dim=1, keepdim=True)
    contrast = (
        (functional.avg_pool2d(grey.square(), 8) - functional.avg_pool2d(grey, 8).square())
        .clamp(min=0)
        .sqrt()
    )
    luma = means.mean(dim=1, keepdim=True)
    wanted = torch.cat([luma, means[:, :1] - luma, means[:, 2:] - luma, contrast], dim=1)
    wanted = (wanted - wanted.mean(dim=(0, 2, 3), keepdim=True)) / wanted.std(dim=(0, 2, 3), keepdim=True)
    vae.quant_conv.weight.copy_(torch.eye(8)[..., None, None])
    vae.quant_conv.bias.zero_()
    _solve(
        vae.encoder,
        vae.encoder.conv_out,
        (images,),
        torch.cat([wanted, torch.full_like(wanted, -6.0)], dim=1),
    )
    encoded = vae.encode(images).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(encoded.std()), 4))
    _solve(vae.decoder, vae.decoder.conv_out, (vae.post_quant_conv(encoded),), images)
    return encoded * vae.config.scaling_factor


@torch.no_grad()
def _calibrate_unet(unet: Any, latents: Tensor, alphas: Tensor, *, text_width: int) -> None:
    """The prediction becomes the best linear guess of the noise that the random features allow."""
    latents = latents.repeat(4, 1, 1, 1)
    timesteps = torch.linspace(0, 999, len(latents)).long()
    noise = torch.randn(latents.shape)
    level = alphas[timesteps].view(-1, 1, 1, 1)
    text = torch.randn(len(latents), TEXT_LENGTH, text_width)
    _solve(unet, unet.conv_out, (level.sqrt() * latents + (1 - level).sqrt() * noise, timesteps, text), noise)


def _solve(model: nn.Module, conv: nn.Conv2d, inputs: tuple[Tensor, ...], targets: Tensor) -> None:
    """Ridge regression of the targets on what reaches `conv`, a 3x3 convolution, when the model sees the
    inputs.
    """
    seen: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(*inputs)
    hook.remove()
    patches = functional.unfold(seen[0], 3, padding=1).double()  # [N, C·9, h·w]
    patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
    gram = torch.einsum("nip,njp->ij", patches, patches)
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(
        gram + ridge, torch.einsum("nip,nop->io", patches, targets.flatten(2).double())
    )
    assert conv.bias is not None
    conv.weight.copy_(solution[:-1].T.reshape(conv.weight.shape))
    conv.bias.copy_(solution[-1])
