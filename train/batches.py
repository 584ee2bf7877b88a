"""A resumable order over pairs, and draws that belong to the sample: both are pure functions of the seed and
the counter.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import readers
from train.loss import NOISE_STEPS
from train.options import Options


@dataclass(frozen=True)
class Pair:
    """One image as the encode stage stored it, with the hint of each condition."""

    image_id: str
    mean: NDArray[np.float32]  # [4, h, w] of the VAE's posterior, before the scaling factor
    std: NDArray[np.float32]  # [4, h, w]
    text: NDArray[np.float32]  # [T, D] of the caption
    # by condition: HWC, H = 8h; C = 3 (RGB) for all of the thirteen, any other number will do
    hints: dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Draw:
    """A pair that is asked for, and how."""

    index: int
    key: tuple[int, int, str] | None = None  # seed, epoch, image id; None = its first text
    mirrored: bool = False  # of the image seen in a mirror, hints too, where its text is true of that
    dropped: bool = False  # its text is not wanted

    def text(self, count: int) -> int:
        """Which of so many texts: a function of seed, epoch and image, whatever the batch or the reader."""
        return 0 if self.key is None or count < 2 else int(rng(*self.key, "caption").integers(count))


class Pairs(Protocol):
    """What training reads; its readers may be other processes, to which it is pickled."""

    @property
    def ids(self) -> Sequence[str]: ...  # image ids, in the order of __getitem__
    @property
    # (h, w) of the latents, in the same order, known without reading them
    def sizes(self) -> Sequence[tuple[int, int]]: ...
    @property
    def empty_text(self) -> NDArray[np.float32]: ...  # [T, D] of ""
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Pair: ...  # as it is, with its first text
    def read(self, draws: Sequence[Draw]) -> list[Pair]: ...
    def ahead(self, draws: Sequence[Draw]) -> None: ...  # what will be read may be fetched meanwhile


@dataclass(frozen=True)
class Batch:
    """Pairs of one size; the same noise, timesteps and prompt drops serve every condition."""

    image_ids: tuple[str, ...]
    epochs: tuple[int, ...]
    latents: Tensor  # [B, 4, h, w] float32, drawn from the posterior and scaled to unit variance
    noise: Tensor  # [B, 4, h, w] float32
    timesteps: Tensor  # [B] int64, 0..999
    text: Tensor  # [B, T, D] float32, the empty prompt where dropped
    dropped: Tensor  # [B] bool
    mirrored: Tensor  # [B] bool
    hints: dict[str, Tensor]  # by condition: [B, C, 8h, 8w] uint8, channels_last

    def pin_memory(self) -> "Batch":
        """In memory that a GPU copies from while the host goes on."""
        return replace(
            self,
            latents=self.latents.pin_memory(),
            noise=self.noise.pin_memory(),
            timesteps=self.timesteps.pin_memory(),
            text=self.text.pin_memory(),
            hints={condition: hint.pin_memory() for condition, hint in self.hints.items()},
        )


def rng(seed: int, *key: str | int) -> np.random.Generator:
    """One generator per purpose and sample, so that no draw depends on batch, worker or resume."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *key))).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def order(
    sizes: Sequence[tuple[int, int]],  # of all n pairs
    seed: int,
    epoch: int,
    batch: int,
) -> NDArray[np.int64]:  # [n] indices
    """Every epoch is its own permutation.

    Where sizes differ, its whole batches are of one size each, and come in no order of sizes.

    What each size leaves over fills the mixed batches at the two ends of the epoch: the rest of the batch
    that the epoch before began, and its own last ones.
    """
    shuffled = rng(seed, "order", epoch).permutation(len(sizes))
    kinds = {size: kind for kind, size in enumerate(sorted(set(sizes)))}
    if len(kinds) == 1:
        return shuffled
    kind_of = np.array([kinds[size] for size in sizes])[shuffled]
    whole, left = [], []
    for kind in range(len(kinds)):
        members = shuffled[kind_of == kind]
        cut = len(members) // batch * batch
        whole += list(members[:cut].reshape(-1, batch))
        left += list(members[cut:])
    head = min(-epoch * len(sizes) % batch, len(sizes))
    while len(left) < head:
        left += list(whole.pop())
    between = [whole[i] for i in rng(seed, "batches", epoch).permutation(len(whole))]
    return np.array(
        [*left[:head], *(index for chunk in between for index in chunk), *left[head:]], dtype=np.int64
    )


