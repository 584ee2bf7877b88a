"""The training loop: one function, top to bottom; one counter of images seen is the truth."""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from train import checkpoint, learner, meter, precision
from train.base import Base, noise_levels
from train.batches import Batch, Pairs, batches
from train.checkpoint import Checkpoint
from train.options import OPERATIONAL, ROUNDING
from train.options import Options as Options  # `train.fit` is the door to training
from train.ranks import ALONE, Ranks
from train.step import Network, Room, gradients
from train.unlocked import FOLDER as UNET
from train.watch import Watch
from train.window import Window


def fit(
    # with its unet, float32; never changed, also where it is unlocked: then a copy of it trains. With its vae
    # where grids are drawn
    base: Base,
    pairs: Pairs,
    conditions: list[str],  # K of them train together; one is the ordinary case
    options: Options,
    out: Path,  # the run's own folder, the same for all ranks: step-*/, train.jsonl, grids/, tensorboard/
    *,
    # condition -> ControlNet in the diffusers layout to start from
    warm_start: dict[str, Path] | None = None,
    # pairs that never train: the loss gap is measured on them; None = it is not
    held_out: Pairs | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,  # gets every row of train.jsonl
    device: str = "cpu",
    ranks: Ranks = ALONE,  # all of them call this with the same arguments
) -> Checkpoint:
    """Trains, or goes on from the newest whole checkpoint in `out`: the result is the same, bit for bit.

    Damaged where a warm start is a ControlNet of a run's checkpoint whose files are not what was written.
    """
    check(base, pairs, conditions, options)
    share = ranks.share(options.batch)
    out.mkdir(parents=True, exist_ok=True)
    if ranks.writes:
        checkpoint.sweep(out)
    for folder in (warm_start or {}).values():
        checkpoint.check_controlnet(folder)
    identity = run_identity(base, pairs, conditions, options, warm_start)
    done, notes = beginning(out, ranks)
    if done is not None:
        check_same_run(done, identity)
        if done.images >= options.images:
            return done

    # Everything is built before the first step, so that what is wrong shows at once.
    meter.reset_peak(device)
    hints = pairs[0].hints
    channels = [hints[condition].shape[-1] if condition in hints else 3 for condition in conditions]
    learners = {
        condition: learner.build(
            base.unet,
            condition,
            options,
            device=device,
            hint_channels=count,
            warm=(warm_start or {}).get(condition),
            done=done,
        )
        for condition, count in zip(conditions, channels, strict=True)
    }
    controlnets = {condition: one.compute[condition] for condition, one in learners.items()}
    unlocked = (
        None if options.unlock == "none" else learners[conditions[0]].compute[f"{conditions[0]}/{UNET}"]
    )
    unet = precision.locked(base.unet, options.precision, device) if unlocked is None else unlocked
    network = Network(unet, cast(Any, controlnets), noise_levels(base).to(device), base.scheduler)
    network = network.compiled() if options.compile else network
    room, note = first_room(options, done, ranks)
    images, step, seconds = (
        (done.images, done.step, float(done.meta["seconds"])) if done is not None else (0, 0, 0.0)
    )
    watcher = (
        Watch(
            base,
            unet,
            held_out,
            conditions,
            options,
            out,
            images,
            like=pairs[0],
            device=device,
            processes=ranks.count,
        )
        if ranks.writes
        else None
    )

    if (
        watcher is not None
        and warm_start
        and not images
        and (first := watcher.begin(network.unet, controlnets))
    ):
        log(first)
    for sentence in (*notes, *note, *new_interval(options, done)):
        if watcher is not None and (told := watcher.note(images, sentence)):
            log(told)

    # What the device has computed since the last log row; read back only then, so that no step waits for the
    # host.
    window, clock, result = Window(conditions, ranks), time.monotonic(), done
    counters, began = (
        range(images, options.images, options.batch),
        checkpoint.began_with(done.meta if done is not None else identity),
    )
    pin = device.startswith("cuda")
    for parts in batches(
        pairs, conditions, counters, options, scaling_factor=base.scaling_factor, share=share, pin=pin
    ):
        losses, room = gradients_in_room(network, parts, options, room, list(learners.values()))
        norms = {
            condition: learner.step(one, options, seen=images, ranks=ranks)
            for condition, one in learners.items()
        }
        window.add(tuple(name for part in parts for name in part.image_ids), losses, norms)
        images, step = images + options.batch, step + 1

        keep_now = options.keep_every is not None and crossed(images, options.batch, options.keep_every)
        save_now = (
            keep_now or images >= options.images or crossed(images, options.batch, options.checkpoint_every)
        )
        watch_now = save_now or crossed(
            images, options.batch, options.watch_every or options.checkpoint_every
        )
        if save_now or watch_now or crossed(images, options.batch, options.log_every):
            facts = window.read(step)  # the one wait for the device; raises where a number is not finite
            spent, steps = time.monotonic() - clock, len(window.images)
            seconds, speed, window = seconds + spent, steps * options.batch / spent, Window(conditions, ranks)
            row: dict[str, Any] = {"images": images, "step": step, **facts, "lr": options.lr}
            row |= {"images_per_second": speed, "seconds": seconds}
            row |= {
                "seconds_left": (options.images - images) / speed,
                "peak_memory": meter.peak_memory(device),
            }
            row |= {"micro_batch": room.micro, "joined": room.join}
            if watcher is not None:
                log(watcher.write(row, network.unet, controlnets, speed, measure=watch_now, draw=save_now))
            if save_now:
                # what a resumed run begins with
                room = min(ranks.all_of(room), key=lambda one: (one.micro, one.join))
                counted: dict[str, Any] = {
                    "images": images,
                    "step": step,
                    "seconds": seconds,
                    "loss": facts["loss"],
                }
                counted |= {"room": dataclasses.asdict(room), "kept": keep_now, "began_with": began}
                result = save(
                    out,
                    list(learners.values()),
                    identity | counted | {"ranks": ranks.count, "device": device},
                    ranks,
                )
            clock = time.monotonic()
    assert result is not None
    return result


