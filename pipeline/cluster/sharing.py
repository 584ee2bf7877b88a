"""How many trainings share a GPU: as many as its memory and its arithmetic take, by what the first of them
measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.cluster.jobs import Job, Resources

# of a GPU, for a job of whose kind nothing is measured: two of these have no room, one that is measured has
ALONE = 0.51
BESIDE = 1 - ALONE
SPARE = 1.2  # times the tensors' memory: what the allocator keeps, and fragments
CONTEXT = 2**30  # bytes that a process takes of a GPU beside its tensors
BUSY = 0.8  # of the rate of matrix products: beyond it another process only slows the first


@dataclass(frozen=True)
class Measured:
    """Of one process that had a GPU for itself."""

    memory: int  # bytes of its tensors, at their most
    of: int  # bytes of the GPU
    utilisation: float  # FLOP/s as a share of the rate of matrix products


@dataclass(frozen=True)
class GpuShares:
    """What each job gets of a GPU, asked when it is about to begin: in place of equal Resources for all."""

    cpus: int
    gpus: Callable[[], int]  # of the cluster, now
    measured: Callable[[Job], Measured | None]  # by an earlier job of its kind

    def of(self, job: Job) -> Resources:
        """A third of a GPU where three have room; ALONE where two don't, or nothing is known yet. Each of
        several processes has a whole one.
        """
        return Resources(self.cpus, 1 if job.processes > 1 else share(self.measured(job)))

    def full(self, under_way: Sequence[Job]) -> bool:
        """Whether one more would only wait: with a share that may become smaller in the meantime."""
        each = [(job.processes, self.of(job).gpus) for job in under_way]
        return sum(count * (1 if part == ALONE else part) for count, part in each) > self.gpus() - 0.01


def share(measured: Measured | None) -> float:
    """Of a GPU, for one job of this kind: with it as many others as memory and arithmetic take."""
    if measured is None:
        return ALONE
    memory = (SPARE * measured.memory + CONTEXT) / measured.of
    together = int(1 / max(memory, measured.utilisation / BUSY, 0.1))
    return ALONE if together < 2 else min(BESIDE, 1 / together)
