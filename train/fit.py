"""The training loop: one function, top to bottom; one counter of images seen is the truth."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train import checkpoint, learner
from train.base import Base, noise_levels
from train.batches import Pairs, batches
from train.checkpoint import Checkpoint
from train.halves import decode_half, encode_half
from train.loss import noisy_and_target, timestep_weights
from train.options import OPERATIONAL
from train.options import Options as Options  # `train.fit` is the door to training
from train.window import Window

LOG = "train.jsonl"


def fit(
    base: Base,  # with its unet, float32; never changed, also where it is unlocked: then a copy of it trains
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
    if options.unlock != "none" and len(conditions) > 1:
        raise ValueError(f"{' and '.join(conditions)} share one locked base: with unlock: {options.unlock} train each in a run of its own")
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
    micro, again = options.micro_batch or options.batch, options.gradient_checkpointing
    hints = pairs[0].hints
    learners = {
        condition: learner.build(
            unet, condition, options, device=device, hint_channels=hints[condition].shape[-1] if condition in hints else 3,
            warm=(warm_start or {}).get(condition), done=done,
        )
        for condition in conditions
    }  # fmt: skip
    if options.unlock != "none":
        unet = learners[conditions[0]].unet
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
            learner.forget_gradients(learners[condition])
        for part in range(0, options.batch, micro):
            rows = slice(part, part + micro)
            latents, noise, timesteps, text = (
                tensor[rows].to(device, non_blocking=True) for tensor in (batch.latents, batch.noise, batch.timesteps, batch.text)
            )
            noisy, target = noisy_and_target(latents, noise, alphas[timesteps], base.scheduler)
            with torch.set_grad_enabled(options.unlock == "all"):
                skips, mid, emb = encode_half(unet, noisy, timesteps, text, recompute=again)
            for condition in conditions:
                hint = batch.hints[condition][rows].to(device, non_blocking=True).float() / 255
                downs, middle = learners[condition].controlnet(noisy, timesteps, text, hint, recompute=again)
                residuals = (downs if options.connect == "full" else None, middle)
                prediction = decode_half(unet, skips, mid, emb, text, residuals, recompute=again)
                losses = (prediction - target).square().mean(dim=(1, 2, 3))
                if options.min_snr is not None:
                    losses = losses * timestep_weights(alphas[timesteps], base.scheduler, options.min_snr)
                (losses.sum() / options.batch).backward()
                window.losses[condition].append(losses.detach())
        for condition in conditions:
            window.norms[condition].append(learner.step(learners[condition], options, seen=images))
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
                models: dict[str, nn.Module] = {}
                optimizers: dict[str, torch.optim.Optimizer] = {}
                for one in learners.values():
                    models |= one.models | one.averages
                    optimizers |= one.optimizers
                result = checkpoint.save(out, models, optimizers, identity | counters)
    assert result is not None
    return result


def crossed(images: int, batch: int, every: int) -> bool:
    """Whether the last batch passed a multiple of `every`: a function of the counter, so it falls alike after a resume."""
    return images // every > (images - batch) // every


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
    usual = {field.name: field.default for field in dataclasses.fields(Options)}  # of options that are younger than the checkpoint
    changed += [f"options.{name}" for name in settled if before["options"].get(name, usual[name]) != now["options"][name]]
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