# None = from the first image; what to say of it
def beginning(out: Path, ranks: Ranks) -> tuple[Checkpoint | None, list[str]]:
    """Where the run goes on.

    The first rank decides for all, since each alone could find another; what is damaged is set aside.
    """
    found: tuple[Checkpoint | None, list[str]] = (None, [])
    if ranks.writes:
        done, damaged = checkpoint.newest_whole(out)
        now = (
            f"the run goes on from {done.path.name}"
            if done is not None
            else "no whole one is left, so the run begins anew"
        )
        found = (
            done,
            [
                f"{what}; {now}, and keeps this one as {checkpoint.set_aside(folder).name}"
                for folder, what in damaged.items()
            ],
        )
    return ranks.all_of(found)[0]


# and what to say of it
def first_room(options: Options, done: Checkpoint | None, ranks: Ranks) -> tuple[Room, list[str]]:
    """As the checkpoint was left, unless another micro_batch is asked for now than was then."""
    room = Room(options.micro_batch or options.batch // ranks.count, options.join)
    if done is None or "room" not in done.meta:
        return room, []
    left = Room(**done.meta["room"])
    if done.meta["options"].get("micro_batch") == options.micro_batch or room.micro == left.micro:
        return left, []
    other = f"goes on with micro_batch {room.micro} instead of {left.micro}"
    return Room(room.micro, left.join), [
        f"{other}: the weights are no longer bit-identical to those of an undisturbed run"
    ]


def new_interval(options: Options, done: Checkpoint | None) -> list[str]:  # what to say of it
    """Another checkpoint_every for the same run; in a longer run it may follow from the number of images, and
    nothing is said.
    """
    before = done.meta["options"] if done is not None else {}
    if before.get("images") != options.images or before["checkpoint_every"] == options.checkpoint_every:
        return []
    now = (
        f"writes a checkpoint every {options.checkpoint_every} images instead of {before['checkpoint_every']}"
    )
    return [f"{now}: no weight depends on it"]


def gradients_in_room(
    network: Network, parts: tuple[Batch, ...], options: Options, room: Room, learners: list[learner.Learner]
) -> tuple[dict[str, Tensor], Room]:
    """One logical batch, begun again with a smaller room where memory runs out: nothing has been learned from
    it by then.

    Of several ranks each finds its own room, since the sum of their gradients does not depend on it: none
    waits to be asked.
    """
    while True:
        for one in learners:
            learner.forget_gradients(one)
        losses = None
        # handled below, where its traceback no longer holds that pass's tensors
        with contextlib.suppress(torch.OutOfMemoryError):
            losses = gradients(network, parts, options, room)
        if losses is not None:
            return losses, room
        room = room.smaller()
        for one in learners:
            learner.forget_gradients(one)
        torch.cuda.empty_cache()


def save(out: Path, learners: list[learner.Learner], meta: dict[str, Any], ranks: Ranks) -> Checkpoint:
    """By the first rank, once all ranks were seen to hold the same weights."""
    models: dict[str, nn.Module] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for one in learners:
        models |= one.models | one.averages
        optimizers |= one.optimizers
    ranks.check_equal(models, meta["images"])
    if ranks.writes:
        made = checkpoint.save(out, models, optimizers, meta)
    ranks.wait()
    return made if ranks.writes else checkpoint.read(out / checkpoint.name_of(meta["step"]))


def check(base: Base, pairs: Pairs, conditions: list[str], options: Options) -> None:
    """What can't be trained, before anything is built."""
    if options.unlock != "none" and len(conditions) > 1:
        raise ValueError(
            f"{' and '.join(conditions)} share one locked base: with unlock: {options.unlock} train each in a"
            " run of its own"
        )
    if not len(pairs):
        raise ValueError(f"no pairs to train {', '.join(conditions)} on: loosen `select` or add images")
    if base.dtype != torch.float32:
        raise ValueError(
            "training starts from the base in float32 (load it with dtype=torch.float32): `precision` says"
            " how it computes"
        )


def crossed(images: int, batch: int, every: int) -> bool:
    """Whether the last batch passed a multiple of `every`: a function of the counter, so it falls alike after
    a resume.
    """
    return images // every > (images - batch) // every


def run_identity(
    base: Base, pairs: Pairs, conditions: list[str], options: Options, warm_start: dict[str, Path] | None
) -> dict[str, Any]:
    """What a checkpoint must share with a run that wants to go on from it, and what its readers
    want to know.
    """
    import diffusers

    stray = set(warm_start or {}) - set(conditions)
    if stray:
        raise ValueError(
            f"warm_start names {', '.join(sorted(stray))}, which this run does not train"
            f" ({', '.join(conditions)})"
        )
    return {
        "conditions": list(conditions),
        "base": base.fingerprint,
        "base_name": base.name,
        "random_weights": base.random_weights,
        "pairs": len(pairs),
        # of the images, in pixels
        "sizes": sorted([8 * height, 8 * width] for height, width in set(pairs.sizes)),
        "pairs_hash": hashlib.sha256("\n".join(pairs.ids).encode()).hexdigest()[:16],
        "warm_start": {
            name: checkpoint.weights_hash(folder) for name, folder in sorted((warm_start or {}).items())
        },
        "options": dataclasses.asdict(options),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def check_same_run(done: Checkpoint, identity: dict[str, Any]) -> None:
    """Resuming something else would be a new experiment under an old name."""
    before, now = dict(done.meta), dict(identity)
    changed = [
        name for name in ("conditions", "base", "pairs_hash", "warm_start") if before[name] != now[name]
    ]
    settled = [name for name in now["options"] if name not in OPERATIONAL | ROUNDING]
    # of options that are younger than the checkpoint
    usual = {field.name: field.default for field in dataclasses.fields(Options)}
    changed += [
        f"options.{name}"
        for name in settled
        if before["options"].get(name, usual[name]) != now["options"][name]
    ]
    if changed:
        raise ValueError(
            f"{done.path} was trained with other {', '.join(changed)}: give this run another folder, or"
            " delete that one"
        )
