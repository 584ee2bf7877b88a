"""Data parallel training: every rank takes its slice of each logical batch, gradients are summed, weights are
compared at each checkpoint.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
BUCKET = 2**26  # bytes of gradients that travel in one message


class Diverged(RuntimeError):
    """The ranks no longer hold the same weights: they train different models, of which only one would be
    saved.
    """


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. A process alone sends nothing; a group of one sends its messages
    all the same, so that one GPU can prove them.
    """

    rank: int = 0
    count: int = 1
    group: bool = False  # whether torch.distributed was initialised

    @classmethod
    def here(cls) -> "Ranks":
        """As torch.distributed was initialised, else alone."""
        return (
            cls(dist.get_rank(), dist.get_world_size(), group=True)
            if dist.is_available() and dist.is_initialized()
            else ALONE
        )

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This rank's rows of a logical batch, which must divide evenly.

        ValueError: `batch` is no multiple of the number of ranks.
        """
        if batch % self.count:
            raise ValueError(
                f"batch ({batch}) must be a multiple of the {self.count} processes that train: change either"
            )
        rows = batch // self.count
        return slice(self.rank * rows, (self.rank + 1) * rows)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The loss is a sum over the logical batch, so its gradient is the sum over ranks; the same bits
        arrive everywhere.
        """
        if not self.group:
            return
        for gradients in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(
                gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
            )

    # [S, b] => [S, count * b], the slices in the order of the logical batch
    def gather(self, values: Tensor) -> Tensor:
        if not self.group:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts, dim=1)

    def all_of(self, here: T) -> list[T]:
        """One of each rank, in their order; slow, for what is told now and then."""
        if not self.group:
            return [here]
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, here)
        return parts

    @torch.no_grad()
    def check_equal(self, models: Mapping[str, nn.Module], images: int) -> None:
        """Compares every tensor's bits over the ranks; the missing step of trainers whose ranks drift apart
        silently.

        Diverged: a tensor or the count of images is not the same on all ranks.
        """
        if not self.group:
            return
        names, sums = [], []
        for model, module in models.items():
            for name, tensor in module.state_dict().items():
                names.append(f"{model}: {name}")
                sums.append(_checksum(tensor))
        mine = torch.stack([*sums, torch.tensor(images, device=sums[0].device)])
        lowest, highest = mine.clone(), mine.clone()
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        odd = (lowest != highest).nonzero().flatten().tolist()
        if odd:
            what = names[odd[0]] if odd[0] < len(names) else "the count of images seen"
            raise Diverged(
                f"the {self.count} ranks differ in {len(odd)} tensors after {images} images, first {what}:"
                " nothing was saved"
            )

    def wait(self) -> None:
        if self.group:
            dist.barrier()


ALONE = Ranks()


def _checksum(tensor: Tensor) -> Tensor:  # scalar int64
    """Of the bits, each weighed by its place, so that neither a changed nor a swapped number goes unseen."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(-1).view(words).to(torch.int64)
    # odd weights: wrapping around loses nothing
    return (bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum()


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Small tensors share a message; each message has one dtype."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket
