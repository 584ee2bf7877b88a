"""How a run goes on from its newest checkpoint: what both must share, and what may be another."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from train import checkpoint
from train.base import Base
from train.batches import Pairs
from train.distributed import Ranks
from train.integrity import Checkpoint
from train.options import OPERATIONAL, ROUNDING, Options
from train.pretrained import weights_hash
from train.step import MicroBatch


# None = from the first image; and sentences to log
def newest_checkpoint(out: Path, ranks: Ranks) -> tuple[Checkpoint | None, list[str]]:
    """Where the run goes on.

    The first rank decides for all, since each alone could find another; what is damaged is set aside.
    """
    answer: tuple[Checkpoint | None, list[str]] = (None, [])
    if ranks.writes:
        done, damaged = checkpoint.newest_whole(out)
        now = (
            f"the run goes on from {done.path.name}"
            if done is not None
            else "no whole one is left, so the run begins anew"
        )
        notes = [
            f"{what}; {now}, and keeps this one as {checkpoint.set_aside(folder).name}"
            for folder, what in damaged.items()
        ]
        answer = (done, notes)
    return ranks.all_of(answer)[0]


def run_identity(
    base: Base, pairs: Pairs, conditions: Sequence[str], options: Options, warm_start: Mapping[str, Path]
) -> dict[str, Any]:  # the first keys of a checkpoint's meta.json
    """What a checkpoint must share with a run that wants to go on from it, and what its readers
    want to know.

    ValueError: `warm_start` names a condition that this run does not train. FileNotFoundError: one of its
    folders has no file of weights.
    """
    import diffusers

    stray = set(warm_start) - set(conditions)
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
        "warm_start": {name: weights_hash(folder) for name, folder in sorted(warm_start.items())},
        "options": dataclasses.asdict(options),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def is_at_end(done: Checkpoint, identity: dict[str, Any], options: Options) -> bool:
    """Whether a checkpoint has all the images of the run; ValueError where it is of another run."""
    check_same_run(done, identity)
    return done.images >= options.images


def check_same_run(done: Checkpoint, identity: dict[str, Any]) -> None:
    """Resuming something else would be a new experiment under an old name.

    ValueError: the conditions, the base, the pairs, a warm start or an option that decides what is trained
    differ.
    """
    before, now = done.meta, identity
    changed = [
        name for name in ("conditions", "base", "pairs_hash", "warm_start") if before[name] != now[name]
    ]
    settled = [name for name in now["options"] if name not in OPERATIONAL | ROUNDING]
    # of options that are younger than the checkpoint
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    changed += [
        f"options.{name}"
        for name in settled
        if before["options"].get(name, defaults[name]) != now["options"][name]
    ]
    if changed:
        raise ValueError(
            f"{done.path} was trained with other {', '.join(changed)}: give this run another folder, or"
            " delete that one"
        )


# and sentences to log
def first_micro_batch(
    options: Options, done: Checkpoint | None, ranks: Ranks
) -> tuple[MicroBatch, list[str]]:
    """As the checkpoint was left, unless another micro_batch is asked for now than was then."""
    wanted = MicroBatch(options.micro_batch or options.batch // ranks.count, options.join)
    if done is None or "room" not in done.meta:
        return wanted, []
    left = MicroBatch(done.meta["room"]["micro"], done.meta["room"]["join"], fits=True)
    if done.meta["options"].get("micro_batch") == options.micro_batch or wanted.images == left.images:
        return left, []
    other = f"goes on with micro_batch {wanted.images} instead of {left.images}"
    return MicroBatch(wanted.images, left.join), [
        f"{other}: the weights are no longer bit-identical to those of an undisturbed run"
    ]


def new_kernels(options: Options, done: Checkpoint | None) -> list[str]:  # sentences to log
    """Another `deterministic` for the same run: on a CPU no bit depends on it."""
    before = bool(done is not None and done.meta["options"].get("deterministic", False))
    if done is None or before == options.deterministic or str(done.meta.get("device", "cpu")) == "cpu":
        return []
    now = f"goes on with deterministic: {str(options.deterministic).lower()}"
    return [f"{now}: the weights are no longer bit-identical to those of an undisturbed run"]


def new_interval(options: Options, done: Checkpoint | None) -> list[str]:  # sentences to log
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
