"""`train:` of a manifest: the base and the runs."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.manifest.section import NAME, Real, Seconds, Section, Text, Whole
from pipeline.manifest.yaml_errors import wrong


class Run(Section):
    """One training run: these conditions' ControlNets, together over one pass of the locked base."""

    # what pages call it, no part of its identity; None = its conditions and a hash
    name: Annotated[str, Field(pattern=NAME, max_length=40)] | None = None
    conditions: Annotated[list[str], Field(min_length=1)]
    images: Annotated[Whole, Field(ge=1)]
    batch: Annotated[Whole, Field(ge=1)] = 4
    micro_batch: Annotated[Whole, Field(ge=1)] | None = None
    lr: Annotated[Real, Field(gt=0, le=1)] = 1e-5
    prompt_drop: Annotated[Real, Field(ge=0, le=1)] = 0.5
    seed: Annotated[Whole, Field(ge=0)] = 0
    checkpoint_every: Annotated[Whole, Field(ge=1)] | None = None
    # a condition that another run trains, or a ControlNet: for all conditions, or by condition
    warm_start: str | dict[str, str] | None = None
    # middle: the paper's small-scale training, without residuals for the skips
    connect: Literal["full", "middle"] = "full"
    # of the base; its weights are then saved in unet/ beside the ControlNet's
    unlock: Literal["none", "decoder", "all"] = "none"
    # None = lr; the released code's advice is 2e-6
    unlock_lr: Annotated[Real, Field(gt=0, le=1)] | None = None
    min_snr: Annotated[Real, Field(gt=0)] | None = None  # gamma of the min-SNR weighting, usually 5
    # half-life in images of an average of the weights; it samples
    ema: Annotated[Real, Field(gt=0)] | None = None
    gradient_checkpointing: bool = False  # less memory for more time
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the passes; auto: bf16 on a GPU, else fp32
    compile: Literal["auto", True, False] = "auto"  # auto: on a GPU
    # only kernels that give the same bits again: slower on a GPU, nothing new on a CPU
    deterministic: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    # share of images seen mirrored, hints and all, where the caption allows it
    flip: Annotated[Real, Field(ge=0, le=1)] = 0.0
    join: bool = False  # one decoder pass for all conditions: faster while batches are small, more memory
    gpus: Annotated[Whole, Field(ge=1)] = 1  # the batch is cut among them; without a GPU, processes
    # pairs of the validation split that the loss gap is measured on; 0 = none
    held_out: Annotated[Whole, Field(ge=0)] = 64
    # images between two such measures; None = as checkpoint_every
    watch_every: Annotated[Whole, Field(ge=1)] | None = None
    # images between checkpoints that stay for good; None = the newest stay
    keep_every: Annotated[Whole, Field(ge=1)] | None = None
    # held-out pairs that are drawn at each checkpoint; None = 4 on a GPU, else 0
    grids: Annotated[Whole, Field(ge=0)] | None = None

    @property
    def starts(self) -> dict[str, str]:
        """What each condition starts from; one that is not here starts from the base."""
        if isinstance(self.warm_start, str):
            return dict.fromkeys(self.conditions, self.warm_start)
        return dict(self.warm_start or {})

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights.

        Keys younger than the first release count where they are set, so that runs trained before keep their
        names.

        Left out: what only says how a run is called, watched and kept (`name`, `held_out`, `watch_every`,
        `keep_every`, `grids`, and `checkpoint_every`); `gradient_checkpointing`, whose gradients are the
        same; and `micro_batch` and `deterministic`, which change no more than the weights' last bits, and are
        said where they change on the way. `micro_batch` and `checkpoint_every` once counted, so their default
        still stands here. `gpus`, `precision`, `compile`, `optimizer` and `join` decide bits, and stay.
        """
        young = {
            "connect",
            "unlock",
            "unlock_lr",
            "min_snr",
            "ema",
            "precision",
            "compile",
            "optimizer",
            "flip",
            "join",
            "gpus",
        }
        usual = {key for key in young if getattr(self, key) == type(self).model_fields[key].default}
        told = self.model_dump(
            exclude=usual
            | {"name", "gradient_checkpointing", "deterministic"}
            | {"held_out", "watch_every", "keep_every", "grids"}
        )
        return told | {"micro_batch": None, "checkpoint_every": None}

    @model_validator(mode="after")
    def _is_called_otherwise_than_runs_are_by_themselves(self) -> "Run":
        if self.name and re.search("-[0-9a-f]{8}$", self.name):
            raise wrong(
                f"{self.name!r} ends as the names that runs have by themselves: change its end", "name"
            )
        return self

    @model_validator(mode="after")
    def _modes_agree(self) -> "Run":
        doubled = sorted({name for name in self.conditions if self.conditions.count(name) > 1})
        if doubled:
            raise wrong(f"names {', '.join(doubled)} twice: keep one", "conditions")
        if stray := sorted(set(self.starts) - set(self.conditions)):
            raise wrong(
                f"names {', '.join(stray)}, which this run does not train: take it out, or add it to"
                " conditions",
                "warm_start",
            )
        if self.unlock != "none" and len(self.conditions) > 1:
            raise wrong(
                f"{' and '.join(self.conditions)} share one locked base: with unlock: {self.unlock} give each"
                " a run of its own",
                "unlock",
            )
        if self.unlock == "none" and self.unlock_lr is not None:
            raise wrong(
                "says nothing while unlock is none: remove it, or set unlock to decoder or all", "unlock_lr"
            )
        if self.ema is not None and self.ema < 1:
            raise wrong(
                f"a half-life in images is wanted, not a decay per step ({self.ema}): a decay d is batch * ln"
                " 2 / -ln d images",
                "ema",
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> "Run":
        if self.images % self.batch:
            enough = -(-self.images // self.batch) * self.batch
            raise wrong(
                f"images ({self.images}) must be a multiple of batch ({self.batch}): set it to {enough}",
                "images",
            )
        if self.micro_batch and self.batch % self.micro_batch:
            raise wrong(
                f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch}): change one of"
                " them",
                "micro_batch",
            )
        if self.batch % self.gpus:
            enough = -(-self.batch // self.gpus) * self.gpus
            raise wrong(
                f"batch ({self.batch}) must be a multiple of gpus ({self.gpus}), which share it: set it to"
                f" {enough}",
                "batch",
            )
        return self


class Train(Section):
    base: Text
    runs: Annotated[list[Run], Field(min_length=1)]
    time_limit: Seconds = 600.0  # that the base may take to encode one image; training itself has none

    def waits_for(self, number: int) -> dict[str, int]:
        """Condition of run `number` -> the run that it starts from: the nearest above that trains what is
        wanted, else the first below.
        """
        others = [*range(number - 1, -1, -1), *range(number + 1, len(self.runs))]
        found = {
            name: [it for it in others if wanted in self.runs[it].conditions]
            for name, wanted in self.runs[number].starts.items()
        }
        return {name: makers[0] for name, makers in found.items() if makers}

    @model_validator(mode="after")
    def _names_are_names(self) -> "Train":
        names = [run.name for run in self.runs if run.name]
        for number, run in enumerate(self.runs):
            if names.count(run.name or "") > 1:
                raise wrong(f"two runs are called {run.name!r}: change one", "runs", number, "name")
        return self

    @model_validator(mode="after")
    def _warm_starts_end(self) -> "Train":
        for number, run in enumerate(self.runs):
            place = ("runs", number, "warm_start")
            for name, wanted in run.starts.items():
                if wanted in run.conditions and name not in self.waits_for(number):
                    raise wrong(
                        f"this run trains {wanted!r} itself: name a condition that another run trains, or a"
                        " ControlNet's folder",
                        *place,
                    )
            if circle := self._circle((number,)):
                raise wrong(
                    f"runs {', '.join(map(str, circle))} wait for each other in a circle: take one"
                    " warm_start out",
                    *place,
                )
        return self

    def _circle(self, seen: tuple[int, ...]) -> tuple[int, ...] | None:
        """The way from the first of these runs back to it, over those that each waits for."""
        for other in self.waits_for(seen[-1]).values():
            if other == seen[0]:
                return seen
            if other not in seen and (found := self._circle((*seen, other))):
                return found
        return None
