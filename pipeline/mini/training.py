"""What the trainings of the mini detector and the mini scorer share: batches, learning rate, the loop."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import MillError

if TYPE_CHECKING:
    from train.mini.learning import Spent

MEASURE_EVERY = 16_000  # images


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How much of what one network sees, and how fast it learns."""

    part: str  # its name in the log and in the work folder
    seed: int
    images: int  # to have seen at the end
    batch: int
    lr: float
    lr_end: float = 0.0  # share of lr that is left at the end of its cosine
    half_life: float  # of the average, in images
    log_every: int = 800  # images

    def rng(self, seen: int) -> np.random.Generator:
        """Of the batch after so many images."""
        from train import batches

        return batches.rng(self.seed, self.part, seen)

    def rows(self, count: int, seen: int) -> list[int]:
        """Which of `count` pictures are in the batch after so many images."""
        from train.mini import learning

        return [learning.place(count, self.seed, seen + i) for i in range(self.batch)]

    def rate(self, seen: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(seen / self.images, 1)))
        return self.lr * (self.lr_end + (1 - self.lr_end) * cosine)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """New networks inside have the seed's weights; torch's own generator stays as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train(
    net: Any,  # torch.nn.Module
    schedule: Schedule,
    loss: Callable[[Any, int], Any],  # the network, images seen before this batch -> loss
    measure: Callable[[Any], dict[str, float]],  # of the average, on held-out scenes
    work: Path,
    until: float,  # time.monotonic() at which to stop
) -> bool:  # whether it has seen all its images
    """Goes on where the state in `work` ends."""
    from train.mini import learning

    loop = learning.Loop(
        part=schedule.part,
        images=schedule.images,
        batch=schedule.batch,
        half_life=schedule.half_life,
        measure_every=MEASURE_EVERY,
        log_every=schedule.log_every,
    )
    groups = [learning.ParameterGroup(list(net.parameters()))]
    objective = learning.Objective(groups, loss, schedule.rate, measure)
    folder = work / schedule.part
    _, _, complete = learning.learn(net, objective, loop, folder, spent=learning.Spent(), until=until)
    return complete


def load_average(net: Any, work: Path, part: str) -> "Spent | None":
    """Puts the saved average of a part into its network, and says what it has cost; None = not begun."""
    from train.mini import learning

    return learning.spent_of(work / part) if learning.average_of(work / part, net) else None


def not_begun(work: Path) -> MillError:
    return MillError(f"{work} holds no training yet: run the command without --export first.")
