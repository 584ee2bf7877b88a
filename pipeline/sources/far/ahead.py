"""Reading ahead: many requests at a time in a thread of their own, answers in the order of what was asked."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

MOST_BYTES = 256 * 2**20  # that are held for the reader
MOST_ITEMS = 4096  # that are under way or wait for the reader

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Window:
    """How far the reading may run ahead of the reader. What the reader waits for is never held back."""

    def __init__(self, most_bytes: int, most_items: int) -> None:
        self._most_bytes, self._most_items = most_bytes, most_items
        self._head, self._held = 0, 0
        self._moved = asyncio.Event()

    def full(self, index: int) -> bool:
        return index > self._head and (
            self._held >= self._most_bytes or index - self._head >= self._most_items
        )

    async def room(self, index: int) -> None:
        """Waits until item `index` may be read on."""
        while self.full(index):
            self._moved.clear()
            await self._moved.wait()

    def hold(self, size: int) -> None:
        """Counts bytes that have come, or with a negative size, that are no longer held."""
        self._held += size
        if size < 0:
            self._moved.set()

    def take(self, size: int) -> None:
        """The reader took the answer at the head."""
        self._head += 1
        self._held -= size
        self._moved.set()


class Share:
    """The bytes of one item in the window."""

    def __init__(self, window: Window, index: int) -> None:
        self._window, self._index, self.size = window, index, 0

    @property
    def must_wait(self) -> bool:
        return self._window.full(self._index)

    async def room(self) -> None:
        await self._window.room(self._index)

    def add(self, size: int) -> None:
        self.size += size
        self._window.hold(size)

    def clear(self) -> None:
        """What came is thrown away, since the attempt failed."""
        self._window.hold(-self.size)
        self.size = 0


Ask = Callable[[Item, Share], Awaitable[Answer]]
Opened = Callable[[], AbstractAsyncContextManager[Ask[Item, Answer]]]


class _Reading(Generic[Item, Answer]):
    """One run of the event loop, in its own thread."""

    def __init__(self, items: Sequence[Item], opened: Opened[Item, Answer], limits: tuple[int, int]) -> None:
        self.items, self.opened = items, opened
        self.answers: list[Future[tuple[Answer | Exception, int]]] = [Future() for _ in items]
        self.loop = asyncio.new_event_loop()
        self.window = Window(*limits)
        self.main = self.loop.create_task(self._serve())
        self.thread = threading.Thread(target=self._run, name="reading ahead", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self.main)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # nothing can be asked at all: the reader is told
            for answer in self.answers:
                if not answer.done():
                    answer.set_exception(error)
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    async def _serve(self) -> None:
        async with self.opened() as ask, asyncio.TaskGroup() as group:
            for index, item in enumerate(self.items):
                share = Share(self.window, index)
                await share.room()
                group.create_task(self._answer(ask, item, share, self.answers[index]))

    async def _answer(
        self, ask: Ask[Item, Answer], item: Item, share: Share, answer: Future[tuple[Any, int]]
    ) -> None:
        try:
            told: Any = await ask(item, share)
        except Exception as error:  # of this item alone
            share.clear()
            told = error
        answer.set_result((told, share.size))

    def take(self, size: int) -> None:
        with suppress(RuntimeError):  # the loop has ended: nothing waits for room any more
            self.loop.call_soon_threadsafe(self.window.take, size)

    def stop(self) -> None:
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.main.cancel)
        self.thread.join()


def in_order(
    items: Sequence[Item],
    opened: Opened[Item, Answer],
    most_bytes: int = MOST_BYTES,
    most_items: int = MOST_ITEMS,
) -> Iterator[Answer | Exception]:
    """The answer to each item in order, or why there is none. `opened` gives, within its context, what asks
    for one; a full window holds requests back.
    """
    if not items:
        return
    reading = _Reading(items, opened, (most_bytes, most_items))
    reading.thread.start()
    try:
        for number, answer in enumerate(reading.answers):
            told, size = answer.result()
            reading.answers[number] = Future()  # so that the bytes go when the reader lets them go
            yield told
            reading.take(size)
    finally:
        reading.stop()
