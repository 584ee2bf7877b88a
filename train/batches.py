"""A resumable order over pairs, and draws that belong to the sample: both are pure functions of the seed and the counter."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOISE_STEPS = 1000  # of the diffusion process


@dataclass(frozen=True)
class Pair:
    """One image as the encode stage stored it, with the hint of each condition."""

    image_id: str
    mean: NDArray[np.float32]  # [4, h, w] of the VAE's posterior, before the scaling factor
    std: NDArray[np.float32]  # [4, h, w]
    text: NDArray[np.float32]  # [T, D] of the caption
    hints: dict[str, NDArray[np.uint8]]  # by condition: HWC, H = 8h; C = 3 (RGB) for all of the thirteen, any other number will do


class Pairs(Protocol):
    """What training reads; all pairs of one batch must be of one size."""

    @property
    def ids(self) -> Sequence[str]: ...  # image ids, in the order of __getitem__
    @property
    def empty_text(self) -> NDArray[np.float32]: ...  # [T, D] of ""
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Pair: ...


@dataclass(frozen=True)
class Batch:
    """A logical batch; the same noise, timesteps and prompt drops serve every condition."""

    image_ids: tuple[str, ...]
    epochs: tuple[int, ...]
    latents: Tensor  # [B, 4, h, w] float32, drawn from the posterior and scaled to unit variance
    noise: Tensor  # [B, 4, h, w] float32
    timesteps: Tensor  # [B] int64, 0..999
    text: Tensor  # [B, T, D] float32, the empty prompt where dropped
    dropped: Tensor  # [B] bool
    hints: dict[str, Tensor]  # by condition: [B, C, 8h, 8w] uint8


def draws(seed: int, *key: str | int) -> np.random.Generator:
    """One generator per purpose and sample, so that no draw depends on batch, worker or resume."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *key))).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def position(n: int, seed: int, counter: int) -> tuple[int, int]:  # images seen so far => epoch, index of the next pair
    """Every epoch is its own permutation of all n pairs."""
    epoch, offset = divmod(counter, n)
    return epoch, int(_permutation(n, seed, epoch)[offset])


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return draws(seed, "order", epoch).permutation(n)


def batch_at(
    pairs: Pairs,
    conditions: Sequence[str],
    counter: int,  # images seen before this batch
    *,
    size: int,
    seed: int,
    prompt_drop: float,  # 0..1
    scaling_factor: float,  # of the VAE
) -> Batch:
    """Prompt drop is chosen here, each epoch anew, and never baked into a cache."""
    places = [position(len(pairs), seed, counter + i) for i in range(size)]
    rows = [pairs[index] for _, index in places]
    epochs = [epoch for epoch, _ in places]
    shapes = {row.mean.shape for row in rows}
    if len(shapes) > 1:
        raise ValueError(f"a batch mixes latents of {len(shapes)} sizes ({sorted(shapes)}): train on images of one size (fit: crop)")
    latents, noise, timesteps, texts, dropped = [], [], [], [], []
    for row, epoch in zip(rows, epochs, strict=True):
        key = (epoch, row.image_id)
        eps = draws(seed, *key, "posterior").standard_normal(row.mean.shape, dtype=np.float32)
        latents.append((row.mean + row.std * eps) * np.float32(scaling_factor))
        noise.append(draws(seed, *key, "noise").standard_normal(row.mean.shape, dtype=np.float32))
        timesteps.append(int(draws(seed, *key, "timestep").integers(NOISE_STEPS)))
        dropped.append(bool(draws(seed, *key, "prompt").random() < prompt_drop))
        texts.append(pairs.empty_text if dropped[-1] else row.text)
    return Batch(
        image_ids=tuple(row.image_id for row in rows),
        epochs=tuple(epochs),
        latents=torch.from_numpy(np.stack(latents)),
        noise=torch.from_numpy(np.stack(noise)),
        timesteps=torch.tensor(timesteps, dtype=torch.int64),
        text=torch.from_numpy(np.stack(texts).astype(np.float32, copy=False)),
        dropped=torch.tensor(dropped),
        hints={condition: _hints(rows, condition) for condition in conditions},
    )


def batches(
    pairs: Pairs,
    conditions: Sequence[str],
    counters: range,  # the counter before each batch
    *,
    workers: int,  # threads that read ahead; 0 = none
    seed: int,
    prompt_drop: float,
    scaling_factor: float,
) -> Iterator[Batch]:
    """Reading ahead can't change a batch, since each is a function of its counter alone."""
    make = functools.partial(
        batch_at, pairs, conditions, size=counters.step, seed=seed, prompt_drop=prompt_drop, scaling_factor=scaling_factor
    )
    if not workers:
        yield from map(make, counters)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
        ahead: list[Future[Batch]] = []
        try:
            for counter in counters:
                ahead.append(pool.submit(make, counter))
                if len(ahead) > workers + 1:
                    yield ahead.pop(0).result()
            while ahead:
                yield ahead.pop(0).result()
        finally:
            for future in ahead:
                future.cancel()


def _hints(rows: list[Pair], condition: str) -> Tensor:
    """A hint of the wrong size would broadcast or crash far from its cause, so it is named here."""
    for row in rows:
        if condition not in row.hints:
            raise ValueError(f"image {row.image_id} has no hint for {condition}")
        found, wanted = row.hints[condition], (*(8 * n for n in row.mean.shape[1:]), rows[0].hints[condition].shape[-1])
        if found.dtype != np.uint8 or found.shape != wanted:
            raise ValueError(f"hint {condition} of image {row.image_id} must be uint8 {wanted}, not {found.dtype} {found.shape}")
    return torch.from_numpy(np.stack([row.hints[condition] for row in rows])).permute(0, 3, 1, 2).contiguous()
