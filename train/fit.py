"""The training loop: one function, top to bottom; one counter of images seen is the truth."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from train import checkpoint
from train.base import Base, noise_levels
from train.batches import Pairs, batches, draws
from train.checkpoint import Checkpoint
from train.controlnet import ControlNet
from train.halves import decode_half, encode_half
from train.window import Window

LOG = "train.jsonl"
OPERATIONAL = {"images", "checkpoint_every", "log_every", "workers"}  # options that a resumed run may change: no weight depends on them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to train; everything is counted in images, so that another batch size means the same run length."""

    images: int  # to see in total, epochs and all
    batch: int  # images per optimizer step
    micro_batch: int | None = None  # images per forward pass; None = batch
    lr: float = 1e-5
    weight_decay: float = 0.01
    prompt_drop: float = 0.5  # share of prompts replaced by the empty one; the paper's value
    seed: int = 0
    clip: float | None = 1.0  # largest norm of a ControlNet's gradient; None = no clipping
    checkpoint_every: int = 4000  # images
    log_every: int = 400  # images
    connect: Literal["full", "middle"] = "full"  # middle = the paper's small-scale mode: no residuals for the skips
    workers: int = 1  # threads that read pairs ahead; 0 = none

    def __post_init__(self) -> None:
        for name in ("images", "batch", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.images % self.batch:
            lower = self.images // self.batch * self.batch
            either = f"{lower} or {lower + self.batch}" if lower else str(self.batch)
            raise ValueError(f"images ({self.images}) must be a multiple of batch ({self.batch}): set images to {either}")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch % self.micro_batch):
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch}): change either")
        if not 0 <= self.prompt_drop <= 1:
            raise ValueError(f"prompt_drop must lie between 0 and 1, not {self.prompt_drop}")
        if not self.lr > 0 or self.weight_decay < 0 or self.workers < 0 or (self.clip is not None and not self.clip > 0):
            raise ValueError("lr and clip must be above 0 (clip: None switches it off), weight_decay and workers at least 0")
        if self.connect not in ("full", "middle"):
            raise ValueError(f"connect must be full or middle, not {self.connect!r}")


def fit(
    base: Base,  # with its unet, float32
    pairs: Pairs,
    conditions: list[str],  # K of them train together; one is the ordinary case
    options: Options,
    out: Path,  # the run's own folder: step-*/ and train.jsonl
    *,
    warm_start: dict[str, Path] | None = None,  # condition -> ControlNet in the diffusers layout to start from
    log: Callable[[dict[str, Any]], None] = lambda row: None,  # gets every row of train.jsonl
    device: str = "cpu",
) -> Checkpoint:
    """Trains, or goes on from the newest complete checkpoint in `out`: the result is the same, bit for bit."""
    if not len(pairs):
        raise ValueError(f"no pairs to train {', '.join(conditions)} on: loosen `select` or add images")
    if base.dtype != torch.float32:
        raise ValueError("training needs the base in float32 for now: load it with dtype=torch.float32")
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.sweep(out)
    identity = run_identity(base, pairs, conditions, options, warm_start)
    done = checkpoint.newest(out)
    if done is not None:
        check_same_run(done, identity)
        if done.images >= options.images:
            return done

    # Everything is built before the first step, so that what is wrong shows at once.
    unet = base.unet.to(device)
    alphas = noise_levels(base).to(device)
    micro = options.micro_batch or options.batch
    controlnets: dict[str, ControlNet] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for condition in conditions:
        controlnet = initial_controlnet(unet, condition, options.seed, (warm_start or {}).get(condition))
        if done is not None:
            controlnet = checkpoint.load_controlnet(done.path / condition, unet)
        controlnets[condition] = controlnet.to(device)
        optimizers[condition] = torch.optim.AdamW(controlnet.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True)
        if done is not None:
            checkpoint.load_optimizer(done.path / condition, controlnet, optimizers[condition])
    images, step, seconds = (done.images, done.step, float(done.meta["seconds"])) if done is not None else (0, 0, 0.0)
    truncate_log(out / LOG, images)

    # What the device has computed since the last log row; read back only then, so that no step waits for the host.
    window = Window(conditions)
    clock = time.monotonic()
    reader = batches(
        pairs, conditions, range(images, options.images, options.batch), workers=options.workers, seed=options.seed,
        prompt_drop=options.prompt_drop, scaling_factor=base.scaling_factor,
    )  # fmt: skip
    result = done
    for batch in reader:
        for condition in conditions:
            optimizers[condition].zero_grad(set_to_none=True)
        for part in range(0, options.batch, micro):
            rows = slice(part, part + micro)
            latents, noise, timesteps, text = (
                tensor[rows].to(device, non_blocking=True) for tensor in (batch.latents, batch.noise, batch.timesteps, batch.text)
            )
            level = alphas[timesteps].view(-1, 1, 1, 1)
            signal, spread = level.sqrt(), (1 - level).sqrt()
            noisy = signal * latents + spread * noise
            target = noise if base.scheduler.get("prediction_type", "epsilon") == "epsilon" else signal * noise - spread * latents
            with torch.no_grad():
                skips, mid, emb = encode_half(unet, noisy, timesteps, text)
            for condition in conditions:
                hint = batch.hints[condition][rows].to(device, non_blocking=True).float() / 255
                downs, middle = controlnets[condition](noisy, timesteps, text, hint)
                residuals = (downs if options.connect == "full" else None, middle)
                prediction = decode_half(unet, skips, mid, emb, text, residuals)
                losses = (prediction - target).square().mean(dim=(1, 2, 3))
                (losses.sum() / options.batch).backward()
                window.losses[condition].append(losses.detach())
        for condition in conditions:
            limit = options.clip if options.clip is not None else float("inf")
            window.norms[condition].append(nn.utils.clip_grad_norm_(controlnets[condition].parameters(), limit))
            optimizers[condition].step()
        images, step = images + options.batch, step + 1
        window.batches.append(batch)

        save_now = images >= options.images or crossed(images, options.batch, options.checkpoint_every)
        if save_now or crossed(images, options.batch, options.log_every):
            facts = window.read(step, options.batch)  # the one wait for the device; raises where a number is not finite
            seconds, spent, clock = seconds + time.monotonic() - clock, time.monotonic() - clock, time.monotonic()
            row = {"images": images, "step": step, **facts, "lr": options.lr}
            row |= {"images_per_second": len(window.batches) * options.batch / spent, "seconds": seconds}
            with (out / LOG).open("a") as file:
                file.write(json.dumps(row) + "\n")
            log(row)
            window = Window(conditions)
            if save_now:
                counters = {"images": images, "step": step, "seconds": seconds, "loss": facts["loss"]}
                result = checkpoint.save(out, controlnets, optimizers, identity | counters)
    assert result is not None
    return result