class Order:
    """The place of each image in the run: a function of the counter, with the orders of the
    last epochs kept.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], seed: int, batch: int) -> None:
        self.n = len(sizes)
        self._epoch = functools.lru_cache(maxsize=4)(lambda epoch: order(sizes, seed, epoch, batch))

    # images seen so far => epoch, index of the next pair
    def __getitem__(self, counter: int) -> tuple[int, int]:
        epoch, offset = divmod(counter, self.n)
        return epoch, int(self._epoch(epoch)[offset])


def draws_of(pairs: Pairs, places: Sequence[tuple[int, int]], options: Options) -> list[Draw]:
    """Prompt drop and flip of pairs at (epoch, index): chosen here, each epoch anew, and never baked into a
    cache.
    """
    drawn = []
    for epoch, index in places:
        key = (options.seed, epoch, pairs.ids[index])
        mirrored = bool(options.flip and rng(*key, "flip").random() < options.flip)
        dropped = bool(rng(*key, "prompt").random() < options.prompt_drop)
        drawn.append(Draw(index, key, mirrored, dropped))
    return drawn


def batch_at(
    pairs: Pairs,
    conditions: Sequence[str],
    places: Sequence[tuple[int, int]],  # (epoch, index) of each pair
    options: Options,
    *,
    scaling_factor: float,  # of the VAE
) -> tuple[Batch, ...]:  # one of each size among them
    """All pairs are read together, whatever their sizes."""
    drawn = draws_of(pairs, places, options)
    by_size: dict[tuple[int, int], list[tuple[Draw, Pair]]] = {}
    for draw, pair in zip(drawn, pairs.read(drawn), strict=True):
        by_size.setdefault(pairs.sizes[draw.index], []).append((draw, pair))
    return tuple(
        _batch(members, pairs.empty_text, conditions, scaling_factor) for members in by_size.values()
    )


def _batch(
    members: Sequence[tuple[Draw, Pair]],
    empty_text: NDArray[np.float32],
    conditions: Sequence[str],
    scaling_factor: float,
) -> Batch:
    latents, noise, timesteps = [], [], []
    for draw, row in members:
        assert draw.key is not None
        eps = rng(*draw.key, "posterior").standard_normal(row.mean.shape, dtype=np.float32)
        latents.append((row.mean + row.std * eps) * np.float32(scaling_factor))
        noise.append(rng(*draw.key, "noise").standard_normal(row.mean.shape, dtype=np.float32))
        timesteps.append(int(rng(*draw.key, "timestep").integers(NOISE_STEPS)))
    rows = [row for _, row in members]
    texts = [empty_text if draw.dropped else row.text for draw, row in members]
    return Batch(
        image_ids=tuple(row.image_id for row in rows),
        epochs=tuple(draw.key[1] for draw, _ in members if draw.key is not None),
        latents=torch.from_numpy(np.stack(latents)),
        noise=torch.from_numpy(np.stack(noise)),
        timesteps=torch.tensor(timesteps, dtype=torch.int64),
        text=torch.from_numpy(np.stack(texts).astype(np.float32, copy=False)),
        dropped=torch.tensor([draw.dropped for draw, _ in members]),
        mirrored=torch.tensor([draw.mirrored for draw, _ in members]),
        hints={condition: _hints(rows, condition) for condition in conditions},
    )


@dataclass(frozen=True)
class Reading:
    """What makes the batch of a counter, in this process or in another."""

    pairs: Pairs
    conditions: tuple[str, ...]
    options: Options
    scaling_factor: float
    share: slice  # rows of each logical batch that this process takes

    @functools.cached_property
    def places(self) -> Order:
        return Order(self.pairs.sizes, self.options.seed, self.options.batch)

    def _of(self, counter: int) -> list[tuple[int, int]]:
        return [self.places[counter + i] for i in range(self.options.batch)][self.share]

    def __call__(self, counter: int) -> tuple[Batch, ...]:
        return batch_at(
            self.pairs,
            self.conditions,
            self._of(counter),
            self.options,
            scaling_factor=self.scaling_factor,
        )

    def ahead(self, counter: int) -> None:
        """Has what the batch will read on its way."""
        self.pairs.ahead(draws_of(self.pairs, self._of(counter), self.options))


def batches(
    pairs: Pairs,
    conditions: Sequence[str],
    counters: range,  # images seen before each logical batch
    options: Options,
    *,
    scaling_factor: float,
    share: slice = slice(None),  # rows of each logical batch that this process takes
    pin: bool = False,
) -> Iterator[tuple[Batch, ...]]:
    """Reading ahead can't change a batch, since each is a function of its counter alone."""
    make = Reading(pairs, tuple(conditions), options, scaling_factor, share)
    if options.workers > 1:
        yield from readers.in_processes(make, counters, options.workers, pin=pin)
        return
    made = readers.in_a_thread(make, counters) if options.workers else map(make, counters)
    for parts in made:
        yield tuple(batch.pin_memory() for batch in parts) if pin else parts


def _hints(rows: list[Pair], condition: str) -> Tensor:
    """A hint of the wrong size would broadcast or crash far from its cause, so it is named here."""
    for row in rows:
        if condition not in row.hints:
            raise ValueError(f"image {row.image_id} has no hint for {condition}")
        hint = row.hints[condition]
        wanted = (*(8 * n for n in row.mean.shape[1:]), rows[0].hints[condition].shape[-1])
        if hint.dtype != np.uint8 or hint.shape != wanted:
            raise ValueError(
                f"hint {condition} of image {row.image_id} must be uint8 {wanted}, not {hint.dtype}"
                f" {hint.shape}"
            )
    return torch.from_numpy(np.stack([row.hints[condition] for row in rows])).permute(0, 3, 1, 2)
