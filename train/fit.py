"""The training loop: one function, top to bottom; one counter of images seen is the truth."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from train import checkpoint, compiler, integrity, out_of_memory, precision, resume, throughput, train_state
from train.base import Base, noise_levels
from train.batches import Pairs, batches
from train.determinism import deterministic_kernels
from train.distributed import Ranks
from train.integrity import Checkpoint
from train.log_file import LogRow
from train.logger import TrainLogger
from train.metric_buffer import Means, MetricBuffer
from train.micro_batch import gradients_in_memory
from train.options import Options as Options  # `train.fit` is the door to training
from train.step import DiffusionModel, MicroBatch
from train.train_state import TrainState
from train.unlocked import FOLDER as UNET


@dataclass(frozen=True)
class Calls:
    """What the caller hears, and is asked, while it trains."""

    log: Callable[[LogRow], None] = lambda row: None  # gets every row of train.jsonl
    # asked behind each step, by several ranks where they log: whether to save and end, to go on another time
    should_stop: Callable[[], bool] = lambda: False


def fit(
    # float32, with its vae where grids are drawn; never changed: where it is unlocked a copy of it trains.
    # What trains is on its `device`, wherever its unet lies
    base: Base,
    pairs: Pairs,
    conditions: list[str],  # K of them train together; one is the ordinary case
    options: Options,
    out: Path,  # the run's own folder, the same for all ranks: step-*/, train.jsonl, grids/, tensorboard/
    *,
    warm_start: Mapping[str, Path] | None = None,  # condition -> ControlNet to start from
    held_out: Pairs | None = None,  # never train: the conditioning gain is measured on them
    calls: Calls = Calls(),
) -> Checkpoint:
    """Trains, or goes on from the newest whole checkpoint in `out`: on a CPU the result is the same, bit for
    bit; on a GPU it should be with `deterministic`, which nobody has proved on one.

    Where torch.distributed was initialised, all ranks call this with the same arguments. Raises Damaged where
    a warm start is a ControlNet of a run's checkpoint whose files are not what was written, and MemoryError
    where one image at a time is too much.
    """
    check(base, pairs, conditions, options)
    with deterministic_kernels(options.deterministic):
        return _fit(base, pairs, conditions, options, out, warm_start or {}, held_out, calls)


def _fit(
    base: Base,
    pairs: Pairs,
    conditions: list[str],
    options: Options,
    out: Path,
    warm_start: Mapping[str, Path],
    held_out: Pairs | None,
    calls: Calls,
) -> Checkpoint:
    """All of it, from the first look into the folder to the last checkpoint."""
    ranks, device = Ranks.here(), base.device
    share = ranks.share(options.batch)
    prepare(out, warm_start, ranks)
    identity = resume.run_identity(base, pairs, conditions, options, warm_start)
    done, notes = resume.newest_checkpoint(out, ranks)
    if done is not None and resume.is_at_end(done, identity, options):
        return done

    # Everything is built before the first step, so that what is wrong shows at once; and the yardstick is
    # measured before that, while memory is free.
    throughput.matmul_rate(device, precision.dtype_of(options.precision))
    throughput.reset_peak(device)
    example = pairs[0]
    with out_of_memory.told_of("building the run"):
        states = train_state.build_all(base, example, conditions, options, warm_start=warm_start, done=done)
        model = diffusion_model(base, states, options)
    micro_batch, changed = resume.first_micro_batch(options, done, ranks)
    progress = TrainProgress.at(done)
    logger = (
        TrainLogger(base, model, held_out, options, out, progress.images, calls.log) if ranks.writes else None
    )
    if logger is not None:
        notes += [*changed, *resume.new_kernels(options, done), *resume.new_interval(options, done)]
        notes += [*compiler.note(options, device)]
        logger.start(model, notes, warm=bool(warm_start))

    # The buffer holds what the device computed since the last log row, so that no step waits for the host.
    buffer, clock, result = MetricBuffer(conditions, ranks), time.monotonic(), done
    began = checkpoint.began_with(done.meta if done is not None else identity)
    counters, pin = range(progress.images, options.images, options.batch), device.startswith("cuda")
    for parts in batches(
        pairs, conditions, counters, options, scaling_factor=base.scaling_factor, share=share, pin=pin
    ):
        losses, micro_batch = gradients_in_memory(model, parts, options, micro_batch, states)
        norms = train_state.step_all(states, options, images=progress.images, ranks=ranks)
        buffer.add(tuple(name for part in parts for name in part.image_ids), losses, norms)
        progress = replace(progress, images=progress.images + options.batch, step=progress.step + 1)

        due = _asked_to_stop(due_at(progress.images, options), ranks, calls)
        if due.log:
            means = buffer.take(progress.step)  # the one wait for the device; raises where much is not finite
            progress, speed = progress.timed(time.monotonic() - clock, means.steps * options.batch)
            if logger is not None:
                row = log_row(progress, means, speed, micro_batch, options, device)
                row["mfu"] = throughput.utilisation(model, example, options, device, speed / ranks.count)
                logger.write(row, model, measure=due.measure, draw=due.draw, notes=means.notes)
            if due.save:
                # what a resumed run begins with
                micro_batch = min(ranks.all_of(micro_batch), key=lambda one: (one.images, one.join))
                facts = run_facts(progress, means, micro_batch, kept=due.keep, began_with=began)
                result = save(out, states, identity | facts, ranks, device)
            clock = time.monotonic()
        if due.stop:
            break
    assert result is not None
    return result


@dataclass(frozen=True)
class TrainProgress:
    """How far a run is, all its sessions together."""

    images: int = 0  # seen
    step: int = 0
    seconds: float = 0.0  # of training

    @classmethod
    def at(cls, done: Checkpoint | None) -> "TrainProgress":  # None = at the beginning
        return cls() if done is None else cls(done.images, done.step, float(done.meta["seconds"]))

    def timed(self, seconds: float, images: int) -> tuple["TrainProgress", float]:
        """After so many seconds more, in which so many images were seen; and images per second."""
        return replace(self, seconds=self.seconds + seconds), images / seconds


@dataclass(frozen=True)
class Due:
    """What is to be done behind a step."""

    keep: bool  # its checkpoint stays for good
    save: bool
    measure: bool  # the conditioning gain
    log: bool
    stop: bool = False  # nothing further begins

    @property
    def draw(self) -> bool:  # the grids
        return self.save and not self.stop


def _asked_to_stop(due: Due, ranks: Ranks, calls: Calls) -> Due:
    """All ranks stop behind the same step, so a group asks its ranks only where they log."""
    if (not ranks.group or due.log) and any(ranks.all_of(calls.should_stop())):
        return replace(due, save=True, log=True, stop=True)
    return due


def due_at(images: int, options: Options) -> Due:
    """A function of the counter, so it falls alike after a resume: whether the last batch passed a multiple
    of an interval.
    """

    def crossed(every: int) -> bool:
        return images // every > (images - options.batch) // every

    keep = options.keep_every is not None and crossed(options.keep_every)
    save = keep or images >= options.images or crossed(options.checkpoint_every)
    measure = save or crossed(options.watch_every or options.checkpoint_every)
    return Due(keep=keep, save=save, measure=measure, log=measure or crossed(options.log_every))


def check(base: Base, pairs: Pairs, conditions: list[str], options: Options) -> None:
    """What can't be trained, before anything is built.

    ValueError: several conditions with an unlocked base, no pairs, or a base that is not in float32.
    """
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


def prepare(out: Path, warm_start: Mapping[str, Path], ranks: Ranks) -> None:
    """A folder without the leavings of a process that was killed, and warm starts that are whole."""
    out.mkdir(parents=True, exist_ok=True)
    if ranks.writes:
        checkpoint.sweep(out)
    for folder in warm_start.values():
        integrity.check_controlnet(folder)


def diffusion_model(base: Base, states: Mapping[str, TrainState], options: Options) -> DiffusionModel:
    """The base and all ControlNets as they compute, on the device."""
    controlnets = {condition: state.compute[condition] for condition, state in states.items()}
    if options.unlock == "none":
        unet = precision.locked(base.unet, options.precision, base.device)
    else:
        ((condition, state),) = states.items()
        unet = state.compute[f"{condition}/{UNET}"]
    alphas = noise_levels(base).to(base.device)
    model = DiffusionModel(unet, cast(Any, controlnets), alphas, base.prediction_type)
    return model.compiled() if options.compile and not compiler.lacking(base.device) else model


def log_row(
    progress: TrainProgress,
    means: Means,
    speed: float,  # images per second
    micro_batch: MicroBatch,
    options: Options,
    device: str,
) -> LogRow:
    row: LogRow = {
        "images": progress.images,
        "step": progress.step,
        "loss": means.loss,
        "gradient_norm": means.gradient_norm,
        "lr": options.lr,
        "images_per_second": speed,
        "seconds": progress.seconds,
        "seconds_left": (options.images - progress.images) / speed,
        "peak_memory": throughput.peak_memory(device),
        "micro_batch": micro_batch.images,
        "joined": micro_batch.join,
    }
    if means.skipped:
        row["skipped"] = means.skipped
    if device.startswith("cuda"):
        row["gpu_memory"] = torch.cuda.get_device_properties(device).total_memory
    return row


# of a checkpoint's meta.json
def run_facts(
    progress: TrainProgress,
    means: Means,
    micro_batch: MicroBatch,
    *,
    kept: bool,
    began_with: Mapping[str, object],
) -> dict[str, Any]:
    return {
        "images": progress.images,
        "step": progress.step,
        "seconds": progress.seconds,
        "loss": means.loss,
        "room": {"micro": micro_batch.images, "join": micro_batch.join},
        "kept": kept,
        "began_with": began_with,
    }


def save(
    out: Path, states: Mapping[str, TrainState], meta: dict[str, Any], ranks: Ranks, device: str
) -> Checkpoint:
    """By the first rank, once all ranks were seen to hold the same weights."""
    models: dict[str, nn.Module] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for state in states.values():
        models |= state.models | state.averages
        optimizers |= state.optimizers
    ranks.check_equal(models, meta["images"])
    if ranks.writes:
        saved = checkpoint.save(out, models, optimizers, meta | {"ranks": ranks.count, "device": device})
    ranks.wait()
    return saved if ranks.writes else integrity.read(out / integrity.name_of(meta["step"]))
