"""Progress that suits where it is shown: a bar on a terminal, a plain line every few seconds elsewhere; and
how workers tell of it.
"""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pipeline.cluster.position import Trial
from pipeline.storage.events import StageProgress, now

PATIENCE = 2.0  # seconds before anything is shown
EVERY = 10.0  # seconds between plain lines


@dataclass(frozen=True)
class Rate:
    """How far a stage is, `seconds` after it began."""

    label: str
    done: int
    total: int
    unit: str
    per_second: float
    seconds_left: float | None  # None = not known yet
    under_way: Mapping[str, int]  # what rows are passed through, such as conditions -> jobs that are at it
    seconds: float


def stage_progress(rate: Rate, rows: Mapping[str, int]) -> StageProgress:
    """As it is written down; `rows` are those that the stage committed, by condition or kind."""
    return StageProgress(
        time=now(),
        stage=rate.label,
        done=rate.done,
        total=rate.total,
        unit=rate.unit,
        per_second=rate.per_second,
        seconds_left=rate.seconds_left,
        under_way={name: count for name, count in rate.under_way.items() if name},
        rows=dict(rows),
        rows_per_second={name: count / max(rate.seconds, 1e-9) for name, count in rows.items()},
    )


class Progress:
    def __init__(self, label: str, total: int, unit: str = "images") -> None:
        self.label, self.total, self.unit, self.count = label, total, unit, 0
        self.under_way: Mapping[str, int] = {}
        self.start = self.spoke = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=f"{label:<9}", unit=f" {unit}", delay=PATIENCE, leave=False)

    def rate(self) -> Rate:
        spent = time.monotonic() - self.start
        speed = self.count / spent if spent > 0 else 0.0
        left = (self.total - self.count) / speed if speed > 0 else None
        return Rate(self.label, self.count, self.total, self.unit, speed, left, self.under_way, spent)

    def reach(self, count: int, under_way: Mapping[str, int]) -> None:
        """So many are done, of which a worker that died may have told too much: it never goes back."""
        self.under_way = under_way
        self.add(max(0, min(count, self.total) - self.count))

    def add(self, count: int) -> None:
        self.count += count
        now = time.monotonic()
        at = ", ".join(name for name in self.under_way if name)
        if self._bar is not None:
            self._bar.set_postfix_str(at, refresh=False)
            self._bar.update(count)
        elif now - self.start > PATIENCE and now - self.spoke > EVERY:
            self.spoke = now
            rate = self.rate()
            ahead = f", {rate.per_second:.1f}/s" if rate.per_second else ""
            ahead += f", {duration(rate.seconds_left)} left" if rate.seconds_left is not None else ""
            ahead += f" ({at})" if at else ""
            print(
                f"{self.label:<9} {self.count} of {self.total} {self.unit}{ahead}",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Counts:
    """An actor that workers tell how far their jobs are, and the driver asks."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, str]] = {}

    def tell(self, token: str, done: int, what: str) -> None:
        self._told[token] = done, what

    def read(self, tokens: list[str]) -> dict[str, tuple[int, str]]:
        """Of these attempts, which are all that are under way: the others are forgotten."""
        self._told = {token: self._told[token] for token in tokens if token in self._told}
        return self._told


def summed(told: Mapping[str, tuple[int, str]]) -> tuple[int, dict[str, int]]:
    """Rows that are done in jobs under way, and how many of these are at what."""
    return sum(done for done, _ in told.values()), dict(Counter(what for _, what in told.values()))


def teller(trial: Trial) -> Callable[[int, str], None]:
    """In a worker: tells the actor and waits for no answer. Where there is none (yet) nothing is told."""
    actor: list[Any] = []

    def tell(done: int, what: str) -> None:
        import ray

        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            if not actor:
                actor.append(ray.get_actor(trial.counts))
            actor[0].tell.remote(trial.token, done, what)

    return tell if trial.counts else lambda done, what: None


def duration(seconds: float) -> str:
    """As a person says it, to the minute where it is long: `40 s`, `12 min`, `1 h 22 min`, `3 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
