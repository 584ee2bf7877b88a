"""Batches made ahead of the training loop, in their order: in one thread beside it, or in processes, which
neither wait for each other's Python nor hold up the loop's.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset

Made = TypeVar("Made", covariant=True)
AHEAD = 2  # batches that each reader has made or is making


class Make(Protocol[Made]):
    """What makes the batch of a counter; it is pickled to other processes."""

    def __call__(self, counter: int) -> Made: ...
    def ahead(self, counter: int) -> None: ...  # what it will read may be fetched meanwhile


def in_a_thread(make: Callable[[int], Made], counters: range) -> Iterator[Made]:
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead: list[Future[Made]] = []
        try:
            for counter in counters:
                ahead.append(pool.submit(make, counter))
                if len(ahead) > AHEAD:
                    yield ahead.pop(0).result()
            while ahead:
                yield ahead.pop(0).result()
        finally:
            for future in ahead:
                future.cancel()


def in_processes(
    make: Make[Made],
    counters: range,
    count: int,
    *,
    pin: bool = False,  # into memory that a GPU copies from, by a thread of this process
) -> Iterator[Made]:
    """What is made comes through shared memory. Fresh processes rather than forks, which would inherit locks
    that threads hold; they end with this one. Raises what `make` raises.
    """
    loader: Any = DataLoader(
        _Counted(make, counters, count),
        batch_size=None,
        sampler=range(len(counters)),
        num_workers=count,
        prefetch_factor=AHEAD,
        multiprocessing_context="spawn",
        pin_memory=pin,
    )
    for made in loader:
        if isinstance(made, Exception):
            raise made
        yield made


class _Counted(Dataset[Any]):
    """The batches as a data set of torch, whose readers take turns."""

    def __init__(self, make: Make[Any], counters: range, count: int) -> None:
        self.make, self.counters, self.count = make, counters, count
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.counters)

    def __getitem__(self, number: int) -> Any:
        """An error as it is: torch would wrap its words in a traceback."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        if number + self.count < len(self.counters):
            self._pool.submit(self.make.ahead, self.counters[number + self.count])
        try:
            return self.make(self.counters[number])
        except Exception as error:
            return error
