"""How much of a logical batch fits into memory: found by trying, without the compiler, for which each size is
new work.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from train import train_state
from train.batches import Batch
from train.options import Options
from train.out_of_memory import free, unless_out_of_memory
from train.step import DiffusionModel, MicroBatch, gradients
from train.train_state import TrainState


def gradients_in_memory(
    model: DiffusionModel,
    parts: tuple[Batch, ...],
    options: Options,
    micro_batch: MicroBatch,
    states: Mapping[str, TrainState],
) -> tuple[dict[str, Tensor], MicroBatch]:  # by condition: the losses; what fitted
    """One logical batch, begun again with a smaller micro-batch where memory runs out: nothing has been
    learned from it by then.

    A compiled model computes with a size only when it is known to fit. Of several ranks each finds its own,
    since the sum of their gradients does not depend on it: none waits to be asked.
    """
    while True:
        if model.eager is not None and len(parts) == 1 and not micro_batch.fits:
            micro_batch = _found(model.eager, parts, options, micro_batch, states)
        losses = _tried(model, parts, options, micro_batch, states)
        if losses is not None:
            return losses, replace(micro_batch, fits=micro_batch.fits or len(parts) == 1)
        micro_batch = micro_batch.smaller()


def _found(
    eager: DiffusionModel,
    parts: tuple[Batch, ...],
    options: Options,
    micro_batch: MicroBatch,
    states: Mapping[str, TrainState],
) -> MicroBatch:
    """Tried twice, the second time beside the optimizers' moments, which a step that learns nothing makes."""
    for _ in range(2):
        while _tried(eager, parts, options, micro_batch, states) is None:
            micro_batch = micro_batch.smaller()
        for state in states.values():
            train_state.make_moments(state)
    return replace(micro_batch, fits=True)


def _tried(
    model: DiffusionModel,
    parts: tuple[Batch, ...],
    options: Options,
    micro_batch: MicroBatch,
    states: Mapping[str, TrainState],
) -> dict[str, Tensor] | None:  # None = memory ran out, and no gradient is left
    for state in states.values():
        train_state.zero_gradients(state)
    with unless_out_of_memory():
        return gradients(model, parts, options, micro_batch)
    for state in states.values():
        train_state.zero_gradients(state)
    free()
    return None
