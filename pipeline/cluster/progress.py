"""Progress that suits where it is shown: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

PATIENCE = 2.0  # seconds before anything is shown
EVERY = 10.0  # seconds between plain lines


class Progress:
    def __init__(self, label: str, total: int, unit: str = "images") -> None:
        self.label, self.total, self.unit, self.count = label, total, unit, 0
        self.start = self.spoke = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=f"{label:<9}", unit=f" {unit}", delay=PATIENCE, leave=False)

    def add(self, count: int) -> None:
        self.count += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif now - self.start > PATIENCE and now - self.spoke > EVERY:
            self.spoke = now
            rate = self.count / (now - self.start)
            ahead = f", {rate:.1f}/s, {duration((self.total - self.count) / rate)} left" if rate > 0 else ""
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


def duration(seconds: float) -> str:
    """As a person says it, to the minute where it is long: `40 s`, `12 min`, `1 h 22 min`, `3 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