def crossed(images: int, batch: int, every: int) -> bool:
    """Whether the last batch passed a multiple of `every`: a function of the counter, so it falls alike after a resume."""
    return images // every > (images - batch) // every


def initial_controlnet(unet: Any, condition: str, seed: int, warm: Path | None) -> ControlNet:
    """The hint encoder's first weights belong to (seed, condition), so that K joint runs start as K separate ones."""
    if warm is not None:
        return checkpoint.load_controlnet(warm, unet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draws(seed, condition, "hint encoder").integers(2**63)))
        return ControlNet.from_unet(unet)[0]


def run_identity(base: Base, pairs: Pairs, conditions: list[str], options: Options, warm_start: dict[str, Path] | None) -> dict[str, Any]:
    """What a checkpoint must share with a run that wants to go on from it, and what its readers want to know."""
    import diffusers

    stray = set(warm_start or {}) - set(conditions)
    if stray:
        raise ValueError(f"warm_start names {', '.join(sorted(stray))}, which this run does not train ({', '.join(conditions)})")
    return {
        "conditions": list(conditions),
        "base": base.fingerprint,
        "base_name": base.name,
        "random_weights": base.random_weights,
        "pairs": len(pairs),
        "pairs_hash": hashlib.sha256("\n".join(pairs.ids).encode()).hexdigest()[:16],
        "warm_start": {name: checkpoint.weights_hash(folder) for name, folder in sorted((warm_start or {}).items())},
        "options": dataclasses.asdict(options),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def check_same_run(done: Checkpoint, identity: dict[str, Any]) -> None:
    """Resuming something else would be a new experiment under an old name."""
    before, now = dict(done.meta), dict(identity)
    changed = [name for name in ("conditions", "base", "pairs_hash", "warm_start") if before[name] != now[name]]
    settled = [name for name in now["options"] if name not in OPERATIONAL]
    changed += [f"options.{name}" for name in settled if before["options"].get(name) != now["options"][name]]
    if changed:
        raise ValueError(f"{done.path} was trained with other {', '.join(changed)}: give this run another folder, or delete that one")


def truncate_log(path: Path, images: int) -> None:
    """Rows beyond the checkpoint belong to steps that are now done again; a torn last line goes with them."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["images"] <= images:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
