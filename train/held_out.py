"""The conditioning gain: what a ControlNet makes of its condition, on held-out latents, noise and timesteps
that never change.

The training loss does not show the moment at which a ControlNet begins to follow its condition, since noise
and timesteps move it far more. Here everything is paired instead: the same inputs without control, with their
own hint and with another image's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.base import Base, noise_levels
from train.batches import Pairs, batch_at, rng
from train.controlnet import ControlNet
from train.log_file import ConditioningGain, LogRow
from train.loss import NOISE_STEPS, noisy_and_target
from train.options import Options
from train.out_of_memory import free, unless_out_of_memory
from train.unet_parts import Residuals, unet_decoder, unet_encoder

BUCKETS = 8  # of timesteps, each with an equal share of the pairs
BUCKET_NAMES = tuple(
    f"{b * NOISE_STEPS // BUCKETS:03d}-{(b + 1) * NOISE_STEPS // BUCKETS - 1:03d}" for b in range(BUCKETS)
)
# stands for the epoch in the random draws, so that no epoch of training repeats the held-out noise
BEFORE_TRAINING = -1
CONVERGED = 4.25  # control_z
IN_A_ROW = 2  # measures


@dataclass(frozen=True)
class SizeGroup:
    """The held-out pairs of one size."""

    noisy: Tensor  # [n, 4, h, w] float32, like all here on the host
    target: Tensor  # [n, 4, h, w] float32
    timesteps: Tensor  # [n] int64
    text: Tensor  # [n, T, D] float32 of the captions, never dropped
    hints: dict[str, Tensor]  # by condition: [n, C, 8h, 8w] uint8
    # [n] int64: whose hint an image gets in a shuffle; never its own. None = there is one pair only
    partner: Tensor | None


class HeldOut:
    """Fixed inputs, and the locked base's losses on them, taken once; 512x512 hints take 0.75 MiB of host
    memory each.
    """

    def __init__(
        self,
        base: Base,
        unet: Any,  # UNet2DConditionModel: the locked base as it computes, on the device
        pairs: Pairs,  # none of them trained on
        conditions: list[str],
        *,
        count: int,  # pairs to measure on; fewer where there are fewer
        seed: int,
        connect: str,  # full | middle
        micro_batch: int = 8,
    ) -> None:
        if count < 1 or micro_batch < 1 or not len(pairs):
            raise ValueError(
                f"the conditioning gain needs held-out pairs: {len(pairs)} are there, {count} asked for,"
                f" {micro_batch} at a time"
            )
        self.device = next(unet.parameters()).device
        self.connect, self.micro_batch = connect, micro_batch
        places = choose(pairs.ids, count, seed)
        timesteps = stratified_timesteps([pairs.ids[i] for i in places], seed)
        plain = Options(images=1, batch=1, seed=seed, prompt_drop=0.0)
        batches = batch_at(
            pairs,
            conditions,
            [(BEFORE_TRAINING, i) for i in places],
            plain,
            scaling_factor=base.scaling_factor,
        )
        levels = noise_levels(base)
        self.groups = []
        for batch in batches:
            times = torch.tensor([timesteps[image_id] for image_id in batch.image_ids])
            noisy, target = noisy_and_target(batch.latents, batch.noise, levels[times], base.prediction_type)
            self.groups.append(
                SizeGroup(
                    noisy,
                    target,
                    times,
                    batch.text,
                    batch.hints,
                    derangement(len(times), seed, noisy.shape[2:]),
                )
            )
        # [N] of each pair
        self.buckets = torch.cat([group.timesteps for group in self.groups]).numpy() * BUCKETS // NOISE_STEPS
        # [N] bool
        self.shuffled = np.concatenate(
            [np.full(len(group.timesteps), group.partner is not None) for group in self.groups]
        )
        self.base_losses = self._losses(unet, {})[0].cpu().double().numpy()  # [N]

    def measure(
        self,
        # the base, or the copy of it that trained along: the gain is over the locked base in any case
        unet: Any,
        controlnets: Mapping[str, ControlNet],  # by condition, on the device, in any precision
    ) -> dict[str, ConditioningGain]:  # by condition
        losses = self._losses(unet, controlnets).cpu().double().numpy()  # the one wait for the device
        return {
            condition: summary(self.base_losses, true, shuffled, self.buckets, self.shuffled)
            for condition, true, shuffled in zip(controlnets, losses[::2], losses[1::2], strict=True)
        }

    @torch.no_grad()
    def _losses(
        self, unet: Any, controlnets: Mapping[str, ControlNet]
    ) -> Tensor:  # [2K, N] float32: true and shuffled hints of each; [1, N] of the base
        """With fewer at a time where memory runs out: what fits while it trains may not fit here, and a
        measure must not end the run.
        """
        while True:
            with unless_out_of_memory():
                return self._in_parts(unet, controlnets)
            if self.micro_batch == 1:
                raise MemoryError(
                    "the conditioning gain runs out of memory with one image at a time: set held_out: 0"
                )
            self.micro_batch //= 2
            free()

    def _in_parts(self, unet: Any, controlnets: Mapping[str, ControlNet]) -> Tensor:
        columns = []
        for group in self.groups:
            for start in range(0, len(group.timesteps), self.micro_batch):
                columns.append(self._part(unet, controlnets, group, slice(start, start + self.micro_batch)))
        return torch.cat(columns, dim=1)

    # [2K or 1, b]
    def _part(
        self, unet: Any, controlnets: Mapping[str, ControlNet], group: SizeGroup, rows: slice
    ) -> Tensor:
        noisy, target, timesteps, text = (
            tensor[rows].to(self.device)
            for tensor in (group.noisy, group.target, group.timesteps, group.text)
        )
        dtype = next(unet.parameters()).dtype
        encoded = unet_encoder(unet, noisy.to(dtype), timesteps, text.to(dtype))

        def loss(residuals: Residuals | None) -> Tensor:  # [b]
            return (
                (unet_decoder(unet, *encoded, text.to(dtype), residuals).float() - target)
                .square()
                .mean(dim=(1, 2, 3))
            )

        if not controlnets:
            return loss(None)[None]
        losses: list[Tensor] = []
        for condition, controlnet in controlnets.items():
            own = next(controlnet.parameters()).dtype
            for chosen in (
                group.hints[condition][rows],
                None if group.partner is None else group.hints[condition][group.partner[rows]],
            ):
                if chosen is None:
                    losses.append(torch.full_like(losses[-1], math.nan))
                    continue
                hint = chosen.to(self.device).to(own) / 255
                downs, middle = controlnet(noisy.to(own), timesteps, text.to(own), hint)
                kept = tuple(down.to(dtype) for down in downs) if self.connect == "full" else None
                losses.append(loss((kept, middle.to(dtype))))
        return torch.stack(losses)


def choose(
    ids: Sequence[str],
    count: int,
    seed: int,
) -> list[int]:  # indices, at most `count`
    """An image is chosen by a draw of its own, so most stay the same when others come or go."""
    return sorted(range(len(ids)), key=lambda i: (rng(seed, ids[i], "held-out").random(), ids[i]))[:count]


def stratified_timesteps(
    ids: Sequence[str],  # in the order of `choose`, which has nothing to do with what the images show
    seed: int,
) -> dict[str, int]:  # by image, 0..999
    """Every bucket of timesteps gets its share, or a few unlucky draws would decide what the mean says."""
    width = NOISE_STEPS // BUCKETS
    return {
        image_id: i % BUCKETS * width + int(rng(seed, image_id, "held-out timestep").integers(width))
        for i, image_id in enumerate(ids)
    }


def derangement(n: int, seed: int, size: Sequence[int]) -> Tensor | None:  # [n] int64
    """One cycle through all of them in a drawn order: nobody keeps its own."""
    if n < 2:
        return None
    cycle = rng(seed, "held-out shuffle", *size).permutation(n)
    partner = np.empty(n, np.int64)
    partner[cycle] = np.roll(cycle, -1)
    return torch.from_numpy(partner)


def summary(
    base: NDArray[np.float64],  # [N] losses of the locked base, without control
    true: NDArray[np.float64],  # [N] with the image's own hint
    shuffled: NDArray[np.float64],  # [N] with another's; no number where `has` is False
    buckets: NDArray[np.int64],  # [N] 0..7, of the timesteps
    has: NDArray[np.bool_],  # [N]
) -> ConditioningGain:
    """Plain numbers, None where there is none.

    `gap` is the conditioning gain: what the ControlNet saves in all, knowing the images' kind too; `control`
    only what it saves by its own hint over another's. `losses` are those of the pairs, so that two measures
    of a run can be compared pair by pair. `control_z` is Wilcoxon's signed-rank statistic of those savings as
    shares of the base's loss, which differs a hundredfold between timesteps: near a standard normal while the
    hints say nothing to the network, at most 7 with 64 pairs.
    """
    share = (shuffled[has] - true[has]) / base[has]
    gain, shuffled_gain = base - true, base - shuffled

    def by_timestep(values: NDArray[np.float64], which: NDArray[np.bool_]) -> dict[str, float | None]:
        return {name: _mean(values[which & (buckets == b)]) for b, name in enumerate(BUCKET_NAMES)}

    return {
        "n": len(base),
        "n_shuffled": int(has.sum()),
        "loss": _mean(true),
        "base_loss": _mean(base),
        "losses": [_number(round(value, 7)) for value in true],
        "gap": _mean(gain),
        # standard error of the mean
        "gap_error": _number(np.std(gain, ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else None,
        "gap_by_timestep": by_timestep(gain, np.ones_like(has)),
        "shuffled_gap": _mean(shuffled_gain[has]),
        "shuffled_gap_by_timestep": by_timestep(shuffled_gain, has),
        "control": _mean((shuffled - true)[has]),
        "control_z": _signed_ranks(share[share != 0]),
    }


def convergence_steps(
    # of train.jsonl, in any number; those without `held_out` are passed over
    rows: Sequence[LogRow],
    # condition -> images at which it began to follow its hints; conditions that do not yet are missing
) -> dict[str, int]:
    """The sudden convergence: control_z of at least 4.25 at two measures in a row, of which the first is the
    answer.

    While hints say nothing, the sign of each pair's saving is a coin's, whatever its size, and a sum of signs
    is beyond z at most 3.2 times as often as a normal variable (Bentkus and Dzindzalieta 2015): in 100
    measures of 13 conditions one is, by chance, in at most 5 % of the runs, however the measures of a run
    hang together (about 1 %, were it normal). The second measure is for a single odd step. A jump that helps
    three quarters of 64 pairs is known one measure after it; fewer than 24 pairs can't be told from chance so
    surely.
    """
    converged: dict[str, int] = {}
    streak: dict[str, list[int]] = {}
    for row in rows:
        for condition, numbers in (row.get("held_out") or {}).items():
            z = numbers.get("control_z")
            streak[condition] = (
                [*streak.get(condition, []), row["images"]] if z is not None and z >= CONVERGED else []
            )
            if len(streak[condition]) == IN_A_ROW:
                converged.setdefault(condition, streak[condition][0])
    return converged


def _signed_ranks(values: NDArray[np.float64]) -> float | None:  # None where there are none
    ranks = np.empty(len(values))
    ranks[np.argsort(np.abs(values), kind="stable")] = np.arange(1, len(values) + 1)
    return _number((np.sign(values) * ranks).sum() / np.linalg.norm(ranks)) if len(values) else None


def _mean(values: NDArray[np.float64]) -> float | None:
    return _number(values.mean()) if len(values) else None


def _number(value: Any) -> float | None:
    """JSON has no NaN; a loss that is not finite stops the training elsewhere."""
    return float(value) if math.isfinite(value) else None
