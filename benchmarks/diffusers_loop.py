"""The baseline: the step of diffusers' `train_controlnet.py`, written out over diffusers' own classes.

It keeps what that script does: float32 ControlNet under autocast, the other networks in the weights' type,
contiguous memory, pixels and hints as float32 from a loader without workers, VAE and text encoder live, a
loss that is read back at every step, gradients set to zero rather than dropped, AdamW as PyTorch chooses it.
The pictures lie in memory ready for the network, which spares it decoding and resizing.

Three loops: `live` is the script as it is. `cached` has latents and text encoded before, and `tuned` is what
a careful user makes of that: both networks compiled, in the memory layout that convolutions are fast in.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.shapes import RandomPairs, Shape

if TYPE_CHECKING:
    import torch

    from train.base import Base


def run(
    base: "Base",
    pairs: RandomPairs,
    shape: Shape,
    enough: Callable[[], bool],  # told after every `steps`, when the device is done; True ends the run
    *,
    batch: int,
    loop: str,  # live | cached | tuned
    device: str,
    dtype: "torch.dtype",
    steps: int,
) -> dict[str, int]:  # the batch it ran at
    """Where the batch does not fit, half of it, and so on: the script itself would stop."""
    import torch

    from train import throughput

    while True:
        try:
            step = start(base, pairs, shape, batch=batch, loop=loop, device=device, dtype=dtype)
            done = False
            while not done:
                for _ in range(steps):
                    step()
                throughput.wait(device)
                done = enough()
            return {"batch": batch, "micro_batch": batch}
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch, step = batch // 2, lambda: 0.0  # lets go of all that the failed one held
        throughput.reset_peak(device)


def start(
    base: "Base",  # on the CPU, float32; not changed
    pairs: RandomPairs,
    shape: Shape,
    *,
    batch: int,
    loop: str,  # live | cached | tuned
    device: str,
    dtype: "torch.dtype",  # of autocast and of the locked networks
    lr: float = 1e-5,
    backend: str = "inductor",  # of torch.compile
) -> Callable[[], float]:  # one step of training; returns its loss
    """Everything built, nothing yet run."""
    import torch
    from diffusers import ControlNetModel, DDPMScheduler
    from torch.nn import functional

    from train.controlnet import widths_for

    live = loop == "live"
    # the same hint encoder as ours: on a narrow base a narrow one
    widths = widths_for(base.unet.config.block_out_channels[0])
    controlnet: Any = (
        ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=widths).to(device).train()
    )
    unet: Any = copy.deepcopy(base.unet).to(device, dtype)
    trained = list(controlnet.parameters())
    if loop == "tuned":
        controlnet, unet = (
            torch.compile(each.to(memory_format=torch.channels_last), dynamic=False, backend=backend)
            for each in (controlnet, unet)
        )
    vae: Any = copy.deepcopy(base.vae).to(device, dtype) if live else None
    text_encoder: Any = copy.deepcopy(base.text_encoder).to(device, dtype) if live else None
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    scheduler: Any = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    loader = _live_batches(pairs, shape, batch) if live else _cached_batches(pairs, batch)

    def step() -> float:
        fed = {name: tensor.to(device) for name, tensor in next(loader).items()}
        if live:
            latents = vae.encode(fed["pixels"].to(dtype)).latent_dist.sample() * base.scaling_factor
            text = text_encoder(fed["tokens"], return_dict=False)[0]
        else:
            mean, std = fed["mean"].to(dtype), fed["std"].to(dtype)
            latents = (mean + std * torch.randn_like(mean)) * base.scaling_factor
            text = fed["text"].to(dtype)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=device).long()
        noisy = scheduler.add_noise(latents.float(), noise.float(), timesteps).to(dtype)
        with torch.autocast(device.partition(":")[0], dtype=dtype, enabled=dtype != torch.float32):
            downs, middle = controlnet(
                noisy,
                timesteps,
                encoder_hidden_states=text,
                controlnet_cond=fed["hint"].to(dtype),
                return_dict=False,
            )
        prediction = unet(
            noisy,
            timesteps,
            encoder_hidden_states=text,
            down_block_additional_residuals=[down.float().to(dtype) for down in downs],
            mid_block_additional_residual=middle.float().to(dtype),
            return_dict=False,
        )[0]
        loss = functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.detach().item()

    return step


def _shuffled(count: int, batch: int) -> Any:  # yields lists of indices
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(count)
        yield from (order[first : first + batch] for first in range(0, count - batch + 1, batch))


def _live_batches(pairs: RandomPairs, shape: Shape, batch: int) -> Any:
    """What the script's transforms leave: pixels -1..1, hints 0..1, token ids."""
    import torch

    draw = torch.Generator().manual_seed(0)
    pixels = [torch.rand(3, shape.pixels, shape.pixels, generator=draw) * 2 - 1 for _ in range(len(pairs))]
    tokens = torch.randint(3, shape.text["vocab_size"] - 2, (len(pairs), shape.tokens), generator=draw)
    hints = _float_hints(pairs)
    for rows in _shuffled(len(pairs), batch):
        stacked = torch.stack([pixels[i] for i in rows]), torch.stack([hints[i] for i in rows])
        first, second = (tensor.to(memory_format=torch.contiguous_format).float() for tensor in stacked)
        yield {"pixels": first, "hint": second, "tokens": torch.stack([tokens[i] for i in rows])}


def _cached_batches(pairs: RandomPairs, batch: int) -> Any:
    import torch

    hints = _float_hints(pairs)
    for rows in _shuffled(len(pairs), batch):
        arrays = {"mean": pairs.means, "std": pairs.stds, "text": pairs.texts}
        yield {
            name: torch.from_numpy(np.stack([array[i] for i in rows])) for name, array in arrays.items()
        } | {"hint": torch.stack([hints[i] for i in rows]).to(memory_format=torch.contiguous_format).float()}


def _float_hints(pairs: RandomPairs) -> Any:  # list of [3, H, W] float32 0..1
    import torch

    return [
        torch.from_numpy(hint).permute(2, 0, 1).contiguous().float() / 255
        for hint in pairs.hints[pairs.conditions[0]]
    ]
